"""What do the headers of a TIFF or BigTIFF say, read over a network?

1. ``read_ifds`` follows the chain of IFDs and decodes their entries; ``read_sub_ifds`` does so for the directories
   that another one names (tag 330), all at once. Where the next directory has to be waited for, the values that the
   levels found so far will need come with it.
2. ``fetch_values`` reads the values of some tags of many directories in one round trip.
3. ``TiffIfd.numbers`` and its kin give the values of one tag.

Headers are untrusted: loops, absurd counts and offsets past the end are errors that name the file.
"""

from __future__ import annotations

import struct
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import numpy.typing as npt

from online_patching.bytesource import ByteRange
from online_patching.formats.header_reader import WINDOW_BYTES, HeaderReader

ByteOrder = Literal["<", ">"]

MAX_IFDS = 256
MAX_ENTRIES = 1024
# Three million 64-bit offsets: a level of 443,000 x 443,000 px in tiles of 256.
MAX_ARRAY_BYTES = 24 << 20
# A usual directory.
IFD_BYTES = 512
# No entry of a directory holds more itself.
INLINE_BYTES = 8
# The last directories often lie near the end of the file.
TAIL_BYTES = 8 * 1024
# Of a file that is no larger, all is read at the first directory that does not lie at its head.
SMALL_FILE_BYTES = 2 * WINDOW_BYTES + TAIL_BYTES

# TIFF 6.0 section 2 and the BigTIFF types: code -> NumPy type without byte order.
_TYPES = {1: "u1", 2: "S1", 3: "u2", 4: "u4", 6: "i1", 7: "u1", 8: "i2", 9: "i4", 11: "f4", 12: "f8", 16: "u8"}
_RATIONALS = {5: "u4", 10: "i4"}
_BIG_ONLY = {13: "u4", 17: "i8", 18: "u8"}
_TYPES |= _BIG_ONLY

SUBFILE_TYPE, IMAGE_WIDTH, IMAGE_LENGTH, BITS_PER_SAMPLE, COMPRESSION, PHOTOMETRIC = 254, 256, 257, 258, 259, 262
FILL_ORDER, IMAGE_DESCRIPTION, SAMPLES_PER_PIXEL, X_RESOLUTION, Y_RESOLUTION = 266, 270, 277, 282, 283
PLANAR_CONFIGURATION, RESOLUTION_UNIT, SOFTWARE, PREDICTOR, TILE_WIDTH, TILE_LENGTH = 284, 296, 305, 317, 322, 323
TILE_OFFSETS, TILE_BYTE_COUNTS, SUB_IFDS, EXTRA_SAMPLES, SAMPLE_FORMAT, JPEG_TABLES = 324, 325, 330, 338, 339, 347

# What every level needs beside its arrays, and what is asked of the first directory: read ahead up to a size.
_SMALL_TAGS = (BITS_PER_SAMPLE, SAMPLE_FORMAT, EXTRA_SAMPLES, JPEG_TABLES, SUB_IFDS)
_FIRST_TAGS = (IMAGE_DESCRIPTION, SOFTWARE, X_RESOLUTION, Y_RESOLUTION)
MAX_SMALL_BYTES = 64 * 1024

_BYTE_ORDERS: dict[bytes, ByteOrder] = {b"II": "<", b"MM": ">"}


@dataclass(frozen=True, slots=True)
class TiffLayout:
    """Byte order and whether this is a BigTIFF."""

    order: ByteOrder
    big: bool

    @property
    def offset(self) -> str:
        """Format of an offset, in struct's words."""
        return self.order + ("Q" if self.big else "I")


@dataclass(frozen=True, slots=True)
class TiffEntry:
    """One entry of a directory: how many values of which type (None: unknown) lie at which byte of the file."""

    dtype: np.dtype[np.generic] | None
    per_value: int
    count: int
    place: int

    @property
    def length(self) -> int:
        """Bytes of all values."""
        return self.count * self.per_value * (self.dtype.itemsize if self.dtype is not None else 1)


def tiff_entry(order: ByteOrder, type_code: int, count: int) -> TiffEntry:
    """An entry of a type by its number; where it lies is not known yet."""
    kind = _RATIONALS.get(type_code) or _TYPES.get(type_code)
    dtype = np.dtype(kind).newbyteorder(order) if kind else None
    return TiffEntry(dtype, 2 if type_code in _RATIONALS else 1, count, 0)


class TiffIfd:
    """One image file directory; values are read when asked for."""

    def __init__(self, reader: HeaderReader, layout: TiffLayout, entries: dict[int, TiffEntry]) -> None:
        self.layout = layout
        self._reader = reader
        self._entries = entries

    def __contains__(self, tag: int) -> bool:
        return tag in self._entries

    def count(self, tag: int) -> int:
        """How many values a tag has, known without reading them; 0 where it is missing."""
        return self._entries[tag].count if tag in self._entries else 0

    def places(self, tags: Collection[int]) -> list[ByteRange]:
        """Where the values of those tags lie that the directory has."""
        return [self._place(tag) for tag in tags if tag in self._entries]

    def places_up_to(self, max_bytes: int, tags: Collection[int]) -> list[ByteRange]:
        """Where the values of those tags lie that the directory has and that are no longer than that."""
        entries = [self._entries[tag] for tag in tags if tag in self._entries]
        return [(entry.place, entry.length) for entry in entries if entry.length <= max_bytes]

    async def numbers(self, tag: int) -> npt.NDArray[np.generic]:
        """All values of a numeric tag; rationals come as float64.

        Raises:
            SlideFormatError: The tag is missing, of an unknown type, or its values are out of bounds.
        """
        entry = self._entries.get(tag)
        if entry is None:
            raise self._reader.error(f"required TIFF tag {tag} is missing: not a slide this package can read")
        if entry.dtype is None:
            raise self._reader.error(f"TIFF tag {tag} has an unknown type of value: the file is damaged")
        values = np.frombuffer(await self._reader.read(*self._place(tag)), entry.dtype)
        if entry.per_value == 1:
            return values
        pairs = values.reshape(-1, 2).astype(np.float64)
        return np.divide(pairs[:, 0], pairs[:, 1], out=np.zeros(len(pairs)), where=pairs[:, 1] != 0)

    async def number(self, tag: int, default: int | None = None) -> int:
        """The first value of a tag, as int."""
        if default is not None and tag not in self._entries:
            return default
        values = await self.numbers(tag)
        if len(values) == 0 or values.dtype.kind not in "iu":
            raise self._reader.error(f"TIFF tag {tag} holds no whole number")
        return int(values[0])

    async def real(self, tag: int) -> float | None:
        """The first value of a tag as float, or None where the tag is missing or empty."""
        if tag not in self._entries:
            return None
        values = await self.numbers(tag)
        return float(values[0]) if len(values) and values.dtype.kind in "iuf" else None

    async def raw(self, tag: int) -> bytes:
        """The bytes of a tag, or empty where it is missing."""
        return (await self.numbers(tag)).tobytes() if tag in self._entries else b""

    async def text(self, tag: int) -> str:
        """An ASCII tag as text, or empty where it is missing."""
        return (await self.raw(tag)).split(b"\0", 1)[0].decode("utf-8", "replace")

    def _place(self, tag: int) -> ByteRange:
        entry = self._entries[tag]
        if entry.length > MAX_ARRAY_BYTES:
            raise self._reader.error(
                f"TIFF tag {tag} claims {entry.count} values (allowed: {MAX_ARRAY_BYTES} bytes): the file is damaged"
            )
        return entry.place, entry.length


async def fetch_values(reader: HeaderReader, ifds: Sequence[TiffIfd], tags: Collection[int]) -> None:
    """Read the values of some tags of many directories in one round trip, so that asking for them costs nothing.

    Raises:
        SlideFormatError: They claim an absurd size or lie past the end of the file.
    """
    await reader.fetch([place for ifd in ifds for place in ifd.places(tags)])


async def read_ifds(reader: HeaderReader) -> list[TiffIfd]:
    """All directories of the file's main chain, in order.

    Raises:
        SlideFormatError: Not a TIFF, or a damaged one.
    """
    head = await reader.read(0, 16)
    order = _BYTE_ORDERS.get(head[:2])
    magic = struct.unpack(order + "H", head[2:4])[0] if order else None
    if order is None or magic not in (42, 43):
        raise reader.error(f"not a TIFF: it starts with {head[:4]!r}")
    layout = TiffLayout(order, magic == 43)
    if layout.big and struct.unpack(order + "HH", head[4:8]) != (8, 0):
        raise reader.error("a BigTIFF with an offset size other than 8: the file is damaged")
    (offset,) = struct.unpack(layout.offset, head[8:16] if layout.big else head[4:8])
    ifds: list[TiffIfd] = []
    seen: set[int] = set()
    ahead = _Ahead(reader)
    while offset:
        if offset in seen or len(ifds) >= MAX_IFDS:
            raise reader.error(f"its TIFF directories form a loop or exceed {MAX_IFDS}: the file is damaged")
        seen.add(offset)
        if not reader.is_known(offset, max(min(IFD_BYTES, reader.size - offset), 0)):
            tail = WINDOW_BYTES if reader.size <= SMALL_FILE_BYTES else reader.size - TAIL_BYTES
            await reader.fetch([ahead.window(offset), (tail, reader.size - tail), *ahead.values])
            ahead.values.clear()
        ifd, offset = await _read_ifd(reader, layout, offset)
        ahead.saw(ifd)
        ifds.append(ifd)
    await reader.fetch(ahead.values)
    if not ifds:
        raise reader.error("a TIFF without any image directory: the file is damaged")
    return ifds


async def read_sub_ifds(reader: HeaderReader, ifd: TiffIfd) -> list[TiffIfd]:
    """The directories that tag 330 of another one names, in order; read together, their own chains not followed.

    Raises:
        SlideFormatError: There are absurdly many, one is named twice, or one is damaged.
    """
    count = ifd.count(SUB_IFDS)
    if count > MAX_IFDS:
        raise reader.error(f"a TIFF directory names {count} sub-directories (allowed: {MAX_IFDS}): damaged file")
    if count == 0:
        return []
    places = await ifd.numbers(SUB_IFDS)
    if places.dtype.kind not in "iu":
        raise reader.error(f"TIFF tag {SUB_IFDS} holds no whole numbers: the file is damaged")
    offsets = [int(offset) for offset in places.astype(np.uint64)]
    if len(set(offsets)) != len(offsets):
        raise reader.error("a TIFF directory names a sub-directory twice: the file is damaged")
    ahead = _Ahead(reader)
    ahead.saw(ifd)
    windows = []
    for offset in offsets:
        windows.append(ahead.window(offset))
        ahead.expect_quarter()
    await reader.fetch(windows)
    return [(await _read_ifd(reader, ifd.layout, offset))[0] for offset in offsets]


class _Ahead:
    """What is read at each directory before anybody asks for it.

    - A window, so that the arrays at the directory mostly come along: behind it, or before it in files of writers that
      put arrays first. A level has about a quarter of the tiles of the one before it. Arrays that do not fit are read
      by a request of their own; from the third such directory on it pays to read as much more as they will need. All
      that is read on that guess stays below 0.3 of the bytes of arrays that are certain.
    - The values of the directories seen so far that lie in no window: nothing has to wait for them, so they are read
      together with the next directory. They are those of levels most likely: all tiled directories together get at
      most twice what the first of them gets, which holds for a pyramid.
    """

    def __init__(self, reader: HeaderReader) -> None:
        self.values: list[ByteRange] = []
        self._size = reader.size
        self._last = 0
        self._large = 0
        self._allowance = 0
        self._arrays_first = False
        self._is_first = True
        self._arrays_left: int | None = None

    def saw(self, ifd: TiffIfd) -> None:
        arrays = ifd.places((TILE_OFFSETS, TILE_BYTE_COUNTS))
        length = sum(size for _, size in arrays)
        if length:
            self._allowance += length * 29 // 100
            self._large += length > WINDOW_BYTES - 2048
            self._last = length
        # Arrays within the directory itself do not tell where others lie.
        if arrays and min(size for _, size in arrays) > INLINE_BYTES:
            # A place within the directory: that of any such value, as its width is.
            inside = next((place for place, _ in ifd.places((IMAGE_WIDTH,))), 0)
            self._arrays_first = 0 <= inside - max(place + size for place, size in arrays) < WINDOW_BYTES
        self._want(ifd, arrays)

    def _want(self, ifd: TiffIfd, arrays: list[ByteRange]) -> None:
        wanted = ifd.places_up_to(MAX_SMALL_BYTES, _SMALL_TAGS if arrays else ())
        if self._is_first:
            wanted += ifd.places_up_to(MAX_SMALL_BYTES, _FIRST_TAGS)
        self._is_first = False
        length = sum(size for _, size in arrays)
        if self._arrays_left is None and arrays:
            self._arrays_left = 2 * length
        if self._arrays_left is not None and length <= self._arrays_left:
            self._arrays_left -= length
            wanted += arrays
        # What lies past the end is an error only where it is needed.
        self.values += [(start, size) for start, size in wanted if start + size <= self._size]

    def expect_quarter(self) -> None:
        self._last //= 4
        self._large += self._last > WINDOW_BYTES - 2048

    def window(self, offset: int) -> ByteRange:
        extra = min(self._last // 4, self._allowance) if self._large >= 2 else 0
        self._allowance -= extra
        length = WINDOW_BYTES + extra
        start = max(offset + 2 * IFD_BYTES - length, 0) if self._arrays_first else offset
        return start, max(min(length, self._size - start), 0)


async def _read_ifd(reader: HeaderReader, layout: TiffLayout, offset: int) -> tuple[TiffIfd, int]:
    """One directory and the offset of the next (0: none)."""
    count_format, entry_format, inline = ("Q", "HHQ8s", 8) if layout.big else ("H", "HHI4s", 4)
    count_size = struct.calcsize("=" + count_format)
    record = struct.Struct(layout.order + entry_format)
    (count,) = struct.unpack(layout.order + count_format, await reader.read(offset, count_size))
    if count > MAX_ENTRIES:
        raise reader.error(f"a TIFF directory claims {count} entries (allowed: {MAX_ENTRIES}): the file is damaged")
    body = await reader.read(offset + count_size, count * record.size + inline)
    entries: dict[int, TiffEntry] = {}
    for k in range(count):
        tag, type_code, values, field = record.unpack_from(body, k * record.size)
        entry = tiff_entry(layout.order, type_code, values)
        if entry.length <= inline:
            place = offset + count_size + (k + 1) * record.size - inline
        else:
            (place,) = struct.unpack(layout.offset, field)
        entries[tag] = replace(entry, place=place)
    (following,) = struct.unpack(layout.offset, body[-inline:])
    return TiffIfd(reader, layout, entries), following
