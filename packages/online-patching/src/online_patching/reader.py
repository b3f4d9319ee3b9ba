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

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial

from online_patching.assemble import Assembly
from online_patching.batch_plan import (
    Fetch,
    LevelTiles,
    StoredTile,
    Turn,
    WindowRequest,
    expect,
    fetches_of,
    find_ranges,
    local_turns,
    plan_batch,
)
from online_patching.bytesource import gathered
from online_patching.decode import Pixels, TilePart, decode_regions
from online_patching.engine import memory_gate, on_decoding_threads, on_disk_threads, settings, tiles_a_turn
from online_patching.errors import CorruptTileError
from online_patching.health import HealthLog
from online_patching.plan import MergedRange, Piece, region_of
from online_patching.read_counts import count_decoded, count_planned
from online_patching.storage import LocalSource
from online_patching.thread_work import ThreadWork
from online_patching.tile_source import RangeTiles

# Windows that are planned and let in together share their tiles; a larger batch goes in such parts.
WINDOWS_AT_ONCE = 256


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
    answers = await gathered([_read_part([requests[k] for k in part], health) for part in parts])
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


async def _read_part(requests: Sequence[WindowRequest], health: HealthLog) -> list[Pixels | CorruptTileError]:
    levels = plan_batch(requests)
    assembly = Assembly(
        [(r.window.height_level_px, r.window.width_level_px) for r in requests],
        [r.size_px for r in requests],
        [r.out for r in requests],
    )
    stored = [level for level in levels if isinstance(level.request.slide.tiles, RangeTiles)]
    others = [level for level in levels if not isinstance(level.request.slide.tiles, RangeTiles)]
    await find_ranges(stored)
    expect(assembly, requests, levels, health)
    at_once = tiles_a_turn(sum(len(level.pieces) for level in stored))
    fetches = fetches_of(stored, at_once)
    count_planned(
        patches=len(requests),
        tile_uses=sum(len(pieces) for level in levels for pieces in level.pieces.values()),
        tiles=sum(len(level.pieces) for level in levels),
        bytes_needed=sum(length for level in stored for _, length in level.ranges),
        bytes_planned=sum(fetch.size_bytes for fetch in fetches),
    )
    size = sum(r.size_bytes for r in requests) + sum(fetch.size_bytes for fetch in fetches)
    async with memory_gate().reserve(size):
        work = ThreadWork()
        batch = _Batch(assembly, health, work)
        try:
            for turn in local_turns(fetches, at_once):
                work.on_threads(on_disk_threads, partial(_read_local, turn, batch))
            reads = [_read_remote(fetch, batch) for fetch in fetches if not isinstance(fetch.source, LocalSource)]
            reads += [batch.read_others(level) for level in others]
            await gathered(reads)
            await work.done()
        finally:
            # Threads that come to it later leave it alone, and the caller's arrays are the caller's again.
            work.is_over = True
            assembly.close()
    return assembly.collected()


def _read_local(turn: Turn, batch: _Batch) -> None:
    items: list[StoredTile] = []
    for fetch, group in turn:
        assert isinstance(fetch.source, LocalSource), "the turns are those of files"
        bodies = fetch.source.read_ranges_now([(m.start, m.length) for m in group], expected=fetch.info)
        items += fetch.items(group, bodies)
    batch.decode(items)


async def _read_remote(fetch: Fetch, batch: _Batch) -> None:
    async def read(group: list[MergedRange]) -> None:
        bodies = await fetch.source.read_ranges([(m.start, m.length) for m in group], expected=fetch.info)
        batch.decode(fetch.items(group, bodies))

    await gathered([read(group) for group in fetch.groups])


@dataclass(frozen=True, slots=True)
class _Batch:
    """What the steps of one batch share."""

    assembly: Assembly
    health: HealthLog
    work: ThreadWork

    def decode(self, items: Sequence[StoredTile]) -> None:
        """Let a decoding thread turn tiles into pieces of patches."""
        if self.work.is_over:
            # After close() it would start threads that nobody asked for.
            return
        self.work.on_threads(on_decoding_threads, lambda: self._decode(items))

    def _decode(self, items: Sequence[StoredTile]) -> None:
        wanted = [item for item in items if self.assembly.is_wanted(item.level.pieces[item.tile])]
        parts = [_part_of(item) for item in wanted]
        started = time.thread_time()
        for (level, tile, _), part, pixels in zip(wanted, parts, decode_regions(parts), strict=True):
            if self.work.is_over:
                break
            pieces = level.pieces[tile]
            if isinstance(pixels, CorruptTileError):
                slide, stored_level = level.request.slide, level.request.window.level
                assert isinstance(slide.tiles, RangeTiles), "only stored bytes are decoded here"
                self._fail(level, pieces, slide.tiles.corrupt(stored_level, tile, pixels))
            else:
                self.assembly.paste(pixels, pieces, part.region[0], part.region[1])
        count_decoded(len(wanted), time.thread_time() - started)

    async def read_others(self, level: LevelTiles) -> None:
        """Tiles that are no byte ranges: their source decodes them."""
        pixels_of = await level.request.slide.tiles.read(level.request.window.level, list(level.pieces))
        self.work.on_threads(on_decoding_threads, lambda: self._paste_whole(level, pixels_of))

    def _paste_whole(self, level: LevelTiles, pixels_of: dict[int, Pixels | CorruptTileError]) -> None:
        for tile, pieces in level.pieces.items():
            pixels = pixels_of[tile]
            if isinstance(pixels, CorruptTileError):
                self._fail(level, pieces, pixels)
            else:
                self.assembly.paste(pixels, pieces, 0, 0)

    def _fail(self, level: LevelTiles, pieces: Sequence[Piece], error: CorruptTileError) -> None:
        self.health.add(level.request.slide_id, corrupt_tiles=1)
        self.assembly.fail(pieces, error)


def _part_of(item: StoredTile) -> TilePart:
    """What the windows need of a tile that has arrived."""
    request = item.level.request
    level = request.window.level
    geometry, encoding = request.slide.header.levels[level], request.slide.header.encodings[level]
    region = region_of(item.level.pieces[item.tile])
    return TilePart(item.data, encoding, geometry.tile_width_px, geometry.tile_height_px, region, request.reduction)
