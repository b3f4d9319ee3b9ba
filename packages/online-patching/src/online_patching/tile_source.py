"""Where do a slide's tiles come from?

A ``SlideHandle`` is a slide's header and its ``TileSource``. Most are ``RangeTiles``: byte ranges of objects, found by
a ``TileLookup`` in memory or in a catalog; an OME-Zarr's chunks are ``ZarrTiles``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from online_patching.bytesource import ByteRange, ByteSource, ObjectInfo, PinnedObject, shown_url
from online_patching.decode import Pixels, decode_tile
from online_patching.engine import on_decoding_threads, tiles_a_turn
from online_patching.errors import CorruptTileError
from online_patching.formats.header import Codec, SlideHeader, TileRanges
from online_patching.plan import merge_ranges
from online_patching.storage import Store
from online_patching.thread_work import ThreadWork
from online_patching.zarr_tiles import ZarrTiles


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
        return [(table.offset.item(tile), table.length.item(tile)) for tile in tiles]


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
    """Tiles that are byte ranges of objects.

    Attributes:
        sources: The slide's objects with the size and version that are pinned.
        header: Levels and encodings.
        lookup: Byte ranges of the tiles.
    """

    sources: tuple[tuple[ByteSource, ObjectInfo], ...]
    header: SlideHeader
    lookup: TileLookup

    async def read(self, level: int, tiles: Sequence[int]) -> dict[int, Pixels | CorruptTileError]:
        """Pixels of whole tiles by number; tiles that the scanner did not store are absent."""
        if not tiles:
            return {}
        source, info = self.object_of(level)
        ranges = await self.lookup.ranges(level, tiles)
        merged = merge_ranges(ranges)
        bodies = await source.read_ranges([(m.start, m.length) for m in merged], expected=info)
        found: dict[int, bytes] = {}
        for request, body in zip(merged, bodies, strict=True):
            for position in request.tiles:
                start, length = ranges[position]
                found[tiles[position]] = body[start - request.start : start - request.start + length]
        items = list(found.items())
        decoded: dict[int, Pixels | CorruptTileError] = {}
        work = ThreadWork()
        try:
            at_once = tiles_a_turn(len(items))
            for k in range(0, len(items), at_once):
                turn = items[k : k + at_once]
                work.on_threads(on_decoding_threads, partial(self._decode_whole, level, turn, decoded))
            await work.done()
        finally:
            work.is_over = True
        return decoded

    def _decode_whole(
        self, level: int, turn: Sequence[tuple[int, bytes]], decoded: dict[int, Pixels | CorruptTileError]
    ) -> None:
        geometry, encoding = self.header.levels[level], self.header.encodings[level]
        for number, body in turn:
            try:
                decoded[number] = decode_tile(body, encoding, geometry.tile_width_px, geometry.tile_height_px)
            except CorruptTileError as error:
                decoded[number] = self.corrupt(level, number, error)

    def object_of(self, level: int) -> tuple[ByteSource, ObjectInfo]:
        """The object that holds the tiles of a level, as it was pinned."""
        return self.sources[self.header.level_objects[level] if self.header.level_objects else 0]

    def corrupt(self, level: int, tile: int, error: CorruptTileError) -> CorruptTileError:
        """The error with its place."""
        place = f"{shown_url(self.object_of(level)[0].url)}: level {level}, tile {tile}"
        return CorruptTileError(f"{place}: {error}; copy the slide again or leave it out")


def open_handle(store: Store, objects: Sequence[PinnedObject], header: SlideHeader, lookup: TileLookup) -> SlideHandle:
    """The handle of an indexed slide; nothing is requested yet."""
    if header.encodings[0].codec is Codec.ZARR:
        return SlideHandle(header, ZarrTiles(store, objects, header))
    sources = tuple((store.open(each.url), each.info) for each in objects)
    return SlideHandle(header, RangeTiles(sources, header, lookup))
