"""How do the windows of many patches become pixels, with as much in flight as possible?

For every slide of a batch, all at once: look up the byte ranges of the tiles (each tile once), fetch them merged,
decode them on the decoding threads, stitch and resize. A tile that does not decode fails the patches that need it, not
their neighbours: results are pixels or the error, in the order of the windows.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

import cv2

from online_patching.assemble import resize, stitch
from online_patching.bytesource import ByteRange, ByteSource, ObjectInfo, PinnedObject, shown_url
from online_patching.decode import Pixels, decode_tile
from online_patching.errors import CorruptTileError
from online_patching.formats.header import Codec, SlideHeader, TileRanges
from online_patching.geometry import LevelWindow, tiles_of_window
from online_patching.plan import merge_ranges
from online_patching.storage import Store
from online_patching.zarr_tiles import ZarrTiles

# One task a batch: a task a tile would cost as much in hand-overs as it gains.
DECODE_BATCH_TILES = 16


class TileLookup(Protocol):
    """Tells where tiles lie, from memory or from a catalog."""

    async def ranges(self, level: int, tiles: Sequence[int]) -> list[ByteRange]:
        """(start, length) of each tile."""
        ...


@dataclass(frozen=True, slots=True)
class InMemoryLookup:
    """Byte ranges of a slide that was just indexed."""

    levels: tuple[TileRanges, ...]

    async def ranges(self, level: int, tiles: Sequence[int]) -> list[ByteRange]:
        """(start, length) of each tile."""
        table = self.levels[level]
        return [(int(table.offset[tile]), int(table.length[tile])) for tile in tiles]


class TileSource(Protocol):
    """Gives the pixels of a slide's tiles, however they are stored."""

    async def read(self, level: int, tiles: Sequence[int]) -> dict[int, Pixels | CorruptTileError]:
        """Pixels by tile number; tiles that the scanner did not store are absent."""
        ...


@dataclass(frozen=True, slots=True)
class SlideHandle:
    """All that reading one slide needs.

    Attributes:
        header: Levels and encodings.
        tiles: Pixels of its tiles.
    """

    header: SlideHeader
    tiles: TileSource


@dataclass(frozen=True, slots=True)
class RangeTiles:
    """Tiles that are byte ranges of objects: looked up, fetched merged, decoded on the decoding threads.

    Attributes:
        sources: The slide's objects with the size and version that are pinned.
        header: Levels and encodings.
        lookup: Byte ranges of the tiles.
    """

    sources: tuple[tuple[ByteSource, ObjectInfo], ...]
    header: SlideHeader
    lookup: TileLookup

    async def read(self, level: int, tiles: Sequence[int]) -> dict[int, Pixels | CorruptTileError]:
        """Pixels by tile number; tiles that the scanner did not store are absent."""
        data = await self._fetch(level, tiles)
        loop = asyncio.get_running_loop()
        items = list(data.items())
        batches = [dict(items[k : k + DECODE_BATCH_TILES]) for k in range(0, len(items), DECODE_BATCH_TILES)]
        parts = await asyncio.gather(
            *(loop.run_in_executor(decoding_pool(), self._decode, level, batch) for batch in batches)
        )
        return {number: tile for part in parts for number, tile in part.items()}

    async def _fetch(self, level: int, numbers: Sequence[int]) -> dict[int, bytes]:
        """Stored bytes by tile number."""
        if not numbers:
            return {}
        source, info = self._object_of(level)
        ranges = await self.lookup.ranges(level, numbers)
        merged = merge_ranges(ranges)
        bodies = await source.read_ranges([(m.start, m.length) for m in merged], expected=info)
        found: dict[int, bytes] = {}
        for request, body in zip(merged, bodies, strict=True):
            for position in request.tiles:
                start, length = ranges[position]
                found[numbers[position]] = body[start - request.start : start - request.start + length]
        return found

    def _decode(self, level: int, data: dict[int, bytes]) -> dict[int, Pixels | CorruptTileError]:
        geometry, encoding = self.header.levels[level], self.header.encodings[level]
        decoded: dict[int, Pixels | CorruptTileError] = {}
        for number, body in data.items():
            try:
                decoded[number] = decode_tile(body, encoding, geometry.tile_width_px, geometry.tile_height_px)
            except CorruptTileError as error:
                place = f"{shown_url(self._object_of(level)[0].url)}: level {level}, tile {number}"
                decoded[number] = CorruptTileError(f"{place}: {error}; copy the slide again or leave it out")
        return decoded

    def _object_of(self, level: int) -> tuple[ByteSource, ObjectInfo]:
        return self.sources[self.header.level_objects[level] if self.header.level_objects else 0]


def open_handle(store: Store, objects: Sequence[PinnedObject], header: SlideHeader, lookup: TileLookup) -> SlideHandle:
    """The handle of an indexed slide; nothing is requested yet."""
    if header.encodings[0].codec is Codec.ZARR:
        return SlideHandle(header, ZarrTiles(store, objects, header))
    sources = tuple((store.open(each.url), each.info) for each in objects)
    return SlideHandle(header, RangeTiles(sources, header, lookup))


@dataclass(frozen=True, slots=True)
class WindowRequest:
    """A window of a slide and the side of the square it is resized to (None: as stored)."""

    slide: SlideHandle
    window: LevelWindow
    size_px: int | None


_pool: ThreadPoolExecutor | None = None
_pool_pid = 0


def decoding_pool() -> ThreadPoolExecutor:
    """This process's decoding threads, one a core."""
    global _pool, _pool_pid
    if _pool is None or _pool_pid != os.getpid():
        # The pool is the parallelism: OpenCV's own threads below it would only fight for the same cores.
        cv2.setNumThreads(0)
        _pool = ThreadPoolExecutor(os.cpu_count() or 1, thread_name_prefix="online-patching-decode")
        _pool_pid = os.getpid()
    return _pool


async def read_windows(requests: Sequence[WindowRequest]) -> list[Pixels | CorruptTileError]:
    """Pixels of every window, in order; a window with a corrupt tile gives its error.

    Raises:
        StorageError: A slide could not be fetched.
    """
    groups: dict[tuple[int, int], list[int]] = {}
    for k, request in enumerate(requests):
        groups.setdefault((id(request.slide), request.window.level), []).append(k)
    tasks = [asyncio.ensure_future(_read_group([requests[k] for k in group])) for group in groups.values()]
    try:
        answers = await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
    results: dict[int, Pixels | CorruptTileError] = {}
    for group, answer in zip(groups.values(), answers, strict=True):
        results.update(zip(group, answer, strict=True))
    return [results[k] for k in range(len(requests))]


async def _read_group(requests: Sequence[WindowRequest]) -> list[Pixels | CorruptTileError]:
    """Windows of one level of one slide."""
    slide, level = requests[0].slide, requests[0].window.level
    geometry = slide.header.levels[level]
    touched = [tiles_of_window(r.window, geometry) for r in requests]
    numbers = sorted(set().union(*touched))
    decoded = await slide.tiles.read(level, numbers)
    return await asyncio.get_running_loop().run_in_executor(decoding_pool(), _assemble, requests, touched, decoded)


def _assemble(
    requests: Sequence[WindowRequest], touched: Sequence[Sequence[int]], decoded: dict[int, Pixels | CorruptTileError]
) -> list[Pixels | CorruptTileError]:
    results: list[Pixels | CorruptTileError] = []
    for request, numbers in zip(requests, touched, strict=True):
        tiles = {number: decoded[number] for number in numbers if number in decoded}
        bad = next((tile for tile in tiles.values() if isinstance(tile, CorruptTileError)), None)
        if bad is not None:
            results.append(bad)
            continue
        good = {number: tile for number, tile in tiles.items() if not isinstance(tile, CorruptTileError)}
        geometry = request.slide.header.levels[request.window.level]
        pixels = stitch(request.window, geometry, good)
        results.append(pixels if request.size_px is None else resize(pixels, request.size_px))
    return results
