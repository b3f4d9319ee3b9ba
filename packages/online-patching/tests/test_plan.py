from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from online_patching.errors import MagnificationError, MissingMppError
from online_patching.formats.header import Codec, SlideHeader, TileEncoding
from online_patching.geometry import FINER_TOLERANCE, LevelGeometry, LevelWindow
from online_patching.plan import (
    LevelRead,
    PatchRequest,
    Piece,
    choose_read,
    merge_ranges,
    patch_window,
    plan_tiles,
    reduced_geometry,
    region_of,
)

# Far apart, touching, overlapping, one within another, the same twice, empty.
RANGES = st.one_of(
    st.lists(st.tuples(st.integers(0, 10**7), st.integers(0, 40_000)), max_size=40),
    st.lists(st.tuples(st.integers(0, 60), st.integers(0, 20)), max_size=40),
)
NO_LIMIT = 1 << 40


def union_bytes(ranges: list[tuple[int, int]]) -> int:
    """Bytes that lie in any of the ranges, counted once."""
    total, end = 0, 0
    for start, length in sorted(ranges):
        total += max(0, start + length - max(start, end))
        end = max(end, start + length)
    return total


@given(
    ranges=RANGES,
    gap=st.sampled_from([0, 7, 1000, 65536]),
    limit=st.sampled_from([1, 30, 50_000, 1 << 23]),
    over_read=st.sampled_from([0.0, 0.25, 1.0]),
)
def test_merged_ranges_serve_every_tile_once_within_bounds(
    ranges: list[tuple[int, int]], gap: int, limit: int, over_read: float
) -> None:
    merged = merge_ranges(ranges, max_gap_bytes=gap, max_request_bytes=limit, max_over_read=over_read)
    served = sorted(tile for request in merged for tile in request.tiles)
    stored = [k for k, (_, length) in enumerate(ranges) if length > 0]
    assert served == stored
    assert len(merged) <= len(stored)
    for request in merged:
        members = [ranges[tile] for tile in request.tiles]
        assert request.length <= max(limit, max(length for _, length in members))
        assert request.start == min(start for start, _ in members)
        assert request.start + request.length == max(start + length for start, length in members)
        needed = union_bytes(members)
        assert request.length <= (1 + over_read) * needed, "over-read beyond the bound"
        assert request.length <= needed + gap * (len(members) - 1)


@given(ranges=RANGES, gap=st.sampled_from([0, 7, 1000, 65536]))
def test_no_byte_is_fetched_twice_and_the_batch_keeps_the_over_read_bound(
    ranges: list[tuple[int, int]], gap: int
) -> None:
    merged = merge_ranges(ranges, max_gap_bytes=gap, max_request_bytes=NO_LIMIT)
    fetched = [(request.start, request.length) for request in merged]
    assert sum(length for _, length in fetched) == union_bytes(fetched)
    assert union_bytes(fetched) <= 1.25 * union_bytes(ranges)


def test_a_tile_beyond_the_request_limit_that_is_stored_once_is_fetched_once() -> None:
    ranges = [(0, 100), (0, 100), (20, 30), (99, 1), (300, 100), (300, 100)]
    merged = merge_ranges(ranges, max_gap_bytes=0, max_request_bytes=50)
    assert [(request.start, request.length) for request in merged] == [(0, 100), (300, 100)]
    assert [sorted(request.tiles) for request in merged] == [[0, 1, 2, 3], [4, 5]]


def test_neighbours_are_merged_and_strangers_are_not() -> None:
    merged = merge_ranges([(5000, 1000), (0, 1000), (1100, 1000), (10**6, 1000)])
    assert [(request.start, request.length, request.tiles) for request in merged] == [
        (0, 2100, (1, 2)),
        (5000, 1000, (0,)),
        (10**6, 1000, (3,)),
    ]


@st.composite
def geometries(draw: st.DrawFn) -> LevelGeometry:
    """A level as it is decoded: as stored, or at a reduced scale that divides its tiles."""
    reduction = draw(st.sampled_from([1, 1, 2, 4, 8]))
    tile_width, tile_height = (reduction * draw(st.integers(5, 40)) for _ in range(2))
    width, height = draw(st.integers(1, 150)), draw(st.integers(1, 150))
    geometry = LevelGeometry(width, height, tile_width, tile_height, 1.0)
    reduced = reduced_geometry(geometry, reduction)
    assert (reduced.tiles_x, reduced.tiles_y) == (geometry.tiles_x, geometry.tiles_y), "tile numbers must stay"
    assert reduced.downsample == reduction
    return reduced


WINDOWS = st.lists(
    st.builds(
        LevelWindow,
        level=st.just(0),
        x_level_px=st.integers(-70, 160),
        y_level_px=st.integers(-70, 160),
        width_level_px=st.integers(1, 80),
        height_level_px=st.integers(1, 80),
    ),
    max_size=3,
)


@given(geometry=geometries(), windows=WINDOWS)
def test_every_pixel_of_a_window_within_the_level_is_covered_once(
    geometry: LevelGeometry, windows: list[LevelWindow]
) -> None:
    planned = plan_tiles(list(enumerate(windows)), geometry)
    covered = [np.zeros((window.height_level_px, window.width_level_px), int) for window in windows]
    assert list(planned) == sorted(planned)
    for tile, pieces in planned.items():
        assert 0 <= tile < geometry.tiles_x * geometry.tiles_y
        row, column = divmod(tile, geometry.tiles_x)
        assert pieces
        for piece in pieces:
            assert 0 <= piece.x0_tile_px < piece.x1_tile_px <= geometry.tile_width_px
            assert 0 <= piece.y0_tile_px < piece.y1_tile_px <= geometry.tile_height_px
            window = windows[piece.window]
            assert piece.x_window_px + window.x_level_px == column * geometry.tile_width_px + piece.x0_tile_px
            assert piece.y_window_px + window.y_level_px == row * geometry.tile_height_px + piece.y0_tile_px
            x1 = piece.x_window_px + piece.x1_tile_px - piece.x0_tile_px
            y1 = piece.y_window_px + piece.y1_tile_px - piece.y0_tile_px
            assert 0 <= piece.x_window_px < x1 <= window.width_level_px
            assert 0 <= piece.y_window_px < y1 <= window.height_level_px
            covered[piece.window][piece.y_window_px : y1, piece.x_window_px : x1] += 1
    for window, counts in zip(windows, covered, strict=True):
        x = window.x_level_px + np.arange(window.width_level_px)
        y = window.y_level_px + np.arange(window.height_level_px)
        inside = ((y >= 0) & (y < geometry.height_px))[:, None] & ((x >= 0) & (x < geometry.width_px))[None]
        np.testing.assert_array_equal(counts, inside.astype(int))


@given(geometry=geometries(), windows=WINDOWS)
def test_the_region_of_a_tile_is_the_smallest_that_holds_its_pieces(
    geometry: LevelGeometry, windows: list[LevelWindow]
) -> None:
    for pieces in plan_tiles(list(enumerate(windows)), geometry).values():
        x0, y0, x1, y1 = region_of(pieces)
        needed = np.zeros((geometry.tile_height_px, geometry.tile_width_px), bool)
        for piece in pieces:
            needed[piece.y0_tile_px : piece.y1_tile_px, piece.x0_tile_px : piece.x1_tile_px] = True
        rows, columns = np.flatnonzero(needed.any(1)), np.flatnonzero(needed.any(0))
        assert (x0, y0, x1, y1) == (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)


def test_a_tile_that_windows_share_is_planned_once() -> None:
    geometry = LevelGeometry(100, 100, 64, 64, 1.0)
    window = LevelWindow(0, 10, 20, 30, 40)
    assert plan_tiles([(3, window), (5, window)], geometry) == {
        0: [Piece(3, 10, 20, 40, 60, 0, 0), Piece(5, 10, 20, 40, 60, 0, 0)]
    }
    assert plan_tiles([(0, LevelWindow(0, 10**12, -(10**12), 9, 9))], geometry) == {}


def header(
    mpp: float | None,
    codec: Codec = Codec.RAW,
    *,
    tile: tuple[int, int] = (256, 256),
    downsamples: tuple[int, ...] = (1,),
) -> SlideHeader:
    levels = tuple(LevelGeometry(100_000 // down, 80_000 // down, *tile, float(down)) for down in downsamples)
    return SlideHeader("aperio", mpp, levels, (TileEncoding(codec),) * len(levels))


@given(
    base_mpp=st.floats(0.1, 1.0),
    coarser=st.floats(0.81, 64.0),
    codec=st.sampled_from(list(Codec)),
    tile=st.tuples(*[st.sampled_from([240, 256, 100, 150, 127, 4])] * 2),
    downsamples=st.sampled_from([(1,), (1, 4), (1, 4, 16), (1, 2, 4)]),
)
def test_fast_decodes_at_the_largest_scale_that_loses_nothing(
    base_mpp: float, coarser: float, codec: Codec, tile: tuple[int, int], downsamples: tuple[int, ...]
) -> None:
    slide, mpp = header(base_mpp, codec, tile=tile, downsamples=downsamples), base_mpp * coarser
    exact = choose_read(slide, "s1", mpp)
    fast = choose_read(slide, "s1", mpp, decode="fast")
    assert exact.reduction == 1
    assert exact.downsample == downsamples[exact.level]
    assert fast.level == exact.level
    assert fast.enlarged == exact.enlarged == (base_mpp * exact.downsample > FINER_TOLERANCE * mpp)
    assert fast.downsample == exact.downsample * fast.reduction
    allowed = [1]
    if codec in (Codec.JPEG, Codec.JPEG2000):
        allowed += [f for f in (2, 4, 8) if tile[0] % f == tile[1] % f == 0]
    serving = [f for f in allowed if f == 1 or base_mpp * exact.downsample * f <= FINER_TOLERANCE * mpp]
    assert fast.reduction == max(serving)


@pytest.mark.parametrize("base_mpp", [0.23, 0.2425, 0.25, 0.2527, 0.26, 0.2627, 0.27])
def test_nothing_is_enlarged_silently_at_the_resolutions_of_scanners(base_mpp: float) -> None:
    for decode in ("exact", "fast"):
        for mpp in (0.25, 0.5, 1.0, 2.0):
            read = choose_read(header(base_mpp, Codec.JPEG, downsamples=(1, 4, 16)), "s1", mpp, decode=decode)  # type: ignore[arg-type]
            assert read.enlarged == (base_mpp * read.downsample > 1.05 * mpp)
            assert not read.enlarged or (read.level, read.reduction) == (0, 1)


def test_how_a_magnification_is_read_is_refused_with_the_slide_named() -> None:
    with pytest.raises(MissingMppError, match=r"slide s1: no mpp.*--mpp"):
        choose_read(header(None), "s1", 0.5)
    with pytest.raises(MagnificationError, match=r"slide s1: asked for 0\.25"):
        choose_read(header(0.5), "s1", 0.25)
    with pytest.raises(ValueError, match="decode: got 'quick', allowed 'exact' or 'fast'"):
        choose_read(header(0.5), "s1", 0.5, decode="quick")  # type: ignore[arg-type]
    assert choose_read(header(0.5), "s1", 0.25, enlarge=True) == LevelRead(0, 1, 1.0, True)


def test_a_window_is_in_the_pixels_that_are_decoded() -> None:
    slide = header(0.25, Codec.JPEG)
    request = PatchRequest("s1", 1000, 404, 256, 0.5)
    exact, fast = (choose_read(slide, "s1", 0.5, decode=decode) for decode in ("exact", "fast"))  # type: ignore[arg-type]
    assert patch_window(request, 0.25, exact) == LevelWindow(0, 1000, 404, 512, 512)
    assert patch_window(request, 0.25, fast) == LevelWindow(0, 500, 202, 256, 256)


@pytest.mark.parametrize(
    ("x", "y", "size_px", "mpp"),
    [
        (0, 0, 0, 0.5),
        (0, 0, 256, 0.0),
        (0, 0, 256, math.nan),
        (0, 0, 256, math.inf),
        (math.nan, 0, 256, 0.5),
        (0, math.inf, 256, 0.5),
    ],
)
def test_impossible_requests_are_refused_at_once(x: float, y: float, size_px: int, mpp: float) -> None:
    with pytest.raises(ValueError, match="allowed"):
        PatchRequest("s1", x, y, size_px, mpp)
