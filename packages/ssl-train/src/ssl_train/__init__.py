"""Self-supervised training of pathology foundation models: DINO on a stream of patches."""

from __future__ import annotations

from ssl_train.callbacks import CollapseMonitor, StageProgressBar, StepCheckpoint, Throughput
from ssl_train.checkpoint import export_folder
from ssl_train.contract import PatchStream
from ssl_train.crops import MultiCrop
from ssl_train.data import PatchData
from ssl_train.dino import DINO

__all__ = [
    "DINO",
    "MultiCrop",
    "PatchData",
    "PatchStream",
    "export_folder",
    "CollapseMonitor",
    "StageProgressBar",
    "StepCheckpoint",
    "Throughput",
]
