"""Where on a slide does the next patch lie?

Pure functions of a counter-based random generator: the same (seed, sample number) gives the same choice on every
machine, rank and worker.

1. ``generator``: the random numbers of one sample;
2. ``sample_position``: a corner, uniform over all whole-pixel positions within the slide whose patch has at least
   ``min_foreground`` of its area inside the polygon; ``sample_positions`` the same for many samples of one polygon.

Positions come by rejection, which is exact whatever the polygon's shape: first among all in the polygon's bounds, a
few one by one and then some at once; where none of these will do, among those that can have enough foreground at all
(``position_cells``). Every one of these draws is uniform over the allowed positions if it is one of them, so the first
that is allowed is.
"""

from __future__ import annotations

import itertools
import math
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, overload

import numpy as np
import numpy.typing as npt

from online_patching.cache import BoundedCache
from online_patching.errors import SamplingError
from online_patching.outline import ROUNDING, Outline
from online_patching.position_cells import PositionCells, cells_that_can_hold

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

# Draws among all positions in the bounds: so many one by one, since the first often does; then so many at once, each
# of which costs a tenth. Together they cost about as much as finding the cells.
ONE_BY_ONE, AT_ONCE = 6, (10, 16, 32)
# Draws within the cells. Halving them ends early only where they are very many; then one draw in hundreds still does.
CELL_DRAWS, MOST_CELL_DRAWS = 32, 16_384
# Of recently used outlines, for patches of their sizes: numbers and bytes of what is kept.
KEPT_CELLS, KEPT_CELL_BYTES = 8192, 32 * 2**20


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


@dataclass(frozen=True, slots=True)
class Allowed:
    """Which positions of a patch are allowed.

    Attributes:
        size_level0_px: Side of the patch at level 0.
        min_foreground: Least share of the patch's area inside the foreground, to within ``outline.ROUNDING``;
            positions without any are never allowed.
        x_range_level0_px: First and last left edge within the slide that can reach the share.
        y_range_level0_px: First and last upper edge.
    """

    size_level0_px: float
    min_foreground: float
    x_range_level0_px: tuple[int, int]
    y_range_level0_px: tuple[int, int]

    @classmethod
    def within(
        cls,
        outline: Outline,
        *,
        size_level0_px: float,
        width_level0_px: int,
        height_level0_px: int,
        min_foreground: float,
    ) -> Allowed:
        """The positions on a slide; see ``sample_position`` for the arguments.

        Raises:
            SamplingError: The foreground's bounds are too small for any.
        """
        if outline.bounds is not None:
            left, upper, right, lower = outline.bounds
            x_range = _axis_range(left, right, size_level0_px, width_level0_px, min_foreground)
            y_range = _axis_range(upper, lower, size_level0_px, height_level0_px, min_foreground)
            if x_range[0] <= x_range[1] and y_range[0] <= y_range[1]:
                return cls(size_level0_px, min_foreground, x_range, y_range)
        raise SamplingError(f"the foreground is too small for a patch of {size_level0_px:.0f} level-0 pixels")

    @property
    def least_share(self) -> float:
        """From which share on a position is allowed: what rounding could decide, it does not."""
        return max(self.min_foreground - ROUNDING, ROUNDING)

    def places(self, numbers: Floats) -> tuple[Ints, Ints]:
        """Positions in these ranges for random numbers in [0, 1), float64 (N, 2)."""
        (first_x, last_x), (first_y, last_y) = self.x_range_level0_px, self.y_range_level0_px
        x = first_x + (numbers[:, 0] * (last_x - first_x + 1)).astype(np.int64)
        return x, first_y + (numbers[:, 1] * (last_y - first_y + 1)).astype(np.int64)

    def cells(self, outline: Outline) -> PositionCells:
        """The cells that hold all allowed positions; kept while they are in use.

        Raises:
            SamplingError: There is no allowed position.
        """
        key = outline.number, self
        kept = _cells.peek(key)
        if kept is None:
            found = cells_that_can_hold(
                outline, self.size_level0_px, self.least_share, self.x_range_level0_px, self.y_range_level0_px
            )
            kept = _cells.put(key, (found,), found.size_bytes if found is not None else 0)
        (cells,) = kept
        if cells is None:
            raise SamplingError(
                f"no patch of {self.size_level0_px:.0f} level-0 pixels has {self.min_foreground:.0%} foreground"
            )
        return cells


# Cells by the number of their outline; (None,) where no position is allowed.
_cells: BoundedCache[tuple[int, Allowed], tuple[PositionCells | None]] = BoundedCache(
    KEPT_CELLS, max_bytes=KEPT_CELL_BYTES
)


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
        SamplingError: There is no such position.
    """
    allowed = Allowed.within(
        outline,
        size_level0_px=size_level0_px,
        width_level0_px=width_level0_px,
        height_level0_px=height_level0_px,
        min_foreground=min_foreground,
    )
    (first_x, last_x), (first_y, last_y) = allowed.x_range_level0_px, allowed.y_range_level0_px
    count_x, count_y = last_x - first_x + 1, last_y - first_y + 1
    least_share = allowed.least_share
    numbers = iter(rng.random(2 * ONE_BY_ONE).tolist())
    for number_x, number_y in zip(numbers, numbers, strict=True):
        x, y = first_x + int(number_x * count_x), first_y + int(number_y * count_y)
        share = outline.share(x, y, size_level0_px)
        if share >= least_share:
            return Position(x, y, share)
    return _position_among_many(outline, allowed, rng)


def _position_among_many(outline: Outline, allowed: Allowed, rng: np.random.Generator) -> Position:
    """A position from the draws that follow on those made one by one."""
    size = allowed.size_level0_px
    for x, y in _many_draws(outline, allowed, rng):
        shares = outline.shares(x.astype(np.float64), y.astype(np.float64), size, size)
        good = (shares >= allowed.least_share).nonzero()[0]
        if len(good):
            found_x, found_y = x.item(good[0]), y.item(good[0])
            return Position(found_x, found_y, outline.share(found_x, found_y, size))
    raise SamplingError(
        f"no patch of {size:.0f} level-0 pixels with {allowed.min_foreground:.0%} foreground in {MOST_CELL_DRAWS} draws"
        " where it could lie"
    )


def _many_draws(outline: Outline, allowed: Allowed, rng: np.random.Generator) -> Iterator[tuple[Ints, Ints]]:
    for draws in AT_ONCE:
        yield allowed.places(rng.random((draws, 2)))
    cells = allowed.cells(outline)
    for _ in range(MOST_CELL_DRAWS // CELL_DRAWS):
        yield cells.positions(rng.random((CELL_DRAWS, 2)))


def sample_positions(
    outline: Outline,
    *,
    size_level0_px: float,
    width_level0_px: int,
    height_level0_px: int,
    min_foreground: float,
    seed: int,
    indices: Sequence[int],
) -> tuple[Ints, Ints, Floats]:
    """The positions of many samples on one slide: sample by sample those of ``sample_position``.

    Args:
        outline: Of the foreground, in level-0 pixels.
        size_level0_px: Side of the patches at level 0.
        width_level0_px: Width of the slide.
        height_level0_px: Height of the slide.
        min_foreground: Least share of a patch's area inside the foreground.
        seed: With the index it makes each sample's generator (``generator(seed, index)``).
        indices: Sample numbers.

    Returns:
        Left and upper edges in level-0 pixels, int64 (N,), and shares of foreground, float64 (N,).

    Raises:
        SamplingError: There is no such position.
    """
    allowed = Allowed.within(
        outline,
        size_level0_px=size_level0_px,
        width_level0_px=width_level0_px,
        height_level0_px=height_level0_px,
        min_foreground=min_foreground,
    )
    xs, ys, shares = np.zeros(len(indices), np.int64), np.zeros(len(indices), np.int64), np.zeros(len(indices))
    open_ = np.arange(len(indices))
    # Most samples need the first draws only: those of the others are made when it turns out.
    for blocks, before in (((1,) * ONE_BY_ONE, 0), (AT_ONCE, ONE_BY_ONE)):
        numbers = _numbers_of(seed, [indices[place] for place in open_.tolist()], before, sum(blocks))
        for draws, end in zip(blocks, itertools.accumulate(blocks), strict=True):
            x, y = allowed.places(numbers[:, end - draws : end].reshape(-1, 2))
            share = outline.shares(x.astype(np.float64), y.astype(np.float64), size_level0_px, size_level0_px)
            good = (share >= allowed.least_share).reshape(-1, draws)
            is_done = good.any(axis=1)
            # The first that is good.
            place_of = (good.argmax(axis=1) + np.arange(len(good)) * draws)[is_done]
            done = open_[is_done]
            xs[done], ys[done], shares[done] = x[place_of], y[place_of], share[place_of]
            numbers, open_ = numbers[~is_done], open_[~is_done]
    for place in open_.tolist():
        rng = generator(seed, indices[place])
        rng.random(2 * ONE_BY_ONE)
        found = _position_among_many(outline, allowed, rng)
        xs[place], ys[place], shares[place] = found.x_level0_px, found.y_level0_px, found.foreground
    return xs, ys, shares


def _numbers_of(seed: int, indices: Sequence[int], before: int, draws: int) -> Floats:
    """The random numbers of some draws of each sample, float64 (N, draws, 2), those before left out."""
    numbers = np.empty((len(indices), draws, 2))
    for row, index in zip(numbers, indices, strict=True):
        rng = generator(seed, index)
        if before:
            rng.random(2 * before)
        rng.random(out=row)
    return numbers


def _axis_range(low: float, high: float, size: float, extent: int, min_foreground: float) -> tuple[int, int]:
    """First and last corner along one axis that can reach the share, within the slide where it is large enough."""
    # Too wide by as much as rounding could make it too narrow.
    first, last = low - (1 - min_foreground) * size - 1e-6, high - min_foreground * size + 1e-6
    slack = extent - size
    first, last = max(first, min(0.0, slack)), min(last, max(0.0, slack))
    return math.ceil(first), math.floor(last)
