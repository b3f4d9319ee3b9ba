"""At which rate does each layer of DINOv2 learn, and how large may its gradients be?

Layers nearer to the pixels learn more slowly (BEiT, arXiv 2106.08254, section 3.1; dinov2/utils/param_groups.py),
and each submodule's gradients are clipped by their common norm (ssl_meta_arch.py, train.py).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.tensor import DTensor

from ssl_train.dinov2_network import DINOv2Network

_BLOCK = re.compile(r"blocks\.(\d+)\.")
_EMBEDDINGS = ("cls_token", "reg_token", "pos_embed", "patch_embed", "norm_pre")


@dataclass(slots=True)
class ParameterGroup:
    """Parameters whose rates follow the schedules with the same factors.

    Attributes:
        lr_multiplier: factor of the learning rate.
        wd_multiplier: factor of the weight decay, 0 or 1.
        is_last_layer: prototypes, whose learning rate is 0 while they are frozen.
        parameters: the parameters.
    """

    lr_multiplier: float
    wd_multiplier: float
    is_last_layer: bool
    parameters: list[nn.Parameter] = field(default_factory=list)


def layer_decay_groups(network: DINOv2Network, *, decay: float, patch_embed_multiplier: float) -> list[ParameterGroup]:
    """Groups of a student's parameters, in the order of their first parameter.

    Block i of n learns at `decay ** (n - i)`, everything before the blocks at `decay ** (n + 1)`, the final norm
    and the heads at 1; the patch embedding at `patch_embed_multiplier` of its layer's rate. Biases, norms and
    LayerScale do not decay; tokens, positions and prototypes with their lengths do.

    Args:
        network: the student.
        decay: factor from one layer to the one before it; 1 is off.
        patch_embed_multiplier: further factor of the patch embedding.
    """
    groups: dict[tuple[float, float, bool], ParameterGroup] = {}
    n_blocks = len(network.backbone.blocks)
    for name, parameter in network.named_parameters():
        lr = _lr_multiplier(name, n_blocks, decay)
        if "patch_embed" in name:
            lr *= patch_embed_multiplier
        wd = 0.0 if name.endswith(".bias") or "norm" in name or "gamma" in name else 1.0
        key = (lr, wd, "last_layer" in name)
        groups.setdefault(key, ParameterGroup(*key)).parameters.append(parameter)
    return list(groups.values())


def _lr_multiplier(name: str, n_blocks: int, decay: float) -> float:
    if name in ("mask_token", "cls_position"):
        return decay ** (n_blocks + 1)
    if not name.startswith("backbone."):
        return 1.0
    name = name.removeprefix("backbone.")
    if name.startswith(_EMBEDDINGS):
        return decay ** (n_blocks + 1)
    block = _BLOCK.match(name)
    return decay ** (n_blocks - int(block.group(1))) if block else 1.0


@torch.no_grad()
def clip_gradients_by_norm(parameters: Iterable[nn.Parameter], max_norm: float) -> torch.Tensor:
    """Scales gradients whose common L2 norm exceeds `max_norm`, in place; returns the norm before.

    The norm is that of the whole gradients also where all of them are sharded. A `max_norm` of 0 only measures.
    """
    gradients = [p.grad for p in parameters if p.grad is not None]
    shards = [g.to_local() if isinstance(g, DTensor) else g for g in gradients]
    square = torch.stack(torch._foreach_norm(shards)).square().sum()
    if isinstance(gradients[0], DTensor):
        dist.all_reduce(square, group=gradients[0].device_mesh.get_group())
    norm = square.sqrt()
    if max_norm > 0:
        torch._foreach_mul_(shards, (max_norm / (norm + 1e-6)).clamp(max=1.0))
    return norm
