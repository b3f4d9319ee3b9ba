"""Which ways can reading slides fail, and what does a caller catch?

::

    PatchingError                 everything below
    ├── StorageError              the store did not give what was asked for
    │   ├── NotFoundError         no such object, bucket or folder
    │   ├── AccessDeniedError     the store knows the object's place and refuses: credentials wrong, expired, too weak
    │   └── SlideChangedError     size or etag differ from those pinned at indexing
    ├── SlideFormatError          not a slide, or one that cannot be read without guessing colours
    │   └── CorruptTileError      one stored tile that does not decode
    ├── MissingMppError           a magnification is asked of a slide that has no mpp
    ├── MagnificationError        no stored level serves the magnification asked for
    ├── CatalogError              a catalog folder is missing, broken, newer or does not hold the slide
    ├── AnnotationError           a foreground that others drew does not fit its slide, or is no valid GeoJSON
    └── SamplingError             no patch of the size asked for fits the foreground

Every message says what, of which slide or file, what was found, what is allowed and how to go on. Wrong arguments
(a negative size, an unknown policy) are plain ``ValueError``.
"""

from __future__ import annotations


class PatchingError(Exception):
    """Base class of every error that online_patching raises about data."""


class StorageError(PatchingError):
    """A store could not be reached, refused, or returned other bytes than asked for."""


class NotFoundError(StorageError):
    """The object, bucket or folder does not exist."""


class AccessDeniedError(StorageError):
    """The store refused: no, wrong or expired credentials, or credentials that may not read the object."""


class SlideChangedError(StorageError):
    """The object is no longer the one that was indexed."""


class SlideFormatError(PatchingError):
    """The file is not a slide this package can read with certain colours."""


class CorruptTileError(SlideFormatError):
    """One stored tile does not decode to its declared size."""


class MissingMppError(PatchingError):
    """The slide states no um per pixel, and none was given."""


class MagnificationError(PatchingError):
    """The slide has no level fine enough for the magnification asked for."""


class CatalogError(PatchingError):
    """The catalog folder is missing, broken, of a newer format, or lacks the slide."""


class AnnotationError(PatchingError):
    """A foreground drawn by others is broken, of another slide, or too large."""


class SamplingError(PatchingError):
    """No position satisfies the foreground share asked for."""
