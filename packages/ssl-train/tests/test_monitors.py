from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from ssl_train import CollapseMonitor, MultiCrop, NonFiniteGradients, UnhealthyRunError

Make = Callable[..., Any]
# Judges every step, from the first on.
AT_ONCE: dict[str, Any] = {"every_n_steps": 1, "patience": 3, "after_epochs": 0}


def break_heads(model: Any, *, bias: float) -> Any:
    """Heads that answer without looking; a bias of 0 gives the uniform answer, others a constant one."""
    with torch.no_grad():
        for network in (model.student, model.teacher):
            network.head.mlp[-1].weight.zero_()
            network.head.mlp[-1].bias.fill_(bias)
    return model


@pytest.mark.parametrize(
    ("bias", "sign"), [(0.0, r"the loss 3\.4657 is ln K"), (1.0, "the teacher's logits hardly differ between samples")]
)
def test_a_collapsed_teacher_is_reported(
    bias: float, sign: str, make_dino: Make, make_data: Make, make_trainer: Make
) -> None:
    model = break_heads(make_dino(base_learning_rate=0.0), bias=bias)
    trainer = make_trainer(max_steps=4, callbacks=[CollapseMonitor(**AT_ONCE)])
    with pytest.warns(UserWarning, match=rf"step 3: collapse: .*{sign}"):
        trainer.fit(model, make_data())


@pytest.mark.parametrize("n_locals", [2, 0])
def test_of_dinov2_the_cls_term_tells_a_uniform_answer(n_locals: int, make_data: Make, make_trainer: Make) -> None:
    """Its loss has other terms and is not ln K."""
    from small_dinov2 import small_dinov2

    crops = MultiCrop(global_size_px=32, local_size_px=16, n_locals=n_locals)
    model = break_heads(small_dinov2(base_learning_rate=0.0, min_learning_rate=0.0, crops=crops), bias=0.0)
    trainer = make_trainer(max_steps=4, callbacks=[CollapseMonitor(**AT_ONCE)])
    with pytest.warns(UserWarning, match=r"step 3: collapse: the dino_loss 3\.4657 is ln K"):
        trainer.fit(model, make_data())
    assert abs(trainer.callback_metrics["loss"] - math.log(32)) > 0.1


def test_a_collapse_can_end_the_run(make_dino: Make, make_data: Make, make_trainer: Make) -> None:
    model = break_heads(make_dino(base_learning_rate=0.0), bias=1.0)
    trainer = make_trainer(max_steps=9, callbacks=[CollapseMonitor(**AT_ONCE, action="stop")])
    with pytest.raises(UnhealthyRunError, match=r"step 3: collapse: .* \(3 readings in a row\)"):
        trainer.fit(model, make_data())
    assert trainer.global_step == 3


def test_fresh_heads_have_their_time(
    make_dino: Make, make_data: Make, make_trainer: Make, recwarn: pytest.WarningsRecorder
) -> None:
    # An epoch is 16 patches, so 4 steps: the verdict would fall at the sixth.
    settings = {**AT_ONCE, "after_epochs": 1}
    trainer = make_trainer(max_steps=5, callbacks=[CollapseMonitor(**settings, action="stop")])
    trainer.fit(break_heads(make_dino(base_learning_rate=0.0), bias=0.0), make_data())
    assert trainer.global_step == 5


def test_readings_are_of_the_teacher(make_dino: Make, make_data: Make, make_trainer: Make) -> None:
    trainer = make_trainer(max_steps=4, callbacks=[CollapseMonitor(every_n_steps=2)])
    trainer.fit(make_dino(), make_data(batch_size=4))
    metrics = trainer.callback_metrics
    assert 0 < metrics["teacher_entropy_share"] <= 1
    # Two global crops of four patches.
    assert metrics["prototype_use"] * 8 == pytest.approx(round(float(metrics["prototype_use"]) * 8))
    assert 1 <= metrics["rankme"] <= 8


class Poison(pl.Callback):
    """Makes one gradient infinite in some steps."""

    def __init__(self, *steps: int) -> None:
        self.steps = steps

    def on_after_backward(self, trainer: pl.Trainer, pl_module: Any) -> None:
        if trainer.global_step in self.steps:
            pl_module.student.backbone.blocks[1].mlp.fc1.weight.grad[3, 5] = math.inf


def test_bad_gradients_end_the_run_before_they_reach_the_weights(
    make_dino: Make, make_data: Make, make_trainer: Make
) -> None:
    model = make_dino()
    trainer = make_trainer(max_steps=4, callbacks=[Poison(2), NonFiniteGradients()])
    with pytest.raises(UnhealthyRunError, match=r"step 3: gradients of 1 of \d+ tensors .*blocks\.1\.mlp\.fc1\.weight"):
        trainer.fit(model, make_data())
    assert all(p.isfinite().all() for p in model.parameters())


def test_a_loss_that_is_not_finite_ends_the_run(make_dino: Make, make_data: Make, make_trainer: Make) -> None:
    model = make_dino()
    with torch.no_grad():
        model.student.head.mlp[0].weight.fill_(torch.nan)
    trainer = make_trainer(max_steps=4, callbacks=[NonFiniteGradients()])
    with pytest.raises(UnhealthyRunError, match=r"step 1: gradients of .* loss nan\); lower base_learning_rate"):
        trainer.fit(model, make_data())


def test_a_skipped_step_leaves_no_trace_in_weights_and_moments(
    make_dino: Make, make_data: Make, make_trainer: Make
) -> None:
    class Watch(pl.Callback):
        before: dict[str, torch.Tensor]

        def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, *_: Any) -> None:
            if trainer.global_step == 2:
                self.before = {name: p.clone() for name, p in pl_module.student.named_parameters()}

        def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *_: Any) -> None:
            if trainer.global_step == 3:
                assert all(torch.equal(p, self.before[name]) for name, p in pl_module.student.named_parameters())

    model = make_dino()
    callbacks = [Poison(2), NonFiniteGradients(action="skip"), Watch()]
    trainer = make_trainer(max_steps=5, callbacks=callbacks)
    with pytest.warns(UserWarning, match="the step is left out"):
        trainer.fit(model, make_data())
    steps = {int(state["step"]) for state in trainer.optimizers[0].state.values()}
    assert max(steps) == 4
    assert all(p.isfinite().all() for p in model.parameters())


def test_skipping_has_an_end(make_dino: Make, make_data: Make, make_trainer: Make) -> None:
    trainer = make_trainer(
        max_steps=9, callbacks=[Poison(*range(2, 9)), NonFiniteGradients(action="skip", max_skipped=2)]
    )
    with (
        pytest.warns(UserWarning, match="the step is left out"),
        pytest.raises(UnhealthyRunError, match=r"step 5: .*, 3 steps in a row"),
    ):
        trainer.fit(make_dino(), make_data())


@pytest.mark.parametrize(
    ("cls", "wrong"), [(CollapseMonitor, {"patience": 0}), (NonFiniteGradients, {"max_skipped": 0})]
)
def test_settings_out_of_range_are_refused(cls: type, wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=f"{cls.__name__}: .*must be at least"):
        cls(**wrong)
