"""How does every slide of a catalog get its foreground?

A slide at a time on each of a few threads: its thumbnail, the mask that a method finds on it, the polygon of the mask,
written as a file of the slide; then its row, the mark that it is done; in the end the table. What is done is kept if
the job is stopped, and taken up by the next of the same method. A slide without foreground (bare glass, nothing but
pen) is left out of every stream: it is reported by each run, as is one that cannot be read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import shapely

from online_patching.bytesource import shown_url
from online_patching.catalog import Catalog
from online_patching.catalog_files import FOREGROUND, CatalogFolder
from online_patching.decode import Pixels
from online_patching.failures import Failure, JobReport, failure_of
from online_patching.foreground import FoundPolygon, PolygonRules, polygon_of_mask
from online_patching.metadata import absolute_url
from online_patching.progress import progress_bar
from online_patching.slide_row import SlideRow
from online_patching.slide_table import SlideTable
from online_patching.thumbnail import MAX_BYTES, Thumbnail, read_thumbnail
from online_patching.tissue import METHODS, recorded_name, tissue_finder

MaskFinder = Callable[[Pixels, float | None], npt.NDArray[np.bool_]]
"""(thumbnail uint8 (H, W, 3), its um per pixel or None) -> bool (H, W), True on tissue; threads may share it."""

# It decodes most of the time, and so gains nothing beyond the cores.
FOREGROUND_THREADS = 4
EMPTY = "EmptyForeground"


@dataclass(frozen=True, slots=True)
class SlideResult:
    """What came of one slide.

    Attributes:
        row: Its row with the area of the foreground.
        why_empty: Why it has no foreground; None where it has.
        note: What else the user should know.
        bytes_read: Bytes of tiles read for it.
    """

    row: SlideRow
    why_empty: str | None = None
    note: str | None = None
    bytes_read: int = 0


def compute_foreground(
    catalog_url: str,
    *,
    storage_options: Mapping[str, Any] | None = None,
    slide_storage_options: Mapping[str, Any] | None = None,
    redo: bool = False,
    method: str | MaskFinder = METHODS[0],
    rules: PolygonRules | None = None,
    max_thumbnail_bytes: int = MAX_BYTES,
    progress: bool = True,
) -> JobReport:
    """Compute the foreground of every slide of a catalog that has none.

    Args:
        catalog_url: Folder of the catalog.
        storage_options: Options for the catalog's store.
        slide_storage_options: Options for the slides' store; the same where not given.
        redo: Compute it anew for all slides.
        method: One of ``tissue.METHODS``, the path of an ONNX file, or a function (``MaskFinder``). The catalog
            records it (``foreground_method``), a function by its module and name.
        rules: Least area of parts and holes, and how far outlines may be simplified.
        max_thumbnail_bytes: Bytes of tiles that may be read of a slide; where its levels have more, its thumbnail is
            made of a part of the tiles, which the notes tell.
        progress: Show a progress bar on stderr.

    Raises:
        CatalogError: No catalog there, or one of another format.
        StorageError: The catalog cannot be read or written.
        ValueError: A method that is unknown, or numbers out of range.
    """
    rules = rules or PolygonRules()
    finder: MaskFinder = tissue_finder(method) if isinstance(method, str) else method
    name = method if isinstance(method, str) else _function_name(method)
    if max_thumbnail_bytes < 1:
        raise ValueError(f"max_thumbnail_bytes: got {max_thumbnail_bytes}, allowed at least 1")
    record = recorded_name(method) if isinstance(method, str) else f"function {name}"
    record += _settings(rules, max_thumbnail_bytes)
    folder, catalog = open_for_job(catalog_url, storage_options, slide_storage_options)
    areas = catalog.rows.numbers("foreground_area_level0_px2")
    todo = [int(number) for number in np.flatnonzero(np.isnan(areas) | redo)]

    def work(number: int) -> SlideResult:
        row = catalog.rows[number]
        done = None if redo else _taken_up(folder, row)
        if done is not None and done.foreground_method == record:
            return SlideResult(done, _earlier_empty() if done.foreground_area_level0_px2 == 0 else None)
        thumbnail = read_thumbnail(catalog.slide(row.id), max_bytes=max_thumbnail_bytes)
        mask = np.asarray(finder(thumbnail.pixels, thumbnail.mpp), np.bool_)
        if mask.shape != thumbnail.pixels.shape[:2]:
            raise ValueError(f"method {name} gives a mask {mask.shape} of a thumbnail {thumbnail.pixels.shape[:2]}")
        found = polygon_of_mask(
            mask, width_level0_px=row.width_px, height_level0_px=row.height_px, mpp=row.mpp, rules=rules
        )
        why = _why_empty(found, name) if found.polygon.is_empty else None
        updated = write_polygon(folder, row, found, record)
        return SlideResult(updated, why, _note(row, thumbnail, found), thumbnail.bytes_read)

    report = run_on_slides(folder, catalog, todo, work, title="find foreground", progress=progress)
    kept_empty = [int(number) for number in np.flatnonzero((areas == 0) & (not redo))]
    empty = [_empty(catalog.rows[number], _earlier_empty()) for number in kept_empty]
    kept = len(catalog) - len(todo) - len(empty)
    return replace(report, kept=kept, failures=tuple(sorted([*report.failures, *empty])))


def open_for_job(
    catalog_url: str,
    storage_options: Mapping[str, Any] | None,
    slide_storage_options: Mapping[str, Any] | None,
) -> tuple[CatalogFolder, Catalog]:
    """A catalog to write to, freed of what an earlier job left half written."""
    folder = CatalogFolder(absolute_url(catalog_url), storage_options)
    catalog = Catalog.open(folder.url, storage_options=storage_options, slide_storage_options=slide_storage_options)
    folder.remove_partial_files()
    return folder, catalog


def run_on_slides(
    folder: CatalogFolder,
    catalog: Catalog,
    numbers: Sequence[int],
    work: Callable[[int], SlideResult],
    *,
    title: str,
    progress: bool,
) -> JobReport:
    """Work on slides by their numbers in the table, and write the table; a slide's fault does not stop the others."""
    table = _without_areas(folder, catalog, numbers)
    results: list[SlideResult] = []
    failures: list[Failure] = []
    bar = progress_bar(total=len(numbers), desc=title, unit="slide", disable=not progress)
    pool = ThreadPoolExecutor(FOREGROUND_THREADS)
    futures = {pool.submit(work, number): number for number in numbers}
    try:
        for future in as_completed(futures):
            try:
                results.append(future.result())
            except Exception as error:
                # Also one that nobody foresaw.
                row = catalog.rows[futures[future]]
                failures.append(failure_of(row.id, row.url, error))
                # What it had before, if that is whole.
                table = table.updated([kept] if (kept := _taken_up(folder, row)) else [])
            bar.update()
    finally:
        # Where it is interrupted, slides that wait are left alone, and those that were done count.
        pool.shutdown(cancel_futures=True)
        bar.close()
        finished = [each.result() for each in futures if not each.cancelled() and each.exception() is None]
        folder.write_table(table.updated([result.row for result in finished]))
        folder.remove_partial_files()
    failures += [_empty(result.row, result.why_empty) for result in results if result.why_empty]
    return JobReport(
        done=sum(result.why_empty is None for result in results),
        kept=len(catalog) - len(numbers),
        failures=tuple(sorted(failures)),
        bytes_read=sum(result.bytes_read for result in results),
        notes=tuple(sorted(result.note for result in results if result.note)),
    )


def _without_areas(folder: CatalogFolder, catalog: Catalog, numbers: Sequence[int]) -> SlideTable:
    """The table, once it says that these slides have no foreground until they have a new one.

    A job that is killed must not leave a table that tells of other polygons than there are: streams ask for its end.
    """
    rows = [catalog.rows[number] for number in numbers]
    old = [row.without_foreground() for row in rows if row.foreground_area_level0_px2 is not None]
    table = catalog.rows.updated(old)
    if old:
        folder.write_table(table)
    return table


def write_polygon(folder: CatalogFolder, row: SlideRow, found: FoundPolygon, method: str) -> SlideRow:
    """Write a slide's polygon, then its row with what it says of the polygon; returns the row."""
    if row.foreground_area_level0_px2 is not None:
        # Killed between the two, the old row would tell of the new polygon.
        folder.write_slide_row(row.without_foreground())
    wkb = shapely.to_wkb(found.polygon)
    folder.write_slide_file(row, FOREGROUND, wkb)
    updated = row.with_foreground(method, float(found.polygon.area), wkb)
    folder.write_slide_row(updated)
    return updated


def coarser_note(row: SlideRow, found: FoundPolygon) -> str | None:
    """How a polygon is less exact than was asked for."""
    if not found.is_coarser:
        return None
    note = f"its outline is simplified by up to {_length(found.tolerance_level0_px, row.mpp)}"
    if found.tolerance_level0_px > found.asked_level0_px:
        note += f" instead of {_length(found.asked_level0_px, row.mpp)}"
    if found.dropped_rings:
        note += f", and {found.dropped_rings} of its smallest parts and holes are dropped"
    return f"{note}, since a catalog holds at most 64 KB of a slide"


def _length(level0_px: float, mpp: float | None) -> str:
    return f"{level0_px:.3g} px of level 0" if mpp is None else f"{level0_px * mpp:.3g} um"


def _taken_up(folder: CatalogFolder, row: SlideRow) -> SlideRow | None:
    """The row with what a run found that was stopped before it wrote the table."""
    done = folder.read_slide_row(row.id)
    if done is None or done.foreground_area_level0_px2 is None or done.info != row.info:
        return None
    return replace(
        row,
        foreground_area_level0_px2=done.foreground_area_level0_px2,
        foreground_method=done.foreground_method,
        foreground_digest=done.foreground_digest,
    )


def _function_name(function: MaskFinder) -> str:
    kind = function if hasattr(function, "__qualname__") else type(function)
    return f"{kind.__module__}.{kind.__qualname__}"


def _settings(rules: PolygonRules, max_thumbnail_bytes: int) -> str:
    """What differs from the defaults, in words for the catalog."""
    given = {name: value for name, value in asdict(rules).items() if value is not None}
    if max_thumbnail_bytes != MAX_BYTES:
        given["max_thumbnail_bytes"] = max_thumbnail_bytes
    return f" ({', '.join(f'{name}={value:g}' for name, value in given.items())})" if given else ""


def _empty(row: SlideRow, why: str) -> Failure:
    return Failure(row.id, shown_url(row.url), EMPTY, why)


def _why_empty(found: FoundPolygon, method: str) -> str:
    if found.dropped_parts:
        return (
            f"no foreground: method {method} finds {found.dropped_parts} parts, each smaller than the least area; lower"
            " --min-area-mm2, or draw it (--geojson)"
        )
    return (
        f"no foreground: method {method} finds no tissue on it (bare glass or pen?); try another --method, or draw it"
        " (--geojson)"
    )


def _earlier_empty() -> str:
    return "no foreground was found on it by an earlier run; try another method with --redo, or draw it (--geojson)"


def _note(row: SlideRow, thumbnail: Thumbnail, found: FoundPolygon) -> str | None:
    notes = []
    if thumbnail.is_sparse:
        notes.append(
            f"its thumbnail is made of {thumbnail.tiles} of {thumbnail.of_tiles} tiles of level {thumbnail.level},"
            f" {thumbnail.bytes_read / 1e6:.1f} MB, as it has no coarser level that is small enough"
        )
    if thumbnail.corrupt_tiles:
        notes.append(f"{thumbnail.corrupt_tiles} of {thumbnail.tiles} tiles do not decode and count as white")
    coarser = coarser_note(row, found)
    if coarser:
        notes.append(coarser)
    return f"slide {row.id}: {'; '.join(notes)}" if notes else None
