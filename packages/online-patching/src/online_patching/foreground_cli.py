"""The command ``online-patching foreground``: its options, and what it says."""

from __future__ import annotations

import argparse
import math
import sys
from typing import get_args

from online_patching.annotation_job import GeoJsonMode, import_geojson
from online_patching.failures import JobReport, failed_lines
from online_patching.foreground import MIN_AREA_MM2, SIMPLIFY_UM, PolygonRules
from online_patching.foreground_job import EMPTY, compute_foreground
from online_patching.thumbnail import MAX_BYTES
from online_patching.tissue import METHODS

# So many slides are named where many share a fault; of the others the number is told.
NAMED_SLIDES = 20


def add_foreground_arguments(command: argparse.ArgumentParser) -> None:
    """The options of the command."""
    command.add_argument("--redo", action="store_true", help="also of slides that have one")
    command.add_argument(
        "--method",
        default=METHODS[0],
        help=f"how tissue is found: {', '.join(METHODS)}, or an .onnx file of yours (default: %(default)s)",
    )
    command.add_argument(
        "--min-area-mm2",
        type=float,
        help=f"parts and holes below are dropped (default: {MIN_AREA_MM2:g}, less on small slides; without um/px"
        " 0.02 %% of the slide)",
    )
    command.add_argument(
        "--simplify-um",
        type=float,
        help=f"by how much the outline may move (default: {SIMPLIFY_UM:g}, less on small slides; without um/px"
        " one pixel of the thumbnail)",
    )
    command.add_argument(
        "--max-mb",
        type=float,
        default=MAX_BYTES / 1e6,
        help="read of a slide at most; where its levels are larger, a part of its tiles (default: %(default)g)",
    )
    drawn = command.add_argument_group("annotations drawn in QuPath, instead of finding tissue")
    drawn.add_argument("--geojson", metavar="FILE OR FOLDER", help="GeoJSON named after the slides' ids: a.geojson")
    drawn.add_argument(
        "--geojson-mode",
        choices=get_args(GeoJsonMode),
        default="replace",
        help="the area drawn is the foreground, limits it, or is cut out of it (default: %(default)s)",
    )
    drawn.add_argument("--geojson-class", nargs="+", default=[], metavar="CLASS", help="only annotations of these")
    drawn.add_argument("--slide", metavar="ID", help="the slide of a single file, where its name does not tell")


def run_foreground(arguments: argparse.Namespace) -> int:
    """Find the foreground, or take it from annotations; returns the exit code."""
    return _import(arguments) if arguments.geojson is not None else _compute(arguments)


def find_foreground(arguments: argparse.Namespace) -> int:
    """Find the foreground of slides that have none, for a command without the options of this one."""
    report = compute_foreground(
        arguments.catalog,
        storage_options=arguments.storage_options,
        slide_storage_options=arguments.slide_storage_options,
    )
    return _say(f"found the foreground of {report.done} slides (method {METHODS[0]}), {report.kept} had one", report)


def print_failures(report: JobReport, where: str = "") -> int:
    """One line a slide that was left out; returns the exit code.

    Args:
        report: Of the job.
        where: Where all of them can be read.
    """
    for line in failed_lines(report.failures[:NAMED_SLIDES]):
        print(line, file=sys.stderr)
    if len(report.failures) > NAMED_SLIDES:
        print(f"{len(report.failures) - NAMED_SLIDES} more were left out{where}", file=sys.stderr)
    return 1 if report.failures else 0


def _compute(arguments: argparse.Namespace) -> int:
    for name in ("geojson_class", "slide"):
        if getattr(arguments, name):
            raise ValueError(f"--{name.replace('_', '-')} is of use with --geojson only")
    if not 0 < arguments.max_mb < math.inf:
        raise ValueError(f"--max-mb: got {arguments.max_mb}, allowed a number above 0")
    report = compute_foreground(
        arguments.catalog,
        storage_options=arguments.storage_options,
        slide_storage_options=arguments.slide_storage_options,
        redo=arguments.redo,
        method=arguments.method,
        rules=PolygonRules(arguments.min_area_mm2, arguments.simplify_um),
        max_thumbnail_bytes=max(1, round(arguments.max_mb * 1e6)),
    )
    done = f"found the foreground of {report.done} slides (method {arguments.method}), {report.kept} had one"
    return _say(f"{done}: {report.bytes_read / 1e6:.1f} MB read" if report.bytes_read else done, report)


def _import(arguments: argparse.Namespace) -> int:
    if arguments.redo:
        raise ValueError("--redo finds tissue anew; it goes without --geojson")
    report = import_geojson(
        arguments.catalog,
        arguments.geojson,
        mode=arguments.geojson_mode,
        classes=arguments.geojson_class,
        slide=arguments.slide,
        storage_options=arguments.storage_options,
    )
    changed = {"replace": "taken from", "intersect": "limited to", "subtract": "freed of"}[arguments.geojson_mode]
    return _say(
        f"foreground of {report.done} slides {changed} annotations, {report.kept} slides have no file and stay as they"
        " are",
        report,
    )


def _say(done: str, report: JobReport) -> int:
    for note in report.notes[:NAMED_SLIDES]:
        print(note, file=sys.stderr)
    if len(report.notes) > NAMED_SLIDES:
        print(f"{len(report.notes) - NAMED_SLIDES} more slides have such notes", file=sys.stderr)
    empty = sum(failure.error == EMPTY for failure in report.failures)
    print(f"{done}; {empty} have none and serve no patches" if empty else done)
    return print_failures(report)
