"""How far is the student from the teacher, token by token and view by view?

The two cross-entropies of DINOv2 (arXiv 2304.07193, section 4; dino_clstoken_loss.py, ibot_patch_loss.py,
ssl_meta_arch.py). Both take targets that are ready, see `targets`.

Legend of shape suffixes: B images, L local crops, 2 global crops, M masked tokens, K prototypes.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as nnf
from torch import Tensor

from ssl_train.row_blocks import row_blocks


def cls_losses(
    global_2BK: Tensor, local_LBK: Tensor, targets_2BK: Tensor, *, student_temp: float
) -> tuple[Tensor, Tensor]:
    """Cross-entropies of [CLS] between views: (global crops, local crops).

    Every local crop is compared with both targets, every global crop with the target of the other one. Both
    sums are divided by the number of pairs, 2 + 2L (3 where there are no local crops, as in the reference).

    Args:
        global_2BK: student logits of the global crops.
        local_LBK: student logits of the local crops; L may be 0.
        targets_2BK: targets of the two global crops, each of its own view.
        student_temp: temperature of the student.

    Returns:
        Two scalars in float32 or better.
    """
    n_pairs = 2 + max(2 * len(local_LBK), 1)
    global_loss = _cross_entropy(targets_2BK.flip(0), global_2BK, student_temp, spend_targets=True).mean(-1).sum()
    if len(local_LBK) == 0:
        return global_loss / n_pairs, torch.zeros_like(global_loss)
    # The targets of both views at once: one pass over the local logits instead of two.
    local_loss = _cross_entropy(targets_2BK.sum(0), local_LBK, student_temp, total=2).mean(-1).sum()
    return global_loss / n_pairs, local_loss / n_pairs


def masked_patch_loss(
    student_MK: Tensor,
    targets_MK: Tensor,
    weight_M: Tensor,
    *,
    n_crops: int,
    student_temp: float,
    spend_targets: bool = False,
) -> Tensor:
    """Cross-entropy of the masked tokens: the mean within each crop, then over all crops, unmasked ones included.

    Args:
        student_MK: student logits of the masked tokens; M may be 0.
        targets_MK: the teacher's targets of the same tokens.
        weight_M: 1 / number of masked tokens of the same crop.
        n_crops: number of global crops, masked or not.
        student_temp: temperature of the student.
        spend_targets: the gradient may take the memory of the targets, whose values are gone then. It is as large as
            the logits: 60 MB for four images and 65,536 prototypes.

    Returns:
        A scalar in float32 or better.
    """
    loss_M = _cross_entropy(targets_MK, student_MK, student_temp, spend_targets=spend_targets)
    return (loss_M * weight_M.to(loss_M.dtype)).sum() / n_crops


def _cross_entropy(
    targets: Tensor, logits: Tensor, temp: float, *, total: int = 1, spend_targets: bool = False
) -> Tensor:
    """Cross-entropy over the last dimension, broadcast over the leading ones; targets are positive, with this sum."""
    loss: Tensor = _CrossEntropy.apply(logits, targets, temp, total, spend_targets)
    return loss


class _CrossEntropy(torch.autograd.Function):
    """Of targets with sum T, at z = logits / temp: T logsumexp(z) - <targets, z>.

    The gradient is (T softmax(z) - targets) / temp. With tens of thousands of prototypes a tensor of the logits' size
    costs more to write than to calculate: here one is written, which the backward pass hands over. It may take the
    memory of the targets.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, given: Tensor, temp: float, total: int, spend: bool) -> Tensor:
        dtype = torch.promote_types(logits.dtype, torch.float32)
        targets = given.to(dtype).broadcast_to(logits.shape)
        in_place = spend and given.dtype == dtype and given.shape == logits.shape
        difference = given if in_place else torch.empty(logits.shape, dtype=dtype, device=logits.device)
        loss = torch.empty(logits.shape[:-1], dtype=dtype, device=logits.device)
        for rows in row_blocks(logits):
            z = logits[rows].to(dtype) / temp
            largest = z.max(-1, keepdim=True)
            softmax = nnf.softmax(z, dim=-1)
            log_sum = largest.values - softmax.gather(-1, largest.indices).log()
            torch.sub(total * log_sum[..., 0], torch.linalg.vecdot(targets[rows], z), out=loss[rows])
            torch.sub(softmax, targets[rows], alpha=1 / total, out=difference[rows])
        ctx.difference, ctx.factor, ctx.dtype = difference, total / temp, logits.dtype
        return loss

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        difference, ctx.difference = ctx.difference, None
        assert difference is not None, "a second backward pass would need the difference again"
        return difference.mul_((gradients[0] * ctx.factor)[..., None]).to(ctx.dtype), None, None, None, None
