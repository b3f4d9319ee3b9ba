"""A run starts from what its source holds: a backbone, a network, or both networks of another run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from ssl_train import DINO, StepCheckpoint
from ssl_train.convert import convert
from torch import nn

Make = Callable[..., Any]
TINY = {
    "architecture": "vit_tiny_patch16_224",
    "architecture_kwargs": {"img_size": 32, "patch_size": 8, "depth": 2, "embed_dim": 24, "num_heads": 2},
}


def same(a: nn.Module, b: nn.Module) -> bool:
    ours, theirs = a.state_dict(), b.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.fixture
def phase_one(make_dino: Make, make_data: Make, make_trainer: Make, tmp_path: Path) -> tuple[DINO, str]:
    """A finished run and its last checkpoint."""
    model = make_dino(warmup_epochs=0, freeze_last_layer_epochs=0, teacher_momentum=0.5)
    folder = tmp_path / "one"
    trainer = make_trainer(
        max_steps=3, default_root_dir=folder, callbacks=[StepCheckpoint()], enable_checkpointing=True
    )
    trainer.fit(model, make_data())
    return model, str(folder / "checkpoints" / "last.ckpt")


def test_phase_two_goes_on_with_both_networks_and_starts_everything_else_anew(
    phase_one: tuple[DINO, str], make_dino: Make, make_data: Make, make_trainer: Make
) -> None:
    first, last = phase_one
    second = make_dino(init_weights=last, seed=5, base_learning_rate=0.0, warmup_epochs=0)
    assert not same(first.student, first.teacher)
    assert same(second.student, first.student)
    assert same(second.teacher, first.teacher)
    assert torch.equal(second.loss.center, first.loss.center)
    assert first.loss.center.any()
    assert not any(parameter.requires_grad for parameter in second.teacher.parameters())

    served: list[int] = []
    data = make_data()
    trainer = make_trainer(max_steps=1)
    second.on_train_batch_end = lambda _outputs, batch, _number: served.extend(batch["index"].tolist())  # type: ignore[method-assign]
    trainer.fit(second, data)
    assert served == [0, 1, 2, 3]
    assert trainer.global_step == 1
    # At a learning rate of 0 nothing moved; the moments are fresh.
    assert same(second.student, first.student)
    state = trainer.optimizers[0].state
    assert {int(moments["step"]) for moments in state.values()} == {1}


def test_of_a_single_backbone_both_networks_start(phase_one: tuple[DINO, str], make_dino: Make, tmp_path: Path) -> None:
    first, last = phase_one
    source = convert(source=last, to="timm", output=str(tmp_path / "x.safetensors"), **TINY)  # type: ignore[arg-type]
    second = make_dino(init_weights=str(source), seed=5)
    assert same(second.student.backbone, first.teacher.backbone)
    assert same(second.teacher, second.student)
    assert same(second.teacher.head, make_dino(seed=5).teacher.head)
    assert not second.loss.center.any()


def test_a_folder_with_a_head_starts_both_networks(
    phase_one: tuple[DINO, str], make_dino: Make, tmp_path: Path
) -> None:
    first, last = phase_one
    normalised: Any = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
    folder = convert(source=last, output=str(tmp_path / "folder"), **TINY, **normalised)  # type: ignore[arg-type]
    second = make_dino(init_weights=str(folder), seed=5)
    assert same(second.student, first.teacher)
    assert same(second.teacher, first.teacher)


def test_heads_can_be_left_behind_and_must_fit_otherwise(phase_one: tuple[DINO, str], make_dino: Make) -> None:
    first, last = phase_one
    second = make_dino(init_weights=last, init_heads=False, out_dim=48, seed=5)
    assert same(second.student.backbone, first.student.backbone)
    assert same(second.teacher.backbone, first.teacher.backbone)
    assert same(second.student.head, second.teacher.head)
    assert not second.loss.center.any()
    with pytest.raises(ValueError, match=r"head does not fit: other shapes: last_layer\.weight_g \(32, 1\) instead"):
        make_dino(init_weights=last, out_dim=48)


def test_another_input_and_patch_size_resizes_positions_and_kernels(
    phase_one: tuple[DINO, str], make_dino: Make
) -> None:
    _, last = phase_one
    kwargs = {**TINY["architecture_kwargs"], "img_size": 64, "patch_size": 16}  # type: ignore[dict-item]
    model = make_dino(init_weights=last, architecture_kwargs=kwargs)
    assert model.student.backbone.pos_embed.shape == (1, 17, 24)
    assert model.student.backbone.patch_embed.proj.weight.shape == (24, 3, 16, 16)


def test_weights_of_another_architecture_are_refused_by_name(phase_one: tuple[DINO, str], make_dino: Make) -> None:
    _, last = phase_one
    with pytest.raises(ValueError, match=r"missing blocks\.2\..*embed_dim 24, depth 2, patch size 8; the nearest"):
        make_dino(init_weights=last, architecture_kwargs={**TINY["architecture_kwargs"], "depth": 3})  # type: ignore[dict-item]
