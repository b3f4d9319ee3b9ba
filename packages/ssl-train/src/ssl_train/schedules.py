"""Which value does a hyperparameter have at this optimizer step?

Pure functions of the step (or of the epoch): nothing is stored, so a resumed run needs no scheduler state.
The trainer's step count goes in, learning rate, weight decay, teacher momentum and temperature come out.
"""

from __future__ import annotations

import math


def cosine(
    step: int,
    *,
    base: float,
    final: float,
    total_steps: int,
    warmup_steps: int = 0,
    warmup_start: float = 0.0,
) -> float:
    """Linear warm-up from `warmup_start` to `base`, then half a cosine from `base` towards `final`.

    As in the DINO reference (utils.py, cosine_scheduler): the warm-up holds both of its end points, so step
    0 has
    `warmup_start` and both the last warm-up step and the first cosine step have `base`; `final` is what step
    `total_steps` would have, so the last step stays a little above it.

    Args:
        step: optimizer steps already done, 0 in the first step.
        base: value at the end of the warm-up.
        final: value approached at the end.
        total_steps: length of the whole schedule.
        warmup_steps: length of the warm-up, at most `total_steps`.
        warmup_start: value at step 0 where there is a warm-up.

    Raises:
        ValueError: a negative step, or a warm-up longer than the schedule.
    """
    if step < 0:
        raise ValueError(f"step {step}: must be at least 0")
    if not 0 <= warmup_steps <= total_steps:
        raise ValueError(
            f"warm-up of {warmup_steps} steps does not fit into a schedule of {total_steps} steps; "
            "shorten the warm-up or raise max_steps"
        )
    if step < warmup_steps:
        share = step / (warmup_steps - 1) if warmup_steps > 1 else 0.0
        return warmup_start + share * (base - warmup_start)
    if step >= total_steps:
        return final
    share = (step - warmup_steps) / (total_steps - warmup_steps)
    return final + 0.5 * (base - final) * (1.0 + math.cos(math.pi * share))


def teacher_temperature(epoch: int, *, warmup: float, final: float, warmup_epochs: int) -> float:
    """Temperature of the teacher in an epoch: linear from `warmup` to `final`, then constant.

    It moves in steps of an epoch and holds both end points (DINO reference, DINOLoss.teacher_temp_schedule).
    """
    if epoch < 0:
        raise ValueError(f"epoch {epoch}: must be at least 0")
    if epoch >= warmup_epochs:
        return final
    share = epoch / (warmup_epochs - 1) if warmup_epochs > 1 else 0.0
    return warmup + share * (final - warmup)
