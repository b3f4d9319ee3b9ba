"""BACH: breast histology, 400 images of 2048 x 1536 in four classes, and the paper's patient-aware split.

`ICIAR2018_BACH_Challenge/Photos/{Benign,InSitu,Invasive,Normal}/{b,is,iv,n}NNN.tif`. The download has no split and
no patients in it; the paper (section IV-A) divided it by patient, so that 268 images train and 132 test. The
split is stated in ranges of an image's number: 100 x class (alphabetical) + NNN - 1.
"""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd

from fm_eval.errors import DatasetError
from fm_eval.images import ImageFiles
from fm_eval.layouts.listing import Listing, Published, files_of, find_folder, find_folders, ungrouped

_PREFIXES = {"Benign": "b", "InSitu": "is", "Invasive": "iv", "Normal": "n"}
_IMAGES_A_CLASS = 100

# half-open
TRAIN_RANGES = ((0, 41), (59, 60), (90, 139), (169, 240), (258, 260), (273, 345), (368, 400))
TEST_RANGES = ((41, 59), (60, 90), (139, 169), (240, 258), (260, 273), (345, 368))

_PUBLISHED = Published(
    source="paper, section IV-A",
    images={"train": 268, "test": 132},
    images_of_class={
        "train": {"Benign": 52, "InSitu": 70, "Invasive": 69, "Normal": 77},
        "test": {"Benign": 48, "InSitu": 30, "Invasive": 31, "Normal": 23},
    },
)


def read_bach(root: Path) -> Listing:
    """List the folder that holds `ICIAR2018_BACH_Challenge`, or that folder itself.

    Raises:
        DatasetNotFoundError: no such folder.
        DatasetError: a class folder is missing, or a file has a name that says no number.
    """
    photos = find_folder(find_folder(root, "ICIAR2018_BACH_Challenge"), "Photos")
    rows = []
    folders = find_folders(photos, *_PREFIXES)
    for number, ((label, prefix), folder) in enumerate(zip(_PREFIXES.items(), folders, strict=True)):
        for path in files_of(folder, {".tif"}):
            matched = re.fullmatch(rf"{prefix}(\d{{3}})", path.stem)
            if matched is None or not 1 <= int(matched[1]) <= _IMAGES_A_CLASS:
                raise DatasetError(f"image {path}: its name is not {prefix}001 to {prefix}100, so its split is unknown")
            image = number * _IMAGES_A_CLASS + int(matched[1]) - 1
            rows.append((f"{label}/{path.name}", label, split_of(image)))
    table = ungrouped(pd.DataFrame(rows, columns=["path", "label", "split"], dtype=str))
    return Listing(
        layout="bach",
        root=photos,
        table=table,
        images=ImageFiles([photos / path for path in table["path"]]),
        classes=tuple(_PREFIXES),
        groups_known=False,
        published=_PUBLISHED,
    )


def split_of(image: int) -> str:
    """Split of image number 0 to 399."""
    return "train" if any(start <= image < end for start, end in TRAIN_RANGES) else "test"
