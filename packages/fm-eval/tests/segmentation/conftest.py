"""Small data sets in the exact public layouts, written by independent libraries, and a tiny backbone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from fm_eval import LoadedBackbone, load_backbone
from numpy.typing import NDArray
from PIL import Image
from scipy.io import savemat

TINY = {"img_size": 32, "patch_size": 8, "depth": 2, "embed_dim": 48, "num_heads": 3}


def draw_nuclei(height: int, width: int, *, types: int, seed: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """An image of discs whose tint is their type, and the type at each pixel (0 is none)."""
    random = np.random.default_rng(seed)
    pixels = random.integers(200, 230, (height, width, 3))
    kinds = np.zeros((height, width), dtype=np.int64)
    rows, columns = np.mgrid[:height, :width]
    for number in range(max(types, height * width // 600)):
        y, x, radius = random.integers(0, height), random.integers(0, width), random.integers(5, 10)
        kinds[(rows - y) ** 2 + (columns - x) ** 2 < radius**2] = 1 + number % types
    tints = np.array([[(37 * k) % 150, (91 * k) % 150, (53 * k) % 150] for k in range(types + 1)])
    pixels[kinds > 0] = tints[kinds[kinds > 0]]
    return pixels.astype(np.uint8), kinds


@pytest.fixture
def make_consep(tmp_path: Path) -> Callable[..., Path]:
    """CoNSeP's folders and files: RGBA PNGs, MATLAB files with the five variables of the published ones."""

    def make(*, size_px: int = 72, train: int = 2, test: int = 1) -> Path:
        root = tmp_path / "CoNSeP"
        for split, count in (("Train", train), ("Test", test)):
            (root / split / "Images").mkdir(parents=True)
            (root / split / "Labels").mkdir()
            for number in range(1, count + 1):
                pixels, kinds = draw_nuclei(size_px, size_px, types=7, seed=number + 100 * (split == "Test"))
                name = f"{split.lower()}_{number}"
                opaque = np.full((size_px, size_px, 1), 255, dtype=np.uint8)
                Image.fromarray(np.concatenate([pixels, opaque], axis=2)).save(root / split / "Images" / f"{name}.png")
                content = {
                    "inst_map": kinds.astype(np.float64),
                    "type_map": kinds.astype(np.float64),
                    "inst_type": np.arange(1.0, 8.0)[:, None],
                    "inst_uid": np.arange(1.0, 8.0)[:, None],
                    "inst_centroid": np.zeros((7, 2)),
                }
                savemat(root / split / "Labels" / f"{name}.mat", content)
        return root

    return make


@pytest.fixture
def make_folder(tmp_path: Path) -> Callable[..., Path]:
    """images/ and labels/ with instance or class numbers in PNGs, some images smaller than a window."""

    def make(*, count: int = 6, instance: bool = False, size_px: tuple[int, int] = (56, 72)) -> Path:
        root = tmp_path / "folder"
        (root / "images").mkdir(parents=True)
        (root / "labels").mkdir()
        for number in range(count):
            pixels, kinds = draw_nuclei(*size_px, types=4 if instance else 2, seed=number)
            Image.fromarray(pixels).save(root / "images" / f"i{number}.png")
            label = (100 * kinds).astype(np.uint16) if instance else kinds.astype(np.uint8)
            Image.fromarray(label).save(root / "labels" / f"i{number}.png")
        return root

    return make


@pytest.fixture(scope="session")
def tiny_backbone() -> LoadedBackbone:
    """Seeded random ViT of 8 pixels a token for images of 32."""
    return load_backbone("vit_tiny_patch16_224", args=TINY, seed=1)
