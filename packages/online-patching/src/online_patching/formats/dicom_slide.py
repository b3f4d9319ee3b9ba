"""Which DICOM files make up a slide?

A slide is the ``VOLUME`` files of one series, one a level; label, overview and thumbnail of the series are left out.
Opening a folder opens the one series in it; opening a file opens the series that the file belongs to, among the DICOM
files that lie beside it. Who a file is costs one small read, which is remembered by name, size and version: a folder
of N slides costs N such reads, not N for every slide. ``dicom_slides`` lists what a cohort should open in a folder.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

from online_patching.bytesource import PinnedObject, shown_url
from online_patching.errors import SlideFormatError, StorageError
from online_patching.formats.dicom_level import VOLUME, DicomIdentity, DicomLevel, identify, read_dicom_level
from online_patching.formats.header import FoundSlide, SlideHeader
from online_patching.formats.header_reader import HeaderReader
from online_patching.formats.pyramid import downsampled
from online_patching.listing import DICOM_SUFFIXES
from online_patching.storage import Store

READS_AT_ONCE = 32
MAX_REMEMBERED = 1 << 18


@dataclass(frozen=True, slots=True)
class ScannedFile:
    """A file of a folder and who it is.

    Attributes:
        found: The file as the folder lists it.
        identity: Who it is; None where it is no whole-slide file.
        problem: Why it cannot be told, or None.
    """

    found: PinnedObject
    identity: DicomIdentity | None
    problem: str | None


@dataclass(frozen=True, slots=True)
class FoundDicom:
    """A slide and what reading its headers cost.

    Attributes:
        slide: Levels and byte ranges.
        requests: Range requests made.
        bytes_read: Bytes received.
    """

    slide: FoundSlide
    requests: int
    bytes_read: int


_remembered: dict[PinnedObject, ScannedFile] = {}
_under_way: dict[PinnedObject, asyncio.Task[ScannedFile]] = {}


async def read_dicom_file(store: Store, url: str, reader: HeaderReader) -> FoundDicom:
    """The slide that a file belongs to.

    Args:
        store: Opens objects and lists folders.
        url: The file.
        reader: The file, opened.

    Raises:
        SlideFormatError: It is no whole-slide file, or one of its series is damaged or not supported.
        StorageError: The folder or a file cannot be read.
    """
    identity = await identify(reader)
    if identity is None:
        # What the file is instead is told by whoever reads a level.
        await read_dicom_level(reader)
        raise reader.error("not a DICOM whole-slide image")
    scan = _Scan(store)
    beside = await scan.folder([found for found in await _listed_beside(store, url) if _name(found.url) != _name(url)])
    same = [
        file
        for file in beside
        if file.identity is not None
        and (file.identity.series_uid, file.identity.flavour) == (identity.series_uid, VOLUME)
    ]
    readers = [reader] if identity.flavour == VOLUME else []
    readers += await asyncio.gather(*(_opened(store, file.found.url) for file in same))
    if not readers:
        raise reader.error(f"a picture of flavour {identity.flavour!r} whose series has no level beside it")
    slide = await _read_levels(readers)
    every = {id(each): each for each in (reader, *readers)}.values()
    return FoundDicom(
        slide, scan.requests + sum(r.requests for r in every), scan.bytes + sum(r.bytes_read for r in every)
    )


async def read_dicom_folder(store: Store, folder_url: str) -> FoundDicom:
    """The only slide of a folder.

    Raises:
        SlideFormatError: The folder holds no series or several, or a file that is damaged or not supported.
        StorageError: The folder or a file cannot be read.
    """
    scan = _Scan(store)
    files = await scan.folder(await _listed(store, folder_url))
    for file in files:
        if file.problem is not None:
            raise SlideFormatError(file.problem)
    series = _by_series(files)
    if not series:
        raise SlideFormatError(
            f"{shown_url(folder_url)}: no slide in this folder ({len(files)} DICOM files, none of them a level); name a"
            " slide's file, or the folder of a DICOM series or of an OME-Zarr"
        )
    if len(series) > 1:
        names = ", ".join(f"{_name(level0.found.url)} ({uid})" for uid, (level0, *_) in list(series.items())[:4])
        raise SlideFormatError(
            f"{shown_url(folder_url)}: {len(series)} DICOM series with levels in this folder (allowed: 1); open one by"
            f" naming a file of it: {names}"
        )
    (members,) = series.values()
    readers = await asyncio.gather(*(_opened(store, file.found.url) for file in members))
    slide = await _read_levels(readers)
    requests, received = sum(r.requests for r in readers), sum(r.bytes_read for r in readers)
    return FoundDicom(slide, scan.requests + requests, scan.bytes + received)


async def dicom_slides(store: Store, folder_url: str) -> list[str]:
    """What a cohort should open of the DICOM files that lie directly in a folder.

    Args:
        store: Opens objects and lists folders.
        folder_url: The folder.

    Returns:
        The folder itself, with a slash behind it, where it holds one series; the finest level's file of each where it
        holds several. Damaged files are named too, so that whoever opens them learns why; other DICOM files are not.

    Raises:
        StorageError: The folder or a file cannot be read.
    """
    files = await _Scan(store).folder(await _listed(store, folder_url))
    series, damaged = _by_series(files), [file.found.url for file in files if file.problem is not None]
    if len(series) == 1 and not damaged:
        return [folder_url.rstrip("/") + "/"]
    return sorted([*(level0.found.url for level0, *_ in series.values()), *damaged])


class _Scan:
    """Finds out who the files of a folder are, and counts what that costs."""

    def __init__(self, store: Store) -> None:
        self.requests = 0
        self.bytes = 0
        self._store = store
        self._slots = asyncio.Semaphore(READS_AT_ONCE)

    async def folder(self, listed: Sequence[PinnedObject]) -> list[ScannedFile]:
        """Who each file is, in order."""
        known = {found: _remembered[found] for found in listed if found in _remembered}
        unknown = [found for found in listed if found not in known]
        known.update(zip(unknown, await asyncio.gather(*map(self._shared, unknown)), strict=True))
        return [known[found] for found in listed]

    async def _shared(self, found: PinnedObject) -> ScannedFile:
        """Read by whoever asks first; slides of one folder are indexed at the same time."""
        task = _under_way.get(found)
        if task is None or task.get_loop() is not asyncio.get_running_loop():
            task = asyncio.ensure_future(self._read(found))
            _under_way[found] = task
            task.add_done_callback(lambda _: _under_way.pop(found, None))
        return await asyncio.shield(task)

    async def _read(self, found: PinnedObject) -> ScannedFile:
        async with self._slots:
            reader = await HeaderReader.open(self._store.open(found.url))
            try:
                scanned = ScannedFile(found, await identify(reader), None)
            except SlideFormatError as error:
                scanned = ScannedFile(found, None, str(error))
        self.requests += reader.requests
        self.bytes += reader.bytes_read
        if found.info.version:
            if len(_remembered) >= MAX_REMEMBERED:
                _remembered.clear()
            _remembered[found] = scanned
        return scanned


def may_be_dicom(name: str) -> bool:
    """Whether a file may be DICOM by its name: archives also name files by a UID or a number, without a suffix."""
    _, dot, suffix = name.rpartition(".")
    return not dot or suffix.isdecimal() or name.lower().endswith(DICOM_SUFFIXES)


async def _listed(store: Store, folder_url: str) -> list[PinnedObject]:
    return [found for found in await store.list_folder(folder_url) if may_be_dicom(_name(found.url))]


async def _listed_beside(store: Store, url: str) -> list[PinnedObject]:
    """The DICOM files in a file's folder; none where the store has no listings or forbids them."""
    folder, slash, _ = url.rpartition("/")
    if url.startswith(("http://", "https://")):
        return []
    try:
        return await _listed(store, folder or slash or ".")
    except StorageError as error:
        if isinstance(error.__cause__, PermissionError | NotImplementedError):
            return []
        raise


def _by_series(files: Iterable[ScannedFile]) -> dict[str, list[ScannedFile]]:
    """Level files of each series, the finest first."""
    series: dict[str, list[ScannedFile]] = {}
    for file in files:
        if file.identity is not None and file.identity.flavour == VOLUME:
            series.setdefault(file.identity.series_uid, []).append(file)
    for members in series.values():
        members.sort(key=lambda file: -file.identity.width_px if file.identity is not None else 0)
    return series


async def _opened(store: Store, url: str) -> HeaderReader:
    # Sizes and versions of listings are not written as those of the objects themselves, which reading compares.
    return await HeaderReader.open(store.open(url))


async def _read_levels(readers: Sequence[HeaderReader]) -> FoundSlide:
    """The slide of some level files."""
    levels: dict[str, DicomLevel] = {}
    for level in await asyncio.gather(*map(read_dicom_level, readers)):
        # The same instance twice is a copy under another name.
        levels.setdefault(level.identity.instance_uid, level)
    found = sorted(levels.values(), key=lambda level: -level.geometry.width_px)
    header = SlideHeader(
        vendor="dicom",
        mpp=found[0].mpp,
        levels=tuple(
            downsampled(level.geometry, found[0].geometry, error=partial(_error, level.pinned)) for level in found
        ),
        encodings=tuple(level.encoding for level in found),
        properties=found[0].properties,
        level_objects=tuple(range(len(found))),
    )
    for finer, coarser in pairwise(found):
        if finer.geometry.width_px == coarser.geometry.width_px:
            raise SlideFormatError(
                f"{shown_url(finer.pinned.url)} and {_name(coarser.pinned.url)} are two levels of"
                f" {finer.geometry.width_px} px in one series: only one of each size is read; move one away"
            )
    return FoundSlide(header, tuple(level.tiles for level in found), tuple(level.pinned for level in found))


def _error(file: PinnedObject, message: str) -> SlideFormatError:
    return SlideFormatError(f"{shown_url(file.url)}: {message}; move one of the two out of the series")


def _name(url: str) -> str:
    return shown_url(url).rpartition("/")[2]
