"""What is known of a slide once its headers are read?

These values are all that the rest of the package knows of a file format: where each tile lies, how it is encoded and
how large a pixel is. They hold no open file and travel between processes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np
import numpy.typing as npt

from online_patching.geometry import LevelGeometry


class Codec(StrEnum):
    """How the bytes of a tile encode its pixels; the colour space is part of it, so that nobody has to guess."""

    JPEG_RGB = "jpeg-rgb"
    JPEG_YCBCR = "jpeg-ycbcr"
    JPEG2000_RGB = "jpeg2000-rgb"
    JPEG2000_YCBCR = "jpeg2000-ycbcr"
    DEFLATE = "deflate"
    LZW = "lzw"
    ZSTD = "zstd"
    RAW = "raw"


@dataclass(frozen=True, slots=True)
class TileEncoding:
    """How to decode the tiles of one level.

    Attributes:
        codec: Compression and colour space.
        jpeg_tables: The level's shared JPEG tables (TIFF tag 347), or empty.
        predictor: TIFF predictor of the lossless codecs: 1 none, 2 horizontal differences.
    """

    codec: Codec
    jpeg_tables: bytes = b""
    predictor: int = 1


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
        vendor: ``aperio`` or ``generic-tiff``.
        mpp: um per pixel of level 0 (mean of both axes), or None where the file does not say.
        levels: Geometry of every level, finest first.
        encodings: Encoding of every level, in the same order.
        properties: Other facts from the header, as text (scanner settings, objective power).
    """

    vendor: str
    mpp: float | None
    levels: tuple[LevelGeometry, ...]
    encodings: tuple[TileEncoding, ...]
    properties: dict[str, str] = field(default_factory=dict)
