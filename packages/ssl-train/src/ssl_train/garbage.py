"""When does Python look for garbage? Where it costs all ranks the same step, not where each of them happens to be."""

from __future__ import annotations

import gc
from typing import Any

import pytorch_lightning as pl

from ssl_train.steps import StepCallback


class GarbageCollection(StepCallback):
    """Collects every so many optimizer steps and at no other time.

    A collection of all objects takes tenths of a second with torch loaded. It begins by itself when enough objects
    were made, on every rank at another step, and the other ranks wait in their next collective. What is there at the
    start is left out of later collections (`gc.freeze`). Memory of tensors does not wait for it, unless they are part
    of a cycle.

    Args:
        every_n_steps: optimizer steps between two collections; 0 is off and leaves Python alone.

    Raises:
        ValueError: `every_n_steps` is negative.
    """

    def __init__(self, *, every_n_steps: int = 0) -> None:
        if every_n_steps < 0:
            raise ValueError(f"GarbageCollection: every_n_steps must be at least 0, got {every_n_steps}")
        self._every = every_n_steps
        self._restore = False

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Takes over from Python, where it collects by itself."""
        super().on_train_start(trainer, pl_module)
        if self._every and gc.isenabled():
            gc.collect()
            gc.freeze()
            gc.disable()
            self._restore = True

    def on_step_end(self, trainer: pl.Trainer, pl_module: Any, step: int) -> None:
        """Collects where it is time."""
        if self._every and step % self._every == 0:
            gc.collect()

    def on_exception(self, *_: Any) -> None:
        """Gives back to Python, as at the end."""
        self.teardown()

    def teardown(self, *_: Any, **__: Any) -> None:
        """Gives back to Python."""
        if self._restore:
            gc.unfreeze()
            gc.enable()
            self._restore = False
