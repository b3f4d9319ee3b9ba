"""How does a folder of slides become a catalog, and a catalog get its foreground?

Both jobs work on several slides at a time, keep what is done if they are stopped, and redo only what is new or changed
when they are run again. A slide that cannot be read does not stop the others: it is reported, and its reason returned.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import shapely
from tqdm import tqdm

from online_patching import loop
from online_patching.bytesource import PinnedObject, shown_url
from online_patching.catalog import Catalog
from online_patching.catalog_files import FOREGROUND, CatalogFolder
from online_patching.decode import Pixels
from online_patching.errors import NotFoundError, PatchingError
from online_patching.failures import Failure, failure_of, read_failures, write_failures
from online_patching.foreground import mask_to_polygon, tissue_mask
from online_patching.index_job import IndexJob, IndexOptions, vanished_slides
from online_patching.index_plan import IndexPlan, plan_index
from online_patching.metadata import Metadata, absolute_url
from online_patching.slide_row import Scalar, SlideRow
from online_patching.slide_table import SlideTable, empty_table
from online_patching.storage import Store
from online_patching.thumbnail import thumbnail_of

# Indexing waits for the store most of the time; foreground decodes and so gains nothing beyond the cores.
INDEX_WORKERS = 16
FOREGROUND_THREADS = 4


@dataclass(frozen=True, slots=True)
class JobReport:
    """What a job did.

    Attributes:
        done: Slides worked on now.
        kept: Slides that were up to date.
        failures: Slides left out.
        requests: Range requests made for headers.
        bytes_read: Bytes of headers received.
        notes: What else the user should know, one line each.
    """

    done: int
    kept: int
    failures: tuple[Failure, ...]
    requests: int = 0
    bytes_read: int = 0
    notes: tuple[str, ...] = ()


def index_cohort(
    slides: Iterable[str | PinnedObject],
    catalog_url: str,
    *,
    storage_options: Mapping[str, Any] | None = None,
    slide_storage_options: Mapping[str, Any] | None = None,
    metadata: Metadata | None = None,
    columns: Mapping[str, Mapping[str, Scalar]] | None = None,
    mpp: float | Mapping[str, float] | None = None,
    assume_mpp_from_magnification: bool = False,
    experimental: bool = False,
    workers: int = INDEX_WORKERS,
    listed_folders: Sequence[str] = (),
    progress: bool = True,
) -> JobReport:
    """Index slides into a catalog folder.

    Running it again does only what is new, changed or failed before; a run that was stopped, even killed, is finished
    by the next one, with the same files as an undisturbed run.

    Args:
        slides: URLs of the slides, or what a listing told of them (then nothing is asked about unchanged ones).
        catalog_url: Folder of the catalog; slides it already holds stay.
        storage_options: Options for the catalog's store.
        slide_storage_options: Options for the slides' store; the same where not given.
        metadata: The user's table (``read_metadata``); a column ``mpp`` sets the resolution of level 0.
        columns: The user's columns by slide id; they win over ``metadata``.
        mpp: um per pixel of level 0: one value for all slides that state none, or values by slide id.
        assume_mpp_from_magnification: Take 10 / magnification (40x: 0.25) where nothing states the mpp; the column
            ``mpp_source`` then says ``assumed``.
        experimental: Index experimental formats as well.
        workers: Slides that are worked on at a time.
        listed_folders: Folders whose slides are all in ``slides``: slides of the catalog that lay below them and are
            no longer among ``slides`` are reported.
        progress: Show a progress bar on stderr.

    Raises:
        CatalogError: The catalog is damaged, or of another format.
        StorageError: The catalog's folder cannot be read or written.
        ValueError: Arguments out of range.
    """
    if workers < 1:
        raise ValueError(f"workers: got {workers}, allowed at least 1")
    folder = CatalogFolder(absolute_url(catalog_url), storage_options)
    table, is_new = _start(folder)
    plan = plan_index(slides, table, metadata=metadata, columns=columns)
    store = Store(folder.storage_options if slide_storage_options is None else slide_storage_options)
    options = IndexOptions(mpp, assume_mpp_from_magnification, experimental)
    job = IndexJob(folder, store, table, options, is_new=is_new)
    loop.run(job.run(plan, workers=workers, progress=progress))
    gone = vanished_slides(job.table, plan.tasks, [absolute_url(url) for url in listed_folders])
    failures = sorted({*plan.failures, *job.failures, *gone})
    _write_failures(folder, failures, plan)
    return JobReport(job.done, job.kept, tuple(failures), job.requests, job.bytes_read, plan.notes)


def _start(folder: CatalogFolder) -> tuple[SlideTable, bool]:
    """The catalog's table so far, and whether the catalog is new; a folder that is none yet becomes one."""
    if not folder.exists():
        folder.create()
        return empty_table(), True
    folder.remove_partial_files()
    try:
        return folder.read_table(), False
    except PatchingError as error:
        if isinstance(error.__cause__, NotFoundError):
            return empty_table(), False
        raise


def _write_failures(folder: CatalogFolder, failures: Sequence[Failure], plan: IndexPlan) -> None:
    """Keep the failures of earlier runs, but for slides that were given now, by their id or their URL."""
    ids = {task.slide_id for task in plan.tasks}
    urls = {shown_url(task.url) for task in plan.tasks} | {failure.url for failure in failures}
    earlier = [each for each in read_failures(folder) if each.slide not in ids and each.url not in urls]
    write_failures(folder, [*earlier, *failures])
    folder.remove_partial_files()


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
    folder = CatalogFolder(absolute_url(catalog_url), storage_options)
    catalog = Catalog.open(folder.url, storage_options=storage_options, slide_storage_options=slide_storage_options)
    folder.remove_partial_files()
    areas = catalog.rows.numbers("foreground_area_level0_px2")
    todo = [int(number) for number in np.flatnonzero(np.isnan(areas) | redo)]
    found: list[SlideRow] = []
    failures: list[Failure] = []
    bar = tqdm(total=len(todo), desc="find foreground", unit="slide", disable=not progress)
    with bar, ThreadPoolExecutor(FOREGROUND_THREADS) as pool:
        futures = {pool.submit(_foreground_of, folder, catalog, number, mask_of, redo=redo): number for number in todo}
        for future in as_completed(futures):
            try:
                found.append(future.result())
            except Exception as error:
                # One slide's fault, also one that nobody foresaw, must not stop the others.
                row = catalog.rows[futures[future]]
                failures.append(failure_of(row.id, row.url, error))
            bar.update()
    folder.write_table(catalog.rows.updated(found))
    folder.remove_partial_files()
    return JobReport(done=len(found), kept=len(catalog) - len(todo), failures=tuple(sorted(failures)))


def _foreground_of(
    folder: CatalogFolder, catalog: Catalog, number: int, mask_of: Callable[[Pixels], Any], *, redo: bool
) -> SlideRow:
    row = catalog.rows[number]
    done = None if redo else folder.read_slide_row(row.id)
    if done is not None and done.foreground_area_level0_px2 is not None and done.info == row.info:
        # By a run that was stopped before it wrote the table.
        return replace(row, foreground_area_level0_px2=done.foreground_area_level0_px2)
    polygon = mask_to_polygon(
        mask_of(thumbnail_of(catalog.slide(row.id))), width_level0_px=row.width_px, height_level0_px=row.height_px
    )
    folder.write_slide_file(row, FOREGROUND, shapely.to_wkb(polygon))
    updated = replace(row, foreground_area_level0_px2=float(polygon.area))
    folder.write_slide_row(updated)
    return updated
