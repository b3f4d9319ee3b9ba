"""How is what was read of a slide's headers stored, so that a patch needs only a few KB of it?

A tile table is one file a slide. Its *front* holds everything but the byte ranges: the slide's objects with the size
and version that are pinned, its header, and the place of every block. A *block* holds the byte ranges of a square of
16 x 16 tiles of one level, so a patch touches one block, rarely two or four, wherever it lies and however wide the
slide is. The length of the front is a column of the slide table, so that the first use of a slide costs exactly one
request for it, and one more for its blocks.

::

    "OPTT" version:u16 0:u16 front_bytes:u32 | front (zstd) | blocks (zstd each), level after level, row-major
    front:  json_bytes:u32 | JSON of the header | per level the length of every block, u32, byte planes apart
    block:  first offset:u64 | lengths:u32 | gaps:i64, byte planes apart

A gap is what lies between the end of a tile and the start of the next in the block: 0 but for the first tile of a row.
A tile that was not stored has length 0; its offset is not kept. A slide whose tiles are no byte ranges (OME-Zarr) has
a front and no blocks.
"""

from __future__ import annotations

import itertools
import json
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import imagecodecs
import numpy as np
import numpy.typing as npt

from online_patching.bytesource import ByteRange, PinnedObject, shown_url
from online_patching.errors import CatalogError
from online_patching.formats.header import SlideHeader, TileRanges
from online_patching.formats.header_json import header_from_json, header_to_json
from online_patching.geometry import LevelGeometry

BLOCK_SIDE_TILES = 16
FORMAT_VERSION = 2
_HEAD = struct.Struct("<4sHHI")
HEAD_BYTES = _HEAD.size
ZSTD_LEVEL = 9


class TilePlace(NamedTuple):
    """Where a tile's byte range lies in a tile table: which block, and which entry of it."""

    block: int
    entry: int


@dataclass(frozen=True, slots=True)
class TileTableFront:
    """All of a tile table but its blocks.

    Attributes:
        header: The slide's header as its file states it.
        objects: The slide's objects with size and version pinned.
        block_ends: The end of every block in the file, level after level, uint64; empty where tiles are no byte ranges.
        first_blocks: Per level the number of its first block in ``block_ends``.
        start: First byte of the first block.
    """

    header: SlideHeader
    objects: tuple[PinnedObject, ...]
    block_ends: npt.NDArray[np.uint64]
    first_blocks: tuple[int, ...]
    start: int

    def block_range(self, level: int, block: int) -> ByteRange:
        """(start, length) of a block in the file."""
        number = self.first_blocks[level] + block
        begin = self.block_ends.item(number - 1) if number > 0 else self.start
        return begin, self.block_ends.item(number) - begin

    def place(self, level: int, tile: int) -> TilePlace:
        """The place of a tile, given by its row-major number in its level."""
        tiles_x = self.header.levels[level].tiles_x
        row, column = divmod(tile, tiles_x)
        block_row, row = divmod(row, BLOCK_SIDE_TILES)
        block_column, column = divmod(column, BLOCK_SIDE_TILES)
        across = -(-tiles_x // BLOCK_SIDE_TILES)
        # The last block of a row may be narrower.
        width = min(BLOCK_SIDE_TILES, tiles_x - block_column * BLOCK_SIDE_TILES)
        return TilePlace(block_row * across + block_column, row * width + column)


def encode_tile_table(header: SlideHeader, objects: Sequence[PinnedObject], tiles: Sequence[TileRanges]) -> bytes:
    """The tile table of a slide.

    Args:
        header: Levels, encodings, resolution, as the slide's file states them.
        objects: The slide's objects with size and version pinned.
        tiles: Byte ranges of every level's tiles, row-major; empty where they are no byte ranges.

    Raises:
        ValueError: A level has another number of ranges than tiles.
    """
    text = json.dumps(header_to_json(header, objects), sort_keys=True, separators=(",", ":")).encode()
    front = bytearray(struct.pack("<I", len(text)) + text)
    blocks: list[bytes] = []
    if tiles:
        for geometry, ranges in zip(header.levels, tiles, strict=True):
            packed = [_encode_block(offset, length) for offset, length in _block_ranges(geometry, ranges)]
            front += _planes(np.array([len(block) for block in packed], np.uint32))
            blocks += packed
    packed_front = _packed(bytes(front))
    head = _HEAD.pack(b"OPTT", FORMAT_VERSION, 0, HEAD_BYTES + len(packed_front))
    return head + packed_front + b"".join(blocks)


def front_bytes(table: bytes) -> int:
    """Bytes of the front of a tile table, head included: what its first use reads."""
    return int(_HEAD.unpack_from(table)[3])


def decode_front(data: bytes, url: str) -> TileTableFront:
    """The front of a tile table.

    Args:
        data: The first ``front_bytes`` of the file.
        url: The file, for messages.

    Raises:
        CatalogError: Not a tile table, one of another format, a damaged one, or one of another length than given.
    """
    if len(data) < HEAD_BYTES or data[:4] != b"OPTT":
        raise CatalogError(f"{shown_url(url)}: not a tile table; index the slide again")
    _, version, _, length = _HEAD.unpack_from(data)
    if version != FORMAT_VERSION:
        raise CatalogError(
            f"{shown_url(url)}: tile table format {version}, this version reads {FORMAT_VERSION}; index again"
        )
    if length != len(data):
        raise CatalogError(f"{shown_url(url)}: written anew since the catalog was opened; open the catalog again")
    try:
        raw = _unpacked(data[HEAD_BYTES:])
        (json_bytes,) = struct.unpack_from("<I", raw)
        header, objects = header_from_json(json.loads(raw[4 : 4 + json_bytes]))
        ends, first_blocks = _block_ends(header, raw[4 + json_bytes :], length)
    except Exception as error:
        raise CatalogError(
            f"{shown_url(url)}: the front of the tile table is damaged; index the slide again"
        ) from error
    return TileTableFront(header, objects, ends, first_blocks, length)


def decode_block(packed: bytes, url: str) -> TileRanges:
    """Byte ranges of the tiles of one block.

    Raises:
        CatalogError: The block is damaged.
    """
    try:
        raw = _unpacked(packed)
        count = (len(raw) - 8) // 12
        (first,) = struct.unpack_from("<Q", raw)
        lengths = _joined(raw[8 : 8 + 4 * count], 4).view(np.uint32)
        gaps = _joined(raw[8 + 4 * count :], 8).view(np.int64)
        ends = first + np.cumsum(gaps + lengths.astype(np.int64))
    except Exception as error:
        raise CatalogError(f"{shown_url(url)}: a block of the tile table is damaged; index the slide again") from error
    return TileRanges((ends - lengths).astype(np.uint64), lengths)


def _blocks_across(geometry: LevelGeometry) -> int:
    return -(-geometry.tiles_x // BLOCK_SIDE_TILES)


def _block_count(geometry: LevelGeometry) -> int:
    return _blocks_across(geometry) * -(-geometry.tiles_y // BLOCK_SIDE_TILES)


def _block_ends(header: SlideHeader, planes: bytes, start: int) -> tuple[npt.NDArray[np.uint64], tuple[int, ...]]:
    """Ends of all blocks, and the number of each level's first one."""
    if not planes:
        return np.empty(0, np.uint64), ()
    first_blocks = [0, *itertools.accumulate(map(_block_count, header.levels))]
    if 4 * first_blocks[-1] != len(planes):
        raise ValueError("another number of block lengths than of blocks")
    bounds = itertools.pairwise(first_blocks)
    lengths = np.concatenate([_joined(planes[4 * a : 4 * b], 4).view(np.uint32) for a, b in bounds])
    ends = np.cumsum(lengths, dtype=np.uint64)
    ends += np.uint64(start)
    return ends, tuple(first_blocks[:-1])


def _block_ranges(
    geometry: LevelGeometry, ranges: TileRanges
) -> Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[np.uint32]]]:
    """Offsets and lengths of every block of a level, row-major."""
    shape = geometry.tiles_y, geometry.tiles_x
    if len(ranges.offset) != shape[0] * shape[1] or len(ranges.length) != len(ranges.offset):
        raise ValueError(f"a level of {shape[1]} x {shape[0]} tiles has {len(ranges.offset)} byte ranges")
    offsets = np.asarray(ranges.offset).astype(np.int64).reshape(shape)
    lengths = np.asarray(ranges.length, np.uint32).reshape(shape)
    for y in range(0, shape[0], BLOCK_SIDE_TILES):
        for x in range(0, shape[1], BLOCK_SIDE_TILES):
            square = np.s_[y : y + BLOCK_SIDE_TILES, x : x + BLOCK_SIDE_TILES]
            yield offsets[square].reshape(-1), lengths[square].reshape(-1)


def _encode_block(offset: npt.NDArray[np.int64], length: npt.NDArray[np.uint32]) -> bytes:
    stored = np.flatnonzero(length)
    gaps = np.zeros(len(offset), np.int64)
    first = int(offset[stored[0]]) if len(stored) else 0
    # Tiles that were not stored have no place, so the gap is counted from the last one that was.
    gaps[stored[1:]] = offset[stored[1:]] - offset[stored[:-1]] - length[stored[:-1]]
    return _packed(struct.pack("<Q", first) + _planes(length) + _planes(gaps))


def _packed(data: bytes) -> bytes:
    return bytes(imagecodecs.zstd_encode(data, level=ZSTD_LEVEL))


def _unpacked(data: bytes) -> bytes:
    return bytes(imagecodecs.zstd_decode(data))


def _planes(values: npt.NDArray[np.uint32] | npt.NDArray[np.int64]) -> bytes:
    return np.ascontiguousarray(values).view(np.uint8).reshape(-1, values.dtype.itemsize).T.tobytes()


def _joined(planes: bytes, width: int) -> npt.NDArray[np.uint8]:
    return np.frombuffer(np.frombuffer(planes, np.uint8).reshape(width, -1).T.tobytes(), np.uint8)
