"""How does a folder of slides become a catalog?

Like the job of the foreground (``foreground_job``), it works on several slides at a time, keeps what is done if it is
stopped, and redoes only what is new or changed when it is run again. A slide that cannot be read does not stop the
others: it is reported, and its reason returned.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from online_patching import loop
from online_patching.bytesource import PinnedObject, shown_url
from online_patching.catalog_files import CatalogFolder
from online_patching.errors import NotFoundError, PatchingError
from online_patching.failures import Failure, JobReport, read_failures, write_failures
from online_patching.foreground_job import compute_foreground
from online_patching.index_job import IndexJob, IndexOptions, vanished_slides
from online_patching.index_plan import IndexPlan, plan_index
from online_patching.metadata import Metadata, absolute_url
from online_patching.slide_row import Scalar
from online_patching.slide_table import SlideTable, empty_table
from online_patching.storage import Store

__all__ = ["INDEX_WORKERS", "JobReport", "compute_foreground", "index_cohort"]

# Indexing waits for the store most of the time.
INDEX_WORKERS = 16


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
