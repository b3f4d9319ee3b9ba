from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from fm_eval import DatasetError, DatasetNotFoundError, load_dataset, load_folds, read_dataset


def _edit(index: Path, change: Callable[[pd.DataFrame], pd.DataFrame]) -> Path:
    change(pd.read_csv(index)).to_csv(index, index=False)
    return index


def test_rows_labels_and_splits_follow_the_index(make_dataset: Callable[..., Path]) -> None:
    dataset = load_dataset(make_dataset().parent)
    table = pd.read_csv(dataset.root / "index.csv")
    assert dataset.classes == ("class0", "class1", "class2")
    assert [dataset.classes[label] for label in dataset.labels] == table["label"].tolist()
    for split in ("train", "val", "test"):
        assert dataset.rows(split).tolist() == table.index[table["split"] == split].tolist()
    assert dataset.split_source == "given"
    assert dataset.groups_known


def test_hash_follows_labels_splits_and_pixels_but_not_extra_columns(
    make_dataset: Callable[..., Path],
) -> None:
    index = make_dataset()
    before = load_dataset(index).sha256
    _edit(index, lambda table: table.assign(scanner="x"))
    again = load_dataset(index)
    assert again.sha256 == before
    assert set(again.table["scanner"]) == {"x"}
    _edit(index, lambda table: table.assign(label=table["label"].replace("class0", "class9")))
    relabelled = load_dataset(index).sha256
    assert relabelled != before
    (index.parent / "c0_g0_0.png").write_bytes((index.parent / "c0_g0_1.png").read_bytes())
    assert load_dataset(index).sha256 != relabelled


def test_a_made_split_is_seeded_stratified_and_group_disjoint(make_dataset: Callable[..., Path]) -> None:
    index = make_dataset(groups=20, splits=False)
    first, again, other = (load_dataset(index, split_seed=seed) for seed in (1, 1, 2))
    assert first.table["split"].tolist() == again.table["split"].tolist()
    assert first.table["split"].tolist() != other.table["split"].tolist()
    assert first.table.groupby("group_id")["split"].nunique().max() == 1
    shares = pd.crosstab(first.table["label"], first.table["split"], normalize="index")
    assert shares["train"].between(0.5, 0.7).all()
    assert shares[["val", "test"]].stack().between(0.15, 0.25).all()
    assert "seed 1" in first.split_source


def test_images_shared_between_splits_are_counted(make_dataset: Callable[..., Path]) -> None:
    index = make_dataset()
    (index.parent / "c0_g0_0.png").write_bytes((index.parent / "c0_g3_0.png").read_bytes())  # train, test
    assert load_dataset(index).identical_across_splits == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.drop(columns="label"), "column 'label' is missing"),
        (lambda t: t.head(0), "no rows"),
        (
            lambda t: t.assign(path=t["path"].replace({"c0_g0_0.png": "gone.png", "c1_g0_0.png": "too.png"})),
            r"gone\.png: does not exist .one of 2 missing of 48",
        ),
        (lambda t: t.assign(split=t["split"].replace("val", "dev")), "unknown split 'dev'"),
        (lambda t: t.assign(group_id="g"), "group 'g' is in test and train and val, a leak"),
        (
            lambda t: t[~((t["label"] == "class1") & (t["split"] == "train"))],
            "class 'class1' has no row in split train",
        ),
        (
            lambda t: t[~((t["label"] == "class2") & (t["split"] == "test"))],
            "class 'class2' has no row in split test .one of 1 of 3 classes.; every split needs every class",
        ),
        (lambda t: t[t["label"] == "class1"], "one class only"),
        (lambda t: t[t["split"] == "train"], "no row in split val or test"),
        (lambda t: t[t["split"] != "train"], "no row in split train"),
        (lambda t: pd.concat([t, t.head(1)]), "listed twice"),
        (lambda t: t.assign(label=t["label"].mask(t.index == 4)), "line 6 has no label"),
    ],
)
def test_what_would_make_numbers_wrong_is_refused(
    make_dataset: Callable[..., Path], change: Callable[[pd.DataFrame], pd.DataFrame], message: str
) -> None:
    index = _edit(make_dataset(), change)
    with pytest.raises(DatasetError, match=message) as caught:
        load_dataset(index)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("content", "message"), [(b"", "empty file"), (b"not an image", "not an image")])
def test_files_that_are_no_images_are_named(make_dataset: Callable[..., Path], content: bytes, message: str) -> None:
    index = make_dataset()
    (index.parent / "c1_g1_1.png").write_bytes(content)
    with pytest.raises(DatasetError, match=rf"c1_g1_1\.png: {message}"):
        load_dataset(index)


def test_an_index_that_is_no_table_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetNotFoundError, match=r"no index\.csv and no dataset of a known layout"):
        load_dataset(tmp_path)
    with pytest.raises(DatasetNotFoundError, match="no such file"):
        load_dataset(tmp_path, layout="index")
    (tmp_path / "index.csv").write_bytes(b"\xff\xfe\x00broken")
    with pytest.raises(DatasetError, match="not a readable CSV"):
        load_dataset(tmp_path)


def test_a_class_in_two_groups_cannot_be_split(make_dataset: Callable[..., Path]) -> None:
    with pytest.raises(DatasetError, match="is in 2 groups, at least 3 needed"):
        load_dataset(make_dataset(groups=2, splits=False))


def test_a_split_by_image_leaks_and_says_so(make_dataset: Callable[..., Path]) -> None:
    index = make_dataset(groups=20)
    dataset = load_dataset(index, split="image", split_seed=3)
    assert len(dataset.groups_across_splits) > 20
    assert dataset.split_source == "made: stratified, by image, seed 3"
    grouped = load_dataset(index, split="group", split_seed=3)
    assert grouped.groups_across_splits == []
    assert set(grouped.table["split"]) == {"train", "val", "test"}


def test_folds_hold_each_group_out_once(make_dataset: Callable[..., Path]) -> None:
    index = make_dataset(groups=10, splits=False)
    views = load_folds(index, folds=5, seed=1)
    held_out = [set(view.table.loc[view.table["split"] == "test", "group_id"]) for view in views]
    assert set.union(*held_out) == set(views[0].table["group_id"])
    assert sum(map(len, held_out)) == 30
    for view, groups in zip(views, held_out, strict=True):
        assert groups.isdisjoint(view.table.loc[view.table["split"] == "train", "group_id"])
        assert set(view.table["split"]) == {"train", "test"}
    assert len({view.sha256 for view in views}) == 5
    again = load_folds(index, folds=5, seed=1)
    assert [view.sha256 for view in again] == [view.sha256 for view in views]


@pytest.mark.parametrize(("folds", "message"), [(1, "got 1, at least 2"), (11, "is in 10 groups, at least 11 needed")])
def test_folds_that_cannot_be_are_refused(make_dataset: Callable[..., Path], folds: int, message: str) -> None:
    index = make_dataset(groups=10, splits=False)
    with pytest.raises(DatasetError, match=message):
        load_folds(index, folds=folds)


def test_digests_are_remembered_until_a_file_changes(make_dataset: Callable[..., Path], tmp_path: Path) -> None:
    index, cache = make_dataset(), tmp_path / "kept"
    before = load_dataset(index, cache=cache).digests
    assert len(list((cache / "digests").glob("*.npy"))) == 1
    # what is remembered is used: the content behind an unchanged size and time is not looked at again
    path = index.parent / "c0_g0_0.png"
    status, content = path.stat(), bytearray(path.read_bytes())
    content[-20] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert load_dataset(index, cache=cache).digests == before
    os.utime(path)
    assert load_dataset(index, cache=cache).digests[0] != before[0]
    for stored in (cache / "digests").glob("*.npy"):
        stored.write_bytes(b"damaged")
    assert load_dataset(index, cache=cache).digests[1:] == before[1:]


def test_an_unknown_layout_is_refused(make_dataset: Callable[..., Path]) -> None:
    with pytest.raises(DatasetError, match="layout 'bahc' is unknown, allowed are auto, index, bach"):
        read_dataset(make_dataset().parent, layout="bahc")
