"""Which rates and temperatures does DINOv2 have at an optimizer step?

The five schedules of the reference (dinov2/train/train.py, build_schedulers), stated in epochs and read at a step.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

from ssl_train.schedules import cosine

# Square-root scaling: the base learning rates are stated for this many patches a step.
_REFERENCE_BATCH = 1024


class Rates(NamedTuple):
    """What a step works with."""

    learning_rate: float
    last_layer_learning_rate: float
    weight_decay: float
    teacher_momentum: float
    teacher_temp: float


@dataclass(frozen=True, slots=True, kw_only=True)
class DINOv2Schedules:
    """Schedules over a run; see `DINOv2` for the fields."""

    epoch_size: int
    base_learning_rate: float
    min_learning_rate: float
    warmup_epochs: float
    freeze_last_layer_epochs: float
    weight_decay: float
    weight_decay_end: float
    teacher_momentum: float
    warmup_teacher_temp: float
    teacher_temp: float
    warmup_teacher_temp_epochs: float

    def at(self, step: int, *, total_steps: int, patches_per_step: int) -> Rates:
        """Values at a step.

        Args:
            step: optimizer steps already done.
            total_steps: length of the run.
            patches_per_step: patches over all ranks and micro-batches.

        Raises:
            ValueError: a warm-up longer than the run.
        """

        def steps(epochs: float) -> int:
            return round(epochs * self.epoch_size / patches_per_step)

        learning_rate = cosine(
            step,
            base=self.base_learning_rate * math.sqrt(patches_per_step / _REFERENCE_BATCH),
            final=self.min_learning_rate,
            total_steps=total_steps,
            warmup_steps=steps(self.warmup_epochs),
        )
        temp_steps = steps(self.warmup_teacher_temp_epochs)
        return Rates(
            learning_rate=learning_rate,
            last_layer_learning_rate=0.0 if step < steps(self.freeze_last_layer_epochs) else learning_rate,
            weight_decay=cosine(step, base=self.weight_decay, final=self.weight_decay_end, total_steps=total_steps),
            teacher_momentum=cosine(step, base=self.teacher_momentum, final=1.0, total_steps=total_steps),
            teacher_temp=cosine(
                step,
                base=self.teacher_temp,
                final=self.teacher_temp,
                total_steps=temp_steps,
                warmup_steps=temp_steps,
                warmup_start=self.warmup_teacher_temp,
            ),
        )
