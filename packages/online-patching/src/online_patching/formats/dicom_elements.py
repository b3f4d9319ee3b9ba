"""Which elements does a DICOM file hold, read without its pixels?

A file is 128 bytes of preamble, ``DICM``, a group of file meta elements and then one data set of elements in ascending
order of their tags (PS3.10 section 7.1, PS3.5 section 7). ``read_elements`` walks the data set's own level over the
network: it keeps the values that are wanted and steps over the others unread. A sequence may not tell its length
(PS3.5 section 7.5.2); then its end is found by ``SequenceScan``. Sequences that are kept stay bytes until ``items`` is
asked for. Explicit and implicit VR little endian are read; everything is bounded, so that no file can occupy a reader.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Set
from dataclasses import dataclass

from online_patching.formats.header_reader import WINDOW_BYTES, HeaderReader

Tag = int
"""Group and element number as one: (0028,0010) is 0x00280010."""

PREAMBLE_BYTES, PREFIX = 128, b"DICM"
UNDEFINED_LENGTH = 0xFFFFFFFF
ITEM, ITEM_END, SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
DELIMITERS = 0xFFFE0000
# Representations whose length takes four bytes (PS3.5 table 7.1-1).
LONG_VRS = frozenset((b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"))

MAX_ELEMENTS, MAX_DEPTH = 4096, 16
MAX_VALUE_BYTES = 16 << 20
# Walking costs time by the element; readers of long sequences ask for twice the bytes that real files need.
MIN_BYTES_AN_ELEMENT = 48
FIRST_PIECE_BYTES, MAX_PIECE_BYTES = 256, 1 << 20
LONGEST_HEADER = 12

_HEADER = struct.Struct("<HHI")
_LENGTH_16, _LENGTH_32 = struct.Struct("<H"), struct.Struct("<I")


class DataSetError(ValueError):
    """Bytes that are no DICOM elements; whoever knows the file says which one it is."""


@dataclass(frozen=True, slots=True)
class Element:
    """Where one element's value lies.

    Attributes:
        tag: Group and element number.
        start: First byte of the value.
        length: Bytes of the value, or ``UNDEFINED_LENGTH``.
        explicit: Whether elements inside of it state their representation.
    """

    tag: Tag
    start: int
    length: int
    explicit: bool


@dataclass(frozen=True, slots=True)
class DataSet:
    """Values of a data set, or of an item of a sequence, by tag.

    Attributes:
        values: Bytes of each value; a sequence's are its items.
        explicit: Whether elements state their representation.
    """

    values: dict[Tag, bytes]
    explicit: bool

    def text(self, tag: Tag) -> str:
        """A text, or an empty one where the element is absent."""
        return self.values.get(tag, b"").decode("latin-1").strip(" \0")

    def texts(self, tag: Tag) -> list[str]:
        """The values of a text element of several values."""
        return [part.strip(" \0") for part in self.text(tag).split("\\")]

    def integer(self, tag: Tag) -> int | None:
        """An unsigned number of 16 or 32 bits, or None where the element is absent or holds something else."""
        value = self.values.get(tag, b"")
        return int.from_bytes(value, "little") if len(value) in (2, 4) else None

    def decimals(self, tag: Tag) -> list[float]:
        """The numbers of a text element; empty where one of them is none."""
        try:
            return [float(part) for part in self.texts(tag)]
        except ValueError:
            return []

    def items(self, tag: Tag) -> Iterator[DataSet]:
        """The items of a sequence one by one; none where it is absent.

        Raises:
            DataSetError: Its bytes are no items.
        """
        return parse_items(self.values.get(tag, b""), explicit=self.explicit)

    def item(self, tag: Tag) -> DataSet:
        """The first item of a sequence, or one without elements."""
        return next(self.items(tag), DataSet({}, self.explicit))


def element_at(data: bytes, at: int, *, explicit: bool) -> Element:
    """The element whose header begins at a place of ``data``; its ``start`` is a place of ``data`` too.

    Raises:
        DataSetError: There is no element.
    """
    try:
        group, number, length = _HEADER.unpack_from(data, at)
        tag, start, inside = group << 16 | number, at + 8, explicit
        if explicit and group != 0xFFFE:
            vr = data[at + 4 : at + 6]
            if vr in LONG_VRS:
                (length,) = _LENGTH_32.unpack_from(data, at + 8)
                start = at + 12
                # PS3.5 section 6.2.2, note on UN: what lies inside of it is implicit.
                inside = vr != b"UN"
            elif vr.isalpha() and vr.isupper():
                (length,) = _LENGTH_16.unpack_from(data, at + 6)
            else:
                raise DataSetError(f"the element ({group:04X},{number:04X}) has {vr!r} for its representation")
    except struct.error:
        raise DataSetError("its elements end in the middle of one") from None
    return Element(tag, start, length, inside)


class SequenceScan:
    """Finds the end of a sequence of undefined length, in bytes that arrive piece by piece.

    Attributes:
        at: How far it came in the bytes.
    """

    def __init__(self, *, explicit: bool, at: int = 0, max_bytes: int = MAX_VALUE_BYTES) -> None:
        self.at = at
        self._elements_left = max_bytes // MIN_BYTES_AN_ELEMENT
        # What is open, innermost last: (is it an item, are its elements explicit).
        self._open: list[tuple[bool, bool]] = [(False, explicit)]

    def advance(self, data: bytes | bytearray) -> bool:
        """Go on with all bytes that are there by now; True once ``at`` is behind the sequence.

        Raises:
            DataSetError: These are no items, too many or too deep.
        """
        at, end, unpack = self.at, len(data), _HEADER.unpack_from
        while self._open and at + 8 <= end:
            in_item, explicit = self._open[-1]
            group, number, length = unpack(data, at)
            after = at + 8
            if group == 0xFFFE:
                undefined = self._delimiter(number, in_item, explicit, length)
            else:
                if not in_item:
                    raise DataSetError(f"({group:04X},{number:04X}) stands where an item of a sequence should")
                if explicit:
                    vr = bytes(data[at + 4 : at + 6])
                    if vr not in LONG_VRS:
                        length >>= 16
                    elif at + LONGEST_HEADER > end:
                        break
                    else:
                        (length,) = _LENGTH_32.unpack_from(data, at + 8)
                        after = at + LONGEST_HEADER
                        explicit = vr != b"UN"
                undefined = length == UNDEFINED_LENGTH
                if undefined:
                    self._enter(False, explicit)
            at = after if undefined else after + length
            self._elements_left -= 1
            if self._elements_left < 0:
                raise DataSetError("more elements in it than any slide needs")
        self.at = at
        return not self._open and at <= end

    def _delimiter(self, number: int, in_item: bool, explicit: bool, length: int) -> bool:
        """Open or close an item or sequence; whether the reader stays at its header's end."""
        if number == ITEM & 0xFFFF and not in_item:
            if length == UNDEFINED_LENGTH:
                self._enter(True, explicit)
            return length == UNDEFINED_LENGTH
        if number != (ITEM_END if in_item else SEQUENCE_END) & 0xFFFF:
            raise DataSetError("an item or a sequence ends where none was open")
        self._open.pop()
        return True

    def _enter(self, item: bool, explicit: bool) -> None:
        if len(self._open) >= 2 * MAX_DEPTH:
            raise DataSetError(f"sequences nested more than {MAX_DEPTH} deep")
        self._open.append((item, explicit))


def parse_items(data: bytes, *, explicit: bool) -> Iterator[DataSet]:
    """The items of a sequence whose bytes are all there, one by one.

    Raises:
        DataSetError: These are no items.
    """
    at = 0
    while at < len(data):
        header = element_at(data, at, explicit=explicit)
        if header.tag == SEQUENCE_END:
            break
        if header.tag != ITEM:
            raise DataSetError(f"({header.tag >> 16:04X},{header.tag & 0xFFFF:04X}) stands where an item should")
        end = len(data) if header.length == UNDEFINED_LENGTH else header.start + header.length
        values, at = _parse_elements(data, header.start, end, explicit)
        yield DataSet(values, explicit)


def _parse_elements(data: bytes, at: int, end: int, explicit: bool) -> tuple[dict[Tag, bytes], int]:
    """Values of the elements up to ``end`` or to the end of the item, and where what follows begins."""
    values: dict[Tag, bytes] = {}
    if end > len(data):
        raise DataSetError("an item reaches past the end of its sequence")
    while at < end:
        element = element_at(data, at, explicit=explicit)
        if element.tag == ITEM_END:
            return values, element.start
        if element.length == UNDEFINED_LENGTH:
            scan = SequenceScan(
                explicit=element.explicit, at=element.start, max_bytes=end - element.start + MAX_VALUE_BYTES
            )
            if not scan.advance(data):
                raise DataSetError("a sequence without an end")
            at = scan.at
        else:
            at = element.start + element.length
        if at > end:
            raise DataSetError("an element reaches past the end of its item")
        values[element.tag] = data[element.start : at]
        if len(values) > MAX_ELEMENTS:
            raise DataSetError(f"an item of more than {MAX_ELEMENTS} elements")
    return values, at


async def read_elements(
    reader: HeaderReader,
    at: int,
    *,
    explicit: bool,
    wanted: Set[Tag],
    stop: Tag,
    inside: Set[Tag] = frozenset(),
    max_bytes: int = MAX_VALUE_BYTES,
) -> tuple[DataSet, int]:
    """Values of the wanted elements of a file's data set, up to the first element whose tag is ``stop`` or above.

    Args:
        reader: The file.
        at: Where the next element begins.
        explicit: Whether elements state their representation.
        wanted: Tags whose values are kept.
        stop: Where to stop.
        inside: Sequences that are walked through as if their elements were the data set's own; the first one of each
            tag counts. So a colour profile of megabytes is stepped over.
        max_bytes: The longest value that is read.

    Returns:
        The values, and where the element at which it stopped begins.

    Raises:
        SlideFormatError: The file is cut off or damaged.
    """
    values: dict[Tag, bytes] = {}
    for _ in range(MAX_ELEMENTS):
        if at >= reader.size:
            return DataSet(values, explicit), at
        group, number, _ = _HEADER.unpack(await reader.read(at, _HEADER.size))
        if stop <= group << 16 | number < DELIMITERS:
            # What follows may be written in another way: the file meta group is explicit always.
            return DataSet(values, explicit), at
        element = await read_header(reader, at, explicit=explicit)
        if element.tag >= DELIMITERS or (element.tag in inside and element.explicit is explicit):
            at = element.start
            continue
        if element.length == UNDEFINED_LENGTH:
            value, at = await _read_undefined(reader, element, max_bytes)
        else:
            value, at = b"", element.start + element.length
            if at > reader.size:
                raise reader.error(f"{_name(element.tag)} reaches past its end at {reader.size}: cut off or damaged")
            if element.tag in wanted:
                if element.length > max_bytes:
                    raise reader.error(f"{_name(element.tag)} of {element.length} bytes (allowed: {max_bytes})")
                value = await read_value(reader, element.start, element.length)
        if element.tag in wanted:
            values.setdefault(element.tag, value)
    raise reader.error(f"more than {MAX_ELEMENTS} elements in its data set: the file is damaged")


async def read_header(reader: HeaderReader, at: int, *, explicit: bool) -> Element:
    """The element that begins at a place of the file.

    Raises:
        SlideFormatError: There is none.
    """
    header = await reader.read(at, max(8, min(LONGEST_HEADER, reader.size - at)))
    try:
        element = element_at(header, 0, explicit=explicit)
    except DataSetError as error:
        raise reader.error(f"{error} (at byte {at}): the file is damaged") from error
    return Element(element.tag, at + element.start, element.length, element.explicit)


async def read_value(reader: HeaderReader, start: int, length: int) -> bytes:
    """Bytes of a file; what is longer than a window is read by itself and not kept.

    Raises:
        SlideFormatError: The range reaches past the end of the file.
    """
    if length <= WINDOW_BYTES:
        return await reader.read(start, length)
    (data,) = await reader.read_apart([(start, length)])
    return data


async def _read_undefined(reader: HeaderReader, element: Element, max_bytes: int) -> tuple[bytes, int]:
    """Value of an element of undefined length without its delimiter, and where the next element begins."""
    scan, data, piece = SequenceScan(explicit=element.explicit, max_bytes=max_bytes), bytearray(), FIRST_PIECE_BYTES
    try:
        while not scan.advance(data):
            read_to = element.start + len(data)
            wanted = min(max(piece, scan.at + LONGEST_HEADER - len(data)), reader.size - read_to)
            if wanted <= 0 or len(data) + wanted > max_bytes:
                raise DataSetError(f"no end of it within {len(data)} bytes")
            data += await read_value(reader, read_to, wanted)
            piece = min(4 * piece, MAX_PIECE_BYTES)
    except DataSetError as error:
        raise reader.error(f"{_name(element.tag)}: {error}; the file is cut off or damaged") from error
    return bytes(data[: scan.at - 8]), element.start + scan.at


def _name(tag: Tag) -> str:
    return f"the element ({tag >> 16:04X},{tag & 0xFFFF:04X})"
