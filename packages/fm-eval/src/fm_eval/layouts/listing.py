"""What does a layout say of the dataset that it finds on disk?

A layout is a function from a folder to a `Listing`: which images there are, their labels, groups and splits,
in which order the classes are numbered, and what the publication says should be there. A layout reads names,
tables and labels, never pixels; datasets checks the outcome, doctor compares it with the publication.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from fm_eval.errors import DatasetError, DatasetNotFoundError
from fm_eval.images import ImageSource


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """What the publication of a dataset says of it.

    Attributes:
        source: who says it.
        images: split to number of images.
        images_of_class: split to class to number of images, where known.
        md5: path relative to the root to MD5 of the file.
        swapped_md5: pairs of files whose checksums the dataset's own README gives the wrong way round.
    """

    source: str
    images: Mapping[str, int]
    images_of_class: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    md5: Mapping[str, str] = field(default_factory=dict)
    swapped_md5: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """N images as a layout finds them, unchecked.

    Attributes:
        layout: name of the layout.
        root: folder that the dataset lies in.
        table: N rows, all str: path, label, group_id and, if the layout has one, split; other columns are kept.
        images: the same N images in the same order.
        classes: class names in the order of their numbers.
        groups_known: whether group_id says what must stay together; if not, each image is its own group.
        order_note: what is said of the order of the classes where tools differ.
        published: what should be there.
    """

    layout: str
    root: Path
    table: pd.DataFrame
    images: ImageSource
    classes: tuple[str, ...]
    groups_known: bool
    order_note: str = ""
    published: Published | None = None


def find_folder(root: Path, name: str) -> Path:
    """The folder `root/name`, or `root` itself where that is its name.

    Raises:
        DatasetNotFoundError: no such folder.
    """
    if (root / name).is_dir():
        return root / name
    if root.name == name and root.is_dir():
        return root
    raise DatasetNotFoundError(f"data {root}: no folder {name} in it; download the dataset there")


def find_folders(root: Path, *names: str) -> list[Path]:
    """The folders `root/name`, all of which must exist.

    Raises:
        DatasetNotFoundError: none exists.
        DatasetError: some are missing.
    """
    return _all_of([root / name for name in names], root, "folder", is_there=Path.is_dir)


def find_files(root: Path, *names: str) -> list[Path]:
    """The files `root/name`, all of which must exist.

    Raises:
        DatasetNotFoundError: none exists.
        DatasetError: some are missing.
    """
    return _all_of([root / name for name in names], root, "file", is_there=Path.is_file)


def _all_of(paths: list[Path], root: Path, kind: str, *, is_there: Callable[[Path], bool]) -> list[Path]:
    missing = [path for path in paths if not is_there(path)]
    if len(missing) == len(paths):
        names = " and ".join(str(path.relative_to(root)) for path in paths)
        raise DatasetNotFoundError(f"data {root}: no {kind} {names} in it; download the dataset there")
    if missing:
        raise DatasetError(
            f"data {root}: {kind} {missing[0].name} is missing ({len(missing)} of {len(paths)} are); download it there"
        )
    return paths


def files_of(folder: Path, suffixes: set[str]) -> list[Path]:
    """Files of these suffixes (lower case) in a folder, by name; hidden files are none of the dataset's."""
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in suffixes and path.name[0] != ".")


def ungrouped(table: pd.DataFrame) -> pd.DataFrame:
    """Give each image its own group: nothing is known of patients."""
    return table.assign(group_id=table["path"])
