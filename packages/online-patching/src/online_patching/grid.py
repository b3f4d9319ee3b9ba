"""Which patches of a regular grid hold enough foreground?

The grid is anchored at the slide's upper left corner: the patch in column *i* and row *j* has its corner at *i* and
*j* strides, rounded to whole level-0 pixels. Every patch whose corner lies on the slide belongs to it, also one that
reaches over the right or the lower edge, where it is white: tissue at the edges is not lost. The part beyond counts
as background.

All shares of a slide come at once, from running sums (``coverage``); those too near the bound for sums over a whole
slide are reckoned one by one.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from online_patching.coverage import RectangleAreas
from online_patching.outline import ROUNDING, Outline

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

# Cells whose shares are told at a time, so that a fine grid of a large slide does not fill the memory.
_CELLS_AT_ONCE = 1 << 20


def grid_positions(
    outline: Outline,
    *,
    size_level0_px: float,
    stride_level0_px: float,
    width_level0_px: int,
    height_level0_px: int,
    min_foreground: float,
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
    """Corners of the patches with enough foreground, row by row, each row from the left.

    Args:
        outline: Of the foreground, in level-0 pixels.
        size_level0_px: Side of a patch at level 0.
        stride_level0_px: From one patch to the next, at least 1.
        width_level0_px: Width of the slide.
        height_level0_px: Height of the slide.
        min_foreground: Least share of a patch's area inside the foreground; patches without any never count.

    Returns:
        Left and upper edges in level-0 pixels, int32 (N,).
    """
    if outline.bounds is None:
        return np.empty(0, np.int32), np.empty(0, np.int32)
    left, upper, right, lower = outline.bounds
    xs = _corners(left, right, size_level0_px, stride_level0_px, width_level0_px)
    ys = _corners(upper, lower, size_level0_px, stride_level0_px, height_level0_px)
    found_x, found_y = [np.empty(0, np.int32)], [np.empty(0, np.int32)]
    rows = max(1, _CELLS_AT_ONCE // max(1, len(xs)))
    for start in range(0, len(ys) if len(xs) else 0, rows):
        x, y = _enough(outline, xs, ys[start : start + rows], size_level0_px, min_foreground)
        found_x.append(x.astype(np.int32))
        found_y.append(y.astype(np.int32))
    return np.concatenate(found_x), np.concatenate(found_y)


def _corners(low: float, high: float, size: float, stride: float, extent: int) -> Floats:
    """Corners along one axis whose patches touch the foreground's bounds."""
    first = max(0, int((low - size) / stride) - 1)
    last = min(int(high / stride) + 1, int((extent - 1) / stride) + 1)
    corners = np.rint(np.arange(first, last + 1) * stride)
    kept: Floats = corners[(corners < extent) & (corners < high) & (corners + size > low)]
    return kept


def _enough(outline: Outline, xs: Floats, ys: Floats, size: float, min_foreground: float) -> tuple[Floats, Floats]:
    areas = RectangleAreas(outline, np.concatenate([xs, xs + size]), np.concatenate([ys, ys + size]))
    area = areas.between(xs, ys, xs + size, ys + size)
    least = max(min_foreground - ROUNDING, ROUNDING)
    enough = area >= least * size**2
    rows, columns = (np.abs(area - least * size**2) <= areas.error_px2).nonzero()
    enough[rows, columns] = outline.shares(xs[columns], ys[rows], size, size) >= least
    rows, columns = enough.nonzero()
    return xs[columns], ys[rows]
