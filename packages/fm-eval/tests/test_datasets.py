from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from fm_eval import DatasetError, load_dataset


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
    assert dataset.split_source == "index"


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
            r"gone\.png .*one of 2 missing of 48",
        ),
        (lambda t: t.assign(split=t["split"].replace("val", "dev")), "unknown split 'dev'"),
        (lambda t: t.assign(group_id="g"), "group 'g' is in test and train and val, a leak"),
        (
            lambda t: t[~((t["label"] == "class1") & (t["split"] == "train"))],
            "class 'class1' has no row in split train",
        ),
        (lambda t: t[t["label"] == "class1"], "one class only"),
        (lambda t: t[t["split"] == "train"], "only the split train"),
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
    with pytest.raises(DatasetError, match="no such file"):
        load_dataset(tmp_path)
    (tmp_path / "index.csv").write_bytes(b"\xff\xfe\x00broken")
    with pytest.raises(DatasetError, match="not a readable CSV"):
        load_dataset(tmp_path)


def test_a_class_in_two_groups_cannot_be_split(make_dataset: Callable[..., Path]) -> None:
    with pytest.raises(DatasetError, match="is in 2 groups, at least 3 needed"):
        load_dataset(make_dataset(groups=2, splits=False))
