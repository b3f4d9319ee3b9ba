"""Small generated datasets and checkpoint folders, real files on disk."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import safetensors.torch
import timm
import torch
from PIL import Image

TINY = {"img_size": 32, "patch_size": 8, "depth": 2, "embed_dim": 48, "num_heads": 3, "num_classes": 0}


@pytest.fixture(autouse=True, scope="session")
def _few_threads() -> None:
    torch.set_num_threads(2)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def make_dataset(tmp_path: Path) -> Callable[..., Path]:
    """Write a folder of images whose class is their tint, in groups of two, and return its index."""

    def make(*, folder: str = "data", **settings: Any) -> Path:
        return _written_dataset(tmp_path / folder, **settings)

    return make


@pytest.fixture(scope="module")
def module_dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The index of such a folder, for all tests of a module."""
    return _written_dataset(tmp_path_factory.mktemp("module") / "data")


def _written_dataset(root: Path, *, groups: int = 8, classes: int = 3, splits: bool = True) -> Path:
    random = np.random.default_rng(0)
    root.mkdir()
    rows = []
    for label in range(classes):
        for group in range(groups):
            for copy in range(2):
                pixels = random.integers(0, 120, (40, 48, 3))
                pixels[..., label % 3] += 100 if label < 3 else 30
                name = f"c{label}_g{group}_{copy}.png"
                Image.fromarray(pixels.astype(np.uint8)).save(root / name)
                rows.append({"path": name, "label": f"class{label}", "group_id": f"c{label}g{group}"})
                if splits:
                    rows[-1]["split"] = ("train", "train", "val", "test")[group % 4]
    pd.DataFrame(rows).to_csv(root / "index.csv", index=False)
    return root / "index.csv"


@pytest.fixture
def make_checkpoint(tmp_path: Path) -> Callable[..., Path]:
    """Write a checkpoint folder as the contract describes it; keyword arguments replace JSON fields."""

    def make(*, folder: str = "checkpoint", **fields: Any) -> Path:
        root = tmp_path / folder
        root.mkdir()
        with torch.random.fork_rng():
            torch.manual_seed(7)
            model = timm.create_model("vit_tiny_patch16_224", pretrained=False, **TINY)
        safetensors.torch.save_file(model.state_dict(), root / "backbone.safetensors")
        content = {
            "format_version": 1,
            "architecture": "vit_tiny_patch16_224",
            "architecture_kwargs": TINY,
            "embed_dim": 48,
            "patch_size": 8,
            "input_size_px": 32,
            "mean": [0.5, 0.4, 0.3],
            "std": [0.2, 0.3, 0.4],
            "mpp": [0.5, 1.0],
            "method": "dino",
            "step": 300,
            "versions": {"torch": torch.__version__},
            "git_commit": None,
            "sha256": hashlib.sha256((root / "backbone.safetensors").read_bytes()).hexdigest(),
        }
        (root / "backbone.json").write_text(json.dumps({**content, **fields}), encoding="utf-8")
        return root

    return make
