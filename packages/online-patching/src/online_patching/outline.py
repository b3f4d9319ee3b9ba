"""How much of a square lies inside a polygon?

An ``Outline`` holds a polygon's rings as plain arrays. The area of the polygon within a square is a sum over its edges
(Green's theorem): with every ring around its inside in the same sense, holes the other way round, it is the integral
of x dy along the outline, x held within the square's columns and y within its rows. The sum is exact but for rounding,
asks only for the edges in the square's rows, and needs neither geometries nor an index. In a large cohort nearly every
patch is the first of its slide, so what counts is the first answer, with the outline read for it.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import shapely

Floats = npt.NDArray[np.float64]

# Shares are told to this precision; the rounding of the sum is far below.
ROUNDING = 1e-9
_LITTLE_ENDIAN, _POLYGON, _MULTIPOLYGON = 1, 3, 6
# Byte order, kind, number of parts (of a polygon: rings).
_HEAD = struct.Struct("<BII")
_COUNT = struct.Struct("<I")
# Three corners, the first again.
_SMALLEST_RING = 4
_POINT_BYTES = 16
# Beyond are neither slides nor numbers to reckon with; and what rises by less is as good as level.
_FARTHEST_PX, _LEVEL_PX = 1e12, 1e-12


class Outline:
    """The rings of a valid polygon or multipolygon.

    Args:
        points: Float64 (N, 2), ring after ring; the first point of each is repeated as its last.
        lengths: Points of each ring.
        is_hole: Whether each ring bounds a hole.

    Raises:
        ValueError: A ring that is not closed, or a coordinate that is no number or of no slide.

    Attributes:
        bounds: Left, upper, right and lower edge; None where there are no rings.
    """

    def __init__(self, points: Floats, lengths: Sequence[int], is_hole: Sequence[bool]) -> None:
        self._x, self._y = np.ascontiguousarray(points.T)
        self.bounds: tuple[float, float, float, float] | None = None
        self._sense = 1.0
        ends = np.cumsum(lengths, dtype=np.int64)
        if lengths:
            x, y = self._x, self._y
            self.bounds = float(x.min()), float(y.min()), float(x.max()), float(y.max())
            starts = ends - lengths
            closed = (x[starts] == x[ends - 1]).all() and (y[starts] == y[ends - 1]).all()
            if not (closed and all(abs(edge) < _FARTHEST_PX for edge in self.bounds)):
                raise ValueError("a ring that is not closed, or coordinates of no slide")
            self._turn(starts, ends, np.asarray(is_hole))
        # Level edges add nothing, and from the end of a ring to the start of the next leads none.
        counts = np.abs(self._y[1:] - self._y[:-1]) > _LEVEL_PX
        counts[ends[:-1] - 1] = False
        self._first = np.flatnonzero(counts)
        start, end = self._y[self._first], self._y[self._first + 1]
        self._low, self._high = np.minimum(start, end), np.maximum(start, end)

    @classmethod
    def of(cls, geometry: shapely.Geometry) -> Outline:
        """The outline of a geometry's polygons."""
        rings, polygons = shapely.get_rings(shapely.get_parts(geometry), return_index=True)
        is_hole = [k > 0 and polygons[k] == polygons[k - 1] for k in range(len(rings))]
        return cls(shapely.get_coordinates(rings), shapely.get_num_coordinates(rings).tolist(), is_hole)

    @classmethod
    def from_wkb(cls, data: bytes) -> Outline:
        """The outline of a polygon in well-known binary, as catalogs store it.

        Raises:
            ValueError: It is damaged, or no polygon.
        """
        found = _rings_of(data)
        if found is not None:
            return cls(*found)
        try:
            # What is not as this package writes it is shapely's to read, or to refuse.
            return cls.of(shapely.from_wkb(data))
        except (shapely.errors.ShapelyError, NotImplementedError) as error:
            raise ValueError(str(error)) from error

    @property
    def size_bytes(self) -> int:
        """Memory that it takes."""
        return sum(each.nbytes for each in (self._x, self._y, self._first, self._low, self._high))

    def share(self, left: float, upper: float, side: float) -> float:
        """Share of a square's area that lies inside, 0 to 1."""
        chosen = self._first[(self._low < upper + side) & (self._high > upper)]
        if not len(chosen):
            return 0.0
        # In coordinates of the square, from 0 to its side.
        x0, y0 = self._x[chosen] - left, self._y[chosen] - upper
        chosen += 1
        across, down = self._x[chosen] - left - x0, self._y[chosen] - upper - y0
        start, end = _held(y0, side), _held(y0 + down, side)
        slope = across / down
        x1 = x0 + (end - y0) * slope
        x0 += (start - y0) * slope
        # Mean of x along what is left of the edge, with every x held within the square: its part within, and beyond.
        held0, held1 = _held(x0, side), _held(x1, side)
        within = (held1 - held0) * (held1 + held0) * 0.5
        beyond = side * (np.maximum(x1, side) - np.maximum(x0, side))
        across = x1 - x0
        upright = across == 0
        across[upright] = 1.0
        mean = np.where(upright, held0, (within + beyond) / across)
        share = self._sense * float(mean.dot(end - start)) / side**2
        if share < ROUNDING:
            return 0.0
        return 1.0 if share > 1 - ROUNDING else share

    def _turn(self, starts: npt.NDArray[np.int64], ends: npt.NDArray[np.int64], is_hole: npt.NDArray[np.bool_]) -> None:
        """Bring every ring into the sense that makes the areas of outer ones count and those of holes count off."""
        x, y = self._x - self._x[0], self._y - self._y[0]
        twice_area = x[:-1] * y[1:] - x[1:] * y[:-1]
        twice_area[ends[:-1] - 1] = 0.0
        against = (np.add.reduceat(twice_area, starts) > 0) == is_hole
        if against.all():
            self._sense = -1.0
            return
        for ring in np.flatnonzero(against):
            own = slice(starts[ring], ends[ring])
            self._x[own], self._y[own] = self._x[own][::-1].copy(), self._y[own][::-1].copy()


def _held(values: Floats, side: float) -> Floats:
    return np.minimum(np.maximum(values, 0.0), side)


def _rings_of(data: bytes) -> tuple[Floats, list[int], list[bool]] | None:
    """Points, lengths and roles of the rings of a (multi)polygon of little-endian (x, y); None for anything else."""
    rings: list[bytes] = []
    lengths: list[int] = []
    is_hole: list[bool] = []
    try:
        order, kind, parts = _HEAD.unpack_from(data)
        place = 0 if kind == _POLYGON else _HEAD.size
        if order != _LITTLE_ENDIAN or kind not in (_POLYGON, _MULTIPOLYGON):
            return None
        for _ in range(1 if kind == _POLYGON else parts):
            order, kind, count = _HEAD.unpack_from(data, place)
            if (order, kind) != (_LITTLE_ENDIAN, _POLYGON):
                return None
            place += _HEAD.size
            for number in range(count):
                (length,) = _COUNT.unpack_from(data, place)
                end = place + _COUNT.size + _POINT_BYTES * length
                if length < _SMALLEST_RING:
                    return None
                rings.append(data[place + _COUNT.size : end])
                lengths.append(length)
                is_hole.append(number > 0)
                place = end
    except struct.error:
        # Shorter than it says.
        return None
    if place != len(data):
        return None
    return np.frombuffer(b"".join(rings), "<f8").reshape(-1, 2), lengths, is_hole
