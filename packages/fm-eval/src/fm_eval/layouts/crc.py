"""CRC: nine colorectal tissues, 224 x 224.

`NCT-CRC-HE-100K/CLASS/*.tif` trains (100,000 images of 86 slides), `CRC-VAL-HE-7K/CLASS/*.tif` tests (7,180 of 25
other slides). The download does not say which image is of which slide.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from fm_eval.errors import DatasetError
from fm_eval.images import ImageFiles
from fm_eval.layouts.listing import Listing, Published, files_of, find_folders, ungrouped

_FOLDERS = {"train": "NCT-CRC-HE-100K", "test": "CRC-VAL-HE-7K"}
_CLASSES = ("ADI", "BACK", "DEB", "LYM", "MUC", "MUS", "NORM", "STR", "TUM")
_TRAIN = (10_407, 10_566, 11_512, 11_557, 8_896, 13_536, 8_763, 10_446, 14_317)
_TEST = (1_338, 847, 339, 634, 1_035, 592, 741, 421, 1_233)

_PUBLISHED = Published(
    source="zenodo.org/records/1214456",
    images={"train": 100_000, "test": 7_180},
    images_of_class={
        "train": dict(zip(_CLASSES, _TRAIN, strict=True)),
        "test": dict(zip(_CLASSES, _TEST, strict=True)),
    },
)


def read_crc(root: Path) -> Listing:
    """List the folder that holds the two.

    Raises:
        DatasetNotFoundError: neither is there.
        DatasetError: one of them is missing, or a folder of an unknown class.
    """
    rows = []
    for split, folder in zip(_FOLDERS, find_folders(root, *_FOLDERS.values()), strict=True):
        unknown = sorted(path.name for path in folder.iterdir() if path.is_dir() and path.name not in _CLASSES)
        if unknown:
            raise DatasetError(f"data {folder}: unknown class {unknown[0]!r}, expected {', '.join(_CLASSES)}")
        for label in _CLASSES:
            if (folder / label).is_dir():
                paths = files_of(folder / label, {".tif", ".tiff"})
                rows += [(f"{folder.name}/{label}/{path.name}", label, split) for path in paths]
    table = ungrouped(pd.DataFrame(rows, columns=["path", "label", "split"], dtype=str))
    return Listing(
        layout="crc",
        root=root,
        table=table,
        images=ImageFiles([root / path for path in table["path"]]),
        classes=_CLASSES,
        groups_known=False,
        published=_PUBLISHED,
    )
