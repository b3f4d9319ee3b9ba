"""Self-supervised training of pathology foundation models: DINO and DINOv2 on a stream of patches."""

from __future__ import annotations

from ssl_train.callbacks import StageProgressBar, Throughput
from ssl_train.checkpoint import export_folder
from ssl_train.contract import PatchStream
from ssl_train.crops import MultiCrop
from ssl_train.data import PatchData
from ssl_train.dino import DINO
from ssl_train.dinov2 import DINOv2
from ssl_train.dinov2_crops import DINOv2Crops
from ssl_train.errors import UnhealthyRunError
from ssl_train.event_file import EventFileLogger
from ssl_train.garbage import GarbageCollection
from ssl_train.guard import EmbeddingGuard
from ssl_train.head_warmup import HeadWarmup
from ssl_train.masking import BlockMasks
from ssl_train.monitors import CollapseMonitor, NonFiniteGradients
from ssl_train.preflight import RunChecks
from ssl_train.reference_crops import ReferenceMultiCrop
from ssl_train.saving import FolderExport, StepCheckpoint, StopOnSignal
from ssl_train.sharding import FullySharded

__all__ = [
    "DINO",
    "DINOv2",
    "DINOv2Crops",
    "BlockMasks",
    "FullySharded",
    "MultiCrop",
    "ReferenceMultiCrop",
    "PatchData",
    "PatchStream",
    "export_folder",
    "UnhealthyRunError",
    "CollapseMonitor",
    "EmbeddingGuard",
    "EventFileLogger",
    "FolderExport",
    "GarbageCollection",
    "HeadWarmup",
    "NonFiniteGradients",
    "RunChecks",
    "StageProgressBar",
    "StepCheckpoint",
    "StopOnSignal",
    "Throughput",
]
