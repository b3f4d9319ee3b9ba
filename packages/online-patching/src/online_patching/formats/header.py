"""What is known of a slide once its headers are read?

These values are all that the rest of the package knows of a file format: where each tile lies, how it is encoded and
how large a pixel is. They hold no open file and travel between processes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import islice

import numpy as np
import numpy.typing as npt

from online_patching.bytesource import PinnedObject
from online_patching.geometry import LevelGeometry

MAX_PROPERTIES, MAX_PROPERTY_CHARACTERS = 1000, 256


class Codec(StrEnum):
    """How the bytes of a tile are compressed."""

    JPEG = "jpeg"
    JPEG2000 = "jpeg2000"
    DEFLATE = "deflate"
    LZW = "lzw"
    ZSTD = "zstd"
    PACKBITS = "packbits"
    WEBP = "webp"
    RAW = "raw"
    JPEG_LS = "jpeg-ls"
    # A chunk of a Zarr array, whose own metadata says how it is encoded: read by the zarr library.
    ZARR = "zarr"


class Colour(StrEnum):
    """What the decompressed samples of a tile mean; stated by the slide's header, so that no decoder has to guess."""

    RGB = "rgb"
    YCBCR = "ycbcr"
    GREY = "grey"
    # Grey where 0 is white (TIFF photometric 0).
    WHITE_IS_ZERO = "white-is-zero"
    # Grey and a second sample of unspecified meaning, which does not count.
    GREY_EXTRA = "grey-extra"
    # RGB with opacity, laid over white; in the second, the colours are already multiplied by it.
    RGBA = "rgba"
    RGBA_PREMULTIPLIED = "rgba-premultiplied"

    @property
    def samples(self) -> int:
        """Stored samples a pixel."""
        return _SAMPLES.get(self, 3)


_SAMPLES = {Colour.GREY: 1, Colour.WHITE_IS_ZERO: 1, Colour.GREY_EXTRA: 2, Colour.RGBA: 4, Colour.RGBA_PREMULTIPLIED: 4}


@dataclass(frozen=True, slots=True)
class TileEncoding:
    """How to decode the tiles of one level.

    Attributes:
        codec: Compression.
        colour: Colour space of the stored samples.
        jpeg_tables: The level's shared JPEG tables (TIFF tag 347), or empty.
        predictor: TIFF predictor of the lossless codecs: 1 none, 2 horizontal differences.
        jpeg_header: What precedes the data of every tile, where tiles are the restart intervals of one large JPEG
            (NDPI): from its start to its scan header, with the size of a tile; or empty.
    """

    codec: Codec
    colour: Colour = Colour.RGB
    jpeg_tables: bytes = b""
    predictor: int = 1
    jpeg_header: bytes = b""


@dataclass(frozen=True, slots=True)
class TileRanges:
    """Byte range of every tile of a level, in row-major order.

    Attributes:
        offset: First byte, uint64 (N,).
        length: Bytes, uint32 (N,); 0 marks a tile that the scanner did not store.
    """

    offset: npt.NDArray[np.uint64]
    length: npt.NDArray[np.uint32]


@dataclass(frozen=True, slots=True)
class SlideHeader:
    """Everything needed to read pixels, except the byte ranges.

    Attributes:
        vendor: Name of the format, such as ``aperio``, ``generic-tiff`` or ``dicom``.
        mpp: um per pixel of level 0 (mean of both axes), or None where the file does not say.
        levels: Geometry of every level, finest first.
        encodings: Encoding of every level, in the same order.
        properties: Other facts from the header, as text (scanner settings, objective power).
        level_objects: Which of the slide's objects holds the tiles of each level (DICOM keeps a file a level); empty
            where there is one object only.
    """

    vendor: str
    mpp: float | None
    levels: tuple[LevelGeometry, ...]
    encodings: tuple[TileEncoding, ...]
    properties: dict[str, str] = field(default_factory=dict)
    level_objects: tuple[int, ...] = ()


def bounded_properties(found: Mapping[str, str]) -> dict[str, str]:
    """Those of a header's facts that are of a size to be kept in memory for every slide of a cohort.

    Args:
        found: Texts by name; what is empty or longer than ``MAX_PROPERTY_CHARACTERS`` is left out, and so is what
            comes after the first ``MAX_PROPERTIES``.
    """
    kept = ((k, v) for k, v in found.items() if k and v and max(len(k), len(v)) <= MAX_PROPERTY_CHARACTERS)
    return dict(islice(kept, MAX_PROPERTIES))


@dataclass(frozen=True, slots=True)
class FoundSlide:
    """What reading the headers of a slide found.

    Attributes:
        header: Levels, encodings, resolution.
        tiles: Byte ranges of every level's tiles, in the order of the levels; empty for OME-Zarr, whose chunks are
            objects of their own.
        objects: The slide's objects with size and version pinned; most formats have one.
    """

    header: SlideHeader
    tiles: tuple[TileRanges, ...]
    objects: tuple[PinnedObject, ...]
