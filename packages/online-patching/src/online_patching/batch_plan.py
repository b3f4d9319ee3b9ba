"""What does a batch of windows need, of which objects, and in which portions?

The windows' tiles by slide, level and scale (``plan_batch``), their byte ranges (``find_ranges``), what each window
will get of them (``expect``), and the requests that fetch them, merged over all levels of an object and portioned so
that a few tiles are read and decoded in one go (``fetches_of``, ``local_turns``).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from online_patching.assemble import Assembly
from online_patching.bytesource import ByteRange, ByteSource, ObjectInfo
from online_patching.decode import Pixels
from online_patching.geometry import LevelWindow
from online_patching.health import HealthLog
from online_patching.plan import MergedRange, Piece, merge_ranges, plan_tiles, reduced_geometry
from online_patching.storage import LocalSource
from online_patching.stored_slide import StoredTiles, look_up
from online_patching.tile_source import RangeTiles, SlideHandle


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


@dataclass(slots=True, eq=False)
class LevelTiles:
    """The tiles that a batch needs of one level of one slide.

    Attributes:
        request: The first request for it; slide, level and reduction are the same for all.
        pieces: What is needed of each tile.
        ranges: (start, length) of each tile, in the same order.
    """

    request: WindowRequest
    pieces: dict[int, list[Piece]]
    ranges: list[ByteRange] = field(default_factory=list)


def plan_batch(requests: Sequence[WindowRequest]) -> list[LevelTiles]:
    """The tiles of a batch, by slide, level and scale."""
    groups: dict[tuple[int, int, int], list[int]] = {}
    for number, request in enumerate(requests):
        groups.setdefault((id(request.slide), request.window.level, request.reduction), []).append(number)
    levels = []
    for (_, level, reduction), numbers in groups.items():
        first = requests[numbers[0]]
        geometry = reduced_geometry(first.slide.header.levels[level], reduction)
        levels.append(LevelTiles(first, plan_tiles([(k, requests[k].window) for k in numbers], geometry)))
    return levels


async def find_ranges(levels: Sequence[LevelTiles]) -> None:
    """Fill in the byte ranges, of all slides at the same time."""
    from_catalog: list[tuple[LevelTiles, tuple[StoredTiles, int, list[int]]]] = []
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


def expect(
    assembly: Assembly, requests: Sequence[WindowRequest], levels: Sequence[LevelTiles], health: HealthLog
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


class Fetch(NamedTuple):
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
    tiles: list[tuple[LevelTiles, int]]
    ranges: list[ByteRange]
    groups: list[list[MergedRange]]

    @property
    def size_bytes(self) -> int:
        """Bytes that are fetched."""
        return sum(merged.length for group in self.groups for merged in group)

    def items(self, group: Sequence[MergedRange], bodies: Sequence[bytes]) -> list[StoredTile]:
        """The tiles that a group of requests brought, without copying."""
        found = []
        for merged, body in zip(group, bodies, strict=True):
            view = memoryview(body)
            for position in merged.tiles:
                start, length = self.ranges[position]
                first = start - merged.start
                found.append(StoredTile(*self.tiles[position], view[first : first + length]))
        return found


class StoredTile(NamedTuple):
    """A tile that has arrived."""

    level: LevelTiles
    tile: int
    data: memoryview


def fetches_of(levels: Sequence[LevelTiles], tiles_a_turn: int) -> list[Fetch]:
    """What to fetch of every object, its ranges merged over all levels that lie in it, ``tiles_a_turn`` together."""
    fetches: dict[tuple[int, int], Fetch] = {}
    for level in levels:
        slide, stored_level = level.request.slide, level.request.window.level
        assert isinstance(slide.tiles, RangeTiles), "others have no ranges"
        number = slide.header.level_objects[stored_level] if slide.header.level_objects else 0
        fetch = fetches.setdefault((id(slide), number), Fetch(*slide.tiles.object_of(stored_level), [], [], []))
        fetch.tiles.extend((level, tile) for tile in level.pieces)
        fetch.ranges.extend(level.ranges)
    for fetch in fetches.values():
        fetch.groups.extend(_groups(merge_ranges(fetch.ranges), tiles_a_turn))
    return [fetch for fetch in fetches.values() if fetch.groups]


def _groups(merged: Iterable[MergedRange], tiles_a_turn: int) -> Iterable[list[MergedRange]]:
    """Requests whose tiles are decoded in one go."""
    group: list[MergedRange] = []
    tiles = 0
    for each in merged:
        group.append(each)
        tiles += len(each.tiles)
        if tiles >= tiles_a_turn:
            yield group
            group, tiles = [], 0
    if group:
        yield group


Turn = list[tuple[Fetch, list[MergedRange]]]


def local_turns(fetches: Sequence[Fetch], tiles_a_turn: int) -> list[Turn]:
    """What is read from disks, ``tiles_a_turn`` of any slides together."""
    turns: list[Turn] = []
    tiles = tiles_a_turn
    for fetch in fetches:
        if not isinstance(fetch.source, LocalSource):
            continue
        for group in fetch.groups:
            if tiles >= tiles_a_turn:
                turns.append([])
                tiles = 0
            turns[-1].append((fetch, group))
            tiles += sum(len(each.tiles) for each in group)
    return turns
