"""What do all benchmarks share: the machine's facts, rounds that take turns, medians, and the file of results?

Every reader does the same work once a round, one after the other, so that a noisy machine slows all of them alike:
the ratios are taken round by round, and their median counts. A result is one JSON object a program.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from online_patching.bench import machine

FORMAT_VERSION = 1
REPOSITORY = Path(__file__).resolve().parents[3]
# Sample slides and servers.
TOOLS = REPOSITORY / "tools"
# Git ignores it; what is painted there is found again by the next run.
DEFAULT_FOLDER = REPOSITORY / "build" / "bench"
LIBRARIES = (
    "online-patching",
    "cucim-cu13",
    "fastslide",
    "imagecodecs",
    "numpy",
    "nvidia-nvimgcodec-cu13",
    "obstore",
    "opencv-python-headless",
    "openslide-bin",
    "openslide-python",
    "simplejpeg",
    "tifffile",
    "tiffslide",
)
Json = dict[str, Any]


def parser_of(description: str | None) -> argparse.ArgumentParser:
    """A parser with the arguments that every benchmark has."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=DEFAULT_FOLDER, help="slides and catalogs are kept here")
    parser.add_argument("--output", type=Path, help="folder for the JSON and the plots (default: --folder)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--image", type=Path, help="paint the large slide from this image (JPEG, PNG or TIFF)")
    parser.add_argument("--slides", type=Path, help="folder of SVS or TIFF files to use instead of painted slides")
    parser.add_argument(
        "--quick", action="store_true", help="tiny inputs: shows that it runs, the figures mean nothing"
    )
    return parser


def parsed(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """The arguments, checked."""
    arguments = parser.parse_args()
    if arguments.rounds < 1:
        parser.error(f"--rounds: got {arguments.rounds}, allowed 1 or more")
    if arguments.slides is not None and not arguments.slides.is_dir():
        parser.error(f"--slides {arguments.slides}: no such folder")
    if arguments.image is not None and not arguments.image.is_file():
        parser.error(f"--image {arguments.image}: no such file")
    if arguments.quick:
        arguments.rounds = 1
    arguments.output = arguments.output or arguments.folder
    return arguments


def write_report(arguments: argparse.Namespace, benchmark: str, results: Mapping[str, Any]) -> Path:
    """Write ``<benchmark>.json`` into the output folder."""
    report = {
        "format_version": FORMAT_VERSION,
        "benchmark": benchmark,
        "quick": arguments.quick,
        "rounds": arguments.rounds,
        "machine": machine(LIBRARIES),
        **results,
    }
    arguments.output.mkdir(parents=True, exist_ok=True)
    path: Path = arguments.output / f"{benchmark}.json"
    path.write_text(json.dumps(report, indent=1) + "\n")
    return path


def in_turns(rounds: int, work: Mapping[str, Callable[[int], float]]) -> dict[str, list[float]]:
    """What each name gives in each round, the names taking turns; ``work`` is called with the number of the round."""
    samples: dict[str, list[float]] = {name: [] for name in work}
    for number in range(rounds):
        for name, run in work.items():
            samples[name].append(run(number))
    return samples


def summary(samples: Sequence[float]) -> Json:
    """Median, least and greatest, and the samples."""
    return {
        "median": statistics.median(samples),
        "least": min(samples),
        "greatest": max(samples),
        "samples": list(samples),
    }


def ratio(numerators: Sequence[float], denominators: Sequence[float]) -> float:
    """Median over the rounds of the ratio within a round."""
    return statistics.median(n / d for n, d in zip(numerators, denominators, strict=True))


def wait_until_idle() -> None:
    """Wait for what this process has started ahead: it must not run on in the next reader's turn."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        before = time.process_time()
        time.sleep(0.05)
        if time.process_time() - before < 0.01:
            return


def target(name: str, value: float, *, at_least: float | None = None, at_most: float | None = None) -> Json:
    """A figure beside what it should reach; prints it."""
    met = (at_least is None or value >= at_least) and (at_most is None or value <= at_most)
    bound = f"at least {at_least:g}" if at_least is not None else f"at most {at_most:g}"
    print(f"{'met   ' if met else 'MISSED'} {name}: {value:.3g}, target {bound}")
    return {"name": name, "value": value, "at_least": at_least, "at_most": at_most, "met": met}


def cpus(count: int) -> list[int]:
    """The last CPUs that this process may run on: the first one serves interrupts on many machines.

    Raises:
        ValueError: There are fewer.
    """
    allowed = sorted(os.sched_getaffinity(0))
    if count > len(allowed):
        raise ValueError(f"{count} CPUs are needed, this process may use {len(allowed)}")
    return allowed[-count:]
