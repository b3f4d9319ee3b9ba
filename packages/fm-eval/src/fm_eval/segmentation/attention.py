"""What are the attention layers of the mask decoder made of?

Post-norm transformer layers, as in Mask2Former, with positions added to queries and keys only: `EncoderLayer`
over a grid of tokens, `DecoderLayer` with attention masked to where the last prediction sees its mask (Cheng et
al. 2022, section 3.2.1). After: decoder.

Shapes: B images, Q queries, L tokens, D width.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as functional
from torch import Tensor, nn


class Attention(nn.Module):
    """Multi-head attention; values come from the keys without their positions.

    Args:
        width: D, a multiple of `heads`.
        heads: attention heads.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))

    def forward(self, query_BQD: Tensor, key_BLD: Tensor, value_BLD: Tensor, allowed_BQL: Tensor | None) -> Tensor:
        """(B, Q, D); `allowed_BQL` is true where a query may look, in every head alike."""
        query, key, value = (
            project(tokens).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for project, tokens in ((self.query, query_BQD), (self.key, key_BLD), (self.value, value_BLD))
        )
        mask = None if allowed_BQL is None else allowed_BQL[:, None]
        attended = functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        return self.out(attended.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


class EncoderLayer(nn.Module):
    """Self-attention among tokens, then a feed-forward block."""

    def __init__(self, width: int, heads: int, feedforward: int) -> None:
        super().__init__()
        self.attention = Attention(width, heads)
        self.feedforward = _feedforward(width, feedforward)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))

    def forward(self, tokens_BLD: Tensor, positions_LD: Tensor) -> Tensor:
        """(B, L, D)."""
        placed = tokens_BLD + positions_LD
        tokens_BLD = self.norms[0](tokens_BLD + self.attention(placed, placed, tokens_BLD, None))
        return self.norms[1](tokens_BLD + self.feedforward(tokens_BLD))  # type: ignore[no-any-return]


class DecoderLayer(nn.Module):
    """Masked cross-attention to tokens, self-attention among queries, then a feed-forward block."""

    def __init__(self, width: int, heads: int, feedforward: int) -> None:
        super().__init__()
        self.cross, self.own = Attention(width, heads), Attention(width, heads)
        self.feedforward = _feedforward(width, feedforward)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(3))

    def forward(
        self,
        queries_BQD: Tensor,
        query_positions_QD: Tensor,
        tokens_BLD: Tensor,
        positions_LD: Tensor,
        allowed_BQL: Tensor,
    ) -> Tensor:
        """(B, Q, D)."""
        placed = queries_BQD + query_positions_QD
        queries_BQD = self.norms[0](
            queries_BQD + self.cross(placed, tokens_BLD + positions_LD, tokens_BLD, allowed_BQL)
        )
        placed = queries_BQD + query_positions_QD
        queries_BQD = self.norms[1](queries_BQD + self.own(placed, placed, queries_BQD, None))
        return self.norms[2](queries_BQD + self.feedforward(queries_BQD))  # type: ignore[no-any-return]


def sine_positions(side: int, width: int) -> Tensor:
    """Sine and cosine of y in the first half of the channels, of x in the second, float32 (side^2, width).

    Positions run over (0, 2 pi] whatever the side, so grids of several sides agree (Carion et al. 2020, DETR).
    """
    at = (torch.arange(side, dtype=torch.float32) + 1) / side * 2 * math.pi
    frequency = 10_000.0 ** (-torch.arange(0, width // 2, 2, dtype=torch.float32) / (width // 2))
    angle = at[:, None] * frequency
    along = torch.stack([angle.sin(), angle.cos()], dim=2).flatten(1)
    return torch.cat([along[:, None].expand(-1, side, -1), along[None].expand(side, -1, -1)], dim=2).flatten(0, 1)


def _feedforward(width: int, hidden: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, width))
