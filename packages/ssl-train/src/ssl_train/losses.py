"""How far is the student from the teacher?

DINO: cross-entropy between the teacher's centred, sharpened prototype distribution of one global crop and the
student's distribution of every other crop (arXiv 2104.14294, equations 1-4).

Legend of shape suffixes: B images, C crops (2 globals first), K prototypes.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
import torch.nn.functional as nnf
from torch import Tensor, nn

N_GLOBALS = 2


class DINOLoss(nn.Module):
    """Cross-view cross-entropy with a running centre of the teacher's logits.

    `forward` uses the centre as it is. `observe` gathers teacher logits and `update_center` folds everything
    gathered since the last update into the centre: once a step, so micro-batches give the centre of the
    whole batch.

    Args:
        out_dim: number of prototypes K.
        student_temp: temperature of the student.
        center_momentum: share of the old centre that an update keeps.
    """

    center: Tensor
    pending_sum: Tensor
    pending_count: Tensor

    def __init__(self, *, out_dim: int, student_temp: float = 0.1, center_momentum: float = 0.9) -> None:
        super().__init__()
        if student_temp <= 0:
            raise ValueError(f"student_temp {student_temp}: must be above 0")
        if not 0 <= center_momentum <= 1:
            raise ValueError(f"center_momentum {center_momentum}: must be between 0 and 1")
        self.out_dim = out_dim
        self.student_temp = student_temp
        self.center_momentum = center_momentum
        self.register_buffer("center", torch.zeros(1, out_dim))
        # What was observed since the last update; empty whenever a checkpoint is written.
        self.register_buffer("pending_sum", torch.zeros(1, out_dim), persistent=False)
        self.register_buffer("pending_count", torch.zeros(1), persistent=False)

    def forward(self, student_CBK: Tensor, teacher_2BK: Tensor, *, teacher_temp: float) -> Tensor:
        """Mean cross-entropy over all pairs of a teacher's global crop and another crop of the student.

        Args:
            student_CBK: student logits of all crops, globals first, (C, B, K).
            teacher_2BK: teacher logits of the two global crops, (2, B, K).
            teacher_temp: temperature of the teacher.

        Returns:
            A scalar in float32 or better.
        """
        q_2BK = self.teacher_probabilities(teacher_2BK, teacher_temp=teacher_temp)
        return self.cross_entropy(student_CBK, q_2BK)

    def cross_entropy(self, student_CBK: Tensor, q_2BK: Tensor) -> Tensor:
        """The same, given the teacher's probabilities of the two global crops, (2, B, K)."""
        dtype = torch.promote_types(student_CBK.dtype, torch.float32)
        log_p_CBK = nnf.log_softmax(student_CBK.to(dtype) / self.student_temp, dim=-1)
        n_crops = len(student_CBK)
        # The sum over all pairs minus the pairs of a crop with itself: one product instead of 2C - 2.
        all_pairs = (q_2BK.sum(0) * log_p_CBK.sum(0)).sum(-1).mean()
        same_crop = (q_2BK * log_p_CBK[:N_GLOBALS]).sum(-1).sum(0).mean()
        return (same_crop - all_pairs) / (N_GLOBALS * (n_crops - 1))

    def teacher_probabilities(self, teacher_2BK: Tensor, *, teacher_temp: float) -> Tensor:
        """The centred and sharpened distribution of the teacher, without gradient; shape as given."""
        dtype = torch.promote_types(teacher_2BK.dtype, torch.float32)
        return nnf.softmax((teacher_2BK.detach().to(dtype) - self.center) / teacher_temp, dim=-1)

    @torch.no_grad()
    def observe(self, teacher_2BK: Tensor) -> None:
        """Gathers teacher logits (..., K) for the next update of the centre."""
        logits = teacher_2BK.detach().reshape(-1, teacher_2BK.shape[-1]).to(self.center.dtype)
        self.pending_sum += logits.sum(0, keepdim=True)
        self.pending_count += len(logits)

    @torch.no_grad()
    def update_center(self) -> None:
        """Moves the centre towards the mean of what all processes observed since the last update."""
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(self.pending_sum)
            dist.all_reduce(self.pending_count)
        if not self.pending_count.any():
            return
        mean = self.pending_sum / self.pending_count
        self.center.mul_(self.center_momentum).add_(mean, alpha=1 - self.center_momentum)
        self.pending_sum.zero_()
        self.pending_count.zero_()
