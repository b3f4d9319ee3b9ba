"""How dense are embeddings on the sphere, by a kernel?

An alternative to KoLeo that looks at all other images and not at the nearest one alone (Virchow2, arXiv 2408.00738,
which took it for pathology, where patches are often nearly the same).

Legend of shape suffixes: B images, D embedding dimension.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as nnf
from torch import Tensor


def kde_loss(embeddings_BD: Tensor, *, concentration: float = 5.0) -> Tensor:
    """Mean log density of each embedding under von Mises-Fisher kernels at the others, up to a constant.

    Minimising it spreads the embeddings; with the opposite sign, as in one public implementation, it would reward
    collapse. Calculated in float32 or better; zero, with zero gradient, for a batch of one.

    Args:
        embeddings_BD: one embedding per image, (B, D).
        concentration: of the kernels.

    Returns:
        A scalar between minus and plus `concentration`, which equal embeddings reach.
    """
    n_others = len(embeddings_BD) - 1
    with torch.autocast(embeddings_BD.device.type, enabled=False):
        embeddings_BD = embeddings_BD.to(torch.promote_types(embeddings_BD.dtype, torch.float32))
        if n_others < 1:
            return embeddings_BD.sum() * 0.0
        unit_BD = nnf.normalize(embeddings_BD, dim=-1)
        itself_BB = torch.eye(len(unit_BD), dtype=torch.bool, device=unit_BD.device)
        similarity_BB = (concentration * unit_BD @ unit_BD.T).masked_fill(itself_BB, -torch.inf)
        return similarity_BB.logsumexp(dim=1).mean() - math.log(n_others)
