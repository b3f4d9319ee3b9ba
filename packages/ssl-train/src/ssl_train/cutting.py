"""How are all crops of one size made from a batch of patches?

On an accelerator all at once: resizing and blur are matrices, and every colour operation runs over the crops that take
part in it. On the CPU crop by crop, so that what one operation leaves is still in the cache when the next one comes,
with torch's kernel for resizing 8-bit images, which is Pillow's algorithm. Both follow Pillow to its rounding.

Legend of shape suffixes: B patches, N crops of one size, patch-major.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as nnf
from torch import Tensor

from ssl_train import colour
from ssl_train.crop_parameters import Bools, CropParameters, Ints
from ssl_train.resample import BOX_PASSES, blur_matrix, crop_resize_matrix

# Pixels that a blur of the largest radius reaches: its three boxes reach less than 2 each.
_BLUR_REACH = 2 * BOX_PASSES
# Rows of a blur that are computed together.
_BLOCK = 48
_JITTER = (colour.adjust_brightness, colour.adjust_contrast, colour.adjust_saturation, colour.adjust_hue)


def make_crops(patches: Tensor, parameters: CropParameters, size: int) -> Tensor:
    """Crops float (N, 3, size, size) in [0, 255] of uint8 patches (B, H, W, 3), on their device."""
    if patches.device.type != "cpu":
        crops = resize_crops(patches.float(), parameters, size)
        recolour(crops, parameters)
        return crops
    crops = torch.empty(len(parameters.top), 3, size, size, dtype=torch.float32)
    per_patch = len(crops) // len(patches)
    blurred = np.flatnonzero(parameters.blurs)
    blurs = dict(
        zip(blurred, blur_matrix(radius_N=_to(crops, parameters.blur_radius[blurred]), size=size), strict=True)
    )
    for n in range(len(crops)):
        resize_crop(patches[n // per_patch], parameters, n, out=crops[n])
        recolour_crop(crops[n : n + 1], parameters, n, blur=blurs.get(n))
    return crops


def resize_crop(patch: Tensor, parameters: CropParameters, n: int, *, out: Tensor) -> None:
    """Cuts, resizes, flips and transposes crop `n` out of a uint8 patch (H, W, 3) on the CPU, into (3, S, S)."""
    top, left = parameters.top[n], parameters.left[n]
    window = patch[top : top + parameters.height[n], left : left + parameters.width[n]]
    size = out.shape[-1]
    resized = nnf.interpolate(window.permute(2, 0, 1)[None], size=(size, size), mode="bicubic", antialias=True)[0]
    axes = [axis for axis, flips in ((1, parameters.flip_y), (2, parameters.flip_x)) if flips[n]]
    turned = resized.flip(axes) if axes else resized
    out.copy_(turned.mT if parameters.transpose[n] else turned)


def recolour_crop(crop: Tensor, parameters: CropParameters, n: int, *, blur: Tensor | None) -> None:
    """Stains, jitter, grey, blur (matrix (S, S)) and solarise of crop `n`, in place; crop (1, 3, S, S) in [0, 255]."""
    changed = crop
    if parameters.stains[n]:
        of_crop = slice(n, n + 1)
        factor, shift = (_to(crop, p[of_crop]) for p in (parameters.stain_factor, parameters.stain_shift))
        changed = colour.adjust_stains(changed, factor, shift)
    if parameters.jitters[n]:
        for number in parameters.jitter_order[n]:
            changed = _JITTER[number](changed, _to(crop, parameters.jitter[n : n + 1, number]))
    if parameters.greys[n]:
        changed = colour.luma(changed).expand_as(crop)
    if blur is not None:
        changed = apply_banded(blur, apply_banded(blur, changed).mT).mT
    if parameters.solarises[n]:
        changed = colour.solarise(changed)
    if changed is not crop:
        crop.copy_(changed)


def resize_crops(images: Tensor, parameters: CropParameters, size: int) -> Tensor:
    """Cuts, resizes, flips and transposes: (B, H, W, 3) to (N, 3, size, size) in [0, 255], patch-major."""
    batch, height, width, _ = images.shape

    def matrices(start: Ints, length: Ints, flip: Bools, in_size: int) -> Tensor:
        return crop_resize_matrix(
            start_N=_to(images, start),
            length_N=_to(images, length),
            flip_N=torch.from_numpy(flip).to(images.device),
            in_size=in_size,
            out_size=size,
        )

    rows = matrices(parameters.top, parameters.height, parameters.flip_y, height)
    columns = matrices(parameters.left, parameters.width, parameters.flip_x, width)
    n = len(rows)
    if n == 0:
        return images.new_zeros((0, 3, size, size))
    # Horizontal first, with the clamp of an 8-bit intermediate between the passes, as Pillow does.
    planes = images.permute(0, 2, 3, 1).reshape(batch, width, 3 * height)
    squeezed = (columns.reshape(batch, -1, width) @ planes).clamp_(0, colour.WHITE)
    squeezed = squeezed.reshape(n, size, 3, height)
    crops = torch.einsum("nxch,nyh->ncyx", squeezed, rows).clamp_(0, colour.WHITE)
    turned = torch.from_numpy(parameters.transpose).to(images.device)[:, None, None, None]
    return torch.where(turned, crops.mT, crops)


def recolour(crops: Tensor, parameters: CropParameters) -> None:
    """Stains, jitter, grey, blur and solarise, in place; crops (N, 3, S, S) in [0, 255]."""
    rows = np.flatnonzero(parameters.stains)
    if len(rows):
        chosen = torch.from_numpy(rows).to(crops.device)
        factor, shift = (_to(crops, p[rows]) for p in (parameters.stain_factor, parameters.stain_shift))
        crops[chosen] = colour.adjust_stains(crops[chosen], factor, shift)
    for stage in range(4):
        for number, operation in enumerate(_JITTER):
            rows = np.flatnonzero(parameters.jitters & (parameters.jitter_order[:, stage] == number))
            if len(rows):
                chosen = torch.from_numpy(rows).to(crops.device)
                crops[chosen] = operation(crops[chosen], _to(crops, parameters.jitter[rows, number]))
    for rows, change in (
        (np.flatnonzero(parameters.greys), lambda x, _: colour.luma(x).expand_as(x)),
        (np.flatnonzero(parameters.blurs), _blur),
        (np.flatnonzero(parameters.solarises), lambda x, _: colour.solarise(x)),
    ):
        if len(rows):
            chosen = torch.from_numpy(rows).to(crops.device)
            crops[chosen] = change(crops[chosen], _to(crops, parameters.blur_radius[rows]))


def apply_banded(matrix: Tensor, crops: Tensor) -> Tensor:
    """`matrix @ crops` of a blur, (S, S) and (..., S, S), without most of its zeros."""
    size = len(matrix)
    parts = []
    for start in range(0, size, _BLOCK):
        stop = min(start + _BLOCK, size)
        near = slice(max(0, start - _BLUR_REACH), stop + _BLUR_REACH)
        parts.append(matrix[start:stop, near] @ crops[..., near, :])
    return torch.cat(parts, dim=-2)


def _blur(crops: Tensor, radius_N: Tensor) -> Tensor:
    matrix = blur_matrix(radius_N=radius_N, size=crops.shape[-1])[:, None]
    return matrix @ crops @ matrix.mT


def _to(like: Tensor, values: npt.NDArray[np.generic]) -> Tensor:
    return torch.from_numpy(values).to(device=like.device, dtype=like.dtype)
