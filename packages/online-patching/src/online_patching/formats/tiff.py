"""What do the headers of a TIFF or BigTIFF say, read over a network?

1. ``read_ifds`` follows the chain of IFDs and decodes their entries; large arrays stay where they are.
2. ``TiffIfd.numbers`` reads an array when somebody asks for it.

Headers are untrusted: loops, absurd counts and offsets past the end are errors that name the file.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from online_patching.formats.header_reader import HeaderReader

ByteOrder = Literal["<", ">"]

MAX_IFDS = 256
MAX_ENTRIES = 1024
# 2 GiB of offsets would be 268 million tiles in one level; no scanner comes near.
MAX_ARRAY_BYTES = 2 << 30
# Philips' description holds the label and macro pictures: a few MB.
MAX_TEXT_BYTES = 16 << 20

# TIFF 6.0 section 2 and the BigTIFF types: code -> NumPy type without byte order.
_TYPES = {1: "u1", 2: "S1", 3: "u2", 4: "u4", 6: "i1", 7: "u1", 8: "i2", 9: "i4", 11: "f4", 12: "f8", 16: "u8"}
_RATIONALS = {5: "u4", 10: "i4"}
_BIG_ONLY = {13: "u4", 17: "i8", 18: "u8"}
_TYPES |= _BIG_ONLY

IMAGE_WIDTH, IMAGE_LENGTH, BITS_PER_SAMPLE, COMPRESSION, PHOTOMETRIC = 256, 257, 258, 259, 262
IMAGE_DESCRIPTION, ORIENTATION, SAMPLES_PER_PIXEL, X_RESOLUTION, Y_RESOLUTION = 270, 274, 277, 282, 283
PLANAR_CONFIGURATION, RESOLUTION_UNIT, SOFTWARE, PREDICTOR, TILE_WIDTH, TILE_LENGTH = 284, 296, 305, 317, 322, 323
TILE_OFFSETS, TILE_BYTE_COUNTS, SAMPLE_FORMAT, JPEG_TABLES = 324, 325, 339, 347


_BYTE_ORDERS: dict[bytes, ByteOrder] = {b"II": "<", b"MM": ">"}


@dataclass(frozen=True, slots=True)
class TiffEntry:
    """One entry of a directory: how many values of which type lie at which byte of the file."""

    type_code: int
    count: int
    value_offset: int


class TiffIfd:
    """One image file directory; values are read when asked for."""

    def __init__(self, reader: HeaderReader, order: ByteOrder, entries: dict[int, TiffEntry]) -> None:
        self._reader = reader
        self._order = order
        self._entries = entries

    def __contains__(self, tag: int) -> bool:
        return tag in self._entries

    def count(self, tag: int) -> int:
        """How many values a tag has; 0 where it is missing."""
        return self._entries[tag].count if tag in self._entries else 0

    async def numbers(self, tag: int) -> npt.NDArray[np.generic]:
        """All values of a numeric tag; rationals come as float64.

        Raises:
            SlideFormatError: The tag is missing, of an unknown type, or its values are out of bounds.
        """
        entry = self._entries.get(tag)
        if entry is None:
            raise self._reader.error(f"required TIFF tag {tag} is missing: not a slide this package can read")
        if entry.type_code in _RATIONALS:
            pairs = (await self._array(entry, _RATIONALS[entry.type_code], 2)).reshape(-1, 2).astype(np.float64)
            return np.divide(pairs[:, 0], pairs[:, 1], out=np.zeros(len(pairs)), where=pairs[:, 1] != 0)
        if entry.type_code not in _TYPES:
            raise self._reader.error(f"TIFF tag {tag} has the unknown type {entry.type_code}")
        return await self._array(entry, _TYPES[entry.type_code], 1)

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
        """An ASCII tag as text, or empty where it is missing.

        Raises:
            SlideFormatError: It is longer than any header's text.
        """
        if self.count(tag) > MAX_TEXT_BYTES:
            raise self._reader.error(
                f"TIFF tag {tag} holds a text of {self.count(tag)} bytes (allowed: {MAX_TEXT_BYTES}): a damaged file"
            )
        return (await self.raw(tag)).split(b"\0", 1)[0].decode("utf-8", "replace")

    async def _array(self, entry: TiffEntry, kind: str, per_value: int) -> npt.NDArray[np.generic]:
        dtype = np.dtype(kind).newbyteorder(self._order)
        length = entry.count * per_value * dtype.itemsize
        if length > MAX_ARRAY_BYTES:
            raise self._reader.error(f"a TIFF tag claims {entry.count} values: the file is damaged")
        return np.frombuffer(await self._reader.read(entry.value_offset, length), dtype)


async def read_ifds(reader: HeaderReader) -> list[TiffIfd]:
    """All directories of the file's main chain, in order.

    Raises:
        SlideFormatError: Not a TIFF, or a damaged one.
    """
    head = await reader.read(0, 16)
    order = _BYTE_ORDERS.get(head[:2])
    magic = struct.unpack(order + "H", head[2:4])[0] if order else None
    if order is None or magic not in (42, 43):
        raise reader.error(f"not a TIFF: it starts with {head[:4]!r}; slides here are SVS or pyramidal TIFF files")
    big = magic == 43
    if big and struct.unpack(order + "HH", head[4:8]) != (8, 0):
        raise reader.error("a BigTIFF with an offset size other than 8: the file is damaged")
    offset = struct.unpack(order + "Q", head[8:16])[0] if big else struct.unpack(order + "I", head[4:8])[0]
    ifds: list[TiffIfd] = []
    seen: set[int] = set()
    while offset:
        if offset in seen or len(ifds) >= MAX_IFDS:
            raise reader.error(f"its TIFF directories form a loop or exceed {MAX_IFDS}: the file is damaged")
        seen.add(offset)
        ifd, offset = await _read_ifd(reader, order, big, offset)
        ifds.append(ifd)
    if not ifds:
        raise reader.error("a TIFF without any image directory: the file is damaged")
    return ifds


async def _read_ifd(reader: HeaderReader, order: ByteOrder, big: bool, offset: int) -> tuple[TiffIfd, int]:
    count_format, entry_size, inline = ("Q", 20, 8) if big else ("H", 12, 4)
    count_size = struct.calcsize("=" + count_format)
    (count,) = struct.unpack(order + count_format, await reader.read(offset, count_size))
    if count > MAX_ENTRIES:
        raise reader.error(f"a TIFF directory claims {count} entries (allowed: {MAX_ENTRIES}): the file is damaged")
    body = await reader.read(offset + count_size, count * entry_size + inline)
    entries: dict[int, TiffEntry] = {}
    for k in range(count):
        record = body[k * entry_size : (k + 1) * entry_size]
        tag, type_code, values = struct.unpack(order + ("HHQ" if big else "HHI"), record[:-inline])
        item = 2 * np.dtype(_RATIONALS[type_code]).itemsize if type_code in _RATIONALS else 0
        item = item or np.dtype(_TYPES.get(type_code, "u1")).itemsize
        if values * item <= inline:
            place = offset + count_size + k * entry_size + entry_size - inline
        else:
            (place,) = struct.unpack(order + ("Q" if big else "I"), record[-inline:])
        entries[tag] = TiffEntry(type_code, values, place)
    (following,) = struct.unpack(order + ("Q" if big else "I"), body[-inline:])
    return TiffIfd(reader, order, entries), following
