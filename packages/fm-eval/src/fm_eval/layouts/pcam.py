"""PatchCamelyon: 96 x 96 patches of lymph nodes, with tumour in the centre (1) or not (0), in HDF5.

`camelyonpatch_level_2_split_{train,valid,test}_{x,y}.h5`, keys `x` uint8 (N, 96, 96, 3) and `y` (N, 1, 1, 1); and, if
they are there, `..._meta.csv`, whose column `wsi` says the slide of every patch. Files are read in place.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from fm_eval.errors import DatasetError
from fm_eval.images import Hdf5Images, JoinedImages, hdf5_shape
from fm_eval.layouts.listing import Listing, Published, find_files

_SPLITS = {"train": "train", "valid": "val", "test": "test"}
_CLASSES = ("normal", "tumor")


def _file(split: str, part: str) -> str:
    return f"camelyonpatch_level_2_split_{split}_{part}"


_PUBLISHED = Published(
    source="github.com/basveeling/pcam",
    images={"train": 262_144, "val": 32_768, "test": 32_768},
    images_of_class={
        "val": {"normal": 32_768 - 16_369, "tumor": 16_369},
        "test": {"normal": 32_768 - 16_377, "tumor": 16_377},
    },
    md5={
        _file("train", "x.h5"): "01844da899645b4d6f84946d417ba453",
        _file("valid", "x.h5"): "81cf9680f1724c40673f10dc88e909b1",
        _file("test", "x.h5"): "2614b2e6717d6356be141d9d6dbfcb7e",
        _file("train", "y.h5"): "0781386bf6c2fb62d58ff18891466aca",
        _file("valid", "y.h5"): "94d8aacc249253159ce2a2e78a86e658",
        _file("test", "y.h5"): "11ed647efe9fe457a4eb45df1dba19ba",
    },
    swapped_md5=(
        (_file("valid", "x.h5"), _file("test", "x.h5")),
        (_file("valid", "y.h5"), _file("test", "y.h5")),
    ),
)


def read_pcam(root: Path) -> Listing:
    """List the folder that holds the six HDF5 files.

    Raises:
        DatasetNotFoundError: none of them is there.
        DatasetError: one is missing, unreadable or of another shape, or labels other than 0 and 1.
    """
    find_files(root, *(_file(split, f"{part}.h5") for split in _SPLITS for part in "xy"))
    parts, tables = [], []
    for split, name in _SPLITS.items():
        pixels = Hdf5Images(root / _file(split, "x.h5"))
        labels = _labels(root / _file(split, "y.h5"), len(pixels))
        path = [f"{pixels.path.name}#{row}" for row in range(len(pixels))]
        groups = _slides(root / _file(split, "meta.csv"), len(pixels))
        parts.append(pixels)
        tables.append(
            pd.DataFrame(
                {
                    "path": path,
                    "label": np.array(_CLASSES, dtype=object)[labels],
                    "group_id": path if groups is None else groups,
                    "split": name,
                }
            )
        )
    table = pd.concat(tables, ignore_index=True)
    return Listing(
        layout="pcam",
        root=root,
        table=table,
        images=JoinedImages(parts),
        classes=_CLASSES,
        groups_known=bool((table["group_id"] != table["path"]).all()),
        published=_PUBLISHED,
    )


def _labels(path: Path, rows: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    import h5py

    shape, _ = hdf5_shape(path, "y")
    if int(np.prod(shape)) != rows or not shape or shape[0] != rows:
        raise DatasetError(f"file {path}: 'y' is {shape} for {rows} images, expected ({rows}, 1, 1, 1)")
    with h5py.File(path, "r") as file:
        labels = np.asarray(file["y"]).reshape(-1).astype(np.int64)
    if rows and not np.isin(labels, (0, 1)).all():
        raise DatasetError(f"file {path}: labels {sorted(set(labels.tolist()))[:5]}, expected 0 and 1")
    return labels


def _slides(path: Path, rows: int) -> list[str] | None:
    """Slide of every patch, where the table of the split is there."""
    if not path.is_file():
        return None
    try:
        table = pd.read_csv(path, dtype=str)
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError, OSError) as error:
        raise DatasetError(f"file {path}: not a readable CSV ({' '.join(str(error).split())})") from error
    if "wsi" not in table or len(table) != rows or table["wsi"].isna().any():
        raise DatasetError(f"file {path}: expected a column 'wsi' with {rows} slides; repair the file or remove it")
    return table["wsi"].tolist()
