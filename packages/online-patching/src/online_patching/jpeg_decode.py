"""How are the pixels of a JPEG tile decoded: all, some, or at a reduced scale?

simplejpeg (libjpeg-turbo) decodes, strictly: a warning of libjpeg is an error here, since what follows it is grey or
garbage. Of a part of a tile, only what is needed is decoded: nvImageCodec skips rows and columns where it is installed
and gains from it, else simplejpeg stops after the last row that is needed. The pixels are the same.

What is noticed. A JPEG has no checksum. A tile decoded whole is checked to its end: data that ends early or is left
over is an error. Of a part, the rows up to its last one are decoded, so damage below them is not noticed, and the
pixels are right. Damage above is noticed where data ends early, a marker stands where none may, or a sector is zeros (a
tile that looks so is decoded whole). What remains is damage that still decodes: of tiles with wrong pixels in the part,
after one flipped bit 60 % are noticed whole and 5 % in part; after 64 random bytes 88 % and 29 %; after 512 random
bytes 99 % and 90 %; after zeros, and after data that ends early, nearly or fully all in both. Readers that pass over
libjpeg's warnings show every one of these as pixels.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

import imagecodecs
import numpy as np
import numpy.typing as npt
import simplejpeg

from online_patching import nvimgcodec_decode
from online_patching.formats.header import Colour, TileEncoding
from online_patching.formats.jpeg_header import JCS_UNKNOWN
from online_patching.jpeg_stream import Data, JpegHead, JpegTiles, is_intact, is_intact_but_for_markers

Pixels = npt.NDArray[np.uint8]

# nvImageCodec costs more a call and less a skipped pixel. It gains where no more than this share of what simplejpeg
# would decode is wanted: less where chroma is subsampled, which makes pixels cheap (benchmarks/decoders.py).
REGION_SHARE, REGION_SHARE_SUBSAMPLED = 0.6, 0.2
# Parts that nvImageCodec decodes in one call take so many bytes at most.
MAX_BYTES_A_CALL = 4 << 20
# Rows that a shortened JPEG does not want are left over; a restart marker may come before the end.
_LEFT_OVER = re.compile(r"extraneous bytes before marker 0xd[0-9]$")
_local = threading.local()
_tiles = lru_cache(maxsize=1024)(JpegTiles)


def decode_jpeg(data: Data, encoding: TileEncoding, width_px: int, height_px: int) -> Pixels:
    """All samples of a tile: uint8 (height_px, width_px, 3) RGB, or (height_px, width_px, S) for grey.

    Raises:
        ValueError: The bytes are no such JPEG, or a damaged one.
    """
    tiles = _tiles(encoding, width_px, height_px)
    head = tiles.head(data)
    if encoding.colour is Colour.GREY_EXTRA:
        return _two_samples(tiles.stream(data, head), head)
    decoded: Pixels = simplejpeg.decode_jpeg(tiles.stream(data, head), colorspace=_space(encoding))
    return decoded


class JpegPart(NamedTuple):
    """A rectangle of a tile, and the JPEG that it is decoded from.

    Attributes:
        tiles: Makes the JPEGs of its level.
        data: The tile as stored.
        head: Its header.
        space: Colour space that libjpeg is asked for.
        size_px: Width and height of the tile.
        region: Left, top, right, bottom (exclusive), in pixels of the tile as it is decoded.
        reduction: 1, or the factor at which it is decoded at reduced scale.
        stream: The JPEG.
        rows_px: Rows of the tile that the JPEG has; None: grey with a second sample, which has all of them.
        by_region: Whether nvImageCodec is to decode it.
    """

    tiles: JpegTiles
    data: Data
    head: JpegHead
    space: str
    size_px: tuple[int, int]
    region: tuple[int, int, int, int]
    reduction: int
    stream: bytes = b""
    rows_px: int | None = None
    by_region: bool = False

    @property
    def size_bytes(self) -> int:
        """Bytes of its pixels."""
        x0, y0, x1, y1 = self.region
        return 3 * (x1 - x0) * (y1 - y0)


def plan_jpeg_part(
    data: Data,
    encoding: TileEncoding,
    width_px: int,
    height_px: int,
    region: tuple[int, int, int, int],
    reduction: int,
) -> JpegPart:
    """Which JPEG a rectangle of a tile is decoded from, and by whom.

    Raises:
        ValueError: The bytes are no such JPEG, or a damaged one.
    """
    tiles = _tiles(encoding, width_px, height_px)
    head = tiles.head(data)
    part = JpegPart(tiles, data, head, _space(encoding), (width_px, height_px), region, reduction)
    if encoding.colour is Colour.GREY_EXTRA:
        return part._replace(stream=tiles.stream(data, head))
    if reduction == 1 and _gains_by_region(head, region, width_px):
        stream = tiles.stream(data, head)
        if is_intact(stream, head):
            return part._replace(stream=stream, rows_px=height_px, by_region=True)
    return _for_simplejpeg(part)


def _for_simplejpeg(part: JpegPart) -> JpegPart:
    """The same from a JPEG of no more rows than are needed, by simplejpeg."""
    head, height_px, bottom = part.head, part.size_px[1], part.region[3]
    rows = head.rows_to_decode(bottom) if part.reduction == 1 else part.reduction * (bottom + 1)
    if head.shortens and rows < height_px:
        stream = part.tiles.stream(part.data, head, rows)
        if is_intact_but_for_markers(stream, head):
            return part._replace(stream=stream, rows_px=rows, by_region=False)
    return part._replace(stream=part.tiles.stream(part.data, head), rows_px=height_px, by_region=False)


def decode_jpeg_parts(parts: Sequence[JpegPart]) -> Iterator[Pixels | Exception]:
    """The samples of each part, or its error; they may be memory of this thread that the next part is decoded into.

    What comes between two parts runs slowly, since decoding has swept the processor's caches: so the parts are planned
    before, and those of nvImageCodec are decoded in one call.
    """
    for batch in _batches(parts):
        by_region = [part for part in batch if part.by_region]
        found = iter(nvimgcodec_decode.decode_jpeg_parts([_region_part(part) for part in by_region]))
        for part in batch:
            pixels = next(found) if part.by_region else None
            if pixels is None:
                try:
                    pixels = _decode_part(part)
                except Exception as error:  # of any kind that a library raises
                    yield error
                    continue
            yield pixels


def _batches(parts: Sequence[JpegPart]) -> Iterator[Sequence[JpegPart]]:
    """Parts whose pixels may lie in memory at the same time."""
    first = size = 0
    for number, part in enumerate(parts):
        if number > first and size + part.size_bytes > MAX_BYTES_A_CALL:
            yield parts[first:number]
            first, size = number, 0
        size += part.size_bytes
    yield parts[first:]


def _region_part(part: JpegPart) -> nvimgcodec_decode.RegionPart:
    head = part.head
    return nvimgcodec_decode.RegionPart(part.stream, part.region, part.size_px, (head.mcu_width_px, head.mcu_height_px))


def _decode_part(part: JpegPart) -> Pixels:
    if part.by_region:
        # nvImageCodec is not certain of it.
        part = _for_simplejpeg(part)
    x0, y0, x1, y1 = part.region
    samples = _two_samples(part.stream, part.head) if part.rows_px is None else _simplejpeg(part, part.rows_px)
    return samples[y0:y1, x0:x1]


def _gains_by_region(head: JpegHead, region: tuple[int, int, int, int], width_px: int) -> bool:
    """Whether nvImageCodec is installed, decodes such a tile as libjpeg does, and is the faster."""
    x0, y0, x1, y1 = region
    share = REGION_SHARE if head.mcu_width_px == head.mcu_height_px == 8 else REGION_SHARE_SUBSAMPLED
    if (y1 - y0) * (x1 - x0) >= share * y1 * width_px:
        return False
    return head.shortens and head.plain_sampling and not head.has_restarts and nvimgcodec_decode.is_available()


def _simplejpeg(part: JpegPart, rows_px: int) -> Pixels:
    """Decode the first rows of a tile strictly, into this thread's memory."""
    reduction = part.reduction
    width, height = -(-part.size_px[0] // reduction), -(-rows_px // reduction)
    samples = 3 if part.space == "RGB" else 1
    buffer = _scratch(width * height * samples)
    # libjpeg scales by the smallest of its factors that gives at least this size.
    sides = {"min_width": width, "min_height": height, "min_factor": float(reduction)} if reduction > 1 else {}
    try:
        decoded: Pixels = simplejpeg.decode_jpeg(part.stream, colorspace=part.space, buffer=buffer, **sides)
    except ValueError as error:
        if not (rows_px < part.size_px[1] and _LEFT_OVER.search(str(error))):
            raise
        decoded = buffer[: width * height * samples].reshape(height, width, samples)
    return decoded


def _scratch(size: int) -> Pixels:
    """Memory of this thread: fresh memory would cost page faults as dear as decoding."""
    buffer: Pixels | None = getattr(_local, "buffer", None)
    if buffer is None or buffer.size < size:
        buffer = _local.buffer = np.empty(size, np.uint8)
    return buffer


def _space(encoding: TileEncoding) -> str:
    return "RGB" if encoding.colour.samples == 3 else "GRAY"


def _two_samples(stream: bytes, head: JpegHead) -> Pixels:
    """Grey with a second sample, which simplejpeg knows not; libjpeg's warnings are not to be had here."""
    if not is_intact(stream, head):
        raise ValueError("its data ends too early")
    decoded: Pixels = imagecodecs.jpeg8_decode(stream, colorspace=JCS_UNKNOWN, outcolorspace=JCS_UNKNOWN)
    return decoded
