"""What does a whole slide look like, at a size that fits the screen, for a bounded number of bytes?

A stored thumbnail image may be cropped or retouched by the scanner; this one is made of the tiles that patches are read
from:

1. ``choose_source``: of the levels that are fine enough the coarsest; where it has more bytes than may be read, a
   somewhat coarser one; where there is none either, a part of its tiles (``sparse_tiles``);
2. a whole level is read by strips of whole tile rows, each shrunk at once, so that a level of a gigapixel never lies in
   memory; JPEG and JPEG 2000 are decoded at reduced scale where the level is that much finer;
3. of a part of the tiles (every n-th of every n-th row), each missing one shows the most alike of the read tiles around
   it: near, and of a similar number of stored bytes, which is known of all tiles (glass compresses to a fraction of
   tissue);
4. a tile that does not decode is white and counted, as long as few do not (``MAX_CORRUPT_SHARE``): one damaged tile
   must not cost a slide its foreground. A strip with such a tile is read again by single tiles.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import cv2
import numpy as np
import numpy.typing as npt

from online_patching import loop
from online_patching.batch_plan import WindowRequest
from online_patching.bytesource import ByteRange
from online_patching.decode import Pixels, reductions
from online_patching.errors import CorruptTileError
from online_patching.geometry import LevelGeometry, LevelWindow
from online_patching.plan import merge_ranges, reduced_geometry
from online_patching.reader import WINDOWS_AT_ONCE, read_windows
from online_patching.slide import Slide
from online_patching.sparse_tiles import SparseTiles, choose_tiles, filled
from online_patching.tile_source import RangeTiles

# 8 to 16 um per pixel for most slides.
THUMBNAIL_SIDE_PX = 2048
# A level of this share of the side is taken rather than a part of a finer level's tiles.
COARSER_SHARE = 0.25
MAX_BYTES = 64 * 10**6
STRIP_TILE_ROWS = 4
# Pixels of separate tiles that lie in memory before they are shrunk.
AT_ONCE_BYTES = 64 * 2**20
# Where no table tells how long tiles are: bytes a pixel of an ordinary JPEG or Blosc chunk.
ASSUMED_BYTES_A_PX = 0.5
# Pixels that are decoded, so that a core needs no more than two seconds: 4,096 tiles of 256 px.
MAX_DECODED_PX = 4096 * 256 * 256
# Of the tiles that are read; with more of them white, tissue would be missed in earnest. One may be in any case, where
# there are more.
MAX_CORRUPT_SHARE = 0.05


@dataclass(frozen=True, slots=True)
class Thumbnail:
    """A picture of a whole slide.

    Attributes:
        pixels: uint8 (H, W, 3) RGB.
        mpp: um per pixel, where the slide states its own.
        level: The level it was made of.
        tiles: Number of tiles that were read.
        of_tiles: Number of tiles of that level.
        bytes_read: Bytes of these tiles, as fetched.
        corrupt_tiles: Number of those that do not decode, and are white.
    """

    pixels: Pixels
    mpp: float | None
    level: int
    tiles: int
    of_tiles: int
    bytes_read: int
    corrupt_tiles: int = 0

    @property
    def is_sparse(self) -> bool:
        """Whether only a part of the tiles was read."""
        return self.tiles < self.of_tiles


def thumbnail_of(slide: Slide, side_px: int = THUMBNAIL_SIDE_PX) -> Pixels:
    """The pixels alone of ``read_thumbnail``."""
    return read_thumbnail(slide, side_px).pixels


def read_thumbnail(slide: Slide, side_px: int = THUMBNAIL_SIDE_PX, *, max_bytes: int = MAX_BYTES) -> Thumbnail:
    """The whole slide, its longer side ``side_px`` (or as stored, where the slide is smaller).

    Args:
        slide: The slide.
        side_px: Longer side.
        max_bytes: Bytes that may be read. Which tiles are read depends on nothing else but the slide.

    Raises:
        CorruptTileError: More than ``MAX_CORRUPT_SHARE`` of the tiles do not decode.
        StorageError: The slide cannot be fetched.
        ValueError: A side or number of bytes that cannot be.
    """
    if side_px < 1 or max_bytes < 1:
        raise ValueError(f"a thumbnail of {side_px} px from {max_bytes} bytes: allowed at least 1")
    level, ranges = _choose_level(slide, side_px, max_bytes)
    geometry = slide.levels[level]
    shrink = max(1.0, max(geometry.width_px, geometry.height_px) / side_px)
    size = max(1, round(geometry.width_px / shrink)), max(1, round(geometry.height_px / shrink))
    lengths = np.array([length for _, length in ranges], np.int64).reshape(geometry.tiles_y, geometry.tiles_x)

    def bytes_of(numbers: Sequence[int]) -> int:
        return sum(merged.length for merged in merge_ranges([ranges[number] for number in numbers]))

    part = choose_tiles(lengths, max_bytes=max_bytes, max_tiles=_max_tiles(geometry), bytes_of=bytes_of)
    corrupt = _CorruptTiles()
    if part.stride == 1:
        pixels = _read_strips(slide, level, size, corrupt)
    else:
        pixels = _read_part(slide, level, part, lengths, size, corrupt)
    mpp = None if slide.mpp is None else slide.mpp * slide.levels[0].width_px / size[0]
    read = part.numbers(geometry.tiles_x)
    corrupt.check(slide.slide_id, level, len(read))
    twice = sum(bytes_of(numbers) for numbers in corrupt.read_again)
    return Thumbnail(pixels, mpp, level, len(read), len(ranges), bytes_of(read) + twice, corrupt.tiles)


@dataclass(slots=True)
class _CorruptTiles:
    """The tiles that do not decode, while a thumbnail is read.

    Attributes:
        tiles: Their number.
        first: The error of the first.
        read_again: Numbers of the tiles of each strip that was read again because of one.
    """

    tiles: int = 0
    first: CorruptTileError | None = None
    read_again: list[range] = field(default_factory=list)

    def white(self, error: CorruptTileError, request: WindowRequest) -> Pixels:
        """Counts a tile; returns what stands for it."""
        self.tiles += 1
        self.first = self.first or error
        return np.full((request.window.height_level_px, request.window.width_level_px, 3), 255, np.uint8)

    def check(self, slide_id: str, level: int, tiles: int) -> None:
        """Refuses a thumbnail of so many tiles if too many of them are white."""
        if self.tiles > max(1, MAX_CORRUPT_SHARE * tiles) or self.tiles == tiles:
            raise CorruptTileError(
                f"slide {slide_id}: {self.tiles} of {tiles} tiles of level {level} do not decode, so its thumbnail"
                f" would show no tissue there; the first: {self.first}"
            ) from self.first


def _choose_level(slide: Slide, side_px: int, max_bytes: int) -> tuple[int, list[ByteRange]]:
    """The level to read, and where its tiles lie."""
    sides = [max(g.width_px, g.height_px) for g in slide.levels]
    usable = [k for k, side in enumerate(sides) if side >= COARSER_SHARE * side_px]
    first = max((k for k in usable if sides[k] >= side_px), default=0)
    for level in [first, *(k for k in usable if k > first)]:
        if slide.levels[level].tiles_x * slide.levels[level].tiles_y <= _max_tiles(slide.levels[level]):
            ranges = _ranges(slide, level)
            if sum(length for _, length in ranges) <= max_bytes:
                return level, ranges
    return first, _ranges(slide, first)


def _max_tiles(geometry: LevelGeometry) -> int:
    return max(1, MAX_DECODED_PX // (geometry.tile_width_px * geometry.tile_height_px))


def _ranges(slide: Slide, level: int) -> list[ByteRange]:
    """(start, length) of all tiles of a level; guessed where no table tells them."""
    geometry, tiles = slide.levels[level], slide.handle.tiles
    count = geometry.tiles_x * geometry.tiles_y
    if isinstance(tiles, RangeTiles):
        return loop.run(tiles.lookup.ranges(level, range(count)))
    length = max(1, round(geometry.tile_width_px * geometry.tile_height_px * ASSUMED_BYTES_A_PX))
    # Each an object of its own, so none is fetched with another.
    return [(number * length * 1000, length) for number in range(count)]


def _reduction(slide: Slide, level: int, shrink: float) -> int:
    """The factor at which the tiles of a level are decoded at reduced scale."""
    geometry, encoding = slide.levels[level], slide.header.encodings[level]
    factors = reductions(encoding, geometry.tile_width_px, geometry.tile_height_px)
    return max((factor for factor in factors if factor <= shrink), default=1)


def _read_strips(slide: Slide, level: int, size: tuple[int, int], corrupt: _CorruptTiles) -> Pixels:
    """A whole level at ``size``, (width, height)."""
    (width, height), stored = size, slide.levels[level]
    reduction = _reduction(slide, level, stored.width_px / width)
    geometry = reduced_geometry(stored, reduction)
    shrunk = []
    # Whole rows of tiles: none is read twice.
    for y0, y1 in pairwise(
        [*range(0, geometry.height_px, STRIP_TILE_ROWS * geometry.tile_height_px), geometry.height_px]
    ):
        top, bottom = (round(edge * height / geometry.height_px) for edge in (y0, y1))
        if top == bottom:
            continue
        window = LevelWindow(level, 0, y0, geometry.width_px, y1 - y0)
        (pixels,) = loop.run(read_windows([WindowRequest(slide.handle, slide.slide_id, window, None, reduction)]))
        if isinstance(pixels, CorruptTileError):
            pixels = _read_by_tiles(slide, geometry, window, reduction, corrupt)
        shrunk.append(cv2.resize(pixels, (width, bottom - top), interpolation=cv2.INTER_AREA))
    return np.concatenate(shrunk)


def _read_by_tiles(
    slide: Slide, geometry: LevelGeometry, strip: LevelWindow, reduction: int, corrupt: _CorruptTiles
) -> Pixels:
    """A strip of whole tile rows at reduced scale; tiles that do not decode are white."""
    edges = strip.y_level_px, strip.y_level_px + strip.height_level_px - 1
    first, last = (edge // geometry.tile_height_px for edge in edges)
    corrupt.read_again.append(range(first * geometry.tiles_x, (last + 1) * geometry.tiles_x))
    requests = [
        _tile_request(slide, strip.level, geometry, row, column, reduction)
        for row in range(first, last + 1)
        for column in range(geometry.tiles_x)
    ]
    pixels = np.empty((strip.height_level_px, strip.width_level_px, 3), np.uint8)
    for request, tile in zip(requests, _read(requests, corrupt), strict=True):
        window = request.window
        top, left = window.y_level_px - strip.y_level_px, window.x_level_px
        pixels[top : top + window.height_level_px, left : left + window.width_level_px] = tile
    return pixels


def _tile_request(
    slide: Slide, level: int, geometry: LevelGeometry, row: int, column: int, reduction: int
) -> WindowRequest:
    """One tile, as far as it lies within the level."""
    x, y = column * geometry.tile_width_px, row * geometry.tile_height_px
    width = min(geometry.tile_width_px, geometry.width_px - x)
    height = min(geometry.tile_height_px, geometry.height_px - y)
    return WindowRequest(slide.handle, slide.slide_id, LevelWindow(level, x, y, width, height), None, reduction)


def _read_part(
    slide: Slide,
    level: int,
    part: SparseTiles,
    lengths: npt.NDArray[np.int64],
    size: tuple[int, int],
    corrupt: _CorruptTiles,
) -> Pixels:
    """A level at ``size``, (width, height), of which only some tiles are read."""
    stored = slide.levels[level]
    shrink = stored.width_px / size[0]
    reduction = _reduction(slide, level, shrink)
    geometry = reduced_geometry(stored, reduction)
    side_x, side_y = (max(1, round(side / shrink)) for side in (stored.tile_width_px, stored.tile_height_px))
    requests = [
        _tile_request(slide, level, geometry, row, column, reduction)
        for row in part.rows.tolist()
        for column in part.columns.tolist()
    ]
    at_once = max(1, min(WINDOWS_AT_ONCE, AT_ONCE_BYTES // max(request.size_bytes for request in requests)))
    shrunk = [
        cv2.resize(pixels, (side_x, side_y), interpolation=cv2.INTER_AREA)
        for first in range(0, len(requests), at_once)
        for pixels in _read(requests[first : first + at_once], corrupt)
    ]
    tiles = np.asarray(shrunk, np.uint8).reshape(len(part.rows), len(part.columns), side_y, side_x, 3)
    mosaic = filled(tiles, part, lengths)
    # The last tiles reach past the level's edges.
    right = max(1, round(stored.width_px / stored.tile_width_px * side_x))
    bottom = max(1, round(stored.height_px / stored.tile_height_px * side_y))
    within = np.ascontiguousarray(mosaic[:bottom, :right])
    return np.asarray(cv2.resize(within, size, interpolation=cv2.INTER_AREA), np.uint8)


def _read(requests: Sequence[WindowRequest], corrupt: _CorruptTiles) -> list[Pixels]:
    return [
        corrupt.white(tile, request) if isinstance(tile, CorruptTileError) else tile
        for request, tile in zip(requests, loop.run(read_windows(requests)), strict=True)
    ]
