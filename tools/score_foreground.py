"""How well does each method find tissue on real thumbnails?

Three questions, each on whatever a folder holds: do the values and the mask agree with the ``in_tissue`` flags at the
spots of ``humanpilot_*`` (`spot_scores`)? How much is kept of tiles that are all tissue or none (`tile_shares`)? How
much is kept of pen, and of tissue, within regions drawn by hand on ``penmarks/*.png`` (`region_shares`)?

    uv run python tools/score_foreground.py ../shared/data/foreground

None of these images trains a network or chooses its threshold.
"""

from __future__ import annotations

import argparse
import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
from online_patching.tissue import METHODS, TissueFinder, tissue_finder

U8 = npt.NDArray[np.uint8]
REGIONS_FILE = Path(__file__).parent.parent / "packages/online-patching/tests/foreground_regions.json"
SPOT_THUMBNAIL_MPP = 16.0

Polygon = Sequence[Sequence[Sequence[float]]]
Regions = Mapping[str, Mapping[str, Sequence[Polygon]]]


@dataclass(frozen=True, slots=True)
class SpotScore:
    """Area under the ROC curve of the values, balanced accuracy of the mask, at the spots of one thumbnail."""

    auc: float
    balanced_accuracy: float


def read_rgb(path: Path) -> U8:
    """An image as uint8 (H, W, 3) RGB; what is transparent counts as it is stored."""
    image = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if image is None:
        raise ValueError(f"{path}: not an image that OpenCV reads")
    return np.ascontiguousarray(image[..., ::-1])


def spot_scores(folder: Path, finder: TissueFinder) -> SpotScore:
    """Scores one slide of spatial transcriptomics: a value is the mean over a spot's disc, a vote its majority."""
    thumbnail = read_rgb(folder / "tissue_lowres_image.png")
    factors = json.loads((folder / "scalefactors_json.json").read_text())
    scale = float(factors["tissue_lowres_scalef"])
    radius_px = float(factors["spot_diameter_fullres"]) * scale / 2
    with (folder / "tissue_positions_list.txt").open() as file:
        spots = np.array([(float(r[1]), float(r[4]) * scale, float(r[5]) * scale) for r in csv.reader(file)])
    truth = spots[:, 0] > 0
    values = disc_means(finder.values(thumbnail, SPOT_THUMBNAIL_MPP), spots[:, 1:], radius_px)
    votes = disc_means(finder(thumbnail, SPOT_THUMBNAIL_MPP).astype(np.float32), spots[:, 1:], radius_px) > 0.5
    balanced = (float(votes[truth].mean()) + float((~votes[~truth]).mean())) / 2
    return SpotScore(auc(truth, values), balanced)


def disc_means(
    values: npt.NDArray[np.float32], centres_yx: npt.NDArray[np.float64], radius_px: float
) -> npt.NDArray[np.float64]:
    """Mean of values (H, W) over discs around centres (N, 2), (y, x) in pixels."""
    reach = int(np.ceil(radius_px))
    grid = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    rows, columns = grid[:, np.hypot(grid[0], grid[1]) <= max(radius_px, 0.5)]
    y = np.clip(np.rint(centres_yx[:, :1]).astype(int) + rows, 0, values.shape[0] - 1)
    x = np.clip(np.rint(centres_yx[:, 1:]).astype(int) + columns, 0, values.shape[1] - 1)
    return np.asarray(values[y, x].mean(axis=1), np.float64)


def auc(truth: npt.NDArray[np.bool_], values: npt.NDArray[np.float64]) -> float:
    """Area under the ROC curve: the chance that a positive's value is above a negative's, ties counted half."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    positives, negatives = int(truth.sum()), int((~truth).sum())
    return float((ranks[truth].sum() - positives * (positives + 1) / 2) / (positives * negatives))


def tile_shares(folder: Path, finder: TissueFinder) -> dict[str, float]:
    """Share of the area that is kept of each image of a folder, by file name; their scale is not known."""
    return {path.name: float(finder(read_rgb(path), None).mean()) for path in sorted(folder.glob("*.png"))}


def region_shares(folder: Path, finder: TissueFinder, regions: Regions) -> dict[str, dict[str, float]]:
    """Share that is kept of each kind of region ("pen", "tissue") of each image.

    Args:
        folder: Images; those that `regions` does not name are run and give no share.
        finder: The method.
        regions: File name to kind to polygons, each an outline and its holes, rings of (x, y) in pixels of the image.
    """
    shares: dict[str, dict[str, float]] = {}
    for path in sorted(folder.glob("*.png")):
        image = read_rgb(path)
        mask = finder(image, None)
        shares[path.name] = {
            kind: float(mask[filled(image.shape[:2], polygons)].mean())
            for kind, polygons in regions.get(path.name, {}).items()
            if polygons
        }
    return shares


def filled(shape: tuple[int, ...], polygons: Sequence[Polygon]) -> npt.NDArray[np.bool_]:
    """Mask bool (H, W) of what polygons enclose, without their holes."""
    drawn = np.zeros(shape, np.uint8)
    for rings in polygons:
        cv2.fillPoly(drawn, [np.rint(np.array(ring)).astype(np.int32) for ring in rings], 1)
    return drawn > 0


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints tables in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="folder with humanpilot_*, tiles and penmarks")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), help="names, or paths of .onnx files")
    given = parser.parse_args(arguments)
    finders = {Path(method).name: tissue_finder(method) for method in given.methods}
    names = list(finders)
    print(f"\n| slide: AUC / balanced accuracy | {' | '.join(names)} |\n|---|{'---|' * len(names)}")
    rows = {
        folder.name: [spot_scores(folder, finder) for finder in finders.values()]
        for folder in sorted(given.folder.glob("humanpilot_*"))
    }
    for name, scores in rows.items():
        print(f"| {name} | {' | '.join(f'{s.auc:.3f} / {s.balanced_accuracy:.3f}' for s in scores)} |")
    table = np.array([[(s.auc, s.balanced_accuracy) for s in scores] for scores in rows.values()])
    print(f"| mean | {' | '.join(f'{a:.3f} / {b:.3f}' for a, b in table.mean(axis=0))} |")
    tiles = {name: tile_shares(given.folder / "tiles", finder) for name, finder in finders.items()}
    print(f"\n| tile: share kept | {' | '.join(names)} |\n|---|{'---|' * len(names)}")
    for tile in tiles[names[0]]:
        print(f"| {tile} | {' | '.join(f'{100 * tiles[name][tile]:.1f} %' for name in names)} |")
    regions = json.loads(REGIONS_FILE.read_text()) if REGIONS_FILE.exists() else {}
    marked = {name: region_shares(given.folder / "penmarks", finder, regions) for name, finder in finders.items()}
    print(f"\n| thumbnail: share kept | {' | '.join(names)} |\n|---|{'---|' * len(names)}")
    for image, kinds in marked[names[0]].items():
        for kind in kinds:
            print(f"| {image}: {kind} | {' | '.join(f'{100 * marked[n][image][kind]:.1f} %' for n in names)} |")


if __name__ == "__main__":
    main()
