"""How are colours of a batch of crops changed?

Pillow's and torchvision's colour operations on float batches (N, 3, H, W) in [0, 255], each with one
parameter per crop. Values are clamped after every operation, as 8-bit images are; they are not rounded.
"""

from __future__ import annotations

import torch
from torch import Tensor

_LUMA = (0.299, 0.587, 0.114)
WHITE = 255.0


def luma(images: Tensor) -> Tensor:
    """ITU-R 601 luma, (N, 1, H, W)."""
    weights = torch.tensor(_LUMA, device=images.device, dtype=images.dtype)
    return torch.einsum("nchw,c->nhw", images, weights)[:, None]


def adjust_brightness(images: Tensor, factor_N: Tensor) -> Tensor:
    """Blends with black: 1 keeps, 0 is black."""
    return (images * factor_N[:, None, None, None]).clamp_(0, WHITE)


def adjust_contrast(images: Tensor, factor_N: Tensor) -> Tensor:
    """Blends with the mean luma of each crop."""
    mean = luma(images).mean(dim=(1, 2, 3), keepdim=True)
    return torch.lerp(mean, images, factor_N[:, None, None, None]).clamp_(0, WHITE)


def adjust_saturation(images: Tensor, factor_N: Tensor) -> Tensor:
    """Blends with the luma of each pixel."""
    return torch.lerp(luma(images), images, factor_N[:, None, None, None]).clamp_(0, WHITE)


def adjust_hue(images: Tensor, shift_N: Tensor) -> Tensor:
    """Turns the hue by a share of the colour circle, keeping saturation and value of the HSV model."""
    value, _ = images.max(1)
    low, _ = images.min(1)
    chroma = value - low
    red, green, blue = images.unbind(1)
    safe = torch.where(chroma > 0, chroma, 1.0)
    sector = torch.where(
        value == red,
        (green - blue) / safe,
        torch.where(value == green, (blue - red) / safe + 2, (red - green) / safe + 4),
    )
    sector = sector + 6 * shift_N[:, None, None]
    # HSV to RGB in closed form: each channel is value - chroma * clamp(min(k, 4 - k), 0, 1) with its own
    # offset of k.
    offset = torch.tensor([5.0, 3.0, 1.0], device=images.device, dtype=images.dtype)[None, :, None, None]
    k = torch.remainder(offset + sector[:, None], 6)
    return value[:, None] - chroma[:, None] * torch.minimum(k, 4 - k).clamp_(0, 1)


def solarise(images: Tensor, threshold: float = 128.0) -> Tensor:
    """Inverts what is at least as bright as the threshold (Pillow's ImageOps.solarize)."""
    return torch.where(images >= threshold, WHITE - images, images)
