"""Which images and label images are there, in which split?

Two layouts on disk:

- CoNSeP as published: `{Train,Test}/{Images/*.png,Labels/*.mat}`, its seven types as four classes;
- a folder of `images/` and `labels/` with PNGs of equal names, semantic or instance numbers; either below
  `train/`, `val/` and `test/`, or with an `index.csv` (`image_id` is the file name without suffix; optional
  `split` and `group_id`). Without splits a seeded, group-disjoint one is made, stratified by a column of the
  index where one is named.

Every pair is decoded once, in threads, before anything expensive starts: sizes must agree and label values must
be in the class map. After: windows, features.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from fm_eval.datasets import SPLITS
from fm_eval.errors import DatasetError
from fm_eval.segmentation.labels import CONSEP_CLASSES, ClassMap, LabelKind, read_consep_mat, read_label_png
from fm_eval.splits import make_split
from fm_eval.transform import load_rgb

_IMAGE_SUFFIXES = {".png", ".tif", ".tiff", ".jpg", ".jpeg", ".bmp"}
_CONSEP_SPLITS = {"Train": "train", "Test": "test"}


@dataclass(frozen=True, slots=True)
class LabelledImage:
    """One image with its label file."""

    image_id: str
    image: Path
    label: Path
    split: str
    group_id: str
    height_px: int = 0
    width_px: int = 0


@dataclass(frozen=True, slots=True)
class SegmentationDataset:
    """Checked pairs of images and label images.

    Attributes:
        root: folder of the data set.
        images: in order of split and id.
        classes: how raw label values map to class numbers.
        sha256: over ids, splits, the class map and the contents of all files.
        split_source: "layout" or "index", or how the split was made.
    """

    root: Path
    images: tuple[LabelledImage, ...]
    classes: ClassMap
    sha256: str
    split_source: str

    def of_split(self, split: str) -> tuple[LabelledImage, ...]:
        """The images of one split."""
        return tuple(image for image in self.images if image.split == split)

    def read(self, image: LabelledImage) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """Decode one pair: uint8 RGB (H, W, 3) and class numbers uint8 (H, W).

        Raises:
            DatasetError: a file is gone, damaged, or the two differ in size.
        """
        return _read_pair(image, self.classes)


def load_segmentation_dataset(
    data: str | Path,
    *,
    classes: Mapping[str, Sequence[int]] | None = None,
    labels: LabelKind = "semantic",
    stratify: str | None = None,
    split_seed: int = 0,
    threads: int = 4,
) -> SegmentationDataset:
    """Read and check a data set in either layout.

    Args:
        data: its folder; one with `Train/Labels/*.mat` is CoNSeP.
        classes: class name to raw label values, background first. CoNSeP has the paper's by default, instance
            labels `background` and `foreground`.
        labels: whether label values are class numbers or number the objects.
        stratify: column of `index.csv` whose values keep their shares in a split that is made.
        split_seed: of that split.
        threads: threads that decode, check and hash the files.

    Raises:
        DatasetError: anything that would make the numbers wrong, in one line that names the first culprit.
    """
    root = Path(data)
    if not root.is_dir():
        raise DatasetError(f"data {root}: no such folder; give the one that holds Train/ or images/ and labels/")
    if _is_consep(root):
        images, split_source, class_map = _consep_images(root), "layout", CONSEP_CLASSES
        if labels == "instance":
            raise DatasetError(f"data {root}: labels=instance is for label PNGs; CoNSeP has class numbers")
        if classes is not None:
            class_map = ClassMap.semantic(classes)
    else:
        images, split_source = _folder_images(root, stratify=stratify, split_seed=split_seed)
        class_map = _folder_classes(root, classes, labels)
    _check_splits(root, images)
    images.sort(key=lambda image: (SPLITS.index(image.split), image.image_id))
    with ThreadPoolExecutor(threads) as pool:
        checked = list(pool.map(lambda image: _check_pair(image, class_map), images))
    total = hashlib.sha256(repr((class_map.names, class_map.values, class_map.kind)).encode())
    for image, digest in checked:
        total.update(f"{image.image_id}\x1f{image.split}\x1f{digest}\n".encode())
    return SegmentationDataset(
        root=root,
        images=tuple(image for image, _ in checked),
        classes=class_map,
        sha256=total.hexdigest(),
        split_source=split_source,
    )


def _is_consep(root: Path) -> bool:
    return any(True for split in _CONSEP_SPLITS for _ in (root / split / "Labels").glob("*.mat"))


def _consep_images(root: Path) -> list[LabelledImage]:
    images: list[LabelledImage] = []
    for folder, split in _CONSEP_SPLITS.items():
        pairs = _pairs(root / folder / "Images", root / folder / "Labels", label_suffix=".mat")
        images += [LabelledImage(name, image, label, split, name) for name, image, label in pairs]
    return images


def _folder_classes(root: Path, classes: Mapping[str, Sequence[int]] | None, labels: LabelKind) -> ClassMap:
    if labels == "semantic":
        if classes is None:
            raise DatasetError(
                f"data {root}: class numbers need names; give classes, background first, "
                "for example {background: [0], nucleus: [1, 2]}, or labels=instance"
            )
        return ClassMap.semantic(classes)
    if classes is None:
        return ClassMap.instance()
    names = list(classes)
    if len(names) != 2 or any(classes[name] for name in names[1:]):
        raise DatasetError(
            f"classes: instance labels have two classes and numbers that need no list, got {dict(classes)}; "
            "for example {background: [0], nucleus: []}"
        )
    return ClassMap.instance(background=names[0], foreground=names[1])


def _folder_images(root: Path, *, stratify: str | None, split_seed: int) -> tuple[list[LabelledImage], str]:
    split_folders = [split for split in SPLITS if (root / split / "images").is_dir()]
    if split_folders:
        return [
            LabelledImage(name, image, label, split, name)
            for split in split_folders
            for name, image, label in _pairs(root / split / "images", root / split / "labels", label_suffix=".png")
        ], "layout"
    pairs = {name: (image, label) for name, image, label in _pairs(root / "images", root / "labels", ".png")}
    table = _index(root, list(pairs), stratify=stratify)
    if "split" in table:
        split_source = "index"
    else:
        strata = table[stratify].tolist() if stratify else ["all"] * len(table)
        table["split"] = make_split(strata, table["group_id"].tolist(), seed=split_seed)
        split_source = f"made: group-disjoint, stratified by {stratify or 'nothing'}, seed {split_seed}"
    rows = zip(table["image_id"], table["split"], table["group_id"], strict=True)
    return [LabelledImage(name, *pairs[name], split, group) for name, split, group in rows], split_source


def _pairs(images: Path, labels: Path, label_suffix: str) -> list[tuple[str, Path, Path]]:
    """Name, image and label of every pair; an image or a label that is alone is an error."""
    for folder in (images, labels):
        if not folder.is_dir():
            raise DatasetError(
                f"data {folder}: no such folder; expected Images/ and Labels/ below Train/ and Test/ (CoNSeP), or "
                "images/ and labels/, there or below train/, val/ and test/"
            )
    found = {path.stem: path for path in sorted(images.iterdir()) if path.suffix.lower() in _IMAGE_SUFFIXES}
    labelled = {path.stem: path for path in sorted(labels.iterdir()) if path.suffix.lower() == label_suffix}
    alone = sorted(found.keys() ^ labelled.keys())
    if alone:
        has, lacks = ("an image", "label") if alone[0] in found else ("a label", "image")
        raise DatasetError(
            f"data {images.parent}: {alone[0]} has {has} but no {lacks} (one of {len(alone)} without a partner)"
        )
    if not found:
        raise DatasetError(f"data {images}: no images")
    return [(name, found[name], labelled[name]) for name in sorted(found)]


def _index(root: Path, names: Sequence[str], *, stratify: str | None) -> pd.DataFrame:
    """`index.csv` with group_id filled in; a table of the names where there is none."""
    path = root / "index.csv"
    if not path.is_file():
        if stratify:
            raise DatasetError(f"index {path}: no such file, so there is no column {stratify!r} to stratify by")
        return pd.DataFrame({"image_id": names, "group_id": names})
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError, OSError) as error:
        raise DatasetError(f"index {path}: not a readable CSV ({' '.join(str(error).split())})") from error
    for column in ["image_id", *([stratify] if stratify else [])]:
        if column not in table:
            raise DatasetError(
                f"index {path}: column {column!r} is missing, got {', '.join(map(str, table.columns))}; "
                "expected image_id[,split][,group_id] and the column of stratify"
            )
    twice = [name for name, count in Counter(table["image_id"]).items() if count > 1]
    if twice:
        raise DatasetError(f"index {path}: {twice[0]} is listed twice (one of {len(twice)})")
    differing = sorted(set(table["image_id"]) ^ set(names))
    if differing:
        where = "the index but not in images/" if differing[0] not in names else "images/ but not in the index"
        raise DatasetError(f"index {path}: {differing[0]} is in {where} (one of {len(differing)})")
    if "group_id" not in table:
        table["group_id"] = table["image_id"]
    return table


def _check_splits(root: Path, images: Sequence[LabelledImage]) -> None:
    splits = {image.split for image in images}
    unknown = sorted(splits - set(SPLITS))
    if unknown:
        raise DatasetError(f"data {root}: unknown split {unknown[0]!r}, allowed are {', '.join(SPLITS)}")
    for needed in ("train", "test"):
        if needed not in splits:
            raise DatasetError(f"data {root}: no image in split {needed}; training and testing need one each")
    of_group: dict[str, str] = {}
    for image in images:
        other = of_group.setdefault(image.group_id, image.split)
        if other != image.split:
            raise DatasetError(
                f"data {root}: group {image.group_id!r} is in {other} and {image.split}, a leak; keep it in one split"
            )


def _check_pair(image: LabelledImage, classes: ClassMap) -> tuple[LabelledImage, str]:
    pixels, _ = _read_pair(image, classes)
    digest = hashlib.sha256(image.image.read_bytes())
    digest.update(image.label.read_bytes())
    return replace(image, height_px=pixels.shape[0], width_px=pixels.shape[1]), digest.hexdigest()


def _read_pair(image: LabelledImage, classes: ClassMap) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    pixels = np.asarray(load_rgb(image.image), dtype=np.uint8)
    raw = read_consep_mat(image.label) if image.label.suffix == ".mat" else read_label_png(image.label)
    if raw.shape != pixels.shape[:2]:
        height, width = pixels.shape[:2]
        raise DatasetError(
            f"label {image.label}: size {raw.shape}, but image {image.image} is ({height}, {width}); "
            "a label needs one value a pixel"
        )
    return pixels, classes.apply(raw, source=image.label)
