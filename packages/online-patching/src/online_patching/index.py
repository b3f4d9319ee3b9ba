"""What does one slide's index hold, and what did reading it cost?

``index_slide`` reads nothing but headers; the first request tells the object's size and version too. The result, a
``SlideIndex``, is all that is needed to read pixels later, in any process.
"""

from __future__ import annotations

from dataclasses import dataclass

from online_patching.bytesource import PinnedObject, check_url
from online_patching.formats.detect import read_slide
from online_patching.formats.header import SlideHeader, TileRanges
from online_patching.storage import Store


@dataclass(frozen=True, slots=True)
class SlideIndex:
    """One indexed slide.

    Attributes:
        url: What was opened: a file, or a folder of files.
        objects: The slide's objects, whose size and version are pinned from here on.
        header: Levels, encodings, resolution.
        tiles: Byte ranges of every level's tiles, in the order of the levels; empty for OME-Zarr.
        requests: Range requests that indexing made.
        bytes_read: Bytes that indexing received.
    """

    url: str
    objects: tuple[PinnedObject, ...]
    header: SlideHeader
    tiles: tuple[TileRanges, ...]
    requests: int
    bytes_read: int


async def index_slide(url: str, store: Store, *, experimental: bool = False) -> SlideIndex:
    """Read the headers of a slide.

    Args:
        url: A file, or the folder of a slide that is several files.
        store: Opens objects and lists folders.
        experimental: Open experimental formats as well.

    Raises:
        StorageError: The object cannot be reached.
        SlideFormatError: It is not a slide, or one that cannot be read with certain colours.
    """
    check_url(url)
    found, requests, bytes_read = await read_slide(store, url, experimental=experimental)
    return SlideIndex(url, found.objects, found.header, found.tiles, requests, bytes_read)
