"""MHIST: colorectal polyps, 224 x 224, hyperplastic polyp (HP) or sessile serrated adenoma (SSA).

`images/MHIST_xxx.png` and `annotations.csv`, whose column `Partition` is the split. HP is class 0 and SSA class 1,
the order of the data set's paper; other tools number them the other way round.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from fm_eval.errors import DatasetError
from fm_eval.images import ImageFiles
from fm_eval.layouts.listing import Listing, Published, find_files, ungrouped

_CLASSES = ("HP", "SSA")
_COLUMNS = ("Image Name", "Majority Vote Label", "Partition")

_PUBLISHED = Published(
    source="MHIST, table 1",
    images={"train": 2_175, "test": 977},
    images_of_class={"train": {"HP": 1_545, "SSA": 630}, "test": {"HP": 617, "SSA": 360}},
)


def read_mhist(root: Path) -> Listing:
    """List the folder that holds `annotations.csv` and `images`.

    Raises:
        DatasetNotFoundError: no annotations.csv.
        DatasetError: another table, or a label that is neither HP nor SSA.
    """
    [annotations] = find_files(root, "annotations.csv")
    try:
        table = pd.read_csv(annotations, dtype=str, keep_default_na=False)
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError, OSError) as error:
        raise DatasetError(f"data {annotations}: not a readable CSV ({' '.join(str(error).split())})") from error
    missing = [name for name in _COLUMNS if name not in table]
    if missing:
        raise DatasetError(f"data {annotations}: no column {missing[0]!r}, got {', '.join(map(str, table.columns))}")
    table = pd.DataFrame(
        {
            "path": "images/" + table["Image Name"],
            "label": table["Majority Vote Label"],
            "split": table["Partition"].str.lower(),
        }
    )
    unknown = sorted(set(table["label"]) - set(_CLASSES))
    if unknown:
        raise DatasetError(f"data {annotations}: unknown label {unknown[0]!r}, expected HP or SSA")
    return Listing(
        layout="mhist",
        root=root,
        table=ungrouped(table),
        images=ImageFiles([root / path for path in table["path"]]),
        classes=_CLASSES,
        groups_known=False,
        order_note="HP is 0 and SSA is 1 (eva numbers them the other way round)",
        published=_PUBLISHED,
    )
