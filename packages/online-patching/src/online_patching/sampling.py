"""Where on a slide does the next patch lie?

Pure functions of a counter-based random generator: the same (seed, sample number) gives the same choice on every
machine, rank and worker.

1. ``generator``: the random numbers of one sample;
2. ``sample_position``: a corner, uniform over all whole-pixel positions within the slide whose patch has at least
   ``min_foreground`` of its area inside the polygon, by rejection (exact, whatever the polygon's shape).
"""

from __future__ import annotations

import math
import threading
from dataclasses import dataclass
from typing import Any, overload

import numpy as np
import numpy.typing as npt

from online_patching.errors import SamplingError
from online_patching.outline import Outline

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

# A polygon that fills 1 % of its bounding box fails this often with probability 2e-44.
MAX_PROPOSALS = 10_000


@dataclass(frozen=True, slots=True)
class Position:
    """A sampled patch position.

    Attributes:
        x_level0_px: Left edge at level 0.
        y_level0_px: Upper edge at level 0.
        foreground: Share of the patch's area inside the polygon, 0 to 1.
    """

    x_level0_px: int
    y_level0_px: int
    foreground: float


class _ThreadNumbers(threading.local):
    """A thread's generator and the state it is set to: to make one costs ten times as much as to set it anew."""

    def __init__(self) -> None:
        self.philox = np.random.Philox(0)
        self.generator = np.random.Generator(self.philox)
        self.key, self.counter = np.zeros(2, np.uint64), np.zeros(4, np.uint64)
        # As ``np.random.Philox(key=key, counter=counter)`` starts.
        self.start: Any = {
            "bit_generator": "Philox",
            "state": {"counter": self.counter, "key": self.key},
            "buffer": np.zeros(4, np.uint64),
            "buffer_pos": 4,
            "has_uint32": 0,
            "uinteger": 0,
        }


_numbers = _ThreadNumbers()


def generator(seed: int, index: int, attempt: int = 0) -> np.random.Generator:
    """The random numbers of sample ``index``; ``attempt`` counts deterministic redraws of it.

    The object is the thread's own: the next call in the same thread sets it to another sample.
    """
    own = _numbers
    own.key[0] = seed
    own.counter[2], own.counter[3] = attempt, index
    own.philox.state = own.start
    return own.generator


@overload
def can_hold_patch(foreground_area_level0_px2: float, size_level0_px: float, min_foreground: float) -> bool: ...


@overload
def can_hold_patch(foreground_area_level0_px2: Floats, size_level0_px: Floats, min_foreground: float) -> Bools: ...


def can_hold_patch(
    foreground_area_level0_px2: float | Floats, size_level0_px: float | Floats, min_foreground: float
) -> bool | Bools:
    """Whether a polygon of this area, or each of many, can give a patch its share of foreground at all."""
    enough = foreground_area_level0_px2 >= min_foreground * size_level0_px**2
    return enough & (foreground_area_level0_px2 > 0)


def sample_position(
    outline: Outline,
    *,
    size_level0_px: float,
    width_level0_px: int,
    height_level0_px: int,
    min_foreground: float,
    rng: np.random.Generator,
) -> Position:
    """A patch position, uniform over all that have enough foreground.

    Args:
        outline: Of the foreground, in level-0 pixels.
        size_level0_px: Side of the patch at level 0.
        width_level0_px: Width of the slide; patches lie within it unless the slide is the smaller one.
        height_level0_px: Height of the slide.
        min_foreground: Least share of the patch's area inside the foreground; positions without any never count.
        rng: The sample's generator.

    Raises:
        SamplingError: No position was found.
    """
    left, upper, right, lower = outline.bounds or (0.0, 0.0, 0.0, 0.0)
    x_range = _axis_range(left, right, size_level0_px, width_level0_px, min_foreground)
    y_range = _axis_range(upper, lower, size_level0_px, height_level0_px, min_foreground)
    if outline.bounds is None or x_range[0] > x_range[1] or y_range[0] > y_range[1]:
        raise SamplingError(f"the foreground is too small for a patch of {size_level0_px:.0f} level-0 pixels")
    (first_x, end_x), (first_y, end_y) = (x_range[0], x_range[1] + 1), (y_range[0], y_range[1] + 1)
    for _ in range(MAX_PROPOSALS):
        x, y = int(rng.integers(first_x, end_x)), int(rng.integers(first_y, end_y))
        share = outline.share(x, y, size_level0_px)
        if share >= min_foreground and share > 0:
            return Position(x, y, share)
    raise SamplingError(
        f"no patch of {size_level0_px:.0f} level-0 pixels with {min_foreground:.0%} foreground in {MAX_PROPOSALS} draws"
    )


def _axis_range(low: float, high: float, size: float, extent: int, min_foreground: float) -> tuple[int, int]:
    """First and last corner along one axis that can reach the share, within the slide where it is large enough."""
    first, last = low - (1 - min_foreground) * size, high - min_foreground * size
    slack = extent - size
    first, last = max(first, min(0.0, slack)), min(last, max(0.0, slack))
    return math.ceil(first), math.floor(last)
