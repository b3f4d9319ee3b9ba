"""How do annotations of a pathologist become the foreground of slides, or limit it, and how does he get it to look at?

A file serves one slide: the one of its name (``a.geojson`` or ``a.svs.geojson`` for slide ``a``), or the one that is
named. ``import_geojson`` lets it replace, intersect or cut out of the slide's foreground; ``export_geojson`` writes a
file a slide. Slides without a file stay as they are; a file without a slide is reported.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, get_args
from urllib.parse import quote, unquote

from online_patching import loop
from online_patching.bytesource import join_url, shown_url
from online_patching.catalog import Catalog
from online_patching.catalog_files import CatalogFolder
from online_patching.errors import AnnotationError, CatalogError, NotFoundError, PatchingError, SlideFormatError
from online_patching.failures import Failure, JobReport, failure_of
from online_patching.foreground import fitted, polygons_only
from online_patching.foreground_job import SlideResult, coarser_note, open_for_job, run_on_slides, write_polygon
from online_patching.geojson import MAX_GEOJSON_BYTES, Drawing, read_drawing, within_slide, write_drawing
from online_patching.metadata import absolute_url
from online_patching.slide_row import SlideRow
from online_patching.storage import open_folder, open_object
from online_patching.store_errors import storage_error

GeoJsonMode = Literal["replace", "intersect", "subtract"]
SUFFIXES = (".geojson", ".json")
NO_SLIDE = "NoSuchSlide"


def import_geojson(
    catalog_url: str,
    source_url: str,
    *,
    mode: GeoJsonMode = "replace",
    classes: Sequence[str] = (),
    slide: str | None = None,
    storage_options: Mapping[str, Any] | None = None,
    source_storage_options: Mapping[str, Any] | None = None,
    progress: bool = True,
) -> JobReport:
    """Let annotations replace or limit the foreground of slides.

    Args:
        catalog_url: Folder of the catalog.
        source_url: A GeoJSON file, or a folder of them.
        mode: The annotated area is the foreground (``replace``), is where foreground may be (``intersect``), or is cut
            out of it (``subtract``).
        classes: Only annotations of these classes count; all where none is given.
        slide: Id of the slide that a file belongs to, where its name does not tell.
        storage_options: Options for the catalog's store.
        source_storage_options: Options for the annotations' store; the same where not given.
        progress: Show a progress bar on stderr.

    Raises:
        CatalogError: No such catalog or slide.
        AnnotationError: There is no file of annotations.
        StorageError: The catalog or the annotations cannot be reached.
        ValueError: An unknown mode, or a slide that is named for a whole folder.
    """
    if mode not in get_args(GeoJsonMode):
        raise ValueError(f"mode: got {mode!r}, allowed {get_args(GeoJsonMode)}")
    options = storage_options if source_storage_options is None else source_storage_options
    folder, catalog = open_for_job(catalog_url, storage_options, None)
    files = _files(absolute_url(source_url), options)
    if slide is not None and list(files) != [absolute_url(source_url)]:
        raise ValueError(f"{shown_url(source_url)}: a slide is named, so a single file is needed, not a folder")
    urls: dict[int, str] = {}
    strangers: list[Failure] = []
    for url, name in files.items():
        slide_id = slide if slide is not None else _slide_of(name, catalog)
        if slide_id is None:
            reason = f"{shown_url(url)}: the catalog has no slide of this name; rename it, or name its slide (--slide)"
            strangers.append(Failure(name, shown_url(url), NO_SLIDE, reason))
            continue
        number = catalog.rows.known_number(slide_id, catalog.shown_url)
        if number in urls:
            raise AnnotationError(f"{shown_url(url)} and {shown_url(urls[number])}: both are named as slide {slide_id}")
        urls[number] = url

    def work(number: int) -> SlideResult:
        row = catalog.rows[number]
        drawing = _read(urls[number], options, classes)
        return _apply(folder, catalog, row, drawing, mode, shown_url(urls[number]))

    report = run_on_slides(folder, catalog, sorted(urls), work, title="import annotations", progress=progress)
    return replace(report, failures=tuple(sorted([*report.failures, *strangers])))


def export_geojson(
    catalog: Catalog,
    output_url: str,
    *,
    slides: Sequence[str] | None = None,
    storage_options: Mapping[str, Any] | None = None,
) -> JobReport:
    """Write the foreground of slides as GeoJSON that QuPath reads, ``<id>.geojson`` in a folder.

    Args:
        catalog: An open catalog.
        output_url: The folder, made where it does not exist.
        slides: Ids of the slides; all where not given.
        storage_options: Options for the folder's store.

    Raises:
        CatalogError: No such slide.
        StorageError: The folder cannot be written.
    """
    output = CatalogFolder(absolute_url(output_url), storage_options)
    rows = [catalog.row(slide_id) for slide_id in (catalog.ids() if slides is None else slides)]
    failures = []
    for row in rows:
        try:
            text = write_drawing(catalog.foreground(row.id), row.id)
        except CatalogError as error:
            failures.append(failure_of(row.id, row.url, error))
            continue
        output.write(text.encode(), f"{quote(row.id, safe=' ')}.geojson")
    output.remove_partial_files()
    return JobReport(done=len(rows) - len(failures), kept=len(catalog) - len(rows), failures=tuple(sorted(failures)))


def _apply(
    folder: CatalogFolder, catalog: Catalog, row: SlideRow, drawing: Drawing, mode: GeoJsonMode, name: str
) -> SlideResult:
    if not drawing.used and mode != "subtract":
        there = ", ".join(f"{kind or 'none'} ({count})" for kind, count in sorted(drawing.classes.items()))
        raise AnnotationError(
            f"{name}: no annotation with an area counts; classes of those there are: {there or 'none at all'}"
        )
    polygon = within_slide(
        drawing.polygon, width_level0_px=row.width_px, height_level0_px=row.height_px, name=f"{name}: slide {row.id}"
    )
    if mode == "intersect":
        polygon = polygons_only(catalog.foreground(row.id) & polygon)
    elif mode == "subtract":
        polygon = polygons_only(catalog.foreground(row.id) - polygon)
    found = fitted(polygon, 0.0)
    notes = [f"{drawing.mended} broken outlines were mended"] if drawing.mended else []
    notes += [note] if (note := coarser_note(row, found)) else []
    before = "" if mode == "replace" else f"{row.foreground_method or 'unknown'}, "
    updated = write_polygon(folder, row, found, f"{before}geojson {mode}")
    why = f"no foreground is left of it once {name} is applied" if found.polygon.is_empty else None
    return SlideResult(updated, why, f"slide {row.id}: {'; '.join(notes)}" if notes else None)


def _files(url: str, options: Mapping[str, Any] | None) -> dict[str, str]:
    """Files of annotations by their URLs, with their names without suffix."""
    if url.lower().endswith(SUFFIXES):
        # One that does not exist is told at once.
        loop.run(open_object(url, options).info())
        return {url: _stem(url.rpartition("/")[2])}
    try:
        filesystem, path = open_folder(url, options)
        names = sorted(str(entry).rstrip("/").rpartition("/")[2] for entry in filesystem.ls(path, detail=False))
    except (FileNotFoundError, NotADirectoryError):
        raise NotFoundError(f"{shown_url(url)}: no such folder; give a .geojson file or a folder of them") from None
    except PatchingError:
        raise
    except Exception as error:
        raise storage_error(url, error) from error
    found = {join_url(url, name): _stem(name) for name in names if name.lower().endswith(SUFFIXES)}
    if not found:
        raise AnnotationError(f"{shown_url(url)}: no files named {' or '.join(SUFFIXES)} there")
    return found


def _stem(name: str) -> str:
    return unquote(name.rpartition(".")[0])


def _slide_of(name: str, catalog: Catalog) -> str | None:
    """The slide that a file is named after: QuPath's own names end in the slide's suffix."""
    return next((each for each in (name, name.rpartition(".")[0]) if each in catalog), None)


def _read(url: str, options: Mapping[str, Any] | None, classes: Sequence[str]) -> Drawing:
    try:
        data, _ = loop.run(open_object(url, options).read_whole(max_bytes=MAX_GEOJSON_BYTES))
    except SlideFormatError as error:
        raise AnnotationError(
            f"{shown_url(url)}: more than {MAX_GEOJSON_BYTES >> 20} MB; export the annotations without cells and"
            " detections"
        ) from error
    return read_drawing(data, shown_url(url), classes=classes)
