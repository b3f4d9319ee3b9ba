"""Any folder of images with an index CSV.

Columns: `path` (relative to the CSV), `label`, `group_id` (patient, slide or source image: whatever must not be
on both sides of a split) and, if there is one, `split` (train, val, test). Other columns are kept. Classes are
numbered in alphabetical order. Where nothing is known of groups, group_id = path.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from fm_eval.errors import DatasetError, DatasetNotFoundError
from fm_eval.images import ImageFiles
from fm_eval.layouts.listing import Listing

_REQUIRED = ("path", "label", "group_id")


def read_index_csv(root: Path) -> Listing:
    """List an index CSV, or the `index.csv` of a folder.

    Raises:
        DatasetNotFoundError: no such file.
        DatasetError: not a CSV, a missing column, an empty value, or a path that is listed twice.
    """
    index = root / "index.csv" if root.is_dir() else root
    table = _read_table(index)
    return Listing(
        layout="index",
        root=index.parent,
        table=table,
        images=ImageFiles([index.parent / path for path in table["path"]]),
        classes=tuple(sorted(set(table["label"]))),
        groups_known=bool((table["group_id"] != table["path"]).any()),
    )


def _read_table(index: Path) -> pd.DataFrame:
    if not index.is_file():
        raise DatasetNotFoundError(
            f"index {index}: no such file; give a CSV with the columns path,label,group_id[,split]"
        )
    try:
        table = pd.read_csv(index, dtype=str, keep_default_na=False)
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError, OSError) as error:
        raise DatasetError(f"index {index}: not a readable CSV ({' '.join(str(error).split())})") from error
    missing = [name for name in _REQUIRED if name not in table]
    if missing:
        raise DatasetError(
            f"index {index}: column {missing[0]!r} is missing, got {', '.join(map(str, table.columns))}; "
            "expected path,label,group_id[,split] (where nothing is known of groups, group_id = path)"
        )
    if table.empty:
        raise DatasetError(f"index {index}: no rows")
    for name in [*_REQUIRED, *(["split"] if "split" in table else [])]:
        empty = (table[name].str.strip() == "").to_numpy()
        if empty.any():
            # line 1 is the header
            raise DatasetError(f"index {index}: line {int(empty.argmax()) + 2} has no {name} (one of {empty.sum()})")
    twice = table["path"].duplicated()
    if twice.any():
        raise DatasetError(f"index {index}: {table['path'][twice].iloc[0]} is listed twice (one of {twice.sum()})")
    return table
