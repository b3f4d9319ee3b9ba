"""Decoders on the images of DATA_DIR (by default `../shared/data` beside the repository).

Without the variable an absent folder skips; with it, an absent or empty one fails.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from fm_eval import load_backbone
from fm_eval.segmentation import SegmentSettings, load_segmentation_dataset, segment
from fm_eval.segmentation.training import single_class_dice

pytestmark = pytest.mark.segmentation

_REPOSITORY = Path(__file__).resolve().parents[4]
_NUCLEI = "dsb2018_stained"


@pytest.fixture
def nuclei() -> Path:
    named = os.environ.get("DATA_DIR")
    folder = (Path(named) if named else _REPOSITORY.parent / "shared" / "data") / "segmentation" / _NUCLEI
    if not folder.is_dir():
        assert not named, f"DATA_DIR={named}: no folder segmentation/{_NUCLEI}"
        pytest.skip(f"no DATA_DIR with a folder segmentation/{_NUCLEI}")
    return folder


def test_images_are_split_by_appearance(nuclei: Path) -> None:
    dataset = load_segmentation_dataset(nuclei, labels="instance", stratify="appearance")
    sizes = {split: len(dataset.of_split(split)) for split in ("train", "val", "test")}
    assert len(dataset.images) == sum(sizes.values()) > 0
    assert min(sizes.values()) >= len(dataset.images) // 6
    assert {pixels.shape[2] for pixels, _ in map(dataset.read, dataset.images)} == {3}
    assert set(np.unique(np.concatenate([dataset.read(i)[1].ravel() for i in dataset.images]))) == {0, 1}


@pytest.mark.slow
def test_the_decoder_overfits_one_image(nuclei: Path, tmp_path: Path) -> None:
    image = sorted((nuclei / "images").iterdir())[0]
    for split in ("train", "test"):
        for kind in ("images", "labels"):
            (tmp_path / "one" / split / kind).mkdir(parents=True)
            shutil.copy(nuclei / kind / image.name, tmp_path / "one" / split / kind / f"{split}.png")
    dataset = load_segmentation_dataset(tmp_path / "one", labels="instance")
    backbone = load_backbone("vit_tiny_patch16_224", args={"depth": 2}, seed=0)
    settings = SegmentSettings(
        steps=200,
        batch_size=4,
        crops_per_image=16,
        learning_rate=3e-3,
        points=512,
        decoder_layers=3,
        runs=1,
        max_runs=1,
    )
    result = segment(dataset, backbone, name="one image", role="random", folder=tmp_path / "out", settings=settings)
    scores = result.runs[0].scores["test"]
    pixels = np.bincount(dataset.read(dataset.of_split("test")[0])[1].ravel())
    assert scores.dice_pooled is not None
    assert scores.dice_pooled > 0.95 > single_class_dice(pixels.tolist())
