"""Which level of a slide is a DICOM file: its size, its tiles and how they are encoded?

A whole-slide instance (PS3.3 section A.32.8) is one level: its frames are tiles of the total pixel matrix. Two layouts
exist (section C.7.6.17.3): ``TILED_FULL`` stores every tile row by row, ``TILED_SPARSE`` states each frame's position,
and tiles without a frame are background. Steps: ``identify`` reads who a file is, ``read_dicom_level`` the rest.
Whatever has more than one plane, optical path or sample depth than a picture has is refused by name.
"""

from __future__ import annotations

import asyncio
import math
from dataclasses import dataclass

import numpy as np

from online_patching.bytesource import PinnedObject
from online_patching.formats.dicom_elements import (
    PREAMBLE_BYTES,
    PREFIX,
    DataSet,
    DataSetError,
    read_elements,
    read_header,
)
from online_patching.formats.dicom_frames import (
    EXTENDED_LENGTHS,
    EXTENDED_OFFSETS,
    PIXEL_DATA,
    StoredFrames,
    frame_ranges,
)
from online_patching.formats.dicom_grid import PER_FRAME_GROUPS, by_tile, per_frame_bytes, tiles_of_frames
from online_patching.formats.header import Codec, Colour, TileEncoding, TileRanges, bounded_properties
from online_patching.formats.header_reader import HeaderReader
from online_patching.formats.pyramid import MAX_SIDE_PX
from online_patching.geometry import LevelGeometry

SOP_CLASS, TRANSFER_SYNTAX = 0x00020002, 0x00020010
IMAGE_TYPE, INSTANCE_UID, SERIES_UID = 0x00080008, 0x00080018, 0x0020000E
MANUFACTURER, MODEL = 0x00080070, 0x00081090
ORGANIZATION, CONCATENATION = 0x00209311, 0x00209161
SAMPLES, PHOTOMETRIC, PLANAR, FRAMES = 0x00280002, 0x00280004, 0x00280006, 0x00280008
ROWS, COLUMNS, ALLOCATED, STORED, SIGNED = 0x00280010, 0x00280011, 0x00280100, 0x00280101, 0x00280103
VOLUME_WIDTH, VOLUME_HEIGHT, MATRIX_COLUMNS, MATRIX_ROWS = 0x00480001, 0x00480002, 0x00480006, 0x00480007
OPTICAL_PATH, LENS_POWER, PATHS, PLANES = 0x00480105, 0x00480112, 0x00480302, 0x00480303
SHARED_GROUPS, PIXEL_MEASURES, SPACING = 0x52009229, 0x00289110, 0x00280030

WHOLE_SLIDE_CLASS = "1.2.840.10008.5.1.4.1.1.77.1.6"
VOLUME = "VOLUME"
IMPLICIT, EXPLICIT = "1.2.840.10008.1.2", "1.2.840.10008.1.2.1"
# Big endian, and a data set that is compressed as a whole: their elements cannot be walked.
UNREADABLE_SYNTAXES = ("1.2.840.10008.1.2.2", "1.2.840.10008.1.2.1.99")
MAX_TILE_PX, MAX_TILES = 1 << 14, 1 << 22
# Characters of a number that is stored as text (PS3.5 section 6.2, representation IS).
LONGEST_INTEGER = 12

_IDENTITY = frozenset((IMAGE_TYPE, INSTANCE_UID, SERIES_UID, MATRIX_COLUMNS))
_DESCRIPTION = _IDENTITY | frozenset(
    (MANUFACTURER, MODEL, ORGANIZATION, CONCATENATION, LENS_POWER, PATHS, PLANES, SHARED_GROUPS)
)
_DESCRIPTION |= frozenset((SAMPLES, PHOTOMETRIC, PLANAR, FRAMES, ROWS, COLUMNS, ALLOCATED, STORED, SIGNED))
_DESCRIPTION |= frozenset((VOLUME_WIDTH, VOLUME_HEIGHT, MATRIX_ROWS))
_JPEG2000, _COLOURS_BY_CODESTREAM = Codec.JPEG2000, ("RGB", "YBR_ICT", "YBR_RCT")
_CODECS = {
    IMPLICIT: Codec.RAW,
    EXPLICIT: Codec.RAW,
    "1.2.840.10008.1.2.4.50": Codec.JPEG,
    "1.2.840.10008.1.2.4.80": Codec.JPEG_LS,
    "1.2.840.10008.1.2.4.81": Codec.JPEG_LS,
    "1.2.840.10008.1.2.4.90": _JPEG2000,
    "1.2.840.10008.1.2.4.91": _JPEG2000,
    # High-throughput JPEG 2000: the same container of another block coder, which OpenJPEG reads.
    "1.2.840.10008.1.2.4.201": _JPEG2000,
    "1.2.840.10008.1.2.4.202": _JPEG2000,
    "1.2.840.10008.1.2.4.203": _JPEG2000,
}
SUPPORTED_SYNTAXES = "uncompressed little endian, JPEG baseline, JPEG-LS, JPEG 2000, HTJ2K"
# The photometric interpretation says what the samples of the stream are, whatever markers it carries.
_COLOURS = {
    (Codec.JPEG, "RGB"): Colour.RGB,
    (Codec.JPEG, "YBR_FULL_422"): Colour.YCBCR,
    (Codec.JPEG, "YBR_FULL"): Colour.YCBCR,
    (Codec.JPEG, "MONOCHROME2"): Colour.GREY,
    (Codec.RAW, "RGB"): Colour.RGB,
    (Codec.JPEG_LS, "RGB"): Colour.RGB,
    **{(_JPEG2000, photometric): Colour.RGB for photometric in _COLOURS_BY_CODESTREAM},
}


@dataclass(frozen=True, slots=True)
class DicomIdentity:
    """Who a whole-slide file is.

    Attributes:
        series_uid: The slide it belongs to.
        instance_uid: Its own name.
        flavour: ``VOLUME`` for a level, ``LABEL``, ``OVERVIEW`` or ``THUMBNAIL`` for other pictures.
        width_px: Width of its picture; 0 where it does not say.
    """

    series_uid: str
    instance_uid: str
    flavour: str
    width_px: int


@dataclass(frozen=True, slots=True)
class DicomLevel:
    """One file as a level; its downsample is set once the levels are known together.

    Attributes:
        pinned: The file.
        identity: Who it is.
        geometry: Size and tiles.
        encoding: How the tiles are compressed.
        tiles: Where they lie.
        mpp: um per pixel of this level, or None.
        properties: Other facts, as text.
    """

    pinned: PinnedObject
    identity: DicomIdentity
    geometry: LevelGeometry
    encoding: TileEncoding
    tiles: TileRanges
    mpp: float | None
    properties: dict[str, str]


def is_dicom(head: bytes) -> bool:
    """Whether a file that begins so is a DICOM file."""
    return head[PREAMBLE_BYTES : PREAMBLE_BYTES + len(PREFIX)] == PREFIX


async def identify(reader: HeaderReader) -> DicomIdentity | None:
    """Who a file is, usually from its first window; None where it is no DICOM whole-slide file.

    Raises:
        SlideFormatError: It is a DICOM file, but damaged.
    """
    if reader.size <= PREAMBLE_BYTES + len(PREFIX) or not is_dicom(await reader.read(0, PREAMBLE_BYTES + len(PREFIX))):
        return None
    meta, at = await _file_meta(reader)
    if meta.text(SOP_CLASS) != WHOLE_SLIDE_CLASS:
        return None
    syntax = meta.text(TRANSFER_SYNTAX)
    if syntax in UNREADABLE_SYNTAXES:
        raise reader.error(f"DICOM transfer syntax {syntax} is not supported; rewrite it in explicit little endian")
    values, _ = await read_elements(reader, at, explicit=syntax != IMPLICIT, wanted=_IDENTITY, stop=MATRIX_ROWS)
    return _identity(reader, values)


async def read_dicom_level(reader: HeaderReader) -> DicomLevel:
    """Geometry, encoding and byte ranges of a whole-slide file.

    Raises:
        SlideFormatError: The file is damaged, or its pixels cannot be decoded with certain colours.
    """
    try:
        return await _read_level(reader)
    except DataSetError as error:
        raise reader.error(f"{error}: the file is damaged") from error


async def _read_level(reader: HeaderReader) -> DicomLevel:
    meta, at = await _file_meta(reader)
    if meta.text(SOP_CLASS) != WHOLE_SLIDE_CLASS:
        raise reader.error(f"a DICOM file of class {meta.text(SOP_CLASS)!r}, not a whole-slide image")
    syntax = meta.text(TRANSFER_SYNTAX)
    if syntax not in _CODECS:
        raise reader.error(f"DICOM transfer syntax {syntax!r} is not supported; supported: {SUPPORTED_SYNTAXES}")
    explicit = syntax != IMPLICIT
    values, at = await read_elements(
        reader, at, explicit=explicit, wanted=_DESCRIPTION, stop=PER_FRAME_GROUPS, inside=frozenset((OPTICAL_PATH,))
    )
    encoding = _encoding(reader, values, syntax)
    geometry, frames = _geometry(reader, values)
    full = values.text(ORGANIZATION) == "TILED_FULL"
    wanted = frozenset(() if full else (PER_FRAME_GROUPS,))
    allowed = per_frame_bytes(frames)
    per_frame, at = await read_elements(
        reader, at, explicit=explicit, wanted=wanted, stop=EXTENDED_OFFSETS, max_bytes=allowed
    )
    grid = None if full else await asyncio.to_thread(tiles_of_frames, reader, geometry, frames, per_frame)
    if grid is None and frames != geometry.tiles_x * geometry.tiles_y:
        raise reader.error(f"{geometry.tiles_x * geometry.tiles_y} tiles expected, {frames} frames stored: damaged")
    wanted = frozenset((EXTENDED_OFFSETS, EXTENDED_LENGTHS))
    tables, at = await read_elements(
        reader, at, explicit=explicit, wanted=wanted, stop=PIXEL_DATA, max_bytes=8 * frames
    )
    pixel_data = await read_header(reader, at, explicit=explicit)
    if pixel_data.tag != PIXEL_DATA:
        raise reader.error("no pixels in it: cut off, or not an image")
    native = 3 * geometry.tile_width_px * geometry.tile_height_px if encoding.codec is Codec.RAW else None
    ranges = await frame_ranges(reader, StoredFrames(pixel_data, tables, frames, native))
    return DicomLevel(
        pinned=reader.pinned,
        identity=_identity(reader, values),
        geometry=geometry,
        encoding=encoding,
        tiles=ranges if grid is None else by_tile(ranges, grid, geometry),
        mpp=_mpp(values, geometry),
        properties=_properties(values, syntax),
    )


async def _file_meta(reader: HeaderReader) -> tuple[DataSet, int]:
    """The file meta elements, which are explicit always, and where the data set begins."""
    wanted = frozenset((SOP_CLASS, TRANSFER_SYNTAX))
    return await read_elements(reader, PREAMBLE_BYTES + len(PREFIX), explicit=True, wanted=wanted, stop=0x00030000)


def _identity(reader: HeaderReader, values: DataSet) -> DicomIdentity:
    series, instance, image_type = values.text(SERIES_UID), values.text(INSTANCE_UID), values.texts(IMAGE_TYPE)
    if not series or not instance or len(image_type) < 3:
        raise reader.error("no SeriesInstanceUID, no SOPInstanceUID or no ImageType of three values: damaged")
    return DicomIdentity(series, instance, image_type[2], values.integer(MATRIX_COLUMNS) or 0)


def _encoding(reader: HeaderReader, values: DataSet, syntax: str) -> TileEncoding:
    codec, photometric = _CODECS[syntax], values.text(PHOTOMETRIC)
    colour = _COLOURS.get((codec, photometric))
    if colour is None:
        raise reader.error(f"photometric interpretation {photometric!r} in transfer syntax {syntax} is not supported")
    found = {tag: values.integer(tag) for tag in (SAMPLES, ALLOCATED, STORED, SIGNED)}
    samples = 1 if colour is Colour.GREY else 3
    if found != {SAMPLES: samples, ALLOCATED: 8, STORED: 8, SIGNED: 0}:
        numbers = ", ".join(str(number) for number in found.values())
        raise reader.error(
            f"samples, bits allocated, bits stored, signed of {photometric}: got {numbers}; only {samples}, 8, 8, 0"
            " is read"
        )
    planar = values.integer(PLANAR) or 0
    if planar != 0 and codec is Codec.RAW:
        raise reader.error(f"planar configuration {planar}: only interleaved samples (0) are read; rewrite the file")
    return TileEncoding(codec, colour)


def _geometry(reader: HeaderReader, values: DataSet) -> tuple[LevelGeometry, int]:
    """Size and tile grid of the total pixel matrix, and the number of frames."""
    sizes = [values.integer(tag) or 0 for tag in (MATRIX_COLUMNS, MATRIX_ROWS, COLUMNS, ROWS)]
    width, height, tile_width, tile_height = sizes
    if not (0 < width <= MAX_SIDE_PX and 0 < height <= MAX_SIDE_PX):
        raise reader.error(f"a level of {width} x {height} px (allowed: 1 to {MAX_SIDE_PX}): the file is damaged")
    if not (0 < tile_width <= MAX_TILE_PX and 0 < tile_height <= MAX_TILE_PX):
        raise reader.error(f"tiles of {tile_width} x {tile_height} px (allowed: 1 to {MAX_TILE_PX}): damaged file")
    geometry = LevelGeometry(width, height, tile_width, tile_height, 1.0)
    if geometry.tiles_x * geometry.tiles_y > MAX_TILES:
        raise reader.error(f"{geometry.tiles_x} x {geometry.tiles_y} tiles (allowed: {MAX_TILES} together)")
    if CONCATENATION in values.values:
        raise reader.error("a level spread over several files (a concatenation), which is not read; join them first")
    for tag, what in ((PLANES, "focal planes"), (PATHS, "optical paths")):
        number = values.integer(tag)
        if number is not None and number != 1:
            raise reader.error(f"{number} {what}: only slides with one of them are read")
    frames = values.text(FRAMES) or "1"
    if (
        len(frames) > LONGEST_INTEGER
        or not frames.isdecimal()
        or not 0 < int(frames) <= geometry.tiles_x * geometry.tiles_y
    ):
        tiles = f"{geometry.tiles_x} x {geometry.tiles_y} tiles"
        raise reader.error(
            f"{frames[:LONGEST_INTEGER]} frames on a grid of {tiles}: several focal planes or optical paths, or damaged"
        )
    return geometry, int(frames)


def _mpp(values: DataSet, geometry: LevelGeometry) -> float | None:
    """Mean of both axes in um per pixel, from the pixels' spacing or the size of the whole (both in mm)."""
    spacing = values.item(SHARED_GROUPS).item(PIXEL_MEASURES).decimals(SPACING)
    if len(spacing) != 2:
        sides = [values.values.get(tag, b"") for tag in (VOLUME_WIDTH, VOLUME_HEIGHT)]
        if any(len(side) != 4 for side in sides):
            return None
        width_mm, height_mm = (float(np.frombuffer(side, "<f4")[0]) for side in sides)
        spacing = [height_mm / geometry.height_px, width_mm / geometry.width_px]
    mpp = 1000 * (spacing[0] + spacing[1]) / 2
    return mpp if math.isfinite(mpp) and min(spacing) > 0 and mpp < 1000 else None


def _properties(values: DataSet, syntax: str) -> dict[str, str]:
    found = {
        "Manufacturer": values.text(MANUFACTURER),
        "ManufacturerModelName": values.text(MODEL),
        "SeriesInstanceUID": values.text(SERIES_UID),
        "TransferSyntaxUID": syntax,
        "objective-power": values.text(LENS_POWER),
    }
    return bounded_properties(found)
