"""Which bytes must be fetched for a batch of patches?

Pure planning, no I/O:

1. ``patch_window``: a request becomes a window of one level (``geometry`` chooses it);
2. the tiles of all windows of a slide are collected once each, however many patches share them;
3. ``merge_ranges``: neighbouring byte ranges become one request where the gap between them is small.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from online_patching.errors import MagnificationError, MissingMppError
from online_patching.formats.header import SlideHeader
from online_patching.geometry import (
    LevelPolicy,
    LevelWindow,
    choose_level,
    footprint_level0_px,
    window_at_level,
)

# A request costs about as much as 64 KiB of transfer on a cloud store's connection; larger gaps are not worth it.
MAX_GAP_BYTES = 64 * 1024
MAX_REQUEST_BYTES = 8 * 1024 * 1024


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
        if self.size_px < 1:
            raise ValueError(f"size_px: got {self.size_px}, allowed at least 1")
        if not self.mpp > 0:
            raise ValueError(f"mpp: got {self.mpp}, allowed above 0 (um per pixel)")


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


def patch_window(
    request: PatchRequest, header: SlideHeader, *, policy: LevelPolicy = "finer", enlarge: bool = False
) -> LevelWindow:
    """The window to read for a request, in pixels of the chosen level.

    Raises:
        MissingMppError: The slide states no mpp.
        MagnificationError: No level is fine enough.
    """
    if header.mpp is None:
        raise MissingMppError(
            f"slide {request.slide_id}: no mpp in its headers, so {request.mpp:g} um/px has no meaning; give the"
            " catalog column 'mpp', `--mpp` when indexing, or pass mpp= to open_slide"
        )
    try:
        level = choose_level(
            [g.downsample for g in header.levels],
            base_mpp=header.mpp,
            mpp=request.mpp,
            policy=policy,
            enlarge=enlarge,
        )
    except MagnificationError as error:
        raise MagnificationError(f"slide {request.slide_id}: {error}") from None
    return window_at_level(
        x_level0_px=request.x_level0_px,
        y_level0_px=request.y_level0_px,
        size_level0_px=footprint_level0_px(request.size_px, request.mpp, header.mpp),
        level=level,
        downsample=header.levels[level].downsample,
    )


def merge_ranges(
    ranges: Sequence[tuple[int, int]],
    *,
    max_gap_bytes: int = MAX_GAP_BYTES,
    max_request_bytes: int = MAX_REQUEST_BYTES,
) -> list[MergedRange]:
    """Few requests that cover all (start, length) ranges.

    Two ranges share a request if at most ``max_gap_bytes`` lie between them and the request stays within
    ``max_request_bytes`` (a single larger range is still one request). Ranges of length 0 are left out.
    """
    merged: list[MergedRange] = []
    for position in _by_start(ranges):
        start, length = ranges[position]
        last = merged[-1] if merged else None
        if last is not None and start - (last.start + last.length) <= max_gap_bytes:
            end = max(last.start + last.length, start + length)
            if end - last.start <= max_request_bytes:
                merged[-1] = MergedRange(last.start, end - last.start, (*last.tiles, position))
                continue
        merged.append(MergedRange(start, length, (position,)))
    return merged


def _by_start(ranges: Sequence[tuple[int, int]]) -> Iterable[int]:
    return sorted((k for k, (_, length) in enumerate(ranges) if length > 0), key=lambda k: ranges[k])
