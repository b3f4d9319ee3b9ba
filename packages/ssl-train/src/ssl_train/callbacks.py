"""What does a run tell its user while it trains? How far it is, how fast, and what it waits for."""

from __future__ import annotations

import resource
import time
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback, ProgressBar
from tqdm import tqdm

from ssl_train.progress import progress_bar

_REFRESH_SECONDS = 1.0


class StageProgressBar(ProgressBar):
    """One bar over all optimizer steps: stage, loss, images/s, share of the time spent waiting for data, time left.

    Where standard error is no terminal (a job's log), it is a line every 30 seconds instead.
    """

    def __init__(self) -> None:
        super().__init__()
        self._enabled = True
        self._bar: tqdm[Any] | None = None
        self._shown = 0.0

    def disable(self) -> None:
        """Shows nothing; Lightning calls it on all ranks but the first."""
        self._enabled = False

    def enable(self) -> None:
        """Shows the bar again."""
        self._enabled = True

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Opens the bar at the step of the run."""
        self._bar = progress_bar(
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
        if not steps:
            return
        # Reading a number waits for the device, so not at every step.
        if time.monotonic() - self._shown > _REFRESH_SECONDS or trainer.global_step >= trainer.max_steps:
            self._shown = time.monotonic()
            metrics = trainer.callback_metrics
            names = {"loss": "loss", "images/s": "images_per_second", "stall": "data_stall_share"}
            shown = {label: metrics.get(name) for label, name in names.items()}
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
