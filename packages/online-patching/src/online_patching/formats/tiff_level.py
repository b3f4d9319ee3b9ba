"""Which level is a tiled TIFF directory: its size, its tiles and how they are encoded?

Whatever cannot be decoded with certain colours is refused by name. Compression 33003 is YCbCr and 33005 RGB whatever
the photometric tag says; an Aperio JPEG says RGB in its photometric tag and carries no marker in the stream.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from online_patching.formats import tiff
from online_patching.formats.header import Codec, Colour, FoundSlide, SlideHeader, TileEncoding, TileRanges
from online_patching.formats.header_reader import HeaderReader
from online_patching.formats.tiff import TiffIfd
from online_patching.geometry import LevelGeometry

JPEG, DEFLATE, ADOBE_DEFLATE, LZW, ZSTD, RAW = 7, 32946, 8, 5, 50000, 1
APERIO_JPEG2000_YCBCR, APERIO_JPEG2000_RGB = 33003, 33005
PHOTOMETRIC_RGB, PHOTOMETRIC_YCBCR = 2, 6
MAX_SIDE_PX, MAX_TILE_PX = 1 << 24, 1 << 14
# A level's sides may differ from level 0's by rounding, and by a tile's padding on small levels.
ASPECT_TOLERANCE = 0.02

_CODECS = {
    (JPEG, PHOTOMETRIC_RGB): (Codec.JPEG, Colour.RGB),
    (JPEG, PHOTOMETRIC_YCBCR): (Codec.JPEG, Colour.YCBCR),
    (APERIO_JPEG2000_YCBCR, PHOTOMETRIC_RGB): (Codec.JPEG2000, Colour.YCBCR),
    (APERIO_JPEG2000_YCBCR, PHOTOMETRIC_YCBCR): (Codec.JPEG2000, Colour.YCBCR),
    (APERIO_JPEG2000_RGB, PHOTOMETRIC_RGB): (Codec.JPEG2000, Colour.RGB),
    (ADOBE_DEFLATE, PHOTOMETRIC_RGB): (Codec.DEFLATE, Colour.RGB),
    (DEFLATE, PHOTOMETRIC_RGB): (Codec.DEFLATE, Colour.RGB),
    (LZW, PHOTOMETRIC_RGB): (Codec.LZW, Colour.RGB),
    (ZSTD, PHOTOMETRIC_RGB): (Codec.ZSTD, Colour.RGB),
    (RAW, PHOTOMETRIC_RGB): (Codec.RAW, Colour.RGB),
}


@dataclass(frozen=True, slots=True)
class TiffLevel:
    """One tiled directory as a level; its downsample is set once the levels are known together."""

    geometry: LevelGeometry
    encoding: TileEncoding
    tiles: TileRanges


async def read_level(reader: HeaderReader, ifd: TiffIfd) -> TiffLevel:
    """Geometry, encoding and byte ranges of a tiled directory.

    Raises:
        SlideFormatError: The directory is damaged, or its pixels cannot be decoded with certain colours.
    """
    width, height = await ifd.number(tiff.IMAGE_WIDTH), await ifd.number(tiff.IMAGE_LENGTH)
    tile_width, tile_height = await ifd.number(tiff.TILE_WIDTH), await ifd.number(tiff.TILE_LENGTH)
    if not (0 < width <= MAX_SIDE_PX and 0 < height <= MAX_SIDE_PX):
        raise reader.error(f"a level of {width} x {height} px (allowed: 1 to {MAX_SIDE_PX}): the file is damaged")
    if not (0 < tile_width <= MAX_TILE_PX and 0 < tile_height <= MAX_TILE_PX):
        raise reader.error(f"tiles of {tile_width} x {tile_height} px (allowed: 1 to {MAX_TILE_PX}): damaged file")
    geometry = LevelGeometry(width, height, tile_width, tile_height, 1.0)
    encoding = await _read_encoding(reader, ifd)
    offset, length = await ifd.numbers(tiff.TILE_OFFSETS), await ifd.numbers(tiff.TILE_BYTE_COUNTS)
    tiles = geometry.tiles_x * geometry.tiles_y
    if len(offset) != tiles or len(length) != tiles:
        raise reader.error(f"{tiles} tiles expected, {len(offset)} offsets and {len(length)} lengths found: damaged")
    if offset.dtype.kind != "u" or length.dtype.kind != "u":
        raise reader.error("tile offsets are not whole numbers: the file is damaged")
    lengths = length.astype(np.float64)
    beyond = int(np.count_nonzero((offset.astype(np.float64) + lengths > reader.size) & (lengths > 0)))
    if beyond:
        raise reader.error(
            f"{beyond} of {tiles} tiles lie past the file's end at {reader.size}: cut off; copy it again"
        )
    return TiffLevel(geometry, encoding, TileRanges(offset.astype(np.uint64), length.astype(np.uint32)))


async def _read_encoding(reader: HeaderReader, ifd: TiffIfd) -> TileEncoding:
    compression = await ifd.number(tiff.COMPRESSION, RAW)
    photometric = await ifd.number(tiff.PHOTOMETRIC)
    known = _CODECS.get((compression, photometric))
    if known is None:
        raise reader.error(
            f"TIFF compression {compression} with photometric {photometric} is not supported; supported: RGB or YCbCr"
            " JPEG (7), Aperio JPEG 2000 (33003, 33005), RGB deflate (8), LZW (5), ZSTD (50000), none (1)"
        )
    bits = [int(b) for b in (await ifd.numbers(tiff.BITS_PER_SAMPLE)).tolist()]
    samples = await ifd.number(tiff.SAMPLES_PER_PIXEL, 1)
    planar = await ifd.number(tiff.PLANAR_CONFIGURATION, 1)
    orientation = await ifd.number(tiff.ORIENTATION, 1)
    predictor = await ifd.number(tiff.PREDICTOR, 1)
    sample_format = await ifd.number(tiff.SAMPLE_FORMAT, 1)
    if samples != 3 or set(bits) != {8} or planar != 1 or sample_format != 1:
        raise reader.error(f"{samples} samples of {bits} bits, planar {planar}: only 3 x 8-bit interleaved RGB is read")
    if orientation != 1:
        raise reader.error(f"orientation {orientation}: only upright images (1) are read; rewrite the file upright")
    if predictor not in (1, 2):
        raise reader.error(f"predictor {predictor} is not supported (allowed: 1, 2)")
    return TileEncoding(*known, await ifd.raw(tiff.JPEG_TABLES), predictor)


def as_pyramid(reader: HeaderReader, levels: list[TiffLevel]) -> list[TiffLevel]:
    """The levels in order of size, each with its downsample.

    Raises:
        SlideFormatError: Images of different aspect: they are no levels of one pyramid.
    """
    found = sorted(levels, key=lambda level: -level.geometry.width_px)
    geometries = _with_downsamples(reader, [level.geometry for level in found])
    return [replace(level, geometry=geometry) for level, geometry in zip(found, geometries, strict=True)]


def _with_downsamples(reader: HeaderReader, levels: list[LevelGeometry]) -> list[LevelGeometry]:
    base = levels[0]
    result = []
    for level in levels:
        down_x, down_y = base.width_px / level.width_px, base.height_px / level.height_px
        padding = max(level.tile_width_px / level.width_px, level.tile_height_px / level.height_px)
        if abs(down_x / down_y - 1) > max(ASPECT_TOLERANCE, padding):
            raise reader.error(
                f"its tiled images of {base.width_px} x {base.height_px} and {level.width_px} x {level.height_px} px"
                " are not levels of one pyramid"
            )
        mean = (down_x + down_y) / 2
        result.append(LevelGeometry(level.width_px, level.height_px, level.tile_width_px, level.tile_height_px, mean))
    return result


async def mpp_from_resolution(ifd: TiffIfd) -> float | None:
    """Um per pixel by a directory's resolution tags (TIFF 6.0 section 8), or None where they do not say."""
    um_per_unit = {2: 25400.0, 3: 10000.0}.get(await ifd.number(tiff.RESOLUTION_UNIT, 2))
    x, y = await ifd.real(tiff.X_RESOLUTION), await ifd.real(tiff.Y_RESOLUTION)
    if um_per_unit is None or not x or not y:
        return None
    mpp = um_per_unit * (1 / x + 1 / y) / 2
    # 72 and 96 dots an inch are what image libraries write when they know nothing.
    return mpp if 0.01 < mpp < 100 else None


def slide_of(
    reader: HeaderReader, levels: list[TiffLevel], *, vendor: str, mpp: float | None, properties: dict[str, str]
) -> FoundSlide:
    """The slide made of levels of one file."""
    header = SlideHeader(
        vendor=vendor,
        mpp=mpp,
        levels=tuple(level.geometry for level in levels),
        encodings=tuple(level.encoding for level in levels),
        properties=properties,
    )
    return FoundSlide(header, tuple(level.tiles for level in levels), (reader.pinned,))
