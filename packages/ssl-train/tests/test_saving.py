from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from ssl_train import FolderExport, StepCheckpoint, StopOnSignal
from ssl_train.steps import epochs_completed

Make = Callable[..., Any]


def step_of(path: Path) -> int:
    return int(torch.load(path, weights_only=True)["global_step"])


def test_checkpoints_at_their_steps_and_at_the_end(
    make_dino: Make, make_data: Make, make_trainer: Make, tmp_path: Path
) -> None:
    callbacks: list[pl.Callback] = [StepCheckpoint(every_n_steps=3, keep_every_n_steps=2)]
    trainer = make_trainer(max_steps=5, callbacks=callbacks, enable_checkpointing=True, accumulate_grad_batches=2)
    trainer.fit(make_dino(), make_data(batch_size=2))
    folder = tmp_path / "checkpoints"
    names = sorted(path.name for path in folder.iterdir())
    assert names == ["last.ckpt", "step-00000002.ckpt", "step-00000004.ckpt"]
    assert [step_of(folder / name) for name in names] == [5, 2, 4]


class Scores(pl.Callback):
    """Logs a number after some steps."""

    def __init__(self, scores: dict[int, float]) -> None:
        self.scores = scores

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *_: Any) -> None:
        if trainer.global_step in self.scores:
            pl_module.log("score", self.scores[trainer.global_step])


@pytest.mark.parametrize(("mode", "kept"), [("max", [3, 5]), ("min", [2, 7])])
def test_the_best_checkpoints_are_kept_also_by_a_resumed_run(
    mode: Any, kept: list[int], make_dino: Make, make_data: Make, make_trainer: Make, tmp_path: Path
) -> None:
    scores = {2: 0.3, 3: 0.9, 4: float("nan"), 5: 0.8, 7: 0.2, 8: 0.5}
    for stop, start in ((5, None), (8, tmp_path / "checkpoints" / "last.ckpt")):
        callbacks = [Scores(scores), StepCheckpoint(every_n_steps=5, top=2, monitor="score", mode=mode)]
        trainer = make_trainer(max_steps=8, callbacks=[*callbacks, Stop(stop)], enable_checkpointing=True)
        trainer.fit(make_dino(), make_data(), ckpt_path=start, weights_only=False)
    found = sorted((tmp_path / "checkpoints").glob("top-*.ckpt"))
    assert [path.name for path in found] == [f"top-step-{step:08d}.ckpt" for step in kept]
    assert [step_of(path) for path in found] == kept


class Stop(pl.Callback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        trainer.should_stop = trainer.global_step >= self.step


def test_a_monitor_without_numbers_is_told(make_dino: Make, make_data: Make, make_trainer: Make) -> None:
    callbacks = [StepCheckpoint(top=1, monitor="nope")]
    trainer = make_trainer(max_steps=1, callbacks=callbacks, enable_checkpointing=True)
    with pytest.warns(UserWarning, match=r"monitor 'nope': never logged.*loss"):
        trainer.fit(make_dino(warmup_epochs=0), make_data())


def test_exports_after_epochs_and_at_the_end(
    make_dino: Make, make_data: Make, make_trainer: Make, tmp_path: Path
) -> None:
    # An epoch is 16 patches: half an epoch is two steps of 4.
    export = FolderExport(folder=str(tmp_path / "watched"), every_n_epochs=0.5)
    export.mpp = [0.5]
    model = make_dino()
    make_trainer(max_steps=5, callbacks=[export]).fit(model, make_data())
    folders = sorted((tmp_path / "watched").iterdir())
    assert [folder.name for folder in folders] == ["step-00000002", "step-00000004", "step-00000005"]
    described = [json.loads((folder / "backbone.json").read_text()) for folder in folders]
    assert [d["step"] for d in described] == [2, 4, 5]
    assert described[0]["mpp"] == [0.5]
    assert len({d["sha256"] for d in described}) == 3


def test_an_export_that_a_killed_run_owed_is_made_up_for(
    make_dino: Make, make_data: Make, make_trainer: Make, tmp_path: Path
) -> None:
    watched, checkpoints = tmp_path / "watched", tmp_path / "checkpoints"

    def train(start: Path | None = None) -> dict[str, str]:
        exports = FolderExport(folder=str(watched), every_n_epochs=0.5)
        callbacks = [StepCheckpoint(every_n_steps=1, keep_every_n_steps=1), exports]
        trainer = make_trainer(max_steps=5, callbacks=callbacks, enable_checkpointing=True)
        trainer.fit(make_dino(), make_data(), ckpt_path=start, weights_only=False)
        described = {path.name: path / "backbone.json" for path in watched.iterdir()}
        return {name: json.loads(path.read_text())["sha256"] for name, path in described.items()}

    whole = train()
    # As a kill leaves it that comes after the checkpoint of a step and before its export is whole.
    for step in (4, 5):
        (watched / f"step-{step:08d}" / "backbone.json").unlink()
        assert train(checkpoints / f"step-{step:08d}.ckpt") == whole
    assert train(checkpoints / "step-00000003.ckpt") == whole, "no export is due at step 3"


@pytest.mark.parametrize("per_step", [0.25, 1 / 3, 1 / 7, 0.4, 1.7, 3.0])
@pytest.mark.parametrize("every", [0.5, 1.0, 2.0])
def test_every_period_is_completed_once(per_step: float, every: float) -> None:
    steps = [s for s in range(1, 421) if epochs_completed(s, epochs_per_step=per_step, every_n_epochs=every)]
    if per_step <= every:
        assert len(steps) == int(420 * per_step / every + 1e-6)
        assert all((s - 1) * per_step < n * every - 1e-6 <= s * per_step for n, s in enumerate(steps, 1))
    else:
        assert steps == list(range(1, 421))


class Terminate(pl.Callback):
    """The scheduler wants the machine back, in the middle of a step."""

    def __init__(self, step: int, *signals: signal.Signals) -> None:
        self.step = step
        self.signals = signals or (signal.SIGTERM,)

    def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.global_step == self.step:
            for each in self.signals:
                os.kill(os.getpid(), each)


@pytest.mark.usefixtures("interruptible")
def test_ctrl_c_saves_and_a_second_one_ends_at_once(
    make_dino: Make, make_data: Make, make_trainer: Make, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    stop = StopOnSignal()
    make_trainer(callbacks=[stop, Terminate(2, signal.SIGINT)], max_steps=6).fit(make_dino(), make_data())
    last = tmp_path / "checkpoints" / "last.ckpt"
    assert stop.stopped_at == step_of(last) == 3
    assert stop.stopped_by == signal.SIGINT
    assert "once more ends at once" in capfd.readouterr().err
    last.unlink()
    trainer = make_trainer(callbacks=[StopOnSignal(), Terminate(2, signal.SIGINT, signal.SIGINT)], max_steps=6)
    with pytest.raises(SystemExit) as end:
        trainer.fit(make_dino(), make_data())
    assert isinstance(end.value.__context__, KeyboardInterrupt)
    assert not last.exists()


def test_sigterm_saves_and_the_resumed_run_is_the_uninterrupted_one(
    make_dino: Make, make_data: Make, make_trainer: Make, tmp_path: Path
) -> None:
    settings = {"max_steps": 6, "accumulate_grad_batches": 2, "enable_checkpointing": True}
    before = signal.getsignal(signal.SIGTERM)
    stop = StopOnSignal()
    trainer = make_trainer(callbacks=[stop, StepCheckpoint(), Terminate(2)], **settings)
    trainer.fit(make_dino(), make_data())
    last = tmp_path / "checkpoints" / "last.ckpt"
    assert stop.stopped_at == trainer.global_step == step_of(last) == 3
    assert signal.getsignal(signal.SIGTERM) == before

    resumed, whole = make_dino(), make_dino()
    make_trainer(**settings, callbacks=[StepCheckpoint()]).fit(resumed, make_data(), ckpt_path=last, weights_only=False)
    make_trainer(**settings, callbacks=[StepCheckpoint()]).fit(whole, make_data())
    for name, tensor in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], tensor), name


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: StepCheckpoint(every_n_steps=0), "every_n_steps must be at least 1"),
        (lambda: StepCheckpoint(top=-1), "top at least 0"),
        (lambda: FolderExport(every_n_epochs=0), "every_n_epochs must be above 0"),
    ],
)
def test_settings_out_of_range_are_refused(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
