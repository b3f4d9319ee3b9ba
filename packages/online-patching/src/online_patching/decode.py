"""How do the bytes of one tile become pixels?

1. The size that a JPEG or JPEG 2000 stream claims is checked before the codec library allocates anything for it; the
   other decoders get an output of exactly one tile, so no bomb can grow.
2. One function a codec, each releasing the interpreter lock while it decodes. ``decode_regions`` decodes no more of
   JPEGs than the rectangles need (``jpeg_decode``), and JPEG and JPEG 2000 at a reduced scale where that is asked for.
3. ``_as_rgb`` brings grey and transparent samples to RGB.

Reduced scale (``decode: fast``) beside decoding whole and averaging with INTER_AREA, on tiles with tissue: at 1/2, JPEG
without chroma subsampling differs by 0.1-0.2 grey levels on average (at most 19, PSNR 52-59 dB), with it by 0.5-0.6 (at
most 21, 46-49 dB), since libjpeg then leaves chroma unsmoothed. The coarser wavelet of JPEG 2000 is sharper than an
average: 2.6-4.5 grey levels (at most 105, PSNR 31-34 dB) at 1/2, 6-9 (at most 117, 25-27 dB) at 1/4. The tile's grid of
reduced pixels is fixed, so a patch may also lie up to half a pixel off (README, "How pixels are made").

The colour space comes from the slide's header (``TileEncoding``), never from a guess of the codec library. Whatever
does not decode to exactly one tile of 8-bit samples is a ``CorruptTileError``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import cv2
import imagecodecs
import numpy as np
import numpy.typing as npt

from online_patching import nvimgcodec_decode
from online_patching.errors import CorruptTileError
from online_patching.formats.header import Codec, Colour, TileEncoding
from online_patching.jpeg2000_stream import check_jpeg2000, reduced
from online_patching.jpeg_decode import JpegPart, decode_jpeg, decode_jpeg_parts, plan_jpeg_part
from online_patching.jpeg_stream import Data
from online_patching.lzw_stream import check_lzw

Pixels = npt.NDArray[np.uint8]

REDUCTIONS = (2, 4, 8)
_STORED_AS_RGB = (Colour.RGB, Colour.YCBCR)


def decode_tile(data: Data, encoding: TileEncoding, width_px: int, height_px: int) -> Pixels:
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
    try:
        pixels = _decode(data, encoding, height_px, width_px)
    except Exception as error:
        raise _corrupt(data, encoding, error) from error
    return _checked(pixels, (height_px, width_px, 3))


class TilePart(NamedTuple):
    """A rectangle of one stored tile.

    Attributes:
        data: The tile as stored.
        encoding: Codec, colour space, tables and predictor of its level.
        width_px: Stored tile width.
        height_px: Stored tile height.
        region: Left, top, right, bottom (exclusive) in pixels of the tile; of the reduced tile where ``reduction`` is
            not 1.
        reduction: 1, or one of ``reductions``: the tile is decoded at 1 / ``reduction`` of its scale. JPEG: libjpeg's
            scaled DCT; JPEG 2000: a coarser resolution of its wavelets.
    """

    data: Data
    encoding: TileEncoding
    width_px: int
    height_px: int
    region: tuple[int, int, int, int]
    reduction: int = 1


def decode_region(part: TilePart) -> Pixels:
    """Pixels of a rectangle of one stored tile; see ``decode_regions``.

    Raises:
        CorruptTileError: The bytes do not decode to such a tile.
        ValueError: A rectangle outside of the tile, or a reduction that is none of ``reductions``.
    """
    (pixels,) = decode_regions([part])
    if isinstance(pixels, CorruptTileError):
        raise pixels
    return pixels


def decode_regions(parts: Sequence[TilePart]) -> Iterator[Pixels | CorruptTileError]:
    """Pixels of rectangles of stored tiles, in order, for little more than decoding itself takes.

    Returns:
        For each uint8 (bottom - top, right - left, 3), RGB; without ``reduction`` the very pixels of ``decode_tile``.
        It may be memory that this thread uses again for the next: copy what is to be kept. In place of one that does
        not decode, its error; damage below the rows that a rectangle of a JPEG needs is not looked for.

    Raises:
        ValueError: A rectangle outside of the tile, or a reduction that is none of ``reductions``.
    """
    planned = [_planned(part) for part in parts]
    jpegs = decode_jpeg_parts([each for each in planned if isinstance(each, JpegPart)])
    for part, plan in zip(parts, planned, strict=True):
        if isinstance(plan, CorruptTileError):
            yield plan
            continue
        x0, y0, x1, y1 = part.region
        try:
            if plan is None:
                pixels = _decode_other_part(part)
            else:
                decoded = next(jpegs)
                if isinstance(decoded, Exception):
                    raise decoded
                pixels = _as_rgb(decoded, part.encoding.colour)
            yield _checked(pixels, (y1 - y0, x1 - x0, 3))
        except Exception as error:
            yield _corrupt(part.data, part.encoding, error)


def _planned(part: TilePart) -> JpegPart | CorruptTileError | None:
    """How a part of a JPEG is decoded; None for another codec."""
    data, encoding, width, height, region, reduction = part
    x0, y0, x1, y1 = region
    if reduction != 1 and reduction not in reductions(encoding, width, height):
        raise ValueError(f"a {encoding.codec} tile of {width} x {height} px cannot be reduced by {reduction}")
    if not (0 <= x0 < x1 <= width // reduction and 0 <= y0 < y1 <= height // reduction):
        raise ValueError(f"the rectangle {region} is not within a tile of {width} x {height} px / {reduction}")
    if encoding.codec is not Codec.JPEG:
        return None
    try:
        return plan_jpeg_part(data, encoding, width, height, region, reduction)
    except ValueError as error:
        return _corrupt(data, encoding, error)


def _decode_other_part(part: TilePart) -> Pixels:
    data, encoding, width, height, (x0, y0, x1, y1), reduction = part
    if reduction > 1:
        return _reduced_jpeg2000(data, encoding.colour, height, width, reduction)[y0:y1, x0:x1]
    return _decode(data, encoding, height, width)[y0:y1, x0:x1]


def reductions(encoding: TileEncoding, width_px: int, height_px: int) -> tuple[int, ...]:
    """Factors of ``REDUCTIONS`` that a level's tiles can be decoded at: those that divide both of their sides."""
    if encoding.codec not in (Codec.JPEG, Codec.JPEG2000) or encoding.colour is Colour.GREY_EXTRA:
        return ()
    return tuple(factor for factor in REDUCTIONS if width_px % factor == height_px % factor == 0)


def decoder_name(encoding: TileEncoding) -> str:
    """Which library decodes the tiles of a level here."""
    match encoding.codec:
        case Codec.JPEG if encoding.colour is not Colour.GREY_EXTRA:
            regions = encoding.colour.samples == 3 and nvimgcodec_decode.is_available()
            return "nvImageCodec and simplejpeg" if regions else "simplejpeg"
        case Codec.RAW:
            return "none"
        case Codec.ZARR:
            return "zarr"
    return "imagecodecs"


def _corrupt(data: Data, encoding: TileEncoding, error: Exception) -> CorruptTileError:
    if isinstance(error, CorruptTileError):
        return error
    reason = " ".join(str(error).split())[:160] or type(error).__name__
    return CorruptTileError(f"a tile of {len(data)} bytes does not decode as {encoding.codec} ({reason})")


def _checked(pixels: Pixels, shape: tuple[int, int, int]) -> Pixels:
    if pixels.shape != shape or pixels.dtype != np.uint8:
        raise CorruptTileError(f"a tile decodes to {pixels.shape} {pixels.dtype}, its header says {shape} uint8")
    return pixels


def _decode(data: Data, encoding: TileEncoding, height: int, width: int) -> Pixels:
    match encoding.codec:
        case Codec.JPEG:
            return _as_rgb(decode_jpeg(data, encoding, width, height), encoding.colour)
        case Codec.JPEG2000:
            return _jpeg2000(data, encoding.colour, height, width)
        case Codec.JPEG_LS:
            return _array(imagecodecs.jpegls_decode(bytes(data), out=np.empty((height, width, 3), np.uint8)))
        case Codec.WEBP:
            return _array(
                imagecodecs.webp_decode(bytes(data), hasalpha=False, out=np.empty((height, width, 3), np.uint8))
            )
    samples = encoding.colour.samples
    raw = _lossless(data, encoding.codec, height * width * samples)
    pixels = np.frombuffer(raw, np.uint8).reshape(height, width, samples)
    return _as_rgb(np.cumsum(pixels, axis=1, dtype=np.uint8) if encoding.predictor == 2 else pixels, encoding.colour)


def _jpeg2000(data: Data, colour: Colour, height: int, width: int) -> Pixels:
    subsampled = check_jpeg2000(data, height, width, colour.samples)
    return _from_openjpeg(data, colour, subsampled, height, width)


def _reduced_jpeg2000(data: Data, colour: Colour, height: int, width: int, reduction: int) -> Pixels:
    subsampled = check_jpeg2000(data, height, width, colour.samples)
    size = (height // reduction, width // reduction)
    stream = reduced(bytes(data), reduction)
    if stream is not None:
        return _from_openjpeg(stream, colour, subsampled, *size)
    whole = _from_openjpeg(data, colour, subsampled, height, width)
    return _array(cv2.resize(whole, size[::-1], interpolation=cv2.INTER_AREA))


def _from_openjpeg(data: Data, colour: Colour, subsampled: bool, height: int, width: int) -> Pixels:
    pixels = _array(imagecodecs.jpeg2k_decode(bytes(data))).reshape(height, width, -1)
    # OpenJPEG converts by itself only where it sees subsampled chroma.
    if colour is Colour.YCBCR and not subsampled:
        return _ycbcr_to_rgb(pixels)
    return _as_rgb(pixels, colour)


def _lossless(data: Data, codec: Codec, size: int) -> Data | bytearray:
    if codec is Codec.RAW:
        return data
    if codec is Codec.LZW:
        check_lzw(data)
    decoder = {
        Codec.DEFLATE: imagecodecs.zlib_decode,
        Codec.LZW: imagecodecs.lzw_decode,
        Codec.ZSTD: imagecodecs.zstd_decode,
        Codec.PACKBITS: imagecodecs.packbits_decode,
    }[codec]
    decoded: bytes | bytearray = decoder(bytes(data), out=bytearray(size))
    return decoded


def _array(decoded: Any) -> Pixels:
    pixels: Pixels = decoded
    return pixels


def _as_rgb(pixels: Pixels, colour: Colour) -> Pixels:
    """Samples (H, W, S) of a colour space as RGB (H, W, 3)."""
    if colour in _STORED_AS_RGB:
        return pixels
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
