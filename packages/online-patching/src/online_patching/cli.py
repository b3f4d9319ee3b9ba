"""The command ``online-patching``: index slides, find foreground, look at the result, measure the stream."""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import logging
import math
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import cv2
import numpy as np

from online_patching.bench import bench, bench_lines
from online_patching.bytesource import PinnedObject
from online_patching.catalog import Catalog
from online_patching.cohort import cohort_slides
from online_patching.errors import CatalogError, PatchingError
from online_patching.foreground_cli import (
    NAMED_SLIDES,
    add_foreground_arguments,
    find_foreground,
    print_failures,
    run_foreground,
)
from online_patching.info import catalog_info, catalog_lines, slide_info, slide_lines
from online_patching.jobs import INDEX_WORKERS, index_cohort
from online_patching.metadata import read_metadata
from online_patching.plan import DecodeMode
from online_patching.preview import (
    PATCHES,
    PICTURE_PATCHES,
    PICTURE_SLIDES,
    SHEET_SLIDES,
    preview,
    preview_html,
)
from online_patching.slide import open_slide
from online_patching.stream import PatchStream


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code (0 done, 1 some slides left out, 2 nothing done).

    Where the reader of its output goes away (``| head``), that is no error: 141, as a shell reports the signal for it.
    """
    parsed = _parser().parse_args(arguments)
    # Only this package speaks of its progress: clients such as Azure's log every request.
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logging.getLogger("online_patching").setLevel(logging.INFO)
    for noisy in ("botocore", "aiobotocore", "fsspec", "s3fs", "urllib3", "azure"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    try:
        code: int = parsed.run(parsed)
        sys.stdout.flush()
    except (PatchingError, ValueError) as error:
        print(f"online-patching {parsed.command}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"online-patching {parsed.command}: stopped; run it again to go on where it stopped", file=sys.stderr)
        return 130
    except BrokenPipeError:
        _forget_output()
        return 141
    except OSError as error:
        print(f"online-patching {parsed.command}: {error}", file=sys.stderr)
        _forget_output()
        return 2
    return code


def _forget_output() -> None:
    """What could not be written is not tried again when Python ends, which would show a traceback."""
    with contextlib.suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="online-patching", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)

    index = _command(commands, "index", _index, "read the headers of slides into a catalog")
    index.add_argument("slides", nargs="+", help="slides, folders or globs of slides, local paths or URLs")
    index.add_argument(
        "--mpp", action="append", default=[], metavar="UM or ID=UM", help="um/px of level 0 (see README)"
    )
    index.add_argument(
        "--assume-mpp-from-magnification",
        action="store_true",
        help="where nothing states the um/px, take 10 / magnification (40x: 0.25)",
    )
    index.add_argument(
        "--metadata", type=Path, help="CSV with a column 'file', 'id' or of TCGA barcodes, and the columns to add"
    )
    index.add_argument(
        "--workers", type=int, default=INDEX_WORKERS, help="slides worked on at a time (default: %(default)s)"
    )
    index.add_argument("--experimental", action="store_true", help="index experimental formats too (see README)")
    index.add_argument("--foreground", action="store_true", help="find the foreground as well")

    foreground = _command(commands, "foreground", run_foreground, "find the foreground of the catalog's slides")
    add_foreground_arguments(foreground)

    info = _command(commands, "info", _info, "what a catalog or a slide holds", catalog_required=False)
    info.add_argument("url", nargs="?", help="a slide's path or URL instead of a catalog")
    info.add_argument("--slide", metavar="ID", help="one slide of the catalog")
    info.add_argument("--experimental", action="store_true", help="open experimental formats too (see README)")
    info.add_argument("--json", action="store_true", help="as JSON")

    export = _command(commands, "export", _export, "references for readers that do not know this package; foreground")
    export.add_argument("--format", required=True, choices=["kerchunk-json", "kerchunk-parquet", "geojson"])
    export.add_argument(
        "--output", required=True, help="JSON file or folder (Parquet, GeoJSON) to make, local path or URL"
    )
    export.add_argument("--slides", nargs="+", metavar="ID", help="only these slides")

    look = _command(commands, "preview", _preview, "a page with thumbnails, foreground and patches of slides")
    look.add_argument(
        "--output",
        type=Path,
        default=Path("preview.html"),
        help=".html: one page; .png: one picture (default: %(default)s)",
    )
    look.add_argument("--slides", nargs="+", metavar="ID", help="shown at length on a page (default: the first four)")
    look.add_argument(
        "--sheet",
        type=int,
        help=f"slides of the contact sheet (default: {SHEET_SLIDES}, on a picture {PICTURE_SLIDES})",
    )
    look.add_argument(
        "--patches",
        type=int,
        help=f"of each magnification (default: {PATCHES}); on a picture so many times the magnifications of a stream of"
        f" all of them (default: {PICTURE_PATCHES})",
    )
    _stream_arguments(look)

    speed = _command(commands, "bench", _bench, "patches a second of the stream and where its time goes, as JSON")
    speed.add_argument(
        "--patches",
        type=int,
        default=2000,
        help="how many are received after a warm-up, at least 768 (default: %(default)s)",
    )
    speed.add_argument("--threads", type=int, help="threads that decode (default: one a core)")
    speed.add_argument(
        "--growth", action="store_true", help="also with 1, 2, 4, ... threads and 8 to 256 requests in flight"
    )
    speed.add_argument("--where", metavar="FILTER", help="only slides such as \"split == 'train'\" (see README)")
    _stream_arguments(speed)
    return parser


def _command(
    commands: Any, name: str, run: Any, text: str, *, catalog_required: bool = True
) -> argparse.ArgumentParser:
    command: argparse.ArgumentParser = commands.add_parser(name, help=text, description=text)
    command.set_defaults(run=run)
    command.add_argument("--catalog", required=catalog_required, help="folder of the catalog, local path or URL")
    command.add_argument("--storage-options", type=_json_object, default={}, help="JSON, in fsspec's dialect")
    command.add_argument("--slide-storage-options", type=_json_object, help="the same for the slides' store")
    return command


def _stream_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument("--size-px", type=int, default=256, help="width and height of a patch (default: %(default)s)")
    scales = [2.0, 1.0, 0.5, 0.25]
    command.add_argument("--mpp", type=float, nargs="+", default=scales, help="um/px (default: 2 1 0.5 0.25)")
    command.add_argument(
        "--min-foreground", type=float, default=0.4, help="least share inside the foreground (default: %(default)s)"
    )
    command.add_argument("--seed", type=int, default=0, help="of the choice of patches (default: %(default)s)")
    command.add_argument(
        "--decode",
        choices=get_args(DecodeMode),
        default="exact",
        help="fast: decode at reduced scale where patches are coarser (default: %(default)s; see README)",
    )


def _json_object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"not JSON: {error}") from error
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError("a JSON object is needed, such as '{\"anon\": true}'")
    return value


def _index(arguments: argparse.Namespace) -> int:
    slide_options = arguments.slide_storage_options
    options = arguments.storage_options if slide_options is None else slide_options
    # A mistake in these shows before anything is listed.
    metadata = read_metadata(arguments.metadata) if arguments.metadata else None
    mpp = _read_mpp(arguments.mpp)
    listed, unlisted = _list_all(arguments.slides, options)
    report = index_cohort(
        itertools.chain.from_iterable(listed.values()),
        arguments.catalog,
        storage_options=arguments.storage_options,
        slide_storage_options=slide_options,
        metadata=metadata,
        mpp=mpp,
        assume_mpp_from_magnification=arguments.assume_mpp_from_magnification,
        experimental=arguments.experimental,
        workers=arguments.workers,
        listed_folders=[url for url, found in listed.items() if found != [url]],
    )
    for note in report.notes:
        print(note, file=sys.stderr)
    if report.done + report.kept == 0:
        print_failures(report, ": see failures.parquet")
        raise CatalogError(f"none of {len(report.failures)} slides could be indexed")
    print(
        f"indexed {report.done} slides, {report.kept} were up to date: {report.requests} requests,"
        f" {report.bytes_read / 1e6:.2f} MB of headers"
    )
    code = max(print_failures(report, ": see failures.parquet"), 1 if unlisted else 0)
    catalog = Catalog.open(arguments.catalog, storage_options=arguments.storage_options)
    for slide_id in mpp if isinstance(mpp, dict) else ():
        if slide_id not in catalog:
            print(f"--mpp {slide_id}=...: the catalog has no slide of this id", file=sys.stderr)
    _print_missing_mpp(catalog)
    return max(code, find_foreground(arguments)) if arguments.foreground else code


def _list_all(
    urls: Sequence[str], options: dict[str, Any]
) -> tuple[dict[str, list[str | PinnedObject]], list[PatchingError]]:
    """The slides below each URL; a URL that cannot be listed is an error only if no other can."""
    listed: dict[str, list[str | PinnedObject]] = {}
    failed: list[PatchingError] = []
    for url in urls:
        try:
            listed[url] = cohort_slides(url, options)
        except PatchingError as error:
            failed.append(error)
    if not listed:
        raise failed[0]
    for reason in failed:
        print(f"left out {reason}", file=sys.stderr)
    return listed, failed


def _print_missing_mpp(catalog: Catalog) -> None:
    missing = np.flatnonzero(np.isnan(catalog.rows.numbers("mpp")))
    for number in missing[:NAMED_SLIDES]:
        slide_id = catalog.rows.value(int(number), "id")
        print(
            f"slide {slide_id}: no mpp in its headers, so no magnification is sampled from it; give it with --mpp"
            f" {shlex.quote(slide_id)}=VALUE, a metadata column 'mpp', or --assume-mpp-from-magnification",
            file=sys.stderr,
        )
    if len(missing) > NAMED_SLIDES:
        print(f"{len(missing) - NAMED_SLIDES} more slides have no mpp either", file=sys.stderr)


def _read_mpp(values: Sequence[str]) -> float | dict[str, float] | None:
    """One number for all slides without mpp, or ID=number pairs."""
    by_id: dict[str, float] = {}
    for value in values:
        slide_id, _, number = value.rpartition("=")
        try:
            by_id[slide_id] = float(number)
        except ValueError:
            by_id[slide_id] = math.nan
        if not 0 < by_id[slide_id] < math.inf:
            raise ValueError(f"--mpp {value}: allowed a number above 0, or ID=number, in um per pixel")
    if "" in by_id and len(by_id) > 1:
        raise ValueError("--mpp: give either one number for all slides that state none, or ID=number pairs")
    return by_id.get("", by_id or None)


def _info(arguments: argparse.Namespace) -> int:
    if (arguments.url is None) == (arguments.catalog is None) or (arguments.slide and arguments.catalog is None):
        raise ValueError("give either a slide's URL, or --catalog (and --slide ID for one slide of it)")
    if arguments.url is not None:
        slide = open_slide(
            arguments.url, storage_options=arguments.storage_options, experimental=arguments.experimental
        )
        facts, lines = slide_info(slide), slide_lines
    else:
        catalog = Catalog.open(arguments.catalog, storage_options=arguments.storage_options)
        if arguments.slide is not None:
            facts, lines = slide_info(catalog.slide(arguments.slide), catalog.row(arguments.slide)), slide_lines
        else:
            facts, lines = catalog_info(catalog), catalog_lines
    print(json.dumps(facts, indent=2) if arguments.json else "\n".join(lines(facts)))
    return 0


def _export(arguments: argparse.Namespace) -> int:
    from online_patching.references import export_references

    catalog = Catalog.open(
        arguments.catalog,
        storage_options=arguments.storage_options,
        slide_storage_options=arguments.slide_storage_options,
    )
    if arguments.format == "geojson":
        return _export_geojson(arguments, catalog)
    report = export_references(
        catalog,
        arguments.output,
        format=arguments.format,
        slides=arguments.slides,
        storage_options=arguments.storage_options,
    )
    for line in report.left_out:
        print(line, file=sys.stderr)
    print(f"exported {report.levels} levels of {report.slides} slides: {report.tiles} tiles")
    return 1 if report.left_out else 0


def _export_geojson(arguments: argparse.Namespace, catalog: Catalog) -> int:
    from online_patching.annotation_job import export_geojson

    report = export_geojson(
        catalog, arguments.output, slides=arguments.slides, storage_options=arguments.storage_options
    )
    print(f"exported the foreground of {report.done} slides as GeoJSON")
    return print_failures(report)


def _stream(arguments: argparse.Namespace, *, where: str | None = None) -> PatchStream:
    return PatchStream(
        arguments.catalog,
        size_px=arguments.size_px,
        mpp=arguments.mpp,
        min_foreground=arguments.min_foreground,
        seed=arguments.seed,
        where=where,
        # What is corrupt is to be told, not to end it.
        most_corrupt_share=1.0,
        decode=arguments.decode,
        storage_options=arguments.storage_options,
        slide_storage_options=arguments.slide_storage_options,
    )


def _preview(arguments: argparse.Namespace) -> int:
    output: Path = arguments.output
    if output.suffix.lower() not in (".html", ".htm", ".png", ".jpg"):
        raise ValueError(f"--output {output}: allowed a file named .html, .png or .jpg")
    try:
        if output.suffix.lower().startswith(".htm"):
            catalog = Catalog.open(
                arguments.catalog,
                storage_options=arguments.storage_options,
                slide_storage_options=arguments.slide_storage_options,
            )
            names = ("slides", "size_px", "mpp", "min_foreground", "seed", "decode")
            given = {name: getattr(arguments, name) for name in names}
            sheet, patches = _numbers(arguments, SHEET_SLIDES, PATCHES)
            content = preview_html(catalog, sheet_slides=sheet, patches=patches, **given).encode()
        elif arguments.slides:
            raise ValueError(f"--slides goes with an .html page; got --output {output}")
        else:
            sheet, patches = _numbers(arguments, PICTURE_SLIDES, PICTURE_PATCHES)
            picture = preview(_stream(arguments), slides=sheet, patches=patches * len(arguments.mpp))
            # OpenCV itself would not say why it cannot write.
            content = cv2.imencode(output.suffix, picture[..., ::-1])[1].tobytes()
        output.write_bytes(content)
    except OSError as error:
        raise ValueError(f"--output {output}: cannot be written ({error})") from error
    print(f"wrote {output}")
    return 0


def _numbers(arguments: argparse.Namespace, sheet: int, patches: int) -> tuple[int, int]:
    """How many slides and patches to show, where the arguments do not say."""
    return (
        sheet if arguments.sheet is None else arguments.sheet,
        patches if arguments.patches is None else arguments.patches,
    )


def _bench(arguments: argparse.Namespace) -> int:
    stream = _stream(arguments, where=arguments.where)
    report = bench(stream, patches=arguments.patches, threads=arguments.threads, growth=arguments.growth)
    for line in bench_lines(report):
        print(line, file=sys.stderr)
    print(json.dumps(report, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
