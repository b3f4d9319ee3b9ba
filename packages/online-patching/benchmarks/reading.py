"""Random patches from local slides: this package beside OpenSlide, cuCIM, fastslide and tiffslide.

    python packages/online-patching/benchmarks/reading.py [--rounds 5] [--output FOLDER] [--codecs jpeg] [--quick]

Tasks: patches of 256 px, off the tile grid, at the stored resolution (0.25 um/px) and at half of it (from level 0,
since the pyramid has nothing between 40x and 10x): anywhere on one large slide, in its foreground, and in the
foreground of a cohort of 200 entries, uniformly over these. Glass takes little decoding, tissue much. For the cohort
this package opens its catalog anew each round and draws the positions within the time that counts: tile tables and
polygons are read then. All others get the positions ready made.

Every reader is a process of its own, pinned to one CPU (with two threads: to two). Its pixels are compared with
OpenSlide's first; one that returns others is named and not timed (but for ``decode=fast``, whose difference is told).
Then all take turns, slice by slice, so that a machine whose speed changes from second to second is as fast for one as
for the other; a round is the sum of its slices, and has other positions than the round before. "Pure decoding" is this
package's decoder in a tight loop over the same tiles: the ceiling of whoever decodes whole tiles.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import replace
from typing import Any, get_args

import numpy as np
from cohort_maker import MPP, CodecName, Cohort, cohort_of
from line_plot import write_line_plot
from measuring import Json, cpus, parsed, parser_of, ratio, summary, target, write_report
from online_patching import Catalog
from online_patching.sampler import PatchSampler
from reading_readers import (
    BATCH_PATCHES,
    CEILINGS,
    MIN_FOREGROUND,
    OURS,
    OURS_FAST,
    OURS_NVIMGCODEC,
    READERS,
    SIZE_PX,
    MissingReaderError,
    Pixels,
    Task,
    Window,
)
from reading_worker import ReaderError, Spent, Worker
from tile_layout import needs_of

ORACLE, CUCIM = "OpenSlide", "cuCIM"
# Beside those with more threads, so that the growth is told within a round.
ONE_THREAD = "online-patching, one thread"
COMPARED_PATCHES = 24
# Of a slice, bare decoding gets so many.
CEILING_PATCHES = 128
# Slices of a round: short for one thread; with more, a slice has to be long beside its start and its end.
SLICES, SLICES_OF_THREADS, LEAST_SLICE = 8, 2, 128
# So many times fewer patches for who would take all the time; the figures are per patch.
SLOW = {"tiffslide": 8}
TITLES = {MPP: "stored level", 2 * MPP: "20x out of 40x"}


def main() -> None:
    """Measure, print, and write JSON and plots."""
    parser = parser_of(__doc__)
    parser.add_argument("--patches", type=int, default=2048, help="of a round at the stored level (JPEG)")
    parser.add_argument("--codecs", nargs="+", choices=get_args(CodecName), default=list(get_args(CodecName)))
    parser.add_argument("--readers", nargs="+", choices=list(READERS), default=list(READERS))
    parser.add_argument("--threads", type=int, nargs="+", help="numbers of threads (default: 1, 2, 4, ... all cores)")
    arguments = parsed(parser)
    if arguments.quick:
        arguments.readers, arguments.threads, arguments.codecs = [OURS, ORACLE, *CEILINGS[:1]], [1], ["jpeg"]
    if arguments.patches < 1:
        parser.error(f"--patches: got {arguments.patches}, allowed 1 or more")
    cores = len(os.sched_getaffinity(0))
    threads = arguments.threads or sorted({*(2**k for k in range(cores.bit_length()) if 2**k <= cores), cores})
    if not all(1 <= count <= cores for count in threads):
        parser.error(f"--threads: got {threads}, allowed 1 to {cores}")
    tasks: list[Task] = []
    for codec in arguments.codecs:
        cohort = cohort_of(parser, arguments, codec)
        tasks += _tasks(cohort, 48 if arguments.quick else arguments.patches)
    results: list[Json] = []
    for count in threads:
        # How JPEG 2000 grows with threads is OpenJPEG's affair; it takes long.
        chosen = [task for task in tasks if count == 1 or task.codec == "jpeg"]
        with ExitStack() as stack:
            workers, missing = _start(stack, count, arguments.readers)
            for task in chosen:
                results.append(_measure(task, workers, missing, arguments.rounds, count))
                results[-1]["threads"] = count
                _print(results[-1])
    print()
    targets = _targets(results)
    path = write_report(arguments, "reading", {"batch_patches": BATCH_PATCHES, "results": results, "targets": targets})
    _plot(arguments, results)
    print(f"written: {path}")
    wrong = [f"{r['task']}: {name}" for r in results for name, row in r["readers"].items() if row.get("wrong_pixels")]
    if any(name.endswith(OURS) for name in wrong):
        sys.exit(f"other pixels than {ORACLE}: {'; '.join(wrong)}")


def _tasks(cohort: Cohort, patches: int) -> Iterable[Task]:
    """Both resolutions of the large slide and of the cohort."""
    jpeg = cohort.codec == "jpeg"
    for mpp in (MPP, 2 * MPP):
        # A patch of half the resolution needs three times the tiles, JPEG 2000 ten times the time.
        count = max(16, patches // (1 if mpp == MPP else 3) // (1 if jpeg else 16))
        title = f"{cohort.codec}, {TITLES[mpp]}"
        for place in ("anywhere on one slide", "one slide") if jpeg else ("one slide",):
            yield Task(
                f"{title}, {place}",
                cohort.codec,
                "slide",
                mpp,
                max(16, count // 2),
                str(cohort.large_catalog),
                cohort.large_id,
                anywhere=place.startswith("anywhere"),
            )
        name = f"{title}, {len(cohort.entries)} entries"
        yield Task(name, cohort.codec, "drawn", mpp, count, str(cohort.catalog))


def _windows(task: Task, seed: int) -> list[Window]:
    """What this package draws from a seed, for the others; or positions anywhere on one slide."""
    catalog = Catalog.open(task.catalog)
    side = round(SIZE_PX * task.mpp / MPP)
    if task.anywhere:
        row, rng = catalog.row(task.slide_id), np.random.default_rng(seed)
        corners = rng.integers(0, (row.width_px - side + 1, row.height_px - side + 1), (task.patches, 2)).tolist()
        return [Window(row.url, x, y, side) for x, y in corners]
    sampler = PatchSampler(catalog, size_px=SIZE_PX, mpp=[task.mpp], min_foreground=MIN_FOREGROUND, seed=seed)
    urls = {row.id: row.url for row in catalog}
    samples = [sampler.draw(number) for number in range(task.patches)]
    return [Window(urls[s.slide_id], s.position.x_level0_px, s.position.y_level0_px, side) for s in samples]


def _start(stack: ExitStack, threads: int, names: Iterable[str]) -> tuple[dict[str, Worker], dict[str, str]]:
    """The readers that can be had, and why the others cannot."""
    workers = {name: stack.enter_context(Worker(name, cpus(threads))) for name in names}
    if threads > 1 and OURS in workers:
        workers[ONE_THREAD] = stack.enter_context(Worker(OURS, cpus(1)))
    missing: dict[str, str] = {}
    for name in list(workers):
        try:
            workers[name].wait_until_ready()
        except (MissingReaderError, ReaderError) as error:
            missing[name] = str(error)
            del workers[name]
    return workers, missing


def _measure(task: Task, workers: dict[str, Worker], missing: dict[str, str], rounds: int, threads: int) -> Json:
    """All readers on one task."""
    able = {name: worker for name, worker in workers.items() if _fits(name, task)}
    rows: dict[str, Json] = {name: {} for name in able} | {name: {"left_out": why} for name, why in missing.items()}
    windows = _windows(task, seed=0)
    _compare(task, windows, able, rows)
    needs = needs_of(windows, batch=BATCH_PATCHES)
    spent: dict[str, list[Spent]] = {name: [] for name in able}
    least = LEAST_SLICE if task.codec == "jpeg" else LEAST_SLICE // 8
    slice_patches = max(least, -(-task.patches // (SLICES if threads == 1 else SLICES_OF_THREADS)))
    for number in range(rounds):
        windows = _windows(task, seed=number)
        slices: dict[str, list[Spent]] = {name: [] for name in able}
        for first in range(0, task.patches, slice_patches):
            part = windows[first : first + slice_patches]
            for name, worker in list(able.items()):
                try:
                    slices[name].append(_slice(task, part, worker, number, first))
                except MissingReaderError as error:
                    rows[name]["left_out"] = str(error)
                    del able[name], spent[name]
        for name in able:
            spent[name].append(Spent.of_one(slices[name]))
    for name in spent:
        rows[name] |= _figures(name, spent)
        if name in (OURS, OURS_NVIMGCODEC, OURS_FAST):
            rows[name]["share_of_ceiling"] = _shares(name, spent, needs.distinct_tiles / task.patches)
    return {
        "task": task.name,
        "codec": task.codec,
        "source": task.source,
        "mpp": task.mpp,
        "patches": task.patches,
        "tiles_per_patch": needs.tiles / task.patches,
        "tiles_saved_by_sharing": needs.saved_share,
        "readers": rows,
    }


def _fits(name: str, task: Task) -> bool:
    """Whether a variant differs from the default at this task."""
    if name == OURS_FAST:
        # Where the stored level is asked for, nothing is reduced.
        return task.mpp != MPP
    return task.codec == "jpeg" or not name.endswith("[nvimgcodec]")


def _compare(task: Task, windows: list[Window], workers: dict[str, Worker], rows: dict[str, Json]) -> None:
    """Leave out who returns other pixels than the oracle, and say so."""
    some = windows[:COMPARED_PATCHES]
    few = replace(task, patches=len(some))
    expected = workers[ORACLE].pixels(few, some, 0) if ORACLE in workers else None
    for name in list(workers):
        if name in CEILINGS:
            continue
        try:
            got = workers[name].pixels(few, some, 0)
        except (MissingReaderError, ReaderError) as error:
            rows[name]["left_out"] = str(error)
            del workers[name]
            continue
        if expected is None:
            continue
        greatest, mean = _difference(got, expected)
        rows[name] |= {"greatest_difference": greatest, "mean_difference": mean}
        if greatest and name != OURS_FAST:
            rows[name]["wrong_pixels"] = True
            del workers[name]


def _difference(got: list[Pixels], expected: list[Pixels]) -> tuple[int, float]:
    """Greatest and mean absolute difference."""
    pairs = list(zip(got, expected, strict=True))
    if any(a.shape != b.shape for a, b in pairs):
        return 255, 255.0
    differences = [np.abs(a.astype(np.int16) - b) for a, b in pairs]
    return int(max(d.max() for d in differences)), float(np.mean([d.mean() for d in differences]))


def _slice(task: Task, part: list[Window], worker: Worker, number: int, first: int) -> Spent:
    """What the patches of a slice take, or their tiles in bare decoding."""
    if worker.name in CEILINGS:
        tiles = worker.prepare(task, part[:CEILING_PATCHES])
        return worker.read(task, (), number, first)._replace(count=tiles)
    return worker.read(task, part[: max(1, len(part) // SLOW.get(worker.name, 1))], number, first)


def _figures(name: str, spent: dict[str, list[Spent]]) -> Json:
    what = "tiles" if name in CEILINGS else "patches"
    figures: Json = {
        f"{what}_per_second": summary([1 / each.seconds for each in spent[name]]),
        # A thread of its own that others disturb loses time by the clock, not CPU time.
        f"{what}_per_cpu_second": summary([1 / each.cpu_seconds for each in spent[name]]),
    }
    if name not in CEILINGS:
        others = [other for other in (ORACLE, CUCIM, ONE_THREAD) if other in spent and other != name]
        figures["times_as_fast_as"] = {other: _times(spent[other], spent[name]) for other in others}
        figures["times_as_fast_as_by_cpu_time"] = {
            other: ratio([o.cpu_seconds for o in spent[other]], [own.cpu_seconds for own in spent[name]])
            for other in others
        }
    return figures


def _times(others: list[Spent], own: list[Spent]) -> float:
    return ratio([other.seconds for other in others], [each.seconds for each in own])


def _shares(name: str, spent: dict[str, list[Spent]], tiles_per_patch: float) -> dict[str, float]:
    """Patches a second over (tiles a second of bare decoding / tiles a patch)."""
    ceilings = [each for each in CEILINGS if each in spent]
    return {
        each: tiles_per_patch * _times(spent[each], spent[name])
        for each in ceilings
        # Of the same decoder, or of whole tiles.
        if each == CEILINGS[0] or each.endswith("[nvimgcodec]") == name.endswith("[nvimgcodec]")
    }


def _print(result: Json) -> None:
    print(
        f"\n{result['task']}, {result['threads']} thread(s), {result['patches']} patches a round:"
        f" {result['tiles_per_patch']:.2f} tiles a patch, {result['tiles_saved_by_sharing']:.1%} saved by sharing"
    )
    for name, row in result["readers"].items():
        print(f"  {name:32} {_row_text(row)}", flush=True)
        for ceiling, share in row.get("share_of_ceiling", {}).items():
            print(f"  {'':32} {share:8.0%} of {ceiling}", flush=True)


def _row_text(row: dict[str, Any]) -> str:
    if "left_out" in row:
        return f"left out: {row['left_out']}"
    if row.get("wrong_pixels"):
        return f"not timed: its pixels differ from {ORACLE}'s by up to {row['greatest_difference']}"
    if "tiles_per_second" in row:
        return f"{row['tiles_per_second']['median']:8.0f} tiles/s"
    speed = row["patches_per_second"]
    times = "".join(
        f"   x{times:5.2f} {peer} ({row['times_as_fast_as_by_cpu_time'][peer]:.2f} by CPU time)"
        for peer, times in row["times_as_fast_as"].items()
    )
    note = f"   differs by {row['mean_difference']:.2f} on average" if row.get("greatest_difference") else ""
    return f"{speed['median']:8.1f} patches/s ({speed['least']:.1f} to {speed['greatest']:.1f}){times}{note}"


def _targets(results: list[Json]) -> list[Json]:
    """The figures that the package promises."""
    promised: dict[tuple[str, float, str], dict[str, float]] = {
        ("jpeg", MPP, OURS): {ORACLE: 2.4, CUCIM: 1.0, ONE_THREAD: 1.8},
        ("jpeg", MPP, OURS_NVIMGCODEC): {ORACLE: 3.3, CUCIM: 1.3},
        ("jpeg", 2 * MPP, OURS): {ORACLE: 4.0},
        ("jpeg2000", MPP, OURS): {ORACLE: 1.0},
        ("jpeg2000", 2 * MPP, OURS_FAST): {ORACLE: 1.8},
    }
    found = []
    for result in results:
        for name, row in result["readers"].items():
            bounds = promised.get((result["codec"], result["mpp"], name), {})
            for other, times in row.get("times_as_fast_as", {}).items():
                if other in bounds and (result["threads"] == 1 or other == ONE_THREAD):
                    about = f"{result['task']}, {result['threads']} thread(s): {name} over {other}"
                    found.append(target(about, times, at_least=bounds[other]))
            share = row.get("share_of_ceiling", {}).get(CEILINGS[0])
            if share is not None and name == OURS and result["threads"] == 1 and result["mpp"] == MPP:
                found.append(target(f"{result['task']}: share of the ceiling of whole tiles", share, at_least=0.9))
    return found


def _plot(arguments: argparse.Namespace, results: list[Json]) -> None:
    """Patches a second over threads, one line a reader, of the cohort's JPEG patches."""
    for mpp, title in TITLES.items():
        lines: dict[str, list[tuple[float, float]]] = {}
        for result in results:
            if result["codec"] != "jpeg" or result["mpp"] != mpp or result["source"] != "drawn":
                continue
            for name, row in result["readers"].items():
                if "patches_per_second" in row:
                    lines.setdefault(name, []).append((result["threads"], row["patches_per_second"]["median"]))
        if lines:
            write_line_plot(
                arguments.output / f"reading_threads_{'stored' if mpp == MPP else '20x'}.svg",
                title=f"Local JPEG slides, {title}, a cold catalog of many slides",
                x_label="threads",
                y_label="patches a second",
                lines=lines,
            )


if __name__ == "__main__":
    main()
