"""CIFAR-10 and CIFAR-100: 32 x 32 natural images in pickled batches (the paper's appendix C).

CIFAR-10: `cifar-10-batches-py/data_batch_{1..5}`, `test_batch`, `batches.meta`. CIFAR-100: `cifar-100-python/train`,
`test`, `meta`. `data` is uint8 (N, 3072): the red plane, then green, then blue, each 32 x 32 by rows. The pickles
are parsed as data and never run (`pickled_data`).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from fm_eval.errors import DatasetError
from fm_eval.images import JoinedImages, PixelArray
from fm_eval.layouts.listing import Listing, Published, find_files, find_folder, ungrouped
from fm_eval.layouts.pickled_data import read_pickled_data

_SIDE = 32


def read_cifar10(root: Path) -> Listing:
    """List the folder that holds `cifar-10-batches-py`, or that folder itself.

    Raises:
        DatasetNotFoundError: no such folder.
        DatasetError: a file is missing, is not such a batch, or would run code.
    """
    folder = find_folder(root, "cifar-10-batches-py")
    train = [f"data_batch_{number}" for number in range(1, 6)]
    find_files(folder, *train, "test_batch", "batches.meta")
    classes = _names(folder / "batches.meta", "label_names")
    published = Published(
        source="Krizhevsky 2009",
        images={"train": 50_000, "test": 10_000},
        images_of_class={"train": dict.fromkeys(classes, 5_000), "test": dict.fromkeys(classes, 1_000)},
    )
    batches = [(name, "train") for name in train] + [("test_batch", "test")]
    return _listing("cifar10", folder, batches, "labels", classes, published)


def read_cifar100(root: Path) -> Listing:
    """List the folder that holds `cifar-100-python`, or that folder itself; the labels are the 100 fine ones.

    Raises:
        DatasetNotFoundError: no such folder.
        DatasetError: a file is missing, is not such a batch, or would run code.
    """
    folder = find_folder(root, "cifar-100-python")
    find_files(folder, "train", "test", "meta")
    classes = _names(folder / "meta", "fine_label_names")
    published = Published(
        source="Krizhevsky 2009",
        images={"train": 50_000, "test": 10_000},
        images_of_class={"train": dict.fromkeys(classes, 500), "test": dict.fromkeys(classes, 100)},
    )
    return _listing("cifar100", folder, [("train", "train"), ("test", "test")], "fine_labels", classes, published)


def _listing(
    layout: str,
    folder: Path,
    batches: Sequence[tuple[str, str]],
    label_key: str,
    classes: tuple[str, ...],
    published: Published,
) -> Listing:
    parts, tables = [], []
    for name, split in batches:
        pixels, labels = _batch(folder / name, label_key, len(classes))
        parts.append(PixelArray(pixels, title=str(folder / name)))
        path = [f"{name}#{row}" for row in range(len(pixels))]
        tables.append(pd.DataFrame({"path": path, "label": np.array(classes, dtype=object)[labels], "split": split}))
    return Listing(
        layout=layout,
        root=folder,
        table=ungrouped(pd.concat(tables, ignore_index=True)),
        images=JoinedImages(parts),
        classes=classes,
        groups_known=False,
        published=published,
    )


def _batch(path: Path, label_key: str, classes: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    content = read_pickled_data(path)
    data, labels = content.get("data"), content.get(label_key)
    if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.ndim != 2 or data.shape[1] != 3 * _SIDE**2:
        raise DatasetError(f"file {path}: not a CIFAR batch: 'data' is not uint8 (N, 3072)")
    if not isinstance(labels, list) or len(labels) != len(data) or not all(type(v) is int for v in labels):
        raise DatasetError(f"file {path}: not a CIFAR batch: {label_key!r} is not a list of {len(data)} numbers")
    numbers = np.array(labels, dtype=np.int64)
    if len(numbers) and not (numbers.min() >= 0 and numbers.max() < classes):
        raise DatasetError(f"file {path}: label {numbers.max()}, allowed 0 to {classes - 1}")
    planes = data.reshape(-1, 3, _SIDE, _SIDE)
    return np.ascontiguousarray(planes.transpose(0, 2, 3, 1)), numbers


def _names(path: Path, key: str) -> tuple[str, ...]:
    names = read_pickled_data(path).get(key)
    if not isinstance(names, list) or not all(type(name) is str for name in names) or len(set(names)) < len(names):
        raise DatasetError(f"file {path}: {key!r} is not a list of different class names")
    return tuple(names)
