"""How well does a network find tissue on real images that neither train nor score it?

Steps: `development_cases` reads sections, tiles of tissue and tiles of glass of a folder, as
`foreground_development.json` names them beside this program with masks drawn once as polygons; shows the sections in
other stains (paler, greyer) and through other glass; tears gaps into them; draws pen over sections and glass.
`development_score` is the mean of seven shares, each 1 at best. `train_foreground` chooses its thresholds with it, and
among trainings the better one is kept.

The images in ``foreground`` of the same folder score the network and are never read here.

    uv run python tools/foreground_development.py DATA_DIR --methods unet stain grey
"""

from __future__ import annotations

import argparse
import csv
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from online_patching.tissue import METHODS, TissueFinder, tissue_finder
from score_foreground import auc, disc_means, filled, read_rgb

U8 = npt.NDArray[np.uint8]
Bool = npt.NDArray[np.bool_]

LIST_FILE = Path(__file__).with_suffix(".json")
GROUPS = ("section", "spots", "gap", "tissue", "empty", "pen", "beside pen")
_EDGE_PX = 2
_STAINS = {"as it is": (1.0, 1.0), "pale": (0.35, 0.8), "grey": (0.5, 0.25)}
_GLASS = ((1.0, 1.0, 1.0), (0.88, 0.86, 0.9), (0.95, 0.9, 0.93))
_INKS = {"red": (0.85, 0.12, 0.2), "green": (0.12, 0.6, 0.4), "blue": (0.15, 0.3, 0.75), "black": (0.12, 0.12, 0.15)}


@dataclass(frozen=True, slots=True)
class Case:
    """An image uint8 (H, W, 3) with the part that must be found, and the part that must not; the rest is unclear.

    `group` is one of section, spots (then `tissue` and `other` are rows of disc centres (y, x)), gap, tissue, empty,
    pen.
    """

    name: str
    group: str
    image: U8
    mpp: float | None
    tissue: npt.NDArray[Any]
    other: npt.NDArray[Any]


def development_cases(folder: Path) -> list[Case]:
    """All cases, read and drawn; the same at every call.

    Args:
        folder: Holds textures, slides, patches and segmentation as `LIST_FILE` names them.

    Raises:
        ValueError: a file is missing.
    """
    wanted = json.loads(LIST_FILE.read_text())
    images = {entry["file"]: _read(folder / entry["file"]) for entry in wanted["sections"]}
    cases = [case for entry in wanted["sections"] for case in _sections(folder, entry, images[entry["file"]])]
    for group in ("tissue", "empty"):
        tiles = [tile for entry in wanted[f"{group}_tiles"] for tile in _tiles(images[entry["file"]], entry)]
        cases += [_plain(f"{group} {k}", group, tile) for k, tile in enumerate(tiles)]
        if group == "empty":
            cases += list(_inked_glass(tiles))
    for entry in wanted["tissue_patches"]:
        cases += [_plain(path.stem, "tissue", read_rgb(path)) for path in _patches(folder / entry["folder"], entry)]
    return cases


def _patches(folder: Path, entry: dict[str, Any]) -> list[Path]:
    """Evenly chosen files that a folder's index.csv lists, of the appearance asked for."""
    with (folder / "index.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if all(row[key] == want for key, want in entry["where"].items())]
    step = max(1, len(rows) // int(entry["count"]))
    return [folder / entry["file"].format(**row) for row in rows[::step][: entry["count"]]]


def _plain(name: str, group: str, image: U8) -> Case:
    everything, nothing = np.ones(image.shape[:2], np.bool_), np.zeros(image.shape[:2], np.bool_)
    pair = (everything, nothing) if group == "tissue" else (nothing, everything)
    return Case(name, group, image, None, *pair)


def _read(path: Path) -> U8:
    if path.suffix != ".svs":
        return read_rgb(path)
    import openslide

    with openslide.OpenSlide(str(path)) as slide:
        return np.ascontiguousarray(np.asarray(slide.read_region((0, 0), 0, slide.dimensions))[..., :3])


def _tiles(image: U8, entry: dict[str, Any]) -> Iterator[U8]:
    size = int(entry["size_px"])
    for x, y in entry["corners"]:
        tile = image[y : y + size, x : x + size]
        if size > 1000:
            tile = np.asarray(cv2.resize(tile, (224, 224), interpolation=cv2.INTER_AREA), np.uint8)
        yield np.ascontiguousarray(tile)


def _sections(folder: Path, entry: dict[str, Any], image: U8) -> Iterator[Case]:
    """A section at several scales, stains and glasses; with its spots; torn; with pen."""
    rng = np.random.default_rng(len(entry["file"]))
    for number, mpp in enumerate(entry["thumbnails_mpp"]):
        scale = entry["mpp"] / mpp
        size = round(image.shape[1] * scale), round(image.shape[0] * scale)
        small = np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), np.uint8)
        drawn = {
            kind: filled(
                small.shape[:2], [[np.array(ring) * (scale / entry["drawn_at"])] for ring in entry.get(kind, [])]
            )
            for kind in ("tissue", "unclear", "glass")
        }
        kernel = np.ones((2 * _EDGE_PX + 1, 2 * _EDGE_PX + 1), np.uint8)
        tissue = cv2.erode((drawn["tissue"] & ~drawn["unclear"]).astype(np.uint8), kernel) > 0
        other = cv2.erode((~drawn["tissue"] & ~drawn["unclear"]).astype(np.uint8), kernel) > 0
        if "glass" in entry:
            other = drawn["glass"]
        clear = np.median(small[other].reshape(-1, 3), axis=0)
        for place, (stain, (depth, colour)) in enumerate(_STAINS.items()):
            shown = _restained(small, clear, depth, colour, _GLASS[(place + number) % 3])
            name = f"{Path(entry['file']).stem} at {mpp} um, {stain}"
            yield Case(name, "section", shown, float(mpp), tissue, other)
            if "spots" in entry and mpp == 16:
                yield Case(name, "spots", shown, float(mpp), *_spots(folder / entry["spots"], scale))
            yield _torn(f"{name}, torn", shown, tissue, other, float(mpp))
        for ink in _INKS:
            marked, density = _inked(small, rng, ink, wide=1.0, blur=0.7)
            pair = tissue & (density < 0.02), density > 0.5
            yield Case(f"{name}, {ink} pen", "pen", marked, float(mpp), *pair)
            if number + 1 == len(entry["thumbnails_mpp"]):
                yield Case(f"{name}, {ink} pen, resolution not told", "pen", marked, None, *pair)


def _restained(image: U8, clear: npt.NDArray[Any], depth: float, colour: float, glass: Sequence[float]) -> U8:
    """The same section dyed less deeply and less colourfully, on other glass (Beer and Lambert)."""
    density = -np.log(np.maximum(image, 1) / np.maximum(clear, 1)) * depth
    grey = density.mean(axis=-1, keepdims=True)
    light = clear * np.array(glass) * np.exp(-(grey + (density - grey) * colour))
    return np.asarray(np.clip(np.rint(light), 0, 255), np.uint8)


def _spots(path: Path, scale: float) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Centres (y, x) of the spots under tissue, and of the other places of the array within its used extent."""
    with path.open() as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    grid = np.array([(int(row["x"]), int(row["y"])) for row in rows])
    pixels = np.array([(float(row["pixel_x"]), float(row["pixel_y"])) for row in rows])
    design = np.c_[grid, np.ones(len(grid))]
    to_pixels = np.linalg.lstsq(design, pixels, rcond=None)[0]
    taken = {tuple(place) for place in grid.tolist()}
    free = np.array([(x, y) for x in range(2, 32) for y in range(2, 34) if (x, y) not in taken])
    others = np.c_[free, np.ones(len(free))] @ to_pixels
    return pixels[:, ::-1] * scale, others[:, ::-1] * scale


def _torn(name: str, image: U8, tissue: Bool, other: Bool, mpp: float) -> Case:
    """A section with gaps of 50 to 250 um through which its own glass is seen."""
    rng = np.random.default_rng(len(name))
    drawn = np.zeros(tissue.shape, np.float32)
    for _ in range(3):
        _stroke(drawn, rng, half_width_px=(25 / mpp, 125 / mpp), swell=0.3)
    share = cv2.GaussianBlur(drawn, (0, 0), 0.7)[..., None]
    glass = image[other]
    clear = cv2.medianBlur(glass[rng.integers(len(glass), size=tissue.shape)], 3)
    torn = np.rint(image * (1 - share) + clear * share).astype(np.uint8)
    kernel = np.ones((3, 3), np.uint8)
    gap = (cv2.erode(drawn, kernel) > 0) & tissue
    beside = tissue & (cv2.dilate(drawn, kernel, iterations=2) == 0)
    return Case(name, "gap", torn, mpp, beside, gap)


def _inked(image: U8, rng: np.random.Generator, ink: str, *, wide: float, blur: float) -> tuple[U8, npt.NDArray[Any]]:
    """Two strokes whose width follows the hand's pressure, darker at their rims; with the ink's density (H, W)."""
    height, width = image.shape[:2]
    drawn = np.zeros((height, width), np.float32)
    for _ in range(2):
        _stroke(drawn, rng, half_width_px=(2 * wide, 7 * wide), swell=0.5)
    rim = drawn - cv2.GaussianBlur(drawn, (0, 0), 1.5 * wide)
    density = np.asarray(cv2.GaussianBlur(drawn + 0.6 * np.maximum(rim, 0), (0, 0), blur))
    through = np.array(_INKS[ink]) ** (density * rng.uniform(0.7, 1.2))[..., None]
    return np.clip(np.rint(image * through), 0, 255).astype(np.uint8), density


def _stroke(
    drawn: npt.NDArray[np.float32], rng: np.random.Generator, *, half_width_px: tuple[float, float], swell: float
) -> None:
    """A curve through the view (H, W) whose width swells and shrinks by a share, drawn as 1."""
    height, width = drawn.shape
    knots = rng.uniform(0.05, 0.95, (5, 2)) * (width, height)
    along = np.linspace(0, 1, 400)
    weights = np.stack([_BINOMIAL[k] * along**k * (1 - along) ** (4 - k) for k in range(5)], axis=1)
    pressure = 1 + swell * np.sin(along * rng.uniform(3, 14) + rng.uniform(0, 6))
    half_width = rng.uniform(*half_width_px)
    for (x, y), push in zip(weights @ knots, pressure, strict=True):
        cv2.circle(drawn, (round(x), round(y)), max(1, round(half_width * push)), 1.0, -1)


_BINOMIAL = (1, 4, 6, 4, 1)


def _inked_glass(tiles: Sequence[U8]) -> Iterator[Case]:
    """Every tile of glass with one pen, sharp or far out of focus: nothing there is tissue."""
    rng = np.random.default_rng(5)
    inks = list(_INKS)
    for number, tile in enumerate(tiles):
        blurred = number % 2 == 0
        ink = inks[number // 2 % len(inks)]
        wide, blur = (float(rng.uniform(6, 20)), float(rng.uniform(8, 40))) if blurred else (1.5, 0.8)
        yield _plain(f"glass {number}, {ink} pen", "empty", _inked(tile, rng, ink, wide=wide, blur=blur)[0])


def case_shares(case: Case, values: npt.NDArray[np.float32], mask: Bool) -> dict[str, float]:
    """The shares that one case adds to the groups of `GROUPS`, 1 at best each."""
    if case.group == "spots":
        found, other = (disc_means(mask.astype(np.float32), at, 3.0) > 0.5 for at in (case.tissue, case.other))
        ranked = [disc_means(values, at, 3.0) for at in (case.tissue, case.other)]
        truth = np.repeat([True, False], [len(ranked[0]), len(ranked[1])])
        return {"spots": (found.mean() + (~other).mean()) / 2, "auc": auc(truth, np.concatenate(ranked))}
    shares = {"tissue": mask[case.tissue].mean() if case.tissue.any() else 1.0}
    shares["other"] = 1 - (mask[case.other].mean() if case.other.any() else 0.0)
    if case.group in ("section", "gap"):
        return {case.group: (shares["tissue"] + shares["other"]) / 2}
    if case.group == "pen":
        return {"pen": shares["other"], "beside pen": shares["tissue"]}
    return {case.group: shares["tissue"] if case.group == "tissue" else shares["other"]}


def development_score(cases: Sequence[Case], found: Sequence[tuple[npt.NDArray[np.float32], Bool]]) -> dict[str, float]:
    """Mean of every group, and ``score``, the mean of those (but for the area under the curve at the spots)."""
    shares: dict[str, list[float]] = {}
    for case, (values, mask) in zip(cases, found, strict=True):
        for name, share in case_shares(case, values, mask).items():
            shares.setdefault(name, []).append(float(share))
    means = {name: float(np.mean(each)) for name, each in shares.items()}
    means["score"] = float(np.mean([means[group] for group in GROUPS]))
    return means


def find_all(cases: Sequence[Case], finder: TissueFinder) -> list[tuple[npt.NDArray[np.float32], Bool]]:
    """Values and mask of every case."""
    return [(finder.values(case.image, case.mpp), finder(case.image, case.mpp)) for case in cases]


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="folder with textures, slides, patches and segmentation")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), help="names, or paths of .onnx files")
    parser.add_argument("--each", action="store_true", help="print every case as well")
    given = parser.parse_args(arguments)
    cases = development_cases(given.folder)
    print(f"| method | score | {' | '.join(GROUPS)} | area under the curve |\n|---|---|{'---|' * (len(GROUPS) + 1)}")
    for method in given.methods:
        found = find_all(cases, tissue_finder(method))
        means = development_score(cases, found)
        columns = [f"{100 * means[name]:.1f}" for name in ("score", *GROUPS)]
        print(f"| {Path(method).name} | {' | '.join(columns)} | {means['auc']:.3f} |", flush=True)
        for case, pair in zip(cases, found, strict=True):
            if given.each:
                shares = {name: round(100 * share, 1) for name, share in case_shares(case, *pair).items()}
                print(f"  {case.group}: {case.name}: {shares}")


if __name__ == "__main__":
    main()
