from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins.precision import MixedPrecision
from ssl_train import DINO, MultiCrop, StepCheckpoint

Make = Callable[..., Any]


def weights(model: DINO) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize(("num_workers", "accumulate"), [(0, 1), (2, 2)])
def test_a_resumed_run_equals_an_uninterrupted_one(
    num_workers: int, accumulate: int, make_dino: Make, make_data: Make, make_trainer: Make, tmp_path: Path
) -> None:
    """Bit for bit, with stochastic depth, through a real checkpoint."""

    def run(folder: Path, ckpt_path: Path | None, callbacks: list[pl.Callback]) -> dict[str, torch.Tensor]:
        model, data = make_dino(drop_path_rate=0.2), make_data(num_workers=num_workers)
        settings: dict[str, Any] = {"accumulate_grad_batches": accumulate}
        settings |= {"enable_checkpointing": True} if callbacks else {}
        trainer = make_trainer(max_steps=8, default_root_dir=folder, callbacks=callbacks, **settings)
        trainer.fit(model, data, ckpt_path=ckpt_path, weights_only=True if ckpt_path else None)
        assert trainer.global_step == 8
        return weights(model)

    checkpoints = StepCheckpoint(every_n_steps=100, keep_every_n_steps=5)
    whole = run(tmp_path / "a", None, [checkpoints])
    resumed = run(tmp_path / "b", tmp_path / "a" / "checkpoints" / "step-00000005.ckpt", [StepCheckpoint()])
    for name, tensor in whole.items():
        assert torch.equal(tensor, resumed[name]), name


def test_micro_batches_equal_one_batch(make_dino: Make, make_data: Make, make_trainer: Make) -> None:
    """Loss, clipping, centre, teacher and stochastic depth follow the optimizer step, not the micro-batch."""

    def run(batch_size: int, accumulate: int) -> dict[str, torch.Tensor]:
        model = make_dino(drop_path_rate=0.2)
        trainer = make_trainer(max_steps=5, precision="64-true", accumulate_grad_batches=accumulate)
        trainer.fit(model, make_data(batch_size=batch_size))
        return weights(model)

    whole, parts = run(6, 1), run(2, 3)
    # Adam divides by the gradient's size, so rounding noise shows where a gradient is zero: key part of
    # qkv.bias.
    for name, tensor in whole.items():
        keys = slice(24, 48) if name.endswith("qkv.bias") else slice(0, 0)
        difference = (tensor - parts[name]).abs()
        if name.endswith("qkv.bias"):
            difference[keys] = 0
        assert difference.max() < 1e-6, name


def test_the_teacher_follows_with_the_momentum_of_the_step(
    make_dino: Make, make_data: Make, make_trainer: Make
) -> None:
    model = make_dino(teacher_momentum=0.5, warmup_epochs=0)
    seen: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []

    class Spy(pl.Callback):
        def on_train_batch_start(self, *_: Any) -> None:
            self.before = copy.deepcopy(model.teacher.head.mlp[0].weight)

        def on_train_batch_end(self, *_: Any) -> None:
            student, teacher = (net.head.mlp[0].weight for net in (model.student, model.teacher))
            seen.append((self.before, student.detach().clone(), teacher.clone()))

    make_trainer(max_steps=3, callbacks=[Spy()]).fit(model, make_data())
    for momentum, (before, student, after) in zip([0.5, 0.625, 0.875], seen, strict=True):
        torch.testing.assert_close(after, momentum * before + (1 - momentum) * student)


def test_frozen_prototypes_do_not_move(make_dino: Make, make_data: Make, make_trainer: Make) -> None:
    frozen, free = make_dino(freeze_last_layer_epochs=1), make_dino(freeze_last_layer_epochs=0)
    before = frozen.student.head.last_layer.weight_v.detach().clone()
    for model in (frozen, free):
        make_trainer(max_steps=4).fit(model, make_data())
    assert torch.equal(frozen.student.head.last_layer.weight_v, before)
    assert not torch.equal(free.student.head.last_layer.weight_v, before)


def test_training_works_without_local_crops(make_dino: Make, make_data: Make, make_trainer: Make) -> None:
    model = make_dino(crops=MultiCrop(global_size_px=32, local_size_px=16, n_locals=0), warmup_epochs=0)
    before = weights(model)
    make_trainer(max_steps=2).fit(model, make_data())
    name = "teacher.backbone.blocks.0.attn.qkv.weight"
    assert torch.isfinite(weights(model)[name]).all()
    assert not torch.equal(weights(model)[name], before[name])


def test_batch_normalisation_in_the_head_trains_on_the_batch(
    make_dino: Make, make_data: Make, make_trainer: Make
) -> None:
    """As in the reference: only the teacher's backbone is in evaluation mode; one pass of the head a step."""
    model = make_dino(head_use_bn=True, warmup_epochs=0)
    make_trainer(max_steps=2).fit(model, make_data())
    assert model.teacher.head.training
    assert not model.teacher.backbone.training
    assert model.student.head.mlp[1].num_batches_tracked == 2


def test_the_initial_weights_depend_on_the_seed_only(make_dino: Make) -> None:
    torch.manual_seed(11)
    first = make_dino(seed=3)
    torch.manual_seed(12)
    second, other = make_dino(seed=3), make_dino(seed=4)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert not torch.equal(first.student.head.mlp[0].weight, other.student.head.mlp[0].weight)
    for a, b in zip(first.student.parameters(), first.teacher.parameters(), strict=True):
        assert torch.equal(a, b)


def test_the_learning_rate_scales_with_the_real_batch(make_dino: Make, make_data: Make, make_trainer: Make) -> None:
    model = make_dino(base_learning_rate=0.256, warmup_epochs=0)
    rates: list[float] = []

    class Spy(pl.Callback):
        def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
            rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    make_trainer(max_steps=1, accumulate_grad_batches=2, callbacks=[Spy()]).fit(model, make_data(batch_size=4))
    assert rates == pytest.approx([0.008, 0.008])


def first_gradients(model: DINO, data: Any, trainer: pl.Trainer) -> dict[str, torch.Tensor]:
    """The gradients with which the optimizer made its first step."""
    seen: dict[str, torch.Tensor] = {}

    class Spy(pl.Callback):
        def on_train_batch_end(self, *_: Any) -> None:
            seen.update({n: p.grad.clone() for n, p in model.student.named_parameters() if p.grad is not None})

    trainer.callbacks.append(Spy())
    trainer.fit(model, data)
    return seen


def test_half_precision_clips_gradients_without_their_scale(
    make_dino: Make, make_data: Make, make_trainer: Make
) -> None:
    settings = {"clip_grad": 1.0, "warmup_epochs": 0, "freeze_last_layer_epochs": 0}
    expected = first_gradients(make_dino(**settings), make_data(), make_trainer(max_steps=1))
    scaled = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=8.0))
    got = first_gradients(make_dino(**settings), make_data(), make_trainer(max_steps=1, plugins=[scaled]))
    assert got.keys() == expected.keys()
    norms = {name: float(gradient.norm()) for name, gradient in expected.items()}
    assert max(norms.values()) == pytest.approx(1.0, rel=1e-3)
    assert min(norms.values()) < 0.5
    for name, norm in norms.items():
        if not name.endswith("qkv.bias"):
            assert float(got[name].norm()) == pytest.approx(norm, rel=0.05, abs=1e-5), name


def test_bfloat16_trains_float32_weights(make_dino: Make, make_data: Make, make_trainer: Make) -> None:
    losses = []
    for precision in ("32-true", "bf16-mixed"):
        model, trainer = make_dino(warmup_epochs=0), make_trainer(max_steps=3, precision=precision)
        trainer.fit(model, make_data())
        losses.append(float(trainer.callback_metrics["loss"]))
        assert {tensor.dtype for tensor in model.state_dict().values()} == {torch.float32}
    assert losses[1] == pytest.approx(losses[0], rel=0.02)
    with pytest.raises(ValueError, match="teacher of 16 bits"):
        make_trainer(max_steps=1, precision="bf16-true").fit(make_dino(), make_data())


def test_unsynchronised_batch_normalisation_is_refused_on_several_devices(
    make_dino: Make, make_data: Make, make_trainer: Make
) -> None:
    with pytest.raises(Exception, match="sync_batchnorm"):
        make_trainer(max_steps=1, devices=2, strategy="ddp_fork").fit(make_dino(head_use_bn=True), make_data())


def test_the_class_token_starts_as_the_positions_do(make_dino: Make) -> None:
    kwargs = {"img_size": 32, "patch_size": 8, "depth": 1, "embed_dim": 768, "num_heads": 2}
    backbone = make_dino(architecture_kwargs=kwargs).student.backbone
    assert float(backbone.cls_token.detach().std()) == pytest.approx(0.02, rel=0.1)
    assert float(backbone.pos_embed.detach().std()) == pytest.approx(0.02, rel=0.1)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"architecture": "vit_nope"}, "no model of that name"),
        ({"architecture": "resnet18", "architecture_kwargs": {}}, "resnet18"),
        ({"architecture_kwargs": {"nonsense": 1}}, "nonsense"),
        ({"architecture_kwargs": {"drop_path_rate": 0.1}}, "an argument of its own"),
        ({"architecture_kwargs": {"proj_drop_rate": 0.1}}, "take drop_path_rate"),
        ({"architecture_kwargs": {"dynamic_img_size": False}}, "every size"),
        ({"architecture_kwargs": {"patch_size": 5, "img_size": 30}}, "multiple of the backbone's patch size"),
        ({"init_weights": "nowhere.safetensors"}, "no such file"),
        ({"input_size_px": 50}, "input_size_px=50"),
        ({"epoch_size": 0}, "epoch_size"),
        ({"teacher_momentum": 1.2}, "teacher_momentum"),
    ],
)
def test_wrong_arguments_are_refused(make_dino: Make, wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_dino(**wrong)


def test_lightnings_global_clipping_is_refused(make_dino: Make, make_data: Make, make_trainer: Make) -> None:
    with pytest.raises(ValueError, match="clip_grad"):
        make_trainer(max_steps=1, gradient_clip_val=1.0).fit(make_dino(warmup_epochs=0), make_data())


def test_the_number_of_steps_must_be_given(make_dino: Make, make_data: Make, make_trainer: Make) -> None:
    with pytest.raises(ValueError, match="max_steps"):
        make_trainer().fit(make_dino(), make_data())
