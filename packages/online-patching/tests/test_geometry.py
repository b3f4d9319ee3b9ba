from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from online_patching.errors import MagnificationError
from online_patching.geometry import (
    FINER_TOLERANCE,
    MAX_ENLARGEMENT,
    LevelPolicy,
    choose_level,
    enlargement,
    footprint_level0_px,
    window_at_level,
)

PYRAMID = (1.0, 4.0, 16.0)


BASES = st.floats(0.23, 0.27)
TARGETS = st.one_of(st.sampled_from([0.25, 0.5, 1.0, 2.0]), st.floats(0.2, 8.0))


@st.composite
def pyramids(draw: st.DrawFn) -> list[float]:
    """Downsamples of real pyramids: powers of two or four, or whatever a scanner's rounding made of them."""
    step, levels = draw(st.sampled_from([2.0, 4.0])), draw(st.integers(1, 6))
    skew = draw(st.sampled_from([0.0, 1e-4, 0.01]))
    odd = st.lists(st.floats(1.01, 64.0), max_size=5).map(sorted)
    regular = [step**k * (1 + skew * k) for k in range(1, levels)]
    return [1.0, *draw(st.one_of(st.just(regular), odd))]


@given(base=BASES, mpp=TARGETS, pyramid=pyramids())
def test_finer_takes_the_coarsest_level_that_need_not_be_enlarged(
    base: float, mpp: float, pyramid: list[float]
) -> None:
    if base > MAX_ENLARGEMENT * mpp:
        with pytest.raises(MagnificationError, match="would be enlarged"):
            choose_level(pyramid, base_mpp=base, mpp=mpp)
        assert choose_level(pyramid, base_mpp=base, mpp=mpp, enlarge=True) == 0
        return
    level = choose_level(pyramid, base_mpp=base, mpp=mpp)
    taken = base * pyramid[level]
    assert enlargement(taken, mpp) <= (1.25 if level == 0 else 1.05)
    # Every level that is coarser than the one taken would have to be enlarged by more than 1.05.
    assert all(base * down > 1.05 * mpp for down in pyramid if down > pyramid[level])


@given(base=BASES, mpp=TARGETS, pyramid=pyramids())
def test_closest_takes_the_level_of_the_smallest_logarithm(base: float, mpp: float, pyramid: list[float]) -> None:
    if base > MAX_ENLARGEMENT * mpp:
        with pytest.raises(MagnificationError, match="would be enlarged"):
            choose_level(pyramid, base_mpp=base, mpp=mpp, policy="closest")
        return
    level = choose_level(pyramid, base_mpp=base, mpp=mpp, policy="closest")
    distances = np.abs(np.log(base * np.array(pyramid) / mpp))
    assert distances[level] == pytest.approx(distances.min(), abs=1e-12)


@pytest.mark.parametrize("pyramid", [[1.0, 2.0, 4.0, 8.0], [1.0, 4.0, 16.0], [1.0, 4.0005, 16.004]])
@pytest.mark.parametrize("base", [0.23, 0.2465, 0.25, 0.2525, 0.2626, 0.27])
@pytest.mark.parametrize("policy", ["finer", "closest"])
def test_enlarged_patches_are_told(pyramid: list[float], base: float, policy: LevelPolicy) -> None:
    for mpp in (0.25, 0.5, 1.0, 2.0):
        taken = base * pyramid[choose_level(pyramid, base_mpp=base, mpp=mpp, policy=policy)]
        counted = enlargement(taken, mpp) > FINER_TOLERANCE
        if policy == "finer":
            assert counted == (mpp == 0.25 and base > 1.05 * 0.25)
        elif not counted:
            assert taken <= 1.05 * mpp
    assert enlargement(0.5, 0.25) == 2
    assert enlargement(0.25, 0.5) == 1


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


@given(x=st.floats(-1e5, 1e5), y=st.floats(-1e5, 1e5), downsample=st.floats(1, 64), size=st.floats(0.01, 1e5))
def test_a_window_is_as_near_to_its_footprint_as_whole_pixels_can_be(
    x: float, y: float, downsample: float, size: float
) -> None:
    window = window_at_level(x_level0_px=x, y_level0_px=y, size_level0_px=size, level=0, downsample=downsample)
    side, footprint = window.width_level_px, size / downsample
    assert side == window.height_level_px >= 1
    assert abs(side - footprint) <= max(0.5, 1 - footprint)
    assert footprint < 0.5 or abs(side / footprint - 1) <= 0.5 / footprint + 1e-12
    for corner, got in ((x, window.x_level_px), (y, window.y_level_px)):
        near, far = corner / downsample, (corner + size) / downsample
        assert abs((got + side / 2) - (near + far) / 2) <= 0.5 + 1e-9
        assert footprint < 0.5 or max(abs(got - near), abs(got + side - far)) <= 0.75 + 1e-9


@given(x=st.integers(-(10**5), 10**5), size=st.floats(1, 1e4))
def test_a_window_of_level_0_starts_at_its_corner(x: int, size: float) -> None:
    window = window_at_level(x_level0_px=x, y_level0_px=-x, size_level0_px=size, level=0, downsample=1.0)
    assert (window.x_level_px, window.y_level_px) == (x, -x)


def test_footprint() -> None:
    assert footprint_level0_px(256, 1.0, 0.25) == 1024
