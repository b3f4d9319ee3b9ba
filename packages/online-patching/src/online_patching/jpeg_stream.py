"""Which JPEG does a decoder get for a tile, and how much of it?

A tile of a TIFF is seldom a JPEG of its own: its tables stand once for the level, nothing says its colours, and the
tiles of an NDPI have no header at all. So

1. the header of a tile is read: its frame has to be exactly the tile (libraries allocate for what a frame claims);
2. it is written anew: Adobe's marker with the colours that the slide's header states, the level's tables, and the
   tile's own segments but for those that could state other colours. All tiles of a level share a header in most files,
   so it is read once;
3. where fewer rows are needed, a lower height is written into it. Sequential Huffman JPEGs in one scan then decode to
   the same pixels and stop after these rows: the time goes with the rows.

A JPEG has no checksum: what decoders notice is data that ends too early or is left over in the end. With a lower height
the second is gone, so ``is_intact`` looks through the bytes of a tile before fewer rows are decoded.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from online_patching.formats.header import Colour, TileEncoding

Data = bytes | memoryview

# Every scan of a progressive JPEG is one more pass over the whole tile; encoders write about ten.
MAX_SCANS = 64

_SOI, _EOI = b"\xff\xd8", b"\xff\xd9"
_SOS, _DQT, _DHT, _DAC, _DRI, _COMMENT = 0xDA, 0xDB, 0xC4, 0xCC, 0xDD, 0xFE
_APPLICATION = frozenset(range(0xE0, 0xF0))
# DHT, JPG and DAC lie between the frame markers C0 to CF.
_FRAMES = frozenset(range(0xC0, 0xD0)) - {_DHT, 0xC8, _DAC}
_SEQUENTIAL, _PROGRESSIVE = (0xC0, 0xC1), (0xC2, 0xC6, 0xCA, 0xCE)
# Adobe's segment (ITU-T T.872 6.5.3) up to its last byte, the transform: 0 none (RGB), 1 YCbCr.
_ADOBE = b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00"
# Second bytes of the markers RST0 to RST7 and EOI.
_INTERVAL_ENDS = frozenset({*range(0xD0, 0xD8), 0xD9})
_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
# Sectors that were never written are zeros. Tissue holds no such run; what does is decoded whole.
_ZEROS = bytes(16)


@dataclass(frozen=True, slots=True)
class JpegHead:
    """The header of a tile, up to its entropy-coded data.

    Attributes:
        stored_length: Bytes of the tile that it replaces.
        stored: Those bytes.
        data: The header to decode with.
        size_at: Where in ``data`` the height stands, 2 bytes.
        mcu_width_px: Width of a minimum coded unit.
        mcu_height_px: Height of a minimum coded unit.
        progressive: Whether it is decoded in several passes.
        has_restarts: Whether it has restart markers.
        shortens: Whether a lower height gives the same pixels.
        plain_sampling: Whether all components but the first are stored once an MCU.
    """

    stored_length: int
    stored: bytes
    data: bytes
    size_at: int
    mcu_width_px: int
    mcu_height_px: int
    progressive: bool
    has_restarts: bool
    shortens: bool
    plain_sampling: bool

    def rows_to_decode(self, rows_px: int) -> int:
        """Rows to ask for where the first ``rows_px`` are needed.

        Chroma between two of its stored rows is interpolated from both, so the row below counts too.
        """
        return rows_px + (self.mcu_height_px > 8)


class JpegTiles:
    """Makes the JPEGs of one level's tiles.

    Args:
        encoding: Tables, colours and common header of the level.
        width_px: Stored tile width.
        height_px: Stored tile height.

    Raises:
        ValueError: The common header is none of such tiles.
    """

    def __init__(self, encoding: TileEncoding, width_px: int, height_px: int) -> None:
        self._encoding = encoding
        self._size = (height_px, width_px, encoding.colour.samples)
        self._tables = _tables(encoding.jpeg_tables)
        self._last = self._read(encoding.jpeg_header) if encoding.jpeg_header else None

    def head(self, data: Data) -> JpegHead:
        """The header of a tile, read anew only where it is not that of the tile before.

        Raises:
            ValueError: No JPEG, or one of another size or with absurdly many scans.
        """
        last = self._last
        if self._encoding.jpeg_header:
            assert last is not None, "the constructor read it"
            if data[-2:-1] != b"\xff" or data[-1] not in _INTERVAL_ENDS:
                raise ValueError("no restart marker at its end")
            return last
        if last is None or data[: last.stored_length] != last.stored:
            last = self._last = self._read(bytes(data))
        if last.progressive and bytes(data).count(b"\xff\xda") > MAX_SCANS:
            raise ValueError(f"a progressive JPEG of more than {MAX_SCANS} scans")
        return last

    def stream(self, data: Data, head: JpegHead, rows_px: int | None = None) -> bytes:
        """The tile as a JPEG of its own, of its first ``rows_px`` rows or of all."""
        if self._encoding.jpeg_header:
            # A restart interval with the marker at its end (ISO 10918-1 B.2.1).
            parts: tuple[Data, ...] = (memoryview(data)[:-2], _EOI)
        else:
            parts = (memoryview(data)[head.stored_length :],)
        if rows_px is None:
            return b"".join((head.data, *parts))
        start = head.data[: head.size_at] + rows_px.to_bytes(2, "big")
        return b"".join((start, head.data[head.size_at + 2 :], *parts))

    def _read(self, data: bytes) -> JpegHead:
        if data[:2] != _SOI:
            raise ValueError("no JPEG stream")
        parts = [_SOI]
        if self._size[2] == 3:
            parts.append(_ADOBE + (b"\x00" if self._encoding.colour is Colour.RGB else b"\x01"))
        parts.append(self._tables)
        place, frame, kind, size_at, restarts = 2, b"", 0, 0, False
        while place + 4 <= len(data):
            marker = data[place + 1]
            if data[place] != 0xFF or 0xD0 <= marker <= 0xD9:
                break
            if marker == 0xFF:
                place += 1
                continue
            end = place + 2 + (data[place + 2] << 8 | data[place + 3])
            if end > len(data) or end < place + 4:
                break
            segment = data[place:end]
            if marker in _FRAMES:
                if frame:
                    raise ValueError("a JPEG stream with two frame headers")
                _check_frame(segment, self._size)
                frame, kind, size_at = segment, marker, sum(map(len, parts)) + 5
            elif marker == _DRI:
                restarts = segment[4:6] != b"\0\0"
            if marker not in _APPLICATION and marker != _COMMENT:
                parts.append(segment)
            if marker == _SOS and frame:
                return self._head(data[:end], b"".join(parts), frame, kind, size_at, restarts, segment[4:5])
            place = end
        raise ValueError("a JPEG stream without a frame header" if not frame else "a JPEG stream without a scan")

    def _head(
        self, stored: bytes, data: bytes, frame: bytes, kind: int, size_at: int, restarts: bool, in_scan: bytes
    ) -> JpegHead:
        factors = [frame[11 + 3 * k] for k in range(self._size[2])]
        # Of a single component, ISO 10918-1 A.2.2 orders single blocks, whatever its factors.
        alone = len(factors) == 1
        across, down = (1, 1) if alone else (max(f >> 4 for f in factors), max(f & 15 for f in factors))
        return JpegHead(
            stored_length=len(stored),
            stored=stored,
            data=data,
            size_at=size_at,
            mcu_width_px=8 * across,
            mcu_height_px=8 * down,
            progressive=kind in _PROGRESSIVE,
            has_restarts=restarts,
            shortens=kind in _SEQUENTIAL and in_scan == bytes((self._size[2],)),
            plain_sampling=not alone and factors[0] == (across << 4 | down) and set(factors[1:]) == {0x11},
        )


def is_intact(stream: bytes, head: JpegHead) -> bool:
    """Whether a tile shows none of the marks of damage that can be seen without decoding it.

    No marker but restarts comes before the end of the image, and no sector seems to have been left unwritten.
    """
    if not head.has_restarts and _ends_well(stream, head):
        # In nearly all tiles the end is the only marker; the search would take twice the time.
        data = np.frombuffer(stream, np.uint8, offset=len(head.data))
        follows = np.flatnonzero(data[:-2] == 0xFF) + 1
        if not np.count_nonzero(data[follows]):
            return True
    return _is_intact(stream, head)


def is_intact_but_for_markers(stream: bytes, head: JpegHead) -> bool:
    """``is_intact`` for a decoder that notices by itself a marker where none may be."""
    return _ends_well(stream, head) or _is_intact(stream, head)


def _ends_well(stream: bytes, head: JpegHead) -> bool:
    return stream.endswith(_EOI) and stream.rfind(_ZEROS, len(head.data)) < 0


def _is_intact(stream: bytes, head: JpegHead) -> bool:
    start = len(head.data)
    found = _MARKER.search(stream, start)
    return found is not None and stream[found.end() - 1] == 0xD9 and stream.find(_ZEROS, start, found.start()) < 0


def _check_frame(segment: bytes, size: tuple[int, int, int]) -> None:
    """Compare a frame header (ITU-T T.81 B.2.2) with the tile: height, width, samples."""
    if len(segment) < 10 or len(segment) < 10 + 3 * segment[9]:
        raise ValueError("a JPEG stream with a broken frame header")
    found = (segment[5] << 8 | segment[6], segment[7] << 8 | segment[8], segment[9])
    if found != size:
        raise ValueError(
            f"it claims {found[1]} x {found[0]} px of {found[2]} samples, its header says {size[1]} x {size[0]} px of"
            f" {size[2]}"
        )


def _tables(stored: bytes) -> bytes:
    """The quantisation and entropy tables among a level's JPEG tables (TIFF tag 347); remarks do not count there."""
    parts, place = [], 2
    while place + 4 <= len(stored) and stored[place] == 0xFF:
        marker, end = stored[place + 1], place + 2 + (stored[place + 2] << 8 | stored[place + 3])
        if marker in _FRAMES or marker == _SOS:
            raise ValueError("an image among the JPEG tables of its level")
        if marker in (_DQT, _DHT, _DAC):
            parts.append(stored[place:end])
        place = end
    return b"".join(parts)
