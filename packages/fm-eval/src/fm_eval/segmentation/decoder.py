"""How do a ViT's frozen tokens become masks? A light Mask2Former, and what all decoders have in common.

As in Cheng et al. 2022, but for one grid of tokens and as small as the paper makes it on purpose (section IV-D.2:
32 queries, 4 encoder layers, 4 heads, feature size and hidden dimension 32, no ViT-Adapter):

1. tokens are projected to 32 channels and pass 4 encoder layers of plain self-attention (one grid needs no
   multi-scale deformable attention);
2. transposed convolutions double the grid until a cell is at most 4 pixels (a simple feature pyramid, Li et al.
   2022): the finest gives the features of the masks;
3. decoder layers let 32 queries look at the other grids in turn, coarse to fine, each only where its last mask
   was; the paper names no number, so it is Mask2Former's 9;
4. each query, after each layer, is a class (or none) and a mask.

The read-out is semantic: the score of a class at a pixel is the sum over queries of its probability times the
mask's. Before: attention, losses. After: training.
"""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from typing import Literal

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from fm_eval.errors import SegmentationError
from fm_eval.segmentation.attention import DecoderLayer, EncoderLayer, sine_positions
from fm_eval.segmentation.losses import class_masks, set_loss
from fm_eval.segmentation.matching import LossWeights

DecoderName = Literal["mask2former", "linear", "conv"]

_FINEST_CELL_PX = 4


class Decoder(nn.Module, ABC):
    """What training and evaluation ask of a decoder."""

    @abstractmethod
    def loss(self, tokens_BKhw: Tensor, labels_BSS: Tensor, generator: torch.Generator) -> Tensor:
        """Scalar to minimise, for tokens and the class numbers of their windows."""

    @abstractmethod
    def scores(self, tokens_BKhw: Tensor, *, size_px: int) -> Tensor:
        """Float32 (B, C, size_px, size_px) whose averages over windows are compared."""


class MaskDecoder(Decoder):
    """Mask2Former on one grid of frozen tokens.

    Args:
        embed_dim: K of the tokens.
        grid: tokens a side.
        classes: C, background among them; at most `queries`.
        window_px: side of the window that the tokens stand for.
        queries: Q.
        width: channels of features and queries, a multiple of 4 and of `heads`.
        heads: attention heads.
        encoder_layers: over the tokens.
        decoder_layers: over the queries.
        points: sampled for each mask's loss and for the matching.
        weights: of the loss terms.

    Raises:
        SegmentationError: sizes that do not fit each other.
    """

    def __init__(
        self,
        *,
        embed_dim: int,
        grid: int,
        classes: int,
        window_px: int = 224,
        queries: int = 32,
        width: int = 32,
        heads: int = 4,
        encoder_layers: int = 4,
        decoder_layers: int = 9,
        points: int = 12_544,
        weights: LossWeights | None = None,
    ) -> None:
        super().__init__()
        if width % heads or width % 4 or classes > queries or min(encoder_layers, decoder_layers, points) < 1:
            raise SegmentationError(
                f"mask2former: got width={width}, heads={heads}, queries={queries} for {classes} classes, "
                f"{encoder_layers} encoder and {decoder_layers} decoder layers, points={points}; width must be a "
                "multiple of heads and of 4, queries at least the number of classes, the others at least 1"
            )
        self.classes, self.points, self.weights = classes, points, weights or LossWeights()
        doublings = 0
        while window_px / (grid * 2**doublings) > _FINEST_CELL_PX:
            doublings += 1
        sides = [grid * 2**level for level in range(doublings + 1)]
        self.project = nn.Sequential(nn.Conv2d(embed_dim, width, 1), nn.GroupNorm(1, width))
        self.encoder = nn.ModuleList(EncoderLayer(width, heads, 4 * width) for _ in range(encoder_layers))
        self.doublings = nn.ModuleList(
            nn.Sequential(
                nn.ConvTranspose2d(width, width, 2, stride=2),
                nn.GroupNorm(1, width),
                nn.GELU(),
                nn.Conv2d(width, width, 3, padding=1),
                nn.GroupNorm(1, width),
                nn.GELU(),
            )
            for _ in range(doublings)
        )
        self.mask_features = nn.Conv2d(width, width, 1)
        self.decoder = nn.ModuleList(DecoderLayer(width, heads, 4 * width) for _ in range(decoder_layers))
        self.query = nn.Parameter(torch.randn(queries, width))
        self.query_positions = nn.Parameter(torch.randn(queries, width))
        # queries look at every grid but the finest, or at the only one
        self.levels = nn.Parameter(torch.randn(max(1, doublings), width))
        self.norm = nn.LayerNorm(width)
        self.class_head = nn.Linear(width, classes + 1)
        self.mask_head = nn.Sequential(
            nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width)
        )
        for level in range(max(1, doublings)):
            self.register_buffer(f"positions_{level}", sine_positions(sides[level], width), persistent=False)

    def forward(self, tokens_BKhw: Tensor) -> tuple[Tensor, Tensor]:
        """Class logits (L, B, Q, C + 1) and mask logits (L, B, Q, h', w'): first guess, then each layer."""
        encoded = self.project(tokens_BKhw)
        side = encoded.shape[-1]
        flat_BLD = encoded.flatten(2).transpose(1, 2)
        for layer in self.encoder:
            flat_BLD = layer(flat_BLD, self.positions_0)
        grids = [flat_BLD.transpose(1, 2).unflatten(2, (side, side))]
        for double in self.doublings:
            grids.append(double(grids[-1]))
        features = self.mask_features(grids[-1])
        memories = [
            (grid.flatten(2).transpose(1, 2) + level, getattr(self, f"positions_{number}"), grid.shape[-1])
            for number, (grid, level) in enumerate(zip(grids, self.levels, strict=False))
        ]
        queries = self.query.expand(len(tokens_BKhw), -1, -1)
        predictions = [self._predict(queries, features)]
        for layer, (memory, positions, memory_side) in zip(self.decoder, itertools.cycle(memories), strict=False):
            allowed = _seen(predictions[-1][1], memory_side)
            queries = layer(queries, self.query_positions, memory, positions, allowed)
            predictions.append(self._predict(queries, features))
        return torch.stack([kind for kind, _ in predictions]), torch.stack([mask for _, mask in predictions])

    def loss(self, tokens_BKhw: Tensor, labels_BSS: Tensor, generator: torch.Generator) -> Tensor:
        """Mask2Former's loss of all layers."""
        masks = class_masks(labels_BSS, classes=self.classes)
        class_logits, mask_logits = self(tokens_BKhw)
        with torch.autocast(masks.device.type, enabled=False):
            return set_loss(
                class_logits.float(),
                mask_logits.float(),
                masks,
                points=self.points,
                weights=self.weights,
                generator=generator,
            ).total

    def scores(self, tokens_BKhw: Tensor, *, size_px: int) -> Tensor:
        """Float32 (B, C, size_px, size_px): sum over queries of class times mask probability."""
        class_logits, mask_logits = self(tokens_BKhw)
        with torch.autocast(tokens_BKhw.device.type, enabled=False):
            masks = functional.interpolate(mask_logits[-1].float(), (size_px, size_px), mode="bilinear").sigmoid()
            kinds = class_logits[-1].float().softmax(-1)[..., :-1]
            return torch.einsum("bqc,bqhw->bchw", kinds, masks)

    def _predict(self, queries_BQD: Tensor, features_BDhw: Tensor) -> tuple[Tensor, Tensor]:
        queries = self.norm(queries_BQD)
        return self.class_head(queries), torch.einsum("bqd,bdhw->bqhw", self.mask_head(queries), features_BDhw)


def _seen(mask_logits_BQhw: Tensor, side: int) -> Tensor:
    """Where each query may look in a grid, bool (B, Q, side^2): its mask, or everywhere if the mask is empty."""
    shrunk = functional.interpolate(mask_logits_BQhw.detach().float(), (side, side), mode="bilinear").flatten(2)
    inside = shrunk > 0
    return inside | ~inside.any(-1, keepdim=True)
