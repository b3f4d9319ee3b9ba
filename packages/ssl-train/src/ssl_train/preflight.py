"""Can this run work at all? What can be known before the first step is asked then, and the end is looked at too."""

from __future__ import annotations

from collections.abc import Sized
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback


class RunChecks(Callback):
    """Refuses runs of a wrong size or length, and tells of a stream that ended before the training did."""

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Checks the number of steps, and that a finite stream has enough patches for them.

        Raises:
            ValueError: `max_steps` is missing, a step has not the number of patches that it must have, or the stream is
                too short.
        """
        if trainer.max_steps < 1:
            raise ValueError(
                f"trainer.max_steps={trainer.max_steps}: the schedules need the number of optimizer steps; set it"
            )
        data: Any = getattr(trainer, "datamodule", None)
        if data is None:
            return
        accumulated = int(trainer.accumulate_grad_batches)
        per_step = data.batch_size * trainer.world_size * accumulated
        if data.global_batch_size not in (None, per_step):
            raise ValueError(
                f"data.global_batch_size={data.global_batch_size}: data.batch_size={data.batch_size} x "
                f"{trainer.world_size} devices x {accumulated} accumulated are {per_step} patches a step; "
                + _remedy(data.global_batch_size, data.batch_size, trainer.world_size)
            )
        if isinstance(data.stream, Sized):
            _check_length(len(data.stream), per_step, trainer.max_steps)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Tells an end from a finish.

        Raises:
            ValueError: the training ended early, and nothing asked it to.
        """
        if trainer.global_step < trainer.max_steps and not trainer.should_stop:
            raise ValueError(
                f"training ended after {trainer.global_step} of {trainer.max_steps} steps: the stream gave no more "
                "patches (or trainer.limit_train_batches ended it); give an endless stream, or fewer steps"
            )


def _remedy(global_batch_size: int, batch_size: int, world_size: int) -> str:
    per_rank, rest = divmod(global_batch_size, world_size)
    if rest:
        return f"{global_batch_size} is not divisible by {world_size} devices: take a number of devices that divides it"
    if per_rank % batch_size:
        return f"each device has {per_rank} of them: take a data.batch_size that divides that"
    return f"set trainer.accumulate_grad_batches={per_rank // batch_size}"


def _check_length(length: int, per_step: int, max_steps: int) -> None:
    if length < max_steps * per_step:
        raise ValueError(
            f"data.stream: {length} patches are too few for trainer.max_steps={max_steps} of {per_step} patches "
            f"({max_steps * per_step}); take at most {length // per_step} steps, or an endless stream"
        )
