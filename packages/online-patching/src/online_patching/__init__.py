"""Any patch at any coordinate and magnification, straight from whole-slide images in blob storage."""

from __future__ import annotations

from online_patching.catalog import Catalog
from online_patching.engine import EngineSettings, close, configure
from online_patching.errors import (
    AccessDeniedError,
    AnnotationError,
    CatalogError,
    CorruptTileError,
    MagnificationError,
    MissingMppError,
    NotFoundError,
    PatchingError,
    SamplingError,
    SlideChangedError,
    SlideFormatError,
    StorageError,
)
from online_patching.grid_stream import GridStream
from online_patching.health import SlideHealth
from online_patching.plan import PatchRequest
from online_patching.read_counts import ReadCounts, read_counts
from online_patching.slide import Slide, open_slide
from online_patching.stream import PatchStream

__all__ = [
    "open_slide",
    "Slide",
    "Catalog",
    "PatchRequest",
    "PatchStream",
    "GridStream",
    "configure",
    "EngineSettings",
    "close",
    "SlideHealth",
    "ReadCounts",
    "read_counts",
    "PatchingError",
    "StorageError",
    "NotFoundError",
    "AccessDeniedError",
    "SlideChangedError",
    "SlideFormatError",
    "CorruptTileError",
    "MissingMppError",
    "MagnificationError",
    "CatalogError",
    "AnnotationError",
    "SamplingError",
]
