"""Which levels does an Aperio SVS or a generic pyramidal TIFF hold, with which colours and resolution?

Every *tiled* directory is a level (Aperio puts a stripped thumbnail between them, and label and macro behind), ordered
by size. A directory whose pixels cannot be decoded with certain colours is refused by name; levels of other aspect
than level 0 are no levels of the pyramid and are refused as well.

Colour facts (see the format notes in the README): an Aperio JPEG says RGB in its photometric tag and carries no marker
that says so in the stream; compression 33003 is YCbCr and 33005 RGB whatever the photometric tag says.
"""

from __future__ import annotations

import re

import numpy as np

from online_patching.formats import tiff
from online_patching.formats.header import Codec, SlideHeader, TileEncoding, TileRanges
from online_patching.formats.tiff import HeaderReader, TiffIfd
from online_patching.geometry import LevelGeometry

JPEG, DEFLATE, ADOBE_DEFLATE, LZW, ZSTD, RAW = 7, 32946, 8, 5, 50000, 1
APERIO_JPEG2000_YCBCR, APERIO_JPEG2000_RGB = 33003, 33005
PHOTOMETRIC_RGB, PHOTOMETRIC_YCBCR = 2, 6
MAX_SIDE_PX, MAX_TILE_PX = 1 << 24, 1 << 14
# A level's sides may differ from level 0's by rounding, and by a tile's padding on small levels.
ASPECT_TOLERANCE = 0.02

_CODECS = {
    (JPEG, PHOTOMETRIC_RGB): Codec.JPEG_RGB,
    (JPEG, PHOTOMETRIC_YCBCR): Codec.JPEG_YCBCR,
    (APERIO_JPEG2000_YCBCR, PHOTOMETRIC_RGB): Codec.JPEG2000_YCBCR,
    (APERIO_JPEG2000_YCBCR, PHOTOMETRIC_YCBCR): Codec.JPEG2000_YCBCR,
    (APERIO_JPEG2000_RGB, PHOTOMETRIC_RGB): Codec.JPEG2000_RGB,
    (ADOBE_DEFLATE, PHOTOMETRIC_RGB): Codec.DEFLATE,
    (DEFLATE, PHOTOMETRIC_RGB): Codec.DEFLATE,
    (LZW, PHOTOMETRIC_RGB): Codec.LZW,
    (ZSTD, PHOTOMETRIC_RGB): Codec.ZSTD,
    (RAW, PHOTOMETRIC_RGB): Codec.RAW,
}


async def read_tiff_slide(reader: HeaderReader) -> tuple[SlideHeader, list[TileRanges]]:
    """Header and byte ranges of an SVS or pyramidal TIFF, from its directories alone.

    Raises:
        SlideFormatError: Not such a slide, a damaged one, or one whose colours are not certain.
    """
    ifds = await tiff.read_ifds(reader)
    tiled = [ifd for ifd in ifds if tiff.TILE_OFFSETS in ifd]
    if not tiled:
        raise reader.error("a TIFF without tiles: not a slide; write it as a tiled pyramid (TIFF or SVS)")
    description = await ifds[0].text(tiff.IMAGE_DESCRIPTION)
    software = await ifds[0].text(tiff.SOFTWARE)
    _refuse_other_vendors(reader, description, software)
    found = [(await _read_level(reader, ifd)) for ifd in tiled]
    found.sort(key=lambda level: -level[0].width_px)
    levels = _with_downsamples(reader, [level for level, _, _ in found])
    if description.startswith("Aperio"):
        properties = aperio_properties(description)
        vendor, mpp = "aperio", _positive(properties.get("MPP"))
    else:
        properties, vendor, mpp = {}, "generic-tiff", await _mpp_from_resolution(tiled[0])
    header = SlideHeader(vendor, mpp, tuple(levels), tuple(encoding for _, encoding, _ in found), properties)
    return header, [ranges for _, _, ranges in found]


def aperio_properties(description: str) -> dict[str, str]:
    """The ``key = value`` fields of an Aperio ImageDescription; of repeated keys the first counts."""
    fields = (part.partition("=") for part in description.split("|")[1:])
    properties: dict[str, str] = {}
    for key, _, value in fields:
        properties.setdefault(key.strip(), value.strip())
    return properties


def _refuse_other_vendors(reader: HeaderReader, description: str, software: str) -> None:
    # Their levels or colours need more than the TIFF tags say; reading them as generic TIFF would be wrong.
    if software.startswith("Philips") or "<OME" in description or "<scn" in description or "<iScan" in description:
        name = "Philips" if software.startswith("Philips") else re.findall(r"OME|scn|iScan", description)[0]
        raise reader.error(f"a {name} TIFF, which this version does not read; supported: Aperio SVS, pyramidal TIFF")


async def _read_level(reader: HeaderReader, ifd: TiffIfd) -> tuple[LevelGeometry, TileEncoding, TileRanges]:
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
    return geometry, encoding, TileRanges(offset.astype(np.uint64), length.astype(np.uint32))


async def _read_encoding(reader: HeaderReader, ifd: TiffIfd) -> TileEncoding:
    compression = await ifd.number(tiff.COMPRESSION, RAW)
    photometric = await ifd.number(tiff.PHOTOMETRIC)
    codec = _CODECS.get((compression, photometric))
    if codec is None:
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
    return TileEncoding(codec, await ifd.raw(tiff.JPEG_TABLES), predictor)


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


async def _mpp_from_resolution(ifd: TiffIfd) -> float | None:
    um_per_unit = {2: 25400.0, 3: 10000.0}.get(await ifd.number(tiff.RESOLUTION_UNIT, 2))
    x, y = await ifd.real(tiff.X_RESOLUTION), await ifd.real(tiff.Y_RESOLUTION)
    if um_per_unit is None or not x or not y:
        return None
    mpp = um_per_unit * (1 / x + 1 / y) / 2
    # 72 and 96 dots an inch are what image libraries write when they know nothing.
    return mpp if 0.01 < mpp < 100 else None


def _positive(text: str | None) -> float | None:
    try:
        value = float(text) if text else 0.0
    except ValueError:
        return None
    return value if 0 < value < 1000 else None
