"""What do the directories of a Hamamatsu NDPI say?

An NDPI calls itself a classic TIFF, whose offsets have 32 bits, but may be larger than 4 GiB. Three things differ
(OpenSlide's format page "Hamamatsu", tifffile's notes):

1. the offset of the first directory, and of each next one, has 64 bits;
2. behind them stand the high 32 bits of every entry's value or offset, 4 bytes an entry;
3. a text is never stored in the entry itself, however short.

An ordinary TIFF read in this way does not have the tag that every NDPI has, which is how the two are told apart.
"""

from __future__ import annotations

import struct
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from online_patching.formats.header_reader import HeaderReader
from online_patching.formats.tiff import MAX_ENTRIES, MAX_IFDS, TiffEntry, TiffIfd, TiffLayout, tiff_entry

FORMAT_FLAG = 65420
_ASCII, _LONG, _SLONG, _IFD = 2, 4, 9, 13


class NdpiIfd(TiffIfd):
    """A directory that also has whole numbers of 64 bits, in two pieces."""

    def __init__(self, reader: HeaderReader, entries: dict[int, TiffEntry], wide: dict[int, int]) -> None:
        super().__init__(reader, TiffLayout("<", False), entries)
        self._wide = wide

    async def numbers(self, tag: int) -> npt.NDArray[np.generic]:
        """All values of a numeric tag; rationals come as float64."""
        if tag in self._wide:
            return np.array([self._wide[tag]], np.uint64)
        return await super().numbers(tag)


async def read_ndpi_directories(reader: HeaderReader) -> list[TiffIfd] | None:
    """All directories of an NDPI, in order, or None where the file is none.

    Raises:
        SlideFormatError: A damaged NDPI.
    """
    head = await reader.read(0, 16)
    (offset,) = struct.unpack("<Q", head[4:12])
    if head[:4] != b"II*\0" or not await _is_ndpi(reader, offset):
        return None
    ifds: list[TiffIfd] = []
    seen: set[int] = set()
    while offset:
        if offset in seen or len(ifds) >= MAX_IFDS:
            raise reader.error(f"its NDPI directories form a loop or exceed {MAX_IFDS}: the file is damaged")
        seen.add(offset)
        ifd, offset = await _read_directory(reader, offset)
        ifds.append(ifd)
    return ifds


async def _is_ndpi(reader: HeaderReader, offset: int) -> bool:
    """Whether the directory there has the tag of every NDPI; whatever is damaged there, the TIFF reader will say."""
    if not 0 < offset <= reader.size - 2:
        return False
    (count,) = struct.unpack("<H", await reader.read(offset, 2))
    if count > MAX_ENTRIES or offset + 2 + 16 * count + 8 > reader.size:
        return False
    entries = await reader.read(offset + 2, 12 * count)
    return any(tag == FORMAT_FLAG for tag, *_ in struct.iter_unpack("<HHII", entries))


async def _read_directory(reader: HeaderReader, offset: int) -> tuple[TiffIfd, int]:
    (count,) = struct.unpack("<H", await reader.read(offset, 2))
    if count > MAX_ENTRIES:
        raise reader.error(f"an NDPI directory claims {count} entries (allowed: {MAX_ENTRIES}): the file is damaged")
    body = await reader.read(offset + 2, 16 * count + 8)
    highs = struct.unpack(f"<{count}I", body[12 * count + 8 :])
    entries: dict[int, TiffEntry] = {}
    wide: dict[int, int] = {}
    for k, (tag, type_code, values, low) in enumerate(struct.iter_unpack("<HHII", body[: 12 * count])):
        entry = tiff_entry("<", type_code, values)
        inline = entry.length <= 4 and type_code != _ASCII
        place = offset + 2 + 12 * k + 8 if inline else low | highs[k] << 32
        entries[tag] = replace(entry, place=place)
        if inline and highs[k]:
            if type_code not in (_LONG, _SLONG, _IFD) or values != 1:
                raise reader.error(f"NDPI tag {tag} of type {type_code} has high bits: the file is damaged")
            wide[tag] = low | highs[k] << 32
    (following,) = struct.unpack("<Q", body[12 * count : 12 * count + 8])
    return NdpiIfd(reader, entries, wide), following
