from __future__ import annotations

import os
from io import BytesIO
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from fm_eval.images import ImageFiles, PixelArray
from fm_eval.near_duplicates import SAME_PICTURE, find_near_duplicates
from numpy.typing import NDArray
from PIL import Image, ImageDraw


def _picture(seed: int, *, side: int = 160) -> Image.Image:
    """Something like tissue: dark nuclei of all sizes on a pale ground."""
    random = np.random.default_rng(seed)
    image = Image.new("RGB", (side, side), (225, 190, 215))
    draw = ImageDraw.Draw(image)
    for _ in range(70):
        x, y = random.uniform(0, side, 2)
        width, height = random.uniform(3, 11, 2)
        shade = int(random.integers(60, 150))
        draw.ellipse((x - width, y - height, x + width, y + height), fill=(shade, shade // 2, shade + 60))
    return image


def _turned(image: Image.Image, degrees: float, zoom: float = 1.5) -> Image.Image:
    """Turned about the centre, then zoomed so that no corner is empty."""
    side = image.width
    turned = image.rotate(degrees, Image.Resampling.BICUBIC)
    kept = side / zoom / 2
    box = (side / 2 - kept, side / 2 - kept, side / 2 + kept, side / 2 + kept)
    return turned.resize((side, side), Image.Resampling.BICUBIC, box=box)


def _recompressed(image: Image.Image) -> Image.Image:
    buffer = BytesIO()
    image.resize((120, 120)).save(buffer, "JPEG", quality=60)
    return Image.open(buffer).convert("RGB").resize(image.size)


_COPIES = {
    "turned by a quarter": lambda image: image.transpose(Image.Transpose.ROTATE_90),
    "mirrored": lambda image: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
    "turned by 20 degrees": lambda image: _turned(image, 20, 1.3),
    "turned by 155 degrees and mirrored": lambda image: _turned(image.transpose(Image.Transpose.FLIP_TOP_BOTTOM), 155),
    "zoomed": lambda image: _turned(image, 0, 1.4),
    "recompressed": _recompressed,
}


def _array(images: list[Image.Image]) -> PixelArray:
    return PixelArray(np.stack([np.asarray(image) for image in images]), title="pictures")


@pytest.mark.parametrize("copy", _COPIES)
def test_a_copy_in_another_split_is_found(copy: str) -> None:
    originals = [_picture(seed) for seed in range(40)]
    images = _array([*originals, *(_picture(seed) for seed in range(100, 120)), _COPIES[copy](originals[7])])
    split: NDArray[np.str_] = np.array(["train"] * 40 + ["test"] * 21)
    pairs = find_near_duplicates(images, split, threads=2)
    assert [(pair.first, pair.second) for pair in pairs] == [(60, 7)]
    assert SAME_PICTURE < pairs[0].similarity < 1.01


def test_copies_within_a_split_and_other_pictures_are_no_leak() -> None:
    images = _array([_picture(seed % 30) for seed in range(60)] + [_picture(seed) for seed in range(100, 130)])
    split: NDArray[np.str_] = np.array(["train"] * 60 + ["val"] * 15 + ["test"] * 15)
    assert find_near_duplicates(images, split, threads=2) == []


def test_blank_and_few_images_do_no_harm() -> None:
    images = _array([Image.new("RGB", (64, 64), (240, 240, 240)), _picture(1, side=64), _picture(1, side=64)])
    found = find_near_duplicates(images, np.array(["train", "train", "test"]), threads=1)
    assert [(pair.first, pair.second) for pair in found] == [(2, 1)]


_PATCHES = Path(os.environ.get("DATA_DIR", Path(__file__).resolve().parents[4] / "shared" / "data"))
_LUNG = _PATCHES / "patches" / "lc25000_lung" / "index.csv"


@pytest.mark.skipif(not _LUNG.is_file(), reason="needs the lung patches below DATA_DIR")
def test_a_random_split_of_augmented_patches_is_found_out() -> None:
    """A tenth of LC25000's lung patches: families of augmented copies of one source image."""
    table = pd.read_csv(_LUNG)
    families = sorted(table["group_id"].unique())[::10]
    table = table[table["group_id"].isin(families)]
    images = ImageFiles([_LUNG.parent / path for path in table["path"]])
    disjoint = np.where(table["group_id"].isin(families[::5]), "test", "train").astype(str)
    assert find_near_duplicates(images, disjoint, threads=2) == []
    random = np.where(np.random.default_rng(0).random(len(table)) < 0.2, "test", "train").astype(str)
    pairs = find_near_duplicates(images, random, threads=2)
    group = table["group_id"].to_numpy()
    assert all(group[pair.first] == group[pair.second] for pair in pairs)
    test_rows = np.flatnonzero(random == "test")
    leaking = [row for row in test_rows if (group[random == "train"] == group[row]).any()]
    found = {pair.first for pair in pairs} | {pair.second for pair in pairs}
    assert np.isin(leaking, list(found)).mean() > 0.75
