from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from online_patching.errors import MissingMppError
from online_patching.formats.header import Codec, SlideHeader, TileEncoding
from online_patching.geometry import LevelGeometry
from online_patching.plan import PatchRequest, merge_ranges, patch_window

RANGES = st.lists(st.tuples(st.integers(0, 10**7), st.integers(0, 40_000)), max_size=40)


@given(ranges=RANGES, gap=st.sampled_from([0, 1000, 65536]), limit=st.sampled_from([1, 50_000, 1 << 23]))
def test_merged_ranges_serve_every_tile_once_within_bounds(ranges: list[tuple[int, int]], gap: int, limit: int) -> None:
    merged = merge_ranges(ranges, max_gap_bytes=gap, max_request_bytes=limit)
    served = sorted(tile for request in merged for tile in request.tiles)
    assert served == [k for k, (_, length) in enumerate(ranges) if length > 0]
    for request in merged:
        assert request.length <= limit or len(request.tiles) == 1
        wanted = 0
        for tile in request.tiles:
            start, length = ranges[tile]
            assert request.start <= start
            assert start + length <= request.start + request.length
            wanted += length
        assert request.length <= wanted + gap * (len(request.tiles) - 1), "over-read beyond the bound"


def header(mpp: float | None) -> SlideHeader:
    level = LevelGeometry(1000, 800, 256, 256, 1.0)
    return SlideHeader("aperio", mpp, (level,), (TileEncoding(Codec.RAW),))


def test_a_patch_of_a_slide_without_mpp_says_how_to_give_it() -> None:
    request = PatchRequest("s1", 0, 0, 256, 0.5)
    with pytest.raises(MissingMppError, match=r"slide s1: no mpp.*--mpp"):
        patch_window(request, header(None))
    assert patch_window(request, header(0.25)).width_level_px == 512


@pytest.mark.parametrize(("size_px", "mpp"), [(0, 0.5), (256, 0.0), (256, float("nan"))])
def test_impossible_requests_are_refused_at_once(size_px: int, mpp: float) -> None:
    with pytest.raises(ValueError, match="allowed"):
        PatchRequest("s1", 0, 0, size_px, mpp)
