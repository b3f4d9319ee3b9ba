"""Which images are evaluated, with which label, group and split?

1. a layout lists what is on disk: the public download of a known dataset, or any folder with an index CSV;
2. every image is proved to be there and hashed, once (digests);
3. the split is taken from the layout, or a seeded, stratified, group-disjoint one is made, and checked.

Everything that can be wrong is found here, before any embedding is computed. After: embed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd

from fm_eval.digests import digest_images
from fm_eval.errors import DatasetError, DatasetNotFoundError
from fm_eval.images import ImageFiles, ImageSource
from fm_eval.layouts.bach import read_bach
from fm_eval.layouts.cifar import read_cifar10, read_cifar100
from fm_eval.layouts.crc import read_crc
from fm_eval.layouts.food101 import read_food101
from fm_eval.layouts.index_csv import read_index_csv
from fm_eval.layouts.listing import Listing, Published
from fm_eval.layouts.mhist import read_mhist
from fm_eval.layouts.pcam import read_pcam
from fm_eval.metrics import IntArray
from fm_eval.splits import make_folds, make_split, split_by_image

SPLITS = ("train", "val", "test")

LAYOUTS: dict[str, Callable[[Path], Listing]] = {
    "index": read_index_csv,
    "bach": read_bach,
    "crc": read_crc,
    "mhist": read_mhist,
    "pcam": read_pcam,
    "cifar10": read_cifar10,
    "cifar100": read_cifar100,
    "food101": read_food101,
}

SplitChoice = Literal["given", "group", "image"]


@dataclass(frozen=True, slots=True)
class PatchDataset:
    """Checked list of N labelled images.

    Attributes:
        layout: name of the layout.
        root: folder that the dataset lies in.
        table: N rows with at least path, label, group_id and split, all str.
        images: the N images in the order of the table.
        digests: sha256 of each image's content, in hexadecimal.
        classes: class names; a label's position is its class number.
        sha256: over rows, splits and contents.
        split_source: where the split is from, or how it was made.
        groups_known: whether group_id says what must stay together; if not, each image is its own group.
        published: what the publication says of the dataset, None for an index CSV.
        order_note: what is said of the order of the classes where tools differ.
    """

    layout: str
    root: Path
    table: pd.DataFrame
    images: ImageSource
    digests: tuple[str, ...]
    classes: tuple[str, ...]
    sha256: str
    split_source: str
    groups_known: bool
    published: Published | None = None
    order_note: str = ""

    def __len__(self) -> int:
        return len(self.table)

    @property
    def name(self) -> str:
        """Name of the layout; of the folder for an index CSV."""
        return self.root.resolve().name if self.layout == "index" else self.layout

    @property
    def paths(self) -> list[Path]:
        """Image files in order.

        Raises:
            DatasetError: the images are not in files of their own.
        """
        if not isinstance(self.images, ImageFiles):
            raise DatasetError(f"data {self.root}: its images are not files of their own; read dataset.images")
        return self.images.paths

    @property
    def labels(self) -> IntArray:
        """(N,) int64 class numbers in order."""
        number = {name: k for k, name in enumerate(self.classes)}
        return np.array([number[label] for label in self.table["label"]], dtype=np.int64)

    def rows(self, split: str) -> IntArray:
        """(n,) int64 row numbers of one split, ascending; empty when there is no such split."""
        return np.flatnonzero((self.table["split"] == split).to_numpy()).astype(np.int64)

    @property
    def identical_across_splits(self) -> int:
        """Images whose very content also occurs in another split."""
        spread = pd.DataFrame({"digest": self.digests, "split": self.table["split"]}).groupby("digest")["split"]
        return int((spread.transform("nunique") > 1).sum())

    @property
    def groups_across_splits(self) -> list[str]:
        """Groups that are in more than one split, sorted; only a split by image has any."""
        spread = self.table.groupby("group_id")["split"].nunique()
        return sorted(spread.index[spread > 1])


def load_dataset(
    data: str | Path,
    *,
    layout: str = "auto",
    split: SplitChoice = "given",
    split_seed: int = 0,
    cache: Path | None = None,
    threads: int = 4,
) -> PatchDataset:
    """Read and check a dataset.

    Args:
        data: folder of the dataset, or an index CSV.
        layout: one of `LAYOUTS`, or `auto` for the one that the folder has.
        split: `given`: the layout's own, or else one that is made; `group`: made, groups whole; `image`: made by
            image, with the leak that this is.
        split_seed: of a split that is made.
        cache: folder where the digests of the images are remembered; None reads every image.
        threads: threads that check and hash the images.

    Raises:
        DatasetNotFoundError: nothing of the dataset is on disk.
        DatasetError: anything that would make the numbers wrong, in one line that names the first culprit.
    """
    dataset = read_dataset(data, layout=layout, split=split, split_seed=split_seed, cache=cache, threads=threads)
    for problem in split_problems(dataset, groups_may_cross=split == "image"):
        raise DatasetError(f"data {data}: {problem}")
    return dataset


def read_dataset(
    data: str | Path,
    *,
    layout: str = "auto",
    split: SplitChoice = "given",
    split_seed: int = 0,
    cache: Path | None = None,
    threads: int = 4,
) -> PatchDataset:
    """`load_dataset`, but for what is wrong with the splits: `split_problems` says it."""
    listing = _list(Path(data), layout)
    digests = digest_images(listing.images, cache=cache, threads=threads)
    table, split_source = _with_split(listing.table, split, split_seed)
    return _dataset(listing, table, digests, split_source)


def load_folds(
    data: str | Path,
    *,
    folds: int,
    layout: str = "auto",
    seed: int = 0,
    cache: Path | None = None,
    threads: int = 4,
) -> list[PatchDataset]:
    """Read and check a dataset `folds` times, each time with another fold for test and the others for train.

    Args:
        data: folder of the dataset, or an index CSV; a split that it has is set aside.
        folds: at least 2; groups stay whole, classes keep their shares.
        layout: see `load_dataset`.
        seed: of the assignment of groups to folds.
        cache: see `load_dataset`.
        threads: see `load_dataset`.

    Raises:
        DatasetNotFoundError: nothing of the dataset is on disk.
        DatasetError: anything that would make the numbers wrong, or a class in fewer groups than folds.
    """
    listing = _list(Path(data), layout)
    digests = digest_images(listing.images, cache=cache, threads=threads)
    table = listing.table
    fold_of = np.array(make_folds(table["label"].tolist(), table["group_id"].tolist(), count=folds, seed=seed))
    views = []
    for fold in range(folds):
        divided = table.assign(fold=fold_of.astype(str), split=np.where(fold_of == fold, "test", "train"))
        made = f"fold {fold} of {folds}: stratified, group-disjoint, seed {seed}"
        views.append(_dataset(listing, divided, digests, made))
        for problem in split_problems(views[-1]):
            raise DatasetError(f"data {data}: {made}: {problem}")
    return views


def split_problems(dataset: PatchDataset, *, groups_may_cross: bool = False) -> Iterator[str]:
    """What makes the splits unfit to train and test on, the worst first, each in one line."""
    table = dataset.table
    unknown = sorted(set(table["split"]) - set(SPLITS))
    if unknown:
        yield f"unknown split {unknown[0]!r}, allowed are {', '.join(SPLITS)}"
    crossing = [] if groups_may_cross else dataset.groups_across_splits
    if crossing:
        where = sorted(set(table.loc[table["group_id"] == crossing[0], "split"]))
        yield (
            f"group {crossing[0]!r} is in {' and '.join(where)}, a leak "
            f"(one of {len(crossing)} groups); keep a group in one split, or make one with split=group"
        )
    if len(set(table["label"])) < 2:
        yield f"one class only ({table['label'].iloc[0]}), at least 2 needed"
    present = {split: set(table.loc[table["split"] == split, "label"]) for split in SPLITS}
    for split, labels in present.items():
        absent = [name for name in dataset.classes if name not in labels]
        if labels and absent:
            yield (
                f"class {absent[0]!r} has no row in split {split} (one of {len(absent)} of "
                f"{len(dataset.classes)} classes); every split needs every class"
            )
    for split, needed in (("train", present["train"]), ("val or test", present["val"] | present["test"])):
        if not needed:
            yield f"no row in split {split}, so nothing can be trained and tested"


def _dataset(listing: Listing, table: pd.DataFrame, digests: Sequence[str], split_source: str) -> PatchDataset:
    return PatchDataset(
        layout=listing.layout,
        root=listing.root,
        table=table,
        images=listing.images,
        digests=tuple(digests),
        classes=listing.classes,
        sha256=_dataset_hash(table, digests),
        split_source=split_source,
        groups_known=listing.groups_known,
        published=listing.published,
        order_note=listing.order_note,
    )


def _list(data: Path, layout: str) -> Listing:
    listing = _listing(data, layout)
    if listing.table.empty:
        raise DatasetNotFoundError(f"data {data}: no images of layout {listing.layout} in it")
    return listing


def _listing(data: Path, layout: str) -> Listing:
    if layout != "auto":
        if layout not in LAYOUTS:
            raise DatasetError(f"layout {layout!r} is unknown, allowed are auto, {', '.join(LAYOUTS)}")
        if not data.exists():
            raise DatasetNotFoundError(f"data {data}: no such file or folder; download the dataset there")
        return LAYOUTS[layout](data)
    if data.is_file() or (data / "index.csv").is_file() or data.suffix == ".csv":
        return read_index_csv(data)
    if not data.is_dir():
        raise DatasetNotFoundError(f"data {data}: no such folder; give the folder of a dataset, or an index CSV")
    for name, read in LAYOUTS.items():
        if name != "index":
            try:
                return read(data)
            except DatasetNotFoundError:
                continue
    raise DatasetNotFoundError(
        f"data {data}: no index.csv and no dataset of a known layout in it ({', '.join(list(LAYOUTS)[1:])})"
    )


def _with_split(table: pd.DataFrame, choice: SplitChoice, seed: int) -> tuple[pd.DataFrame, str]:
    labels, groups = table["label"].tolist(), table["group_id"].tolist()
    if choice == "image":
        return table.assign(split=split_by_image(labels, seed=seed)), f"made: stratified, by image, seed {seed}"
    if choice == "given" and "split" in table:
        return table, "given"
    made = make_split(labels, groups, seed=seed)
    return table.assign(split=made), f"made: stratified, group-disjoint, seed {seed}"


def _dataset_hash(table: pd.DataFrame, digests: Sequence[str]) -> str:
    """Hash of rows and contents; independent of extra columns and of where the folder lies."""
    total = hashlib.sha256()
    for row in zip(table["path"], table["label"], table["group_id"], table["split"], digests, strict=True):
        total.update(("\x1f".join(row) + "\n").encode())
    return total.hexdigest()
