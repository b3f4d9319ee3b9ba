"""Where are the nuclei? Painted tissue with the answer, in CoNSeP's classes.

`sample_tissue` paints two dyes; where much haematoxylin lies is a nucleus, and the tissue says of which kind: the four
cell classes of the paper (section IV-A) and background. One image holds several tissues, as real ones do.
"""

from __future__ import annotations

import csv
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
from sample_stain import apply_table, colour_table, draw_hospital_stain, draw_slide_stain
from sample_tissue import paint_tissue

CLASSES = ("background", "other", "inflammatory", "epithelial", "spindle-shaped")
_CLASS_OF = {"fat": 1, "lymphoid": 2, "gland": 3, "tumour": 3, "stroma": 4, "muscle": 4}
_ORDER = ("gland", "lymphoid", "stroma", "tumour", "fat", "muscle")
_MPP = 0.25
# Of 255; between the cytoplasm of the darkest tissue and the palest nuclei.
_NUCLEUS = 60
_CLOSED_PX = 7
_SMALLEST_PX = 30
_SHARE_OF_TRAIN = 2 / 3


def write_nuclei(folder: Path, *, images: int, size_px: int, seed: int) -> None:
    """Write `images/`, `labels/` and, last, `index.csv` (image_id, split, group_id).

    Args:
        folder: where to.
        images: how many; two thirds of them for training.
        size_px: their edge at 40x, a multiple of 32.
        seed: the same seed paints the same.
    """
    for name in ("images", "labels"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    rows = []
    for number in range(images):
        pixels, labels = paint_nuclei(size_px, np.random.default_rng([seed, number]), first=number)
        name = f"image_{number:02d}"
        for kind, content in (("images", cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR)), ("labels", labels)):
            if not cv2.imwrite(str(folder / kind / f"{name}.png"), content):
                raise OSError(f"{folder / kind / name}.png: cannot be written")
        split = "train" if number < round(images * _SHARE_OF_TRAIN) else "test"
        rows.append({"image_id": name, "split": split, "group_id": name})
    partial = folder / "index.csv.partial"
    with partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    partial.replace(folder / "index.csv")


def paint_nuclei(
    size_px: int, rng: np.random.Generator, *, first: int
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    """One image of four tissues in its quarters, uint8 RGB (S, S, 3), and the class of each pixel, uint8 (S, S)."""
    dyes = np.empty((size_px, size_px), dtype=np.uint16)
    labels = np.zeros((size_px, size_px), dtype=np.uint8)
    half = size_px // 2
    for quarter in range(4):
        tissue = _ORDER[(first + quarter) % len(_ORDER)]
        part = paint_tissue(tissue, rng, size_px=max(512, half), mpp=_MPP)[:half, :half]
        rows, columns = (slice(half * k, half * (k + 1)) for k in divmod(quarter, 2))
        dyes[rows, columns] = part
        labels[rows, columns] = _nuclei(part) * _CLASS_OF[tissue]
    table = colour_table(draw_slide_stain(draw_hospital_stain(rng), rng))
    return np.asarray(apply_table(table, dyes, 12), dtype=np.uint8), labels


def _nuclei(dyes: npt.NDArray[np.uint16]) -> npt.NDArray[np.uint8]:
    """1 where a nucleus is, uint8 of the same shape; pale chromatin inside is closed, specks are none."""
    haematoxylin = cv2.GaussianBlur((dyes >> 8).astype(np.float32), (0, 0), 1.0)
    ellipse = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (_CLOSED_PX, _CLOSED_PX))
    dark = cv2.morphologyEx((haematoxylin > _NUCLEUS).astype(np.uint8), cv2.MORPH_CLOSE, ellipse)
    count, parts, facts, _ = cv2.connectedComponentsWithStats(dark)
    large = np.zeros(count, dtype=np.uint8)
    large[1:] = facts[1:, cv2.CC_STAT_AREA] >= _SMALLEST_PX
    return np.asarray(large[parts], dtype=np.uint8)
