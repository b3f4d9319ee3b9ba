from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fm_eval import DatasetError, DatasetNotFoundError, load_dataset
from fm_eval.layouts.bach import TEST_RANGES, TRAIN_RANGES, split_of
from fm_eval.layouts.pickled_data import read_pickled_data
from PIL import Image
from written_datasets import (
    tinted,
    write_bach,
    write_cifar10,
    write_cifar100,
    write_crc,
    write_food101,
    write_mhist,
    write_pcam,
)


def test_bach_is_divided_as_published(tmp_path: Path) -> None:
    dataset = load_dataset(write_bach(tmp_path), layout="bach")
    assert dataset.classes == ("Benign", "InSitu", "Invasive", "Normal")
    counts = {split: np.bincount(dataset.labels[dataset.rows(split)]).tolist() for split in ("train", "test")}
    assert counts == {"train": [52, 70, 69, 77], "test": [48, 30, 31, 23]}
    assert dataset.published is not None
    assert counts == {split: list(of_class.values()) for split, of_class in dataset.published.images_of_class.items()}
    # image b042 is number 41, the first of a test range; n100 is number 399, the last of a train range
    split = dict(zip(dataset.table["path"], dataset.table["split"], strict=True))
    assert (split["Benign/b041.tif"], split["Benign/b042.tif"]) == ("train", "test")
    assert (split["Normal/n068.tif"], split["Normal/n069.tif"], split["Normal/n100.tif"]) == ("test", "train", "train")
    assert not dataset.groups_known


def test_the_ranges_of_bach_cover_every_image_once() -> None:
    images = [image for start, end in (*TRAIN_RANGES, *TEST_RANGES) for image in range(start, end)]
    assert sorted(images) == list(range(400))
    assert sum(split_of(image) == "train" for image in range(400)) == 268


@pytest.mark.parametrize("name", ["b000.tif", "b101.tif", "is001.tif", "copy of b001.tif"])
def test_a_name_that_says_no_number_has_no_split(tmp_path: Path, name: str) -> None:
    write_bach(tmp_path, numbers=[1, 50])
    Image.new("RGB", (8, 8)).save(tmp_path / "ICIAR2018_BACH_Challenge" / "Photos" / "Benign" / name)
    with pytest.raises(DatasetError, match="so its split is unknown"):
        load_dataset(tmp_path)


def test_crc(tmp_path: Path) -> None:
    dataset = load_dataset(write_crc(tmp_path))
    assert dataset.layout == "crc"
    assert len(dataset.classes) == 9
    assert (len(dataset.rows("train")), len(dataset.rows("test"))) == (36, 18)
    (tmp_path / "NCT-CRC-HE-100K" / "OTHER").mkdir()
    with pytest.raises(DatasetError, match="unknown class 'OTHER'"):
        load_dataset(tmp_path)


def test_mhist_states_its_order(tmp_path: Path) -> None:
    dataset = load_dataset(write_mhist(tmp_path))
    assert (dataset.layout, dataset.classes) == ("mhist", ("HP", "SSA"))
    assert "other way round" in dataset.order_note
    assert (len(dataset.rows("train")), len(dataset.rows("test"))) == (16, 8)
    assert dataset.table["label"].tolist() == ["HP", "SSA"] * 12


def test_pcam_is_read_in_place(tmp_path: Path) -> None:
    dataset = load_dataset(write_pcam(tmp_path))
    assert dataset.layout == "pcam"
    assert [len(dataset.rows(split)) for split in ("train", "val", "test")] == [24, 12, 12]
    for row in (0, 5, 23, 24, 47):
        expected = tinted(row % 2, [row, row - 24 + 100, row - 36 + 200][(row >= 24) + (row >= 36)], side=96)
        assert np.array_equal(np.asarray(dataset.images.read(row)), expected)
    assert dataset.images.name(24).endswith("valid_x.h5:x[0]")
    assert not dataset.groups_known


def test_pcam_knows_slides_where_the_tables_are(tmp_path: Path) -> None:
    dataset = load_dataset(write_pcam(tmp_path, meta=True))
    assert dataset.groups_known
    assert dataset.table["group_id"].nunique() == 12


def test_cifar10(tmp_path: Path) -> None:
    dataset = load_dataset(write_cifar10(tmp_path))
    assert dataset.layout == "cifar10"
    assert dataset.classes[:2] == ("airplane", "automobile")
    assert (len(dataset.rows("train")), len(dataset.rows("test"))) == (100, 20)
    assert np.array_equal(np.asarray(dataset.images.read(43)), tinted(3, 2003, side=32))
    assert dataset.labels[43] == 3


def test_cifar100_has_the_fine_labels(tmp_path: Path) -> None:
    dataset = load_dataset(write_cifar100(tmp_path))
    assert dataset.layout == "cifar100"
    assert len(dataset.classes) == 100
    assert (len(dataset.rows("train")), len(dataset.rows("test"))) == (200, 100)


def test_food101(tmp_path: Path) -> None:
    dataset = load_dataset(write_food101(tmp_path))
    assert (dataset.layout, dataset.classes) == ("food101", ("apple_pie", "baklava", "ceviche"))
    assert (len(dataset.rows("train")), len(dataset.rows("test"))) == (18, 9)


_WRITERS: dict[str, Callable[[Path], Path]] = {
    "bach": write_bach,
    "crc": write_crc,
    "mhist": write_mhist,
    "pcam": write_pcam,
    "cifar10": write_cifar10,
    "cifar100": write_cifar100,
    "food101": write_food101,
}
_PARTS = {
    "bach": "ICIAR2018_BACH_Challenge/Photos/InSitu",
    "crc": "CRC-VAL-HE-7K",
    "mhist": "images/MHIST_aaa.png",
    "pcam": "camelyonpatch_level_2_split_valid_y.h5",
    "cifar10": "cifar-10-batches-py/data_batch_3",
    "cifar100": "cifar-100-python/meta",
    "food101": "meta/test.txt",
}


@pytest.mark.parametrize("layout", _WRITERS)
def test_nothing_on_disk_is_told_from_a_part_that_is_missing(tmp_path: Path, layout: str) -> None:
    (tmp_path / "empty").mkdir()
    for nowhere in (tmp_path / "nowhere", tmp_path / "empty"):
        with pytest.raises(DatasetNotFoundError):
            load_dataset(nowhere, layout=layout)
    root = _WRITERS[layout](tmp_path / "data") if layout != "bach" else write_bach(tmp_path / "data", [1, 60])
    part = root / _PARTS[layout]
    part.rename(part.with_name("elsewhere"))
    with pytest.raises(DatasetError) as caught:
        load_dataset(root, layout=layout)
    assert not isinstance(caught.value, DatasetNotFoundError)
    assert part.name in str(caught.value)
    assert "\n" not in str(caught.value)


def test_damaged_hdf5_and_labels_are_refused(tmp_path: Path) -> None:
    import h5py

    write_pcam(tmp_path)
    labels = tmp_path / "camelyonpatch_level_2_split_test_y.h5"
    with h5py.File(labels, "w") as file:
        file["y"] = np.full((12, 1, 1, 1), 2, np.uint8)
    with pytest.raises(DatasetError, match=r"test_y\.h5: labels \[2\], expected 0 and 1"):
        load_dataset(tmp_path)
    with h5py.File(labels, "w") as file:
        file["y"] = np.zeros((11, 1, 1, 1), np.uint8)
    with pytest.raises(DatasetError, match=r"'y' is \(11, 1, 1, 1\) for 12 images"):
        load_dataset(tmp_path)
    labels.write_bytes(b"\x1f\x8b still compressed")
    with pytest.raises(DatasetError, match=r"not a readable HDF5 file .*is it whole and decompressed"):
        load_dataset(tmp_path)


class _Trap:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return (open, ("sprung",))


@pytest.mark.parametrize("protocol", range(5))
def test_a_pickle_is_never_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, protocol: int) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "batch").write_bytes(pickle.dumps({"data": _Trap(), "labels": [1]}, protocol=protocol))
    with pytest.raises(DatasetError, match=r"batch: .*(open|BUILD|instruction)"):
        read_pickled_data(tmp_path / "batch")
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("protocol", range(1, 5))
def test_plain_data_is_what_pickle_makes_of_it(tmp_path: Path, protocol: int) -> None:
    random = np.random.default_rng(protocol)
    content = {
        "data": random.integers(0, 256, (7, 12), dtype=np.uint8),
        "columns": np.asfortranarray(random.normal(size=(3, 4))),
        "labels": [0, 255, 256, 65536, -1, 2**40],
        "names": ["a", "ä" * 300],
        "others": (1.5, None, True, False, b"\xff\x00"),
    }
    (tmp_path / "batch").write_bytes(pickle.dumps(content, protocol=protocol))
    found = read_pickled_data(tmp_path / "batch")
    assert found.keys() == content.keys()
    for key in ("data", "columns"):
        assert np.array_equal(found[key], content[key])
        assert found[key].dtype == content[key].dtype
    assert {key: found[key] for key in ("labels", "names")} == {key: content[key] for key in ("labels", "names")}
    assert list(found["others"]) == list(content["others"])


@pytest.mark.parametrize("content", [b"", b"\x80\x02", b"\x80\x02}.", b"not a pickle", b"\x80\x02]."])
def test_files_that_are_no_batches_are_refused(tmp_path: Path, content: bytes) -> None:
    root = write_cifar10(tmp_path)
    (root / "cifar-10-batches-py" / "data_batch_2").write_bytes(content)
    with pytest.raises(DatasetError, match="data_batch_2") as caught:
        load_dataset(root)
    assert "\n" not in str(caught.value)


def test_a_pickle_of_shared_parts_takes_no_time(tmp_path: Path) -> None:
    # each list holds the one before twice: as text it would have 2**60 parts
    program = b"\x80\x02]q\x00" + b"".join(
        b"](h" + bytes([k]) + b"h" + bytes([k]) + b"eq" + bytes([k + 1]) for k in range(60)
    )
    root = write_cifar10(tmp_path)
    batch = root / "cifar-10-batches-py" / "batches.meta"
    batch.write_bytes(b"\x80\x02}(U\x0blabel_names" + program[2:] + b"u.")
    with pytest.raises(DatasetError, match=r"batches\.meta"):
        load_dataset(root)
