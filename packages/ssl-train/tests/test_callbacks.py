from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from ssl_train import CollapseMonitor, StageProgressBar, StepCheckpoint, Throughput

Make = Callable[..., Any]


def test_the_bar_names_the_stage_and_counts_steps(
    make_dino: Make, make_data: Make, make_trainer: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    trainer = make_trainer(max_steps=4, callbacks=[StageProgressBar()], enable_progress_bar=True)
    trainer.fit(make_dino(), make_data())
    shown = capsys.readouterr().err
    assert "train dino: 100%" in shown
    assert "4/4" in shown


def test_throughput_counts_images_and_waiting(make_dino: Make, make_data: Make, make_trainer: Make) -> None:
    trainer = make_trainer(max_steps=4, callbacks=[Throughput(window=2)])
    trainer.fit(make_dino(), make_data())
    assert trainer.callback_metrics["images_per_second"] > 0
    assert 0 <= trainer.callback_metrics["data_stall_share"] <= 1
    assert trainer.callback_metrics["memory_gib"] > 0.01


def test_a_collapsed_teacher_is_reported(make_dino: Make, make_data: Make, make_trainer: Make) -> None:
    model = make_dino(base_learning_rate=0.0)
    with torch.no_grad():
        for network in (model.student, model.teacher):
            network.head.mlp[-1].weight.zero_()
            network.head.mlp[-1].bias.fill_(1.0)
    trainer = make_trainer(max_steps=4, callbacks=[CollapseMonitor(patience=3)])
    with pytest.warns(UserWarning, match=r"collapse: for 3 steps"):
        trainer.fit(model, make_data())


def test_a_loss_that_is_not_finite_ends_the_run(make_dino: Make, make_data: Make, make_trainer: Make) -> None:
    model = make_dino()
    with torch.no_grad():
        model.student.head.mlp[0].weight.fill_(torch.nan)
    trainer = make_trainer(max_steps=4, callbacks=[CollapseMonitor()])
    with pytest.raises(ValueError, match="step 1: the loss is nan"):
        trainer.fit(model, make_data())


def test_checkpoints_at_their_steps_and_at_the_end(
    make_dino: Make, make_data: Make, make_trainer: Make, tmp_path: Any
) -> None:
    callbacks: list[pl.Callback] = [StepCheckpoint(every_n_steps=3, keep_every_n_steps=2)]
    trainer = make_trainer(max_steps=5, callbacks=callbacks, enable_checkpointing=True, accumulate_grad_batches=2)
    trainer.fit(make_dino(), make_data(batch_size=2))
    folder = tmp_path / "checkpoints"
    names = sorted(path.name for path in folder.iterdir())
    assert names == ["last.ckpt", "step-00000002.ckpt", "step-00000004.ckpt"]
    steps = [torch.load(folder / name, weights_only=True)["global_step"] for name in names]
    assert steps == [5, 2, 4]
