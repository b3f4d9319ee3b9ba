"""One implementation of a training step of DINOv2, in a process of its own; see `dinov2_step.py`, which starts it.

The settings come as JSON in the first argument; then every line of the input is answered by the seconds of a step.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
import types
from collections.abc import Callable
from importlib.metadata import version
from itertools import groupby
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

PATCH, DROP_PATH, RATE, WEIGHT_DECAY, MOMENTUM, CLIP, TEMP = 16, 0.3, 1e-4, 0.04, 0.992, 3.0, 0.05
Settings = dict[str, Any]


def crops_and_masks(settings: Settings) -> tuple[Any, Any, Any]:
    """The same in all processes: crops (2, B, 3, G, G) and (n, B, 3, L, L), masks (2B, N)."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(2, settings["global_px"]), (settings["n_locals"], settings["local_px"])]
    crops = [torch.randn(n, settings["batch"], 3, size, size, generator=generator) for n, size in shapes]
    return *crops, torch.tensor(settings["masks"])


def ssl_train(settings: Settings) -> Callable[[], None]:
    """`DINOv2` in a Lightning trainer; a generator of batches lets the caller decide when the next step comes."""
    import logging
    import threading
    import warnings

    import pytorch_lightning as pl
    from ssl_train import DINOv2
    from ssl_train.dinov2_network import HeadSettings

    warnings.filterwarnings("ignore")
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    wanted, done = threading.Semaphore(0), threading.Semaphore(0)
    n = settings["batch"]

    def batches() -> Any:
        while True:
            wanted.acquire()
            yield {"image": torch.zeros(n, 1, 1, 3, dtype=torch.uint8), "index": torch.arange(n)}

    class Done(pl.Callback):
        def on_train_batch_end(self, *_: Any) -> None:
            done.release()

    class Stream(torch.utils.data.IterableDataset):  # type: ignore[type-arg]
        def __iter__(self) -> Any:
            return batches()

    def fit() -> None:
        global_crops, local_crops, masks = crops_and_masks(settings)
        ready = SimpleNamespace(
            global_size_px=settings["global_px"], local_size_px=settings["local_px"], n_locals=settings["n_locals"]
        )

        class Crops(SimpleNamespace):
            def __call__(self, *_: Any, **__: Any) -> Any:
                return global_crops, local_crops

        class Masks:
            def __call__(self, *_: Any, **__: Any) -> Any:
                return masks

        sizes = {"embed_dim": settings["dim"], "depth": settings["depth"], "num_heads": settings["heads"]}
        model = DINOv2(
            architecture="vit_small_patch14_dinov2",
            architecture_kwargs={"img_size": settings["global_px"], "patch_size": PATCH, **sizes},
            crops=Crops(**vars(ready)),  # type: ignore[arg-type]
            masks=Masks(),  # type: ignore[arg-type]
            dino_head=HeadSettings(out_dim=settings["out_dim"]),
            position_interpolation="dino",
            drop_path_rate=DROP_PATH,
            base_learning_rate=RATE,
            weight_decay=WEIGHT_DECAY,
            teacher_momentum=MOMENTUM,
            clip_grad=CLIP,
            warmup_epochs=0,
            freeze_last_layer_epochs=0,
        )
        trainer = pl.Trainer(
            max_steps=10**6,
            accelerator="cpu",
            callbacks=[Done()],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        loader: Any = torch.utils.data.DataLoader(Stream(), batch_size=None)
        trainer.fit(model, loader)

    # All of torch's work in one thread: a second one would have OpenMP threads of its own, and where there are more of
    # these than cores, the waiting ones sleep.
    threading.Thread(target=fit, daemon=True).start()

    # The loader is one batch ahead of the trainer.
    wanted.release()

    def step() -> None:
        wanted.release()
        done.acquire()

    return step


def stand_ins() -> None:
    """What the reference imports and the CPU does not have: xformers, FSDP and their company."""
    from torch import Tensor, nn

    class BlockDiagonalMask:
        def __init__(self, lengths: list[int], batches: list[int]) -> None:
            self.lengths, self._batch_sizes = lengths, batches

        @classmethod
        def from_seqlens(cls, lengths: list[int]) -> BlockDiagonalMask:
            return cls(lengths, [1] * len(lengths))

        @classmethod
        def from_tensor_list(cls, tensors: list[Tensor]) -> tuple[BlockDiagonalMask, Tensor]:
            lengths = [t.shape[1] for t in tensors for _ in range(len(t))]
            packed = torch.cat([t.reshape(1, -1, *t.shape[2:]) for t in tensors], dim=1)
            return cls(lengths, [len(t) for t in tensors]), packed

        def split(self, packed: Tensor) -> list[Tensor]:
            starts = [sum(self._batch_sizes[:i]) for i in range(len(self._batch_sizes))]
            totals = [n * self.lengths[start] for n, start in zip(self._batch_sizes, starts, strict=True)]
            parts = packed[0].split(totals)
            return [part.reshape(n, -1, *part.shape[1:]) for n, part in zip(self._batch_sizes, parts, strict=True)]

    def attention(query: Tensor, key: Tensor, value: Tensor, attn_bias: BlockDiagonalMask | None = None) -> Tensor:
        lengths = [query.shape[1]] * len(query) if attn_bias is None else attn_bias.lengths
        outs, start = [], 0
        flat = [t.reshape(-1, *t.shape[2:]) for t in (query, key, value)]
        for length, group in groupby(lengths):
            n = len(list(group))
            parts = [t[start : start + n * length].view(n, length, *t.shape[1:]).transpose(1, 2) for t in flat]
            out = nn.functional.scaled_dot_product_attention(*parts).transpose(1, 2)
            outs.append(out.reshape(n * length, *out.shape[2:]))
            start += n * length
        return torch.cat(outs).view(query.shape)

    def scaled_index_add(x: Tensor, index: Tensor, source: Tensor, scaling: Tensor, alpha: float) -> Tensor:
        return x.index_add(0, index, scaling * source, alpha=alpha)

    def index_select_cat(sources: list[Tensor], indices: list[Tensor]) -> Tensor:
        return torch.cat([s[i].flatten() for s, i in zip(sources, indices, strict=True)])

    xformers, ops = types.ModuleType("xformers"), types.ModuleType("xformers.ops")
    ops.fmha = SimpleNamespace(BlockDiagonalMask=BlockDiagonalMask)  # type: ignore[attr-defined]
    ops.memory_efficient_attention = attention  # type: ignore[attr-defined]
    ops.unbind = torch.unbind  # type: ignore[attr-defined]
    ops.scaled_index_add, ops.index_select_cat = scaled_index_add, index_select_cat  # type: ignore[attr-defined]
    fsdp = types.ModuleType("dinov2.fsdp")
    for name in ("get_fsdp_wrapper", "reshard_fsdp_model"):
        setattr(fsdp, name, lambda module: module)
    fsdp.get_fsdp_modules = lambda module: [SimpleNamespace(params=list(module.parameters()))]  # type: ignore[attr-defined]
    fsdp.ShardedGradScaler = None  # type: ignore[attr-defined]
    sys.modules |= {"xformers": xformers, "xformers.ops": ops, "dinov2.fsdp": fsdp}
    torch.Tensor.cuda = lambda self, *_, **__: self  # type: ignore[method-assign, assignment]
    torch.cuda.synchronize = lambda *_: None


def facebookresearch_dinov2(settings: Settings) -> Callable[[], None]:
    """A step of `SSLMetaArch`, in the order of train.py, do_train."""
    import warnings

    warnings.filterwarnings("ignore")
    sys.path.insert(0, settings["checkout"])
    stand_ins()
    # The package's own __init__ would import the whole trainer.
    package = types.ModuleType("dinov2.train")
    package.__path__ = [str(Path(settings["checkout"]) / "dinov2" / "train")]
    sys.modules["dinov2.train"] = package
    import dinov2.models.vision_transformer as vits
    from dinov2.train.ssl_meta_arch import SSLMetaArch

    def bench_vit(**kwargs: Any) -> Any:
        sizes = {"embed_dim": settings["dim"], "depth": settings["depth"], "num_heads": settings["heads"]}
        block = vits.partial(vits.Block, attn_class=vits.MemEffAttention)
        return vits.DinoVisionTransformer(mlp_ratio=4, block_fn=block, **sizes, **kwargs)

    vits.bench_vit = bench_vit
    head = {"head_n_prototypes": settings["out_dim"], "head_bottleneck_dim": 256, "head_nlayers": 3}
    head |= {"head_hidden_dim": 2048, "loss_weight": 1.0}
    student = {"arch": "bench_vit", "patch_size": PATCH, "layerscale": 1e-5, "ffn_layer": "mlp", "block_chunks": 0}
    student |= dict.fromkeys(("qkv_bias", "proj_bias", "ffn_bias", "drop_path_uniform"), True)
    student |= {"num_register_tokens": 0, "interpolate_offset": 0.1, "interpolate_antialias": False}
    student |= {"drop_path_rate": DROP_PATH, "pretrained_weights": ""}
    masks_of = {"mask_ratio_min_max": [0.1, 0.5], "mask_sample_probability": 0.5, "separate_head": False}
    config = SimpleNamespace(
        compute_precision=SimpleNamespace(grad_scaler=False),
        student=SimpleNamespace(**student),
        dino=SimpleNamespace(koleo_loss_weight=0.1, **head),
        ibot=SimpleNamespace(**masks_of, **head),
        crops=SimpleNamespace(global_crops_size=settings["global_px"], local_crops_number=settings["n_locals"]),
        train=SimpleNamespace(centering="centering"),
        optim=SimpleNamespace(layerwise_decay=0.9, patch_embed_lr_mult=0.2),
    )
    model = SSLMetaArch(config)
    model.need_to_synchronize_fsdp_streams = False
    for name in model.student:
        model.teacher[name].load_state_dict(model.student[name].state_dict())
    model.train()
    groups = model.get_params_groups()
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.999))
    for group in optimizer.param_groups:
        group["lr"], group["weight_decay"] = RATE * group["lr_multiplier"], WEIGHT_DECAY * group["wd_multiplier"]
    global_crops, local_crops, masks = crops_and_masks(settings)
    index = masks.flatten().nonzero().flatten()
    data = {
        "collated_global_crops": global_crops.flatten(0, 1),
        "collated_local_crops": local_crops.flatten(0, 1),
        "collated_masks": masks,
        "mask_indices_list": index,
        "n_masked_patches": torch.tensor([len(index)]),
        "upperbound": len(index),
        "masks_weight": (1 / masks.sum(-1).clamp(min=1.0)).unsqueeze(-1).expand_as(masks)[masks],
    }

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        losses = model.forward_backward(data, teacher_temp=TEMP)
        for part in model.student.values():
            torch.nn.utils.clip_grad_norm_(part.parameters(), CLIP)
        optimizer.step()
        model.update_teacher(MOMENTUM)
        # As its trainer does for the log.
        [value.item() for value in losses.values()]

    return step


def lightly(settings: Settings) -> Callable[[], None]:
    """The parts that lightly offers for DINOv2, in a plain loop as in its published example."""
    import timm
    from lightly.loss import DINOLoss, IBOTPatchLoss, KoLeoLoss
    from lightly.models.modules import DINOv2ProjectionHead, MaskedVisionTransformerTIMM
    from lightly.models.utils import update_drop_path_rate, update_momentum
    from torch import nn

    side, dim = settings["global_px"] // PATCH, settings["dim"]

    def network() -> nn.ModuleDict:
        sizes = {"embed_dim": dim, "depth": settings["depth"], "num_heads": settings["heads"], "patch_size": PATCH}
        vit = timm.create_model(
            "vit_small_patch14_dinov2", num_classes=0, dynamic_img_size=True, img_size=settings["global_px"], **sizes
        )
        head = DINOv2ProjectionHead(dim, 2048, 256, settings["out_dim"])
        return nn.ModuleDict({"backbone": MaskedVisionTransformerTIMM(vit), "head": head})

    student, teacher = network(), network()
    update_drop_path_rate(student["backbone"].vit, DROP_PATH, mode="uniform")
    teacher.load_state_dict(student.state_dict())
    teacher.requires_grad_(False).eval()
    cls_loss, patch_loss = DINOLoss(output_dim=settings["out_dim"]), IBOTPatchLoss(output_dim=settings["out_dim"])
    koleo = KoLeoLoss()
    optimizer = torch.optim.AdamW(student.parameters(), lr=RATE, weight_decay=WEIGHT_DECAY)
    global_crops, local_crops, masks = crops_and_masks(settings)
    batch, n_crops = settings["batch"], 2 * settings["batch"]
    # Of all tokens, the class token included.
    hidden = torch.cat([torch.zeros(n_crops, 1, dtype=torch.bool), masks], dim=1)

    def step() -> None:
        update_momentum(student["backbone"], teacher["backbone"], m=MOMENTUM)
        update_momentum(student["head"], teacher["head"], m=MOMENTUM)
        with torch.no_grad():
            seen = teacher["backbone"].encode(global_crops.flatten(0, 1))
            targets, masked_targets = teacher["head"](seen[:, 0]), teacher["head"](seen[hidden])
        tokens = student["backbone"].encode(global_crops.flatten(0, 1), mask=hidden)
        cls = torch.cat([tokens[:, 0], student["backbone"].encode(local_crops.flatten(0, 1))[:, 0]])
        logits = student["head"](cls)
        loss = cls_loss(list(targets.chunk(2)), list(logits.chunk(2 + settings["n_locals"])), teacher_temp=TEMP)
        loss = loss + patch_loss(
            masked_targets, student["head"](tokens[hidden]), masks.view(n_crops, side, side), teacher_temp=TEMP
        )
        loss = loss + 0.1 * sum(koleo(view) for view in cls[:n_crops].split(batch))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(student.parameters(), CLIP)
        optimizer.step()
        loss.item()

    return step


IMPLEMENTATIONS = {"ssl-train": ssl_train, "facebookresearch/dinov2": facebookresearch_dinov2, "lightly": lightly}


def work(settings: Settings) -> None:
    """Answers every "go" with the seconds of a step and the peak memory, after a first step."""
    torch.manual_seed(0)
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    answers, sys.stdout = sys.stdout, sys.stderr
    step = IMPLEMENTATIONS[settings["name"]](settings)
    step()
    names = ["torch", *(["lightly"] if settings["name"] == "lightly" else [])]
    print(json.dumps({name: version(name) for name in names}), file=answers, flush=True)
    for _ in sys.stdin:
        started, busy = time.perf_counter(), time.process_time()
        step()
        seconds, busy = time.perf_counter() - started, time.process_time() - busy
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        print(json.dumps({"seconds": seconds, "cpu_seconds": busy, "peak_gib": peak}), file=answers, flush=True)
    # A trainer may be waiting in a thread for its next batch.
    os._exit(0)


if __name__ == "__main__":
    work(json.loads(sys.argv[1]))
