"""Where in a DICOM file does each frame lie?

Native pixels lie frame behind frame. Compressed ones are a chain of fragments, each behind a header of eight bytes
(PS3.5 section A.4), and are found in one of three ways, the cheapest that the file allows:

1. the extended offset table, which has the lengths too (PS3.3 section C.7.6.3.1.8);
2. the basic offset table, the first item of the chain: a frame ends where the next begins;
3. walking the chain from header to header, in windows that hold many small frames.

A frame must be one fragment, or it is no one byte range. Offset tables say nothing of fragments: the headers of the
frames that a writer would split first, the longest, and of the last one are looked at.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from online_patching.errors import SlideFormatError
from online_patching.formats.dicom_elements import (
    ITEM,
    SEQUENCE_END,
    UNDEFINED_LENGTH,
    DataSet,
    Element,
    Tag,
    read_value,
)
from online_patching.formats.header import TileRanges
from online_patching.formats.header_reader import WINDOW_BYTES, HeaderReader

EXTENDED_OFFSETS: Tag = 0x7FE00001
EXTENDED_LENGTHS: Tag = 0x7FE00002
PIXEL_DATA: Tag = 0x7FE00010

ITEM_HEADER_BYTES = 8
LONGEST_CHECKED = 2
# Fragments shorter than this are worth reading through for the sake of the next header: a request costs as much.
SHORT_FRAGMENT_BYTES, LONG_FRAGMENT_WINDOW_BYTES = 256 * 1024, 4096
WALK_REQUEST_BYTES, WALK_WINDOW_BYTES = 1 << 20, 8 << 20

_ITEM_HEADER = struct.Struct("<HHI")
Numbers = npt.NDArray[np.uint64]


@dataclass(frozen=True, slots=True)
class StoredFrames:
    """What finding the frames needs to know.

    Attributes:
        pixel_data: The pixel data element.
        tables: Values of the extended offset table and its lengths, where the file has them.
        count: Number of frames.
        native_bytes: Bytes of an uncompressed frame, or None where frames are compressed.
    """

    pixel_data: Element
    tables: DataSet
    count: int
    native_bytes: int | None


async def frame_ranges(reader: HeaderReader, frames: StoredFrames) -> TileRanges:
    """Byte range of every frame, in the order of the frames.

    Raises:
        SlideFormatError: The file is damaged or cut off, or a frame is not one range of bytes.
    """
    if frames.native_bytes is not None:
        return _native(reader, frames, frames.native_bytes)
    if frames.pixel_data.length != UNDEFINED_LENGTH:
        raise reader.error("compressed pixels without the frame items of a compressed transfer syntax: damaged")
    _, table_bytes = await _item_at(reader, frames.pixel_data.start)
    table_start = frames.pixel_data.start + ITEM_HEADER_BYTES
    first = table_start + table_bytes
    if EXTENDED_OFFSETS in frames.tables.values:
        offsets, lengths = _extended_tables(reader, frames)
    elif table_bytes:
        if table_bytes != 4 * frames.count:
            raise reader.error(f"an offset table of {table_bytes} bytes for {frames.count} frames: damaged")
        table = await read_value(reader, table_start, table_bytes)
        offsets, lengths = np.frombuffer(table, "<u4").astype(np.uint64), None
    else:
        return await _walk(reader, first, frames.count)
    return await _from_offsets(reader, first, offsets, lengths)


def _native(reader: HeaderReader, frames: StoredFrames, frame_bytes: int) -> TileRanges:
    stored = frames.pixel_data.length
    if stored == UNDEFINED_LENGTH or frames.pixel_data.start + stored > reader.size:
        raise reader.error(f"its pixels reach past its end at {reader.size}: cut off or damaged; copy it again")
    if frames.count * frame_bytes > stored:
        raise reader.error(f"{frames.count} frames of {frame_bytes} bytes expected, {stored} bytes stored: damaged")
    offset = np.uint64(frames.pixel_data.start) + np.arange(frames.count, dtype=np.uint64) * np.uint64(frame_bytes)
    return TileRanges(offset, np.full(frames.count, frame_bytes, np.uint32))


def _extended_tables(reader: HeaderReader, frames: StoredFrames) -> tuple[Numbers, Numbers | None]:
    """Offsets and, where the file has them, lengths of all frames."""
    tables = [frames.tables.values.get(tag, b"") for tag in (EXTENDED_OFFSETS, EXTENDED_LENGTHS)]
    if len(tables[0]) != 8 * frames.count or len(tables[1]) not in (0, len(tables[0])):
        raise reader.error(
            f"extended offset tables of {len(tables[0])} and {len(tables[1])} bytes for {frames.count} frames: damaged"
        )
    offsets, lengths = (np.frombuffer(table, "<u8") for table in tables)
    return offsets, lengths if len(lengths) else None


async def _from_offsets(reader: HeaderReader, first: int, offsets: Numbers, lengths: Numbers | None) -> TileRanges:
    """Ranges from offsets of the frames' items behind the offset table."""
    room = max(reader.size - first - ITEM_HEADER_BYTES, 0)
    if int(offsets.max()) > room:
        raise reader.error(f"its offset table points past its end at {reader.size}: cut off or damaged; copy it again")
    steps = np.diff(offsets.astype(np.int64)).astype(np.int64)
    if steps.size and int(steps.min()) < ITEM_HEADER_BYTES:
        raise reader.error("its offset table does not rise from frame to frame: the file is damaged")
    spans = await _spans(reader, offsets + np.uint64(first), steps - ITEM_HEADER_BYTES)
    # A frame of an odd length has a byte of padding behind it.
    if lengths is not None and bool(((lengths > spans) | (spans - lengths > 1)).any()):
        raise _several_fragments(reader)
    return _checked(reader, offsets + np.uint64(first + ITEM_HEADER_BYTES), spans if lengths is None else lengths)


async def _spans(reader: HeaderReader, places: Numbers, between: npt.NDArray[np.int64]) -> Numbers:
    """Bytes of every frame: all but the last one's lie between two items, and its own item tells that."""
    longest = np.argpartition(between, -LONGEST_CHECKED)[-LONGEST_CHECKED:] if len(between) > LONGEST_CHECKED else ()
    looked_at = [*(int(frame) for frame in longest), len(places) - 1]
    headers = await reader.read_apart([(int(places[frame]), ITEM_HEADER_BYTES) for frame in looked_at])
    items = [_item(reader, header, int(places[k])) for header, k in zip(headers, looked_at, strict=True)]
    if any(tag != ITEM for tag, _ in items):
        raise reader.error("its offset table points to no frame: the file is damaged")
    spans: Numbers = np.append(between, items[-1][1]).astype(np.uint64)
    if any(length != spans[frame] for frame, (_, length) in zip(looked_at, items, strict=True)):
        raise _several_fragments(reader)
    return spans


def _several_fragments(reader: HeaderReader) -> SlideFormatError:
    return reader.error(
        "a frame is not the one fragment that its offset table tells: frames of several fragments are no ranges of"
        " bytes; rewrite the file with one fragment a frame"
    )


async def _walk(reader: HeaderReader, first: int, count: int) -> TileRanges:
    """Ranges from the fragments' headers, each of which tells where the next one is."""
    offset, length = np.zeros(count, np.uint64), np.zeros(count, np.uint64)
    at, window_start = first, first
    window, wanted = (
        await reader.read(first, min(WINDOW_BYTES, max(reader.size - first, ITEM_HEADER_BYTES))),
        WINDOW_BYTES,
    )
    for frame in range(count + 1):
        place = at - window_start
        if place + ITEM_HEADER_BYTES > len(window):
            short = at - first < SHORT_FRAGMENT_BYTES * frame
            wanted = min(8 * wanted, WALK_WINDOW_BYTES) if short else LONG_FRAGMENT_WINDOW_BYTES
            window, window_start, place = await _window(reader, at, wanted), at, 0
        tag, stored = _item(reader, window[place : place + ITEM_HEADER_BYTES], at)
        if tag == SEQUENCE_END:
            if frame < count:
                raise reader.error(f"{count} frames expected, {frame} found: cut off or damaged")
            break
        if frame == count:
            raise reader.error(
                f"more fragments than its {count} frames: a frame in several fragments is no one range of bytes;"
                " rewrite the file with one fragment a frame"
            )
        offset[frame], length[frame] = at + ITEM_HEADER_BYTES, stored
        at += ITEM_HEADER_BYTES + stored
        if at == reader.size and frame == count - 1:
            break
    return _checked(reader, offset, length)


async def _window(reader: HeaderReader, at: int, wanted: int) -> bytes:
    """So many bytes, or all up to the file's end, in requests that run together."""
    end = max(min(at + wanted, reader.size), at + ITEM_HEADER_BYTES)
    starts = range(at, end, WALK_REQUEST_BYTES)
    return b"".join(await reader.read_apart([(k, min(WALK_REQUEST_BYTES, end - k)) for k in starts]))


async def _item_at(reader: HeaderReader, at: int) -> tuple[Tag, int]:
    """Tag and length of the item at a place of the file; only a frame's item is allowed there."""
    tag, length = _item(reader, await reader.read(at, ITEM_HEADER_BYTES), at)
    if tag != ITEM:
        raise reader.error(f"no frame begins at byte {at}, where one should: the file is damaged")
    return tag, length


def _item(reader: HeaderReader, header: bytes, at: int) -> tuple[Tag, int]:
    group, number, length = _ITEM_HEADER.unpack(header)
    tag = group << 16 | number
    if tag not in (ITEM, SEQUENCE_END) or length == UNDEFINED_LENGTH:
        raise reader.error(f"no frame begins at byte {at}, where one should: the file is damaged")
    return tag, length


def _checked(reader: HeaderReader, offset: Numbers, length: Numbers) -> TileRanges:
    beyond = int(np.count_nonzero(offset + length > reader.size))
    if beyond:
        raise reader.error(
            f"{beyond} of {len(offset)} frames lie past the file's end at {reader.size}: cut off; copy it again"
        )
    return TileRanges(offset, length.astype(np.uint32))
