"""Makes slides and labelled patches that look and are stored like real ones, from a seed alone.

Steps: `make_slides` plans slides of all encodings, sizes and magnifications, paints them (`sample_slide`)
and writes Aperio pyramids (`svs_writer`) with a table, `slides.csv`. `make_patches` paints single squares
of tissue with other seeds, crops labelled patches and writes them with `index.csv`, in group-disjoint
splits whose test part has hospitals that no other part has.

    python tools/make_sample_slides.py --output slides --seed 0
    python tools/make_sample_slides.py --patches patches --patches-per-class 300
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import sys
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
from sample_slide import PENS, SlidePainter
from sample_stain import Stain, apply_table, colour_table, draw_hospital_stain, draw_slide_stain
from sample_tissue import TISSUE_CLASSES, paint_tissue
from svs_writer import SlideSpec, write_slide
from tqdm import tqdm

U8 = npt.NDArray[np.uint8]

_HOSPITALS = 4  # that send slides; patches for validation and test come from further ones
_SHARE_OF_SPLIT = {"train": 1 / 2, "val": 1 / 6, "test": 1 / 3}
_HOSPITALS_OF_SPLIT = {"train": (0, 1, 2, 3), "val": (4, 5), "test": (6, 7, 8, 9)}
_PATCHES_PER_GROUP = 12.5  # of a class; a square of tissue holds 16 that do not overlap
_PATCH_MPP = 0.5
_FAST_PNG = (cv2.IMWRITE_PNG_COMPRESSION, 1)
# First numbers of the keys of the random generators: nothing is drawn twice from one key.
_HOSPITAL_KEY, _SLIDE_KEY, _PATCH_KEY = 0, 1, 2


@dataclass(frozen=True, slots=True)
class _Plan:
    """Encoding, tile edge, mpp (None: the file is silent) and size of one slide."""

    encoding: str
    tile_px: int
    mpp: float | None
    size_px: tuple[int, int]
    big_tiff: bool = False


_PLANS = (
    _Plan("jpeg-rgb", 256, 0.25, (16000, 12000)),
    _Plan("jpeg-ycbcr", 240, 0.2465, (12100, 9800)),
    _Plan("jp2k-rgb", 256, 0.2525, (8192, 8300)),
    _Plan("jpeg-rgb", 240, 0.5, (8650, 9100)),
    _Plan("jp2k-ycbcr", 256, 0.25, (8200, 8192)),
    _Plan("jpeg-ycbcr-420", 256, 0.252, (11300, 10250)),
    _Plan("jpeg-rgb", 256, None, (9000, 8500)),
    _Plan("jpeg-rgb", 240, 0.2498, (13000, 9600), big_tiff=True),
)
_SILENT_MPP = 0.25  # at which the slide without mpp is painted


def make_slides(
    folder: Path,
    *,
    seed: int = 0,
    slides: int = 8,
    small: bool = False,
    workers: int = 2,
    progress: bool = True,
) -> Path:
    """Writes `slide_00.svs` ... and `slides.csv` (id, file, patient, hospital, mpp, encoding, split).

    Args:
        folder: Where to; made if it is not there. Files of the same names are replaced.
        seed: The same seed makes the same bytes.
        slides: How many. From eight on, every encoding, 20x, BigTIFF and a slide without mpp are among them.
        small: Slides of about 2000 px instead of 8,000 to 16,000.
        workers: Slides that are painted at once, in threads.
        progress: Show a bar on stderr.

    Returns:
        The path of `slides.csv`.
    """
    if slides < 1 or workers < 1 or seed < 0:
        raise ValueError(f"slides {slides}, workers {workers}, seed {seed}: need at least 1, 1 and 0")
    folder.mkdir(parents=True, exist_ok=True)
    plans = [_plan_of(number, seed=seed, small=small) for number in range(slides)]
    patients = [_patient_of(number) for number in range(slides)]
    total = sum(plan.size_px[0] * plan.size_px[1] for plan in plans)
    with (
        tqdm(total=total, desc="painting slides", unit="px", unit_scale=True, disable=not progress) as bar,
        _painters(workers) as pool,
    ):
        jobs = [pool.submit(_make_slide, folder, number, seed=seed, small=small, bar=bar) for number in range(slides)]
        for job in jobs:
            job.result()
    rows = [
        {
            "id": f"slide_{number:02d}",
            "file": f"slide_{number:02d}.svs",
            "patient": f"patient_{patient:02d}",
            "hospital": _hospital_name(patient % _HOSPITALS),
            "mpp": "" if plan.mpp is None else f"{plan.mpp:.4f}",
            "encoding": plan.encoding,
            "split": _split_of_patient(patient, patients[-1]),
        }
        for number, (plan, patient) in enumerate(zip(plans, patients, strict=True))
    ]
    return _write_table(folder / "slides.csv", rows)


def _plan_of(number: int, *, seed: int, small: bool) -> _Plan:
    plan = _PLANS[number % len(_PLANS)]
    divisor = 6 if small else 1
    shift = np.random.default_rng([seed, _SLIDE_KEY, number, 1]).integers(0, 40, 2)
    width, height = (int(edge // divisor + extra) for edge, extra in zip(plan.size_px, shift, strict=True))
    return _Plan(plan.encoding, plan.tile_px, plan.mpp, (width, height), plan.big_tiff)


def paint_slide(number: int, *, seed: int = 0, small: bool = False) -> tuple[SlideSpec, SlidePainter]:
    """Returns how `make_slides` stores slide `number`, and the painter of its pixels."""
    plan = _plan_of(number, seed=seed, small=small)
    rng = np.random.default_rng([seed, _SLIDE_KEY, number])
    width, height = plan.size_px
    mpp = plan.mpp or _SILENT_MPP
    spec = SlideSpec(
        width_px=width,
        height_px=height,
        tile_px=plan.tile_px,
        encoding=plan.encoding,
        quality=70 if plan.encoding.startswith("jp2k") else 75,
        mpp=plan.mpp,
        app_mag=None if plan.mpp is None else round(10 / mpp),
        big_tiff=plan.big_tiff,
        name=f"slide_{number:02d}",
    )
    painter = SlidePainter(
        width_px=width,
        height_px=height,
        mpp=mpp,
        tile_px=plan.tile_px,
        stain=draw_slide_stain(_hospital_stain(seed, _patient_of(number) % _HOSPITALS), rng),
        square_um=128 if small else 512,
        pen=list(PENS)[number // 3 % len(PENS)] if number % 3 == 1 else None,
        rng=rng,
    )
    return spec, painter


@contextlib.contextmanager
def _painters(workers: int) -> Iterator[ThreadPoolExecutor]:
    """Threads; when the block is left early, by Ctrl-C say, they end with what they are at."""
    pool = ThreadPoolExecutor(workers)
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def _make_slide(folder: Path, number: int, *, seed: int, small: bool, bar: tqdm[None]) -> None:
    spec, painter = paint_slide(number, seed=seed, small=small)
    bands = painter.bands(spec.band_px)
    write_slide(folder / f"{spec.name}.svs", spec, bands, on_band=lambda rows: bar.update(rows * spec.width_px))


def _patient_of(number: int) -> int:
    return number * 3 // 4  # every fourth slide is a second one of the same patient


def _split_of_patient(patient: int, last: int) -> str:
    return {last: "test", last - 1: "val"}.get(patient, "train") if last >= 2 else "train"


def make_patches(
    folder: Path,
    *,
    seed: int = 0,
    patches_per_class: int = 300,
    patch_size: int = 224,
    workers: int = 2,
    progress: bool = True,
) -> Path:
    """Writes labelled PNG patches at 0.5 um/px and `index.csv` (path, label, group_id, split).

    A group is one synthetic slide: its stain and its own squares of tissue. No square of `make_slides`
    is among them, and the hospitals of the validation and test groups occur nowhere else.

    Args:
        folder: Where to; made if it is not there. One sub-folder a class.
        seed: The same seed makes the same patches.
        patches_per_class: Of each of `sample_tissue.TISSUE_CLASSES`, over all splits (from 300 on,
            half of them for training).
        patch_size: Edge in pixels.
        workers: Groups that are painted at once, in threads.
        progress: Show a bar on stderr.

    Returns:
        The path of `index.csv`.
    """
    least = sum(map(len, _HOSPITALS_OF_SPLIT.values()))
    if patches_per_class < least or patch_size < 16 or workers < 1 or seed < 0:
        raise ValueError(
            f"patches per class {patches_per_class}, patch size {patch_size}, workers {workers}, "
            f"seed {seed}: need at least {least} (one a hospital), 16, 1 and 0"
        )
    groups = _groups(patches_per_class)
    for tissue in TISSUE_CLASSES:
        (folder / tissue).mkdir(parents=True, exist_ok=True)
    share, rest = divmod(patches_per_class, len(groups))
    total = patches_per_class * len(TISSUE_CLASSES)
    with (
        tqdm(total=total, desc="painting patches", unit="patch", disable=not progress) as bar,
        _painters(workers) as pool,
    ):
        jobs = [
            pool.submit(
                _make_group,
                folder,
                split,
                number,
                seed=seed,
                key=key,
                count=share + (key < rest),
                patch_size=patch_size,
                bar=bar,
            )
            for key, (split, number) in enumerate(groups)
        ]
        rows = [row for job in jobs for row in job.result()]
    return _write_table(folder / "index.csv", rows)


def _groups(patches_per_class: int) -> list[tuple[str, int]]:
    """Returns (split, number) of all groups: at least one a hospital, more the more patches are asked for."""
    counts = {
        split: max(len(hospitals), round(patches_per_class * _SHARE_OF_SPLIT[split] / _PATCHES_PER_GROUP))
        for split, hospitals in _HOSPITALS_OF_SPLIT.items()
    }
    return [(split, number) for split, count in counts.items() for number in range(count)]


def _make_group(
    folder: Path,
    split: str,
    number: int,
    *,
    seed: int,
    key: int,
    count: int,
    patch_size: int,
    bar: tqdm[None],
) -> list[dict[str, str]]:
    rng = np.random.default_rng([seed, _PATCH_KEY, key])
    hospitals = _HOSPITALS_OF_SPLIT[split]
    hospital = hospitals[number % len(hospitals)]
    table = colour_table(draw_slide_stain(_hospital_stain(seed, hospital), rng))
    group = f"{split}_{number:02d}_{_hospital_name(hospital)}"
    rows = []
    for tissue in TISSUE_CLASSES:
        patches = _tissue_patches(tissue, rng, table, count=count, patch_size=patch_size)
        for position, patch in enumerate(patches):
            path = f"{tissue}/{group}_{position:03d}.png"
            if not cv2.imwrite(str(folder / path), cv2.cvtColor(patch, cv2.COLOR_RGB2BGR), _FAST_PNG):
                raise OSError(f"{folder / path}: cannot be written")
            rows.append({"path": path, "label": tissue, "group_id": group, "split": split})
            bar.update()
    return rows


def _tissue_patches(
    tissue: str, rng: np.random.Generator, table: npt.NDArray[np.uint32], *, count: int, patch_size: int
) -> Iterable[U8]:
    """Yields patches of one tissue: windows of squares painted at 40x, halved to 20x, mirrored and turned."""
    edge = 2 * patch_size
    side = 4  # windows along an edge of a square
    for position in range(count):
        place = position % side**2
        if place == 0:
            square = paint_tissue(tissue, rng, size_px=max(512, 16 * -(-edge * side // 16)), mpp=_PATCH_MPP / 2)
            step = square.shape[0] // side
        corner = np.array(divmod(place, side)) * step + rng.integers(0, max(1, step - edge + 1), 2)
        rows, columns = ((start + np.arange(edge)) % square.shape[0] for start in corner)
        window = square[np.ix_(rows, columns)]
        window = np.rot90(window[:, :: int(rng.choice((-1, 1)))], int(rng.integers(4)))
        thickness = int(rng.integers(8, 16))
        fine = apply_table(table, window, thickness)
        yield np.asarray(cv2.resize(fine, (patch_size, patch_size), interpolation=cv2.INTER_AREA), dtype=np.uint8)


def _hospital_stain(seed: int, hospital: int) -> Stain:
    return draw_hospital_stain(np.random.default_rng([seed, _HOSPITAL_KEY, hospital]))


def _hospital_name(hospital: int) -> str:
    return f"hospital_{hospital:02d}"


def _write_table(path: Path, rows: list[dict[str, str]]) -> Path:
    partial = path.with_name(path.name + ".partial")
    with partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return partial.replace(path)


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line. Returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output", type=Path, metavar="FOLDER", help="write slides and slides.csv here")
    parser.add_argument("--slides", type=int, default=8, help="how many slides (default 8)")
    parser.add_argument("--small", action="store_true", help="slides of about 2000 px, in seconds")
    parser.add_argument("--patches", type=Path, metavar="FOLDER", help="write labelled patches and index.csv here")
    parser.add_argument("--patches-per-class", type=int, default=300, metavar="N", help="default 300")
    parser.add_argument("--patch-size", type=int, default=224, metavar="PX", help="default 224")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2, help="slides painted at once (default 2)")
    options = parser.parse_args(arguments)
    if options.output is None and options.patches is None:
        parser.error("nothing to make: give --output FOLDER for slides, --patches FOLDER for patches, or both")
    common = {"seed": options.seed, "workers": options.workers}
    try:
        if options.output is not None:
            table = make_slides(options.output, slides=options.slides, small=options.small, **common)
            print(f"{options.slides} slides: {table}")
        if options.patches is not None:
            per_class, size = options.patches_per_class, options.patch_size
            table = make_patches(options.patches, patches_per_class=per_class, patch_size=size, **common)
            print(f"{per_class} patches of each of {len(TISSUE_CLASSES)} classes: {table}")
    except (OSError, ValueError) as error:
        print(f"make_sample_slides: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
