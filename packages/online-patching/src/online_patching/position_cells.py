"""Where can a patch with enough foreground lie at all?

Where tissue is thin, or a patch has to be nearly full of it, hardly any position in the polygon's bounds is allowed,
and to draw among all of them takes thousands of draws. ``cells_that_can_hold`` covers the allowed positions with
squares of positions: what the union of a square's patches holds is the most that one of them can, so a square without
enough there is left out. The others are halved until, by those in the middle of some of them, a good part of the
positions is allowed, or they are single positions. So none is left exactly where there is no position at all.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from online_patching.coverage import RectangleAreas
from online_patching.outline import Outline

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

# Cells along each axis to begin with, which are cheap: all of them are reckoned with at once.
_FIRST_CELLS = 128
# Halving ends where one draw in so many is allowed, or where there are so many cells.
_ENOUGH_ALLOWED, _MOST_CELLS = 1 / 16, 8192
# So many cells are looked at for that.
_LOOKED_AT = 128


@dataclass(frozen=True, slots=True)
class PositionCells:
    """Rectangles of positions that together hold all allowed ones.

    Attributes:
        x: First corner of each, int64 (N,).
        y: First corner of each.
        width: Positions of each along x; at least 1.
        height: Positions of each along y.
        ends: Running sum of the numbers of positions, float64 (N,).
    """

    x: Ints
    y: Ints
    width: Ints
    height: Ints
    ends: Floats

    @property
    def size_bytes(self) -> int:
        """Memory that they take."""
        return self.x.nbytes + self.y.nbytes + self.width.nbytes + self.height.nbytes + self.ends.nbytes

    def positions(self, numbers: Floats) -> tuple[Ints, Ints]:
        """Positions for random numbers, uniform over all positions of all cells.

        Args:
            numbers: Uniform in [0, 1), float64 (N, 2): one chooses the cell, the other a position in it.
        """
        cell = np.searchsorted(self.ends, numbers[:, 0] * self.ends[-1], side="right")
        width = self.width[cell]
        place = (numbers[:, 1] * (width * self.height[cell])).astype(np.int64)
        return self.x[cell] + place % width, self.y[cell] + place // width


def cells_that_can_hold(
    outline: Outline, size: float, least_share: float, x_range: tuple[int, int], y_range: tuple[int, int]
) -> PositionCells | None:
    """The cells for patches of a size, or None where no patch has enough foreground.

    Args:
        outline: Of the foreground.
        size: Side of the patches, in the outline's pixels.
        least_share: Least share of foreground, above 0.
        x_range: First and last corner along x.
        y_range: First and last corner along y.
    """
    longest = max(r[1] - r[0] + 1 for r in (x_range, y_range))
    # A power of two, which halves down to single positions.
    step = 1 << (-(-longest // _FIRST_CELLS) - 1).bit_length()
    xs, ys = (np.arange(r[0], r[1] + 1, step) for r in (x_range, y_range))
    rows, columns = (_most_areas(outline, xs, ys, size, step) >= least_share * size**2).nonzero()
    x, y = xs[columns], ys[rows]
    while (
        0 < len(x) <= _MOST_CELLS
        and step > 1
        and not _is_good(outline, x + step // 2, y + step // 2, size, least_share)
    ):
        step //= 2
        x = (x[:, None] + np.array([0, step, 0, step])).ravel()
        y = (y[:, None] + np.array([0, 0, step, step])).ravel()
        inside = ((x <= x_range[1]) & (y <= y_range[1])).nonzero()[0]
        x, y = x[inside], y[inside]
        # Of all patches of a cell together.
        reach = size + step - 1
        kept = (_shares(outline, x, y, reach) * reach**2 >= least_share * size**2).nonzero()[0]
        x, y = x[kept], y[kept]
    if not len(x):
        return None
    width, height = np.minimum(step, x_range[1] - x + 1), np.minimum(step, y_range[1] - y + 1)
    return PositionCells(x, y, width, height, np.cumsum((width * height).astype(np.float64)))


def _is_good(outline: Outline, x: Ints, y: Ints, size: float, least_share: float) -> bool:
    """Whether enough of the positions in the middle of cells are allowed, by some of them."""
    some = slice(None, None, -(-len(x) // _LOOKED_AT))
    allowed = _shares(outline, x[some], y[some], size) >= least_share
    return int(allowed.sum()) >= _ENOUGH_ALLOWED * len(allowed)


def _shares(outline: Outline, x: Ints, y: Ints, side: float) -> Floats:
    return outline.shares(x.astype(np.float64), y.astype(np.float64), side, side)


def _most_areas(outline: Outline, xs: Ints, ys: Ints, size: float, step: int) -> Floats:
    """Most area that a patch of each cell holds, of all cells of a regular grid at once."""
    x, y = xs.astype(np.float64), ys.astype(np.float64)
    reach = size + step - 1
    areas = RectangleAreas(outline, np.concatenate([x, x + reach]), np.concatenate([y, y + reach]))
    return areas.between(x, y, x + reach, y + reach) + areas.error_px2
