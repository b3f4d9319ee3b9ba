"""How are the byte ranges of a slide's tiles stored, so that a patch needs only a few of them?

A tile table is one file a slide. Every level's tiles, in row-major order, are cut into blocks of 1,024; a block holds
its first offset, the lengths, and the gaps between the end of a tile and the start of the next (nearly always 0), byte
planes apart and compressed with Zstandard. A directory at the front gives each block's place, so reading a tile costs
the directory once and then one small block.

::

    "OPTT" version:u16 levels:u16 directory_bytes:u32 | directory (zstd) | blocks (zstd each)
    directory: per level tiles:u32, then per block its end:u64
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

import imagecodecs
import numpy as np
import numpy.typing as npt

from online_patching.errors import CatalogError
from online_patching.formats.header import TileRanges

BLOCK_TILES = 1024
FORMAT_VERSION = 1
_HEAD = struct.Struct("<4sHHI")
HEAD_BYTES = _HEAD.size


@dataclass(frozen=True, slots=True)
class TileTableDirectory:
    """Where the blocks of a tile table lie.

    Attributes:
        tiles: Number of tiles of every level.
        block_ends: End of every block in the file, level after level; the first block starts at ``start``.
        start: First byte of the first block.
    """

    tiles: tuple[int, ...]
    block_ends: tuple[tuple[int, ...], ...]
    start: int

    def block_range(self, level: int, block: int) -> tuple[int, int]:
        """(start, length) of a block in the file."""
        if block > 0:
            begin = self.block_ends[level][block - 1]
        else:
            begin = next((ends[-1] for ends in reversed(self.block_ends[:level]) if ends), self.start)
        return begin, self.block_ends[level][block] - begin


def encode_tile_table(levels: Sequence[TileRanges]) -> bytes:
    """The file of a slide's tile ranges."""
    directory = bytearray()
    blocks: list[bytes] = []
    end = 0
    for ranges in levels:
        count = len(ranges.offset)
        directory += struct.pack("<I", count)
        for first in range(0, count, BLOCK_TILES):
            blocks.append(
                _encode_block(ranges.offset[first : first + BLOCK_TILES], ranges.length[first:][:BLOCK_TILES])
            )
            end += len(blocks[-1])
            directory += struct.pack("<Q", end)
    packed = bytes(imagecodecs.zstd_encode(bytes(directory), level=9))
    return _HEAD.pack(b"OPTT", FORMAT_VERSION, len(levels), len(packed)) + packed + b"".join(blocks)


def directory_length(head: bytes, name: str) -> tuple[int, int]:
    """Number of levels and bytes of the directory, from the first ``HEAD_BYTES`` of a tile table.

    Raises:
        CatalogError: Not a tile table, or one of a newer format.
    """
    magic, version, levels, length = _HEAD.unpack(head)
    if magic != b"OPTT":
        raise CatalogError(f"{name}: not a tile table; index the slide again")
    if version > FORMAT_VERSION:
        raise CatalogError(f"{name}: tile table format {version}, this version reads up to {FORMAT_VERSION}; upgrade")
    return levels, length


def decode_directory(packed: bytes, levels: int, name: str) -> TileTableDirectory:
    """The directory of a tile table.

    Raises:
        CatalogError: The directory is damaged.
    """
    start = HEAD_BYTES + len(packed)
    try:
        raw = bytes(imagecodecs.zstd_decode(packed))
        tiles, ends, place = [], [], 0
        for _ in range(levels):
            (count,) = struct.unpack_from("<I", raw, place)
            blocks = -(-count // BLOCK_TILES)
            ends.append(tuple(start + end for end in struct.unpack_from(f"<{blocks}Q", raw, place + 4)))
            tiles.append(count)
            place += 4 + 8 * blocks
    except Exception as error:
        raise CatalogError(f"{name}: the tile table's directory is damaged; index the slide again") from error
    return TileTableDirectory(tuple(tiles), tuple(ends), start)


def decode_block(packed: bytes, name: str) -> TileRanges:
    """Byte ranges of the tiles of one block.

    Raises:
        CatalogError: The block is damaged.
    """
    try:
        raw = bytes(imagecodecs.zstd_decode(packed))
        first, count = struct.unpack_from("<QI", raw)
        lengths = _joined(raw[12 : 12 + 4 * count], 4).view(np.uint32)
        gaps = _joined(raw[12 + 4 * count : 12 + 12 * count], 8).view(np.int64)
        steps = lengths[:-1].astype(np.int64) + gaps[1:]
        offsets = np.concatenate([[first], first + np.cumsum(steps)]).astype(np.uint64)
    except Exception as error:
        raise CatalogError(f"{name}: a block of the tile table is damaged; index the slide again") from error
    return TileRanges(offsets, lengths)


def _encode_block(offset: npt.NDArray[np.uint64], length: npt.NDArray[np.uint32]) -> bytes:
    starts = offset.astype(np.int64)
    lengths = length.astype(np.uint32)
    gaps = np.zeros(len(starts), np.int64)
    gaps[1:] = starts[1:] - starts[:-1] - lengths[:-1]
    raw = struct.pack("<QI", int(starts[0]), len(starts)) + _planes(lengths, 4) + _planes(gaps, 8)
    return bytes(imagecodecs.zstd_encode(raw, level=9))


def _planes(values: npt.NDArray[np.generic], width: int) -> bytes:
    return values.view(np.uint8).reshape(-1, width).T.tobytes()


def _joined(planes: bytes, width: int) -> npt.NDArray[np.uint8]:
    return np.ascontiguousarray(np.frombuffer(planes, np.uint8).reshape(width, -1).T).reshape(-1)
