"""How many patch positions are drawn a second on one core, beside rejection with shapely?

    python packages/online-patching/benchmarks/sampling.py [--rounds 5] [--output FOLDER] [--quick]

A slide of 100,000 x 80,000 pixels at 0.25 um/px, patches of 256 px at 0.5 um/px, 40 % foreground. Tasks:

- a polygon of 2,000 corners with a hole and a second part, another one for every position, as in training on a large
  cohort: what counts is from the bytes of its WKB in memory to the accepted position, with the sample's generator;
  reading the file is left out;
- many positions on one such polygon, each a pure function of (seed, number): ``sample_positions``;
- the same through ``sample_position``, a call each;
- a strip 100 pixels wide across the slide, where few positions are allowed: another outline every time, and one.

The peer draws corners in the polygon's bounds, and takes the first whose square has enough of its area in the
intersection that shapely (prepared, where one polygon is asked often) computes. All take turns, round by round. A
second is one of CPU time of one thread, so that other programs on the machine take little part in it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import shapely
from measuring import Json, cpus, in_turns, parsed, parser_of, ratio, summary, target, write_report
from online_patching.outline import Outline
from online_patching.sampling import generator, sample_position, sample_positions

WIDTH, HEIGHT, SIDE, MIN_FOREGROUND = 100_000, 80_000, 512, 0.4
CORNERS, POLYGONS = 2000, 200
OURS, PEER = "online-patching", "shapely"
ARGUMENTS: Any = {
    "size_level0_px": SIDE,
    "width_level0_px": WIDTH,
    "height_level0_px": HEIGHT,
    "min_foreground": MIN_FOREGROUND,
}


def main() -> None:
    """Measure, print, and write JSON."""
    arguments = parsed(parser_of(__doc__))
    os.sched_setaffinity(0, cpus(1))
    polygons = [_tissue(np.random.default_rng(number)) for number in range(20 if arguments.quick else POLYGONS)]
    strips = [_strip(number) for number in range(len(polygons))]
    times = 1 if arguments.quick else 5
    results: list[Json] = []
    for name, work in (
        ("another polygon of 2,000 corners each time", _each(polygons, times)),
        ("one polygon, many at once", _one(polygons[0], 2000 * times)),
        ("one polygon, one by one", _one_by_one(polygons[0], 200 * times)),
        ("another strip each time", _each(strips, 1, most=2 if arguments.quick else 20)),
        ("one strip, one by one", _one_by_one(strips[0], 10 * times)),
    ):
        speeds = in_turns(arguments.rounds, work)
        results.append(
            {
                "task": name,
                "positions_per_second": {reader: summary(samples) for reader, samples in speeds.items()},
                "times_as_fast_as_shapely": ratio(speeds[OURS], speeds[PEER]),
            }
        )
        found = results[-1]["positions_per_second"]
        print(f"{name}: " + ", ".join(f"{reader} {found[reader]['median']:.0f}/s" for reader in found))
    medians = [result["positions_per_second"][OURS]["median"] for result in results]
    targets = [
        target(f"{results[0]['task']}: positions a second", medians[0], at_least=5000),
        target(f"{results[1]['task']}: positions a second", medians[1], at_least=50_000),
    ]
    print(f"written: {write_report(arguments, 'sampling', {'results': results, 'targets': targets})}")


def _tissue(rng: np.random.Generator) -> shapely.Geometry:
    """A ragged piece with a hole and a smaller one, 2,000 corners together."""

    def ring(corners: int, x: float, y: float, radius: float) -> np.ndarray[Any, Any]:
        angles = np.linspace(0, 2 * np.pi, corners, endpoint=False)
        waves = sum(rng.normal() * np.cos(k * angles + rng.uniform(0, 7)) / k for k in range(2, 12))
        radii = radius * (1 + 0.1 * np.clip(waves, -2, 2) + rng.uniform(-0.01, 0.01, corners))
        return np.stack([x + radii * np.cos(angles), y + radii * np.sin(angles)], axis=1)

    x, y = rng.uniform(35_000, 45_000), rng.uniform(33_000, 45_000)
    first = shapely.Polygon(ring(1300, x, y, 24_000), [ring(300, x, y, 6000)])
    return shapely.MultiPolygon([first, shapely.Polygon(ring(400, 86_000, y, 9000))])


def _strip(number: int) -> shapely.Geometry:
    line = [(1000 + 50 * number, 1000), (60_000, 30_000 + 100 * number), (98_000, 78_000)]
    return shapely.LineString(line).buffer(125)


def _each(
    polygons: Sequence[shapely.Geometry], times: int, most: int | None = None
) -> dict[str, Callable[[int], float]]:
    """Another polygon for every position, given as WKB."""
    written = [shapely.to_wkb(polygon) for polygon in polygons]

    def ours(number: int) -> float:
        def draw(index: int) -> None:
            sample_position(Outline.from_wkb(written[index % len(written)]), rng=generator(number, index), **ARGUMENTS)

        return _speed(draw, times * len(written))

    def peer(number: int) -> float:
        rng = np.random.default_rng(number)
        return _speed(lambda k: _naive(shapely.from_wkb(written[k % len(written)]), rng), most or times * len(written))

    return {OURS: ours, PEER: peer}


def _one(polygon: shapely.Geometry, count: int) -> dict[str, Callable[[int], float]]:
    outline = Outline.of(polygon)
    shapely.prepare(polygon)

    def ours(number: int) -> float:
        started = time.process_time()
        sample_positions(outline, seed=number, indices=range(count), **ARGUMENTS)
        return count / (time.process_time() - started)

    return {OURS: ours, PEER: _peer_of(polygon, count // 20)}


def _one_by_one(polygon: shapely.Geometry, count: int) -> dict[str, Callable[[int], float]]:
    outline = Outline.of(polygon)
    shapely.prepare(polygon)

    def ours(number: int) -> float:
        return _speed(lambda k: sample_position(outline, rng=generator(number, k), **ARGUMENTS), count)

    return {OURS: ours, PEER: _peer_of(polygon, max(1, count // 10))}


def _peer_of(polygon: shapely.Geometry, count: int) -> Callable[[int], float]:
    def peer(number: int) -> float:
        rng = np.random.default_rng(number)
        return _speed(lambda _: _naive(polygon, rng), count)

    return peer


def _naive(polygon: shapely.Geometry, rng: np.random.Generator) -> tuple[int, int]:
    left, upper, right, lower = polygon.bounds
    while True:
        x, y = int(rng.integers(int(left) - SIDE, int(right))), int(rng.integers(int(upper) - SIDE, int(lower)))
        if not (0 <= x <= WIDTH - SIDE and 0 <= y <= HEIGHT - SIDE):
            continue
        square = shapely.box(x, y, x + SIDE, y + SIDE)
        if shapely.intersection(polygon, square).area >= MIN_FOREGROUND * SIDE**2:
            return x, y


def _speed(draw: Callable[[int], object], count: int) -> float:
    """Draws a second of CPU time."""
    started = time.process_time()
    for index in range(count):
        draw(index)
    return count / (time.process_time() - started)


if __name__ == "__main__":
    main()
