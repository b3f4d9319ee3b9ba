"""Which few tiles of a level stand for all of them?

Arrays in, arrays out. ``choose_tiles`` takes every n-th tile of every n-th row, as many as a number of bytes and of
pixels allows; ``filled`` shows every tile of the level by one of those that were read.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from online_patching.decode import Pixels

Ints = npt.NDArray[np.int64]

# The share that a read tile at the far end of its cell still counts for.
_LEAST_NEARNESS = 0.05
# A tile of half or twice the bytes counts a quarter.
_LENGTH_POWER = 2.0


@dataclass(frozen=True, slots=True)
class SparseTiles:
    """A regular part of a level's tiles.

    Attributes:
        stride: One tile of so many, in either direction.
        columns: Columns that are read, int64.
        rows: Rows that are read, int64.
    """

    stride: int
    columns: Ints
    rows: Ints

    def numbers(self, tiles_x: int) -> list[int]:
        """Row-major numbers of the tiles."""
        numbers: list[int] = (self.rows[:, None] * tiles_x + self.columns).reshape(-1).tolist()
        return numbers


def choose_tiles(
    lengths: Ints, *, max_bytes: int, max_tiles: int, bytes_of: Callable[[Sequence[int]], int]
) -> SparseTiles:
    """The densest regular part of a level's tiles that may be read.

    Args:
        lengths: Stored bytes of every tile, int64 (rows, columns).
        max_bytes: Bytes that may be fetched; one tile is read in any case.
        max_tiles: Tiles that may be decoded.
        bytes_of: Bytes that are fetched for tiles, given by their numbers.
    """
    tiles_y, tiles_x = lengths.shape
    share = max(int(lengths.sum()) / max_bytes, lengths.size / max_tiles, 1.0)
    # The estimate may be off either way, as regular tiles may meet more or less tissue.
    stride = max(1, math.floor(0.9 * math.sqrt(share)))
    while True:
        columns, rows = (np.arange(min(stride // 2, n // 2), n, stride) for n in (tiles_x, tiles_y))
        part = SparseTiles(stride, columns, rows)
        numbers = part.numbers(tiles_x)
        if len(numbers) == 1 or (len(numbers) <= max_tiles and bytes_of(numbers) <= max_bytes):
            return part
        stride += 1


def filled(tiles: Pixels, part: SparseTiles, lengths: Ints) -> Pixels:
    """A level as a mosaic of the tiles that were read.

    Args:
        tiles: The tiles that were read, each shrunk to h x w pixels, uint8 (rows read, columns read, h, w, 3).
        part: Which tiles they are.
        lengths: Stored bytes of every tile, int64 (rows, columns); 0 where none is stored, which is white.

    Returns:
        uint8 (rows * h, columns * w, 3).
    """
    down, right = most_alike(part, lengths)
    shown = tiles[down, right]
    shown[lengths == 0] = 255
    rows, columns, height, width = shown.shape[:4]
    mosaic: Pixels = shown.transpose(0, 2, 1, 3, 4).reshape(rows * height, columns * width, 3)
    return mosaic


def most_alike(part: SparseTiles, lengths: Ints) -> tuple[Ints, Ints]:
    """For every tile, which of the read tiles around it is most like it: places in ``rows`` and ``columns``."""
    tiles_y, tiles_x = lengths.shape
    above, down_share = _between(part.rows, tiles_y, part.stride)
    left, right_share = _between(part.columns, tiles_x, part.stride)
    logs = np.log(np.maximum(lengths, 1).astype(np.float64))
    read_logs = logs[np.ix_(part.rows, part.columns)]
    best = np.full(lengths.shape, -np.inf)
    found_down, found_right = np.zeros(lengths.shape, np.int64), np.zeros(lengths.shape, np.int64)
    for dy in (0, 1):
        down = np.minimum(above + dy, len(part.rows) - 1)[:, None]
        near_y = np.abs(1 - dy - down_share)[:, None]
        for dx in (0, 1):
            right = np.minimum(left + dx, len(part.columns) - 1)[None, :]
            near = near_y * np.abs(1 - dx - right_share)[None, :]
            score = np.log(near + _LEAST_NEARNESS) - _LENGTH_POWER * np.abs(logs - read_logs[down, right])
            better = score > best
            best[better] = score[better]
            found_down = np.where(better, down, found_down)
            found_right = np.where(better, right, found_right)
    # A tile that was read shows itself.
    found_down[np.ix_(part.rows, part.columns)] = np.arange(len(part.rows))[:, None]
    found_right[np.ix_(part.rows, part.columns)] = np.arange(len(part.columns))[None, :]
    return found_down, found_right


def _between(read: Ints, count: int, stride: int) -> tuple[Ints, npt.NDArray[np.float64]]:
    """For every place, the number of the read one at or before it, and how far it lies towards the next (0 to 1)."""
    places = (np.arange(count) - read[0]) / stride
    before = np.floor(places).clip(0, len(read) - 1)
    return before.astype(np.int64), (places - before).clip(0, 1)
