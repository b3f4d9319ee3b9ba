"""Does a stream keep up with the engine below it, and are workers or threads the faster way into training?

    python packages/online-patching/benchmarks/streaming.py [--rounds 5] [--patches 4096] [--output FOLDER] [--quick]

1. ``PatchStream`` against the engine alone, which reads the same patches, chosen beforehand, with as many under way.
2. ``PatchLoader``, in batches of 64, with no workers, and with 1, 2 and 4 worker processes.
3. The first patch of a cohort of 29,000 slides, from opening the catalog on, in a process that has imported all.

The first two on one CPU and on two, each in a process of its own that is kept on them; all take turns, round by round.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from measuring import Json, cpus, in_turns, parsed, parser_of, ratio, summary, target, wait_until_idle, write_report

SIZE_PX, MPP, MIN_FOREGROUND = 256, (2.0, 1.0, 0.5, 0.25), 0.4
BATCH_PATCHES = 64
# Read before the clock starts: caches fill, threads and workers start.
WARM_PATCHES = 512
WORKERS = (1, 2, 4)
SLIDES = 29_000
ENGINE, STREAM, NO_WORKERS = "engine alone", "PatchStream", "PatchLoader, no workers"
QUICK_PATCHES = 128


def main() -> None:
    """Measure, print, and write JSON."""
    parser = parser_of(__doc__)
    parser.add_argument("--patches", type=int, default=4096, help="a round of each reader")
    parser.add_argument("--measure", choices=["engine", "stream", "loader", "first"], help=argparse.SUPPRESS)
    parser.add_argument("--catalog", help=argparse.SUPPRESS)
    parser.add_argument("--workers", type=int, default=0, help=argparse.SUPPRESS)
    arguments = parsed(parser)
    if arguments.patches < QUICK_PATCHES:
        parser.error(f"--patches: got {arguments.patches}, allowed {QUICK_PATCHES} or more")
    if arguments.measure:
        print(json.dumps(_measure(arguments.measure, arguments.catalog, arguments.patches, arguments.workers)))
        return
    if arguments.quick:
        arguments.patches = QUICK_PATCHES
    from cohort_maker import cohort_of

    cohort = cohort_of(parser, arguments, "jpeg")
    results: Json = {}
    targets: list[Json] = []
    for count in (1, 2) if len(os.sched_getaffinity(0)) > 1 else (1,):
        readers = _readers(str(cohort.catalog), arguments.patches, cpus(count))
        samples = in_turns(arguments.rounds, readers)
        results[f"{count} cpus"] = {name: summary(each) for name, each in samples.items()}
        print(f"\n{count} {'CPU' if count == 1 else 'CPUs'}, {arguments.patches} patches a round")
        for name, each in samples.items():
            print(f"  {name:26} {np.median(each):7.0f} patches/s ({min(each):.0f} to {max(each):.0f})")
        share = ratio(samples[STREAM], samples[ENGINE])
        targets.append(target(f"{count} CPUs: stream over engine", share, at_least=0.9))
        for name in readers:
            if name.startswith("PatchLoader") and name != NO_WORKERS:
                over = ratio(samples[NO_WORKERS], samples[name])
                print(f"  no workers over {name.rpartition(', ')[2]}: {over:.2f}")
    first = [_first_patch(str(cohort.catalog), cpus(1)) for _ in range(arguments.rounds)]
    results["first patch"] = summary(first)
    targets.append(target(f"seconds to the first patch of {SLIDES} slides", float(np.median(first)), at_most=1.0))
    path = write_report(arguments, "streaming", {"patches": arguments.patches, "results": results, "targets": targets})
    print(f"written: {path}")


def _readers(catalog: str, patches: int, places: Sequence[int]) -> dict[str, Callable[[int], float]]:
    def reader(measure: str, workers: int = 0) -> Callable[[int], float]:
        return lambda _round: patches / _run(measure, catalog, patches, places, workers)

    loaders = {f"PatchLoader, {n} worker{'s' * (n > 1)}": reader("loader", n) for n in WORKERS}
    return {ENGINE: reader("engine"), STREAM: reader("stream"), NO_WORKERS: reader("loader"), **loaders}


def _run(measure: str, catalog: str, patches: int, places: Sequence[int], workers: int = 0) -> float:
    """Seconds that a process of its own took, on some CPUs alone."""
    options = ["--measure", measure, "--catalog", catalog, "--patches", str(patches), "--workers", str(workers)]
    command = ["taskset", "-c", ",".join(map(str, places)), sys.executable, __file__, *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{measure}: ended with {done.returncode}: {done.stderr[-2000:]}")
    return float(json.loads(done.stdout.splitlines()[-1]))


def _first_patch(catalog: str, places: Sequence[int]) -> float:
    with tempfile.TemporaryDirectory() as folder:
        _many_slides(Path(catalog), Path(folder))
        return _run("first", folder, QUICK_PATCHES, places)


def _many_slides(source: Path, folder: Path) -> None:
    """A catalog of very many slides: new ids for those of another catalog, whose files they share."""
    from online_patching.slide_table import SlideTable

    rows = SlideTable.from_parquet((source / "slides.parquet").read_bytes(), str(source))
    table = rows.arrow
    places = np.arange(SLIDES) % len(rows)
    many = table.take(places)
    ids = [f"slide_{number:06}" for number in range(SLIDES)]
    folders = [str(rows.value(place, "folder") or f"slides/{rows.value(place, 'id')}") for place in places.tolist()]
    for name, values in (("id", ids), ("folder", folders)):
        many = many.set_column(many.column_names.index(name), name, [values])
    for entry in source.iterdir():
        if entry.name != "slides.parquet":
            (folder / entry.name).symlink_to(entry.resolve())
    (folder / "slides.parquet").write_bytes(SlideTable(many).to_parquet())


def _measure(name: str, catalog: str, patches: int, workers: int) -> float:
    """Seconds for so many patches, once it runs; of ``first``, to the first one."""
    from online_patching import Catalog, PatchStream
    from online_patching.torch import PatchLoader

    if name == "first":
        # Its import belongs to the program's start.
        import pyarrow.parquet  # noqa: F401

        started = time.perf_counter()
        next(iter(PatchStream(catalog, size_px=SIZE_PX, mpp=MPP, min_foreground=MIN_FOREGROUND)))
        return time.perf_counter() - started
    stream = PatchStream(Catalog.open(catalog), size_px=SIZE_PX, mpp=MPP, min_foreground=MIN_FOREGROUND)
    if name == "engine":
        return _read_with_engine(stream, patches)
    if name == "stream":
        taken = iter(stream)
        _exhaust(itertools.islice(taken, WARM_PATCHES))
        started = time.perf_counter()
        _exhaust(itertools.islice(taken, patches))
        return time.perf_counter() - started
    batches = iter(PatchLoader(stream, batch_size=BATCH_PATCHES, num_workers=workers))
    # Each worker has read so much ahead when its first batch comes; that must be gone when the clock starts.
    _exhaust(itertools.islice(batches, (1 + workers) * WARM_PATCHES // BATCH_PATCHES))
    started = time.perf_counter()
    _exhaust(itertools.islice(batches, patches // BATCH_PATCHES))
    return time.perf_counter() - started


def _exhaust(items: object) -> None:
    for _ in items:  # type: ignore[attr-defined]
        pass


def _read_with_engine(stream: object, patches: int) -> float:
    """The stream's own patches, with as many under way as it has, and nothing else to do."""
    from online_patching import PatchRequest, PatchStream
    from online_patching.patch_feed import CHUNK_PATCHES, CHUNKS_AHEAD

    assert isinstance(stream, PatchStream)
    sampler, catalog = stream.sampler, stream.catalog
    samples = [sampler.draw(number) for number in range(WARM_PATCHES + patches)]
    requests = [
        PatchRequest(s.slide_id, s.position.x_level0_px, s.position.y_level0_px, SIZE_PX, s.mpp) for s in samples
    ]

    async def read(some: Sequence[PatchRequest]) -> None:
        chunks = iter([some[k : k + CHUNK_PATCHES] for k in range(0, len(some), CHUNK_PATCHES)])

        async def work() -> None:
            for chunk in chunks:
                await catalog.aread_patches(chunk)

        await asyncio.gather(*(work() for _ in range(CHUNKS_AHEAD)))

    async def both() -> float:
        await read(requests[:WARM_PATCHES])
        started = time.perf_counter()
        await read(requests[WARM_PATCHES:])
        return time.perf_counter() - started

    wait_until_idle()
    return asyncio.run(both())


if __name__ == "__main__":
    main()
