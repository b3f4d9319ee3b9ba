"""How does the teacher follow the student?

An exponential moving average over the parameters, once an optimizer step (DINO, section 3.1:
teacher <- m * teacher + (1 - m) * student). Buffers are left alone, as in the reference (main_dino.py,
train_one_epoch): the running statistics of batch normalisation, where a head has it, are the teacher's own.
"""

from __future__ import annotations

import torch
from torch import nn


@torch.no_grad()
def update_teacher(*, student: nn.Module, teacher: nn.Module, momentum: float) -> None:
    """Moves the teacher's parameters towards the student's, in place.

    Args:
        student: module with the new weights.
        teacher: module of the same structure.
        momentum: m in [0, 1]; 1 leaves the teacher as it is.

    Raises:
        ValueError: a momentum out of range.
    """
    if not 0.0 <= momentum <= 1.0:
        raise ValueError(f"teacher momentum {momentum}: must be between 0 and 1")
    teacher_parameters = [p.detach() for p in teacher.parameters()]
    student_parameters = [p.detach() for p in student.parameters()]
    torch._foreach_lerp_(teacher_parameters, student_parameters, 1.0 - momentum)
