"""The command ``online-patching``: index slides, find foreground, look at the result, measure the stream."""

from __future__ import annotations

import argparse
import csv
import itertools
import json
import logging
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2

from online_patching.catalog import Catalog
from online_patching.catalog_files import Scalar
from online_patching.errors import CatalogError, PatchingError
from online_patching.jobs import JobReport, compute_foreground, failed_lines, index_cohort, slide_id_of
from online_patching.preview import preview
from online_patching.slide import open_slide
from online_patching.storage import list_slides
from online_patching.stream import PatchStream

BENCH_FORMAT_VERSION = 1


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code (0 done, 1 some slides left out, 2 nothing done)."""
    parsed = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    for noisy in ("botocore", "aiobotocore", "fsspec", "s3fs", "urllib3"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    try:
        code: int = parsed.run(parsed)
    except (PatchingError, ValueError) as error:
        print(f"online-patching {parsed.command}: {error}", file=sys.stderr)
        return 2
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="online-patching", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)

    index = _command(commands, "index", _index, "read the headers of slides into a catalog")
    index.add_argument("slides", nargs="+", help="slides or folders of slides, local paths or URLs")
    index.add_argument(
        "--mpp", action="append", default=[], metavar="UM or ID=UM", help="um/px of level 0 (see README)"
    )
    index.add_argument("--columns", type=Path, help="CSV with a column 'id' or 'file' and the columns to add")
    index.add_argument("--foreground", action="store_true", help="find the foreground as well")

    foreground = _command(commands, "foreground", _foreground, "find the foreground of the catalog's slides")
    foreground.add_argument("--redo", action="store_true", help="also of slides that have one")

    info = _command(commands, "info", _info, "what a catalog or a slide holds", catalog_required=False)
    info.add_argument("slide", nargs="?", help="a slide's path or URL instead of a catalog")

    export = _command(commands, "export", _export, "references for readers that do not know this package")
    export.add_argument("--format", required=True, choices=["kerchunk-json", "kerchunk-parquet"])
    export.add_argument("--output", required=True, help="JSON file or Parquet folder to make, local path or URL")
    export.add_argument("--slides", nargs="+", metavar="ID", help="only these slides")

    look = _command(commands, "preview", _preview, "a picture of foreground and patches")
    look.add_argument("--output", type=Path, default=Path("preview.png"))
    _stream_arguments(look)

    bench = _command(commands, "bench", _bench, "patches a second of the stream, as JSON")
    bench.add_argument("--patches", type=int, default=1000)
    _stream_arguments(bench)
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
    command.add_argument("--size-px", type=int, default=256)
    command.add_argument("--mpp", type=float, nargs="+", default=[2.0, 1.0, 0.5, 0.25])
    command.add_argument("--min-foreground", type=float, default=0.4)
    command.add_argument("--seed", type=int, default=0)


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
    report = index_cohort(
        itertools.chain.from_iterable(list_slides(slides, options) for slides in arguments.slides),
        arguments.catalog,
        storage_options=arguments.storage_options,
        slide_storage_options=slide_options,
        columns=_read_columns(arguments.columns) if arguments.columns else None,
        mpp=_read_mpp(arguments.mpp),
    )
    if report.done + report.kept == 0:
        _print_failures(report)
        raise CatalogError(f"none of {len(report.failures)} slides could be indexed")
    print(
        f"indexed {report.done} slides, {report.kept} were up to date: {report.requests} requests,"
        f" {report.bytes_read / 1e6:.2f} MB of headers"
    )
    code = _print_failures(report)
    for row in Catalog.open(arguments.catalog, storage_options=arguments.storage_options):
        if row.header.mpp is None:
            print(
                f"slide {row.id}: no mpp in its headers, so no magnification is sampled from it; give it with"
                f" --mpp {row.id}=VALUE",
                file=sys.stderr,
            )
    return max(code, _foreground(arguments)) if arguments.foreground else code


def _foreground(arguments: argparse.Namespace) -> int:
    report = compute_foreground(
        arguments.catalog,
        storage_options=arguments.storage_options,
        slide_storage_options=arguments.slide_storage_options,
        redo=getattr(arguments, "redo", False),
    )
    print(f"found the foreground of {report.done} slides, {report.kept} had one")
    return _print_failures(report)


def _print_failures(report: JobReport) -> int:
    for line in failed_lines(report.failures):
        print(line, file=sys.stderr)
    return 1 if report.failures else 0


def _read_mpp(values: Sequence[str]) -> float | dict[str, float] | None:
    """One number for all slides without mpp, or ID=number pairs."""
    by_id: dict[str, float] = {}
    for value in values:
        slide_id, _, number = value.rpartition("=")
        try:
            by_id[slide_id] = float(number)
        except ValueError:
            raise ValueError(f"--mpp {value}: allowed a number, or ID=number, in um per pixel") from None
    if "" in by_id and len(by_id) > 1:
        raise ValueError("--mpp: give either one number for all slides that state none, or ID=number pairs")
    return by_id.get("", by_id or None)


def _read_columns(path: Path) -> dict[str, Mapping[str, Scalar]]:
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    except OSError as error:
        raise ValueError(f"--columns {path}: cannot be read ({error.strerror})") from error
    columns = set(rows[0]) if rows else set()
    key = next((name for name in ("id", "file") if name in columns), None)
    if key is None:
        raise ValueError(f"--columns {path}: needs a column 'id' or 'file', has {sorted(columns)}")
    found: dict[str, Mapping[str, Scalar]] = {}
    for row in rows:
        slide_id = row[key] if key == "id" else slide_id_of(row[key])
        found[slide_id] = {name: value for name, value in row.items() if name not in ("id", "file") and value}
    return found


def _info(arguments: argparse.Namespace) -> int:
    if (arguments.slide is None) == (arguments.catalog is None):
        raise ValueError("give either a slide or --catalog")
    if arguments.slide is not None:
        slide = open_slide(arguments.slide, storage_options=arguments.storage_options)
        print(f"{slide.slide_id}: {slide.header.vendor}, {slide.mpp or 'unknown'} um/px")
        for k, (level, encoding) in enumerate(zip(slide.levels, slide.header.encodings, strict=True)):
            print(
                f"  level {k}: {level.width_px} x {level.height_px} px, downsample {level.downsample:.4g},"
                f" tiles {level.tile_width_px} x {level.tile_height_px}, {encoding.codec}"
            )
        return 0
    catalog = Catalog.open(arguments.catalog, storage_options=arguments.storage_options)
    for row in catalog:
        base = row.header.levels[0]
        area = row.foreground_area_level0_px2
        foreground = "not computed" if area is None else f"{area / (base.width_px * base.height_px):.0%} of the slide"
        print(
            f"{row.id}: {row.header.vendor}, {base.width_px} x {base.height_px} px, {len(row.header.levels)} levels,"
            f" {row.header.mpp or 'unknown'} um/px, foreground {foreground}"
        )
    print(f"{len(catalog)} slides")
    return 0


def _export(arguments: argparse.Namespace) -> int:
    from online_patching.references import export_references

    catalog = Catalog.open(
        arguments.catalog,
        storage_options=arguments.storage_options,
        slide_storage_options=arguments.slide_storage_options,
    )
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


def _stream(arguments: argparse.Namespace) -> PatchStream:
    return PatchStream(
        arguments.catalog,
        size_px=arguments.size_px,
        mpp=arguments.mpp,
        min_foreground=arguments.min_foreground,
        seed=arguments.seed,
        storage_options=arguments.storage_options,
        slide_storage_options=arguments.slide_storage_options,
    )


def _preview(arguments: argparse.Namespace) -> int:
    picture = preview(_stream(arguments))
    if not cv2.imwrite(str(arguments.output), picture[..., ::-1]):
        raise ValueError(f"--output {arguments.output}: cannot be written")
    print(f"wrote {arguments.output}")
    return 0


def _bench(arguments: argparse.Namespace) -> int:
    patches = iter(_stream(arguments))
    next(patches)
    started = time.perf_counter()
    received = sum(patch["image"].nbytes for patch in itertools.islice(patches, arguments.patches))
    seconds = time.perf_counter() - started
    result = {
        "format_version": BENCH_FORMAT_VERSION,
        "benchmark": "online-patching stream",
        "patches": arguments.patches,
        "seconds": round(seconds, 3),
        "patches_per_second": round(arguments.patches / seconds, 1),
        "megabytes_per_second": round(received / 1e6 / seconds, 1),
    }
    print(json.dumps(result, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
