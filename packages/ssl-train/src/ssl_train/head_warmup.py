"""How does a good backbone survive fresh heads? By waiting for them."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback


class HeadWarmup(Callback):
    """Keeps the student's backbone as it is while its head learns.

    Continued training with a randomly initialised head sends noise through a pretrained backbone and can destroy it.
    As with the reference's frozen last layer the gradients are taken away, so the backbone gets no moments and no
    weight decay either; the teacher's backbone, the mean of equal weights, stays too.

    Args:
        epochs: epochs of the schedules at the start during which only the head learns; 0 is off.
    """

    def __init__(self, *, epochs: float = 0.0) -> None:
        if epochs < 0:
            raise ValueError(f"HeadWarmup: epochs must be at least 0, got {epochs}")
        self._epochs = epochs

    def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: Any, optimizer: torch.optim.Optimizer) -> None:
        """Takes the backbone's gradients away."""
        if self._epochs and trainer.global_step * pl_module.epochs_per_step < self._epochs:
            for parameter in pl_module.student.backbone.parameters():
                parameter.grad = None
