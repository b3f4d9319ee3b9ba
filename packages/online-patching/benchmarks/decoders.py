"""How fast do the codec libraries decode tiles: whole, a random quarter, at a half and a quarter of the scale?

    python packages/online-patching/benchmarks/decoders.py [SLIDE ...] [--image FILE] [--tiles 200] [--rounds 7]

Tiles come from slides (default: generated ones in five encodings) or are cut from an image and encoded. Every library
gets the same tiles as files of their own and the same rectangles, in turn over several rounds, in one thread and in
two; the best round counts, since others can only be slowed by the machine, and one thread is measured by its processor
time, which other programs do not lengthen. A quarter is the part of a tile that a
randomly placed patch of the tile's size needs: any corner, 25 % of the area on average. The pixels are compared with
this package's first, and the largest difference is in the table. Prints the table and one JSON line.

What it decided (tiles/s of one core of an AMD EPYC; RGB tiles of 256 px and 9 KiB, JPEG 2000 of a real slide):

==================  ==========  ===========  ======  ======  ============  ===============
task                simplejpeg  imagecodecs  OpenCV  Pillow  nvImageCodec  online-patching
==================  ==========  ===========  ======  ======  ============  ===============
JPEG, whole               5451         5321    4983    3040          4904             5163
JPEG, quarter             5481         5408    5148    3166          8897             7360
JPEG, 1/2 scale           7623                 7267    4915                           7079
JPEG 2000, whole                        481     443     363           446              475
JPEG 2000, quarter                      473     443     367           459              469
JPEG 2000, 1/2                                  431     635                            789
JPEG 2000, 1/4                                  407    1396                           1687
==================  ==========  ===========  ======  ======  ============  ===============

- JPEG: simplejpeg is the fastest for whole tiles and refuses damaged ones, which the others show.
- A part of a JPEG: nvImageCodec where it is installed and little of the rows is needed (``jpeg_decode.REGION_SHARE``),
  else simplejpeg up to the last row that is needed (a third faster than whole). Beside bare nvImageCodec, looking for
  damage costs 6 us a tile.
- JPEG 2000: imagecodecs; no library decodes a part of a tile for less. At a reduced scale, imagecodecs with the header
  rewritten (``jpeg2000_stream``) is faster than Pillow, which has an option for it; OpenCV decodes whole and averages.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import io
import json
import os
import platform
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import imagecodecs
import numpy as np
import numpy.typing as npt
import simplejpeg
from online_patching import loop
from online_patching.decode import TilePart, decode_region
from online_patching.formats.header import Codec, Colour, TileEncoding
from online_patching.index import index_slide
from online_patching.jpeg_stream import JpegTiles
from online_patching.storage import Store
from PIL import Image

FORMAT_VERSION = 1
OURS = "online-patching"
LIBRARIES = ("imagecodecs", "nvidia-nvimgcodec-cu13", "opencv-python-headless", "pillow", "simplejpeg")
SAMPLE_SLIDES = (0, 1, 2, 4, 5)
# name: (reduction, whether a quarter is wanted)
TASKS = {"whole": (1, False), "quarter": (1, True), "1/2 scale": (2, False), "1/4 scale": (4, False)}

Pixels = npt.NDArray[np.uint8]
Region = tuple[int, int, int, int]
Decode = Callable[[int], Pixels]
_local = threading.local()


@dataclass(frozen=True, slots=True)
class Tiles:
    """Tiles of one encoding.

    Attributes:
        name: For the table.
        encoding: Of the level that they come from.
        side_px: Width and height.
        stored: As they lie in the slide.
        files: As files of their own.
        corners: Of each, a random quarter.
    """

    name: str
    encoding: TileEncoding
    side_px: int
    stored: list[bytes]
    files: list[bytes]
    corners: list[Region]


def main() -> None:
    """Compare, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("slides", nargs="*", type=Path, help="slides on local disk (default: generated ones)")
    parser.add_argument("--image", type=Path, help="cut tiles of 256 px from this image instead")
    parser.add_argument("--tiles", type=int, default=200, help="tiles of each encoding")
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    cv2.setNumThreads(0)
    if hasattr(cv2, "setLogLevel"):
        cv2.setLogLevel(0)
    with tempfile.TemporaryDirectory() as folder:
        if arguments.image:
            sets = _from_image(arguments.image, arguments.tiles)
        else:
            paths = arguments.slides or _sample_slides(Path(folder))
            sets = [_from_slide(path, arguments.tiles) for path in paths]
    results = [row for tiles in sets for row in _measure(tiles, arguments.rounds)]
    machine = {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count()}
    versions = {name: importlib.metadata.version(name) for name in LIBRARIES if _installed(name)}
    report = {"benchmark": "decoders", "machine": machine, "versions": versions, "results": results}
    print(json.dumps({"format_version": FORMAT_VERSION, **report}))


def _measure(tiles: Tiles, rounds: int) -> list[dict[str, Any]]:
    """One row for each task and library."""
    kilobytes = sum(map(len, tiles.stored)) / len(tiles.stored) / 1024
    print(f"\n{tiles.name}: {len(tiles.stored)} tiles of {tiles.side_px} px, {kilobytes:.1f} KiB each")
    print(f"  {'task':10} {'library':28} {'tiles/s':>8} {'2 threads':>10} {'largest difference':>20}")
    rows = []
    for task, (reduction, quarter) in TASKS.items():
        side = tiles.side_px // reduction
        regions = tiles.corners if quarter else [(0, 0, side, side)] * len(tiles.stored)
        decoders = _decoders(tiles, regions, reduction)
        found = {name: _difference(decoders[OURS], decode, len(regions)) for name, decode in decoders.items()}
        usable = {name: decoders[name] for name, difference in found.items() if difference is not None}
        best = {(name, threads): float("inf") for name in usable for threads in (1, 2)}
        for _ in range(rounds):
            for name, threads in best:
                best[name, threads] = min(best[name, threads], _seconds(usable[name], len(regions), threads))
        for name, difference in found.items():
            row: dict[str, Any] = {"tiles": tiles.name, "task": task, "library": name, "difference": difference}
            for threads in (1, 2):
                row[f"tiles_per_second_{threads}"] = (
                    round(len(regions) / best[name, threads]) if name in usable else None
                )
            rows.append(row)
            speeds = [row["tiles_per_second_1"], row["tiles_per_second_2"]]
            shown = f"{speeds[0]:8} {speeds[1]:10} {difference:20}" if name in usable else "  cannot"
            print(f"  {task:10} {name:28} {shown}")
    return rows


def _seconds(decode: Decode, count: int, threads: int) -> float:
    """Processor time of one thread that decodes all tiles, or time that passes while each of several does its part."""
    if threads == 1:
        started = time.process_time()
        for k in range(count):
            decode(k)
        return time.process_time() - started
    pool = _pool(threads)
    started = time.perf_counter()
    list(pool.map(lambda first: [decode(k) for k in range(first, count, threads)], range(threads)))
    return time.perf_counter() - started


def _pool(threads: int, pools: dict[int, ThreadPoolExecutor] = {}) -> ThreadPoolExecutor:  # noqa: B006
    """Threads that last, as those of a reader do."""
    return pools.setdefault(threads, ThreadPoolExecutor(threads))


def _difference(ours: Decode, decode: Decode, count: int) -> int | None:
    """The largest difference of a sample, or None where the library cannot do it."""
    worst = 0
    for k in range(0, count, max(1, count // 30)):
        expected = ours(k).copy()
        try:
            found = decode(k)
        except Exception:
            return None
        if found is None or found.shape != expected.shape:
            return None
        worst = max(worst, int(np.abs(found.astype(np.int16) - expected).max()))
    return worst


def _decoders(tiles: Tiles, regions: Sequence[Region], reduction: int) -> dict[str, Decode]:
    """What each library does for the tile of a number."""
    stored, files, side, encoding = tiles.stored, tiles.files, tiles.side_px, tiles.encoding

    def ours(k: int) -> Pixels:
        return decode_region(TilePart(stored[k], encoding, side, side, regions[k], reduction))

    def cut(pixels: Pixels, k: int) -> Pixels:
        x0, y0, x1, y1 = regions[k]
        return pixels[y0:y1, x0:x1]

    reduced_flags = {1: 1, 2: cv2.IMREAD_REDUCED_COLOR_2, 4: cv2.IMREAD_REDUCED_COLOR_4}

    def opencv(k: int) -> Pixels:
        bgr = cv2.imdecode(np.frombuffer(files[k], np.uint8), reduced_flags[reduction])
        return cut(cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB), k)

    def pillow(k: int) -> Pixels:
        image = Image.open(io.BytesIO(files[k]))
        if reduction > 1 and encoding.codec is Codec.JPEG:
            image.draft("RGB", (side // reduction, side // reduction))
        elif reduction > 1:
            image.reduce = reduction.bit_length() - 1  # type: ignore[assignment,method-assign]
        return cut(np.asarray(image), k)

    def nvimgcodec(k: int) -> Pixels:
        library, decoder, parameters = _nvimgcodec()
        x0, y0, x1, y1 = regions[k]
        stream = library.CodeStream(files[k]).get_sub_code_stream(region=library.Region(y0, x0, y1, x1))
        return np.asarray(decoder.decode(stream, params=parameters))

    found: dict[str, Decode] = {OURS: ours}
    if encoding.codec is Codec.JPEG:
        scale = {"min_width": side // reduction, "min_height": side // reduction, "min_factor": float(reduction)}
        options = scale if reduction > 1 else {}
        found["simplejpeg"] = lambda k: cut(simplejpeg.decode_jpeg(files[k], **options), k)
    if reduction == 1:
        decode = imagecodecs.jpeg8_decode if encoding.codec is Codec.JPEG else imagecodecs.jpeg2k_decode
        found["imagecodecs"] = lambda k: cut(decode(files[k]), k)
    found |= {"OpenCV": opencv, "Pillow": pillow}
    if reduction == 1 and _installed("nvidia-nvimgcodec-cu13"):
        found["nvImageCodec"] = nvimgcodec
    return found


def _nvimgcodec() -> Any:
    """The library with a decoder of this thread."""
    if not hasattr(_local, "nvimgcodec"):
        from nvidia import nvimgcodec as library

        backends = [library.Backend(library.BackendKind.CPU_ONLY)]
        decoder = library.Decoder(
            device_id=library.NVIMGCODEC_DEVICE_CPU_ONLY, max_num_cpu_threads=1, backends=backends
        )
        _local.nvimgcodec = (library, decoder, library.DecodeParams(color_spec=library.ColorSpec.SRGB))
    return _local.nvimgcodec


def _installed(name: str) -> bool:
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def _tiles(name: str, encoding: TileEncoding, side: int, stored: list[bytes]) -> Tiles:
    rng = np.random.default_rng(0)
    corners: list[Region] = []
    for k in range(len(stored)):
        x, y = (int(place) for place in rng.integers(1, side, 2))
        corners.append((x if k & 1 else 0, y if k & 2 else 0, side if k & 1 else x, side if k & 2 else y))
    files = stored
    if encoding.codec is Codec.JPEG:
        make = JpegTiles(encoding, side, side)
        files = [make.stream(data, make.head(data)) for data in stored]
    return Tiles(name, encoding, side, stored, files, corners)


def _from_slide(path: Path, count: int) -> Tiles:
    """Tiles of a slide's finest level, evenly spread."""
    indexed = loop.run(index_slide(str(path), Store()))
    geometry, encoding, ranges = indexed.header.levels[0], indexed.header.encodings[0], indexed.tiles[0]
    assert geometry.tile_width_px == geometry.tile_height_px, f"{path}: square tiles are needed"
    data = path.read_bytes()
    stored = []
    for k in np.linspace(0, len(ranges.offset) - 1, count).astype(int):
        start = int(ranges.offset[k])
        stored.append(data[start : start + int(ranges.length[k])])
    name = f"{path.name} ({encoding.codec} {encoding.colour})"
    return _tiles(name, encoding, geometry.tile_width_px, [tile for tile in stored if tile])


def _sample_slides(folder: Path) -> list[Path]:
    sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "tools"))
    from make_sample_slides import make_slides

    make_slides(folder, slides=max(SAMPLE_SLIDES) + 1, small=True, progress=False)
    return [folder / f"slide_{number:02}.svs" for number in SAMPLE_SLIDES]


def _from_image(path: Path, count: int, side: int = 256) -> list[Tiles]:
    """Tiles cut from an image at random, in each encoding."""
    Image.MAX_IMAGE_PIXELS = None
    image = np.asarray(Image.open(path).convert("RGB"))
    rng = np.random.default_rng(0)
    places = [
        (int(rng.integers(image.shape[0] - side)), int(rng.integers(image.shape[1] - side))) for _ in range(count)
    ]
    cuts = [np.ascontiguousarray(image[y : y + side, x : x + side]) for y, x in places]
    sets = []
    for colour, sampling in ((Colour.RGB, "444"), (Colour.YCBCR, "422"), (Colour.YCBCR, "420")):
        space = "RGB" if colour is Colour.RGB else "YCBCR"
        stored = [
            bytes(imagecodecs.jpeg8_encode(t, 75, colorspace="RGB", outcolorspace=space, subsampling=sampling))
            for t in cuts
        ]
        sets.append(_tiles(f"JPEG {space} {sampling}", TileEncoding(Codec.JPEG, colour), side, stored))
    stored = [bytes(imagecodecs.jpeg2k_encode(t, level=38, codecformat="j2k")) for t in cuts]
    sets.append(_tiles("JPEG 2000 RGB", TileEncoding(Codec.JPEG2000, Colour.RGB), side, stored))
    return sets


if __name__ == "__main__":
    main()
