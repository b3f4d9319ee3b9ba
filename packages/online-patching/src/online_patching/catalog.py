"""How does a user read a whole cohort?

``Catalog.open(url)`` reads one table; slides, their byte ranges and their polygons are read when they are used and only
as far as they are used, so memory does not grow with the number of tiles in the cohort.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import shapely

from online_patching import loop
from online_patching.bytesource import ByteRange, ByteSource
from online_patching.cache import BoundedCache
from online_patching.catalog_files import FOREGROUND, TILE_TABLE, CatalogFolder, SlideRow
from online_patching.decode import Pixels
from online_patching.errors import CatalogError, CorruptTileError
from online_patching.formats.header import TileRanges
from online_patching.geometry import LevelPolicy
from online_patching.plan import PatchRequest, patch_window
from online_patching.reader import SlideHandle, WindowRequest, open_handle, read_windows
from online_patching.slide import Slide
from online_patching.storage import Store, open_object
from online_patching.tiletable import (
    BLOCK_TILES,
    HEAD_BYTES,
    TileTableDirectory,
    decode_block,
    decode_directory,
    directory_length,
)

if TYPE_CHECKING:
    import zarr

    from online_patching.zarr_view import SlideEntry

# Slides whose directory and blocks, or polygon, are kept; a stream touches far fewer at a time.
KEPT_SLIDES = 512
KEPT_BLOCKS = 64


class StoredLookup:
    """Byte ranges of a slide's tiles, read from its tile table by blocks."""

    def __init__(self, source: ByteSource) -> None:
        self._source = source
        self._directory: TileTableDirectory | None = None
        self._blocks: OrderedDict[tuple[int, int], TileRanges] = OrderedDict()

    async def ranges(self, level: int, tiles: Sequence[int]) -> list[ByteRange]:
        """(start, length) of each tile."""
        directory = await self._read_directory()
        wanted = sorted({tile // BLOCK_TILES for tile in tiles})
        blocks = {block: self._blocks[level, block] for block in wanted if (level, block) in self._blocks}
        missing = [block for block in wanted if block not in blocks]
        if missing:
            bodies = await self._source.read_ranges([directory.block_range(level, block) for block in missing])
            for block, body in zip(missing, bodies, strict=True):
                blocks[block] = self._blocks[level, block] = decode_block(body, self._source.url)
            while len(self._blocks) > KEPT_BLOCKS:
                self._blocks.popitem(last=False)
        places = [(blocks[tile // BLOCK_TILES], tile % BLOCK_TILES) for tile in tiles]
        return [(int(block.offset[k]), int(block.length[k])) for block, k in places]

    async def _read_directory(self) -> TileTableDirectory:
        if self._directory is None:
            name = self._source.url
            (head,) = await self._source.read_ranges([(0, HEAD_BYTES)])
            levels, length = directory_length(head, name)
            (packed,) = await self._source.read_ranges([(HEAD_BYTES, length)])
            self._directory = decode_directory(packed, levels, name)
        return self._directory


class Catalog:
    """A cohort of indexed slides; open it with ``Catalog.open``.

    Attributes:
        url: Folder of the catalog.
        shown_url: The same without credentials, for messages.
        rows: One row a slide, in order of their ids.
    """

    def __init__(
        self, folder: CatalogFolder, rows: Sequence[SlideRow], *, slide_storage_options: Mapping[str, Any] | None = None
    ) -> None:
        self.url = folder.url
        self.shown_url = folder.shown_url
        self.rows = tuple(rows)
        self._folder = folder
        self._slide_options = dict(folder.storage_options if slide_storage_options is None else slide_storage_options)
        self._numbers = {row.id: k for k, row in enumerate(self.rows)}
        self._handles: BoundedCache[str, SlideHandle] = BoundedCache(KEPT_SLIDES)
        self._polygons: BoundedCache[str, shapely.Geometry] = BoundedCache(KEPT_SLIDES)

    @classmethod
    def open(
        cls,
        url: str,
        *,
        storage_options: Mapping[str, Any] | None = None,
        slide_storage_options: Mapping[str, Any] | None = None,
    ) -> Catalog:
        """Open a catalog folder.

        Args:
            url: Local path or URL of the folder.
            storage_options: Options for the catalog's store, in fsspec's dialect.
            slide_storage_options: Options for the slides' store; the same where not given.

        Raises:
            CatalogError: No catalog there, or one of a newer format.
            StorageError: The store cannot be reached.
        """
        folder = CatalogFolder(str(url), storage_options)
        return cls(folder, folder.read_rows(), slide_storage_options=slide_storage_options)

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": (self.url, self._folder.storage_options), "rows": self.rows, "options": self._slide_options}

    def __setstate__(self, state: dict[str, Any]) -> None:
        # Connections and caches belong to a process: the copy makes its own.
        url, options = state["folder"]
        Catalog.__init__(self, CatalogFolder(url, options), state["rows"], slide_storage_options=state["options"])

    def __len__(self) -> int:
        return len(self.rows)

    def __contains__(self, slide_id: object) -> bool:
        return slide_id in self._numbers

    def __iter__(self) -> Iterator[SlideRow]:
        return iter(self.rows)

    def __repr__(self) -> str:
        return f"<Catalog {self.shown_url}: {len(self)} slides>"

    def row(self, slide_id: str) -> SlideRow:
        """The row of one slide.

        Raises:
            CatalogError: No such slide.
        """
        if slide_id not in self._numbers:
            known = ", ".join(row.id for row in self.rows[:5]) + (", ..." if len(self) > 5 else "")
            raise CatalogError(f"{self.shown_url}: no slide {slide_id!r} among {len(self)} ({known})")
        return self.rows[self._numbers[slide_id]]

    def fingerprint(self) -> str:
        """Short hash of what determines a stream: ids, versions, resolutions and foreground areas, in order."""
        digest = hashlib.sha256()
        for row in self.rows:
            facts = (row.id, row.info.size, row.info.version, row.header.mpp, row.foreground_area_level0_px2)
            digest.update(repr(facts).encode())
        return digest.hexdigest()[:16]

    def slide(self, slide_id: str) -> Slide:
        """One slide, without reading its headers again."""
        return Slide(self.handle(slide_id), slide_id=slide_id, url=self.row(slide_id).url)

    def zarr(self) -> zarr.Group:
        """The whole cohort as one lazy, read-only Zarr group: ``catalog.zarr()["a"]["0"][2000:2256, 1000:1256]``.

        A slide is looked up by its id; one with ``/``, ``%`` or a backslash is percent-quoted (``a/b`` is ``a%2Fb``).
        Levels are as in ``Slide.zarr``. Nothing but the slide table is read until pixels are.
        """
        # Costs more than the rest of the package to import.
        from online_patching.zarr_view import ZarrSlides, open_group

        return open_group(ZarrSlides(self.shown_url, self._slide_ids, self._zarr_entry, self.handle))

    def _slide_ids(self) -> list[str]:
        return [row.id for row in self]

    def _zarr_entry(self, slide_id: str) -> SlideEntry | None:
        from online_patching.zarr_view import SlideEntry

        if slide_id not in self:
            return None
        row = self.row(slide_id)
        return SlideEntry(row.id, row.url, row.header)

    def handle(self, slide_id: str) -> SlideHandle:
        """What the reader needs of a slide; kept while it is in use."""
        return self._handles.get(slide_id, lambda: self._open_handle(self.row(slide_id)))

    def _open_handle(self, row: SlideRow) -> SlideHandle:
        table = open_object(self._folder.slide_url(row.id, TILE_TABLE), self._folder.storage_options)
        return open_handle(Store(self._slide_options), row.objects, row.header, StoredLookup(table))

    def foreground(self, slide_id: str) -> shapely.Geometry:
        """Foreground of a slide in level-0 pixels, prepared for fast tests; read once while in use.

        Raises:
            CatalogError: It was not computed yet.
        """
        return self._polygons.get(slide_id, lambda: self._read_foreground(self.row(slide_id)))

    def _read_foreground(self, row: SlideRow) -> shapely.Geometry:
        if row.foreground_area_level0_px2 is None:
            raise CatalogError(
                f"{self.shown_url}: slide {row.id} has no foreground yet; run `online-patching foreground"
                f" --catalog {self.shown_url}`"
            )
        try:
            polygon = shapely.from_wkb(self._folder.read_slide_file(row.id, FOREGROUND))
        except shapely.errors.ShapelyError as error:
            raise CatalogError(f"{self.shown_url}: the foreground of {row.id} is damaged ({error})") from error
        shapely.prepare(polygon)
        return polygon

    def read_patches(self, requests: Sequence[PatchRequest], *, policy: LevelPolicy = "finer") -> list[Pixels]:
        """Patches over many slides, read together.

        Args:
            requests: Any number, of any slides, sizes and magnifications.
            policy: Which stored level is read; see ``geometry.choose_level``.

        Returns:
            One uint8 (size_px, size_px, 3) array a request, in order.

        Raises:
            CorruptTileError: A tile that is needed does not decode.
            PatchingError: See ``Slide.read_patches``.
        """
        return loop.run(self._read_all(requests, policy))

    async def aread_patches(self, requests: Sequence[PatchRequest], *, policy: LevelPolicy = "finer") -> list[Pixels]:
        """Async twin of ``read_patches``."""
        return await loop.on_loop(self._read_all(requests, policy))

    async def _read_all(self, requests: Sequence[PatchRequest], policy: LevelPolicy) -> list[Pixels]:
        pixels: list[Pixels] = []
        for answer in await self.read_or_report(requests, policy=policy):
            if isinstance(answer, CorruptTileError):
                raise answer
            pixels.append(answer)
        return pixels

    async def read_or_report(
        self, requests: Sequence[PatchRequest], *, policy: LevelPolicy = "finer", enlarge: bool = False
    ) -> list[Pixels | CorruptTileError]:
        """Like ``aread_patches`` on the package's own loop, with the error in the place of a patch it spoils."""
        windows = []
        for request in requests:
            handle = self.handle(request.slide_id)
            window = patch_window(request, handle.header, policy=policy, enlarge=enlarge)
            windows.append(WindowRequest(handle, window, request.size_px))
        return await read_windows(windows)
