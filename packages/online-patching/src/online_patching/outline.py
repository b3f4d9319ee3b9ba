"""How much of a square lies inside a polygon?

An ``Outline`` holds a polygon's rings as plain arrays. The area of the polygon within a rectangle is a sum over its
edges (Green's theorem): with every ring around its inside in the same sense, holes the other way round, it is the
integral of x dy along the outline, x held within the rectangle's columns and y within its rows. The sum is exact but
for rounding, asks only for the edges in the rectangle's rows, and needs no geometries.

In a large cohort nearly every patch is the first of its slide, so what counts is the first answer, with the outline
read for it: ``share`` looks through all points, which takes a few microseconds for a usual outline. ``shares`` answers
for many rectangles at once, from a list of the edges by rows (``EdgeRows``) that is made at its first use; so does
``share`` for outlines of very many corners that are asked again and again.
"""

from __future__ import annotations

import itertools
import struct
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import shapely

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

# Shares are told to this precision; the rounding of the sum is far below.
ROUNDING = 1e-9
_LITTLE_ENDIAN, _POLYGON, _MULTIPOLYGON = 1, 3, 6
# Byte order, kind, number of parts (of a polygon: rings).
_HEAD = struct.Struct("<BII")
_COUNT = struct.Struct("<I")
# Three corners, the first again.
_SMALLEST_RING = 4
_POINT_BYTES = 16
# Beyond are neither slides nor numbers to reckon with.
_FARTHEST_PX = 1e12
# From so many points on, and after so many answers, looking through all of them costs more than the list of rows.
_MANY_POINTS, _USES_BEFORE_ROWS = 16_384, 8
_numbers = itertools.count()
# Added to the number of an edge: its first and its second point.
_BOTH_ENDS = np.array([[0], [1]])
# Pairs of a rectangle and an edge that are reckoned with at a time: arrays that stay in the processor's caches.
_PAIRS_AT_ONCE = 1 << 15


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
        number: Of this outline alone in this process, for what others make of it and want to find again.
    """

    def __init__(self, points: Floats, lengths: Sequence[int], is_hole: Sequence[bool]) -> None:
        self.x = points[:, 0].copy()
        self.y = points[:, 1].copy()
        self.bounds: tuple[float, float, float, float] | None = None
        # Of what encloses the inside, 1 or -1. A single ring's is only told by the sign of what it encloses: 0.
        self._sense = 0.0
        # Numbers of what would be edges from the end of a ring to the start of the next.
        self._joins: Ints | None = None
        self.number = next(_numbers)
        self._uses = 0
        self._rows: EdgeRows | None = None
        if not lengths:
            return
        x, y = self.x, self.y
        # Twice as fast as the least and greatest value; where there is a NaN, it is found.
        self.bounds = x.item(x.argmin()), y.item(y.argmin()), x.item(x.argmax()), y.item(y.argmax())
        if not all(abs(edge) < _FARTHEST_PX for edge in self.bounds):
            raise ValueError("coordinates of no slide")
        if len(lengths) == 1:
            closed = x.item(0) == x.item(-1) and y.item(0) == y.item(-1)
        else:
            ends = np.array(list(itertools.accumulate(lengths)), np.int64)
            starts: Ints = ends - lengths
            closed = bool(((x[starts] == x[ends - 1]) & (y[starts] == y[ends - 1])).all())
            self._joins = ends[:-1] - 1
            self._turn(starts, ends, is_hole)
        if not closed:
            raise ValueError("a ring that is not closed")

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        # In another process its number may be that of another.
        self.number = next(_numbers)

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
        """Memory that it takes, with what is made of it later."""
        return 2 * (self.x.nbytes + self.y.nbytes)

    def share(self, left: float, upper: float, side: float) -> float:
        """Share of a square's area that lies inside, 0 to 1."""
        first = self._edges_in_rows(upper, upper + side)
        if not len(first):
            return 0.0
        ends = first + _BOTH_ENDS
        area = float(np.add.reduce(_areas_left_of(self.x[ends] - left, self.y[ends] - upper, side, side)))
        return _as_share((self._sense * area if self._sense else abs(area)) / side**2)

    def shares(self, left: Floats, upper: Floats, width: float, height: float) -> Floats:
        """Share inside of each of many rectangles of one size, float64 (N,).

        The same as ``share`` but for rounding, far below ``ROUNDING``.

        Args:
            left: Left edges, float64 (N,).
            upper: Upper edges, float64 (N,).
            width: Of all rectangles.
            height: Of all rectangles.
        """
        found = np.zeros(len(left))
        if self.bounds is None or not len(left):
            return found
        rows = self._edge_rows()
        pairs = rows.counts(upper, height).cumsum()
        start = 0
        while start < len(left):
            before = int(pairs[start - 1]) if start else 0
            stop = max(start + 1, int(pairs.searchsorted(before + _PAIRS_AT_ONCE, side="right")))
            part = slice(start, stop)
            found[part] = self._areas(rows, left[part], upper[part], width, height)
            start = stop
        found = found * self._sense if self._sense else np.abs(found)
        found /= width * height
        found[found < ROUNDING] = 0.0
        found[found > 1 - ROUNDING] = 1.0
        return found

    def _areas(self, rows: EdgeRows, left: Floats, upper: Floats, width: float, height: float) -> Floats:
        number, first = rows.of(upper, height)
        ends = first + _BOTH_ENDS
        y = self.y[ends] - upper[number]
        held = _held(y, height)
        kept = (held[0] != held[1]).nonzero()[0]
        number, ends, y = number[kept], ends[:, kept], y[:, kept]
        areas: Floats = np.bincount(
            number, _areas_left_of(self.x[ends] - left[number], y, width, height), len(left)
        ).astype(np.float64, copy=False)
        return areas

    def edges(self) -> tuple[Floats, Floats, Floats, Floats]:
        """All edges that are not level, as (x0, y0, x1, y1): the integral of x dy over them is the polygon's area."""
        rises = self.y[1:] != self.y[:-1]
        if self._joins is not None:
            rises[self._joins] = False
        start = rises.nonzero()[0]
        end = start + 1
        x0, y0, x1, y1 = self.x[start], self.y[start], self.x[end], self.y[end]
        # Measured from the first point: far from the origin, the sum would lose its last digits.
        origin = self.x.item(0) if self.x.size else 0.0
        sense = self._sense or float(np.add.reduce((x0 + x1 - 2 * origin) * (y1 - y0)))
        return (x0, y0, x1, y1) if sense > 0 else (x1, y1, x0, y0)

    def _edges_in_rows(self, upper: float, lower: float) -> Ints:
        """Numbers of the edges that rise within the rows, in order."""
        if len(self.y) >= _MANY_POINTS:
            self._uses += 1
            if self._rows is not None or self._uses > _USES_BEFORE_ROWS:
                # In order, so that sums are the same to the last bit whichever way the edges were found.
                first = np.sort(self._edge_rows().of(np.array([upper]), lower - upper)[1])
                held = np.minimum(np.maximum(self.y[np.stack([first, first + 1])], upper), lower)
                rising: Ints = first[held[0] != held[1]]
                return rising
        held = np.maximum(self.y, upper)
        np.minimum(held, lower, out=held)
        rises = held[1:] != held[:-1]
        if self._joins is not None:
            rises[self._joins] = False
        edges: Ints = rises.nonzero()[0]
        return edges

    def _edge_rows(self) -> EdgeRows:
        if self._rows is None:
            self._rows = EdgeRows(self.y, self._joins)
        return self._rows

    def _turn(self, starts: Ints, ends: Ints, is_hole: Sequence[bool]) -> None:
        """Bring every ring into the sense that makes the areas of outer ones count and those of holes count off."""
        x, y = self.x - self.x.item(0), self.y
        # Trapezoids between the edges and the y axis; from ring to ring leads no edge.
        twice_area = (x[1:] + x[:-1]) * (y[1:] - y[:-1])
        twice_area[self._joins] = 0.0
        against = (np.add.reduceat(twice_area, starts) > 0) == np.asarray(is_hole)
        self._sense = -1.0 if against.all() else 1.0
        if self._sense > 0:
            for ring in against.nonzero()[0]:
                own = slice(starts[ring], ends[ring])
                self.x[own], self.y[own] = self.x[own][::-1].copy(), self.y[own][::-1].copy()


class EdgeRows:
    """Edges of an outline by the rows that they rise in: each is listed in every band of rows that it touches.

    Args:
        y: Of the outline's points.
        joins: Numbers of what are no edges.
    """

    def __init__(self, y: Floats, joins: Ints | None) -> None:
        rises = y[1:] != y[:-1]
        if joins is not None:
            rises[joins] = False
        edges = rises.nonzero()[0]
        low, high = np.minimum(y[edges], y[edges + 1]), np.maximum(y[edges], y[edges + 1])
        self._top = float(low.min()) if len(low) else 0.0
        extent = float(high.max()) - self._top if len(high) else 0.0
        # As many bands as make the list a few times as long as the outline, whatever it looks like.
        total = float(np.add.reduce(high - low))
        self._bands = int(max(1, min(1024, len(edges) // 4, 4 * len(edges) * extent / total if total else 1)))
        self._scale = self._bands / extent if extent else 0.0
        first, last = self._band(low), self._band(high)
        bands = last - first + 1
        edge = np.repeat(np.arange(len(edges)), bands)
        band = np.arange(len(edge)) - np.repeat(bands.cumsum() - bands, bands) + first[edge]
        order = np.argsort(band, kind="stable")
        self._edges = edges[edge[order]]
        self._is_first = (band == first[edge])[order]
        self._starts = np.searchsorted(band[order], np.arange(self._bands + 1))

    def _band(self, y: Floats) -> Ints:
        return np.minimum(np.maximum((y - self._top) * self._scale, 0), self._bands - 1).astype(np.int64)

    def counts(self, upper: Floats, height: float) -> Ints:
        """How many edges are looked at for each range of rows."""
        return self._starts[self._band(upper + height) + 1] - self._starts[self._band(upper)]

    def of(self, upper: Floats, height: float) -> tuple[Ints, Ints]:
        """Numbers of the row ranges and of edges that may rise in them, each pair once."""
        start = self._starts[self._band(upper)]
        counts = self._starts[self._band(upper + height) + 1] - start
        number = np.repeat(np.arange(len(upper)), counts)
        place = np.arange(len(number)) - np.repeat(counts.cumsum() - counts - start, counts)
        # An edge of several bands counts where it begins, or in the first band that is asked for.
        in_first_band = place < self._starts[self._band(upper) + 1][number]
        kept = (self._is_first[place] | in_first_band).nonzero()[0]
        return number[kept], self._edges[place[kept]]


def _areas_left_of(x: Floats, y: Floats, width: float, height: float) -> Floats:
    """Area between each edge and the left side of a rectangle, within the rectangle; below 0 where y falls.

    Args:
        x: Of the edges' starts and ends, in pixels from the rectangle's left side, float64 (2, N).
        y: The same from its upper side.
        width: Of the rectangle.
        height: Of the rectangle.
    """
    start_and_end = _held(y, height)
    mean: Floats
    mean, other = _held(x, width)
    # What hardly rises may be level after rounding; it counts for nothing.
    moving = ((mean != other) & (y[0] != y[1])).nonzero()[0]
    if len(moving):
        mean[moving] = _mean_x(x[:, moving], y[:, moving], start_and_end[:, moving], width)
    mean *= start_and_end[1] - start_and_end[0]
    return mean


def _mean_x(x: Floats, y: Floats, start_and_end: Floats, width: float) -> Floats:
    """Mean of x, held within 0 to ``width``, along the part of each edge between two heights; edges as above."""
    x0, y0 = x[0], y[0]
    x = x0 + (start_and_end - y0) / (y[1] - y0) * (x[1] - x0)
    # The part within the columns, and the part beyond them.
    held = _held(x, width)
    beyond = np.maximum(x, width)
    area: Floats = (held[1] - held[0]) * (held[1] + held[0]) * 0.5
    area += width * (beyond[1] - beyond[0])
    across = x[1] - x[0]
    mean: Floats = np.divide(area, across, out=held[0], where=across != 0)
    return mean


def _held(values: Floats, side: float) -> Floats:
    held = np.maximum(values, 0.0)
    return np.minimum(held, side, out=held)


def _as_share(share: float) -> float:
    if share < ROUNDING:
        return 0.0
    return 1.0 if share > 1 - ROUNDING else share


def _rings_of(data: bytes) -> tuple[Floats, list[int], list[bool]] | None:
    """Points, lengths and roles of the rings of a (multi)polygon of little-endian (x, y); None for anything else."""
    starts: list[int] = []
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
                if length < _SMALLEST_RING:
                    return None
                starts.append(place + _COUNT.size)
                lengths.append(length)
                is_hole.append(number > 0)
                place += _COUNT.size + _POINT_BYTES * length
    except struct.error:
        # Shorter than it says.
        return None
    if place != len(data):
        return None
    if len(starts) == 1:
        return np.frombuffer(data, "<f8", 2 * lengths[0], starts[0]).reshape(-1, 2), lengths, is_hole
    rings = [data[start : start + _POINT_BYTES * length] for start, length in zip(starts, lengths, strict=True)]
    return np.frombuffer(b"".join(rings), "<f8").reshape(-1, 2), lengths, is_hole
