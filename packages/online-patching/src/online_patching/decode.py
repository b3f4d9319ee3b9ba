"""How do the bytes of one tile become pixels?

1. The size that a JPEG or JPEG 2000 stream claims is checked before the codec library allocates anything for it; the
   other decoders get an output of exactly one tile, so no bomb can grow.
2. One function a codec, each releasing the interpreter lock while it decodes.
3. ``_as_rgb`` brings grey and transparent samples to RGB.

The colour space comes from the slide's header (``TileEncoding``), never from a guess of the codec library. Whatever
does not decode to exactly one tile of 8-bit samples is a ``CorruptTileError``.
"""

from __future__ import annotations

from typing import Any

import imagecodecs
import numpy as np
import numpy.typing as npt

from online_patching.errors import CorruptTileError
from online_patching.formats.frames import check_jpeg, check_jpeg2000
from online_patching.formats.header import Codec, Colour, TileEncoding
from online_patching.formats.jpeg_header import JCS_GREY, JCS_RGB, JCS_UNKNOWN, JCS_YCBCR

Pixels = npt.NDArray[np.uint8]

_JPEG_COLOURS = {
    Colour.GREY: JCS_GREY,
    Colour.WHITE_IS_ZERO: JCS_GREY,
    Colour.GREY_EXTRA: JCS_UNKNOWN,
    Colour.RGB: JCS_RGB,
    Colour.YCBCR: JCS_YCBCR,
}
# Second bytes of the markers RST0 to RST7 and EOI.
_INTERVAL_ENDS = frozenset({*range(0xD0, 0xD8), 0xD9})


def decode_tile(data: bytes, encoding: TileEncoding, width_px: int, height_px: int) -> Pixels:
    """Pixels of one stored tile.

    Args:
        data: The tile as stored.
        encoding: Codec, colour space, tables and predictor of its level.
        width_px: Stored tile width.
        height_px: Stored tile height.

    Returns:
        uint8 (height_px, width_px, 3), RGB; transparent pixels are laid over white.

    Raises:
        CorruptTileError: The bytes do not decode to such a tile.
    """
    shape = (height_px, width_px, 3)
    try:
        pixels = _decode(data, encoding, height_px, width_px)
    except Exception as error:
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        raise CorruptTileError(f"a tile of {len(data)} bytes does not decode as {encoding.codec} ({reason})") from error
    if pixels.shape != shape or pixels.dtype != np.uint8:
        raise CorruptTileError(f"a tile decodes to {pixels.shape} {pixels.dtype}, its header says {shape} uint8")
    return pixels


def _decode(data: bytes, encoding: TileEncoding, height: int, width: int) -> Pixels:
    match encoding.codec:
        case Codec.JPEG:
            return _jpeg(data, encoding, height, width)
        case Codec.JPEG2000:
            return _jpeg2000(data, encoding.colour, height, width)
        case Codec.JPEG_LS:
            return _array(imagecodecs.jpegls_decode(data, out=np.empty((height, width, 3), np.uint8)))
        case Codec.WEBP:
            return _array(imagecodecs.webp_decode(data, hasalpha=False, out=np.empty((height, width, 3), np.uint8)))
    samples = encoding.colour.samples
    raw = _lossless(data, encoding.codec, height * width * samples)
    pixels = np.frombuffer(raw, np.uint8).reshape(height, width, samples)
    return _as_rgb(np.cumsum(pixels, axis=1, dtype=np.uint8) if encoding.predictor == 2 else pixels, encoding.colour)


def _jpeg(data: bytes, encoding: TileEncoding, height: int, width: int) -> Pixels:
    colour = encoding.colour
    if encoding.jpeg_header:
        data = _whole_jpeg(encoding.jpeg_header, data)
    check_jpeg(data, height, width, colour.samples)
    stored, tables = _JPEG_COLOURS[colour], encoding.jpeg_tables or None
    if colour.samples == 3:
        return _array(imagecodecs.jpeg8_decode(data, tables=tables, colorspace=stored, outcolorspace=JCS_RGB))
    pixels = _array(imagecodecs.jpeg8_decode(data, tables=tables, colorspace=stored, outcolorspace=stored))
    return _as_rgb(pixels.reshape(height, width, colour.samples), colour)


def _whole_jpeg(header: bytes, interval: bytes) -> bytes:
    """A restart interval, with the marker at its end, as a JPEG of its own (ISO 10918-1 B.2.1)."""
    if interval[-2:-1] != b"\xff" or interval[-1] not in _INTERVAL_ENDS:
        raise ValueError("no restart marker at its end")
    return b"".join((header, interval[:-2], b"\xff\xd9"))


def _jpeg2000(data: bytes, colour: Colour, height: int, width: int) -> Pixels:
    subsampled = check_jpeg2000(data, height, width, colour.samples)
    pixels = _array(imagecodecs.jpeg2k_decode(data)).reshape(height, width, -1)
    # OpenJPEG converts by itself only where it sees subsampled chroma.
    if colour is Colour.YCBCR and not subsampled:
        return _ycbcr_to_rgb(pixels)
    return _as_rgb(pixels, colour)


def _lossless(data: bytes, codec: Codec, size: int) -> bytes | bytearray:
    if codec is Codec.RAW:
        return data
    decoder = {
        Codec.DEFLATE: imagecodecs.zlib_decode,
        Codec.LZW: imagecodecs.lzw_decode,
        Codec.ZSTD: imagecodecs.zstd_decode,
        Codec.PACKBITS: imagecodecs.packbits_decode,
    }[codec]
    decoded: bytes | bytearray = decoder(data, out=bytearray(size))
    return decoded


def _array(decoded: Any) -> Pixels:
    pixels: Pixels = decoded
    return pixels


def _as_rgb(pixels: Pixels, colour: Colour) -> Pixels:
    """Samples (H, W, S) of a colour space as RGB (H, W, 3)."""
    match colour:
        case Colour.GREY | Colour.GREY_EXTRA:
            return np.repeat(pixels[..., :1], 3, axis=2)
        case Colour.WHITE_IS_ZERO:
            return np.repeat(255 - pixels, 3, axis=2)
        case Colour.RGBA:
            alpha = pixels[..., 3:].astype(np.uint16)
            white = (255 - alpha) * np.uint16(255)
            return _array(((pixels[..., :3] * alpha + white + 127) // 255).astype(np.uint8))
        case Colour.RGBA_PREMULTIPLIED:
            over = pixels[..., :3] + (255 - pixels[..., 3:].astype(np.uint16))
            return _array(np.minimum(over, 255).astype(np.uint8))
    return pixels


def _ycbcr_to_rgb(pixels: Pixels) -> Pixels:
    """Full-range YCbCr (ITU-T T.871) to RGB in 16-bit fixed point, rounded as libjpeg and OpenSlide round it."""
    y, cb, cr = (pixels[..., k].astype(np.int32) for k in range(3))
    cb -= 128
    cr -= 128
    half = 1 << 15
    red = y + ((91881 * cr + half) >> 16)
    green = y + ((-22554 * cb - 46802 * cr + half) >> 16)
    blue = y + ((116130 * cb + half) >> 16)
    rgb: Pixels = np.stack([red, green, blue], axis=-1).clip(0, 255).astype(np.uint8)
    return rgb
