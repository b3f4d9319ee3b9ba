from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from fm_eval import DatasetError
from fm_eval.segmentation import load_segmentation_dataset
from PIL import Image
from scipy.io import savemat

SEMANTIC = {"background": [0], "a": [1], "b": [2]}


def test_consep_is_read_as_published(make_consep: Callable[..., Path]) -> None:
    root = make_consep()
    dataset = load_segmentation_dataset(root)
    assert [(image.split, image.image_id) for image in dataset.images] == [
        ("train", "train_1"),
        ("train", "train_2"),
        ("test", "test_1"),
    ]
    assert dataset.split_source == "layout"
    assert dataset.classes.names == ("background", "other", "inflammatory", "epithelial", "spindle-shaped")
    pixels, labels = dataset.read(dataset.images[0])
    assert pixels.shape == (72, 72, 3)
    assert (labels.dtype, labels.shape) == (np.uint8, (72, 72))
    assert set(np.unique(labels)) == set(range(5))


def test_own_classes_may_replace_those_of_the_paper(make_consep: Callable[..., Path]) -> None:
    root = make_consep()
    dataset = load_segmentation_dataset(root, classes={"none": [0], "any": [1, 2, 3, 4, 5, 6, 7]})
    assert set(np.unique(dataset.read(dataset.images[0])[1])) == {0, 1}
    assert dataset.sha256 != load_segmentation_dataset(root).sha256
    with pytest.raises(DatasetError, match="is in no class"):
        load_segmentation_dataset(root, classes={"none": [0], "some": [1, 2, 3]})


def test_a_split_is_made_where_there_is_none(make_folder: Callable[..., Path]) -> None:
    root = make_folder(count=10, instance=True)
    rows = "\n".join(f"i{number},{'dark' if number < 5 else 'light'}" for number in range(10))
    (root / "index.csv").write_text(f"image_id,stain\n{rows}\n")
    dataset = load_segmentation_dataset(root, labels="instance", stratify="stain")
    sizes = {split: len(dataset.of_split(split)) for split in ("train", "val", "test")}
    assert sizes == {"train": 6, "val": 2, "test": 2}
    assert {image.image_id for image in dataset.of_split("test")} & {f"i{number}" for number in range(5)}
    assert {image.image_id for image in dataset.of_split("test")} & {f"i{number}" for number in range(5, 10)}
    again = load_segmentation_dataset(root, labels="instance", stratify="stain")
    assert again == dataset
    other = load_segmentation_dataset(root, labels="instance", stratify="stain", split_seed=1)
    assert other.sha256 != dataset.sha256
    assert other.split_source == "made: group-disjoint, stratified by stain, seed 1"


def test_splits_of_the_index_and_of_folders_are_kept(make_folder: Callable[..., Path], tmp_path: Path) -> None:
    root = make_folder(count=3)
    (root / "index.csv").write_text("image_id,split\ni0,train\ni1,test\ni2,val\n")
    dataset = load_segmentation_dataset(root, classes=SEMANTIC)
    assert [image.split for image in dataset.images] == ["train", "val", "test"]
    for split in ("train", "test"):
        for kind in ("images", "labels"):
            (tmp_path / "split" / split / kind).mkdir(parents=True)
            name = "i0.png" if split == "train" else "i1.png"
            shutil.copy(root / kind / name, tmp_path / "split" / split / kind)
    folders = load_segmentation_dataset(tmp_path / "split", classes=SEMANTIC)
    assert [(image.split, image.image_id) for image in folders.images] == [("train", "i0"), ("test", "i1")]


def _break_size(root: Path) -> None:
    Image.fromarray(np.zeros((56, 71), np.uint8)).save(root / "labels" / "i1.png")


def _break_value(root: Path) -> None:
    Image.fromarray(np.full((56, 72), 3, np.uint8)).save(root / "labels" / "i1.png")


def _break_pair(root: Path) -> None:
    (root / "labels" / "i1.png").unlink()


def _break_image(root: Path) -> None:
    (root / "images" / "i1.png").write_bytes(b"no image")


def _leak(root: Path) -> None:
    (root / "index.csv").write_text("image_id,split,group_id\ni0,train,p\ni1,test,p\ni2,val,q\n")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_break_size, r"i1\.png: size \(56, 71\), but image .*i1\.png is \(56, 72\)"),
        (_break_value, r"i1\.png: value 3 is in no class .* known are 0, 1, 2"),
        (_break_pair, "i1 has an image but no label"),
        (_break_image, r"i1\.png: cannot be decoded"),
        (_leak, "group 'p' is in train and test, a leak"),
        (lambda root: (root / "index.csv").write_text("image_id,split\ni0,train\ni1,test\n"), "i2 is in images/ but"),
        (lambda root: (root / "index.csv").write_text("image_id,split\ni0,train\ni0,test\n"), "i0 is listed twice"),
        (lambda root: (root / "index.csv").write_text("id\ni0\n"), "column 'image_id' is missing, got id"),
        (
            lambda root: (root / "index.csv").write_text("image_id,split\ni0,train\ni1,train\ni2,dev\n"),
            "unknown split 'dev', allowed are train, val, test",
        ),
        (
            lambda root: (root / "index.csv").write_text("image_id,split\ni0,train\ni1,train\ni2,val\n"),
            "no image in split test",
        ),
    ],
)
def test_what_would_make_numbers_wrong_is_refused(
    make_folder: Callable[..., Path], damage: Callable[[Path], object], message: str
) -> None:
    root = make_folder(count=3)
    damage(root)
    with pytest.raises(DatasetError, match=message) as caught:
        load_segmentation_dataset(root, classes=SEMANTIC)
    assert "\n" not in str(caught.value)


def test_calls_that_do_not_fit_the_data_are_refused(make_folder: Callable[..., Path], tmp_path: Path) -> None:
    root = make_folder(count=3)
    for arguments, message in (
        ({}, "class numbers need names; give classes"),
        ({"labels": "instance", "classes": SEMANTIC}, "instance labels have two classes"),
        ({"classes": SEMANTIC, "stratify": "stain"}, r"index\.csv: no such file, so there is no column 'stain'"),
    ):
        with pytest.raises(DatasetError, match=message):
            load_segmentation_dataset(root, **arguments)
    with pytest.raises(DatasetError, match="no such folder"):
        load_segmentation_dataset(tmp_path / "gone")
    with pytest.raises(DatasetError, match=r"images: no such folder; expected Images/ and Labels/"):
        load_segmentation_dataset(tmp_path, classes=SEMANTIC)


def test_consep_with_a_label_of_another_size_is_refused(make_consep: Callable[..., Path]) -> None:
    root = make_consep()
    zeros = np.zeros((70, 72))
    savemat(root / "Test" / "Labels" / "test_1.mat", {"inst_map": zeros, "type_map": zeros})
    with pytest.raises(DatasetError, match=r"test_1\.mat: size \(70, 72\), but image .* is \(72, 72\)"):
        load_segmentation_dataset(root)
