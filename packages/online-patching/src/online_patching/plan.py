"""Which bytes must be fetched, and which of their pixels decoded, for a batch of patches?

Pure planning, no I/O:

1. ``choose_read``: a magnification becomes a level of a slide and, with ``decode="fast"``, a factor at which its tiles
   are decoded at reduced scale; ``patch_window``: a request becomes a window of that level;
2. ``plan_tiles``: the windows of a level become tiles, each once however many windows share it, with the piece of it
   that each window needs;
3. ``merge_ranges``: neighbouring byte ranges become one request where the bytes between them are few.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, NamedTuple

import numpy as np

from online_patching.decode import reductions
from online_patching.errors import MagnificationError, MissingMppError
from online_patching.formats.header import SlideHeader
from online_patching.geometry import (
    FINER_TOLERANCE,
    LevelGeometry,
    LevelPolicy,
    LevelWindow,
    choose_level,
    footprint_level0_px,
    window_at_level,
)

DecodeMode = Literal["exact", "fast"]

# A request costs about as much as 64 KiB of transfer on a cloud store's connection; larger gaps are not worth it.
MAX_GAP_BYTES = 64 * 1024
MAX_REQUEST_BYTES = 8 * 1024 * 1024
# Bytes that a request may fetch for nothing, as a share of those that are needed of it.
MAX_OVER_READ = 0.25
# 3 GB a patch; OpenCV resizes no larger ones.
MAX_SIZE_PX = 32_767
# A metre.
MAX_MPP = 1e6


@dataclass(frozen=True, slots=True)
class PatchRequest:
    """One square patch of one slide.

    Attributes:
        slide_id: Id in the catalog.
        x_level0_px: Left edge at level 0; may lie outside of the slide (white there).
        y_level0_px: Upper edge at level 0.
        size_px: Side of the patch that is returned.
        mpp: um per pixel of the patch that is returned.
    """

    slide_id: str
    x_level0_px: float
    y_level0_px: float
    size_px: int
    mpp: float

    def __post_init__(self) -> None:
        check_patch_size(self.size_px, self.mpp)
        if not (_is_finite(self.x_level0_px) and _is_finite(self.y_level0_px)):
            raise ValueError(
                f"slide {self.slide_id}: a patch at ({self.x_level0_px!r}, {self.y_level0_px!r}), allowed"
                " finite numbers"
            )


def check_patch_size(size_px: int, mpp: float) -> None:
    """Refuse a patch that cannot be.

    Raises:
        ValueError: No whole number of pixels, of at most ``MAX_SIZE_PX``, or no mpp above 0 and up to ``MAX_MPP``.
    """
    if not isinstance(size_px, (int, np.integer)) or not 1 <= size_px <= MAX_SIZE_PX:
        raise ValueError(f"size_px: got {size_px!r}, allowed a whole number from 1 to {MAX_SIZE_PX}")
    if not _is_finite(mpp) or not 0 < mpp <= MAX_MPP:
        raise ValueError(f"mpp: got {mpp!r}, allowed a number above 0 and up to {MAX_MPP:g} (um per pixel)")


def _is_finite(value: object) -> bool:
    return isinstance(value, (int, float, np.integer, np.floating)) and math.isfinite(value)


class LevelRead(NamedTuple):
    """How a magnification is read from a slide.

    Attributes:
        level: Index of the stored level.
        reduction: Factor at which its tiles are decoded at reduced scale: 1 (as stored), 2, 4 or 8.
        downsample: Level-0 pixels per pixel that is decoded.
        enlarged: Whether the pixels are coarser than the target by more than 1.05 and so are enlarged.
    """

    level: int
    reduction: int
    downsample: float
    enlarged: bool


class Piece(NamedTuple):
    """The part of one tile that one window needs, in pixels as they are decoded.

    Attributes:
        window: Number of the window.
        x0_tile_px: Left edge in the tile.
        y0_tile_px: Upper edge in the tile.
        x1_tile_px: Right edge in the tile, exclusive.
        y1_tile_px: Lower edge in the tile, exclusive.
        x_window_px: Where its left edge lies in the window.
        y_window_px: Where its upper edge lies in the window.
    """

    window: int
    x0_tile_px: int
    y0_tile_px: int
    x1_tile_px: int
    y1_tile_px: int
    x_window_px: int
    y_window_px: int


@dataclass(frozen=True, slots=True)
class MergedRange:
    """One range request and the tiles it serves.

    Attributes:
        start: First byte.
        length: Bytes.
        tiles: Positions, in the planned sequence, of the ranges that lie within.
    """

    start: int
    length: int
    tiles: tuple[int, ...]


def choose_read(
    header: SlideHeader,
    slide_id: str,
    mpp: float,
    *,
    policy: LevelPolicy = "finer",
    enlarge: bool = False,
    decode: DecodeMode = "exact",
) -> LevelRead:
    """The level to read for a magnification, and at which scale.

    Args:
        header: Levels and encodings.
        slide_id: For messages.
        mpp: Target um per pixel.
        policy: See ``geometry.choose_level``.
        enlarge: Accept level 0 even where it must be enlarged by more than 1.25.
        decode: ``fast`` decodes at the largest reduction that is not coarser than 1.05 x the target.

    Raises:
        MissingMppError: The slide states no mpp.
        MagnificationError: No level is fine enough.
    """
    if decode not in ("exact", "fast"):
        raise ValueError(f"decode: got {decode!r}, allowed 'exact' or 'fast'")
    if header.mpp is None:
        raise MissingMppError(
            f"slide {slide_id}: no mpp in its headers, so {mpp:g} um/px has no meaning; give the"
            " catalog column 'mpp', `--mpp` when indexing, or pass mpp= to open_slide"
        )
    try:
        level = choose_level(
            [g.downsample for g in header.levels], base_mpp=header.mpp, mpp=mpp, policy=policy, enlarge=enlarge
        )
    except MagnificationError as error:
        raise MagnificationError(f"slide {slide_id}: {error}") from None
    geometry = header.levels[level]
    level_mpp = header.mpp * geometry.downsample
    reduction = 1
    if decode == "fast":
        factors = reductions(header.encodings[level], geometry.tile_width_px, geometry.tile_height_px)
        reduction = max((f for f in factors if level_mpp * f <= FINER_TOLERANCE * mpp), default=1)
    return LevelRead(level, reduction, geometry.downsample * reduction, level_mpp > FINER_TOLERANCE * mpp)


def patch_window(request: PatchRequest, base_mpp: float, read: LevelRead) -> LevelWindow:
    """The window to read for a request, in pixels as they are decoded."""
    return window_at_level(
        x_level0_px=request.x_level0_px,
        y_level0_px=request.y_level0_px,
        size_level0_px=footprint_level0_px(request.size_px, request.mpp, base_mpp),
        level=read.level,
        downsample=read.downsample,
    )


@lru_cache(maxsize=4096)
def reduced_geometry(geometry: LevelGeometry, reduction: int) -> LevelGeometry:
    """A level as it is when its tiles are decoded at reduced scale; the tile grid stays the same."""
    if reduction == 1:
        return geometry
    return LevelGeometry(
        -(-geometry.width_px // reduction),
        -(-geometry.height_px // reduction),
        geometry.tile_width_px // reduction,
        geometry.tile_height_px // reduction,
        geometry.downsample * reduction,
    )


def plan_tiles(windows: Iterable[tuple[int, LevelWindow]], geometry: LevelGeometry) -> dict[int, list[Piece]]:
    """The tiles that windows of one level touch, and what each window needs of them.

    Args:
        windows: Numbers and rectangles, in pixels of ``geometry``; what lies outside of the level has no tile.
        geometry: Size and tile grid of the level, as it is decoded.

    Returns:
        Pieces by row-major tile number, ascending. The pieces of a window do not overlap, and cover all of it that lies
        within the level.
    """
    tile_width, tile_height, tiles_x = geometry.tile_width_px, geometry.tile_height_px, geometry.tiles_x
    found: dict[int, list[Piece]] = {}
    for number, window in windows:
        left, upper = window.x_level_px, window.y_level_px
        x0, y0 = max(left, 0), max(upper, 0)
        x1 = min(left + window.width_level_px, geometry.width_px)
        y1 = min(upper + window.height_level_px, geometry.height_px)
        if x0 >= x1 or y0 >= y1:
            continue
        for row in range(y0 // tile_height, (y1 - 1) // tile_height + 1):
            tile_y = row * tile_height
            top, bottom = max(y0, tile_y), min(y1, tile_y + tile_height)
            for column in range(x0 // tile_width, (x1 - 1) // tile_width + 1):
                tile_x = column * tile_width
                start, end = max(x0, tile_x), min(x1, tile_x + tile_width)
                piece = Piece(
                    *(number, start - tile_x, top - tile_y, end - tile_x, bottom - tile_y, start - left, top - upper)
                )
                found.setdefault(row * tiles_x + column, []).append(piece)
    return dict(sorted(found.items()))


def region_of(pieces: Sequence[Piece]) -> tuple[int, int, int, int]:
    """The smallest rectangle (x0, y0, x1, y1) of a tile that holds all its pieces."""
    if len(pieces) == 1:
        return pieces[0][1:5]
    return (
        min(piece.x0_tile_px for piece in pieces),
        min(piece.y0_tile_px for piece in pieces),
        max(piece.x1_tile_px for piece in pieces),
        max(piece.y1_tile_px for piece in pieces),
    )


def merge_ranges(
    ranges: Sequence[tuple[int, int]],
    *,
    max_gap_bytes: int = MAX_GAP_BYTES,
    max_request_bytes: int = MAX_REQUEST_BYTES,
    max_over_read: float = MAX_OVER_READ,
) -> list[MergedRange]:
    """Few requests that cover all (start, length) ranges.

    A range joins a request if at most ``max_gap_bytes`` lie between them, the request stays within
    ``max_request_bytes`` (a single larger range is still one request), and of its bytes not more than ``max_over_read``
    x those needed are fetched for nothing. Ranges of length 0 are left out.
    """
    merged: list[MergedRange] = []
    start = end = needed = 0
    members: list[int] = []
    for position in sorted((k for k, (_, length) in enumerate(ranges) if length > 0), key=lambda k: ranges[k]):
        first, length = ranges[position]
        last = first + length
        # Ranges may overlap: bytes count once.
        added = max(0, last - max(first, end))
        joined = max(end, last) - start
        if (
            members
            and first - end <= max_gap_bytes
            and (last <= end or joined <= max_request_bytes)
            and joined <= (1 + max_over_read) * (needed + added)
        ):
            members.append(position)
            end, needed = max(end, last), needed + added
            continue
        if members:
            merged.append(MergedRange(start, end - start, tuple(members)))
        start, end, needed, members = first, last, length, [position]
    if members:
        merged.append(MergedRange(start, end - start, tuple(members)))
    return merged
