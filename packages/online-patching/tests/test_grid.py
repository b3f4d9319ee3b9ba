from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from online_patching import grid
from online_patching.grid import grid_positions
from online_patching.outline import Outline

SLIDE: dict[str, Any] = {"width_level0_px": 1000, "height_level0_px": 700}


@settings(max_examples=80, deadline=None)
@given(
    circles=st.lists(st.tuples(st.integers(0, 1000), st.integers(0, 700), st.floats(3, 300)), min_size=1, max_size=5),
    size=st.one_of(st.integers(5, 400), st.floats(5, 1200)),
    stride=st.one_of(st.just(None), st.floats(11, 300)),
    least=st.sampled_from([0.0, 0.25, 0.5, 1.0]),
    rows_at_once=st.integers(1, 5),
)
def test_every_patch_with_enough_foreground_is_there_once(
    circles: list[tuple[int, int, float]], size: float, stride: float | None, least: float, rows_at_once: int
) -> None:
    whole = shapely.union_all([shapely.Point(x, y).buffer(r) for x, y, r in circles])
    polygon = shapely.intersection(whole, shapely.box(0, 0, 1000, 700))
    stride = max(11.0, size) if stride is None else stride
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(grid, "_CELLS_AT_ONCE", rows_at_once * 10)
        x, y = grid_positions(
            Outline.of(polygon), size_level0_px=size, stride_level0_px=stride, min_foreground=least, **SLIDE
        )
    found = list(zip(y.tolist(), x.tolist(), strict=True))
    assert found == sorted(set(found)), "row by row, each once"
    xs, ys = (np.rint(np.arange(0, extent, stride)) for extent in (1000, 700))
    all_x, all_y = (each.ravel() for each in np.meshgrid(xs[xs < 1000], ys[ys < 700]))
    boxes = shapely.box(all_x, all_y, all_x + size, all_y + size)
    shares = shapely.area(shapely.intersection(polygon, boxes)) / size**2
    surely = {(b, a) for a, b, s in zip(all_x, all_y, shares, strict=True) if s >= least + 2e-9 and s > 3e-9}
    perhaps = {(b, a) for a, b, s in zip(all_x, all_y, shares, strict=True) if s >= least - 3e-9 and s > 0}
    assert surely <= set(found) <= perhaps


def test_patches_over_the_edge_belong_to_the_grid_if_they_hold_enough() -> None:
    everything = Outline.of(shapely.box(0, 0, 1000, 700))
    x, y = grid_positions(everything, size_level0_px=300, stride_level0_px=300, min_foreground=0.3, **SLIDE)
    # The fourth column has 100 of 300 pixels on the slide, the third row too; their corner a ninth of its area.
    assert list(zip(x.tolist(), y.tolist(), strict=True)) == [
        (a, b) for b in (0, 300, 600) for a in (0, 300, 600, 900) if (a, b) != (900, 600)
    ]
    small = Outline.of(shapely.box(0, 0, 80, 80))
    x, y = grid_positions(
        small, size_level0_px=100, stride_level0_px=100, width_level0_px=80, height_level0_px=80, min_foreground=0.5
    )
    assert (x.tolist(), y.tolist()) == ([0], [0]), "a slide smaller than a patch"
    empty = grid_positions(
        Outline.of(shapely.MultiPolygon()), size_level0_px=10, stride_level0_px=10, min_foreground=0.0, **SLIDE
    )
    assert [len(each) for each in empty] == [0, 0]


def test_shares_at_the_bound_are_decided_exactly() -> None:
    # 102.4 of 256 columns are tissue: 40 % to the last bit, in every patch of 100 columns of them.
    bars = shapely.MultiPolygon([shapely.box(256 * k, 0, 256 * k + 102.4, 25_600) for k in range(100)])
    x, _ = grid_positions(
        Outline.of(bars),
        size_level0_px=256,
        stride_level0_px=256,
        width_level0_px=25_600,
        height_level0_px=25_600,
        min_foreground=0.4,
    )
    assert len(x) == 100 * 100


def test_a_large_slide_takes_little_time() -> None:
    """120,000 patches of 256 pixels in 100k x 80k pixels at 0.25 um/px."""
    angles = np.linspace(0, 2 * np.pi, 4000, endpoint=False)
    radii = 1 + 0.02 * np.cos(97 * angles)
    polygon = shapely.Polygon(
        np.stack([50_000 * (1 + radii * np.cos(angles) * 0.95), 40_000 * (1 + radii * np.sin(angles) * 0.95)], axis=1)
    )
    started = time.process_time()
    x, _ = grid_positions(
        Outline.of(polygon),
        size_level0_px=256,
        stride_level0_px=256,
        width_level0_px=100_000,
        height_level0_px=80_000,
        min_foreground=0.4,
    )
    assert time.process_time() - started < 3
    assert len(x) == pytest.approx(polygon.area / 256**2, rel=0.01)
    assert len(x) > 80_000
