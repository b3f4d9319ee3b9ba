"""How do the bytes of one tile become pixels?

One function a codec, each releasing the interpreter lock while it decodes. The colour space comes from the slide's
header (``TileEncoding``), never from a guess of the codec library. Whatever does not decode to exactly one tile of
8-bit RGB is a ``CorruptTileError``; the decoders for lossless codecs get a bounded output, so a bomb cannot grow.
"""

from __future__ import annotations

from typing import Any

import imagecodecs
import numpy as np
import numpy.typing as npt

from online_patching.errors import CorruptTileError
from online_patching.formats.header import Codec, Colour, TileEncoding

Pixels = npt.NDArray[np.uint8]

# libjpeg's colour space numbers (jpeglib.h, J_COLOR_SPACE).
JCS_GREY, JCS_RGB, JCS_YCBCR = 1, 2, 3
_JPEG_COLOURS = {Colour.GREY: JCS_GREY, Colour.RGB: JCS_RGB, Colour.YCBCR: JCS_YCBCR}


def decode_tile(data: bytes, encoding: TileEncoding, width_px: int, height_px: int) -> Pixels:
    """Pixels of one stored tile.

    Args:
        data: The tile as stored.
        encoding: Codec, colour space, tables and predictor of its level.
        width_px: Stored tile width.
        height_px: Stored tile height.

    Returns:
        uint8 (height_px, width_px, 3), RGB.

    Raises:
        CorruptTileError: The bytes do not decode to such a tile.
    """
    shape = (height_px, width_px, 3)
    try:
        pixels = _decode(data, encoding, shape)
    except Exception as error:
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        raise CorruptTileError(f"a tile of {len(data)} bytes does not decode as {encoding.codec} ({reason})") from error
    if pixels.shape != shape or pixels.dtype != np.uint8:
        raise CorruptTileError(f"a tile decodes to {pixels.shape} {pixels.dtype}, its header says {shape} uint8")
    return pixels


def _decode(data: bytes, encoding: TileEncoding, shape: tuple[int, int, int]) -> Pixels:
    match encoding.codec, encoding.colour:
        case Codec.JPEG, colour:
            return _jpeg(data, encoding.jpeg_tables, _JPEG_COLOURS[colour])
        case Codec.JPEG2000, Colour.YCBCR:
            pixels = _array(imagecodecs.jpeg2k_decode(data))
            # OpenJPEG converts by itself only where it sees subsampled chroma.
            return pixels if _is_subsampled_jpeg2000(data) else _ycbcr_to_rgb(pixels)
        case Codec.JPEG2000, _:
            return _array(imagecodecs.jpeg2k_decode(data))
        case Codec.JPEG_LS, _:
            return _array(imagecodecs.jpegls_decode(data, out=np.empty(shape, np.uint8)))
    raw = _lossless(data, encoding.codec, shape[0] * shape[1] * shape[2])
    pixels = np.frombuffer(raw, np.uint8).reshape(shape)
    return np.cumsum(pixels, axis=1, dtype=np.uint8) if encoding.predictor == 2 else pixels


def _jpeg(data: bytes, tables: bytes, colorspace: int) -> Pixels:
    return _array(imagecodecs.jpeg8_decode(data, tables=tables or None, colorspace=colorspace, outcolorspace=JCS_RGB))


def _lossless(data: bytes, codec: Codec, size: int) -> bytes | bytearray:
    if codec is Codec.RAW:
        return data
    decoder = {
        Codec.DEFLATE: imagecodecs.zlib_decode,
        Codec.LZW: imagecodecs.lzw_decode,
        Codec.ZSTD: imagecodecs.zstd_decode,
    }[codec]
    decoded: bytes | bytearray = decoder(data, out=bytearray(size))
    return decoded


def _array(decoded: Any) -> Pixels:
    pixels: Pixels = decoded
    return pixels


def _is_subsampled_jpeg2000(data: bytes) -> bool:
    """Whether any component of a JPEG 2000 stream is stored at a lower resolution (SIZ marker, ISO 15444-1 A.5.1)."""
    start = data.find(b"\xff\x4f\xff\x51")
    if start < 0:
        raise ValueError("no JPEG 2000 codestream")
    components = int.from_bytes(data[start + 40 : start + 42], "big")
    steps = [data[start + 43 + 3 * k : start + 45 + 3 * k] for k in range(components)]
    return any(step != b"\x01\x01" for step in steps)


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
