"""How is a slide's header and the place of its tiles read from a catalog, with few and small requests?

``StoredTiles`` reads one tile table: its front once, in one request of a length known beforehand, then the blocks that
are asked for, each kept while it is in use.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from online_patching.bytesource import ByteRange, ByteSource, shown_url
from online_patching.formats.header import TileRanges
from online_patching.tiletable import TileTableFront, decode_block, decode_front

# 64 blocks of 16 x 16 tiles: a strip of a slide of 1,024 tile columns.
KEPT_BLOCKS = 64


class StoredTiles:
    """Byte ranges of a slide's tiles, read from its tile table by blocks.

    Attributes:
        source: The tile table.
        front: The slide's header, objects and the places of the blocks.
    """

    def __init__(self, source: ByteSource, front: TileTableFront) -> None:
        self.source = source
        self.front = front
        self._blocks: OrderedDict[tuple[int, int], TileRanges] = OrderedDict()

    async def ranges(self, level: int, tiles: Sequence[int]) -> list[ByteRange]:
        """(start, length) of each tile."""
        places = [self.front.place(level, tile) for tile in tiles]
        wanted = sorted({place.block for place in places})
        blocks = {block: self._blocks[level, block] for block in wanted if (level, block) in self._blocks}
        missing = [block for block in wanted if block not in blocks]
        if missing:
            bodies = await self.source.read_ranges([self.front.block_range(level, block) for block in missing])
            for block, body in zip(missing, bodies, strict=True):
                blocks[block] = self._blocks[level, block] = decode_block(body, shown_url(self.source.url))
            while len(self._blocks) > KEPT_BLOCKS:
                self._blocks.popitem(last=False)
        found = [(blocks[place.block], place.entry) for place in places]
        return [(int(block.offset[entry]), int(block.length[entry])) for block, entry in found]


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
    return StoredTiles(source, decode_front(data, shown_url(source.url)))
