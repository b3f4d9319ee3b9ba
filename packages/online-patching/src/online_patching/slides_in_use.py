"""What is read of a slide when it is first used, and how much of it is kept?

Two files of a catalog serve a slide: its tile table (``Handles``) and its foreground (``Outlines``). In a large cohort
nearly every patch is the first use of its slide, so this is on the way of every patch:

1. what is kept is given at once; the least recently used slide goes first;
2. a file on a disk is read where the caller stands, those of a whole batch in one hop to a thread;
3. remote files of a batch are read all at the same time, and each of them once however many readers ask for it.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Generic, TypeVar

import numpy as np
import numpy.typing as npt
import shapely

from online_patching import loop
from online_patching.bytesource import ByteSource, ObjectInfo
from online_patching.cache import BoundedCache, SharedReads
from online_patching.catalog_files import FOREGROUND, TILE_TABLE, CatalogFolder
from online_patching.errors import CatalogError
from online_patching.outline import Outline
from online_patching.slide_row import combined_info
from online_patching.slide_table import SlideTable
from online_patching.storage import LocalSource, Store, open_object
from online_patching.stored_slide import BlockCache, StoredTiles
from online_patching.tile_source import SlideHandle, open_handle
from online_patching.tiletable import decode_front

V = TypeVar("V")

# Slides whose front is kept: 10 KB each where a header is of the usual size, so 20 MB.
KEPT_SLIDES = 2048
# Blocks of at most 3 KB (16 x 16 tiles of 12 bytes), over all slides: 25 MB.
KEPT_BLOCKS = 8192
# Bytes of the outlines that are kept: six hundred of the usual 4,000 corners.
KEPT_OUTLINE_BYTES = 96 * 2**20
# Sixteen million corners: more is no foreground but a damaged file.
MAX_POLYGON_BYTES = 256 * 2**20


class SlideFiles(ABC, Generic[V]):
    """Values of slides, each made of one file of the catalog, and kept while they are in use.

    Args:
        folder: The catalog's folder.
        rows: The slide table.
        kept: The values of recently used slides.
    """

    def __init__(self, folder: CatalogFolder, rows: SlideTable, kept: BoundedCache[str, V]) -> None:
        self._folder = folder
        self._rows = rows
        self._kept = kept
        self._reads: SharedReads[str, V] = SharedReads(self._read)
        column = rows.arrow["folder"]
        self._has_folders = column.null_count < len(column)

    def get(self, slide_id: str) -> V:
        """The value of a slide."""
        kept = self._kept.peek(slide_id)
        if kept is not None:
            return kept
        file = self._open(slide_id)
        return self._read_local(slide_id, file) if isinstance(file, LocalSource) else self._read_blocking(slide_id)

    async def get_many(self, slide_ids: Sequence[str]) -> dict[str, V]:
        """The values of many slides by their ids, read at the same time; to be awaited on the package's own loop."""
        found: dict[str, V] = {}
        missing: list[str] = []
        for slide_id in slide_ids:
            kept = self._kept.peek(slide_id)
            if kept is None:
                missing.append(slide_id)
            else:
                found[slide_id] = kept
        return found | await self._reads.get(missing) if missing else found

    async def _read(self, slide_ids: Sequence[str]) -> dict[str, V | BaseException]:
        answers: dict[str, V | BaseException] = {}
        local: dict[str, LocalSource] = {}
        remote: dict[str, ByteSource] = {}
        for slide_id in slide_ids:
            try:
                file = self._open(slide_id)
            except CatalogError as error:
                answers[slide_id] = error
                continue
            if isinstance(file, LocalSource):
                local[slide_id] = file
            else:
                remote[slide_id] = file
        reads = [self._read_remote(slide_id, file) for slide_id, file in remote.items()]
        answers.update(zip(remote, await asyncio.gather(*reads, return_exceptions=True), strict=True))
        return answers | (await asyncio.to_thread(self._read_all_local, local) if local else {})

    def _read_all_local(self, files: Mapping[str, LocalSource]) -> dict[str, V | BaseException]:
        answers: dict[str, V | BaseException] = {}
        for slide_id, file in files.items():
            try:
                answers[slide_id] = self._read_local(slide_id, file)
            except Exception as error:
                # Who waits for another slide of the batch is not to fail with this one.
                answers[slide_id] = error
        return answers

    def _number(self, slide_id: str) -> int:
        return self._rows.known_number(slide_id, self._folder.shown_url)

    def _open_file(self, slide_id: str, number: int, name: str) -> ByteSource:
        folder = self._rows.value(number, "folder") if self._has_folders else None
        return open_object(self._folder.file_url(slide_id, folder, name), self._folder.storage_options)

    @abstractmethod
    def _open(self, slide_id: str) -> ByteSource:
        """The slide's file.

        Raises:
            CatalogError: No such slide, or it has no such file.
        """

    @abstractmethod
    def _read_local(self, slide_id: str, file: LocalSource) -> V: ...

    @abstractmethod
    async def _read_remote(self, slide_id: str, file: ByteSource) -> V: ...

    @abstractmethod
    def _read_blocking(self, slide_id: str) -> V:
        """Read a remote file for a caller that waits."""


class Handles(SlideFiles[SlideHandle]):
    """What the reader needs of each slide."""

    def __init__(self, folder: CatalogFolder, rows: SlideTable, slide_storage_options: Mapping[str, Any]) -> None:
        super().__init__(folder, rows, BoundedCache(KEPT_SLIDES))
        self._store = Store(slide_storage_options)
        self._blocks: BlockCache = BoundedCache(KEPT_BLOCKS)

    def _open(self, slide_id: str) -> ByteSource:
        return self._open_file(slide_id, self._number(slide_id), TILE_TABLE)

    def _read_local(self, slide_id: str, file: LocalSource) -> SlideHandle:
        number = self._number(slide_id)
        (data,) = file.read_ranges_now([(0, self._rows.value(number, "front_bytes"))])
        return self._made(number, file, data)

    async def _read_remote(self, slide_id: str, file: ByteSource) -> SlideHandle:
        number = self._number(slide_id)
        (data,) = await file.read_ranges([(0, self._rows.value(number, "front_bytes"))])
        return self._made(number, file, data)

    def _read_blocking(self, slide_id: str) -> SlideHandle:
        return loop.run(self.get_many([slide_id]))[slide_id]

    def _made(self, number: int, file: ByteSource, data: bytes) -> SlideHandle:
        slide_id, mpp, size, version = (self._rows.value(number, name) for name in ("id", "mpp", "size", "version"))
        front = decode_front(data, file.url)
        if combined_info(front.objects) != ObjectInfo(size, version):
            raise CatalogError(
                f"{self._folder.shown_url}: slide {slide_id} was indexed anew since; open the catalog again"
            )
        header = front.header if front.header.mpp == mpp else replace(front.header, mpp=mpp)
        stored = StoredTiles(file, front, self._blocks)
        return self._kept.put(slide_id, open_handle(self._store, front.objects, header, stored))


class Outlines(SlideFiles[Outline]):
    """The foreground of each slide."""

    def __init__(self, folder: CatalogFolder, rows: SlideTable) -> None:
        super().__init__(folder, rows, BoundedCache(len(rows) + 1, max_bytes=KEPT_OUTLINE_BYTES))
        self._is_missing: npt.NDArray[np.bool_] | None = None

    def geometry(self, slide_id: str) -> shapely.Geometry:
        """The polygon itself, which is not kept."""
        with self._damage_told(slide_id):
            return shapely.from_wkb(self._folder.read_url(self._open(slide_id).url))

    def _open(self, slide_id: str) -> ByteSource:
        number = self._number(slide_id)
        if self._is_missing is None:
            self._is_missing = np.isnan(self._rows.numbers("foreground_area_level0_px2"))
        if self._is_missing[number]:
            raise CatalogError(
                f"{self._folder.shown_url}: slide {slide_id} has no foreground yet; run `online-patching foreground"
                f" --catalog {self._folder.shown_url}`"
            )
        return self._open_file(slide_id, number, FOREGROUND)

    def _read_local(self, slide_id: str, file: LocalSource) -> Outline:
        return self._made(slide_id, file.read_whole_now(max_bytes=MAX_POLYGON_BYTES)[0])

    async def _read_remote(self, slide_id: str, file: ByteSource) -> Outline:
        data, _ = await file.read_whole(max_bytes=MAX_POLYGON_BYTES)
        return self._made(slide_id, data)

    def _read_blocking(self, slide_id: str) -> Outline:
        # Samples are drawn on the threads of the package's loop: one that waited for the loop could wait for itself.
        return self._made(slide_id, self._folder.read_url(self._open(slide_id).url))

    def _made(self, slide_id: str, data: bytes) -> Outline:
        with self._damage_told(slide_id):
            outline = Outline.from_wkb(data)
        return self._kept.put(slide_id, outline, outline.size_bytes)

    @contextmanager
    def _damage_told(self, slide_id: str) -> Iterator[None]:
        try:
            yield
        except (shapely.errors.ShapelyError, NotImplementedError, ValueError) as error:
            raise CatalogError(
                f"{self._folder.shown_url}: the foreground of {slide_id} is damaged ({error}); run `online-patching"
                " foreground` again"
            ) from error
