"""Which linear map does a crop-and-resize, and which does a blur, apply along one axis?

Both are separable, so a whole batch of crops of one size is two batched matrix products. The matrices
reproduce Pillow: bicubic with antialiasing, and its Gaussian blur made of three box blurs. The caller
applies them.

Legend of shape suffixes: N crops, S output pixels, L input pixels.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

BOX_PASSES = 3


def crop_resize_matrix(*, start_N: Tensor, length_N: Tensor, flip_N: Tensor, in_size: int, out_size: int) -> Tensor:
    """Matrices that cut `[start, start + length)` out of an axis and resize it to `out_size`, (N, S, L).

    Keys' bicubic kernel with a = -0.5, widened by the scale where the crop shrinks; samples outside the crop
    are left out and the weights normalised, as Pillow and torchvision (antialias=True) do.

    Args:
        start_N: first pixel of the crop, float (N,).
        length_N: pixels of the crop, float (N,).
        flip_N: mirror the result, bool (N,).
        in_size: pixels L of the input axis.
        out_size: pixels S of the output axis.
    """
    device, dtype = start_N.device, start_N.dtype
    scale_N11 = (length_N / out_size)[:, None, None]
    support_N11 = scale_N11.clamp(min=1.0)
    out_S = torch.arange(out_size, device=device, dtype=dtype)
    out_NS = torch.where(flip_N[:, None], out_size - 1 - out_S, out_S)
    position_N1L = torch.arange(in_size, device=device, dtype=dtype) - start_N[:, None, None]
    distance_NSL = (position_N1L + 0.5 - (out_NS[:, :, None] + 0.5) * scale_N11) / support_N11
    inside_N1L = (position_N1L >= 0) & (position_N1L < length_N[:, None, None])
    weight_NSL = _bicubic(distance_NSL.abs()) * inside_N1L
    return weight_NSL / weight_NSL.sum(-1, keepdim=True)


def _bicubic(x: Tensor) -> Tensor:
    a = -0.5
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * a
    return torch.where(x < 1, near, torch.where(x < 2, far, 0.0))


def blur_matrix(*, radius_N: Tensor, size: int) -> Tensor:
    """Matrices of Pillow's Gaussian blur along an axis, (N, size, size).

    Args:
        radius_N: standard deviation in pixels, float (N,), above 0.
        size: pixels of the axis.
    """
    once = box_blur_matrix(radius_N=radius_N, size=size)
    result = once
    for _ in range(BOX_PASSES - 1):
        result = result @ once
    return result


def box_blur_matrix(*, radius_N: Tensor, size: int) -> Tensor:
    """Matrices of one of the box blurs that make a Gaussian blur, (N, size, size).

    Pillow approximates a Gaussian by box blurs of fractional radius and repeats the border pixels in each
    (Gwosdek et al., Theoretical foundations of Gaussian convolution by extended box filtering, 2011,
    equations 7, 11, 14).

    Args:
        radius_N: standard deviation of the Gaussian in pixels, float (N,), above 0.
        size: pixels of the axis.
    """
    variance_N = radius_N**2 / BOX_PASSES
    whole_N = ((torch.sqrt(12 * variance_N + 1) - 1) / 2).floor()
    part_N = (2 * whole_N + 1) * (whole_N * (whole_N + 1) - 3 * variance_N)
    part_N = part_N / (6 * (variance_N - (whole_N + 1) ** 2))
    box_N11 = (whole_N + part_N)[:, None, None]
    pad = math.ceil(float(box_N11.max())) if len(radius_N) else 0
    row = torch.arange(size, device=radius_N.device, dtype=radius_N.dtype)
    column = torch.arange(-pad, size + pad, device=radius_N.device, dtype=radius_N.dtype)
    padded = (box_N11 + 1 - (row[:, None] - column).abs()).clamp(0, 1) / (2 * box_N11 + 1)
    once = padded[:, :, pad : pad + size].clone()
    once[:, :, 0] += padded[:, :, :pad].sum(-1)
    once[:, :, -1] += padded[:, :, pad + size :].sum(-1)
    return once
