"""How does a user read a whole cohort?

``Catalog.open(url)`` reads one table; a slide's header, its byte ranges and its polygons are read when they are used
and only as far as they are used, so memory does not grow with the number of tiles in the cohort.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import shapely

from online_patching import loop
from online_patching.catalog_files import CatalogFolder
from online_patching.decode import Pixels
from online_patching.errors import CorruptTileError
from online_patching.formats.header import SlideHeader
from online_patching.geometry import LevelPolicy
from online_patching.health import HealthLog, SlideHealth
from online_patching.outline import Outline
from online_patching.plan import DecodeMode, PatchRequest
from online_patching.reader import read_windows
from online_patching.slide import Slide, check_outs, patch_windows
from online_patching.slide_row import SlideRow
from online_patching.slide_table import SlideTable
from online_patching.slides_in_use import Handles, Outlines
from online_patching.tile_source import SlideHandle

if TYPE_CHECKING:
    import pyarrow as pa
    import zarr

    from online_patching.zarr_view import SlideEntry


class Catalog:
    """A cohort of indexed slides; open it with ``Catalog.open``.

    Attributes:
        url: Folder of the catalog.
        shown_url: The same without credentials, for messages.
        rows: The slide table: a sequence of rows in order of their ids.
        folder: Reads the catalog's files.
    """

    def __init__(
        self, folder: CatalogFolder, rows: SlideTable, *, slide_storage_options: Mapping[str, Any] | None = None
    ) -> None:
        self.url = folder.url
        self.shown_url = folder.shown_url
        self.rows = rows
        self.folder = folder
        self._slide_options = dict(folder.storage_options if slide_storage_options is None else slide_storage_options)
        self._fingerprint: str | None = None
        self._health = HealthLog()
        self._handles = Handles(folder, rows, self._slide_options)
        self._outlines = Outlines(folder, rows)

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
        return cls(folder, folder.read_table(), slide_storage_options=slide_storage_options)

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": (self.url, self.folder.storage_options), "rows": self.rows, "options": self._slide_options}

    def __setstate__(self, state: dict[str, Any]) -> None:
        # Connections and caches belong to a process: the copy makes its own.
        url, options = state["folder"]
        Catalog.__init__(self, CatalogFolder(url, options), state["rows"], slide_storage_options=state["options"])

    def __len__(self) -> int:
        return len(self.rows)

    def __contains__(self, slide_id: object) -> bool:
        return isinstance(slide_id, str) and self.rows.number_of(slide_id) is not None

    def __iter__(self) -> Iterator[SlideRow]:
        return iter(self.rows)

    def __repr__(self) -> str:
        return f"<Catalog {self.shown_url}: {len(self)} slides>"

    def table(self) -> pa.Table:
        """The slide table as an Arrow table (``.to_pandas()`` makes it a data frame): the user's columns come last."""
        return self.rows.arrow

    def row(self, slide_id: str) -> SlideRow:
        """The row of one slide.

        Raises:
            CatalogError: No such slide.
        """
        return self.rows[self.rows.known_number(slide_id, self.shown_url)]

    def values(self, slide_id: str, columns: Sequence[str]) -> dict[str, Any]:
        """Some columns of one slide, the catalog's own or the user's.

        Raises:
            CatalogError: No such slide.
        """
        number = self.rows.known_number(slide_id, self.shown_url)
        return {name: self.rows.value(number, name) for name in columns}

    def fingerprint(self) -> str:
        """Short hash of what determines a stream: ids, versions, resolutions and foregrounds, in order."""
        if self._fingerprint is None:
            self._fingerprint = self.rows.fingerprint()
        return self._fingerprint

    def slide(self, slide_id: str) -> Slide:
        """One slide, without reading the headers of its file again."""
        return Slide(self.handle(slide_id), slide_id=slide_id, url=self.row(slide_id).url, health=self._health)

    def ids(self) -> list[str]:
        """Ids of all slides, in order."""
        ids: list[str] = self.rows.arrow["id"].to_pylist()
        return ids

    def zarr(self) -> zarr.Group:
        """The whole cohort as one lazy, read-only Zarr group: ``catalog.zarr()["a"]["0"][2000:2256, 1000:1256]``.

        A slide is looked up by its id; one with ``/``, ``%`` or a backslash is percent-quoted (``a/b`` is ``a%2Fb``).
        Levels are as in ``Slide.zarr``. Nothing but the slide table is read until pixels are.
        """
        # Costs more than the rest of the package to import.
        from online_patching.zarr_view import ZarrSlides, open_group

        return open_group(ZarrSlides(self.shown_url, self.ids, self._zarr_entry, self.handle))

    def _zarr_entry(self, slide_id: str) -> SlideEntry | None:
        from online_patching.zarr_view import SlideEntry

        if slide_id not in self:
            return None
        row = self.row(slide_id)
        return SlideEntry(row.id, row.url, self.header(slide_id))

    def header(self, slide_id: str) -> SlideHeader:
        """Levels, encodings, properties and resolution of one slide."""
        return self.handle(slide_id).header

    def handle(self, slide_id: str) -> SlideHandle:
        """What the reader needs of a slide; read from the catalog once, and kept while it is in use.

        Raises:
            CatalogError: No such slide, or its tile table is damaged or newer than this table.
            StorageError: The tile table cannot be read.
        """
        return self._handles.get(slide_id)

    async def ahandle(self, slide_id: str) -> SlideHandle:
        """Async twin of ``handle``."""
        return (await self.ahandles([slide_id]))[slide_id]

    async def ahandles(self, slide_ids: Sequence[str]) -> dict[str, SlideHandle]:
        """The handles of many slides by their ids, read at the same time."""
        return await loop.on_loop(self.read_handles(slide_ids))

    async def read_handles(self, slide_ids: Sequence[str]) -> dict[str, SlideHandle]:
        """``ahandles`` on the package's own loop."""
        return await self._handles.get_many(slide_ids)

    def foreground(self, slide_id: str) -> shapely.Geometry:
        """Foreground of a slide in level-0 pixels, read anew at every call.

        Raises:
            CatalogError: It was not computed yet, or is damaged.
        """
        return self._outlines.geometry(slide_id)

    async def aforeground(self, slide_id: str) -> shapely.Geometry:
        """Async twin of ``foreground``."""
        return await asyncio.to_thread(self.foreground, slide_id)

    def outline(self, slide_id: str) -> Outline:
        """The foreground as a sampler asks it; read once, and kept while the slide is in use.

        Raises:
            CatalogError: It was not computed yet, or is damaged.
        """
        return self._outlines.get(slide_id)

    async def read_outlines(self, slide_ids: Sequence[str]) -> dict[str, Outline]:
        """Read the outlines of many slides at once, on the package's own loop, so that ``outline`` has them."""
        return await self._outlines.get_many(slide_ids)

    def health(self) -> dict[str, SlideHealth]:
        """What went otherwise than asked since this catalog was opened, by id of the slides where anything did.

        Corrupt tiles, tiles that were never stored, patches that reach outside of the slide or had to be enlarged.
        """
        return self._health.report()

    def read_patches(
        self,
        requests: Sequence[PatchRequest],
        *,
        policy: LevelPolicy = "finer",
        decode: DecodeMode = "exact",
        outs: Sequence[Pixels] | None = None,
    ) -> list[Pixels]:
        """Patches over many slides, read together.

        Args:
            requests: Any number, of any slides, sizes and magnifications.
            policy: Which stored level is read; see ``geometry.choose_level``.
            decode: ``fast`` lets tiles be decoded at reduced scale; see ``Slide.read_patches``.
            outs: Where the patches go, one uint8 (size_px, size_px, 3) C-contiguous array a request (or one array of
                them all); None: new ones.

        Returns:
            One uint8 (size_px, size_px, 3) array a request, in order.

        Raises:
            CorruptTileError: A tile that is needed does not decode.
            PatchingError: See ``Slide.read_patches``.
        """
        return loop.run(self._read_all(requests, policy, decode, outs))

    async def aread_patches(
        self,
        requests: Sequence[PatchRequest],
        *,
        policy: LevelPolicy = "finer",
        decode: DecodeMode = "exact",
        outs: Sequence[Pixels] | None = None,
    ) -> list[Pixels]:
        """Async twin of ``read_patches``."""
        return await loop.on_loop(self._read_all(requests, policy, decode, outs))

    async def _read_all(
        self,
        requests: Sequence[PatchRequest],
        policy: LevelPolicy,
        decode: DecodeMode,
        outs: Sequence[Pixels] | None,
    ) -> list[Pixels]:
        pixels: list[Pixels] = []
        for answer in await self.read_or_report(requests, policy=policy, decode=decode, outs=outs):
            if isinstance(answer, CorruptTileError):
                raise answer
            pixels.append(answer)
        return pixels

    async def read_or_report(
        self,
        requests: Sequence[PatchRequest],
        *,
        policy: LevelPolicy = "finer",
        decode: DecodeMode = "exact",
        enlarge: bool = False,
        outs: Sequence[Pixels] | None = None,
    ) -> list[Pixels | CorruptTileError]:
        """Like ``aread_patches`` on the package's own loop, with the error in the place of a patch it spoils."""
        if outs is not None:
            check_outs(requests, outs)
        handles = await self.read_handles(list(dict.fromkeys(request.slide_id for request in requests)))
        windows = patch_windows(requests, handles, self._health, policy, decode, enlarge=enlarge, outs=outs)
        return await read_windows(windows, self._health)
