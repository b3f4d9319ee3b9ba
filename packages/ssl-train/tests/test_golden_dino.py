"""Parity with the DINO reference, on every case that GOLDEN_DIR holds.

A case without a check here fails, unless it is named in NOT_YET with the reason.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from safetensors.torch import load_file
from ssl_train import DINO, schedules
from ssl_train.backbone import create_backbone, embed_cls, resample_positions
from ssl_train.heads import DINOHead
from ssl_train.losses import DINOLoss
from torch import Tensor

pytestmark = pytest.mark.golden_dino

NOT_YET = {
    "dino_augmentation": "order and frequencies are tested in test_crops.py",
    "meta_checkpoint_dino": "`ssl-train convert` is to read the original checkpoint files",
}

_GIVEN = os.environ.get("GOLDEN_DIR")
GOLDEN_DIR = Path(_GIVEN) if _GIVEN else Path(__file__).parents[4] / "shared" / "golden"
CASES = sorted(
    path.stem
    for pattern in ("dino_*.json", "meta_checkpoint_dino.json", "meta_checkpoint_dino_*.json")
    for path in GOLDEN_DIR.glob(pattern)
)
Tensors = dict[str, Tensor]


def strip(tensors: Tensors, prefix: str) -> Tensors:
    return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}


def assert_close(got: Tensor, tensors: Tensors, name: str) -> None:
    """Compares with `out64.*` in float64: 1e-9, and 1e-7 relative where the value was stored in float32."""
    expected = tensors[f"out64.{name}"]
    rtol = 1e-7 if expected.dtype == torch.float32 else 0.0
    torch.testing.assert_close(got.detach().double(), expected.double(), rtol=rtol, atol=1e-9)


@pytest.fixture(autouse=True)
def _float64() -> Any:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


def check_head(hyper: dict[str, Any], t: Tensors, case: dict[str, Any]) -> None:
    names = ("in_dim", "out_dim", "hidden_dim", "bottleneck_dim", "norm_last_layer", "use_bn", "nlayers")
    head = DINOHead(**{name: hyper[name] for name in names if name in hyper}).double()
    head.load_state_dict(strip(t, "in.state."), strict=not hyper.get("use_bn", False))
    x = t["in.x"].double().requires_grad_()
    y = head(x)
    (y * t["in.cotangent"].double()).sum().backward()
    assert_close(y, t, "y")
    assert x.grad is not None
    assert_close(x.grad, t, "grad_x")
    gradients = {name for name, p in head.named_parameters() if p.grad is not None}
    assert gradients == set(strip(t, "out64.grad."))
    for name, p in head.named_parameters():
        if p.grad is not None:
            assert_close(p.grad, t, f"grad.{name}")
    for name, p in head.named_parameters():
        assert p.requires_grad == (name not in case.get("frozen_parameters", []))


def run_loss(hyper: dict[str, Any], student_logits: Tensor, teacher_logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    loss = DINOLoss(out_dim=hyper["out_dim"], student_temp=hyper["student_temp"]).double()
    losses, centers, gradients = [], [], []
    for call, epoch in enumerate(hyper["epochs"]):
        student = student_logits[call].double().requires_grad_()
        teacher = teacher_logits[call].double().unflatten(0, (2, hyper["B"]))
        temp = schedules.teacher_temperature(
            epoch,
            warmup=hyper["warmup_teacher_temp"],
            final=hyper["teacher_temp"],
            warmup_epochs=hyper["warmup_teacher_temp_epochs"],
        )
        value = loss(student.unflatten(0, (hyper["ncrops"], hyper["B"])), teacher, teacher_temp=temp)
        value.backward()
        loss.observe(teacher)
        loss.update_center()
        assert student.grad is not None
        losses.append(value.detach())
        centers.append(loss.center.clone())
        gradients.append(student.grad)
    return torch.stack(losses), torch.stack(centers), torch.stack(gradients)


def check_loss(hyper: dict[str, Any], t: Tensors, case: dict[str, Any]) -> None:
    losses, centers, gradients = run_loss(hyper, t["in.student_logits"], t["in.teacher_logits"])
    assert_close(losses, t, "loss")
    assert_close(centers, t, "center_after")
    assert_close(gradients, t, "grad_student")
    temps = [
        schedules.teacher_temperature(
            epoch,
            warmup=hyper["warmup_teacher_temp"],
            final=hyper["teacher_temp"],
            warmup_epochs=hyper["warmup_teacher_temp_epochs"],
        )
        for epoch in range(hyper["nepochs"])
    ]
    torch.testing.assert_close(torch.tensor(temps), t["out.teacher_temp_schedule"], rtol=0, atol=1e-12)


def _loss_on_rank(rank: int, world_size: int, store: str, path: str, hyper: dict[str, Any]) -> None:
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world_size)
    t = load_file(path)
    losses, centers, gradients = run_loss(hyper, t["in.student_logits"][rank], t["in.teacher_logits"][rank])
    assert_close(losses, t, f"rank{rank}.loss")
    assert_close(centers, t, f"rank{rank}.center_after")
    assert_close(gradients, t, f"rank{rank}.grad_student")
    dist.destroy_process_group()


def check_schedules(hyper: dict[str, Any], t: Tensors, case: dict[str, Any]) -> None:
    for name, h in hyper.items():
        values = [
            schedules.cosine(
                step,
                base=h["base_value"],
                final=h["final_value"],
                total_steps=h["epochs"] * h["niter_per_ep"],
                warmup_steps=h["warmup_epochs"] * h["niter_per_ep"],
                warmup_start=h["start_warmup_value"],
            )
            for step in range(h["epochs"] * h["niter_per_ep"])
        ]
        torch.testing.assert_close(torch.tensor(values), t[f"out.{name}"], rtol=0, atol=1e-12)


def check_vit_forward(hyper: dict[str, Any], t: Tensors, case: dict[str, Any]) -> None:
    """CLS and last tokens; attention maps and the second-last block are not part of training."""
    backbone = create_backbone(
        "vit_tiny_patch16_224",
        img_size=hyper["native_img_size"],
        patch_size=hyper["patch"],
        embed_dim=hyper["dim"],
        depth=hyper["depth"],
        num_heads=hyper["heads"],
    )
    backbone.load_state_dict(strip(t, "in.state."))
    native = backbone.patch_embed.grid_size
    for height, width in hyper["sizes"]:
        size = f"{height}x{width}"
        images = (t[f"in.image_u8.{size}"].double() - 128) / 64
        assert_close(embed_cls(backbone, images, position_interpolation="dino"), t, f"cls.{size}")
        if f"out64.pos_embed.{size}" in t:
            grid = (height // hyper["patch"], width // hyper["patch"])
            position = backbone.pos_embed
            if grid != native:
                position = resample_positions(position, native=native, grid=grid)
            assert_close(position, t, f"pos_embed.{size}")


class RecordedCrops:
    """Hands out the crops of the golden case instead of cutting them from patches."""

    mean = std = (0.5, 0.5, 0.5)

    def __init__(self, tensors: Tensors, hyper: dict[str, Any]) -> None:
        self.global_size_px, self.local_size_px = hyper["img"], hyper["loc"]
        self._tensors = tensors

    def __call__(self, patches: Tensor, indices: Tensor, *, seed: int) -> tuple[Tensor, Tensor]:
        step = int(indices[0]) // len(indices)
        views = (self._tensors[f"in.crops_{kind}_u8"][step] for kind in ("global", "local"))
        crops = [(u8.double() - 128) / 64 for u8 in views]
        return crops[0], crops[1]


class Recorder(pl.Callback):
    def __init__(self) -> None:
        self.losses: list[Tensor] = []
        self.centers: list[Tensor] = []
        self.norms: list[Tensor] = []

    def on_after_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        gradients = [p.grad for p in pl_module.student.parameters() if p.grad is not None]
        self.norms.append(torch.stack([g.norm() for g in gradients]))

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.losses.append(outputs["loss"].detach())
        self.centers.append(pl_module.loss.center.clone())


def check_train_steps(
    hyper: dict[str, Any], t: Tensors, case: dict[str, Any], make_trainer: Callable[..., pl.Trainer]
) -> None:
    """The whole module inside a Lightning trainer, with recorded crops."""
    batch = hyper["B"]
    model = DINO(
        architecture="vit_tiny_patch16_224",
        architecture_kwargs={
            "img_size": hyper["img"],
            "patch_size": hyper["patch"],
            "embed_dim": hyper["dim"],
            "depth": hyper["depth"],
            "num_heads": hyper["heads"],
        },
        drop_path_rate=hyper["drop_path"],
        position_interpolation="dino",
        crops=RecordedCrops(t, hyper),  # type: ignore[arg-type]
        out_dim=hyper["out_dim"],
        head_hidden_dim=hyper["hidden"],
        head_bottleneck_dim=hyper["bott"],
        norm_last_layer=hyper["norm_last_layer"],
        epoch_size=hyper["niter"] * batch,
        base_learning_rate=hyper["lr"] * 256 / batch,
        min_learning_rate=hyper["min_lr"],
        warmup_epochs=hyper["warmup_epochs"],
        weight_decay=hyper["wd"],
        weight_decay_end=hyper["wd_end"],
        clip_grad=hyper["clip_grad"],
        teacher_momentum=hyper["mom"],
        student_temp=hyper["student_temp"],
        warmup_teacher_temp=hyper["wtt"],
        teacher_temp=hyper["tt"],
        warmup_teacher_temp_epochs=hyper["wtte"],
        center_momentum=hyper["center_momentum"],
        freeze_last_layer_epochs=hyper["freeze"],
    )
    student = strip(t, "in.student_init.")
    model.student.load_state_dict(student)
    model.teacher.load_state_dict(strip(t, "in.teacher_init.") or student)
    batches = [
        {"image": torch.zeros(batch, 1, 1, 3, dtype=torch.uint8), "index": torch.arange(batch) + step * batch}
        for step in range(hyper["steps"])
    ]
    recorder = Recorder()
    trainer = make_trainer(precision="64-true", max_steps=hyper["epochs"] * hyper["niter"], callbacks=[recorder])
    trainer.fit(model, torch.utils.data.DataLoader(batches, batch_size=None))  # type: ignore[arg-type]
    assert trainer.global_step == hyper["steps"]
    assert_close(torch.stack(recorder.losses), t, "loss")
    assert_close(torch.stack(recorder.centers), t, "center_after")
    assert_close(torch.stack(recorder.norms), t, "grad_norms_before_clip")
    for network in ("student", "teacher"):
        for name, value in getattr(model, network).state_dict().items():
            if f"out64.{network}.{name}" in t:
                assert_close(value, t, f"{network}.{name}")
        assert strip(t, f"out64.{network}."), "the case holds no weights"


CHECKS: dict[str, Callable[..., None]] = {
    "dino_head_": check_head,
    "dino_schedules": check_schedules,
    "dino_vit_forward_": check_vit_forward,
}


@pytest.mark.skipif(_GIVEN is None and not GOLDEN_DIR.is_dir(), reason="no golden files and GOLDEN_DIR unset")
def test_golden_dir_holds_cases() -> None:
    assert CASES, f"GOLDEN_DIR {GOLDEN_DIR} holds no dino_* case"


@pytest.mark.parametrize("case_name", CASES)
def test_golden_case(case_name: str, make_trainer: Callable[..., pl.Trainer], tmp_path: Path) -> None:
    if case_name in NOT_YET:
        pytest.skip(f"not yet: {NOT_YET[case_name]}")
    case = json.loads((GOLDEN_DIR / f"{case_name}.json").read_text())
    path = GOLDEN_DIR / f"{case_name}.safetensors"
    hyper, tensors = case["hyperparameters"], load_file(path)
    if case_name.startswith("dino_train_steps_"):
        check_train_steps(hyper, tensors, case, make_trainer)
    elif case_name.startswith("dino_loss") and "world_size" in hyper:
        world = hyper["world_size"]
        mp.start_processes(
            _loss_on_rank,
            args=(world, str(tmp_path / "store"), str(path), hyper),
            nprocs=world,
            start_method="fork",
        )
    elif case_name.startswith("dino_loss"):
        check_loss(hyper, tensors, case)
    else:
        check = next((c for prefix, c in CHECKS.items() if case_name.startswith(prefix)), None)
        assert check is not None, f"golden case {case_name} has no check here"
        check(hyper, tensors, case)
