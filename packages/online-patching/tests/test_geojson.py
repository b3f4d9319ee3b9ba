from __future__ import annotations

import json
from typing import Any

import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from online_patching import AnnotationError
from online_patching.geojson import read_drawing, within_slide, write_drawing

SQUARE = [[0, 0], [100, 0], [100, 100], [0, 100], [0, 0]]
RING = {"type": "Polygon", "coordinates": [SQUARE, [[20, 20], [20, 40], [40, 40], [40, 20], [20, 20]]]}


def feature(geometry: dict[str, Any] | None, kind: str | None = None, **properties: Any) -> dict[str, Any]:
    named = {"classification": {"name": kind, "color": [200, 0, 0]}} if kind else {}
    facts = {"objectType": "annotation", **named, **properties}
    return {"type": "Feature", "id": "6b5b0d5e", "geometry": geometry, "properties": facts}


def square(x: float, y: float, side: float) -> dict[str, Any]:
    return shapely.geometry.mapping(shapely.box(x, y, x + side, y + side))


def area_of(content: Any, **arguments: Any) -> float:
    return float(read_drawing(json.dumps(content), "a.geojson", **arguments).polygon.area)


def test_every_form_that_qupath_writes_is_read() -> None:
    for content in (
        {"type": "FeatureCollection", "features": [feature(RING)]},
        [feature(RING)],
        feature(RING, isLocked=True, name="one"),
        RING,
        feature({**RING, "isEllipse": True, "plane": {"c": -1, "z": 0, "t": 0}}),
        feature({"type": "MultiPolygon", "coordinates": [RING["coordinates"]]}),
        feature({"type": "GeometryCollection", "geometries": [RING, {"type": "Point", "coordinates": [1, 2]}]}),
        feature({"type": "Polygon", "coordinates": [[[*p, 0] for p in ring] for ring in RING["coordinates"]]}),
        feature({"type": "Polygon", "coordinates": [ring[:-1] for ring in RING["coordinates"]]}),
        {"type": "Feature", "id": "PathAnnotationObject", "geometry": RING, "properties": {}},
    ):
        assert area_of(content) == 100 * 100 - 20 * 20


def test_only_annotations_of_the_classes_asked_for_count() -> None:
    content = [
        feature(square(0, 0, 100), "Tissue"),
        feature(square(50, 0, 100), "Tissue"),
        feature(square(1000, 0, 10), "Tumor"),
        feature(square(2000, 0, 10), properties_kept=True),
        feature(square(3000, 0, 10), None, classification={"names": ["Tumor", "Positive"]}),
        feature(square(4000, 0, 10), None, objectType="cell"),
        {"type": "Feature", "id": "PathDetectionObject", "geometry": square(5000, 0, 10), "properties": {}},
        feature({"type": "Point", "coordinates": [1, 2]}, "Tissue"),
        feature({"type": "LineString", "coordinates": [[1, 2], [3, 4]]}),
        feature(None),
    ]
    everything = read_drawing(json.dumps(content), "a")
    assert everything.classes == {"Tissue": 2, "Tumor": 1, "": 1, "Tumor: Positive": 1}
    assert (everything.used, everything.passed_over, everything.mended) == (5, 5, 0)
    assert everything.polygon.area == 150 * 100 + 300
    assert area_of(content, classes=["Tissue"]) == 150 * 100
    assert area_of(content, classes=["Tumor", "Tumor: Positive"]) == 200
    assert area_of(content, classes=["Stroma"]) == 0


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("{", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("3", "no GeoJSON"),
        ('{"a": 1}', "no GeoJSON"),
        (json.dumps(feature({"type": "Circle", "coordinates": [1, 2]})), "type 'Circle'"),
        (json.dumps(feature({"type": "Polygon", "coordinates": [[[0, 0], [1, 1], [0, 0]]]})), "2 corners"),
        (json.dumps(feature({"type": "Polygon", "coordinates": [[[0, "x"], [1, 1]]]})), r"no list of \[x, y\]"),
        (json.dumps(feature({"type": "Polygon", "coordinates": [7]})), r"no list of \[x, y\]"),
        (json.dumps(feature({"type": "Polygon", "coordinates": 7})), "type 'Polygon'"),
        (json.dumps(feature({"type": "MultiPolygon", "coordinates": [[SQUARE], 7]})), "type 'Polygon'"),
        (json.dumps(feature({"type": "Polygon", "coordinates": [[[0, 0], [float("nan"), 1], [1, 1]]]})), "finite"),
        (json.dumps(feature({"type": "GeometryCollection", "geometries": [{"type": "GeometryCollection"}]})), "within"),
        # A bow tie: nobody knows which half was meant.
        (json.dumps(feature({"type": "Polygon", "coordinates": [[[0, 0], [9, 9], [9, 0], [0, 9]]]})), "draw it again"),
    ],
)
def test_broken_files_are_refused_by_name(content: str, reason: str) -> None:
    with pytest.raises(AnnotationError, match=rf"a\.geojson.*{reason}"):
        read_drawing(content, "a.geojson")


def test_an_outline_that_touches_or_crosses_itself_a_little_is_mended() -> None:
    nick = [[0, 0], [100, 0], [100, 100], [50, 100], [50.2, 100.3], [49.8, 100.3], [50, 100.0], [0, 100]]
    drawing = read_drawing(json.dumps(feature({"type": "Polygon", "coordinates": [nick]})), "a")
    assert (drawing.mended, drawing.polygon.is_valid) == (1, True)
    assert drawing.polygon.area == pytest.approx(10_000, rel=1e-3)


def test_a_huge_file_is_refused_before_it_is_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("online_patching.geojson.MAX_GEOJSON_BYTES", 100)
    with pytest.raises(AnnotationError, match="without cells and detections"):
        read_drawing(json.dumps(feature(RING)), "a")


def test_a_drawing_of_another_slide_is_refused_and_a_small_overlap_cut() -> None:
    size = {"width_level0_px": 1000, "height_level0_px": 500, "name": "a"}
    inside = shapely.MultiPolygon([shapely.box(10, 10, 1000, 500)])
    assert within_slide(inside, **size) is inside
    over = shapely.MultiPolygon([shapely.box(-8, 10, 1009, 500)])
    assert within_slide(over, **size).bounds == (0, 10, 1000, 500)
    for other in (shapely.box(10, 10, 1020, 20), shapely.box(-20, 0, 10, 10), shapely.box(0, 600, 10, 700)):
        with pytest.raises(AnnotationError, match="of another slide"):
            within_slide(shapely.MultiPolygon([other]), **size)


finite = st.floats(-1e6, 1e6, allow_nan=False)


@settings(max_examples=100, deadline=None)
@given(
    discs=st.lists(st.tuples(finite, finite, st.floats(0.1, 1e5)), min_size=1, max_size=6),
    holes=st.lists(st.tuples(finite, finite, st.floats(0.1, 1e5)), max_size=3),
)
def test_what_is_written_is_read_corner_by_corner(
    discs: list[tuple[float, float, float]], holes: list[tuple[float, float, float]]
) -> None:
    def union(circles: list[tuple[float, float, float]]) -> shapely.Geometry:
        return shapely.union_all([shapely.Point(x, y).buffer(radius) for x, y, radius in circles])

    parts = [part for part in shapely.get_parts(union(discs) - union(holes)) if part.area > 0]
    polygon = shapely.MultiPolygon(parts)
    text = write_drawing(polygon, "a")
    drawing = read_drawing(text, "a", classes=["Tissue"])
    assert shapely.equals_exact(drawing.polygon, polygon, 0) or not parts
    if parts and polygon.is_valid:
        (written,) = json.loads(text)["features"]
        assert (written["type"], written["properties"]["objectType"]) == ("Feature", "annotation")
        assert written["properties"]["classification"]["name"] == "Tissue"
