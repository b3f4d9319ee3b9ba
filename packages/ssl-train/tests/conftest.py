from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from ssl_train import DINO, MultiCrop, PatchData

TESTS = Path(__file__).parent
torch.set_num_threads(min(2, os.cpu_count() or 1))


# Lightning's own use of torch, and its advice that does not apply to an endless stream on a small machine.
LIGHTNING_WARNINGS = (
    "ignore::jsonargparse._deprecated.JsonargparseDeprecationWarning",
    "ignore:.*in eval mode at the start of training.*:UserWarning",
    "ignore:.*LeafSpec.*:FutureWarning",
    "ignore:.*does not have many workers.*:UserWarning",
    "ignore:This DataLoader will create .* worker processes:UserWarning",
    "ignore:.*fewer than the logging interval.*:UserWarning",
    "ignore:.*number of training batches.*:UserWarning",
    "ignore:.*IterableDataset.*has `__len__`.*:UserWarning",
    "ignore:.*checkpoint that ended before the epoch ended.*:UserWarning",
)


def pytest_configure(config: pytest.Config) -> None:
    for line in LIGHTNING_WARNINGS:
        config.addinivalue_line("filterwarnings", line)


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Ctrl-C as a terminal has it; a shell that starts tests in the background makes them deaf to it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(autouse=True)
def _importable_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    """The synthetic stream is named by class_path, so it must be importable."""
    monkeypatch.syspath_prepend(str(TESTS))


@pytest.fixture
def make_dino() -> Callable[..., DINO]:
    """A DINO of the smallest useful size."""

    def make(**changes: Any) -> DINO:
        settings: dict[str, Any] = {
            "architecture": "vit_tiny_patch16_224",
            "architecture_kwargs": {
                "img_size": 32,
                "patch_size": 8,
                "depth": 2,
                "embed_dim": 24,
                "num_heads": 2,
            },
            "crops": MultiCrop(global_size_px=32, local_size_px=16, n_locals=2),
            "out_dim": 32,
            "head_hidden_dim": 24,
            "head_bottleneck_dim": 12,
            "epoch_size": 16,
            "warmup_epochs": 1,
            "base_learning_rate": 0.05,
        }
        return DINO(**{**settings, **changes})

    return make


@pytest.fixture
def make_trainer(tmp_path: Path) -> Callable[..., pl.Trainer]:
    def make(**changes: Any) -> pl.Trainer:
        settings: dict[str, Any] = {
            "max_epochs": 1,
            "accelerator": "cpu",
            "logger": False,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "default_root_dir": tmp_path,
        }
        return pl.Trainer(**{**settings, **changes})

    return make


@pytest.fixture
def make_data() -> Callable[..., PatchData]:
    def make(*, batch_size: int = 4, num_workers: int = 0, **stream: Any) -> PatchData:
        from synthetic_stream import SyntheticStream

        return PatchData(stream=SyntheticStream(**stream), batch_size=batch_size, num_workers=num_workers)

    return make
