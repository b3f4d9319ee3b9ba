"""How does the reading of many patches keep decoding threads busy, however far away the slides are?

``read_windows`` takes windows of any slides and

1. plans them: tiles by (slide, level), each once (``plan_tiles``); byte ranges of all of a slide's tiles merged;
2. waits for room in the memory that may be under way, and fetches all slides at the same time: files on the threads
   that wait for disks, everything else on the event loop;
3. hands what has arrived, a few tiles at a time, to the decoding threads, which decode the part of a tile that is
   needed and paste it into the patches (``Assembly``).

A tile that does not decode fails the patches that need it, not their neighbours: results are pixels or the error, in
the order of the windows. What went otherwise than asked is counted by slide (``HealthLog``).
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple, Protocol, TypeVar

from online_patching.assemble import Assembly
from online_patching.bytesource import ByteRange, ByteSource, ObjectInfo, PinnedObject, shown_url
from online_patching.decode import Pixels, decode_region, decode_tile
from online_patching.engine import memory_gate, on_decoding_threads, on_disk_threads, settings
from online_patching.errors import CorruptTileError
from online_patching.formats.header import Codec, SlideHeader, TileRanges
from online_patching.geometry import LevelWindow
from online_patching.health import HealthLog
from online_patching.plan import MergedRange, Piece, merge_ranges, plan_tiles, reduced_geometry, region_of
from online_patching.read_counts import count_decoded, count_planned
from online_patching.storage import LocalSource, Store
from online_patching.stored_slide import StoredTiles, look_up
from online_patching.zarr_tiles import ZarrTiles

T = TypeVar("T")

# Tiles that are read from a disk, and decoded, in one go: a hand-over costs a tenth of a tile.
TILES_A_TURN = 8
# Windows that are planned and let in together share their tiles; a larger batch goes in such parts.
WINDOWS_AT_ONCE = 256


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
        work = _Work()
        try:
            for k in range(0, len(items), TILES_A_TURN):
                turn = items[k : k + TILES_A_TURN]
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


@dataclass(frozen=True, slots=True)
class WindowRequest:
    """A window of a slide and what it becomes.

    Attributes:
        slide: The slide.
        slide_id: Its name, for messages and counts.
        window: Rectangle in pixels of the level as it is decoded.
        size_px: Side of the square it is resized to (None: as stored).
        reduction: Factor at which the level's tiles are decoded at reduced scale.
        out: Where the pixels go, uint8 (size_px, size_px, 3), C-contiguous; None: a new array.
    """

    slide: SlideHandle
    slide_id: str
    window: LevelWindow
    size_px: int | None
    reduction: int = 1
    out: Pixels | None = None

    @property
    def size_bytes(self) -> int:
        """Bytes of the window before or after it is resized, whichever are more."""
        return max(self.window.width_level_px * self.window.height_level_px, (self.size_px or 0) ** 2) * 3


async def read_windows(
    requests: Sequence[WindowRequest], health: HealthLog | None = None
) -> list[Pixels | CorruptTileError]:
    """Pixels of every window, in order; a window with a corrupt tile gives its error.

    Args:
        requests: Any number, of any slides.
        health: Counts what went otherwise than asked.

    Raises:
        ValueError: A window does not fit in the memory that may be under way.
        StorageError: A slide could not be fetched.
    """
    bound = check_fits(requests)
    health = health or HealthLog()
    parts = list(_parts(requests, bound // 4))
    if len(parts) == 1:
        return await _read_part(requests, health)
    answers = await _all([_read_part([requests[k] for k in part], health) for part in parts])
    results: dict[int, Pixels | CorruptTileError] = {}
    for part, answer in zip(parts, answers, strict=True):
        results.update(zip(part, answer, strict=True))
    return [results[k] for k in range(len(requests))]


def check_fits(requests: Iterable[WindowRequest]) -> int:
    """The bytes that may be under way, all windows being smaller.

    Raises:
        ValueError: A window is larger.
    """
    bound = settings().memory_mb << 20
    for request in requests:
        if request.size_bytes > bound:
            window = request.window
            raise ValueError(
                f"slide {request.slide_id}: a window of {window.width_level_px} x {window.height_level_px} px at level"
                f" {window.level} takes {request.size_bytes >> 20} MiB, allowed {bound >> 20}; read it in parts, ask"
                " for a coarser mpp, or raise configure(memory_mb=)"
            )
    return bound


def _parts(requests: Sequence[WindowRequest], bound: int) -> Iterable[Sequence[int]]:
    """Numbers of the windows that are read together; those that share tiles stay together."""
    if len(requests) <= WINDOWS_AT_ONCE and sum(r.size_bytes for r in requests) <= bound:
        yield range(len(requests))
        return

    def place(number: int) -> tuple[str, int, int, int]:
        window = requests[number].window
        rows = window.y_level_px // requests[number].slide.header.levels[window.level].tile_height_px
        return requests[number].slide_id, window.level, rows, window.x_level_px

    part: list[int] = []
    size = 0
    for number in sorted(range(len(requests)), key=place):
        if part and (len(part) == WINDOWS_AT_ONCE or size + requests[number].size_bytes > bound):
            yield part
            part, size = [], 0
        part.append(number)
        size += requests[number].size_bytes
    if part:
        yield part


@dataclass(slots=True, eq=False)
class _LevelTiles:
    """The tiles that a batch needs of one level of one slide.

    Attributes:
        request: The first request for it; slide, level and reduction are the same for all.
        pieces: What is needed of each tile.
        ranges: (start, length) of each tile, in the same order.
    """

    request: WindowRequest
    pieces: dict[int, list[Piece]]
    ranges: list[ByteRange] = field(default_factory=list)


async def _read_part(requests: Sequence[WindowRequest], health: HealthLog) -> list[Pixels | CorruptTileError]:
    levels = _plan(requests)
    assembly = Assembly(
        [(r.window.height_level_px, r.window.width_level_px) for r in requests],
        [r.size_px for r in requests],
        [r.out for r in requests],
    )
    stored = [level for level in levels if isinstance(level.request.slide.tiles, RangeTiles)]
    others = [level for level in levels if not isinstance(level.request.slide.tiles, RangeTiles)]
    await _look_up(stored)
    _expect(assembly, requests, levels, health)
    fetches = _merged(stored)
    count_planned(
        patches=len(requests),
        tile_uses=sum(len(pieces) for level in levels for pieces in level.pieces.values()),
        tiles=sum(len(level.pieces) for level in levels),
        bytes_needed=sum(length for level in stored for _, length in level.ranges),
        bytes_planned=sum(fetch.size_bytes for fetch in fetches),
    )
    size = sum(r.size_bytes for r in requests) + sum(fetch.size_bytes for fetch in fetches)
    async with memory_gate().reserve(size):
        work = _Work()
        batch = _Batch(assembly, health, work)
        try:
            for turn in _local_turns(fetches):
                work.on_threads(on_disk_threads, partial(_read_local, turn, batch))
            reads = [_read_remote(fetch, batch) for fetch in fetches if not isinstance(fetch.source, LocalSource)]
            reads += [batch.read_others(level) for level in others]
            await _all(reads)
            await work.done()
        finally:
            # Threads that come to it later leave it alone, and the caller's arrays are the caller's again.
            work.is_over = True
            assembly.close()
    return assembly.collected()


def _plan(requests: Sequence[WindowRequest]) -> list[_LevelTiles]:
    """The tiles of a batch, by slide, level and scale."""
    groups: dict[tuple[int, int, int], list[int]] = {}
    for number, request in enumerate(requests):
        groups.setdefault((id(request.slide), request.window.level, request.reduction), []).append(number)
    levels = []
    for (_, level, reduction), numbers in groups.items():
        first = requests[numbers[0]]
        geometry = reduced_geometry(first.slide.header.levels[level], reduction)
        levels.append(_LevelTiles(first, plan_tiles([(k, requests[k].window) for k in numbers], geometry)))
    return levels


async def _look_up(levels: Sequence[_LevelTiles]) -> None:
    """Fill in the byte ranges, of all slides at the same time."""
    from_catalog: list[tuple[_LevelTiles, tuple[StoredTiles, int, list[int]]]] = []
    for level in levels:
        tiles = level.request.slide.tiles
        assert isinstance(tiles, RangeTiles), "others have no ranges"
        numbers = list(level.pieces)
        if isinstance(tiles.lookup, StoredTiles):
            from_catalog.append((level, (tiles.lookup, level.request.window.level, numbers)))
        else:
            level.ranges = await tiles.lookup.ranges(level.request.window.level, numbers)
    for (level, _), ranges in zip(from_catalog, await look_up([wanted for _, wanted in from_catalog]), strict=True):
        level.ranges = ranges


def _expect(
    assembly: Assembly, requests: Sequence[WindowRequest], levels: Sequence[_LevelTiles], health: HealthLog
) -> None:
    """Tell the assembly how many pieces each window gets, and count what lies outside or was never stored."""
    pieces_of = [0] * len(requests)
    covered_px = [0] * len(requests)
    inside_px = [0] * len(requests)
    for level in levels:
        ranges = level.ranges or [(0, 1)] * len(level.pieces)
        missing = 0
        for pieces, (_, length) in zip(level.pieces.values(), ranges, strict=True):
            missing += length == 0
            for window, x0, y0, x1, y1, _, _ in pieces:
                area = (x1 - x0) * (y1 - y0)
                inside_px[window] += area
                if length:
                    covered_px[window] += area
                    pieces_of[window] += 1
        if missing:
            health.add(level.request.slide_id, missing_tiles=missing)
    for number, request in enumerate(requests):
        area = request.window.width_level_px * request.window.height_level_px
        if inside_px[number] < area:
            health.add(request.slide_id, outside_patches=1)
        assembly.expect(number, pieces_of[number], white=covered_px[number] < area)


class _Fetch(NamedTuple):
    """What one object of one slide gives to a batch.

    Attributes:
        source: The object.
        info: Its pinned size and version.
        tiles: Level and number of every tile.
        ranges: (start, length) of every tile.
        groups: Requests and the tiles in them, a few tiles together.
    """

    source: ByteSource
    info: ObjectInfo
    tiles: list[tuple[_LevelTiles, int]]
    ranges: list[ByteRange]
    groups: list[list[MergedRange]]

    @property
    def size_bytes(self) -> int:
        """Bytes that are fetched."""
        return sum(merged.length for group in self.groups for merged in group)

    def items(self, group: Sequence[MergedRange], bodies: Sequence[bytes]) -> list[_Item]:
        """The tiles that a group of requests brought, without copying."""
        found = []
        for merged, body in zip(group, bodies, strict=True):
            view = memoryview(body)
            for position in merged.tiles:
                start, length = self.ranges[position]
                first = start - merged.start
                found.append(_Item(*self.tiles[position], view[first : first + length]))
        return found


class _Item(NamedTuple):
    """A tile that has arrived."""

    level: _LevelTiles
    tile: int
    data: memoryview


def _merged(levels: Sequence[_LevelTiles]) -> list[_Fetch]:
    """What to fetch of every object, its ranges merged over all levels that lie in it."""
    fetches: dict[tuple[int, int], _Fetch] = {}
    for level in levels:
        slide, stored_level = level.request.slide, level.request.window.level
        assert isinstance(slide.tiles, RangeTiles), "others have no ranges"
        number = slide.header.level_objects[stored_level] if slide.header.level_objects else 0
        fetch = fetches.setdefault((id(slide), number), _Fetch(*slide.tiles.object_of(stored_level), [], [], []))
        fetch.tiles.extend((level, tile) for tile in level.pieces)
        fetch.ranges.extend(level.ranges)
    for fetch in fetches.values():
        fetch.groups.extend(_groups(merge_ranges(fetch.ranges)))
    return [fetch for fetch in fetches.values() if fetch.groups]


def _groups(merged: Iterable[MergedRange]) -> Iterable[list[MergedRange]]:
    """Requests whose tiles are decoded in one go."""
    group: list[MergedRange] = []
    tiles = 0
    for each in merged:
        group.append(each)
        tiles += len(each.tiles)
        if tiles >= TILES_A_TURN:
            yield group
            group, tiles = [], 0
    if group:
        yield group


_Turn = list[tuple[_Fetch, list[MergedRange]]]


def _local_turns(fetches: Sequence[_Fetch]) -> list[_Turn]:
    """What is read from disks, a few tiles of any slides together."""
    turns: list[_Turn] = []
    tiles = TILES_A_TURN
    for fetch in fetches:
        if not isinstance(fetch.source, LocalSource):
            continue
        for group in fetch.groups:
            if tiles >= TILES_A_TURN:
                turns.append([])
                tiles = 0
            turns[-1].append((fetch, group))
            tiles += sum(len(each.tiles) for each in group)
    return turns


class _Work:
    """What threads still have to do for a batch; the first error ends the waiting.

    Attributes:
        is_over: Nobody waits any more: what threads have not begun is left undone.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._end: asyncio.Future[None] = self._loop.create_future()
        self._lock = threading.Lock()
        # One for the batch itself, until it waits: no work that ends early is taken for the last.
        self._open = 1
        self.is_over = False

    def on_threads(self, submit: Callable[[Callable[[], None]], None], work: Callable[[], None]) -> None:
        """Let one of the threads do it that ``submit`` hands work to."""
        with self._lock:
            self._open += 1
        submit(partial(self._guarded, work))

    async def done(self) -> None:
        """Wait for everything that was begun, and for what that begins."""
        self._close_one(None)
        await self._end

    def _guarded(self, work: Callable[[], None]) -> None:
        error: BaseException | None = None
        try:
            if not self.is_over:
                work()
        except BaseException as caught:  # the thread must live on
            error = caught
        self._close_one(error)

    def _close_one(self, error: BaseException | None) -> None:
        with self._lock:
            self._open -= 1
            last = self._open == 0
        if last or error is not None:
            # A loop that was closed in between has nobody who waits.
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._finish, error)

    def _finish(self, error: BaseException | None) -> None:
        if self._end.done() or self.is_over:
            return
        if error is None:
            self._end.set_result(None)
        else:
            self._end.set_exception(error)


def _read_local(turn: _Turn, batch: _Batch) -> None:
    items: list[_Item] = []
    for fetch, group in turn:
        assert isinstance(fetch.source, LocalSource), "the turns are those of files"
        bodies = fetch.source.read_ranges_now([(m.start, m.length) for m in group], expected=fetch.info)
        items += fetch.items(group, bodies)
    batch.decode(items)


async def _read_remote(fetch: _Fetch, batch: _Batch) -> None:
    async def read(group: list[MergedRange]) -> None:
        bodies = await fetch.source.read_ranges([(m.start, m.length) for m in group], expected=fetch.info)
        batch.decode(fetch.items(group, bodies))

    await _all([read(group) for group in fetch.groups])


@dataclass(frozen=True, slots=True)
class _Batch:
    """What the steps of one batch share."""

    assembly: Assembly
    health: HealthLog
    work: _Work

    def decode(self, items: Sequence[_Item]) -> None:
        """Let a decoding thread turn tiles into pieces of patches."""
        if self.work.is_over:
            # After close() it would start threads that nobody asked for.
            return
        self.work.on_threads(on_decoding_threads, lambda: self._decode(items))

    def _decode(self, items: Sequence[_Item]) -> None:
        seconds = 0.0
        for level, tile, data in items:
            pieces = level.pieces[tile]
            if self.work.is_over or not self.assembly.is_wanted(pieces):
                continue
            request = level.request
            slide, stored_level = request.slide, request.window.level
            geometry, encoding = slide.header.levels[stored_level], slide.header.encodings[stored_level]
            region = region_of(pieces)
            started = time.thread_time()
            try:
                pixels = decode_region(
                    data,
                    encoding,
                    geometry.tile_width_px,
                    geometry.tile_height_px,
                    region,
                    reduction=request.reduction,
                )
            except CorruptTileError as error:
                assert isinstance(slide.tiles, RangeTiles), "only stored bytes are decoded here"
                self._fail(level, pieces, slide.tiles.corrupt(stored_level, tile, error))
                continue
            finally:
                seconds += time.thread_time() - started
            self.assembly.paste(pixels, pieces, region[0], region[1])
        count_decoded(len(items), seconds)

    async def read_others(self, level: _LevelTiles) -> None:
        """Tiles that are no byte ranges: their source decodes them."""
        pixels_of = await level.request.slide.tiles.read(level.request.window.level, list(level.pieces))
        self.work.on_threads(on_decoding_threads, lambda: self._paste_whole(level, pixels_of))

    def _paste_whole(self, level: _LevelTiles, pixels_of: dict[int, Pixels | CorruptTileError]) -> None:
        for tile, pieces in level.pieces.items():
            pixels = pixels_of[tile]
            if isinstance(pixels, CorruptTileError):
                self._fail(level, pieces, pixels)
            else:
                self.assembly.paste(pixels, pieces, 0, 0)

    def _fail(self, level: _LevelTiles, pieces: Sequence[Piece], error: CorruptTileError) -> None:
        self.health.add(level.request.slide_id, corrupt_tiles=1)
        self.assembly.fail(pieces, error)


async def _all(reads: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
    """All of them at the same time; the first error ends the others, and nothing of them is left when it is raised."""
    if len(reads) == 1:
        return [await reads[0]]
    tasks = [asyncio.ensure_future(read) for read in reads]
    try:
        return list(await asyncio.gather(*tasks))
    except BaseException:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        raise
