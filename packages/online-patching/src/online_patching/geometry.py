"""Where does a patch lie, in the pixels of which level?

A patch is a square of ``size_px`` pixels at ``mpp`` um/px whose top left corner is given in level-0 pixels. This
module turns it into a window of one stored level, in two pure steps:

1. ``choose_level``: the level policy (``finer`` or ``closest``);
2. ``window_at_level``: the patch's footprint in that level's pixels, rounded to whole pixels.

Sub-pixel convention: pixel *i* covers the interval [i, i + 1). A window is whole pixels of the level that is read, so
that a patch at a stored resolution is stored pixels, not a blend of them: its side is the footprint's, rounded, and it
lies where its centre is nearest to the footprint's. Its centre is displaced by at most half a pixel of that level, an
edge by at most three quarters, and the scale is off by at most 1 / (2 size) for a footprint of ``size`` pixels (one of
less than a pixel is a whole one). OpenSlide shifts by fractions of a pixel, which blends neighbours; tiffslide rounds
the corner down.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar, get_args, overload

import numpy as np
import numpy.typing as npt

from online_patching.errors import MagnificationError

LevelPolicy = Literal["finer", "closest"]
MissingMpp = Literal["skip", "enlarge", "error"]
F = TypeVar("F", float, npt.NDArray[np.float64])

# A level counts as fine enough up to 5 % above the target, and level 0 may be enlarged up to 25 %
# (scanners of 0.27 um/px are 40x scanners).
FINER_TOLERANCE = 1.05
MAX_ENLARGEMENT = 1.25


@dataclass(frozen=True, slots=True)
class LevelGeometry:
    """Size and tile grid of one stored level.

    Attributes:
        width_px: Width in pixels of this level.
        height_px: Height in pixels of this level.
        tile_width_px: Width of a stored tile.
        tile_height_px: Height of a stored tile.
        downsample: Level-0 pixels per pixel of this level (mean of both axes; 1.0 at level 0).
    """

    width_px: int
    height_px: int
    tile_width_px: int
    tile_height_px: int
    downsample: float

    @property
    def tiles_x(self) -> int:
        """Number of tile columns."""
        return -(-self.width_px // self.tile_width_px)

    @property
    def tiles_y(self) -> int:
        """Number of tile rows."""
        return -(-self.height_px // self.tile_height_px)


@dataclass(frozen=True, slots=True)
class LevelWindow:
    """A rectangle in the pixels of one level; it may reach past the level's edges.

    Attributes:
        level: Index of the level.
        x_level_px: Left edge.
        y_level_px: Upper edge.
        width_level_px: Width, at least 1.
        height_level_px: Height, at least 1.
    """

    level: int
    x_level_px: int
    y_level_px: int
    width_level_px: int
    height_level_px: int


def footprint_level0_px(size_px: int, mpp: float, base_mpp: F) -> F:
    """Side of a patch in level-0 pixels, of one slide or of an array of slides."""
    return size_px * mpp / base_mpp


@overload
def serves_mpp(base_mpp: float, mpp: float) -> bool: ...


@overload
def serves_mpp(base_mpp: npt.NDArray[np.float64], mpp: float) -> npt.NDArray[np.bool_]: ...


def serves_mpp(base_mpp: float | npt.NDArray[np.float64], mpp: float) -> bool | npt.NDArray[np.bool_]:
    """Whether a slide of ``base_mpp``, or each of many, serves the target without being enlarged by more than 1.25."""
    return base_mpp <= mpp * MAX_ENLARGEMENT


def enlargement(level_mpp: float, mpp: float) -> float:
    """How many times a level is enlarged for a target resolution; 1.0 where it is shrunk or read as stored.

    Up to ``FINER_TOLERANCE`` a level counts as the target's own; what is beyond is to be counted by who reads it.

    Args:
        level_mpp: um per pixel of the level that is read.
        mpp: Target um per pixel.
    """
    return max(1.0, level_mpp / mpp)


def choose_level(
    downsamples: Sequence[float],
    *,
    base_mpp: float,
    mpp: float,
    policy: LevelPolicy = "finer",
    enlarge: bool = False,
) -> int:
    """Index of the level to read for a target resolution.

    Args:
        downsamples: Downsample of every level, level 0 first.
        base_mpp: um per pixel of level 0.
        mpp: Target um per pixel.
        policy: ``finer`` takes the coarsest level whose mpp is at most 1.05 x the target, so nothing is enlarged
            silently; ``closest`` the level of the smallest ``|log(mpp of level / target)|`` (paper, section IV-B).
        enlarge: Accept level 0 even where it must be enlarged by more than 1.25.

    Raises:
        MagnificationError: Level 0 is coarser than 1.25 x the target and ``enlarge`` is False.
    """
    if policy not in get_args(LevelPolicy):
        raise ValueError(f"level policy: got {policy!r}, allowed {get_args(LevelPolicy)}")
    if not enlarge and not serves_mpp(base_mpp, mpp):
        raise MagnificationError(
            f"asked for {mpp:g} um/px, but level 0 has {base_mpp:g} um/px and would be enlarged {base_mpp / mpp:.2f}"
            f" times (allowed: {MAX_ENLARGEMENT:g}); ask for a coarser mpp or pass on_missing_mpp='enlarge'"
        )
    if policy == "closest":
        return min(range(len(downsamples)), key=lambda level: abs(math.log(base_mpp * downsamples[level] / mpp)))
    fine_enough = [k for k, down in enumerate(downsamples) if base_mpp * down <= FINER_TOLERANCE * mpp]
    return max(fine_enough, key=lambda level: downsamples[level], default=0)


def window_at_level(
    *,
    x_level0_px: float,
    y_level0_px: float,
    size_level0_px: float,
    level: int,
    downsample: float,
) -> LevelWindow:
    """The patch's footprint in whole pixels of one level: the nearest side, then the nearest centre."""
    size_level_px = size_level0_px / downsample
    side = max(1, round(size_level_px))
    inset = (size_level_px - side) / 2
    return LevelWindow(
        level, round(x_level0_px / downsample + inset), round(y_level0_px / downsample + inset), side, side
    )
