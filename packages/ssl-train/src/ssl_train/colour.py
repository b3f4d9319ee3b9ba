"""How are colours of a batch of crops changed?

Pillow's and torchvision's colour operations on float batches (N, 3, H, W) in [0, 255], each with one
parameter per crop, and one of histology: other amounts of stain. Values are clamped after every operation, as 8-bit
images are; they are not rounded.
"""

from __future__ import annotations

import torch
import torch.nn.functional as nnf
from torch import Tensor

_LUMA = (0.299, 0.587, 0.114)
WHITE = 255.0
# Optical density of haematoxylin, eosin and DAB in red, green and blue (Ruifrok and Johnston, 2001, Quantification of
# histochemical staining by color deconvolution), rows of unit length.
_STAINS = nnf.normalize(
    torch.tensor([[0.650, 0.704, 0.286], [0.072, 0.990, 0.105], [0.268, 0.570, 0.776]], dtype=torch.float64), dim=1
)
_SEPARATION = _STAINS.inverse()


def luma(images: Tensor) -> Tensor:
    """ITU-R 601 luma, (N, 1, H, W)."""
    red, green, blue = images.unbind(1)
    return (red * _LUMA[0]).add_(green, alpha=_LUMA[1]).add_(blue, alpha=_LUMA[2])[:, None]


def adjust_brightness(images: Tensor, factor_N: Tensor) -> Tensor:
    """Blends with black: 1 keeps, 0 is black."""
    return (images * factor_N[:, None, None, None]).clamp_(0, WHITE)


def adjust_contrast(images: Tensor, factor_N: Tensor) -> Tensor:
    """Blends with the mean luma of each crop."""
    mean = luma(images.mean(dim=(2, 3), keepdim=True))
    return torch.lerp(mean, images, factor_N[:, None, None, None]).clamp_(0, WHITE)


def adjust_saturation(images: Tensor, factor_N: Tensor) -> Tensor:
    """Blends with the luma of each pixel."""
    return torch.lerp(luma(images), images, factor_N[:, None, None, None]).clamp_(0, WHITE)


def adjust_hue(images: Tensor, shift_N: Tensor) -> Tensor:
    """Turns the hue by a share of the colour circle, keeping saturation and value of the HSV model."""
    red, green, blue = images.unbind(1)
    value = torch.maximum(torch.maximum(red, green), blue)
    chroma = value - torch.minimum(torch.minimum(red, green), blue)
    # Of grey pixels the differences are 0, whatever they are divided by.
    per_chroma = chroma.clamp(min=torch.finfo(images.dtype).tiny).reciprocal_()
    sector = torch.where(
        value == red,
        (green - blue).mul_(per_chroma),
        torch.where(value == green, (blue - red).mul_(per_chroma).add_(2), (red - green).mul_(per_chroma).add_(4)),
    )
    sector += 6 * shift_N[:, None, None]
    sector -= (sector / 6).floor_().mul_(6)
    # HSV to RGB in closed form: a channel falls from the value by the chroma times a share, which grows from 0 to 1
    # between 1 and 2 sectors away from the channel's own hue (red 0, green 2, blue 4), around the circle.
    own = torch.tensor([0.0, 2.0, 4.0], device=images.device, dtype=images.dtype)[None, :, None, None]
    away = (sector[:, None] - own).abs_()
    away = torch.minimum(away, 6 - away)
    return torch.addcmul(value[:, None], chroma[:, None], away.sub_(1).clamp_(0, 1), value=-1)


def solarise(images: Tensor, threshold: float = 128.0) -> Tensor:
    """Inverts what is at least as bright as the threshold (Pillow's ImageOps.solarize)."""
    return torch.where(images >= threshold, WHITE - images, images)


def adjust_stains(images: Tensor, factor_N3: Tensor, shift_N3: Tensor) -> Tensor:
    """Multiplies and shifts the amounts of haematoxylin, eosin and DAB (Tellez et al., arXiv 1808.05896).

    An amount is a coefficient of the optical density -ln((value + 1) / 256) in the stains' own densities: factors of 1
    and shifts of 0 change nothing.
    """
    stains, separation = _STAINS.to(images), _SEPARATION.to(images)
    # Separation, factors and composition are one matrix for each crop.
    mixed = separation * factor_N3[:, None, :] @ stains
    density = images.add(1).div_(WHITE + 1).log_().neg_().flatten(2)
    changed = torch.baddbmm((shift_N3 @ stains)[:, :, None], mixed.mT, density)
    return changed.neg_().exp_().mul_(WHITE + 1).sub_(1).clamp_(0, WHITE).reshape(images.shape)
