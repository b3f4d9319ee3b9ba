from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from online_patching.errors import MagnificationError
from online_patching.geometry import (
    LevelGeometry,
    LevelWindow,
    choose_level,
    footprint_level0_px,
    tiles_of_window,
    window_at_level,
)

PYRAMID = (1.0, 4.0, 16.0)


@given(base=st.floats(0.23, 0.27), mpp=st.sampled_from([0.25, 0.5, 1.0, 2.0, 4.0]))
def test_finer_policy_enlarges_nothing_but_base_resolution_tolerance(base: float, mpp: float) -> None:
    level = choose_level(PYRAMID, base_mpp=base, mpp=mpp)
    enlargement = base * PYRAMID[level] / mpp
    assert enlargement <= (1.25 if level == 0 else 1.05)
    coarser = PYRAMID[level + 1 :]
    assert all(base * down > 1.05 * mpp for down in coarser), "a coarser level would have done"


def test_closest_policy_is_the_papers_words() -> None:
    # On a 1/4/16 pyramid of 0.246 um/px, 10x (0.984) is closer to 0.5 than 40x (0.246) by |log| only just.
    assert choose_level(PYRAMID, base_mpp=0.246, mpp=0.5, policy="closest") == 1
    assert choose_level(PYRAMID, base_mpp=0.246, mpp=0.5, policy="finer") == 0


def test_too_coarse_a_slide_is_an_error_unless_enlarging_is_asked_for() -> None:
    with pytest.raises(MagnificationError, match=r"2\.00 times"):
        choose_level(PYRAMID, base_mpp=0.5, mpp=0.25)
    assert choose_level(PYRAMID, base_mpp=0.5, mpp=0.25, enlarge=True) == 0
    with pytest.raises(ValueError, match="allowed"):
        choose_level(PYRAMID, base_mpp=0.5, mpp=0.5, policy="nearest")  # type: ignore[arg-type]


@given(
    x=st.integers(-300, 900),
    y=st.integers(-300, 900),
    width=st.integers(1, 700),
    height=st.integers(1, 700),
    tile=st.sampled_from([16, 100, 240]),
)
def test_tiles_are_exactly_those_with_a_pixel_in_the_window(x: int, y: int, width: int, height: int, tile: int) -> None:
    geometry = LevelGeometry(517, 389, tile, tile, 1.0)
    expected = []
    for number in range(geometry.tiles_x * geometry.tiles_y):
        row, column = divmod(number, geometry.tiles_x)
        left, upper = column * tile, row * tile
        right, lower = min(left + tile, geometry.width_px), min(upper + tile, geometry.height_px)
        if max(left, x) < min(right, x + width) and max(upper, y) < min(lower, y + height):
            expected.append(number)
    assert tiles_of_window(LevelWindow(0, x, y, width, height), geometry) == expected


@given(x=st.floats(-1e5, 1e5), downsample=st.floats(1, 64), size=st.floats(0.01, 1e5))
def test_window_is_displaced_by_at_most_half_a_pixel(x: float, downsample: float, size: float) -> None:
    window = window_at_level(x_level0_px=x, y_level0_px=0, size_level0_px=size, level=0, downsample=downsample)
    assert abs(window.x_level_px - x / downsample) <= 0.5
    assert window.width_level_px >= 1
    assert abs(window.width_level_px - size / downsample) <= max(0.5, 1 - size / downsample)


def test_footprint() -> None:
    assert footprint_level0_px(256, 1.0, 0.25) == 1024
