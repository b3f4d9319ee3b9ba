"""Which level is a tiled TIFF directory: its size, its tiles and how they are encoded?

1. Sizes and encodings of all levels are read and checked first, so that nothing is read for absurd claims;
2. the byte ranges of all tiles follow in one round trip;
3. ``as_pyramid`` puts the levels in order.

Whatever cannot be decoded with certain colours is refused by name. Compression 33003 is YCbCr and 33005 RGB whatever
the photometric tag says; an Aperio JPEG says RGB in its photometric tag and carries no marker in the stream. The
orientation tag is a hint for viewers: pixels and coordinates are those stored, as in other slide readers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from online_patching.formats import tiff
from online_patching.formats.header import (
    Codec,
    Colour,
    FoundSlide,
    SlideHeader,
    TileEncoding,
    TileRanges,
    bounded_properties,
)
from online_patching.formats.header_reader import HeaderReader
from online_patching.formats.pyramid import MAX_SIDE_PX, MAX_TILE_AREA_PX, downsampled
from online_patching.formats.tiff import TiffIfd
from online_patching.geometry import LevelGeometry

# Tiles of all levels of a slide: 380,000 x 380,000 px in tiles of 256 and its pyramid below.
MAX_TILES = 3 << 20
# No encoding makes a tile much larger than its raw samples.
MAX_EXPANSION, EXPANSION_SLACK_BYTES = 2, 1 << 20

_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB, _YCBCR = 0, 1, 2, 6
_LOSSLESS = {
    1: Codec.RAW,
    5: Codec.LZW,
    8: Codec.DEFLATE,
    32773: Codec.PACKBITS,
    32946: Codec.DEFLATE,
    50000: Codec.ZSTD,
}
_PREDICTED = (Codec.DEFLATE, Codec.LZW, Codec.ZSTD)
# (photometric, samples) -> colour.
_GREYS = {(_BLACK_IS_ZERO, 1): Colour.GREY, (_WHITE_IS_ZERO, 1): Colour.WHITE_IS_ZERO}
_JPEG_COLOURS = {
    **_GREYS,
    (_BLACK_IS_ZERO, 2): Colour.GREY_EXTRA,
    (_RGB, 3): Colour.RGB,
    (_YCBCR, 3): Colour.YCBCR,
}
_LOSSLESS_COLOURS = {
    **_GREYS,
    (_BLACK_IS_ZERO, 2): Colour.GREY_EXTRA,
    (_RGB, 3): Colour.RGB,
    (_RGB, 4): Colour.RGBA_PREMULTIPLIED,
}
_ENCODINGS = {
    7: (Codec.JPEG, _JPEG_COLOURS),
    33003: (Codec.JPEG2000, {(_RGB, 3): Colour.YCBCR, (_YCBCR, 3): Colour.YCBCR}),
    33005: (Codec.JPEG2000, {(_RGB, 3): Colour.RGB, (_YCBCR, 3): Colour.RGB}),
    34712: (Codec.JPEG2000, {(_BLACK_IS_ZERO, 1): Colour.GREY, (_RGB, 3): Colour.RGB}),
    50001: (Codec.WEBP, {(_RGB, 3): Colour.RGB}),
    **{number: (codec, _LOSSLESS_COLOURS) for number, codec in _LOSSLESS.items()},
}
_PHOTOMETRIC_NAMES = {
    0: "white-is-zero grey",
    1: "grey",
    2: "RGB",
    3: "palette",
    4: "mask",
    5: "CMYK",
    6: "YCbCr",
    8: "CIELab",
    32803: "colour filter array",
}
_COMPRESSION_NAMES = {
    2: "CCITT",
    3: "CCITT",
    4: "CCITT",
    6: "old-style JPEG",
    34892: "lossy DNG JPEG",
    34887: "LERC",
    34925: "LZMA",
    34933: "PNG",
    34934: "JPEG XR",
    50002: "JPEG XL",
}
_SUPPORTED = (
    "supported: 8-bit interleaved RGB, YCbCr or grey in JPEG (7); RGB or grey, uncompressed (1), LZW (5), deflate (8,"
    " 32946), PackBits (32773), ZSTD (50000) or JPEG 2000 (33003, 33005, 34712); RGB WebP (50001)"
)
# The extra sample is opacity that the colours are not multiplied by (TIFF 6.0 section 18).
_UNASSOCIATED_ALPHA, _UNSPECIFIED = 2, 0
_SMALL_TAGS = (
    tiff.IMAGE_WIDTH,
    tiff.IMAGE_LENGTH,
    tiff.TILE_WIDTH,
    tiff.TILE_LENGTH,
    tiff.BITS_PER_SAMPLE,
    tiff.SAMPLE_FORMAT,
    tiff.EXTRA_SAMPLES,
    tiff.JPEG_TABLES,
)
_ARRAYS = (tiff.TILE_OFFSETS, tiff.TILE_BYTE_COUNTS)


@dataclass(frozen=True, slots=True)
class TiffLevel:
    """One tiled directory as a level; its downsample is set once the levels are known together."""

    geometry: LevelGeometry
    encoding: TileEncoding
    tiles: TileRanges


async def read_level(reader: HeaderReader, ifd: TiffIfd) -> TiffLevel:
    """Geometry, encoding and byte ranges of one tiled directory; see ``read_levels``."""
    (level,) = await read_levels(reader, [ifd])
    return level


async def read_levels(reader: HeaderReader, ifds: Sequence[TiffIfd]) -> list[TiffLevel]:
    """Geometry, encoding and byte ranges of tiled directories, read together.

    Raises:
        SlideFormatError: A directory is damaged, or its pixels cannot be decoded with certain colours.
    """
    await tiff.fetch_values(reader, ifds, _SMALL_TAGS)
    geometries = [await _read_geometry(reader, ifd) for ifd in ifds]
    encodings = [await _read_encoding(reader, ifd) for ifd in ifds]
    tiles = sum(geometry.tiles_x * geometry.tiles_y for geometry in geometries)
    if tiles > MAX_TILES:
        raise reader.error(
            f"its levels claim {tiles} tiles (allowed: {MAX_TILES}): the file is damaged, or write it with larger tiles"
        )
    await tiff.fetch_values(reader, ifds, _ARRAYS)
    return [
        TiffLevel(geometry, encoding, await _read_tiles(reader, ifd, geometry, encoding))
        for ifd, geometry, encoding in zip(ifds, geometries, encodings, strict=True)
    ]


async def _read_geometry(reader: HeaderReader, ifd: TiffIfd) -> LevelGeometry:
    width, height = await ifd.number(tiff.IMAGE_WIDTH), await ifd.number(tiff.IMAGE_LENGTH)
    if not (0 < width <= MAX_SIDE_PX and 0 < height <= MAX_SIDE_PX):
        raise reader.error(f"a level of {width} x {height} px (allowed: 1 to {MAX_SIDE_PX}): the file is damaged")
    if tiff.TILE_WIDTH not in ifd or tiff.TILE_OFFSETS not in ifd:
        raise reader.error("an image in strips, not tiles: not a slide; write it as a tiled pyramid")
    tile_width, tile_height = await ifd.number(tiff.TILE_WIDTH), await ifd.number(tiff.TILE_LENGTH)
    if tile_width < 1 or tile_height < 1 or tile_width * tile_height > MAX_TILE_AREA_PX:
        raise reader.error(
            f"tiles of {tile_width} x {tile_height} px (allowed: at least 1 x 1, at most {MAX_TILE_AREA_PX} px):"
            " the file is damaged, or write it with smaller tiles"
        )
    geometry = LevelGeometry(width, height, tile_width, tile_height, 1.0)
    tiles, offsets, lengths = geometry.tiles_x * geometry.tiles_y, *map(ifd.count, _ARRAYS)
    if await ifd.number(tiff.PLANAR_CONFIGURATION, 1) == 1 and (offsets != tiles or lengths != tiles):
        raise reader.error(f"{tiles} tiles expected, {offsets} offsets and {lengths} lengths found: damaged")
    return geometry


async def _read_tiles(
    reader: HeaderReader, ifd: TiffIfd, geometry: LevelGeometry, encoding: TileEncoding
) -> TileRanges:
    arrays = [await ifd.numbers(tag) for tag in _ARRAYS]
    if any(array.dtype.kind != "u" for array in arrays):
        raise reader.error("tile offsets are not whole numbers: the file is damaged")
    offset, length = (array.astype(np.uint64) for array in arrays)
    size = np.uint64(reader.size)
    # In this order nothing overflows: where the length fits, size - length is not negative.
    beyond = int(np.count_nonzero((length > size) | ((offset > size - np.minimum(length, size)) & (length > 0))))
    if beyond:
        raise reader.error(
            f"{beyond} of {len(length)} tiles lie past the file's end at {reader.size}: cut off; copy it again"
        )
    raw = geometry.tile_width_px * geometry.tile_height_px * encoding.colour.samples
    longest, allowed = int(length.max(initial=0)), MAX_EXPANSION * raw + EXPANSION_SLACK_BYTES
    if longest > allowed:
        raise reader.error(
            f"a tile of {geometry.tile_width_px} x {geometry.tile_height_px} px claims {longest} stored bytes"
            f" (allowed: {allowed}): the file is damaged"
        )
    return TileRanges(offset, length.astype(np.uint32))


async def _read_encoding(reader: HeaderReader, ifd: TiffIfd) -> TileEncoding:
    compression = await ifd.number(tiff.COMPRESSION, 1)
    photometric = await ifd.number(tiff.PHOTOMETRIC)
    samples = await ifd.number(tiff.SAMPLES_PER_PIXEL, 1)
    bits = sorted(set((await ifd.numbers(tiff.BITS_PER_SAMPLE)).tolist())) if tiff.BITS_PER_SAMPLE in ifd else [1]
    planar = await ifd.number(tiff.PLANAR_CONFIGURATION, 1)
    sample_format = await ifd.number(tiff.SAMPLE_FORMAT, 1)
    fill_order = await ifd.number(tiff.FILL_ORDER, 1)
    predictor = await ifd.number(tiff.PREDICTOR, 1)
    codec, colours = _ENCODINGS.get(compression, (None, {}))
    colour = colours.get((photometric, samples))
    if codec is None:
        name = _COMPRESSION_NAMES.get(compression, "unknown")
        raise reader.error(f"TIFF compression {compression} ({name}) is not read; {_SUPPORTED}")
    if bits != [8] or planar != 1 or sample_format not in (1, 4) or fill_order != 1:
        raise reader.error(
            f"samples of {'/'.join(map(str, bits[:4]))} bits, format {sample_format}, planar configuration {planar},"
            f" fill order {fill_order}: only 8-bit unsigned interleaved samples are read; {_SUPPORTED}"
        )
    alpha = await ifd.number(tiff.EXTRA_SAMPLES, _UNSPECIFIED) if samples in (2, 4) else _UNSPECIFIED
    if colour is None or (colour is Colour.GREY_EXTRA and alpha != _UNSPECIFIED):
        name = _PHOTOMETRIC_NAMES.get(photometric, "unknown")
        raise reader.error(
            f"{samples} samples a pixel of photometric {photometric} ({name}) in compression {compression} are not"
            f" read; {_SUPPORTED}"
        )
    if colour is Colour.RGBA_PREMULTIPLIED and alpha == _UNASSOCIATED_ALPHA:
        colour = Colour.RGBA
    if codec not in _PREDICTED:
        predictor = 1
    if predictor not in (1, 2):
        raise reader.error(f"predictor {predictor} is not supported (allowed: 1 none, 2 horizontal differences)")
    return TileEncoding(codec, colour, await ifd.raw(tiff.JPEG_TABLES) if codec is Codec.JPEG else b"", predictor)


def as_pyramid(reader: HeaderReader, levels: list[TiffLevel]) -> list[TiffLevel]:
    """The levels in order of size, each with its downsample.

    Raises:
        SlideFormatError: Images of different aspect: they are no levels of one pyramid.
    """
    found = sorted(levels, key=lambda level: -level.geometry.width_px)
    base = found[0].geometry
    return [replace(level, geometry=downsampled(level.geometry, base, error=reader.error)) for level in found]


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
        properties=bounded_properties(properties),
    )
    return FoundSlide(header, tuple(level.tiles for level in levels), (reader.pinned,))
