"""What does a run leave behind while it goes on? Checkpoints to resume from, and exports for those who watch.

`StepCheckpoint` writes Lightning checkpoints under the run folder; `FolderExport` writes checkpoint folders into a
folder that an evaluation may watch; `StopOnSignal` saves and ends the run when the machine is taken away.
"""

from __future__ import annotations

import math
import os
import shutil
import signal
import threading
from pathlib import Path
from types import FrameType
from typing import Any, Literal

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback, Checkpoint
from pytorch_lightning.utilities import rank_zero_warn

from ssl_train.checkpoint import export_folder, save_training_checkpoint
from ssl_train.steps import StepCallback, epochs_completed
from ssl_train.weights import DESCRIPTION_NAME


def checkpoint_folder(trainer: pl.Trainer) -> Path:
    """Where the checkpoints of a run lie."""
    return Path(trainer.default_root_dir) / "checkpoints"


def save_last(trainer: pl.Trainer) -> None:
    """Writes `last.ckpt`; every rank takes part."""
    save_training_checkpoint(trainer, checkpoint_folder(trainer) / "last.ckpt")


class StepCheckpoint(StepCallback, Checkpoint):
    """Writes `checkpoints/last.ckpt`, numbered checkpoints and the best ones under the run folder.

    Args:
        every_n_steps: optimizer steps between two checkpoints; the last step always has one.
        keep_every_n_steps: steps whose checkpoint is kept beside `last.ckpt`, as `step-N.ckpt`; 0 keeps none.
        top: how many of the best checkpoints to keep, as `top-step-N.ckpt`.
        monitor: the logged number that says which are best, for example `guard_knn`, `guard_odcorr` or `rankme`;
            where it has a new value, at any step, is decided.
        mode: whether more or less of it is better.
    """

    def __init__(
        self,
        *,
        every_n_steps: int = 1_000,
        keep_every_n_steps: int = 0,
        top: int = 0,
        monitor: str = "guard_knn",
        mode: Literal["max", "min"] = "max",
    ) -> None:
        if every_n_steps < 1 or keep_every_n_steps < 0 or top < 0:
            raise ValueError(
                "StepCheckpoint: every_n_steps must be at least 1, keep_every_n_steps and top at least 0, got "
                f"{every_n_steps}, {keep_every_n_steps} and {top}"
            )
        self._every = every_n_steps
        self._keep = keep_every_n_steps
        self._n_top = top
        self._monitor = monitor
        self._sign = 1 if mode == "max" else -1
        self._best: dict[str, float] = {}
        self._last_value: float | None = None

    def state_dict(self) -> dict[str, Any]:
        """The names of the best checkpoints with their values."""
        return {"best": self._best, "last_value": self._last_value} if self._n_top else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """A resumed run goes on with the list of the interrupted one."""
        self._best = dict(state_dict["best"])
        self._last_value = state_dict["last_value"]

    def on_step_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, step: int) -> None:
        """Saves where it is the step's turn."""
        if self._n_top:
            self._save_if_among_the_best(trainer, step)
        if step % self._every == 0 or step >= trainer.max_steps:
            save_last(trainer)
        if self._keep and step % self._keep == 0:
            save_training_checkpoint(trainer, checkpoint_folder(trainer) / f"step-{step:08d}.ckpt")

    def _save_if_among_the_best(self, trainer: pl.Trainer, step: int) -> None:
        metric = trainer.callback_metrics.get(self._monitor)
        # Numbers of ranks differ: rank 0 decides for all, since saving is done together.
        value = trainer.strategy.broadcast(None if metric is None else float(metric))
        if value is None or value == self._last_value or not math.isfinite(value):
            return
        self._last_value = value
        folder = checkpoint_folder(trainer)
        ranked = sorted({**self._best, f"top-step-{step:08d}.ckpt": value}.items(), key=lambda kv: -self._sign * kv[1])
        self._best, dropped = dict(ranked[: self._n_top]), dict(ranked[self._n_top :])
        name = f"top-step-{step:08d}.ckpt"
        if name in self._best:
            save_training_checkpoint(trainer, folder / name)
        if trainer.is_global_zero:
            for old in dropped.keys() - {name}:
                _remove(folder / old)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Tells of a monitor that never had a value."""
        if self._n_top and self._last_value is None:
            rank_zero_warn(
                f"checkpoints.monitor {self._monitor!r}: never logged, so no top checkpoint was kept; logged were "
                f"{', '.join(sorted(trainer.callback_metrics))}"
            )


def _remove(checkpoint: Path) -> None:
    """Removes a checkpoint, which a run that was killed may have removed already."""
    if checkpoint.is_dir():  # of a sharded strategy
        shutil.rmtree(checkpoint)
    else:
        checkpoint.unlink(missing_ok=True)


class FolderExport(StepCallback):
    """Exports the teacher every few epochs, and at the last step, into a folder of checkpoint folders.

    `step-N/backbone.json` is written last, so whoever watches the folder sees whole exports only. A run that is killed
    and goes on from its last checkpoint leaves the same exports as one that was not.

    Args:
        folder: where the exports go; off where absent.
        every_n_epochs: epochs of the schedules between two exports.
    """

    def __init__(self, *, folder: str | None = None, every_n_epochs: float = 1.0) -> None:
        if every_n_epochs <= 0:
            raise ValueError(f"FolderExport: every_n_epochs must be above 0, got {every_n_epochs}")
        self._folder = folder
        self._every_n_epochs = every_n_epochs
        self._may_owe = False
        # um per pixel that the stream samples; whoever knows the config sets it.
        self.mpp: list[float] | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Whether the step that a run goes on from may lack its export."""
        super().on_train_start(trainer, pl_module)
        # Nobody exports the weights before the first step: `ssl-train export` makes them of the config alone.
        self._may_owe = trainer.global_step > 0 and self._folder is not None

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, *_: Any) -> None:
        """A run that was killed after the checkpoint of a step and before its export makes up for it."""
        if not self._may_owe:
            return
        self._may_owe = False
        # The unit of epochs is known from the first batch on.
        pl_module.count_patches(batch)
        if not self._is_exported(trainer):
            self.on_step_end(trainer, pl_module, trainer.global_step)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """The same after the last step, from which a run goes on without any batch."""
        if self._folder is not None and trainer.global_step >= trainer.max_steps and not self._is_exported(trainer):
            export_folder(pl_module, self._path(trainer.global_step), step=trainer.global_step, mpp=self.mpp)

    def _is_exported(self, trainer: pl.Trainer) -> bool:
        is_whole = (self._path(trainer.global_step) / DESCRIPTION_NAME).exists()
        # What one rank sees of a folder, others may see later: the first decides, since exporting is done together.
        return bool(trainer.strategy.broadcast(is_whole))

    def on_step_end(self, trainer: pl.Trainer, pl_module: Any, step: int) -> None:
        """Exports where an epoch is over."""
        if self._folder is None:
            return
        every, share = self._every_n_epochs, pl_module.epochs_per_step
        if epochs_completed(step, epochs_per_step=share, every_n_epochs=every) or step >= trainer.max_steps:
            export_folder(pl_module, self._path(step), step=step, mpp=self.mpp)

    def _path(self, step: int) -> Path:
        assert self._folder is not None, "asked for where exports are on"
        return Path(self._folder) / f"step-{step:08d}"


class StopOnSignal(Callback):
    """On SIGTERM or Ctrl-C: finishes the step, writes `last.ckpt` and ends the run, on all ranks at the same step.

    Schedulers send SIGTERM before they take a machine away. A second Ctrl-C ends the run at once, for whoever cannot
    wait for the step. `stopped_at` says afterwards where the run ended, `stopped_by` by which signal.
    """

    def __init__(self) -> None:
        self.stopped_at: int | None = None
        self.stopped_by: signal.Signals = signal.SIGTERM
        self._received = False
        self._seen = 0
        self._before: dict[signal.Signals, Any] = {}
        self._speaks = True

    def on_train_start(self, trainer: pl.Trainer, *_: Any) -> None:
        """Takes the signals over from Lightning, which would end between two micro-batches and save nothing."""
        self._received, self._seen, self.stopped_at = False, trainer.global_step, None
        # Python allows handlers in the main thread only.
        if threading.current_thread() is threading.main_thread():
            self._before[signal.SIGTERM] = signal.signal(signal.SIGTERM, self._receive)
            # Who starts a run in the background may want it deaf to Ctrl-C.
            if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:
                self._before[signal.SIGINT] = signal.signal(signal.SIGINT, self._receive)
        self._speaks = trainer.is_global_zero

    def _receive(self, number: int, _frame: FrameType | None) -> None:
        if number == signal.SIGINT and self._received:
            raise KeyboardInterrupt
        self._received, self.stopped_by = True, signal.Signals(number)
        if number == signal.SIGINT and self._speaks:
            # Print may be in the middle of a line when a signal comes.
            os.write(2, b"\nCtrl-C: ends after this step and saves it; once more ends at once\n")

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        """Saves and stops after the step in which a rank was told to."""
        if trainer.global_step == self._seen:
            return
        self._seen = trainer.global_step
        if trainer.strategy.reduce_boolean_decision(self._received, all=False):
            save_last(trainer)
            self.stopped_at = trainer.global_step
            trainer.should_stop = True

    def on_train_end(self, *_: Any) -> None:
        """Gives the signals back."""
        while self._before:
            signal.signal(*self._before.popitem())

    def on_exception(self, *_: Any) -> None:
        """Gives the signals back."""
        self.on_train_end()
