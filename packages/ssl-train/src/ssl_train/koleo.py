"""How evenly are embeddings spread over the sphere?

KoLeo (Sablayrolles et al., arXiv 1806.03198, section 3.1): minus the mean logarithm of the distance to the
nearest neighbour. DINOv2 adds it for each global view apart, within a rank (dinov2/loss/koleo_loss.py).

Legend of shape suffixes: B images, D embedding dimension.
"""

from __future__ import annotations

import torch
import torch.nn.functional as nnf
from torch import Tensor

_EPSILON = 1e-8


def koleo_loss(embeddings_BD: Tensor) -> Tensor:
    """Kozachenko-Leonenko estimate of minus the entropy of the normalised embeddings.

    Calculated in float32 or better whatever autocast says: the epsilon vanishes in half precision. Duplicates
    and a batch of one stay finite; a single row gets no gradient.

    Args:
        embeddings_BD: one embedding per image, (B, D).

    Returns:
        A scalar.
    """
    with torch.autocast(embeddings_BD.device.type, enabled=False):
        embeddings_BD = embeddings_BD.to(torch.promote_types(embeddings_BD.dtype, torch.float32))
        unit_BD = nnf.normalize(embeddings_BD, dim=-1, eps=_EPSILON)
        with torch.no_grad():
            nearest_B = (unit_BD @ unit_BD.T).fill_diagonal_(-1.0).argmax(dim=1)
        distance_B = nnf.pairwise_distance(unit_BD, unit_BD[nearest_B], p=2.0, eps=_EPSILON)
        return -(distance_B + _EPSILON).log().mean()
