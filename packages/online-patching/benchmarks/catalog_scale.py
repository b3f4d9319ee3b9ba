"""A catalog of the size of TCGA, and of a million slides: is it small, quick to open and quick to look things up in?

    python packages/online-patching/benchmarks/catalog_scale.py [--slides 29000 1000000] [--output FOLDER]

A simulated cohort: 100 distinct slides of 50,000 tiles at three levels, their tile tables and polygons of 2,000
vertices written by the catalog's own writer, and a slide table whose rows refer to them again and again (29,000 slides:
1.45 billion tiles). Each number is measured in a fresh process:

- bytes a tile over a slide's folder;
- seconds to open the catalog, with and without importing the libraries it needs, and resident memory after it;
- 1,000 look-ups at random slides: the byte ranges of all tiles of a patch (level 0, 256 px off the tile grid; every
  fourth patch 1,024 px), seconds and bytes of tile table at the first touch of a slide, and seconds for its polygon;
- building a ``PatchSampler`` and a ``PatchStream``, and drawing 1,000 samples.

Prints a table and one JSON line; the exit code is 1 where a target is missed. The files lie in the page cache of the
machine, so the times are those of the catalog's own work, not of a disk.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

FORMAT_VERSION = 1
DISTINCT_SLIDES = 100
VERTICES = 2000
LOOK_UPS = 1000
# Tiles of 256 px: 224 x 210 + 56 x 53 + 14 x 14 = 50,204 tiles.
GRIDS = ((224, 210), (56, 53), (14, 14))
TILE_PX = 256
# name of a measure: (target, unit); a measure above its target is a miss.
TARGETS = {
    "bytes_per_tile": 5.0,
    "open_seconds": 1.0,
    "resident_mib_after_open": 1024.0,
    "resident_mib_after_look_ups": 1024.0,
    "look_up_kib_max": 16.0,
    "look_up_ms_median": 3.0,
    "look_up_ms_p95": 3.0,
}
# Opening within a second is promised for a cohort of the size of TCGA.
OPEN_TARGET_SLIDES = 29_000


def main() -> int:
    """Make the cohorts, measure each in fresh processes, print; returns 1 where a target is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slides", type=int, nargs="+", default=[29_000, 1_000_000])
    parser.add_argument("--output", type=Path, help="keep the catalogs here (default: a folder that is removed)")
    parser.add_argument("--measure", choices=list(MEASURES), help=argparse.SUPPRESS)
    parser.add_argument("--catalog", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(MEASURES[arguments.measure](arguments.catalog)))
        return 0
    with tempfile.TemporaryDirectory() as scratch:
        folder = arguments.output or Path(scratch)
        results = [measure_cohort(folder / f"{slides}", slides) for slides in arguments.slides]
    misses = [miss for result in results for miss in result["misses"]]
    print(json.dumps({"format_version": FORMAT_VERSION, "benchmark": "catalog_scale", "results": results}))
    for miss in misses:
        print(f"missed: {miss}", file=sys.stderr)
    return 1 if misses else 0


def measure_cohort(folder: Path, slides: int) -> dict[str, Any]:
    """All measures of one cohort, and the targets it misses."""
    started = time.perf_counter()
    result: dict[str, Any] = {"slides": slides, **make_catalog(folder, slides)}
    result["make_seconds"] = round(time.perf_counter() - started, 1)
    for name in MEASURES:
        command = [sys.executable, __file__, "--measure", name, "--catalog", str(folder)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        result.update(json.loads(done.stdout))
    result["misses"] = []
    print(f"{slides:,} slides, {result['tiles']:,} tiles")
    for name, value in result.items():
        target = TARGETS.get(name)
        if name == "open_seconds" and slides > OPEN_TARGET_SLIDES:
            target = None
        missed = target is not None and value > target
        if missed:
            result["misses"].append(f"{slides} slides: {name} {value}, target {target}")
        if isinstance(value, int | float):
            note = "" if target is None else f"  (target {target:g}{', MISSED' if missed else ''})"
            print(f"  {name:36} {value:16,.3f}{note}")
    return result


def make_catalog(folder: Path, slides: int) -> dict[str, Any]:
    """Write the distinct slides and a slide table that refers to them; returns its size."""
    import numpy as np
    import pyarrow as pa
    from online_patching.catalog_files import CatalogFolder
    from online_patching.slide_table import SlideTable

    catalog = CatalogFolder(str(folder))
    catalog.create()
    distinct = SlideTable.from_rows(write_slide(catalog, k) for k in range(min(DISTINCT_SLIDES, slides)))
    numbers = np.arange(slides)
    # Names and URLs as unlike one another as real ones: they are most of a slide table. (Its versions are those that
    # the tile tables pin, so 100 distinct ones: of their full size in memory, but small in the compressed file.)
    digits = np.random.default_rng(0).bytes(32 * slides).hex()
    uuid, folder_uuid = ([digits[k : k + 32] for k in range(part * 32, 64 * slides, 64)] for part in range(2))
    table = distinct.arrow.take(pa.array(numbers % len(distinct)))
    columns = {
        "id": [f"TCGA-{k % 97:02d}-{k // 97:04d}-01Z-00-DX1.{uuid[k]}" for k in numbers],
        "folder": pa.array([f"slides/{k % len(distinct):03d}" for k in numbers]).dictionary_encode(),
        "patient": [f"TCGA-{k % 97:02d}-{k // 97:04d}" for k in numbers],
        "label": numbers % 32,
    }
    columns["url"] = [
        f"s3://tcga/{place}/{slide_id}.svs" for place, slide_id in zip(folder_uuid, columns["id"], strict=True)
    ]
    for name, values in columns.items():
        if name in table.column_names:
            table = table.drop_columns([name])
        table = table.append_column(name, values if isinstance(values, pa.Array) else pa.array(values))
    catalog.write_table(SlideTable(table))
    files = sum(file.stat().st_size for file in (folder / "slides").rglob("*") if file.is_file())
    tiles = int(distinct.numbers("tiles").sum())
    return {
        "tiles": int(SlideTable(table).numbers("tiles").sum()),
        "bytes_per_tile": round(files / tiles, 3),
        "tile_table_bytes_per_tile": round(
            sum(f.stat().st_size for f in (folder / "slides").rglob("*.optt")) / tiles, 3
        ),
        "polygon_kib": round((folder / "slides" / "000" / "foreground.wkb").stat().st_size / 1024, 1),
        "slide_table_mib": round((folder / "slides.parquet").stat().st_size / 2**20, 1),
    }


def write_slide(catalog: Any, number: int) -> Any:
    """One distinct slide: its tile table, polygon and row, by the catalog's own writers."""
    import numpy as np
    import shapely
    from online_patching.bytesource import ObjectInfo, PinnedObject
    from online_patching.catalog_files import FOREGROUND, TILE_TABLE
    from online_patching.formats.header import Codec, Colour, SlideHeader, TileEncoding, TileRanges
    from online_patching.geometry import LevelGeometry
    from online_patching.slide_row import row_of
    from online_patching.tiletable import encode_tile_table, front_bytes

    rng = np.random.default_rng(number)
    levels = tuple(LevelGeometry(x * 256 - 7, y * 256 - 9, 256, 256, 4.0**k) for k, (x, y) in enumerate(GRIDS))
    tiles, end = [], 70_000
    for x, y in GRIDS:
        # Lengths of JPEG tiles of tissue and glass: about 11 KB, log-normal.
        length = rng.lognormal(9.3, 0.6, x * y).astype(np.uint32)
        tiles.append(TileRanges(end + np.cumsum(length, dtype=np.uint64) - length, length))
        end += int(length.sum())
    header = SlideHeader(
        vendor="aperio",
        mpp=0.2525,
        levels=levels,
        encodings=tuple(TileEncoding(Codec.JPEG, Colour.RGB, rng.bytes(289)) for _ in GRIDS),
        properties={name: f"{name} {number}" for name in ("AppMag", "Date", "Time", "ScanScope ID", "Filename")},
    )
    slide_id = f"{number:03d}"
    objects = [PinnedObject(f"s3://tcga-open-access/{slide_id}.svs", ObjectInfo(end, f"{number:032x}"))]
    data = encode_tile_table(header, objects, tiles)
    row = row_of(slide_id, objects[0].url, header=header, objects=objects, tiles=tiles, front_bytes=front_bytes(data))
    angle = np.linspace(0, 2 * np.pi, VERTICES, endpoint=False)
    radius = 1 + 0.15 * np.sin(9 * angle + number) + 0.05 * np.sin(41 * angle)
    width, height = levels[0].width_px, levels[0].height_px
    outline = np.stack([width * (0.5 + 0.3 * radius * np.cos(angle)), height * (0.5 + 0.3 * radius * np.sin(angle))], 1)
    polygon = shapely.Polygon(np.rint(outline))
    row = replace(row, foreground_area_level0_px2=float(polygon.area))
    catalog.write_slide_file(row, TILE_TABLE, data)
    catalog.write_slide_file(row, FOREGROUND, shapely.to_wkb(polygon))
    catalog.write_slide_row(row)
    return row


def measure_open(catalog: str) -> dict[str, Any]:
    """Seconds to open, with and without imports, and memory after it."""
    started = time.perf_counter()
    from online_patching import Catalog

    imported = time.perf_counter()
    import pyarrow.compute
    import pyarrow.parquet  # noqa: F401

    ready = time.perf_counter()
    before = resident_mib()
    opened = Catalog.open(catalog)
    seconds = time.perf_counter() - ready
    opened.row(opened.rows[len(opened) // 2].id)
    return {
        "import_online_patching_seconds": round(imported - started, 3),
        "import_pyarrow_seconds": round(ready - imported, 3),
        "open_seconds": round(seconds, 3),
        "open_with_imports_seconds": round(imported - started + ready - imported + seconds, 3),
        "resident_mib_before_open": round(before, 1),
        "resident_mib_after_open": round(resident_mib(), 1),
        "peak_mib_of_open": round(peak_mib(), 1),
    }


def measure_look_ups(catalog: str) -> dict[str, Any]:
    """Byte ranges of a patch's tiles at random slides, each touched for the first time, and its polygon."""
    import numpy as np
    from online_patching import Catalog, PatchRequest, loop
    from online_patching.plan import choose_read, patch_window, plan_tiles
    from online_patching.storage import LocalSource

    opened = Catalog.open(catalog)
    read: list[int] = []
    original = LocalSource.read_ranges_now

    def counted(self: LocalSource, ranges: Sequence[tuple[int, int]], **kwargs: Any) -> list[bytes]:
        read.extend(length for _, length in ranges)
        return original(self, ranges, **kwargs)

    LocalSource.read_ranges_now = counted  # type: ignore[method-assign]

    async def resolve(request: PatchRequest) -> int:
        handle = await opened.ahandle(request.slide_id)
        header = handle.header
        assert header.mpp is not None, "made with one"
        window = patch_window(request, header.mpp, choose_read(header, request.slide_id, request.mpp))
        tiles = list(plan_tiles([(0, window)], header.levels[window.level]))
        return len(await handle.tiles.lookup.ranges(window.level, tiles))  # type: ignore[attr-defined]

    rng = np.random.default_rng(0)
    ids = [opened.rows.value(int(k), "id") for k in rng.choice(len(opened), LOOK_UPS + 20, replace=False)]
    seconds, sizes, polygon_seconds, tiles = [], [], [], []
    for number, slide_id in enumerate(ids):
        size_px = 1024 if number % 4 == 3 else 256
        x, y = (int(value) for value in rng.integers(0, 50_000, 2))
        request = PatchRequest(slide_id, x, y, size_px, 0.2525)
        read.clear()
        started = time.perf_counter()
        tiles.append(loop.run(resolve(request)))
        seconds.append(time.perf_counter() - started)
        sizes.append(sum(read))
        started = time.perf_counter()
        opened.outline(slide_id)
        polygon_seconds.append(time.perf_counter() - started)
    # The first look-ups start threads and import: they are told apart.
    warm = slice(20, None)
    milliseconds, kib = np.array(seconds[warm]) * 1e3, np.array(sizes[warm]) / 1024
    return {
        "look_up_first_ms": round(seconds[0] * 1e3, 2),
        "look_up_ms_median": round(float(np.median(milliseconds)), 3),
        "look_up_ms_p95": round(float(np.percentile(milliseconds, 95)), 3),
        "look_up_ms_max": round(float(milliseconds.max()), 3),
        "look_up_kib_median": round(float(np.median(kib)), 2),
        "look_up_kib_p95": round(float(np.percentile(kib, 95)), 2),
        "look_up_kib_max": round(float(max(sizes) / 1024), 2),
        "look_up_tiles_mean": round(float(np.mean(tiles)), 1),
        "polygon_ms_median": round(float(np.median(polygon_seconds[warm])) * 1e3, 3),
        "resident_mib_after_look_ups": round(resident_mib(), 1),
    }


def measure_sampling(catalog: str) -> dict[str, Any]:
    """Building the sampler and the stream, and drawing samples over the whole cohort."""
    from online_patching import Catalog, PatchStream
    from online_patching.sampler import PatchSampler

    opened = Catalog.open(catalog)
    started = time.perf_counter()
    PatchSampler(opened, size_px=256, mpp=[2.0, 1.0, 0.5, 0.25], min_foreground=0.4, seed=0)
    sampler_built = time.perf_counter()
    stream = PatchStream(opened, slide_sampling="area", columns=["patient", "label"])
    stream_built = time.perf_counter()
    stream.fingerprint()
    fingerprinted = time.perf_counter()
    samples = [stream.sampler.draw(k) for k in range(LOOK_UPS)]
    drawn = time.perf_counter()
    assert len({sample.slide_id for sample in samples}) > LOOK_UPS // 2, "samples come from a few slides only"
    return {
        "sampler_build_seconds": round(sampler_built - started, 3),
        "stream_build_seconds": round(stream_built - sampler_built, 3),
        "fingerprint_seconds": round(fingerprinted - stream_built, 3),
        "draw_ms": round((drawn - fingerprinted) / LOOK_UPS * 1e3, 3),
        "resident_mib_after_sampling": round(resident_mib(), 1),
    }


def resident_mib() -> float:
    """Resident memory of this process."""
    return _status("VmRSS")


def peak_mib() -> float:
    """Greatest resident memory that this process had."""
    return _status("VmHWM")


def _status(name: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) / 1024


MEASURES = {"open": measure_open, "look_ups": measure_look_ups, "sampling": measure_sampling}


if __name__ == "__main__":
    sys.exit(main())
