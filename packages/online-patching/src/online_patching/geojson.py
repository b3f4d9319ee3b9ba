"""How does a foreground that was drawn in QuPath become a polygon, and the other way round?

Text in, geometry out, in level-0 pixels, which are QuPath's own. Read are a FeatureCollection, an array of Features, a
single Feature, or a bare geometry; annotations with an area count (ellipses and the like are stored as polygons), and
points, lines, cells and detections are passed over. Whatever lies outside of the slide is of another slide, and broken
outlines are mended only where that leaves their area as it was.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import shapely
from shapely.geometry import MultiPolygon, Polygon

from online_patching.errors import AnnotationError
from online_patching.foreground import polygons_only

# The class of what is exported, and QuPath's colour for it.
TISSUE_CLASS, TISSUE_RGB = "Tissue", (0, 160, 60)
# A million corners take about 40 MB; a drawing of tissue has thousands.
MAX_GEOJSON_BYTES = 64 * 2**20
# A drawing may reach past the edge of its slide by this share of the longer side; it is cut there.
OUTSIDE_SHARE = 0.01
# Mending may change the area by this share.
MENDED_SHARE = 0.01
# Kinds of objects that are drawn by hand; older versions of QuPath wrote the kind as the feature's id.
_DRAWN = ("annotation", "PathAnnotationObject", "PathRootObject")
_WITHOUT_AREA = ("Point", "MultiPoint", "LineString", "MultiLineString")


@dataclass(frozen=True, slots=True)
class Drawing:
    """The area that a file marks.

    Attributes:
        polygon: Valid, in level-0 pixels; empty where no annotation counts.
        used: Annotations that count.
        classes: How many annotations with an area there are of each class; those without one are of class "".
        passed_over: Objects without an area, or that were not drawn.
        mended: Annotations whose outline was broken and could be mended.
    """

    polygon: MultiPolygon
    used: int
    classes: dict[str, int]
    passed_over: int
    mended: int


def read_drawing(text: str | bytes, name: str, *, classes: Sequence[str] = ()) -> Drawing:
    """The union of the annotations of a file.

    Args:
        text: GeoJSON.
        name: The file, for messages.
        classes: Only annotations of these classes count (``Tissue``); all where none is given.

    Raises:
        AnnotationError: No GeoJSON, a coordinate that is no number, or an outline that cannot be mended.
    """
    if len(text) > MAX_GEOJSON_BYTES:
        raise AnnotationError(
            f"{name}: {len(text) >> 20} MB of GeoJSON, allowed {MAX_GEOJSON_BYTES >> 20}; export the annotations"
            " without cells and detections"
        )
    try:
        parsed = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise AnnotationError(f"{name}: not JSON ({error}); export it from QuPath as GeoJSON") from error
    found: Counter[str] = Counter()
    parts: list[MultiPolygon] = []
    passed_over = mended = 0
    for number, (geometry, properties) in enumerate(_features(parsed, name), 1):
        place = f"{name}: object {number}"
        outlines = _polygons(geometry, place) if _is_drawn(properties) else []
        if not outlines:
            passed_over += 1
            continue
        kind = class_of(properties)
        found[kind] += 1
        if classes and kind not in classes:
            continue
        part, was_broken = _mended(outlines, place)
        parts.append(part)
        mended += was_broken
    # The union of one is itself, corner by corner.
    polygon = parts[0] if len(parts) == 1 else polygons_only(shapely.union_all(parts))
    return Drawing(polygon, len(parts), dict(found), passed_over, mended)


def within_slide(polygon: MultiPolygon, *, width_level0_px: int, height_level0_px: int, name: str) -> MultiPolygon:
    """A drawing cut at the edges of its slide.

    Raises:
        AnnotationError: It reaches so far beyond that it is of another slide.
    """
    if polygon.is_empty:
        return polygon
    left, upper, right, lower = polygon.bounds
    over = max(-left, -upper, right - width_level0_px, lower - height_level0_px)
    if over > OUTSIDE_SHARE * max(width_level0_px, height_level0_px):
        raise AnnotationError(
            f"{name}: its annotations reach from ({left:.0f}, {upper:.0f}) to ({right:.0f}, {lower:.0f}), the slide has"
            f" {width_level0_px} x {height_level0_px} px: they are of another slide, or not in pixels of level 0"
        )
    return polygon if over <= 0 else polygons_only(polygon & shapely.box(0, 0, width_level0_px, height_level0_px))


def write_drawing(polygon: shapely.Geometry, name: str) -> str:
    """A foreground as a FeatureCollection that QuPath reads as one annotation of class Tissue."""
    geometry = {
        "type": "MultiPolygon",
        "coordinates": [
            [np.asarray(ring.coords).tolist() for ring in (part.exterior, *part.interiors)]
            for part in shapely.get_parts(polygon)
        ],
    }
    properties = {
        "objectType": "annotation",
        "name": name,
        "classification": {"name": TISSUE_CLASS, "color": list(TISSUE_RGB)},
        "isLocked": False,
    }
    feature = {"type": "Feature", "geometry": geometry, "properties": properties}
    features = [] if polygon.is_empty else [feature]
    return json.dumps({"type": "FeatureCollection", "features": features})


def class_of(properties: dict[str, Any]) -> str:
    """The class of an annotation as QuPath shows it (``Tumor: Positive``), or "" where it has none."""
    kind = properties.get("classification")
    if isinstance(kind, dict):
        names = kind.get("names")
        return ": ".join(map(str, names)) if isinstance(names, list) else str(kind.get("name") or "")
    return kind if isinstance(kind, str) else ""


def _features(parsed: Any, name: str) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Geometry and properties of every feature."""
    features = parsed.get("features") if isinstance(parsed, dict) and "features" in parsed else parsed
    for feature in features if isinstance(features, list) else [features]:
        if not isinstance(feature, dict) or not isinstance(feature.get("type"), str):
            raise AnnotationError(f"{name}: no GeoJSON; export it from QuPath as GeoJSON")
        if feature["type"] != "Feature":
            yield feature, {}
            continue
        properties = feature.get("properties")
        facts = dict(properties) if isinstance(properties, dict) else {}
        if isinstance(feature.get("id"), str) and feature["id"].startswith("Path"):
            facts.setdefault("objectType", feature["id"])
        geometry = feature.get("geometry")
        yield geometry if isinstance(geometry, dict) else {"type": "Point"}, facts


def _is_drawn(properties: dict[str, Any]) -> bool:
    return properties.get("objectType", "annotation") in _DRAWN


def _polygons(geometry: dict[str, Any], place: str) -> list[Polygon]:
    """The polygons of a geometry, as drawn; none where it has no area."""
    kind = geometry.get("type")
    if kind in _WITHOUT_AREA:
        return []
    members = geometry.get("geometries" if kind == "GeometryCollection" else "coordinates")
    if kind not in ("Polygon", "MultiPolygon", "GeometryCollection") or not isinstance(members, list):
        raise AnnotationError(f"{place} has a geometry of type {kind!r}, allowed Polygon and MultiPolygon")
    if kind == "Polygon":
        rings = [_ring(ring, place) for ring in members]
        return [Polygon(rings[0], rings[1:])] if rings else []
    if kind == "MultiPolygon":
        members = [{"type": "Polygon", "coordinates": each} for each in members]
    elif any(not isinstance(each, dict) or each.get("type") == kind for each in members):
        raise AnnotationError(f"{place} is a collection within a collection; export its parts")
    return [polygon for each in members for polygon in _polygons(each, place)]


def _ring(points: Any, place: str) -> list[tuple[float, float]]:
    try:
        ring = [(float(point[0]), float(point[1])) for point in points]
    except (TypeError, ValueError, IndexError, KeyError, OverflowError):
        raise AnnotationError(f"{place} has an outline that is no list of [x, y]") from None
    if len(set(ring)) < 3 or not all(math.isfinite(x) and math.isfinite(y) for x, y in ring):
        raise AnnotationError(f"{place} has an outline of {len(set(ring))} corners, allowed 3 or more finite ones")
    return ring


def _mended(outlines: list[Polygon], place: str) -> tuple[MultiPolygon, bool]:
    """The outlines of one annotation as a valid geometry, and whether they were not."""
    drawn = MultiPolygon(outlines)
    if drawn.is_valid:
        return drawn, False
    valid = polygons_only(shapely.union_all([polygons_only(outline) for outline in outlines]))
    before, after = sum(outline.area for outline in outlines), valid.area
    if abs(after - before) > MENDED_SHARE * max(before, after) or valid.is_empty:
        raise AnnotationError(
            f"{place} has a broken outline ({shapely.is_valid_reason(drawn)}), and mending it would change its area"
            f" from {before:.0f} to {after:.0f} px2; draw it again"
        )
    return valid, True
