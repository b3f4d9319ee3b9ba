from __future__ import annotations

import math
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import shapely
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from online_patching import SamplingError
from online_patching.outline import Outline
from online_patching.sampling import Allowed, can_hold_patch, generator, sample_position, sample_positions

WIDTH, HEIGHT = 2000, 1500


def blobs(circles: list[tuple[int, int, int]]) -> shapely.Geometry:
    polygon = shapely.union_all([shapely.Point(x, y).buffer(r) for x, y, r in circles])
    return shapely.intersection(polygon, shapely.box(0, 0, WIDTH, HEIGHT))


@settings(max_examples=60, deadline=None)
@given(
    circles=st.lists(
        st.tuples(st.integers(0, WIDTH), st.integers(0, HEIGHT), st.integers(60, 500)), min_size=1, max_size=6
    ),
    size=st.integers(16, 400),
    share=st.sampled_from([0.0, 0.1, 0.4, 0.9, 1.0]),
    seed=st.integers(0, 1000),
)
def test_every_sample_has_its_foreground_and_lies_on_the_slide(
    circles: list[tuple[int, int, int]], size: int, share: float, seed: int
) -> None:
    polygon = blobs(circles)
    assume(can_hold_patch(polygon.area, size, share))
    try:
        position = sample_position(
            Outline.of(polygon),
            size_level0_px=size,
            width_level0_px=WIDTH,
            height_level0_px=HEIGHT,
            min_foreground=share,
            rng=generator(seed, 3),
        )
    except SamplingError:
        return
    x, y = position.x_level0_px, position.y_level0_px
    exact = polygon.intersection(shapely.box(x, y, x + size, y + size)).area / size**2
    assert position.foreground == pytest.approx(exact, abs=1e-9)
    assert exact >= share - 1e-9
    assert exact > 0
    assert 0 <= x <= WIDTH - size
    assert 0 <= y <= HEIGHT - size


# Of a slide of 160 x 120 pixels: where few of the positions in the bounds are allowed, and hardly two neighbours.
AWKWARD = {
    "two blobs": (blobs([(50, 40, 25), (110, 80, 30)]), 20, 0.4),
    "thin": (shapely.LineString([(3, 4), (80, 30), (155, 117)]).buffer(1.3), 12, 0.2),
    "hardly any": (shapely.LineString([(10, 110), (150, 12)]).buffer(1.9), 15.5, 0.2955),
    "holed": (shapely.Point(80, 60).buffer(55).difference(shapely.Point(84, 62).buffer(46)), 14, 0.55),
    "many parts": (
        shapely.union_all([shapely.box(x, y, x + 5, y + 4) for x in range(2, 150, 11) for y in range(1, 115, 9)]),
        9.25,
        0.235,
    ),
    "touched at all": (shapely.box(100, 50, 101.5, 52), 30, 0.0),
    "wholly inside": (shapely.Polygon([(5, 5), (150, 20), (140, 110), (60, 70)]), 24, 1.0),
}
SLIDE = {"width_level0_px": 160, "height_level0_px": 120}


def every_share(polygon: shapely.Geometry, size: float) -> npt.NDArray[np.float64]:
    """Share of foreground of the patches at all positions on the slide, by shapely, float64 (rows, columns)."""
    xs, ys = np.arange(0, math.floor(160 - size) + 1), np.arange(0, math.floor(120 - size) + 1)
    x, y = (each.ravel() for each in np.meshgrid(xs, ys))
    areas = shapely.area(shapely.intersection(polygon, shapely.box(x, y, x + size, y + size)))
    return np.asarray(areas / size**2).reshape(len(ys), len(xs))


@pytest.mark.parametrize("name", AWKWARD)
def test_positions_are_uniform_over_exactly_those_that_are_allowed(name: str) -> None:
    polygon, size, least = AWKWARD[name]
    shares = every_share(polygon, size)
    allowed = np.flatnonzero((shares >= least - 1e-9) & (shares > 1e-9))
    draws = 6000
    x, y, share = sample_positions(
        Outline.of(polygon), size_level0_px=size, min_foreground=least, seed=5, indices=range(draws), **SLIDE
    )
    np.testing.assert_allclose(share, shares[y, x], atol=2e-9)
    counts = np.bincount(y * shares.shape[1] + x, minlength=shares.size)
    assert counts.sum() == counts[allowed].sum(), "a position that is not allowed was drawn"
    # Neighbours together, so that each bin expects 20 draws or more.
    bins = np.array_split(counts[allowed], min(len(allowed), draws // 20))
    expected = np.array([len(each) for each in bins]) * draws / len(allowed)
    chi_square = float((((np.array([each.sum() for each in bins]) - expected) ** 2) / expected).sum())
    freedom = len(bins) - 1
    # Mean of chi-square is its degrees of freedom, standard deviation sqrt(2 x that).
    assert abs(chi_square - freedom) < 4 * np.sqrt(2 * freedom) + 1


@pytest.mark.parametrize("name", AWKWARD)
def test_many_samples_at_once_are_those_one_by_one_whatever_was_asked_before(name: str) -> None:
    polygon, size, least = AWKWARD[name]
    arguments: Any = {"size_level0_px": size, "min_foreground": least, **SLIDE}
    used = Outline.of(polygon)
    x, y, share = sample_positions(used, seed=3, indices=range(60), **arguments)
    for index in range(60):
        found = [
            sample_position(outline, rng=generator(3, index), **arguments) for outline in (used, Outline.of(polygon))
        ]
        assert found[0] == found[1]
        assert (found[0].x_level0_px, found[0].y_level0_px) == (x[index], y[index])
        assert found[0].foreground == pytest.approx(share[index], abs=1e-12)


def star(corners: int, rng: np.random.Generator, extent: float) -> shapely.Geometry:
    """A ragged blob with a hole; valid, since it is a function of the angle."""
    angles = np.linspace(0, 2 * np.pi, corners - corners // 4, endpoint=False)
    hole = np.linspace(0, 2 * np.pi, max(3, corners // 4), endpoint=False)
    radii = extent * (0.35 + 0.1 * np.cos(3 * angles) + rng.uniform(-0.02, 0.02, len(angles)))
    rings = [
        extent / 2 + np.stack([r * np.cos(a), r * np.sin(a)], axis=1)
        for r, a in ((radii, angles), (extent * rng.uniform(0.1, 0.14, len(hole)), hole))
    ]
    return shapely.Polygon(rings[0], [rings[1]])


@pytest.mark.parametrize("corners", [10, 100, 2000, 20_000, 100_000])
@pytest.mark.parametrize("mpp", [0.25, 2.0])
def test_polygons_of_any_size_agree_with_shapely(corners: int, mpp: float) -> None:
    rng = np.random.default_rng(corners)
    extent = 80_000
    polygon = star(corners, rng, extent)
    assert polygon.is_valid
    shapely.prepare(polygon)
    size = 256 * mpp / 0.2465
    outline = Outline.from_wkb(shapely.to_wkb(polygon))
    x, y, share = sample_positions(
        outline,
        size_level0_px=size,
        width_level0_px=extent,
        height_level0_px=extent,
        min_foreground=0.4,
        seed=1,
        indices=range(200),
    )
    some = slice(0, 200 if corners < 50_000 else 30)
    boxes = shapely.box(x[some], y[some], x[some] + size, y[some] + size)
    exact = shapely.area(shapely.intersection(polygon, boxes)) / size**2
    np.testing.assert_allclose(share[some], exact, atol=1e-9)
    assert exact.min() >= 0.4 - 1e-9
    assert x.min() >= 0
    assert y.min() >= 0
    # At the outline, where shares are neither 0 nor 1, one by one.
    for point in shapely.get_coordinates(polygon)[:: corners // 10]:
        left, upper = np.floor(point - size * rng.uniform(0, 1, 2))
        box = shapely.box(left, upper, left + size, upper + size)
        expected = shapely.intersection(polygon, box).area / size**2
        assert outline.share(left, upper, size) == pytest.approx(expected, abs=1e-9)


@settings(max_examples=25, deadline=None)
@given(
    lines=st.lists(
        st.tuples(*(st.integers(0, n) for n in (160, 120, 160, 120)), st.floats(0.2, 9)), min_size=1, max_size=4
    ),
    size=st.floats(1, 60),
    least=st.floats(0, 1),
)
def test_the_cells_hold_every_allowed_position(
    lines: list[tuple[int, int, int, int, float]], size: float, least: float
) -> None:
    whole = shapely.union_all([shapely.LineString([(a, b), (c, d)]).buffer(r) for a, b, c, d, r in lines])
    polygon = shapely.intersection(whole, shapely.box(0, 0, 160, 120))
    shares = every_share(polygon, size)
    allowed = {(x, y) for y, x in np.argwhere((shares >= least + 2e-9) & (shares > 2e-9)).tolist()}
    outline = Outline.of(polygon)
    try:
        where = Allowed.within(outline, size_level0_px=size, min_foreground=least, **SLIDE)
        cells = where.cells(outline)
    except SamplingError:
        assert not allowed
        return
    found = [
        (x, y)
        for x0, y0, width, height in zip(cells.x, cells.y, cells.width, cells.height, strict=True)
        for x in range(x0, x0 + width)
        for y in range(y0, y0 + height)
    ]
    assert len(found) == len(set(found)) == cells.ends[-1], "a position is in two cells"
    assert allowed <= set(found)


def test_a_patch_that_has_no_place_is_an_error_at_once() -> None:
    """Large enough by its area and by its bounds, but nowhere together."""
    dots = shapely.union_all(
        [shapely.Point(x, y).buffer(60) for x in range(500, 60_000, 900) for y in range(500, 60_000, 900)]
    )
    outline = Outline.of(dots)
    started = time.process_time()
    with pytest.raises(SamplingError, match="no patch of 400 level-0 pixels has 40% foreground"):
        sample_position(
            outline,
            size_level0_px=400,
            width_level0_px=60_000,
            height_level0_px=60_000,
            min_foreground=0.4,
            rng=generator(0, 0),
        )
    assert time.process_time() - started < 10


def test_a_thin_strip_across_a_large_slide_takes_no_search() -> None:
    strip = shapely.LineString([(100, 100), (99_000, 96_000)]).buffer(10)
    outline = Outline.of(strip)
    asked = 0
    shares = outline.shares

    def counted(left: npt.NDArray[np.float64], *rest: Any) -> npt.NDArray[np.float64]:
        nonlocal asked
        asked += len(left)
        return shares(left, *rest)

    outline.shares = counted  # type: ignore[method-assign]
    arguments: Any = {
        "size_level0_px": 256,
        "width_level0_px": 100_000,
        "height_level0_px": 100_000,
        "min_foreground": 0.08,
        "seed": 0,
    }
    sample_positions(outline, indices=range(2), **arguments)
    assert 100 < asked < 100_000, "what finding the cells takes, once"
    asked = 0
    x, y, _ = sample_positions(outline, indices=range(2, 202), **arguments)
    corners = np.random.default_rng(0).uniform(0, 99_000, (2, 40_000)).round()
    naive = 40_000 / np.count_nonzero(shares(*corners, 256, 256) >= arguments["min_foreground"])
    assert asked / 200 < naive / 2
    assert np.ptp(x) > 90_000
    exact = shapely.area(shapely.intersection(strip, shapely.box(x, y, x + 256, y + 256))) / 256**2
    assert exact.min() >= 0.08 - 1e-9


def test_a_sample_depends_on_seed_and_number_only() -> None:
    first = [generator(7, k).random() for k in range(5)]
    assert first == [generator(7, k).random() for k in range(5)]
    assert len({*first, *(generator(8, k).random() for k in range(5)), generator(7, 0, attempt=1).random()}) == 11


@given(
    seed=st.integers(0, 2**64 - 1),
    index=st.integers(0, 2**64 - 1),
    attempt=st.integers(0, 2**64 - 1),
    used_before=st.integers(0, 5),
)
def test_a_generator_is_a_fresh_philox_of_seed_and_number(
    seed: int, index: int, attempt: int, used_before: int
) -> None:
    generator(1, 2).integers(0, 2**20, used_before)
    # As arrays: in a list, numbers from 2^63 on would become fractions.
    key, counter = np.array([seed, 0], np.uint64), np.array([0, 0, attempt, index], np.uint64)
    fresh = np.random.Generator(np.random.Philox(key=key, counter=counter))
    rng = generator(seed, index, attempt)
    # 32-bit draws leave half of a word in the generator; that must not reach the next sample.
    assert [rng.integers(0, 1000) for _ in range(3)] == [fresh.integers(0, 1000) for _ in range(3)]
    assert (rng.random(6) == fresh.random(6)).all()


def test_threads_have_generators_of_their_own() -> None:
    expected = {k: generator(3, k).random(50).tolist() for k in range(4)}

    def draws(k: int) -> list[float]:
        rng = generator(3, k)
        return [(rng.random(), barrier.wait(10))[0] for _ in range(50)]

    barrier = threading.Barrier(4)
    with ThreadPoolExecutor(4) as pool:
        assert dict(enumerate(pool.map(draws, range(4)))) == expected


def test_impossible_samples_are_errors_and_no_endless_search() -> None:
    sliver = Outline.of(shapely.box(100, 100, 101, 1400))
    with pytest.raises(SamplingError):
        sample_position(
            sliver,
            size_level0_px=200,
            width_level0_px=WIDTH,
            height_level0_px=HEIGHT,
            min_foreground=0.4,
            rng=generator(0, 0),
        )
    with pytest.raises(SamplingError, match="too small"):
        sample_position(
            Outline.of(shapely.MultiPolygon()),
            size_level0_px=10,
            width_level0_px=WIDTH,
            height_level0_px=HEIGHT,
            min_foreground=0.0,
            rng=generator(0, 0),
        )


def test_a_slide_smaller_than_the_patch_is_sampled_around() -> None:
    outline = Outline.of(shapely.box(0, 0, 80, 80))
    position = sample_position(
        outline, size_level0_px=100, width_level0_px=80, height_level0_px=80, min_foreground=0.5, rng=generator(0, 0)
    )
    assert -20 <= position.x_level0_px <= 0
    assert position.foreground == pytest.approx(0.64)
