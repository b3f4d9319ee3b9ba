"""What tests of several formats hold a slide against: OpenSlide's pixels, and damage to the headers in memory."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
import openslide
from online_patching import Slide
from online_patching.bytesource import ByteRange, ObjectInfo, PinnedObject, read_start_by_info
from online_patching.errors import PatchingError
from online_patching.index import SlideIndex, index_slide
from online_patching.loop import run
from online_patching.storage import Store

# Slides whose pixels differ by design: name -> why. They must equal tifffile's instead.
OTHER_PIXELS = {
    "test_orient6.tif": "orientation tag 6: OpenSlide mirrors each tile in itself (not the image) where libtiff decodes"
    " it and ignores the tag of colour JPEGs; here pixels are always those stored",
}


MEMORY_URL = "memory://cohort/slide"


class MemorySource:
    """Bytes in memory as an object (a source like any other: it only has no network)."""

    def __init__(self, data: bytes, url: str = MEMORY_URL) -> None:
        self.data = data
        self.url = url

    async def info(self) -> ObjectInfo:
        return ObjectInfo(len(self.data), "1")

    async def read_start(self, length: int) -> tuple[bytes, ObjectInfo]:
        return await read_start_by_info(self, length)

    async def read_ranges(self, ranges: Sequence[ByteRange], *, expected: ObjectInfo | None = None) -> list[bytes]:
        return [self.data[start : start + length] for start, length in ranges]


class MemoryStore(Store):
    """A store that holds one object, alone in its folder."""

    def __init__(self, data: bytes, url: str = MEMORY_URL) -> None:
        super().__init__()
        self.source = MemorySource(data, url)

    def open(self, url: str) -> MemorySource:
        return self.source

    async def list_folder(self, folder_url: str) -> list[PinnedObject]:
        return [PinnedObject(self.source.url, await self.source.info())]


def index_bytes(data: bytes, url: str = MEMORY_URL) -> SlideIndex:
    """Index a slide in memory, whatever its format."""
    return run(index_slide(url, MemoryStore(data, url), experimental=True))


def index_or_error(data: bytes, url: str = MEMORY_URL) -> SlideIndex | PatchingError:
    """The index of a slide in memory, or the typed error that it ends in."""
    try:
        return index_bytes(data, url)
    except PatchingError as error:
        return error


def assert_damage_is_survived(data: bytes) -> None:
    """Indexing ends within a second, in a valid geometry or in an error that names the file."""
    started = time.process_time()
    result = index_or_error(data)
    assert time.process_time() - started < 1
    if isinstance(result, PatchingError):
        assert MEMORY_URL in str(result)
        return
    for level, tiles in zip(result.header.levels, result.tiles, strict=True):
        assert min(level.width_px, level.height_px, level.tile_width_px, level.tile_height_px) > 0
        assert len(tiles.offset) == len(tiles.length) == level.tiles_x * level.tiles_y
        assert ((tiles.offset + tiles.length <= len(data)) | (tiles.length == 0)).all()


def assert_levels_equal_openslide(
    slide: Slide, oracle: openslide.OpenSlide, *, levels: Sequence[int] | None = None, x_px: int = 0, y_px: int = 0
) -> None:
    """Every whole level has OpenSlide's pixels, and is white where OpenSlide has none.

    Args:
        slide: Read here.
        oracle: The same file in OpenSlide.
        levels: OpenSlide's number of every level, where it makes up levels that are not stored.
        x_px: Where level 0 of the slide begins on OpenSlide's canvas; divisible by every downsample.
        y_px: The same, downwards.
    """
    numbers = range(oracle.level_count) if levels is None else levels
    for level, (number, geometry) in enumerate(zip(numbers, slide.levels, strict=True)):
        size = (geometry.width_px, geometry.height_px)
        expected = np.asarray(oracle.read_region((x_px, y_px), number, size))
        read = slide.read_level(level=level, x_px=0, y_px=0, width_px=size[0], height_px=size[1])
        inside = expected[..., 3] == 255
        assert inside.any()
        np.testing.assert_array_equal(read[inside], expected[..., :3][inside])
        assert (read[~inside] == 255).all()
