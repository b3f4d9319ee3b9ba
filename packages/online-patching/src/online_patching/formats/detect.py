"""Which format is a slide of, and who reads its headers?

A file is told by its first bytes, a folder by what lies in it; the name of a file says nothing for certain. A format
that no other library than ours has written the test files of is *experimental*: it opens only where that is asked for.
"""

from __future__ import annotations

from pathlib import Path

from online_patching.bytesource import local_path, split_reference_url
from online_patching.errors import NotFoundError
from online_patching.formats.dicom_level import is_dicom
from online_patching.formats.dicom_slide import read_dicom_file, read_dicom_folder
from online_patching.formats.header import FoundSlide
from online_patching.formats.header_reader import HeaderReader
from online_patching.formats.kerchunk_refs import read_json_slide, read_parquet_slide
from online_patching.formats.ome_zarr import read_ome_zarr
from online_patching.formats.tiff_slide import read_tiff_slide
from online_patching.storage import Store

# A DICOM file is told by "DICM" at byte 128.
HEAD_BYTES = 132
MIN_BYTES = 16
TIFF_NAMES = (".tif", ".tiff")
TIFF_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
SUPPORTED = "Aperio SVS, pyramidal TIFF and BigTIFF, OME-TIFF, DICOM, OME-Zarr, kerchunk references"


async def read_slide(store: Store, url: str, *, experimental: bool) -> tuple[FoundSlide, int, int]:
    """Read the headers of whatever lies at a URL.

    Args:
        store: Opens objects and lists folders.
        url: A file, or the folder of a slide that is several files.
        experimental: Open experimental formats as well.

    Returns:
        The slide, the number of range requests made and the bytes received.

    Raises:
        StorageError: The object cannot be reached.
        SlideFormatError: It is not a slide, or one that cannot be read with certain colours.
    """
    place, slide = split_reference_url(url) or (url, "")
    if place.lower().endswith((".parquet", ".parq")):
        found, reader = await read_parquet_slide(store, place, slide)
        return found, reader.requests, reader.bytes_read
    if _is_folder(place):
        return await _read_folder(store, place)
    source = store.open(place)
    try:
        reader = await HeaderReader.open(source)
    except NotFoundError as missing:
        # A store knows no folders: what is no object may still be the start of some objects' names.
        try:
            return await _read_folder(store, place)
        except NotFoundError:
            raise missing from None
    if reader.size < MIN_BYTES:
        raise reader.error(f"not a slide: it has {reader.size} bytes")
    head = await reader.read(0, min(HEAD_BYTES, reader.size))
    # A DICOM file may carry a TIFF's head in its preamble, so as to be both: then its name decides.
    if is_dicom(head) and not reader.url.lower().endswith(TIFF_NAMES):
        dicom = await read_dicom_file(store, url, reader)
        return dicom.slide, dicom.requests, dicom.bytes_read
    if head[:4] in TIFF_MAGIC:
        found = await read_tiff_slide(reader, experimental=experimental)
    elif head.lstrip().startswith(b"{"):
        found = await read_json_slide(store, reader, slide)
    else:
        raise reader.error(f"not a slide: it starts with {head[:16]!r}; supported: {SUPPORTED}")
    return found, reader.requests, reader.bytes_read


def _is_folder(url: str) -> bool:
    path = local_path(url)
    return _is_zarr(url) or url.endswith("/") or (path is not None and Path(path).is_dir())


async def _read_folder(store: Store, url: str) -> tuple[FoundSlide, int, int]:
    try:
        slide = await read_ome_zarr(store, url)
    except NotFoundError:
        # Folders of a web server cannot be listed, so only what has documents of known names is found there.
        if _is_zarr(url) or url.startswith(("http://", "https://")):
            raise
        dicom = await read_dicom_folder(store, url)
        return dicom.slide, dicom.requests, dicom.bytes_read
    return slide.found, slide.requests, slide.bytes_read


def _is_zarr(url: str) -> bool:
    return url.rstrip("/").lower().endswith(".zarr")
