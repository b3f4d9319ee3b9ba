"""Random patches from one slide: this package beside OpenSlide, the same work in the same run.

    python packages/online-patching/benchmarks/readers.py [SLIDE] [--patches 512] [--rounds 5]

Every reader gets the same random positions, as often as it has cores in threads and alone, in turn over several rounds,
so that a noisy machine slows all of them alike: the ratios count. At the slide's own resolution the pixels are compared
first; a reader that returns others is not timed. Prints a table and one JSON line.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import openslide
from online_patching import open_slide

FORMAT_VERSION = 1
SIZE_PX = 256
Corners = list[tuple[int, int]]
Pixels = npt.NDArray[np.uint8]


def main() -> None:
    """Time the readers and print what they did."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("slide", nargs="?", help="a slide with mpp on local disk (default: a sample slide, made here)")
    parser.add_argument("--patches", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = arguments.slide or _sample_slide(Path(folder))
        results = [
            result
            for factor in (1, 2)
            for result in _compare(path, factor=factor, patches=arguments.patches, rounds=arguments.rounds)
        ]
    for result in results:
        print("{task:42} {reader:22} {patches_per_second:8.0f} patches/s   x{ratio:.2f}".format(**result))
    print(json.dumps({"format_version": FORMAT_VERSION, "benchmark": "readers", "results": results}))


def _sample_slide(folder: Path) -> str:
    sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "tools"))
    from make_sample_slides import make_slides

    make_slides(folder, slides=1)
    return str(folder / "slide_00.svs")


def _compare(path: str, *, factor: int, patches: int, rounds: int) -> list[dict[str, object]]:
    """Patches at the slide's resolution (factor 1) or at half of it (factor 2)."""
    slide, oracle = open_slide(path), openslide.OpenSlide(path)
    assert slide.mpp is not None, f"{path}: a slide with mpp is needed"
    base, side = slide.levels[0], SIZE_PX * factor
    rng = np.random.default_rng(0)
    corners: Corners = [
        (int(rng.integers(base.width_px - side)), int(rng.integers(base.height_px - side))) for _ in range(patches)
    ]
    target = slide.mpp * factor

    def ours(part: Corners) -> list[Pixels]:
        batches = [part[k : k + 32] for k in range(0, len(part), 32)]
        return [patch for batch in batches for patch in slide.read_patches(batch, size_px=SIZE_PX, mpp=target)]

    def one(corner: tuple[int, int]) -> Pixels:
        pixels = np.asarray(oracle.read_region(corner, 0, (side, side)).convert("RGB"))
        return pixels if factor == 1 else cv2.resize(pixels, (SIZE_PX, SIZE_PX), interpolation=cv2.INTER_AREA)

    cores = os.cpu_count() or 1
    pool = ThreadPoolExecutor(cores)
    readers: dict[str, Callable[[Corners], list[Pixels]]] = {
        "online-patching": ours,
        "OpenSlide, 1 thread": lambda part: [one(corner) for corner in part],
        f"OpenSlide, {cores} threads": lambda part: list(pool.map(one, part)),
    }
    for name, read in readers.items():
        for got, expected in zip(read(corners[:16]), ours(corners[:16]), strict=True):
            assert np.array_equal(got, expected), f"{name} returns other pixels"
    seconds: dict[str, list[float]] = {name: [] for name in readers}
    for _ in range(rounds):
        for name, read in readers.items():
            started = time.perf_counter()
            read(corners)
            seconds[name].append(time.perf_counter() - started)
    first = seconds["online-patching"]
    return [
        {
            "task": f"{SIZE_PX} px at {target:g} um/px of a {slide.mpp:g} um/px slide",
            "reader": name,
            "patches_per_second": patches / statistics.median(times),
            # How many times faster this package is, round by round.
            "ratio": statistics.median(t / own for t, own in zip(times, first, strict=True)),
        }
        for name, times in seconds.items()
    ]


if __name__ == "__main__":
    main()
