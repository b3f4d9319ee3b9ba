"""Food-101: 101 dishes, natural images of up to 512 pixels (the paper's appendix C).

`images/<class>/<number>.jpg`; `meta/train.txt` and `meta/test.txt` list `<class>/<number>` of the two splits.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from fm_eval.errors import DatasetError
from fm_eval.images import ImageFiles
from fm_eval.layouts.listing import Listing, Published, find_files, ungrouped

_PUBLISHED = Published(source="Bossard et al. 2014", images={"train": 75_750, "test": 25_250})


def read_food101(root: Path) -> Listing:
    """List the folder that holds `images` and `meta`, or the one above it.

    Raises:
        DatasetNotFoundError: no meta/train.txt.
        DatasetError: a line that is not `class/name`.
    """
    root = root / "food-101" if (root / "food-101").is_dir() else root
    lists = find_files(root, "meta/train.txt", "meta/test.txt")
    rows = []
    for split, listed in zip(("train", "test"), lists, strict=True):
        for number, line in enumerate(listed.read_text(encoding="utf-8").split(), start=1):
            label, slash, name = line.partition("/")
            if not (label and slash and name) or ".." in line:
                raise DatasetError(f"file {listed}: line {number} is {line!r}, expected class/name")
            rows.append((f"images/{line}.jpg", label, split))
    table = ungrouped(pd.DataFrame(rows, columns=["path", "label", "split"], dtype=str))
    return Listing(
        layout="food101",
        root=root,
        table=table,
        images=ImageFiles([root / path for path in table["path"]]),
        classes=tuple(sorted(set(table["label"]))),
        groups_known=False,
        published=_PUBLISHED,
    )
