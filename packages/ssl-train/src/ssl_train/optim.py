"""What does the optimizer see: which parameters decay, and how large may a gradient be?"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn


def parameter_groups(module: nn.Module) -> list[dict[str, Any]]:
    """Two groups for AdamW: those that follow the weight-decay schedule, and those that never decay.

    Names that end in `.bias` and tensors of one dimension do not decay; `cls_token` and `pos_embed` do
    (DINO reference, utils.py, get_params_groups). Parameters without gradient are left out.
    """
    decayed: list[nn.Parameter] = []
    undecayed: list[nn.Parameter] = []
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            (undecayed if name.endswith(".bias") or parameter.ndim == 1 else decayed).append(parameter)
    return [{"params": decayed}, {"params": undecayed, "weight_decay": 0.0}]


def adamw(groups: list[dict[str, Any]], *, precision: str | int) -> torch.optim.AdamW:
    """AdamW with default betas for a method that sets learning rate and weight decay at every step.

    Args:
        groups: parameter groups.
        precision: Lightning's precision of the run.

    Raises:
        ValueError: weights of 16 bits, whose moving average stands still.
    """
    if precision in {"16-true", "bf16-true"}:
        raise ValueError(
            f"trainer.precision={precision}: a teacher of 16 bits cannot follow steps of 1 - momentum; "
            "take bf16-mixed, 16-mixed or 32-true"
        )
    # With a loss scale a fused optimizer unscales the gradients itself, and so only after they were clipped.
    return torch.optim.AdamW(groups, lr=0.0, weight_decay=0.0, fused=precision != "16-mixed")


@torch.no_grad()
def clip_gradients_per_parameter(parameters: Iterable[nn.Parameter], max_norm: float) -> None:
    """Scales every gradient whose own L2 norm exceeds `max_norm`, in place.

    DINO clips tensor by tensor, not by the global norm (utils.py, clip_gradients); the factor is
    `max_norm / (norm + 1e-6)` where that is below one.
    """
    gradients = [p.grad for p in parameters if p.grad is not None]
    if not gradients:
        return
    factors = torch._foreach_norm(gradients)
    torch._foreach_add_(factors, 1e-6)
    torch._foreach_reciprocal_(factors)
    torch._foreach_mul_(factors, max_norm)
    torch._foreach_clamp_max_(factors, 1.0)
    torch._foreach_mul_(gradients, factors)
