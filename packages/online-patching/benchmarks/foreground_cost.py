"""What does the foreground of one very large slide cost, on one core?

    python packages/online-patching/benchmarks/foreground_cost.py [--output FOLDER] [--quick]

Slides of 100,000 x 80,000 px are written, and removed again: a pyramid (downsamples 1, 4, 16), one whose coarsest level
is far too fine (1, 4), and a single level, of JPEG and of JPEG 2000. Tissue and glass are real tiles, a few of each,
repeated; which tile is which is known, so the foreground is compared with it. Told are the seconds of
``compute_foreground`` (by the clock, and of the processor, should other work share the core), the bytes of tiles that
were fetched, and the overlap with the truth.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import shapely
from measuring import TOOLS, Json, parsed, parser_of, target, write_report
from online_patching import Catalog, read_counts
from online_patching.jobs import compute_foreground, index_cohort

sys.path.insert(0, str(TOOLS))
from svs_writer import TiffPages
from tile_encoding import TileEncoder

TILE_PX, MPP = 256, 0.25
SLIDES = {
    "pyramid": ("jpeg-rgb", (1, 4, 16)),
    "two levels": ("jpeg-rgb", (1, 4)),
    "single level": ("jpeg-rgb", (1,)),
    "single level, JPEG 2000": ("jp2k-rgb", (1,)),
}
MAX_SECONDS, MAX_MEGABYTES = 3.0, 64.0
BODIES = 48
Bools = npt.NDArray[np.bool_]


def main() -> None:
    """Measure, print, and write the JSON."""
    arguments = parsed(parser_of(__doc__))
    size = (20_000, 16_000) if arguments.quick else (100_000, 80_000)
    arguments.folder.mkdir(parents=True, exist_ok=True)
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    truth = tissue_tiles(*size)
    results, targets = [], []
    for name, (encoding, downsamples) in SLIDES.items():
        with tempfile.TemporaryDirectory(dir=arguments.folder) as place:
            write_huge_slide(Path(place) / "slide.svs", *size, truth, downsamples, encoding)
            result = {"slide": name, **measure(Path(place), truth, arguments.rounds)}
        results.append(result)
        # Other work may share the core.
        targets.append(target(f"{name}: seconds of one core", min(result["cpu_seconds"]), at_most=MAX_SECONDS))
        targets.append(target(f"{name}: MB read", result["megabytes"], at_most=MAX_MEGABYTES))
        print(result, flush=True)
    write_report(arguments, "foreground_cost", {"results": results, "targets": targets})


def measure(place: Path, truth: Bools, rounds: int) -> Json:
    """Seconds, bytes, and overlap of one slide's foreground."""
    index_cohort([str(place / "slide.svs")], str(place / "catalog"), progress=False)
    seconds, cpu_seconds, fetched = [], [], []
    for _ in range(rounds):
        before, started, cpu_started = read_counts(), time.perf_counter(), time.process_time()
        report = compute_foreground(str(place / "catalog"), redo=True, progress=False)
        seconds.append(round(time.perf_counter() - started, 3))
        cpu_seconds.append(round(time.process_time() - cpu_started, 3))
        fetched.append((read_counts() - before).bytes_planned)
        assert not report.failures, report.failures
    catalog = Catalog.open(str(place / "catalog"))
    found = catalog.foreground("slide")
    rows, columns = truth.shape
    y, x = np.mgrid[:rows, :columns]
    tiles = shapely.box(x * TILE_PX, y * TILE_PX, (x + 1) * TILE_PX, (y + 1) * TILE_PX)
    shapely.prepare(found)
    inside = float(shapely.area(shapely.intersection(tiles[truth], found)).sum())
    union = float(found.area) + float(truth.sum()) * TILE_PX**2 - inside
    return {
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
        "megabytes": max(fetched) / 1e6,
        "overlap": inside / union,
        "corners": int(shapely.get_num_coordinates(found)),
        "slide_megabytes": (place / "slide.svs").stat().st_size / 1e6,
        "notes": list(report.notes),
    }


def tissue_tiles(width_px: int, height_px: int) -> Bools:
    """Which tiles of level 0 are tissue: some large pieces, one with a hole, and small ones."""
    rows, columns = -(-height_px // TILE_PX), -(-width_px // TILE_PX)
    smooth = cv2.GaussianBlur(np.random.default_rng(3).normal(size=(rows, columns)), (0, 0), columns / 22)
    tissue = np.asarray(smooth > 0.6 * smooth.std(), np.uint8)
    cv2.circle(tissue, (columns // 2, rows // 2), columns // 8, 1, -1)
    cv2.circle(tissue, (columns // 2, rows // 2), columns // 20, 0, -1)
    return tissue > 0


def tissue_texture(side_px: int, seed: int) -> npt.NDArray[np.uint8]:
    """Pink ground with grain and dark nuclei."""
    rng = np.random.default_rng(seed)
    image = np.full((side_px, side_px, 3), (222, 160, 196), np.float32)
    for _ in range(side_px * side_px // 700):
        centre = int(rng.integers(side_px)), int(rng.integers(side_px))
        cv2.circle(image, centre, int(rng.integers(3, 8)), (100, 62, 142), -1)
    image += cv2.GaussianBlur(rng.normal(0, 40, image.shape).astype(np.float32), (0, 0), 1.0)
    return np.asarray(image.clip(0, 255), np.uint8)


def write_huge_slide(
    path: Path, width_px: int, height_px: int, tissue: Bools, downsamples: tuple[int, ...], encoding: str
) -> None:
    """A BigTIFF in Aperio's manner whose levels are made of repeated tiles of tissue and glass."""
    encoder = TileEncoder(encoding=encoding, quality=75)
    rng = np.random.default_rng(0)
    bodies = [encoder.encode(tissue_texture(TILE_PX, seed)) for seed in range(BODIES)]
    glass = []
    for _ in range(BODIES):
        grain = rng.normal(243, 1.5, (TILE_PX, TILE_PX, 3))
        glass.append(encoder.encode(np.asarray(grain.clip(0, 255), np.uint8)))
    with TiffPages(path, big_tiff=True) as pages:
        for downsample in downsamples:
            level = width_px // downsample, height_px // downsample
            columns, rows = -(-level[0] // TILE_PX), -(-level[1] // TILE_PX)

            def tiles(downsample: int = downsample, columns: int = columns, rows: int = rows) -> Iterator[bytes]:
                for number in range(columns * rows):
                    row, column = divmod(number, columns)
                    part = tissue[row * downsample : (row + 1) * downsample, column * downsample :][:, :downsample]
                    if part.any() != part.all():
                        yield encoder.encode(mixed_tile(part, number))
                    else:
                        yield (bodies if part.any() else glass)[int(rng.integers(BODIES))]

            words = f"Aperio Image Library v12.0.15 \r\n{level[0]}x{level[1]}|AppMag = 40|MPP = {MPP}"
            blocks = pages.append(tiles())
            fields = [(254, 4, 0), (256, 4, level[0]), (257, 4, level[1]), (277, 3, 3)]
            fields += [(259, 3, encoder.encoding.compression), (262, 3, encoder.encoding.photometric)]
            jpeg = [(347, 7, encoder.tables), (530, 3, encoder.encoding.subsampling)] if encoder.tables else []
            pages.add_page(
                [
                    *[(number, kind, (value,)) for number, kind, value in fields],
                    (258, 3, (8, 8, 8)),
                    (270, 2, words.encode() + b"\0"),
                    (284, 3, (1,)),
                    (322, 3, (TILE_PX,)),
                    (323, 3, (TILE_PX,)),
                    *jpeg,
                ],
                blocks,
                tiled=True,
            )


def mixed_tile(part: Bools, seed: int) -> npt.NDArray[np.uint8]:
    """A tile of a coarser level that is tissue in some places."""
    mask = cv2.resize(part.astype(np.uint8), (TILE_PX, TILE_PX), interpolation=cv2.INTER_NEAREST) > 0
    image = np.full((TILE_PX, TILE_PX, 3), 243, np.uint8)
    image[mask] = tissue_texture(TILE_PX, seed)[mask]
    return image


if __name__ == "__main__":
    main()
