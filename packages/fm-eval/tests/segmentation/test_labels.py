from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from fm_eval import DatasetError
from fm_eval.segmentation.labels import CONSEP_CLASSES, ClassMap, read_consep_mat, read_label_png
from PIL import Image
from scipy.io import savemat


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32, np.float64])
def test_every_value_of_consep_is_mapped_as_in_the_paper(dtype: type) -> None:
    raw = np.arange(8, dtype=dtype).reshape(2, 4)
    mapped = CONSEP_CLASSES.apply(raw, source="x.mat")
    assert mapped.dtype == np.uint8
    assert [CONSEP_CLASSES.names[number] for number in mapped.ravel()] == [
        "background",  # 0
        "other",  # 1
        "inflammatory",  # 2
        "epithelial",  # 3 healthy
        "epithelial",  # 4 malignant
        "spindle-shaped",  # 5 fibroblast
        "spindle-shaped",  # 6 muscle
        "spindle-shaped",  # 7 endothelial
    ]


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (np.full((2, 2), 8), "label x.png: value 8 is in no class"),
        (np.array([[0, -1]]), "value -1 is in no class"),
        (np.array([[0.0, 1.5]]), "are no class numbers"),
        (np.array([[0.0, np.nan]]), "are no class numbers"),
        (np.zeros((2, 2, 3), dtype=np.uint8), r"array of shape \(2, 2, 3\)"),
        (np.zeros((0, 4), dtype=np.uint8), r"array of shape \(0, 4\)"),
        (np.array([["a"]]), "are no class numbers"),
    ],
)
def test_values_outside_the_map_are_refused(raw: np.ndarray, message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        CONSEP_CLASSES.apply(raw, source="x.png")


def test_instance_numbers_are_one_class() -> None:
    raw = np.array([[0, 1], [300, 65535]], dtype=np.uint16)
    assert ClassMap.instance().apply(raw, source="x").tolist() == [[0, 1], [1, 1]]
    with pytest.raises(DatasetError, match="instance number -2"):
        ClassMap.instance().apply(np.array([[-2, 0]]), source="x")


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        ({"background": [0]}, "got 1, allowed are 2 to 64"),
        ({"background": [0], "a": []}, "'a' has no label values"),
        ({"background": [0], "a": [1], "b": [2, 1]}, "value 1 is in 'a' and in 'b'"),
        ({"background": [0], "a": [-1]}, "value -1, expected an int of at least 0"),
        ({"background": [0], "a": [True]}, "value True"),
    ],
)
def test_class_maps_that_make_no_sense_are_refused(classes: dict[str, list[int]], message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        ClassMap.semantic(classes)


@pytest.mark.parametrize("mode", ["L", "I;16", "I", "1", "P"])
def test_label_images_of_every_mode_keep_their_numbers(tmp_path: Path, mode: str) -> None:
    numbers = np.array([[0, 1, 1], [1, 0, 1]])
    if mode == "P":  # colours of a palette image are for looking at, indices are the labels
        image = Image.fromarray(numbers.astype(np.uint8))
        image.putpalette([255, 0, 0, 0, 255, 0])
    else:
        dtype = {"L": np.uint8, "I;16": np.uint16, "I": np.int32, "1": np.bool_}[mode]
        image = Image.fromarray(numbers.astype(dtype))
    path = tmp_path / ("label.tif" if mode == "I" else "label.png")
    image.save(path)
    with Image.open(path) as written:
        assert written.mode == mode
    assert np.array_equal(read_label_png(path), numbers)


def test_colours_are_no_labels(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "label.png")
    with pytest.raises(DatasetError, match=r"label\.png: pixel mode RGB, expected one channel"):
        read_label_png(tmp_path / "label.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "label.png").read_bytes()[:40])
    with pytest.raises(DatasetError, match=r"cut\.png: cannot be decoded"):
        read_label_png(tmp_path / "cut.png")


def test_damaged_mat_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.mat"
    savemat(path, {"inst_map": np.zeros((4, 4)), "type_map": np.zeros((4, 5))})
    with pytest.raises(DatasetError, match=r"inst_map is \(4, 4\), type_map \(4, 5\)"):
        read_consep_mat(path)
    savemat(path, {"inst_map": np.zeros((4, 4))})
    with pytest.raises(DatasetError, match=r"a\.mat: no type_map"):
        read_consep_mat(path)
    whole = path.read_bytes()
    for damaged in (b"", whole[:60], whole[:150], b"\x89HDF" + whole[4:], b"MATLAB 7.3".ljust(124) + b"\x00\x02IM"):
        path.write_bytes(damaged)
        with pytest.raises(DatasetError, match=r"a\.mat: (not a MATLAB 5 file|no )"):
            read_consep_mat(path)
