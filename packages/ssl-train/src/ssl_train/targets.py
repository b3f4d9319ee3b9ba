"""What distribution over the prototypes does the teacher set as the target?

Two ways to keep the teacher from giving every image the same answer:

- `SoftmaxCentering`: subtract a running mean of the logits, then a sharp softmax (DINO, arXiv 2104.14294, section
  3.1; in DINOv2 dino_clstoken_loss.py and ibot_patch_loss.py, softmax_center_teacher),
- `sinkhorn_knopp`: assign samples to prototypes evenly (SwAV, arXiv 2006.09882, section 3.1; three iterations in
  DINOv2, sinkhorn_knopp_teacher).

Both work over all processes and accept a rank without samples.

Legend of shape suffixes: M samples, K prototypes.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ssl_train.row_blocks import row_blocks


class SoftmaxCentering(nn.Module):
    """Centred, sharpened softmax with a running centre.

    DINOv2 starts the reduction of a step's mean when the step ends and applies it just before the next softmax:
    every step uses the centre of the steps before it. Here `observe` gathers, and `update`, once at the end of an
    optimizer step, moves the centre: the same targets, and a checkpoint has no update outstanding.

    The mean of a step is the unweighted mean of the processes' means, as in the reference, also where they hold
    different numbers of samples; a process without samples does not count.

    Args:
        out_dim: number of prototypes K.
        momentum: share of the old centre that an update keeps.

    Raises:
        ValueError: a momentum outside [0, 1].
    """

    center: Tensor
    pending_sum: Tensor
    pending_count: Tensor

    def __init__(self, *, out_dim: int, momentum: float = 0.9) -> None:
        super().__init__()
        if not 0 <= momentum <= 1:
            raise ValueError(f"center_momentum {momentum}: must be between 0 and 1")
        self._momentum = momentum
        self.register_buffer("center", torch.zeros(1, out_dim))
        # What was observed since the last update; empty whenever a checkpoint is written.
        self.register_buffer("pending_sum", torch.zeros(1, out_dim), persistent=False)
        self.register_buffer("pending_count", torch.zeros(1), persistent=False)

    def forward(self, logits_MK: Tensor, *, temp: float) -> Tensor:
        """Targets (M, K) in float32 or better, without gradient, of logits with any leading dimensions."""
        logits = logits_MK.detach()
        targets = torch.empty(logits.shape, dtype=self.center.dtype, device=logits.device)
        for rows in row_blocks(logits):
            centred = logits[rows].to(self.center.dtype) - self.center
            torch.softmax(centred.div_(temp), dim=-1, out=targets[rows])
        return targets

    @torch.no_grad()
    def observe(self, logits_MK: Tensor) -> None:
        """Gathers logits (..., K) for the next update of the centre."""
        logits = logits_MK.detach().reshape(-1, logits_MK.shape[-1]).to(self.center.dtype)
        self.pending_sum += logits.sum(0, keepdim=True)
        self.pending_count += len(logits)

    @torch.no_grad()
    def update(self) -> None:
        """Moves the centre towards the mean of what was observed since the last update."""
        mean = self.pending_sum / self.pending_count.clamp(min=1.0)
        holders = (self.pending_count > 0).to(mean.dtype)
        packed = torch.cat([mean.flatten(), holders])
        if _distributed():
            dist.all_reduce(packed)
        mean, holders = packed[None, :-1] / packed[-1].clamp(min=1.0), packed[-1]
        moved = torch.lerp(mean, self.center, self._momentum)
        self.center.copy_(torch.where(holders > 0, moved, self.center))
        self.pending_sum.zero_()
        self.pending_count.zero_()


@torch.no_grad()
def sinkhorn_knopp(logits_MK: Tensor, *, temp: float, iterations: int = 3) -> Tensor:
    """Even assignment of all processes' samples to prototypes, (M, K) in float32 or better.

    Prototypes are normalised over all samples of all processes, then each sample over its prototypes. Constant
    factors (the total, the numbers of samples and prototypes) cancel in the next normalisation and are left out;
    so does the largest logit, which is subtracted to keep the exponential finite.

    Args:
        logits_MK: teacher logits of this process, M may be 0 on some.
        temp: temperature of the teacher.
        iterations: pairs of normalisations.
    """
    q_MK = logits_MK.detach().to(torch.promote_types(logits_MK.dtype, torch.float32)) / temp
    largest = q_MK.amax() if q_MK.numel() else q_MK.new_full((), -torch.inf)
    if _distributed():
        dist.all_reduce(largest, op=dist.ReduceOp.MAX)
    q_MK.sub_(largest).exp_()
    tiny = torch.finfo(q_MK.dtype).tiny
    for _ in range(iterations):
        per_prototype_1K = q_MK.sum(0, keepdim=True)
        if _distributed():
            dist.all_reduce(per_prototype_1K)
        q_MK /= per_prototype_1K.clamp(min=tiny)
        q_MK /= q_MK.sum(1, keepdim=True).clamp(min=tiny)
    return q_MK


def _distributed() -> bool:
    return dist.is_available() and dist.is_initialized()
