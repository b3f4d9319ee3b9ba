"""How is a slide's header and the place of its tiles read from a catalog, with few and small requests?

``StoredTiles`` reads one tile table: its front once, in one request of a length known beforehand, then the blocks that
are asked for, each kept while it is in use. ``look_up`` reads what is not kept for many slides together: those on a
disk in one hop to a thread, the others all at the same time.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from online_patching.bytesource import ByteRange, ByteSource, gathered
from online_patching.cache import BoundedCache
from online_patching.formats.header import TileRanges
from online_patching.storage import LocalSource
from online_patching.tiletable import TilePlace, TileTableFront, decode_block, decode_front

# 64 blocks of 16 x 16 tiles: a strip of a slide of 1,024 tile columns.
KEPT_BLOCKS = 64

BlockCache = BoundedCache[tuple[int, int, int], TileRanges]
"""Blocks by the number of their table in this process, level, and number in the level."""

_table_numbers = itertools.count()


class StoredTiles:
    """Byte ranges of a slide's tiles, read from its tile table by blocks.

    Args:
        source: The tile table.
        front: Its front.
        kept: Where blocks are kept; many slides may share it. One of its own where not given.

    Attributes:
        source: The tile table.
        front: The slide's header, objects and the places of the blocks.
    """

    def __init__(self, source: ByteSource, front: TileTableFront, kept: BlockCache | None = None) -> None:
        self.source = source
        self.front = front
        self._number = next(_table_numbers)
        self._kept: BlockCache = BoundedCache(KEPT_BLOCKS) if kept is None else kept

    def __reduce__(self) -> tuple[type[StoredTiles], tuple[ByteSource, TileTableFront]]:
        # The blocks of all slides would travel with it.
        return StoredTiles, (self.source, self.front)

    async def ranges(self, level: int, tiles: Sequence[int]) -> list[ByteRange]:
        """(start, length) of each tile."""
        (found,) = await look_up([(self, level, tiles)])
        return found

    def _plan(self, level: int, tiles: Sequence[int]) -> _Plan:
        place = self.front.place
        places = [place(level, tile) for tile in tiles]
        blocks: dict[int, TileRanges] = {}
        missing: list[int] = []
        for number in sorted({each.block for each in places}):
            block = self._kept.peek((self._number, level, number))
            if block is None:
                missing.append(number)
            else:
                blocks[number] = block
        return _Plan(self, level, places, blocks, missing)

    def _keep(self, level: int, number: int, body: bytes) -> TileRanges:
        block = decode_block(body, self.source.url)
        return self._kept.put((self._number, level, number), block)


@dataclass(slots=True)
class _Plan:
    """What is known, and what is missing, for one look-up."""

    table: StoredTiles
    level: int
    places: list[TilePlace]
    blocks: dict[int, TileRanges]
    missing: list[int]

    def byte_ranges(self) -> list[ByteRange]:
        return [self.table.front.block_range(self.level, number) for number in self.missing]

    def fill(self, bodies: Sequence[bytes]) -> None:
        for number, body in zip(self.missing, bodies, strict=True):
            self.blocks[number] = self.table._keep(self.level, number, body)

    async def read(self) -> None:
        self.fill(await self.table.source.read_ranges(self.byte_ranges()))

    def ranges(self) -> list[ByteRange]:
        found = [(self.blocks[number], entry) for number, entry in self.places]
        return [(block.offset.item(entry), block.length.item(entry)) for block, entry in found]


async def look_up(wanted: Sequence[tuple[StoredTiles, int, Sequence[int]]]) -> list[list[ByteRange]]:
    """(start, length) of tiles of many slides: for every (slide, level, tiles) a list, in order.

    Raises:
        CatalogError: A tile table is damaged.
        StorageError: One cannot be read.
    """
    plans = [tiles._plan(level, numbers) for tiles, level, numbers in wanted]
    missing = [plan for plan in plans if plan.missing]
    reads = [plan.read() for plan in missing if not isinstance(plan.table.source, LocalSource)]
    local = [plan for plan in missing if isinstance(plan.table.source, LocalSource)]
    if local:
        reads.append(asyncio.to_thread(_read_local, local))
    await gathered(reads)
    return [plan.ranges() for plan in plans]


def _read_local(plans: Sequence[_Plan]) -> None:
    for plan in plans:
        source = plan.table.source
        assert isinstance(source, LocalSource), "others are read by the event loop"
        plan.fill(source.read_ranges_now(plan.byte_ranges()))


async def read_stored_tiles(source: ByteSource, front_bytes: int) -> StoredTiles:
    """The tile table of a slide, its front read in one request.

    Args:
        source: The tile table.
        front_bytes: Length of its front, from the slide table.

    Raises:
        CatalogError: It is damaged, or written anew since the catalog was opened.
        StorageError: It cannot be read.
    """
    (data,) = await source.read_ranges([(0, front_bytes)])
    return StoredTiles(source, decode_front(data, source.url))
