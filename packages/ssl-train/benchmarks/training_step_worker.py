"""One implementation of a DINO training step, in a process of its own: see `training_step.py`, which starts it.

Reads "go" lines and answers each with the images a second of one round, after a first line with its versions.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from argparse import Namespace
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor, nn

Settings = dict[str, Any]
# Runs a warm-up step and then the timed ones; returns the seconds of these.
Round = Callable[[], float]
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
RATE, WEIGHT_DECAY, MOMENTUM, CLIP, DROP_PATH = 5e-4, 0.04, 0.996, 3.0, 0.1


def crops_of(settings: Settings) -> tuple[Tensor, Tensor]:
    """The same crops in every process: (2, B, 3, G, G) and (n, B, 3, L, L)."""
    generator = torch.Generator().manual_seed(0)

    def draw(number: int, size: int) -> Tensor:
        return torch.randn(number, settings["batch"], 3, size, size, generator=generator).to(settings["device"])

    return draw(2, settings["global_px"]), draw(settings["n_locals"], settings["local_px"])


def synchronise(settings: Settings) -> float:
    """The time when all work so far is done; of this process alone where it has a single core."""
    if settings["device"] == "cuda":
        torch.cuda.synchronize()
    elif torch.get_num_threads() == 1:
        return time.process_time()
    return time.perf_counter()


def ssl_train(settings: Settings) -> Round:
    """`DINO` in a Lightning trainer."""
    import logging
    import warnings

    import pytorch_lightning as pl
    from ssl_train import DINO

    warnings.filterwarnings("ignore")
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)

    class Crops:
        mean = std = (0.5, 0.5, 0.5)
        global_size_px, local_size_px = settings["global_px"], settings["local_px"]

        def __init__(self) -> None:
            self.crops = crops_of(settings)

        def __call__(self, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
            return self.crops

    class Clock(pl.Callback):
        started = ended = 0.0

        def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
            if trainer.global_step == 1:
                self.started = synchronise(settings)
            elif trainer.global_step == trainer.max_steps:
                self.ended = synchronise(settings)

    model = DINO(
        architecture=f"vit_{settings['vit']}_patch16_224",
        architecture_kwargs={"img_size": settings["global_px"], "patch_size": settings["patch_size"]},
        crops=Crops(),  # type: ignore[arg-type]
        out_dim=settings["out_dim"],
        drop_path_rate=DROP_PATH,
        clip_grad=CLIP,
        teacher_momentum=MOMENTUM,
        weight_decay=WEIGHT_DECAY,
        base_learning_rate=RATE,
        warmup_epochs=0,
        freeze_last_layer_epochs=0,
    )
    batch = {
        "image": torch.zeros(settings["batch"], 1, 1, 3, dtype=torch.uint8),
        "index": torch.arange(settings["batch"]),
    }
    precision = {"fp32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}[settings["precision"]]
    steps = settings["steps"]

    def run() -> float:
        clock = Clock()
        trainer = pl.Trainer(
            max_steps=steps + 1,
            accelerator="cpu" if settings["device"] == "cpu" else "gpu",
            devices=1,
            precision=precision,
            callbacks=[clock],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(model, torch.utils.data.DataLoader([batch] * (steps + 1), batch_size=None))  # type: ignore[arg-type]
        return clock.ended - clock.started

    return run


def facebookresearch_dino(settings: Settings) -> Round:
    """The reference's `train_one_epoch`."""
    sys.path.insert(0, settings["checkout"])
    import main_dino
    import numpy as np
    import torch.distributed as dist
    import utils
    import vision_transformer as vits

    device, precision = settings["device"], settings["precision"]
    if device == "cpu":
        torch.Tensor.cuda = lambda self, *_, **__: self  # type: ignore[method-assign, assignment]
        torch.cuda.synchronize = lambda *_: None
    torch.cuda.amp.autocast = lambda *_: torch.autocast(  # type: ignore[misc, assignment]
        device, dtype=DTYPES.get(precision, torch.bfloat16), enabled=precision != "fp32"
    )
    # Its meters gather their numbers on GPUs.
    utils.is_dist_avail_and_initialized = lambda: False
    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    store = dist.HashStore()
    dist.init_process_group("gloo" if device == "cpu" else "nccl", store=store, rank=0, world_size=1)
    build = getattr(vits, f"vit_{settings['vit']}")

    def network(**kwargs: Any) -> nn.Module:
        backbone = build(patch_size=settings["patch_size"], img_size=[settings["global_px"]], **kwargs)
        head = vits.DINOHead(backbone.embed_dim, settings["out_dim"])
        return utils.MultiCropWrapper(backbone, head).to(device)

    student = nn.parallel.DistributedDataParallel(network(drop_path_rate=DROP_PATH))
    teacher = network()
    teacher.load_state_dict(student.module.state_dict())
    teacher.requires_grad_(False)
    loss = main_dino.DINOLoss(settings["out_dim"], settings["n_locals"] + 2, 0.04, 0.04, 0, 10).to(device)
    optimizer = torch.optim.AdamW(utils.get_params_groups(student))
    scaler = torch.amp.GradScaler(device) if precision == "fp16" else None
    global_crops, local_crops = crops_of(settings)
    images = [*global_crops, *local_crops]
    schedules = [np.full(1000, value) for value in (RATE, WEIGHT_DECAY, MOMENTUM)]
    arguments = Namespace(clip_grad=CLIP, freeze_last_layer=0, epochs=10)

    def epoch(steps: int) -> None:
        with contextlib.redirect_stdout(sys.stderr):
            main_dino.train_one_epoch(
                student, teacher, teacher, loss, [(images, 0)] * steps, optimizer, *schedules, 0, scaler, arguments
            )

    return _timed(epoch, settings)


def lightly(settings: Settings) -> Round:
    """The parts that lightly offers for DINO, on timm's vision transformer."""
    import timm
    from lightly.loss import DINOLoss
    from lightly.models.modules import DINOProjectionHead
    from lightly.models.utils import update_momentum

    device, precision = settings["device"], settings["precision"]

    def network(**kwargs: Any) -> nn.Module:
        backbone = timm.create_model(
            f"vit_{settings['vit']}_patch16_224",
            num_classes=0,
            dynamic_img_size=True,
            img_size=settings["global_px"],
            patch_size=settings["patch_size"],
            **kwargs,
        )
        head = DINOProjectionHead(backbone.embed_dim, 2048, 256, settings["out_dim"], norm_last_layer=True)
        return nn.ModuleDict({"backbone": backbone, "head": head}).to(device)

    student, teacher = network(drop_path_rate=DROP_PATH), network()
    teacher.load_state_dict(student.state_dict())
    teacher.requires_grad_(False)
    loss_of = DINOLoss(output_dim=settings["out_dim"]).to(device)
    trained = [parameter for parameter in student.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=RATE, weight_decay=WEIGHT_DECAY)
    scaler = torch.amp.GradScaler(device, enabled=precision == "fp16")
    global_crops, local_crops = crops_of(settings)
    dtype = DTYPES.get(precision, torch.bfloat16)

    def steps_of(number: int) -> None:
        for _ in range(number):
            update_momentum(student["backbone"], teacher["backbone"], m=MOMENTUM)
            update_momentum(student["head"], teacher["head"], m=MOMENTUM)
            with torch.autocast(device, dtype=dtype, enabled=precision != "fp32"):
                with torch.no_grad():
                    seen = teacher["head"](teacher["backbone"](global_crops.flatten(0, 1)))
                answers = [student["backbone"](crops.flatten(0, 1)) for crops in (global_crops, local_crops)]
                logits = student["head"](torch.cat(answers))
                loss = loss_of(list(seen.chunk(2)), list(logits.chunk(2 + settings["n_locals"])), epoch=0)
            optimizer.zero_grad()
            scaler.scale(loss).backward()
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(trained, CLIP)
            scaler.step(optimizer)
            scaler.update()
            loss.item()

    return _timed(steps_of, settings)


def _timed(steps_of: Callable[[int], None], settings: Settings) -> Round:
    def run() -> float:
        steps_of(1)
        started = synchronise(settings)
        steps_of(settings["steps"])
        return synchronise(settings) - started

    return run


IMPLEMENTATIONS = {"ssl-train": ssl_train, "facebookresearch/dino": facebookresearch_dino, "lightly": lightly}


def main() -> None:
    """Answer every "go" until the input ends."""
    settings = json.loads(sys.argv[1])
    torch.manual_seed(0)
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    # Answers go to the first stdout; whatever libraries print goes to stderr.
    answers, sys.stdout = sys.stdout, sys.stderr
    run = IMPLEMENTATIONS[settings["name"]](settings)
    own = {"lightly": ["lightly", "timm"], "ssl-train": ["ssl-train", "timm", "pytorch-lightning"]}
    names = ["torch", *own.get(settings["name"], [])]
    print(json.dumps({name: version(name) for name in names}), file=answers, flush=True)
    for _ in sys.stdin:
        speed = settings["steps"] * settings["batch"] / run()
        print(json.dumps({"images_per_second": speed}), file=answers, flush=True)


if __name__ == "__main__":
    main()
