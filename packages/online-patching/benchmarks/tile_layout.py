"""Which stored tiles does a window of level 0 need, told independently of the package that is measured?"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import tifffile


class Part(NamedTuple):
    """What a window needs of a tile, in pixels of the tile."""

    left: int
    upper: int
    right: int
    lower: int


@dataclass(frozen=True, slots=True)
class TileLayout:
    """Where the tiles of a TIFF's first page lie."""

    width_px: int
    height_px: int
    tile_width_px: int
    tile_height_px: int
    offsets: Sequence[int]
    lengths: Sequence[int]

    @classmethod
    def of_file(cls, path: str) -> TileLayout:
        """Read the first page's tags with tifffile."""
        with tifffile.TiffFile(path) as tiff:
            page = tiff.pages.first
            return cls(
                page.imagewidth,
                page.imagelength,
                page.tilewidth,
                page.tilelength,
                tuple(page.dataoffsets),
                tuple(page.databytecounts),
            )

    def parts(self, x_px: int, y_px: int, side_px: int) -> list[tuple[int, Part]]:
        """Numbers of the tiles that a square touches, and what it needs of each."""
        across = -(-self.width_px // self.tile_width_px)
        right, lower = min(x_px + side_px, self.width_px), min(y_px + side_px, self.height_px)
        left, upper = max(x_px, 0), max(y_px, 0)
        found = []
        for row in range(upper // self.tile_height_px, -(-lower // self.tile_height_px)):
            for column in range(left // self.tile_width_px, -(-right // self.tile_width_px)):
                x0, y0 = column * self.tile_width_px, row * self.tile_height_px
                part = Part(
                    max(left - x0, 0),
                    max(upper - y0, 0),
                    min(right - x0, self.tile_width_px),
                    min(lower - y0, self.tile_height_px),
                )
                found.append((row * across + column, part))
        return found


@dataclass(frozen=True, slots=True)
class TileNeeds:
    """What the windows of a round need.

    Attributes:
        tiles: Tiles of all windows, each counted once a window.
        distinct_tiles: Each counted once a batch.
        bytes: Stored bytes of ``tiles``.
        distinct_bytes: Stored bytes of ``distinct_tiles``.
    """

    tiles: int
    distinct_tiles: int
    bytes: int
    distinct_bytes: int

    @property
    def saved_share(self) -> float:
        """Share of the tiles that need not be decoded again because patches of a batch share them."""
        return 1 - self.distinct_tiles / self.tiles


def needs_of(windows: Iterable[tuple[str, int, int, int]], *, batch: int) -> TileNeeds:
    """Count the tiles of (path, x, y, side) windows of level 0 that are read in batches."""
    layouts: dict[str, TileLayout] = {}
    tiles = distinct = stored = distinct_stored = 0
    seen: set[tuple[str, int]] = set()
    for k, (path, x_px, y_px, side_px) in enumerate(windows):
        if k % batch == 0:
            seen.clear()
        layout = layouts.get(path) or layouts.setdefault(path, TileLayout.of_file(path))
        for number, _ in layout.parts(x_px, y_px, side_px):
            length = layout.lengths[number]
            tiles += 1
            stored += length
            if (path, number) not in seen:
                seen.add((path, number))
                distinct += 1
                distinct_stored += length
    return TileNeeds(tiles, distinct, stored, distinct_stored)
