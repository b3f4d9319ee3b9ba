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
from functools import lru_cache

import imagecodecs
import numpy as np
import numpy.typing as npt
import simplejpeg

from online_patching import nvimgcodec_decode
from online_patching.formats.header import Colour, TileEncoding
from online_patching.formats.jpeg_header import JCS_UNKNOWN
from online_patching.jpeg_stream import Data, JpegHead, JpegTiles, is_intact, is_intact_but_for_markers

Pixels = npt.NDArray[np.uint8]

# nvImageCodec costs more a call and less a skipped pixel. It gains where no more than this share of the rows that
# simplejpeg would decode is wanted; less where chroma is stored at half the rows, which makes pixels cheap
# (benchmarks/decoders.py).
REGION_SHARE, REGION_SHARE_HALVED_ROWS = 0.5, 0.25
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


def decode_jpeg_part(
    data: Data,
    encoding: TileEncoding,
    width_px: int,
    height_px: int,
    region: tuple[int, int, int, int],
    reduction: int,
) -> Pixels:
    """The samples of a rectangle of a tile, at 1 / ``reduction`` of its scale; may be memory of this thread.

    Raises:
        ValueError: The bytes are no such JPEG, or a damaged one.
    """
    x0, y0, x1, y1 = region
    tiles = _tiles(encoding, width_px, height_px)
    head = tiles.head(data)
    if encoding.colour is Colour.GREY_EXTRA:
        return _two_samples(tiles.stream(data, head), head)[y0:y1, x0:x1]
    space, size = _space(encoding), (width_px, height_px)
    if reduction == 1 and _gains_by_region(head, region, width_px):
        stream = tiles.stream(data, head)
        if is_intact(stream, head):
            part = nvimgcodec_decode.decode_jpeg_part(stream, region, size, (head.mcu_width_px, head.mcu_height_px))
            if part is not None:
                return part
    rows = head.rows_to_decode(y1) if reduction == 1 else reduction * (y1 + 1)
    if head.shortens and rows < height_px:
        stream = tiles.stream(data, head, rows)
        if is_intact_but_for_markers(stream, head):
            return _simplejpeg(stream, space, (width_px, rows), reduction, shortened=True)[y0:y1, x0:x1]
    stream = tiles.stream(data, head)
    return _simplejpeg(stream, space, size, reduction, shortened=False)[y0:y1, x0:x1]


def _gains_by_region(head: JpegHead, region: tuple[int, int, int, int], width_px: int) -> bool:
    """Whether nvImageCodec is installed, decodes such a tile as libjpeg does, and is the faster."""
    x0, y0, x1, y1 = region
    share = REGION_SHARE if head.mcu_height_px == 8 else REGION_SHARE_HALVED_ROWS
    if (y1 - y0) * (x1 - x0) >= share * y1 * width_px:
        return False
    return head.shortens and head.plain_sampling and not head.has_restarts and nvimgcodec_decode.is_available()


def _simplejpeg(stream: bytes, space: str, size: tuple[int, int], reduction: int, *, shortened: bool) -> Pixels:
    """Decode strictly, into this thread's memory."""
    width, height = (-(-side // reduction) for side in size)
    samples = 3 if space == "RGB" else 1
    buffer = _scratch(width * height * samples)
    # libjpeg scales by the smallest of its factors that gives at least this size.
    sides = {"min_width": width, "min_height": height, "min_factor": float(reduction)} if reduction > 1 else {}
    try:
        decoded: Pixels = simplejpeg.decode_jpeg(stream, colorspace=space, buffer=buffer, **sides)
    except ValueError as error:
        if not (shortened and _LEFT_OVER.search(str(error))):
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
