"""What slide is in a Hamamatsu NDPI?

Each directory is one JPEG in one strip, a level of the pyramid where its magnification is positive (-1 is the macro,
-2 the map). Restart markers divide the JPEG into intervals, each a part of a row of MCUs; the directory lists where
they begin. So a tile is one interval: wide, and 8 pixels high (OpenSlide's format page "Hamamatsu").

1. The strip's JPEG header gives colour, MCU and interval. Of a level wider or higher than 65,500 px, which JPEG cannot
   state, the size is the directory's.
2. The list of interval starts becomes byte ranges; a short strip without one is searched for its markers.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import numpy.typing as npt

from online_patching.formats import tiff
from online_patching.formats.header import Codec, Colour, FoundSlide, TileEncoding, TileRanges
from online_patching.formats.header_reader import HeaderReader
from online_patching.formats.jpeg_header import JpegHeader, parse_jpeg_header
from online_patching.formats.pyramid import MAX_SIDE_PX, MAX_TILE_AREA_PX
from online_patching.formats.tiff import TiffIfd
from online_patching.formats.tiff_level import (
    TiffLevel,
    as_pyramid,
    mpp_from_resolution,
    slide_of,
)
from online_patching.geometry import LevelGeometry

STRIP_OFFSETS, STRIP_BYTE_COUNTS, MODEL = 273, 279, 272
JPEG = 7
MAGNIFICATION, X_OFFSET_NM, Y_OFFSET_NM, FOCAL_PLANE = 65421, 65422, 65423, 65424
INTERVAL_STARTS, INTERVAL_STARTS_HIGH, PROPERTY_MAP = 65426, 65432, 65449

# libjpeg's own limit, which is where NDPI begins to leave sizes out.
JPEG_MAX_SIDE_PX = 65500
# Tables, sizes and comments of a JPEG; NDPI's take less than 1 KB.
JPEG_HEAD_BYTES = 4096
# A strip is searched for restart markers only where that costs little.
MAX_SEARCHED_BYTES = 1 << 20
# What 32 bits hold: the high halves of starts within a shorter strip are zeros and need not be read.
MAX_LOW = (1 << 32) - 1


async def read_hamamatsu_ndpi(reader: HeaderReader, ifds: list[TiffIfd], _text: str = "") -> FoundSlide:
    """Header and byte ranges of focal plane 0 of an NDPI.

    Args:
        reader: Of the file.
        ifds: Its directories.

    Raises:
        SlideFormatError: A damaged file, or one whose JPEGs cannot be read in parts and with certain colours.
    """
    found = []
    for ifd in ifds:
        magnification = await ifd.real(MAGNIFICATION)
        if magnification is None:
            raise reader.error("an NDPI directory without magnification (tag 65421): the file is damaged")
        if magnification > 0 and await ifd.number(FOCAL_PLANE, 0) == 0:
            found.append(ifd)
    if not found:
        raise reader.error("an NDPI without any level in focal plane 0: only that plane is read")
    strips = [await _strip(reader, ifd) for ifd in found]
    # One round trip for all levels: the heads of their JPEGs and the starts of their intervals.
    heads = [(start, min(length, JPEG_HEAD_BYTES)) for start, length in strips]
    await reader.fetch([*heads, *(place for ifd in found for place in ifd.places([INTERVAL_STARTS]))])
    levels = [await _read_level(reader, ifd, strip) for ifd, strip in zip(found, strips, strict=True)]
    widths = [level.geometry.width_px for level in levels]
    if any(later >= earlier for earlier, later in pairwise(widths)):
        raise reader.error(f"an NDPI whose levels have the widths {widths} px, which do not fall: the file is damaged")
    mpp, properties = await mpp_from_resolution(found[0]), await _properties(found[0])
    return slide_of(reader, as_pyramid(reader, levels), vendor="hamamatsu", mpp=mpp, properties=properties)


async def _strip(reader: HeaderReader, ifd: TiffIfd) -> tuple[int, int]:
    """Start and length of the JPEG of a level."""
    if ifd.count(STRIP_OFFSETS) != 1 or await ifd.number(tiff.COMPRESSION) != JPEG:
        raise reader.error("an NDPI level that is not one JPEG in one strip: fluorescence and JPEG XR are not read")
    start, length = await ifd.number(STRIP_OFFSETS), await ifd.number(STRIP_BYTE_COUNTS)
    if not 0 <= start <= start + length <= reader.size:
        raise reader.error(f"a level reaches past the file's end at {reader.size}: cut off; copy it again")
    return start, length


async def _read_level(reader: HeaderReader, ifd: TiffIfd, strip: tuple[int, int]) -> TiffLevel:
    width, height = await ifd.number(tiff.IMAGE_WIDTH), await ifd.number(tiff.IMAGE_LENGTH)
    if not (0 < width <= MAX_SIDE_PX and 0 < height <= MAX_SIDE_PX):
        raise reader.error(f"a level of {width} x {height} px (allowed: 1 to {MAX_SIDE_PX}): the file is damaged")
    start, length = strip
    try:
        header = parse_jpeg_header(await reader.read(start, min(length, JPEG_HEAD_BYTES)))
    except ValueError as error:
        raise reader.error(f"a level of an NDPI cannot be read: {error}") from error
    stated = await ifd.number(tiff.PHOTOMETRIC)
    if {2: Colour.RGB, 6: Colour.YCBCR}.get(stated) is not header.colour:
        raise reader.error(f"a level states photometric {stated}, but its JPEG is {header.colour}: colours uncertain")
    if not header.restart_interval_mcus:
        return _whole_level(reader, header, start, length)
    return await _divided_level(reader, ifd, header, (width, height), strip)


def _whole_level(reader: HeaderReader, header: JpegHeader, start: int, length: int) -> TiffLevel:
    """A level that is one tile. The JPEG knows its size; the directories of small levels sometimes differ."""
    width, height = header.width_px, header.height_px
    if not 0 < width * height <= MAX_TILE_AREA_PX or length > MAX_LOW:
        raise reader.error(f"a level of {width} x {height} px without restart markers: it cannot be read in parts")
    geometry = LevelGeometry(width, height, width, height, 1.0)
    ranges = TileRanges(np.array([start], np.uint64), np.array([length], np.uint32))
    return TiffLevel(geometry, TileEncoding(Codec.JPEG, header.colour), ranges)


async def _divided_level(
    reader: HeaderReader, ifd: TiffIfd, header: JpegHeader, size: tuple[int, int], strip: tuple[int, int]
) -> TiffLevel:
    """A level whose tiles are the restart intervals of its JPEG."""
    (width, height), (start, length) = size, strip
    if max(size) <= JPEG_MAX_SIDE_PX and size != (header.width_px, header.height_px):
        raise reader.error(
            f"a level of {width} x {height} px holds a JPEG of {header.width_px} x {header.height_px} px: damaged"
        )
    if header.mcu_height_px != 8:
        # Such chroma is interpolated across the edges of intervals, so no interval decodes alone (nor in OpenSlide).
        raise reader.error("a level with vertically subsampled chroma and restart markers: it cannot be read in parts")
    mcus = -(-width // header.mcu_width_px)
    if mcus % header.restart_interval_mcus:
        raise reader.error(
            f"a level with a restart marker every {header.restart_interval_mcus} of {mcus} MCUs a row: rows must divide"
            " into whole intervals to be one grid of tiles"
        )
    tile_width, tile_height = header.mcu_width_px * header.restart_interval_mcus, header.mcu_height_px
    if tile_width > JPEG_MAX_SIDE_PX:
        raise reader.error(f"tiles of {tile_width} px (allowed: {JPEG_MAX_SIDE_PX}): JPEG cannot state their width")
    geometry = LevelGeometry(width, height, tile_width, tile_height, 1.0)
    starts = await _interval_starts(reader, ifd, header, geometry.tiles_x * geometry.tiles_y, strip)
    lengths = np.diff(starts, append=length)
    if lengths.min() < 2 or lengths.max() > np.iinfo(np.uint32).max:
        raise reader.error("the starts of a level's restart intervals do not rise within its strip: a damaged file")
    encoding = TileEncoding(Codec.JPEG, header.colour, jpeg_header=header.resized(tile_width, tile_height))
    ranges = TileRanges((starts + start).astype(np.uint64), lengths.astype(np.uint32))
    return TiffLevel(geometry, encoding, ranges)


async def _interval_starts(
    reader: HeaderReader, ifd: TiffIfd, header: JpegHeader, tiles: int, strip: tuple[int, int]
) -> npt.NDArray[np.int64]:
    """First byte of every interval's data, from the strip's start."""
    listed, high = ifd.count(INTERVAL_STARTS), ifd.count(INTERVAL_STARTS_HIGH)
    if listed == tiles > 1 and high in (0, tiles):
        starts = await _whole_numbers(reader, ifd, INTERVAL_STARTS)
        if high and strip[1] > MAX_LOW:
            starts += await _whole_numbers(reader, ifd, INTERVAL_STARTS_HIGH) << 32
    elif tiles == 1:
        starts = np.zeros(1, np.int64)
    elif strip[1] <= MAX_SEARCHED_BYTES:
        data = np.frombuffer(await reader.read(*strip), np.uint8)[len(header.data) :]
        markers = np.flatnonzero((data[:-1] == 0xFF) & (data[1:] >= 0xD0) & (data[1:] <= 0xD7))
        starts = np.concatenate(([0], markers + len(header.data) + 2)).astype(np.int64)
    else:
        raise reader.error(
            f"a level of {tiles} restart intervals lists {listed} starts (tag 65426), and is too long to search"
        )
    if len(starts) != tiles:
        raise reader.error(f"a level of {tiles} restart intervals has {len(starts)} in its strip: a damaged file")
    starts[0] = len(header.data)
    return starts


async def _whole_numbers(reader: HeaderReader, ifd: TiffIfd, tag: int) -> npt.NDArray[np.int64]:
    values = await ifd.numbers(tag)
    if values.dtype.kind != "u":
        raise reader.error(f"NDPI tag {tag} holds no whole numbers: the file is damaged")
    return values.astype(np.int64)


async def _properties(ifd: TiffIfd) -> dict[str, str]:
    found: dict[str, str] = {}
    for line in (await ifd.text(PROPERTY_MAP)).splitlines():
        key, _, value = line.partition("=")
        found[key] = value
    found["objective_power"] = f"{await ifd.real(MAGNIFICATION):g}"
    for name, tag in (("x_offset_from_slide_centre_nm", X_OFFSET_NM), ("y_offset_from_slide_centre_nm", Y_OFFSET_NM)):
        if tag in ifd:
            found[name] = str(await ifd.number(tag))
    found["scanner"] = await ifd.text(MODEL)
    return found
