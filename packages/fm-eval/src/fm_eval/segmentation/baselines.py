"""How far do decoders without queries get? They show what the tokens hold by themselves.

`LinearDecoder` gives each token one score a class; `ConvDecoder` refines a small feature map before that. Both
are enlarged bilinearly and trained with `pixel_loss`. Before: losses, decoder. After: evaluate.
"""

from __future__ import annotations

import torch.nn.functional as functional
from torch import Generator, Tensor, nn

from fm_eval.segmentation.decoder import Decoder
from fm_eval.segmentation.losses import class_masks, pixel_loss


class LinearDecoder(Decoder):
    """One linear layer on each token.

    Args:
        embed_dim: K of the tokens.
        classes: C, background among them.
    """

    def __init__(self, *, embed_dim: int, classes: int) -> None:
        super().__init__()
        self.classes = classes
        self.layers: nn.Module = nn.Conv2d(embed_dim, classes, 1)

    def forward(self, tokens_BKhw: Tensor) -> Tensor:
        """(B, C, h', w') logits."""
        return self.layers(tokens_BKhw)  # type: ignore[no-any-return]

    def loss(self, tokens_BKhw: Tensor, labels_BSS: Tensor, generator: Generator) -> Tensor:  # noqa: ARG002
        """Cross-entropy plus DICE loss at the labels' resolution; draws no random numbers."""
        return pixel_loss(self(tokens_BKhw), class_masks(labels_BSS, classes=self.classes))

    def scores(self, tokens_BKhw: Tensor, *, size_px: int) -> Tensor:
        """Float32 (B, C, size_px, size_px) logits."""
        return functional.interpolate(self(tokens_BKhw).float(), (size_px, size_px), mode="bilinear")


class ConvDecoder(LinearDecoder):
    """Two 3 x 3 convolutions, on the grid of tokens and on one twice as fine, then a linear layer.

    Args:
        embed_dim: K of the tokens.
        classes: C, background among them.
        width: channels between.
    """

    def __init__(self, *, embed_dim: int, classes: int, width: int = 32) -> None:
        super().__init__(embed_dim=embed_dim, classes=classes)
        self.layers = nn.Sequential(
            nn.Conv2d(embed_dim, width, 3, padding=1),
            nn.GroupNorm(1, width),
            nn.GELU(),
            nn.ConvTranspose2d(width, width, 2, stride=2),
            nn.Conv2d(width, width, 3, padding=1),
            nn.GroupNorm(1, width),
            nn.GELU(),
            nn.Conv2d(width, classes, 1),
        )
