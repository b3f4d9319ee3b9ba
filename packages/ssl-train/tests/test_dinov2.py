from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import timm
import torch
from safetensors.torch import load_file
from ssl_train import DINOv2, MultiCrop, StepCheckpoint, export_folder
from ssl_train.masking import BlockMasks
from ssl_train.meta_dinov2 import backbone_alone, beside_backbone
from torch import Tensor

Make = Callable[..., Any]


@pytest.fixture
def make_dinov2() -> Callable[..., DINOv2]:
    from small_dinov2 import small_dinov2

    return small_dinov2


def weights(model: DINOv2) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("centering", ["softmax", "sinkhorn_knopp"])
def test_a_resumed_run_equals_an_uninterrupted_one(
    centering: str, make_dinov2: Make, make_data: Make, make_trainer: Make, tmp_path: Path
) -> None:
    """Bit for bit, with masks, stochastic depth and micro-batches, through a real checkpoint."""

    def run(folder: Path, ckpt_path: Path | None) -> dict[str, Tensor]:
        model, data = make_dinov2(drop_path_rate=0.3, centering=centering), make_data()
        trainer = make_trainer(
            max_steps=8,
            default_root_dir=folder,
            callbacks=[StepCheckpoint(every_n_steps=100, keep_every_n_steps=5)],
            enable_checkpointing=True,
            accumulate_grad_batches=2,
        )
        trainer.fit(model, data, ckpt_path=ckpt_path, weights_only=True if ckpt_path else None)
        assert trainer.global_step == 8
        return weights(model)

    whole = run(tmp_path / "a", None)
    resumed = run(tmp_path / "b", tmp_path / "a" / "checkpoints" / "step-00000005.ckpt")
    for name, tensor in whole.items():
        assert torch.equal(tensor, resumed[name]), name


def test_the_teacher_follows_with_the_momentum_of_the_step(
    make_dinov2: Make, make_data: Make, make_trainer: Make
) -> None:
    model = make_dinov2(teacher_momentum=0.5)
    seen: list[tuple[Tensor, Tensor, Tensor]] = []

    class Spy(pl.Callback):
        def on_train_batch_start(self, *_: Any) -> None:
            self.before = copy.deepcopy(model.teacher.mask_token)

        def on_train_batch_end(self, *_: Any) -> None:
            student, teacher = (net.mask_token for net in (model.student, model.teacher))
            seen.append((self.before, student.detach().clone(), teacher.clone()))

    make_trainer(max_steps=3, callbacks=[Spy()]).fit(model, make_data())
    for momentum, (before, student, after) in zip([0.5, 0.625, 0.875], seen, strict=True):
        torch.testing.assert_close(after, momentum * before + (1 - momentum) * student)


def test_frozen_prototypes_stand_still_while_their_moments_advance(
    make_dinov2: Make, make_data: Make, make_trainer: Make
) -> None:
    model = make_dinov2(freeze_last_layer_epochs=1)
    last_layer = model.student.dino_head.last_layer
    before = {name: p.detach().clone() for name, p in last_layer.named_parameters()}
    trainer = make_trainer(max_steps=4)
    trainer.fit(model, make_data(batch_size=4))
    for name, parameter in last_layer.named_parameters():
        assert torch.equal(parameter, before[name])
        assert trainer.optimizers[0].state[parameter]["exp_avg"].any()
        assert trainer.optimizers[0].state[parameter]["step"] == 4


def test_rates_scale_with_the_root_of_the_batch_and_fall_towards_the_pixels(
    make_dinov2: Make, make_data: Make, make_trainer: Make
) -> None:
    model = make_dinov2(base_learning_rate=1.0, layer_decay=0.5, weight_decay=0.125)
    rates: dict[str, tuple[float, float]] = {}

    class Spy(pl.Callback):
        def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
            names = {id(p): name for name, p in model.student.named_parameters()}
            for group in trainer.optimizers[0].param_groups:
                rates.update({names[id(p)]: (group["lr"], group["weight_decay"]) for p in group["params"]})

    make_trainer(max_steps=1, accumulate_grad_batches=4, callbacks=[Spy()]).fit(model, make_data(batch_size=4))
    # 16 of 1024 patches: an eighth; two blocks.
    assert rates["dino_head.last_layer.weight_v"] == pytest.approx((0.125, 0.125))
    assert rates["backbone.norm.weight"] == pytest.approx((0.125, 0.0))
    assert rates["backbone.blocks.1.mlp.fc1.weight"] == pytest.approx((0.0625, 0.125))
    assert rates["backbone.blocks.0.ls1.gamma"] == pytest.approx((0.03125, 0.0))
    for name in ("mask_token", "cls_position", "backbone.cls_token", "backbone.reg_token", "backbone.pos_embed"):
        assert rates[name] == pytest.approx((0.015625, 0.125))
    assert rates["backbone.patch_embed.proj.bias"] == pytest.approx((0.003125, 0.0))


def test_each_submodule_is_clipped_by_its_own_norm(make_dinov2: Make, make_data: Make, make_trainer: Make) -> None:
    from small_dinov2 import PATCH_HEAD

    model = make_dinov2(ibot_head=PATCH_HEAD, clip_grad=1e-3)
    norms: list[Tensor] = []

    class Spy(pl.Callback):
        def on_before_zero_grad(self, *_: Any) -> None:
            parts = model.student.submodules.values()
            grads = [[p.grad for p in part if p.grad is not None] for part in parts]
            norms.extend(torch.nn.utils.get_total_norm(part) for part in grads if part)

    trainer = make_trainer(max_steps=2, callbacks=[Spy()])
    trainer.fit(model, make_data())
    assert len(norms) == 3
    torch.testing.assert_close(torch.stack(norms), torch.full((3,), 1e-3), rtol=0.01, atol=0)
    assert trainer.callback_metrics["grad_norm/ibot_head"] > 1e-3


@pytest.mark.parametrize("centering", ["softmax", "sinkhorn_knopp"])
@pytest.mark.parametrize("separate", [False, True])
@pytest.mark.parametrize("settings", [{"probability": 0.0}, {"ratio": (0.0, 0.0)}])
def test_steps_without_masked_patches_are_finite(
    settings: dict[str, Any], separate: bool, centering: str, make_dinov2: Make, make_data: Make, make_trainer: Make
) -> None:
    from small_dinov2 import PATCH_HEAD

    head = PATCH_HEAD if separate else None
    model = make_dinov2(masks=BlockMasks(**settings), ibot_head=head, centering=centering)
    trainer = make_trainer(max_steps=2)
    trainer.fit(model, make_data())
    assert trainer.callback_metrics["ibot_loss"] == 0
    assert trainer.callback_metrics["loss"] > 0
    for name, tensor in weights(model).items():
        assert tensor.isfinite().all(), name


@pytest.mark.parametrize(("batch_size", "alike"), [(1, False), (4, True)])
def test_a_batch_of_one_and_equal_patches_are_finite(
    batch_size: int, alike: bool, make_dinov2: Make, make_data: Make, make_trainer: Make
) -> None:
    """Equal white patches give KoLeo equal embeddings."""
    model = make_dinov2(drop_path_rate=0.5)
    data = make_data(batch_size=batch_size)
    if alike:
        white = torch.full((batch_size, 40, 40, 3), 255, dtype=torch.uint8)
        batches = [{"image": white, "index": torch.arange(batch_size)}] * 3
        data = torch.utils.data.DataLoader(batches, batch_size=None)  # type: ignore[arg-type]
    trainer = make_trainer(max_steps=3)
    trainer.fit(model, data)
    assert trainer.global_step == 3
    for name, tensor in weights(model).items():
        assert tensor.isfinite().all(), name


def test_training_works_without_local_crops(make_dinov2: Make, make_data: Make, make_trainer: Make) -> None:
    model = make_dinov2(crops=MultiCrop(global_size_px=32, local_size_px=16, n_locals=0))
    before = weights(model)
    trainer = make_trainer(max_steps=2)
    trainer.fit(model, make_data())
    assert trainer.callback_metrics["dino_local_crops_loss"] == 0
    name = "teacher.backbone.blocks.0.attn.qkv.weight"
    assert not torch.equal(weights(model)[name], before[name])


def test_a_kernel_density_takes_the_place_of_koleo(make_dinov2: Make, make_data: Make, make_trainer: Make) -> None:
    model = make_dinov2(koleo_weight=0.0, kde_weight=0.05)
    trainer = make_trainer(max_steps=2)
    trainer.fit(model, make_data())
    metrics = trainer.callback_metrics
    assert metrics["koleo_loss"] == 0
    parts = metrics["dino_global_crops_loss"] + metrics["dino_local_crops_loss"] + 2 * metrics["ibot_loss"]
    assert metrics["kde_loss"] != 0
    torch.testing.assert_close(metrics["loss"], parts + 2 * metrics["kde_loss"])


def test_recomputed_activations_give_the_same_steps(make_dinov2: Make, make_data: Make, make_trainer: Make) -> None:
    def run(checkpoint_activations: bool) -> dict[str, Tensor]:
        model = make_dinov2(checkpoint_activations=checkpoint_activations, drop_path_rate=0.3)
        make_trainer(max_steps=2).fit(model, make_data())
        return weights(model)

    kept, recomputed = run(False), run(True)
    for name, tensor in kept.items():
        assert torch.equal(tensor, recomputed[name]), name


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")  # of dynamo itself
def test_compiled_blocks_give_the_same_steps(
    make_dinov2: Make, make_data: Make, make_trainer: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Captured by dynamo, run without code generation, which would take minutes."""
    whole = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self: whole(self, backend="eager"))

    def run(compile_blocks: bool) -> dict[str, Tensor]:
        model = make_dinov2(compile_blocks=compile_blocks, drop_path_rate=0.3)
        make_trainer(max_steps=2).fit(model, make_data())
        return weights(model)

    plain, compiled = run(False), run(True)
    for name, tensor in plain.items():
        torch.testing.assert_close(compiled[name], tensor, rtol=0, atol=1e-6, msg=name)


def test_mixed_precision_stays_near_single(make_dinov2: Make, make_data: Make, make_trainer: Make) -> None:
    def losses(precision: str) -> dict[str, float]:
        trainer = make_trainer(max_steps=2, precision=precision)
        trainer.fit(make_dinov2(base_learning_rate=1e-3), make_data())
        return {name: float(value) for name, value in trainer.callback_metrics.items() if name.endswith("loss")}

    assert losses("bf16-mixed") == pytest.approx(losses("32-true"), rel=0.05)


def test_masks_and_depth_depend_on_the_seed(make_dinov2: Make, make_data: Make, make_trainer: Make) -> None:
    def loss(seed: int) -> float:
        trainer = make_trainer(max_steps=1)
        trainer.fit(make_dinov2(seed=seed, drop_path_rate=0.3), make_data())
        return float(trainer.callback_metrics["loss"])

    assert loss(1) == loss(1)
    assert loss(1) != loss(2)


def test_a_later_stage_goes_on_at_a_higher_resolution(
    make_dinov2: Make, make_data: Make, make_trainer: Make, tmp_path: Path
) -> None:
    """Student, teacher, heads and centres of a training checkpoint, with positions for larger crops."""
    first = make_dinov2()
    callbacks = [StepCheckpoint(every_n_steps=2)]
    make_trainer(max_steps=2, callbacks=callbacks, enable_checkpointing=True).fit(first, make_data())
    larger = {"img_size": 48, "patch_size": 8, "depth": 2, "embed_dim": 24, "num_heads": 2}
    crops = MultiCrop(global_size_px=48, local_size_px=24, n_locals=2)
    second = make_dinov2(
        architecture_kwargs=larger, crops=crops, init_weights=str(tmp_path / "checkpoints" / "last.ckpt"), seed=9
    )
    for network in ("student", "teacher"):
        before, after = getattr(first, network).state_dict(), getattr(second, network).state_dict()
        assert after["backbone.pos_embed"].shape == (1, 36, 24)
        for part in (backbone_alone, beside_backbone):
            for name, tensor in part(before).items():
                assert name == "pos_embed" or torch.equal(part(after)[name], tensor), name
    for name, center in first.loss.state_dict().items():
        assert torch.equal(second.loss.state_dict()[name], center)
    make_trainer(max_steps=1).fit(second, make_data(size_px=56))


def test_an_export_gives_the_teachers_embeddings_in_timm(make_dinov2: Make, tmp_path: Path) -> None:
    """The position of the class token, which timm does not have with registers, is part of the token."""
    model = make_dinov2().eval()
    for parameter in model.teacher.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    folder = export_folder(model, tmp_path, step=1)
    described = json.loads((folder / "backbone.json").read_text())
    assert described["method"] == "dinov2"
    rebuilt = timm.create_model(described["architecture"], pretrained=False, **described["architecture_kwargs"])
    rebuilt.load_state_dict(load_file(folder / "backbone.safetensors"), strict=True)
    images = torch.randn(2, 3, 48, 40)
    with torch.no_grad():
        torch.testing.assert_close(rebuilt.eval()(images), model(images), rtol=1e-4, atol=1e-5)


def test_a_backbone_alone_starts_both_networks_with_fresh_heads(make_dinov2: Make, tmp_path: Path) -> None:
    source = make_dinov2(seed=1)
    folder = export_folder(source, tmp_path, step=0)
    model = make_dinov2(seed=2, init_weights=str(folder))
    for network in (model.student, model.teacher):
        for name, tensor in backbone_alone(source.teacher.state_dict()).items():
            assert torch.equal(backbone_alone(network.state_dict())[name], tensor)
    ours, theirs = (net.dino_head.last_layer.weight_v for net in (model.teacher, source.teacher))
    assert not torch.equal(ours, theirs)
    assert torch.equal(ours, model.student.dino_head.last_layer.weight_v)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"architecture": "resnet18", "architecture_kwargs": {}}, "resnet18"),
        ({"crops": MultiCrop(global_size_px=36, local_size_px=16, n_locals=2)}, "global_size_px=36 is not a multiple"),
        ({"drop_path_rate": 1.0}, "drop_path_rate"),
        ({"layer_decay": 0.0}, "layer_decay"),
        ({"koleo_weight": -1.0}, "koleo_weight=-1"),
        ({"teacher_temp": 0.0}, "temperatures"),
        ({"init_weights": "nowhere.pth"}, "no such file"),
    ],
)
def test_wrong_arguments_are_refused(make_dinov2: Make, wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_dinov2(**wrong)


def test_lightnings_global_clipping_is_refused(make_dinov2: Make, make_data: Make, make_trainer: Make) -> None:
    with pytest.raises(ValueError, match="clip_grad"):
        make_trainer(max_steps=1, gradient_clip_val=1.0).fit(make_dinov2(), make_data())


def test_a_checkpoint_of_another_model_is_refused(
    make_dinov2: Make, make_data: Make, make_trainer: Make, tmp_path: Path
) -> None:
    from small_dinov2 import PATCH_HEAD

    callbacks = [StepCheckpoint(every_n_steps=1)]
    make_trainer(max_steps=1, callbacks=callbacks, enable_checkpointing=True).fit(make_dinov2(), make_data())
    with pytest.raises(ValueError, match=r"does not fit the model of the config: missing .*ibot_head"):
        make_trainer(max_steps=2).fit(
            make_dinov2(ibot_head=PATCH_HEAD),
            make_data(),
            ckpt_path=tmp_path / "checkpoints" / "last.ckpt",
            weights_only=True,
        )
