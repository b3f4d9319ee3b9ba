"""What does one slide's index hold, and what did reading it cost?

``index_slide`` asks a store for an object's size and version and reads nothing but headers. The result, a
``SlideIndex``, is all that is needed to read pixels later, in any process.
"""

from __future__ import annotations

from dataclasses import dataclass

from online_patching.bytesource import ByteSource, ObjectInfo
from online_patching.formats.header import SlideHeader, TileRanges
from online_patching.formats.tiff import HeaderReader
from online_patching.formats.tiff_slide import read_tiff_slide


@dataclass(frozen=True, slots=True)
class SlideIndex:
    """One indexed slide.

    Attributes:
        url: Where the slide lies.
        info: Size and version, pinned from here on.
        header: Levels, encodings, resolution.
        tiles: Byte ranges of every level's tiles, in the order of the levels.
        requests: Range requests that indexing made (the request for size and version not counted).
        bytes_read: Bytes that indexing received.
    """

    url: str
    info: ObjectInfo
    header: SlideHeader
    tiles: tuple[TileRanges, ...]
    requests: int
    bytes_read: int


async def index_slide(source: ByteSource) -> SlideIndex:
    """Read the headers of a slide.

    Raises:
        StorageError: The object cannot be reached.
        SlideFormatError: It is not a slide, or one that cannot be read with certain colours.
    """
    info = await source.info()
    reader = HeaderReader(source, info.size)
    header, tiles = await read_tiff_slide(reader)
    return SlideIndex(source.url, info, header, tuple(tiles), reader.requests, reader.bytes_read)
