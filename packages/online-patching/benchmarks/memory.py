"""Does memory stay flat over many patches, and is anything left after ``close()``?

    python packages/online-patching/benchmarks/memory.py [--patches 200000] [--output FOLDER] [--quick]

Two processes, each on a CPU of its own, read so many patches from a cohort on local disk: one through ``PatchStream``,
one through ``Catalog.read_patches``. Their resident memory is told from the end of the first fifth on, when caches and
buffers have found their size. A third process reads a few hundred from a web server. Each counts its threads, sockets
and open files before the first read and after ``online_patching.close()``.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from line_plot import write_line_plot
from measuring import Json, parsed, parser_of, target, wait_until_idle, write_report

SIZE_PX, MPP = 256, (1.0, 0.25)
SAMPLES = 200
QUICK_PATCHES = 128
BATCH_PATCHES = 64
WARM_SHARE = 0.2
REMOTE_PATCHES = 512
# Growth of the resident memory after the first fifth: what an allocator's fragments may cost, and no leak may hide in.
MAX_GROWTH_MIB = 32.0
# Its runtime belongs to the process and ends with it.
OBSTORE_THREAD = "tokio-rt-worker"


def main() -> None:
    """Measure, print, and write JSON and a plot."""
    parser = parser_of(__doc__)
    parser.add_argument("--patches", type=int, default=200_000)
    parser.add_argument("--measure", choices=list(MEASURES), help=argparse.SUPPRESS)
    parser.add_argument("--catalog", help=argparse.SUPPRESS)
    arguments = parsed(parser)
    if arguments.patches < QUICK_PATCHES:
        parser.error(f"--patches: got {arguments.patches}, allowed {QUICK_PATCHES} or more")
    if arguments.measure:
        print(json.dumps(_measure(arguments.measure, arguments.catalog, arguments.patches)))
        return
    if arguments.quick:
        arguments.patches = QUICK_PATCHES
    results = _run_all(parser, arguments)
    for result in results:
        _print(result)
    targets = []
    for result in results:
        name = result["measure"]
        if "growth_mib" in result:
            targets.append(target(f"{name}: MiB grown", result["growth_mib"], at_most=MAX_GROWTH_MIB))
        left = sum(sum(each.values()) for each in result["left"].values())
        if result["has_close"]:
            targets.append(target(f"{name}: threads, sockets and files left after close", left, at_most=0))
    path = write_report(arguments, "memory", {"patches": arguments.patches, "results": results, "targets": targets})
    _plot(arguments.output, results)
    print(f"written: {path}")


def _run_all(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> list[Json]:
    """The three processes; the local ones side by side."""
    from cohort_maker import cohort_of, index
    from nginx_server import NginxServer
    from server_process import MissingServerError

    cohort = cohort_of(parser, arguments, "jpeg")
    allowed = sorted(os.sched_getaffinity(0))
    with ExitStack() as stack:
        started = [
            _start("stream", str(cohort.catalog), arguments.patches, allowed[-1]),
            _start("read_patches", str(cohort.catalog), arguments.patches, allowed[0]),
        ]
        try:
            entries = next(iter(cohort.entries.values())).parent
            server = stack.enter_context(NginxServer(entries))
            temporary = stack.enter_context(tempfile.TemporaryDirectory())
            urls = [server.url("open", path.name) for path in cohort.entries.values()]
            catalog = index(Path(temporary) / "catalog", urls)
            patches = QUICK_PATCHES if arguments.quick else REMOTE_PATCHES
            started.append(_start("remote", str(catalog), patches, allowed[-1]))
        except MissingServerError as error:
            print(f"remote: left out: {error}")
        return [_finished(process) for process in started]


def _start(measure: str, catalog: str, patches: int, cpu: int) -> subprocess.Popen[str]:
    command = [sys.executable, __file__, "--measure", measure, "--catalog", catalog, "--patches", str(patches)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    os.sched_setaffinity(process.pid, [cpu])
    return process


def _finished(process: subprocess.Popen[str]) -> Json:
    output, _ = process.communicate()
    if process.returncode:
        raise RuntimeError(f"{process.args!r}: ended with {process.returncode}")
    found: Json = json.loads(output.splitlines()[-1])
    return found


def _measure(name: str, catalog: str, patches: int) -> Json:
    """In a process of its own: resident memory along the way, and what is left at the end."""
    import online_patching
    import pyarrow.parquet as pq

    # Arrow's own threads start with the first table that is read; they are not this package's.
    pq.read_table(Path(catalog) / "slides.parquet")
    before = _open_things()
    started = time.perf_counter()
    curve = MEASURES[name](catalog, patches)
    seconds = time.perf_counter() - started
    wait_until_idle()
    in_use = _open_things()
    close = getattr(online_patching, "close", None)
    if close is not None:
        close()
    time.sleep(0.2)
    after = _open_things()
    result: Json = {
        "measure": name,
        "patches": patches,
        "patches_per_second": patches / seconds,
        "has_close": close is not None,
        "before": {kind: len(each) for kind, each in before.items()},
        "in_use": {kind: len(each) for kind, each in in_use.items()},
        "after_close": {kind: len(each) for kind, each in after.items()},
        "left": _left(after, before),
        "threads_of_obstore": after["threads"].count(OBSTORE_THREAD),
    }
    return result | (_growth(curve) if name != "remote" else {})


def _read_stream(catalog: str, patches: int) -> list[tuple[int, float]]:
    from online_patching import PatchStream

    found = iter(PatchStream(catalog, size_px=SIZE_PX, mpp=MPP, seed=0))
    try:
        return _sampled((1 for _ in itertools.islice(found, patches)), patches)
    finally:
        found.close()  # type: ignore[attr-defined]


def _read_patches(catalog: str, patches: int) -> list[tuple[int, float]]:
    from online_patching import Catalog, PatchRequest
    from online_patching.sampler import PatchSampler

    opened = Catalog.open(catalog)
    sampler = PatchSampler(opened, size_px=SIZE_PX, mpp=MPP, min_foreground=0.4, seed=0)

    def read() -> Iterator[int]:
        for first in range(0, patches, BATCH_PATCHES):
            samples = [sampler.draw(number) for number in range(first, min(first + BATCH_PATCHES, patches))]
            requests = [
                PatchRequest(s.slide_id, s.position.x_level0_px, s.position.y_level0_px, SIZE_PX, s.mpp)
                for s in samples
            ]
            yield len(opened.read_patches(requests))

    return _sampled(read(), patches)


MEASURES: dict[str, Callable[[str, int], list[tuple[int, float]]]] = {
    "stream": _read_stream,
    "read_patches": _read_patches,
    "remote": _read_stream,
}


def _sampled(counts: Iterator[int], patches: int) -> list[tuple[int, float]]:
    """(patches so far, resident MiB) about ``SAMPLES`` times."""
    curve: list[tuple[int, float]] = []
    done = 0
    step = patches / min(SAMPLES, patches)
    for count in counts:
        done += count
        if done >= step * (len(curve) + 1):
            curve.append((done, _resident_mib()))
    return curve


def _growth(curve: list[tuple[int, float]]) -> Json:
    """Growth and slope after the first fifth."""
    warm = curve[int(WARM_SHARE * len(curve)) :]
    part = max(1, len(warm) // 10)
    first, last = (statistics.median(mib for _, mib in piece) for piece in (warm[:part], warm[-part:]))
    slope = statistics.linear_regression([n for n, _ in warm], [mib for _, mib in warm]).slope
    return {
        "curve": curve,
        "warm_mib": first,
        "last_mib": last,
        "growth_mib": last - first,
        "slope_bytes_per_patch": slope * 2**20,
    }


def _resident_mib() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def _open_things() -> dict[str, list[str]]:
    """Names of this process's threads, sockets and other open files."""
    names = []
    for entry in Path("/proc/self/fd").iterdir():
        try:
            names.append(str(entry.readlink()))
        except FileNotFoundError:
            # The descriptor of the listing itself.
            continue
    threads = Path("/proc/self/task").glob("*/comm")
    return {
        "python_threads": sorted(thread.name.rstrip("0123456789") for thread in threading.enumerate()),
        "threads": sorted(path.read_text().strip() for path in threads),
        "sockets": sorted("socket" for name in names if name.startswith("socket:")),
        "files": sorted(name.partition(":[")[0] for name in names if not name.startswith("socket:")),
    }


def _left(after: dict[str, list[str]], before: dict[str, list[str]]) -> dict[str, dict[str, int]]:
    """What is there now and was not before, by name, without what libraries keep until the process ends."""
    left = {kind: Counter(names) - Counter(before[kind]) for kind, names in after.items()}
    if left["threads"].pop(OBSTORE_THREAD, 0):
        # Its pollers.
        left["files"].pop("anon_inode", None)
    if "uvloop" in sys.modules and left["files"]["pipe"]:
        # libuv's lock for signals: one a process, for good.
        left["files"] -= Counter(pipe=2)
    return {kind: dict(counts) for kind, counts in left.items()}


def _print(result: Json) -> None:
    print(f"\n{result['measure']}: {result['patches']} patches, {result['patches_per_second']:.0f} a second")
    if "growth_mib" in result:
        print(
            f"  resident {result['warm_mib']:.0f} MiB after the first fifth, {result['last_mib']:.0f} MiB at the end,"
            f" {result['slope_bytes_per_patch']:.1f} bytes a patch"
        )
    for state in ("before", "in_use", "after_close"):
        print(f"  {state:12} " + ", ".join(f"{count} {kind}" for kind, count in result[state].items()))
    left = {kind: each for kind, each in result["left"].items() if each}
    print(f"  left {'after close()' if result['has_close'] else '(this version has no close())'}: {left or 'nothing'}")


def _plot(output: Path, results: list[Json]) -> None:
    lines: dict[str, Any] = {each["measure"]: each["curve"] for each in results if each.get("curve")}
    write_line_plot(
        output / "memory.svg",
        title="Resident memory",
        x_label="patches read",
        y_label="MiB",
        lines=lines,
    )


if __name__ == "__main__":
    main()
