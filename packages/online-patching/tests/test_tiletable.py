from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from online_patching.errors import CatalogError
from online_patching.formats.header import TileRanges
from online_patching.tiletable import (
    BLOCK_TILES,
    HEAD_BYTES,
    decode_block,
    decode_directory,
    directory_length,
    encode_tile_table,
)


def read_back(data: bytes) -> list[TileRanges]:
    levels, length = directory_length(data[:HEAD_BYTES], "t")
    directory = decode_directory(data[HEAD_BYTES : HEAD_BYTES + length], levels, "t")
    found = []
    for level, ends in enumerate(directory.block_ends):
        places = [directory.block_range(level, block) for block in range(len(ends))]
        blocks = [decode_block(data[start : start + size], "t") for start, size in places]
        offset = np.concatenate([b.offset for b in blocks]) if blocks else np.empty(0, np.uint64)
        found.append(
            TileRanges(offset, np.concatenate([b.length for b in blocks]) if blocks else np.empty(0, np.uint32))
        )
    return found


def realistic(tiles: int, seed: int) -> TileRanges:
    length = np.random.default_rng(seed).lognormal(9.3, 0.6, tiles).astype(np.uint32)
    offset = 70_000 + np.cumsum(length, dtype=np.uint64) - length
    return TileRanges(offset, length)


@given(
    sizes=st.lists(st.integers(0, 2500), min_size=1, max_size=3),
    scattered=st.booleans(),
    seed=st.integers(0, 100),
)
def test_round_trip(sizes: list[int], scattered: bool, seed: int) -> None:
    levels = [realistic(size, seed + k) for k, size in enumerate(sizes)]
    if scattered:
        rng = np.random.default_rng(seed)
        levels = [TileRanges(rng.integers(0, 1 << 60, len(r.offset), np.uint64), r.length) for r in levels]
    for given_, got in zip(levels, read_back(encode_tile_table(levels)), strict=True):
        np.testing.assert_array_equal(got.offset, given_.offset)
        np.testing.assert_array_equal(got.length, given_.length)


def test_a_tile_costs_at_most_five_bytes_and_a_look_up_at_most_16_kib() -> None:
    # A slide of 100k x 80k pixels: a patch may touch two blocks at level 0 and needs the directory once.
    data = encode_tile_table([realistic(391 * 313, 0), realistic(98 * 79, 1), realistic(25 * 20, 2)])
    tiles = 391 * 313 + 98 * 79 + 25 * 20
    assert len(data) / tiles <= 5
    levels, length = directory_length(data[:HEAD_BYTES], "t")
    directory = decode_directory(data[HEAD_BYTES : HEAD_BYTES + length], levels, "t")
    largest = max(directory.block_range(0, block)[1] for block in range(-(-391 * 313 // BLOCK_TILES)))
    assert HEAD_BYTES + length + 2 * largest <= 16 * 1024


def test_damage_and_newer_formats_are_refused_by_name() -> None:
    data = bytearray(encode_tile_table([realistic(100, 0)]))
    with pytest.raises(CatalogError, match="x: not a tile table"):
        directory_length(b"JUNK" + bytes(data[4:HEAD_BYTES]), "x")
    with pytest.raises(CatalogError, match="format 9"):
        directory_length(bytes(data[:4]) + b"\x09\x00" + bytes(data[6:HEAD_BYTES]), "x")
    with pytest.raises(CatalogError, match="damaged"):
        decode_directory(b"nonsense", 1, "x")
    with pytest.raises(CatalogError, match="damaged"):
        decode_block(bytes(data[-40:]), "x")
