from __future__ import annotations

import numpy as np
import pytest
import shapely
from hypothesis import example, given, settings
from hypothesis import strategies as st
from online_patching import outline as outline_module
from online_patching.coverage import covered_areas
from online_patching.outline import Outline

EXTENT = 4000


@st.composite
def polygons(draw: st.DrawFn) -> shapely.Geometry:
    """Blobs with holes, of few or many corners, off whole pixels or on them."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    corners = draw(st.sampled_from([4, 9, 60, 700]))

    def star() -> shapely.Geometry:
        angles = np.sort(rng.uniform(0, 2 * np.pi, corners))
        radii = rng.uniform(100, 1500) * rng.uniform(0.5, 1, corners)
        points = rng.uniform(0, EXTENT, 2) + np.stack([radii * np.cos(angles), radii * np.sin(angles)], axis=1)
        return shapely.make_valid(shapely.Polygon(points.round() if draw(st.booleans()) else points))

    whole = shapely.union_all([star() for _ in range(draw(st.integers(1, 3)))])
    holes = shapely.union_all([star() for _ in range(draw(st.integers(0, 2)))])
    parts = shapely.get_parts(shapely.difference(whole, shapely.buffer(holes, -5)))
    return shapely.MultiPolygon([part for part in parts if part.geom_type == "Polygon"])


def turned(geometry: shapely.Geometry) -> shapely.Geometry:
    """The same polygons with some of their rings the other way round."""
    return shapely.MultiPolygon(
        [
            shapely.Polygon(
                part.exterior.coords[:: (-1) ** k], [hole.coords[:: (-1) ** (k // 2)] for hole in part.interiors]
            )
            for k, part in enumerate(geometry.geoms)
        ]
    )


@settings(max_examples=150, deadline=None)
@given(
    geometry=polygons(),
    seed=st.integers(0, 1000),
    side=st.one_of(st.integers(1, 900), st.floats(0.5, 6000)),
    whole=st.booleans(),
)
def test_the_share_is_the_area_that_shapely_clips(
    geometry: shapely.Geometry, seed: int, side: float, whole: bool
) -> None:
    rng = np.random.default_rng(seed)
    many = rng.uniform(-side, EXTENT, (2, 10))
    width, height = side * rng.uniform(0.3, 2, 2)
    boxes = shapely.box(*many, many[0] + width, many[1] + height)
    areas = shapely.area(shapely.intersection(geometry, boxes)) / (width * height)
    np.testing.assert_allclose(Outline.of(geometry).shares(*many, width, height), areas, atol=2e-9)
    outlines = [Outline.of(geometry), Outline.of(turned(geometry)), Outline.from_wkb(shapely.to_wkb(geometry))]
    for _ in range(10):
        x, y = rng.uniform(-side, EXTENT, 2).round() if whole else rng.uniform(-side, EXTENT, 2)
        expected = shapely.intersection(geometry, shapely.box(x, y, x + side, y + side)).area / side**2
        for outline in outlines:
            assert outline.share(x, y, side) == pytest.approx(expected, abs=2e-9)


@settings(max_examples=60, deadline=None)
@given(geometry=polygons(), seed=st.integers(0, 1000))
def test_edges_are_found_by_rows_as_among_all(geometry: shapely.Geometry, seed: int) -> None:
    rng = np.random.default_rng(seed)
    for left, upper, side in np.column_stack([rng.uniform(-500, EXTENT, (12, 2)), rng.uniform(1, 2000, 12)]).tolist():
        outline = Outline.of(geometry)
        among_all = outline.share(left, upper, side)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(outline_module, "_MANY_POINTS", 0)
            patch.setattr(outline_module, "_USES_BEFORE_ROWS", 0)
            assert outline.share(left, upper, side) == among_all, "the same to the last bit"


@settings(max_examples=60, deadline=None)
@given(geometry=polygons(), seed=st.integers(0, 1000))
@example(geometry=shapely.MultiPolygon(), seed=0)
def test_the_areas_of_a_whole_grid_are_those_that_shapely_clips(geometry: shapely.Geometry, seed: int) -> None:
    rng = np.random.default_rng(seed)
    x, y = (np.unique(rng.uniform(-200, EXTENT + 200, rng.integers(2, 12)).round(rng.integers(0, 3))) for _ in range(2))
    outline = Outline.of(turned(geometry)) if seed % 2 else Outline.of(geometry)
    cells = shapely.box(
        *(each.ravel() for each in np.meshgrid(x[:-1], y[:-1])), *(each.ravel() for each in np.meshgrid(x[1:], y[1:]))
    )
    expected = shapely.area(shapely.intersection(geometry, cells)).reshape(len(y) - 1, len(x) - 1)
    np.testing.assert_allclose(covered_areas(outline, x, y), expected, atol=1e-6)


def test_inside_and_outside_are_exact() -> None:
    ring = shapely.Point(1000.3, 1000.7).buffer(900.1).difference(shapely.Point(1000, 1000).buffer(300.3))
    outline = Outline.of(ring)
    assert outline.share(1400, 1400, 100) == 1.0
    assert outline.share(950, 950, 100) == 0.0, "in the hole"
    assert outline.share(0, 0, 200) == 0.0, "within the bounds, but outside"
    assert outline.share(5000, 950, 100) == outline.share(950, 5000, 100) == outline.share(-500, 950, 100) == 0.0
    # Edges on the square's own sides.
    square = Outline.of(shapely.box(100, 100, 200, 200))
    assert square.share(100, 100, 100) == square.share(120, 100, 50) == square.share(150, 150, 50) == 1.0
    assert square.share(0, 100, 100) == square.share(200, 100, 100) == square.share(100, 200, 100) == 0.0
    assert square.share(150, 50, 100) == 0.25
    assert square.bounds == (100.0, 100.0, 200.0, 200.0)


def test_every_kind_of_wkb_is_read() -> None:
    triangle = shapely.Polygon([(0, 0), (10, 0), (0, 10)])
    both = shapely.MultiPolygon([triangle, shapely.box(20, 20, 30, 30)])
    written = [
        *(shapely.to_wkb(triangle), shapely.to_wkb(triangle, byte_order=0)),
        *(shapely.to_wkb(both), shapely.to_wkb(both, byte_order=0)),
        shapely.to_wkb(shapely.force_3d(both, 7.0)),
        shapely.to_wkb(shapely.set_srid(both, 3857), include_srid=True),
        shapely.to_wkb(shapely.GeometryCollection([triangle])),
    ]
    for data in written:
        assert Outline.from_wkb(data).share(0, 0, 10) == 0.5
    for empty in (shapely.MultiPolygon(), shapely.Polygon()):
        outline = Outline.from_wkb(shapely.to_wkb(empty))
        assert outline.bounds is None
        assert outline.share(0, 0, 10) == 0.0


@settings(max_examples=200, deadline=None)
@given(place=st.integers(0, 2000), value=st.integers(0, 255), length=st.integers(0, 2000))
def test_damaged_wkb_is_an_error_or_another_polygon(place: int, value: int, length: int) -> None:
    data = bytearray(shapely.to_wkb(shapely.MultiPolygon([shapely.Point(50, 50).buffer(20), shapely.box(0, 0, 5, 5)])))
    data[place % len(data)] = value
    for each in (bytes(data), bytes(data[:length])):
        try:
            share = Outline.from_wkb(each).share(0, 0, 100)
        except ValueError:
            continue
        assert not np.isnan(share)


def test_what_no_polygon_has_is_refused() -> None:
    square = [(0.0, 0.0), (1.0, 0.0), (1.0, 1.0), (0.0, 1.0), (0.0, 0.0)]
    with pytest.raises(ValueError, match="not closed"):
        Outline(np.array([*square[:-1], (0.0, 0.5)]), [5], [False])
    for value in (np.nan, np.inf, 1e13):
        points = np.array(square)
        points[1, 1] = value
        with pytest.raises(ValueError, match="of no slide"):
            Outline(points, [5], [False])
