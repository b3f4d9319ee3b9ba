"""Which images are evaluated, with which label, group and split?

A dataset is a folder of images and an index CSV with the columns `path` (relative to the CSV), `label`,
`group_id` (patient, slide or source image: whatever must not be on both sides of a split) and, if there is
one, `split` (train, val, test). Other columns are kept. Everything that can be wrong is checked at once,
before any embedding is computed:

1. read the table, check columns, values, duplicates;
2. check and hash every file (threads);
3. check the splits, or make a seeded, stratified, group-disjoint one.

After: transform, embed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image, UnidentifiedImageError

from fm_eval.errors import DatasetError
from fm_eval.metrics import IntArray
from fm_eval.splits import make_split

SPLITS = ("train", "val", "test")
_REQUIRED = ("path", "label", "group_id")


@dataclass(frozen=True, slots=True)
class PatchDataset:
    """Checked index of N labelled images.

    Attributes:
        root: folder that `path` is relative to.
        table: N rows with at least path, label, group_id and split, all str, in the order of the index.
        classes: class names, sorted; a label's position is its class number.
        sha256: over the index rows and the contents of all files.
        split_source: "index", or how the split was made.
        identical_across_splits: files whose very bytes also occur in another split.
    """

    root: Path
    table: pd.DataFrame
    classes: tuple[str, ...]
    sha256: str
    split_source: str
    identical_across_splits: int

    def __len__(self) -> int:
        return len(self.table)

    @property
    def paths(self) -> list[Path]:
        """Image files in index order."""
        return [self.root / path for path in self.table["path"]]

    @property
    def labels(self) -> IntArray:
        """(N,) int64 class numbers in index order."""
        return np.searchsorted(np.array(self.classes), self.table["label"].to_numpy(dtype=str)).astype(np.int64)

    def rows(self, split: str) -> IntArray:
        """(n,) int64 row numbers of one split, ascending; empty when there is no such split."""
        return np.flatnonzero((self.table["split"] == split).to_numpy()).astype(np.int64)


def load_dataset(data: str | Path, *, split_seed: int = 0, threads: int = 4) -> PatchDataset:
    """Read and check an index CSV (or a folder that holds `index.csv`).

    Args:
        data: index CSV or folder.
        split_seed: seed of the split that is made when the index has no column `split`.
        threads: threads that check and hash the files.

    Raises:
        DatasetError: anything that would make the numbers wrong, in one line that names the first culprit.
    """
    index = Path(data)
    if index.is_dir():
        index = index / "index.csv"
    table = _read_index(index)
    digests = _hash_files(index, table["path"].tolist(), threads=threads)
    if "split" in table:
        split_source = "index"
    else:
        table["split"] = make_split(table["label"].tolist(), table["group_id"].tolist(), seed=split_seed)
        split_source = f"made: stratified, group-disjoint, seed {split_seed}"
    _check_splits(index, table)
    spread = pd.DataFrame({"digest": digests, "split": table["split"]}).groupby("digest")["split"].nunique()
    crossing = set(spread.index[spread > 1])
    return PatchDataset(
        root=index.parent,
        table=table,
        classes=tuple(sorted(set(table["label"]))),
        sha256=_dataset_hash(table, digests),
        split_source=split_source,
        identical_across_splits=sum(digest in crossing for digest in digests),
    )


def _read_index(index: Path) -> pd.DataFrame:
    if not index.is_file():
        raise DatasetError(f"index {index}: no such file; give a CSV with the columns path,label,group_id[,split]")
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


def _hash_files(index: Path, paths: Sequence[str], *, threads: int) -> list[str]:
    """sha256 of every file; refuses what is missing or is no image before anything expensive starts."""
    missing = [path for path in paths if not (index.parent / path).is_file()]
    if missing:
        raise DatasetError(
            f"index {index}: {missing[0]} does not exist (one of {len(missing)} missing of {len(paths)}); "
            "paths are relative to the index"
        )
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(_hash_image, [index.parent / path for path in paths]))


def _hash_image(path: Path) -> str:
    try:
        content = path.read_bytes()
        with Image.open(BytesIO(content)):  # header only: decoding errors are found, and named, by transform
            pass
    except (UnidentifiedImageError, OSError, ValueError, Image.DecompressionBombError) as error:
        reason = "empty file" if path.is_file() and path.stat().st_size == 0 else "not an image that Pillow reads"
        raise DatasetError(f"image {path}: {reason}; replace the file or drop its row") from error
    return hashlib.sha256(content).hexdigest()


def _check_splits(index: Path, table: pd.DataFrame) -> None:
    unknown = sorted(set(table["split"]) - set(SPLITS))
    if unknown:
        raise DatasetError(f"index {index}: unknown split {unknown[0]!r}, allowed are {', '.join(SPLITS)}")
    spread = table.groupby("group_id")["split"].nunique()
    leaking = sorted(spread.index[spread > 1])
    if leaking:
        where = sorted(set(table.loc[table["group_id"] == leaking[0], "split"]))
        raise DatasetError(
            f"index {index}: group {leaking[0]!r} is in {' and '.join(where)}, a leak "
            f"(one of {len(leaking)} groups); keep a group in one split, or drop the column split"
        )
    in_train = set(table.loc[table["split"] == "train", "label"])
    absent = sorted(set(table["label"]) - in_train)
    if absent:
        raise DatasetError(
            f"index {index}: class {absent[0]!r} has no row in split train (one of {len(absent)} classes)"
        )
    if len(in_train) < 2:
        raise DatasetError(f"index {index}: one class only ({', '.join(in_train)}), at least 2 needed")
    if set(table["split"]) == {"train"}:
        raise DatasetError(f"index {index}: only the split train, val or test is needed too")


def _dataset_hash(table: pd.DataFrame, digests: list[str]) -> str:
    """Hash of rows and contents; independent of extra columns and of where the folder lies."""
    total = hashlib.sha256()
    for row in zip(table["path"], table["label"], table["group_id"], table["split"], digests, strict=True):
        total.update(("\x1f".join(row) + "\n").encode())
    return total.hexdigest()
