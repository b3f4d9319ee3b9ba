"""How does a folder of slides become a catalog, and a catalog get its foreground?

Both jobs work on several slides at a time, keep what is done if they are stopped, and redo only what is new or changed
when they are run again. A slide that cannot be read does not stop the others: it is reported, and its reason returned.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import Any, TypeVar
from urllib.parse import unquote, urlsplit

import shapely
from tqdm import tqdm

from online_patching import loop
from online_patching.bytesource import local_path, shown_url, split_reference_url
from online_patching.catalog import Catalog
from online_patching.catalog_files import FOREGROUND, TILE_TABLE, CatalogFolder, Scalar, SlideRow, with_mpp
from online_patching.decode import Pixels
from online_patching.errors import CatalogError, NotFoundError, PatchingError
from online_patching.foreground import mask_to_polygon, tissue_mask
from online_patching.index import index_slide
from online_patching.slide import Slide
from online_patching.storage import Store
from online_patching.thumbnail import thumbnail_of
from online_patching.tiletable import encode_tile_table

# Indexing waits for the store most of the time; foreground decodes and so gains nothing beyond the cores.
INDEX_THREADS = 16
FOREGROUND_THREADS = 4

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Failure:
    """A slide that a job left out, and why, in one line."""

    slide: str
    reason: str


@dataclass(frozen=True, slots=True)
class JobReport:
    """What a job did.

    Attributes:
        done: Slides worked on now.
        kept: Slides that were up to date.
        failures: Slides left out.
        requests: Range requests made for headers.
        bytes_read: Bytes of headers received.
    """

    done: int
    kept: int
    failures: tuple[Failure, ...]
    requests: int = 0
    bytes_read: int = 0


def slide_id_of(url: str) -> str:
    """The id a slide gets: its file name without suffix, or what picks it among references (``refs.json#id``)."""
    place, slide = split_reference_url(url) or (url, "")
    if slide:
        return unquote(slide)
    return PurePosixPath(urlsplit(place).path if local_path(place) is None else place).stem


def index_cohort(
    slide_urls: Iterable[str],
    catalog_url: str,
    *,
    storage_options: Mapping[str, Any] | None = None,
    slide_storage_options: Mapping[str, Any] | None = None,
    columns: Mapping[str, Mapping[str, Scalar]] | None = None,
    mpp: float | Mapping[str, float] | None = None,
    progress: bool = True,
) -> JobReport:
    """Index slides into a catalog folder.

    Args:
        slide_urls: URLs of the slides; their file names must differ.
        catalog_url: Folder of the catalog; slides it already holds stay.
        storage_options: Options for the catalog's store.
        slide_storage_options: Options for the slides' store; the same where not given.
        columns: The user's columns by slide id; a column ``mpp`` sets the resolution of level 0.
        mpp: um per pixel of level 0: one value for all slides that state none, or values by slide id.
        progress: Show a progress bar on stderr.

    Raises:
        CatalogError: Two slides would get the same id, or the catalog is damaged.
    """
    urls = _by_id(slide_urls)
    folder = CatalogFolder(catalog_url, storage_options)
    known = {row.id: row for row in _known_rows(folder)}
    options = folder.storage_options if slide_storage_options is None else dict(slide_storage_options)
    given = dict(columns or {})
    work = _IndexWork(folder, options, given, mpp)
    results, failures = _run_all(
        {slide_id: _bound(work.index, slide_id, url, known.get(slide_id)) for slide_id, url in urls.items()},
        stage="index slides",
        threads=INDEX_THREADS,
        progress=progress,
    )
    rows = known | {slide_id: result.row for slide_id, result in results.items()}
    if rows:
        folder.write_rows(rows.values())
    done = [result for result in results.values() if result.requests]
    return JobReport(
        done=len(done),
        kept=len(results) - len(done),
        failures=failures,
        requests=sum(result.requests for result in done),
        bytes_read=sum(result.bytes_read for result in done),
    )


def compute_foreground(
    catalog_url: str,
    *,
    storage_options: Mapping[str, Any] | None = None,
    slide_storage_options: Mapping[str, Any] | None = None,
    redo: bool = False,
    mask_of: Callable[[Pixels], Any] = tissue_mask,
    progress: bool = True,
) -> JobReport:
    """Compute the foreground of every slide of a catalog that has none.

    Args:
        catalog_url: Folder of the catalog.
        storage_options: Options for the catalog's store.
        slide_storage_options: Options for the slides' store; the same where not given.
        redo: Compute it anew for all slides.
        mask_of: Thumbnail uint8 (H, W, 3) to mask bool (H, W).
        progress: Show a progress bar on stderr.
    """
    catalog = Catalog.open(catalog_url, storage_options=storage_options, slide_storage_options=slide_storage_options)
    folder = CatalogFolder(catalog_url, storage_options)
    todo = [row for row in catalog if redo or row.foreground_area_level0_px2 is None]
    results, failures = _run_all(
        {row.id: _bound(_foreground_of, folder, catalog.slide(row.id), row, mask_of) for row in todo},
        stage="find foreground",
        threads=FOREGROUND_THREADS,
        progress=progress,
    )
    if results:
        folder.write_rows(results.get(row.id, row) for row in catalog)
    return JobReport(done=len(results), kept=len(catalog) - len(todo), failures=failures)


def _known_rows(folder: CatalogFolder) -> list[SlideRow]:
    """Rows of the catalog, none where there is no catalog yet; a damaged or newer one is not written over."""
    try:
        return folder.read_rows()
    except CatalogError as error:
        if isinstance(error.__cause__, NotFoundError):
            return []
        raise


@dataclass(frozen=True, slots=True)
class _Indexed:
    row: SlideRow
    requests: int
    bytes_read: int


@dataclass(frozen=True, slots=True)
class _IndexWork:
    """What indexing one slide needs beside the slide."""

    folder: CatalogFolder
    options: Mapping[str, Any]
    columns: Mapping[str, Mapping[str, Scalar]]
    mpp: float | Mapping[str, float] | None

    def index(self, slide_id: str, url: str, known: SlideRow | None) -> _Indexed:
        store = Store(self.options)
        row = known or self.folder.read_slide_row(slide_id)
        if row is not None and row.url == url and loop.run(_unchanged(row, store)):
            updated = self._with_user_facts(row)
            if updated != row:
                self.folder.write_slide_row(updated)
            return _Indexed(updated, 0, 0)
        found = loop.run(index_slide(url, store))
        row = self._with_user_facts(SlideRow(slide_id, url, found.objects, found.header))
        self.folder.write_slide_file(slide_id, TILE_TABLE, encode_tile_table(found.tiles))
        self.folder.write_slide_row(row)
        return _Indexed(row, found.requests, found.bytes_read)

    def _with_user_facts(self, row: SlideRow) -> SlideRow:
        columns = dict(self.columns.get(row.id, {}))
        stated = columns.pop("mpp", None)
        if columns:
            row = replace(row, columns={**row.columns, **columns})
        if isinstance(self.mpp, Mapping):
            stated = self.mpp.get(row.id, stated)
        elif row.header.mpp is None and self.mpp is not None:
            stated = stated if stated is not None else self.mpp
        return row if stated is None else with_mpp(row, _positive_mpp(stated, row.id))


async def _unchanged(row: SlideRow, store: Store) -> bool:
    return all([await store.open(each.url).info() == each.info for each in row.objects])


def _positive_mpp(value: Scalar, slide_id: str) -> float:
    try:
        mpp = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        mpp = 0.0
    if not 0 < mpp < 1000:
        raise CatalogError(f"slide {slide_id}: mpp {value!r} given, allowed a number above 0 (um per pixel)")
    return mpp


def _by_id(urls: Iterable[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for url in urls:
        slide_id = slide_id_of(url)
        if found.setdefault(slide_id, url) != url:
            raise CatalogError(
                f"slide id {slide_id!r} is given twice ({shown_url(found[slide_id])} and {shown_url(url)}); rename one"
                " of the files or index them into two catalogs"
            )
    return found


def _foreground_of(folder: CatalogFolder, slide: Slide, row: SlideRow, mask_of: Callable[[Pixels], Any]) -> SlideRow:
    base = row.header.levels[0]
    polygon = mask_to_polygon(
        mask_of(thumbnail_of(slide)), width_level0_px=base.width_px, height_level0_px=base.height_px
    )
    folder.write_slide_file(row.id, FOREGROUND, shapely.to_wkb(polygon))
    updated = replace(row, foreground_area_level0_px2=float(polygon.area))
    folder.write_slide_row(updated)
    return updated


def _bound(function: Callable[..., T], *args: Any) -> Callable[[], T]:
    return lambda: function(*args)


def _run_all(
    work: Mapping[str, Callable[[], T]], *, stage: str, threads: int, progress: bool
) -> tuple[dict[str, T], tuple[Failure, ...]]:
    results: dict[str, T] = {}
    failures: list[Failure] = []
    bar = tqdm(total=len(work), desc=stage, unit="slide", disable=not progress)
    with bar, ThreadPoolExecutor(threads) as pool:
        futures = {pool.submit(task): slide_id for slide_id, task in work.items()}
        for future in as_completed(futures):
            slide_id = futures[future]
            try:
                results[slide_id] = future.result()
            except PatchingError as error:
                failures.append(Failure(slide_id, str(error)))
            bar.update()
    return results, tuple(sorted(failures, key=lambda failure: failure.slide))


def failed_lines(failures: Sequence[Failure]) -> list[str]:
    """One line a slide that was left out."""
    return [f"left out {failure.slide}: {failure.reason}" for failure in failures]
