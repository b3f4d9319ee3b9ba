"""Which polygon is a slide's foreground?

Masks (of ``tissue``) in, polygons out; nothing here reads a file.

1. ``polygon_of_mask``: a mask becomes a valid (multi)polygon in level-0 pixels along the edges of its pixels: parts
   and holes below an area are dropped, and its outline is simplified by no more than a tolerance;
2. ``fitted``: any polygon becomes one that a catalog may hold (64 KB), and tells how.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import shapely
from shapely.geometry import MultiPolygon, Polygon

from online_patching.errors import AnnotationError
from online_patching.mask_rings import mask_parts

# What a catalog holds of a slide at most: about 4,000 corners (a stream reads it at almost every patch).
MAX_WKB_BYTES = 64 * 1024
# A part that is smaller is dust or a loose cell; 0.14 mm wide.
MIN_AREA_MM2 = 0.02
# One pixel of a thumbnail of 2,048 px of a slide 33 mm long, an eighth of a patch of 256 px at 0.5 um/px.
SIMPLIFY_UM = 16.0
# Of a small slide, that much would be too much: the defaults are held below these shares of its area and longer side.
MAX_AREA_SHARE, MAX_SIMPLIFY_SHARE = 1e-3, 1 / 512
# Where a slide has no mpp: pixels of the mask that outlines may move by, and the share of its pixels a part has.
SIMPLIFY_MASK_PX, MIN_AREA_SHARE = 1.0, 2e-4
# With more, four corners each would take half of what may be held.
_MAX_RINGS = 400
_RISE = 1.4
# By more of its longer side than this, an outline is not simplified: it loses rings instead.
_MOST_OF_SIDE = 1 / 16
_MAX_RISES = 60


@dataclass(frozen=True, slots=True)
class PolygonRules:
    """How exact a polygon is to be.

    Attributes:
        min_area_mm2: Parts and holes of a smaller area are dropped. None: 0.02 mm2, or a thousandth of the slide's
            area where that is less.
        simplify_um: The outline moves by no more. None: 16 um, or 1/512 of the slide's longer side where that is less.

    Of a slide without mpp no rule in um can be kept: there parts have at least 0.02 % of the mask's pixels, and the
    outline moves by at most one pixel of the mask.

    Raises:
        ValueError: Values below 0, or no numbers.
    """

    min_area_mm2: float | None = None
    simplify_um: float | None = None

    def __post_init__(self) -> None:
        for name in ("min_area_mm2", "simplify_um"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < np.inf:
                raise ValueError(f"{name}: got {value!r}, allowed a number from 0")

    def min_area_level0_px2(self, width_level0_px: int, height_level0_px: int, mpp: float | None) -> float:
        """The smallest part, in square level-0 pixels."""
        area = width_level0_px * height_level0_px
        if mpp is None:
            return MIN_AREA_SHARE * area
        if self.min_area_mm2 is None:
            return float(min(MIN_AREA_MM2 * 1e6 / mpp**2, MAX_AREA_SHARE * area))
        return self.min_area_mm2 * 1e6 / mpp**2

    def tolerance_level0_px(
        self, width_level0_px: int, height_level0_px: int, mpp: float | None, mask_px_level0_px: float
    ) -> float:
        """How far the outline may move, in level-0 pixels."""
        if mpp is None:
            return SIMPLIFY_MASK_PX * mask_px_level0_px
        if self.simplify_um is None:
            return min(SIMPLIFY_UM / mpp, MAX_SIMPLIFY_SHARE * max(width_level0_px, height_level0_px))
        return self.simplify_um / mpp


@dataclass(frozen=True, slots=True)
class FoundPolygon:
    """A polygon for a catalog, and how it came about.

    Attributes:
        polygon: Valid, in level-0 pixels; empty where there is no foreground.
        tolerance_level0_px: By how much its outline may have moved.
        asked_level0_px: The tolerance that was asked for; less where the polygon would not have fitted.
        dropped_parts: Parts that were too small by the rule.
        dropped_rings: Smallest parts and holes that were dropped beyond the rule, so that the polygon fits.
    """

    polygon: MultiPolygon
    tolerance_level0_px: float = 0.0
    asked_level0_px: float = 0.0
    dropped_parts: int = 0
    dropped_rings: int = 0

    @property
    def is_coarser(self) -> bool:
        """Whether it is less exact than was asked for."""
        return self.tolerance_level0_px > self.asked_level0_px or self.dropped_rings > 0


def mask_to_polygon(
    mask: npt.NDArray[np.bool_],
    *,
    width_level0_px: int,
    height_level0_px: int,
    mpp: float | None = None,
    rules: PolygonRules | None = None,
) -> MultiPolygon:
    """The polygon alone of ``polygon_of_mask``."""
    return polygon_of_mask(
        mask, width_level0_px=width_level0_px, height_level0_px=height_level0_px, mpp=mpp, rules=rules
    ).polygon


def polygon_of_mask(
    mask: npt.NDArray[np.bool_],
    *,
    width_level0_px: int,
    height_level0_px: int,
    mpp: float | None = None,
    rules: PolygonRules | None = None,
) -> FoundPolygon:
    """Outline of a mask in level-0 pixels.

    Args:
        mask: bool (H, W) that covers the whole slide.
        width_level0_px: Width of level 0.
        height_level0_px: Height of level 0.
        mpp: um per pixel of level 0, where it is known.
        rules: How exact the outline is to be.

    Returns:
        A valid geometry within the slide of at most ``MAX_WKB_BYTES``; empty where the mask is.
    """
    rules = rules or PolygonRules()
    height, width = mask.shape
    size_level0_px = np.array([width_level0_px, height_level0_px], np.float64)
    scale = size_level0_px / (width, height)
    min_area = rules.min_area_level0_px2(width_level0_px, height_level0_px, mpp)
    parts, dropped = mask_parts(mask, min_area / float(scale.prod()))
    polygons: list[Polygon] = []
    for part in parts:
        # The last edge of the slide must not be passed by a rounding.
        outer, *holes = (np.minimum(ring * scale, size_level0_px) for ring in (part.outer, *part.holes))
        polygon = Polygon(outer, holes)
        # An edge that touches itself in a corner may shut in a hole there.
        polygons += [polygon] if polygon.is_valid else _without_small_holes(polygons_only(polygon), min_area)
    tolerance = rules.tolerance_level0_px(width_level0_px, height_level0_px, mpp, float(scale.max()))
    return fitted(MultiPolygon(polygons), tolerance, dropped_parts=dropped)


def fitted(polygon: MultiPolygon, tolerance_level0_px: float, *, dropped_parts: int = 0) -> FoundPolygon:
    """A polygon simplified so that a catalog may hold it.

    Args:
        polygon: Valid, in level-0 pixels.
        tolerance_level0_px: By how much its outline may move; more only where it would be too large otherwise.
        dropped_parts: For the answer.

    Raises:
        AnnotationError: No simplification makes it small enough.
    """
    most = _MAX_RINGS
    kept, dropped_rings = _largest_rings(polygon, most)
    tolerance = tolerance_level0_px
    for _ in range(_MAX_RISES):
        if tolerance > _MOST_OF_SIDE * _longest_side(polygon) and most > 1:
            # Rings in each other's way stay as they are, however much they may move.
            most //= 2
            kept, dropped_rings = _largest_rings(polygon, most)
            tolerance = tolerance_level0_px
        simple = _simplified(kept, tolerance)
        size = wkb_bytes(simple)
        if size <= MAX_WKB_BYTES:
            return FoundPolygon(simple, tolerance, tolerance_level0_px, dropped_parts, dropped_rings)
        tolerance = max(tolerance * max(_RISE, (size / MAX_WKB_BYTES) ** 0.5), 0.25)
    raise AnnotationError(
        f"a foreground of {shapely.get_num_coordinates(polygon)} corners cannot be simplified to {MAX_WKB_BYTES >> 10}"
        " KB; draw it with fewer corners"
    )


def wkb_bytes(polygon: MultiPolygon) -> int:
    """Bytes that a polygon takes in a catalog."""
    return len(shapely.to_wkb(polygon))


def polygons_only(geometry: shapely.Geometry) -> MultiPolygon:
    """The polygons of any geometry (repairs may leave stray points and lines), as one valid multipolygon."""
    parts = [g for g in shapely.get_parts(shapely.make_valid(geometry)) if g.geom_type in ("Polygon", "MultiPolygon")]
    merged = shapely.union_all(parts)
    polygons = [g for g in shapely.get_parts(merged) if g.geom_type == "Polygon" and not g.is_empty]
    return MultiPolygon(polygons)


def _simplified(polygon: MultiPolygon, tolerance: float) -> MultiPolygon:
    """Simplified by at most the tolerance; less where the result would not be valid."""
    while tolerance > 1e-6:
        simple = polygon.simplify(tolerance)
        if simple.is_valid:
            simple = _with_beginnings(polygon, simple, tolerance * (1 + 1e-9) + 1e-9)
        if simple.is_valid:
            return MultiPolygon([g for g in shapely.get_parts(simple) if not g.is_empty])
        tolerance /= 2
    return polygon


def _with_beginnings(polygon: MultiPolygon, simple: MultiPolygon, farthest: float) -> MultiPolygon:
    """Simplified rings with the point where they began, where GEOS moved others too far by dropping it."""
    before = shapely.get_rings(shapely.get_parts(polygon))
    after, parts = shapely.get_rings(shapely.get_parts(simple), return_index=True)
    if len(before) != len(after):
        return simple
    rings, is_changed = [], False
    for ring, simple_ring in zip(before, after, strict=True):
        points, kept = shapely.get_coordinates(ring), shapely.get_coordinates(simple_ring)
        if not (kept == points[0]).all(axis=1).any():
            # The edge from the last corner that was kept to the first one took the place of those between.
            numbers = {tuple(point): number for number, point in enumerate(points.tolist())}
            places = np.array([numbers[tuple(point)] for point in kept[:-1].tolist()])
            first, last = int(places.argmin()), int(places.argmax())
            skipped = shapely.points(np.concatenate([points[places[last] :], points[: places[first] + 1]]))
            if (shapely.distance(skipped, shapely.LineString(kept[[last, first]])) > farthest).any():
                turned = np.roll(kept[:-1], -first, axis=0)
                kept, is_changed = np.concatenate([points[:1], turned, points[:1]]), True
        rings.append(kept)
    if not is_changed:
        return simple
    return MultiPolygon(
        [
            Polygon(rings[numbers[0]], [rings[number] for number in numbers[1:]])
            for numbers in (np.flatnonzero(parts == part) for part in np.unique(parts))
        ]
    )


def _without_small_holes(polygon: MultiPolygon, min_area: float) -> list[Polygon]:
    return [
        Polygon(part.exterior, [hole for hole in part.interiors if Polygon(hole).area >= min_area])
        for part in polygon.geoms
    ]


def _longest_side(polygon: MultiPolygon) -> float:
    left, upper, right, lower = polygon.bounds if not polygon.is_empty else (0.0, 0.0, 0.0, 0.0)
    return float(max(right - left, lower - upper))


def _largest_rings(polygon: MultiPolygon, most: int) -> tuple[MultiPolygon, int]:
    """A polygon with its largest parts and holes, so many at most, and how many were dropped."""
    rings = [ring for part in polygon.geoms for ring in (part.exterior, *part.interiors)]
    if len(rings) <= most:
        return polygon, 0
    # Of equal ones the first.
    largest = set(np.argsort(-shapely.area(shapely.polygons(rings)), kind="stable")[:most].tolist())
    parts, number = [], 0
    for part in polygon.geoms:
        first_hole = number + 1
        holes = [hole for k, hole in enumerate(part.interiors, first_hole) if k in largest]
        if number in largest:
            parts.append(Polygon(part.exterior, holes))
        number = first_hole + len(part.interiors)
    kept = MultiPolygon(parts)
    if not kept.is_valid:
        # A hole that was filled held a part of its own.
        kept = polygons_only(kept)
    return kept, len(rings) - sum(1 + len(part.interiors) for part in kept.geoms)
