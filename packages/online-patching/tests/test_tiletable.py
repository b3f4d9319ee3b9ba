from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from online_patching.bytesource import ObjectInfo, PinnedObject
from online_patching.errors import CatalogError
from online_patching.formats.header import Codec, Colour, SlideHeader, TileEncoding, TileRanges
from online_patching.geometry import LevelGeometry
from online_patching.tiletable import (
    HEAD_BYTES,
    TileTableFront,
    decode_block,
    decode_front,
    encode_tile_table,
    front_bytes,
)

OBJECTS = (PinnedObject("s3://bucket/a.svs", ObjectInfo(10**9, "etag")),)


def header_of(grids: list[tuple[int, int]]) -> SlideHeader:
    rng = np.random.default_rng(0)
    return SlideHeader(
        vendor="aperio",
        mpp=0.25,
        levels=tuple(LevelGeometry(x * 256 - 5, y * 256 - 9, 256, 256, 4.0**k) for k, (x, y) in enumerate(grids)),
        encodings=tuple(TileEncoding(Codec.JPEG, Colour.YCBCR, rng.bytes(600)) for _ in grids),
        properties={f"property {k}": "some text" for k in range(40)},
    )


def realistic(tiles: int, seed: int) -> TileRanges:
    length = np.random.default_rng(seed).lognormal(9.3, 0.6, tiles).astype(np.uint32)
    offset = 70_000 + np.cumsum(length, dtype=np.uint64) - length
    return TileRanges(offset, length)


def front_of(data: bytes) -> TileTableFront:
    return decode_front(data[: front_bytes(data)], "t")


def look_up(data: bytes, front: TileTableFront, level: int, tile: int) -> tuple[int, int]:
    place = front.place(level, tile)
    start, size = front.block_range(level, place.block)
    block = decode_block(data[start : start + size], "t")
    return int(block.offset[place.entry]), int(block.length[place.entry])


@settings(deadline=None)
@given(
    grids=st.lists(st.tuples(st.integers(1, 70), st.integers(1, 50)), min_size=1, max_size=3),
    scattered=st.booleans(),
    missing=st.sampled_from([0.0, 0.3, 1.0]),
    seed=st.integers(0, 100),
)
def test_every_tile_is_found_again(grids: list[tuple[int, int]], scattered: bool, missing: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    levels = [realistic(x * y, seed + k) for k, (x, y) in enumerate(grids)]
    if scattered:
        levels = [TileRanges(rng.integers(0, 1 << 60, len(r.offset), np.uint64), r.length) for r in levels]
    for ranges in levels:
        ranges.length[rng.random(len(ranges.length)) < missing] = 0
    data = encode_tile_table(header_of(grids), OBJECTS, levels)
    front = front_of(data)
    assert (front.header, front.objects) == (header_of(grids), OBJECTS)
    for level, ranges in enumerate(levels):
        tiles = {0, len(ranges.offset) - 1, *rng.integers(0, len(ranges.offset), 20).tolist()}
        for tile in tiles:
            offset, length = look_up(data, front, level, tile)
            assert length == ranges.length[tile]
            assert length == 0 or offset == ranges.offset[tile]


def test_a_block_holds_a_square_of_a_level() -> None:
    front = front_of(encode_tile_table(header_of([(40, 20)]), OBJECTS, [realistic(800, 0)]))
    blocks = {front.place(0, y * 40 + x).block for y in range(16) for x in range(16)}
    assert blocks == {0}
    # The blocks of a level are three across and two down; those at the edges are smaller.
    assert front.place(0, 40 * 20 - 1).block == 5
    assert front.place(0, 40 * 20 - 1).entry == 4 * 8 - 1


def test_a_slide_whose_tiles_are_no_byte_ranges_has_a_header_only() -> None:
    data = encode_tile_table(header_of([(4, 4)]), OBJECTS, ())
    assert len(data) == front_bytes(data)
    assert front_of(data).header == header_of([(4, 4)])
    assert len(front_of(data).block_ends) == 0


@pytest.mark.parametrize("scattered", [False, True], ids=["in order", "in random order"])
def test_a_look_up_of_a_huge_slide_costs_at_most_16_kib(scattered: bool) -> None:
    # 100k x 80k pixels; a patch that reads 5 x 5 tiles touches at most four blocks and needs the front once.
    grids = [(391, 313), (98, 79), (25, 20)]
    levels = [realistic(x * y, k) for k, (x, y) in enumerate(grids)]
    data = encode_tile_table(header_of(grids), OBJECTS, levels)
    assert len(data) / sum(x * y for x, y in grids) <= 5
    if scattered:
        order = np.random.default_rng(0).permutation(len(levels[0].offset))
        levels[0] = TileRanges(levels[0].offset[order], levels[0].length[order])
        data = encode_tile_table(header_of(grids), OBJECTS, levels)
    front = front_of(data)
    largest = max(front.block_range(0, block)[1] for block in range(front.first_blocks[1]))
    assert front_bytes(data) + 4 * largest <= 16 * 1024


def test_a_grid_that_the_ranges_do_not_fill_is_refused() -> None:
    with pytest.raises(ValueError, match="4 x 4 tiles has 15 byte ranges"):
        encode_tile_table(header_of([(4, 4)]), OBJECTS, [realistic(15, 0)])


def test_damage_and_other_formats_are_refused_by_name() -> None:
    data = bytearray(encode_tile_table(header_of([(10, 10)]), OBJECTS, [realistic(100, 0)]))
    front = bytes(data[: front_bytes(bytes(data))])
    with pytest.raises(CatalogError, match="x: not a tile table"):
        decode_front(b"JUNK" + front[4:], "x")
    with pytest.raises(CatalogError, match="format 9"):
        decode_front(front[:4] + b"\x09\x00" + front[6:], "x")
    with pytest.raises(CatalogError, match="open the catalog again"):
        decode_front(front[:-1], "x")
    with pytest.raises(CatalogError, match="damaged"):
        decode_front(front[:HEAD_BYTES] + bytes(len(front) - HEAD_BYTES), "x")
    with pytest.raises(CatalogError, match="damaged"):
        decode_block(bytes(data[-40:]), "x")
