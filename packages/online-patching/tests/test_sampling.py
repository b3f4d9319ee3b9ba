from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import shapely
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from online_patching import SamplingError
from online_patching.outline import Outline
from online_patching.sampling import can_hold_patch, generator, sample_position

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


def test_positions_are_uniform_over_all_that_are_allowed() -> None:
    outline = Outline.of(blobs([(300, 300, 90), (700, 350, 120)]))
    size, share, draws = 100, 0.4, 4000
    allowed = {
        (x, y) for x in range(100, 900, 5) for y in range(100, 600, 5) if outline.share(x + 2, y + 2, size) >= share
    }
    counts: dict[tuple[int, int], int] = {}
    for index in range(draws):
        position = sample_position(
            outline,
            size_level0_px=size,
            width_level0_px=1000,
            height_level0_px=700,
            min_foreground=share,
            rng=generator(0, index),
        )
        # Bins of 50 px: enough draws a bin for a chi-square test.
        key = (position.x_level0_px // 50, position.y_level0_px // 50)
        counts[key] = counts.get(key, 0) + 1
    expected: dict[tuple[int, int], float] = {}
    for x, y in allowed:
        key = (x // 50, y // 50)
        expected[key] = expected.get(key, 0) + draws / len(allowed)
    bins = [key for key, value in expected.items() if value >= 15]
    chi_square = sum((counts.get(key, 0) - expected[key]) ** 2 / expected[key] for key in bins)
    # Mean of chi-square is its degrees of freedom, standard deviation sqrt(2 x that); the grid of 5 px adds a little.
    assert chi_square < len(bins) + 4 * np.sqrt(2 * len(bins)) + 0.1 * len(bins)


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
