"""What do DINO and DINOv2 have in common as Lightning modules?

A student and a teacher of one architecture, crops of their sizes, and schedules that count in optimizer steps.

Before: crops. After: dino, dinov2.
"""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
from torch import Tensor

from ssl_train.architectures import misfit
from ssl_train.crops import MultiCrop
from ssl_train.sharding import check_agreement


class SelfDistillation(pl.LightningModule):
    """Base of the methods.

    Attributes:
        crops: the multi-crop augmentation.
        input_size_px: side at which an exported backbone is to be used.
        epoch_size: patches in an epoch, the unit of the schedules.
    """

    crops: MultiCrop
    input_size_px: int
    epoch_size: int
    _patches_per_step: int | None = None

    def check_sizes(self, *, patch_size: int) -> None:
        """Refuses sizes that the backbone's patches do not divide.

        Raises:
            ValueError: one of them.
        """
        sizes = {
            "crops: global_size_px": self.crops.global_size_px,
            "crops: local_size_px": self.crops.local_size_px,
            "input_size_px": self.input_size_px,
        }
        for name, size in sizes.items():
            if size < 1 or size % patch_size:
                raise ValueError(f"{name}={size} is not a multiple of the backbone's patch size {patch_size}")

    def forward(self, images: Tensor) -> Tensor:
        """Teacher embeddings (B, D) of normalised float images (B, 3, H, W)."""
        embeddings: Tensor = self.teacher.embed(images)  # type: ignore[operator, union-attr]
        return embeddings

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Says in one line why a checkpoint is not one of this model."""
        problem = misfit(checkpoint.get("state_dict", self.state_dict()), self.state_dict())
        if problem is not None:
            raise ValueError(f"the checkpoint does not fit the model of the config: {problem}")

    @property
    def epochs_per_step(self) -> float:
        """How much of an epoch one optimizer step is; known from the first batch on."""
        return self.patches_in_a_step() / self.epoch_size

    def count_patches(self, batch: dict[str, Tensor]) -> None:
        """Takes the number of patches in a step from the first micro-batch of this rank.

        Raises:
            ValueError: ranks have batches of different sizes.
        """
        if self._patches_per_step is not None:
            return
        check_agreement({"patches in a batch": str(len(batch["image"]))})
        per_rank = len(batch["image"]) * self.trainer.accumulate_grad_batches
        self._patches_per_step = per_rank * self.trainer.world_size

    def patches_in_a_step(self) -> int:
        """Patches of all ranks and micro-batches in an optimizer step."""
        assert self._patches_per_step is not None, "the first micro-batch sets the number of patches in a step"
        return self._patches_per_step

    def total_steps(self) -> int:
        """Optimizer steps of the run.

        Raises:
            ValueError: `trainer.max_steps` is not set.
        """
        total = self.trainer.max_steps
        if total < 1:
            raise ValueError(f"trainer.max_steps={total}: the schedules need the number of optimizer steps; set it")
        return total
