"""When is it the turn of a callback? Once an optimizer step, not once a micro-batch; and every so many epochs."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback


class StepCallback(Callback, ABC):
    """A callback that acts after whole optimizer steps."""

    _seen = 0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """A resumed run does not act on the step it comes from again."""
        self._seen = trainer.global_step

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        """Calls `on_step_end` where this micro-batch completed a step."""
        if trainer.global_step != self._seen:
            self._seen = trainer.global_step
            self.on_step_end(trainer, pl_module, self._seen)

    @abstractmethod
    def on_step_end(self, trainer: pl.Trainer, pl_module: Any, step: int) -> None:
        """Acts after optimizer step number `step`, the first of which is 1."""


def epochs_completed(step: int, *, epochs_per_step: float, every_n_epochs: float) -> bool:
    """Whether step number `step` is the one that completes a multiple of `every_n_epochs` epochs."""

    def periods(steps: int) -> int:
        # A hair more, so that steps that make whole epochs are not lost to rounding.
        return math.floor(steps * epochs_per_step / every_n_epochs * (1 + 1e-9))

    return periods(step) > periods(step - 1)
