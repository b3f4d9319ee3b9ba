"""What does a run tell its user while it trains, and what does it leave behind?"""

from __future__ import annotations

import math
import resource
import time
from pathlib import Path
from typing import Any, cast

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback, Checkpoint, ProgressBar
from pytorch_lightning.utilities import rank_zero_warn
from tqdm import tqdm

from ssl_train.losses import DINOLoss


class StageProgressBar(ProgressBar):
    """One bar over all optimizer steps that names the stage, the throughput and the time left."""

    def __init__(self) -> None:
        super().__init__()
        self._enabled = True
        self._bar: tqdm[Any] | None = None

    def disable(self) -> None:
        """Shows nothing; Lightning calls it on all ranks but the first."""
        self._enabled = False

    def enable(self) -> None:
        """Shows the bar again."""
        self._enabled = True

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Opens the bar at the step of the run."""
        self._bar = tqdm(
            total=trainer.max_steps,
            initial=trainer.global_step,
            desc=f"train {getattr(pl_module, 'method', type(pl_module).__name__)}",
            unit="step",
            disable=not self._enabled,
            dynamic_ncols=True,
        )

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        """Moves the bar."""
        assert self._bar is not None, "on_train_start opens the bar"
        steps = trainer.global_step - self._bar.n
        if steps:
            metrics = trainer.callback_metrics
            shown = {"loss": metrics.get("loss"), "images/s": metrics.get("images_per_second")}
            self._bar.set_postfix({k: f"{float(v):.3g}" for k, v in shown.items() if v is not None}, refresh=False)
            self._bar.update(steps)

    def on_train_end(self, *_: Any) -> None:
        """Closes the bar."""
        if self._bar is not None:
            self._bar.close()

    def on_exception(self, *_: Any) -> None:
        """Closes the bar, so that the error stands on a line of its own."""
        self.on_train_end()


class Throughput(Callback):
    """Logs `images_per_second` over all ranks, `data_stall_share` (time spent waiting for data) and
    `memory_gib`.

    Memory is the peak: of the device where there is one, else of the process.

    Args:
        window: micro-batches between two readings.
    """

    def __init__(self, *, window: int = 10) -> None:
        if window < 1:
            raise ValueError(f"Throughput: window must be at least 1, got {window}")
        self._window = window
        self._images = 0
        self._batches = 0
        self._stalled = 0.0
        self._since = 0.0
        self._ended = 0.0

    def on_train_start(self, *_: Any) -> None:
        """Starts the clock."""
        self._since = self._ended = time.perf_counter()

    def on_train_batch_start(self, _trainer: Any, _module: Any, batch: Any, *_: Any) -> None:
        """Between two batches the trainer does nothing but wait for the next one."""
        self._stalled += time.perf_counter() - self._ended
        self._images += len(batch["image"])
        self._batches += 1

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        """Logs once a window."""
        self._ended = time.perf_counter()
        if self._batches == self._window:
            seconds = self._ended - self._since
            pl_module.log_dict(
                {
                    "images_per_second": self._images * trainer.world_size / seconds,
                    "data_stall_share": self._stalled / seconds,
                    "memory_gib": _peak_memory_gib(pl_module.device),
                }
            )
            self._since, self._images, self._batches, self._stalled = self._ended, 0, 0, 0.0


def _peak_memory_gib(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    kibibytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return kibibytes / 2**20


class CollapseMonitor(Callback):
    """Warns once when the loss sticks at ln K or the teacher gives every crop the same answer.

    A loss of ln K means a uniform teacher, a vanishing `teacher_std` a constant one (DINO, section 5.3).

    Args:
        patience: steps in a row before the warning.
        tolerance: distance from ln K, relative, and `teacher_std` below which an output counts as collapsed.
    """

    def __init__(self, *, patience: int = 200, tolerance: float = 1e-3) -> None:
        self._patience = patience
        self._tolerance = tolerance
        self._suspicious = 0

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        """Counts suspicious steps."""
        metrics = trainer.callback_metrics
        uniform = math.log(cast(DINOLoss, pl_module.loss).out_dim)
        loss, std = float(metrics["loss"]), float(metrics["teacher_std"])
        if not math.isfinite(loss):
            raise ValueError(
                f"step {trainer.global_step}: the loss is {loss}; lower base_learning_rate, or use bf16 instead of fp16"
            )
        stuck = abs(loss - uniform) < self._tolerance * uniform or std < self._tolerance
        self._suspicious = self._suspicious + 1 if stuck else 0
        if self._suspicious == self._patience:
            rank_zero_warn(
                f"step {trainer.global_step}: collapse: for {self._patience} steps the loss is {loss:.4f} "
                f"(ln K = {uniform:.4f}) and the teacher's std {std:.2e}; "
                "lower teacher_temp or base_learning_rate"
            )


class StepCheckpoint(Checkpoint):
    """Writes `checkpoints/last.ckpt` and numbered checkpoints under the run folder.

    Args:
        every_n_steps: optimizer steps between two checkpoints; the last step always has one.
        keep_every_n_steps: of those, the ones that are kept beside `last.ckpt`; 0 keeps none.
    """

    def __init__(self, *, every_n_steps: int = 1_000, keep_every_n_steps: int = 0) -> None:
        if every_n_steps < 1 or keep_every_n_steps < 0:
            raise ValueError(
                "StepCheckpoint: every_n_steps must be at least 1 and keep_every_n_steps at least 0, got "
                f"{every_n_steps} and {keep_every_n_steps}"
            )
        self._every = every_n_steps
        self._keep = keep_every_n_steps
        self._seen = 0

    def on_train_start(self, trainer: pl.Trainer, *_: Any) -> None:
        """A resumed run does not save the step it comes from, between two micro-batches, again."""
        self._seen = trainer.global_step

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        """Saves where this micro-batch completed a step and it is its turn."""
        step = trainer.global_step
        if step == self._seen:
            return
        self._seen = step
        folder = Path(trainer.default_root_dir) / "checkpoints"
        if step % self._every == 0 or step >= trainer.max_steps:
            trainer.save_checkpoint(folder / "last.ckpt", weights_only=False)
        if self._keep and step % self._keep == 0:
            trainer.save_checkpoint(folder / f"step-{step:08d}.ckpt", weights_only=False)
