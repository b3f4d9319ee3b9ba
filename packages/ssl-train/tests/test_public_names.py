from __future__ import annotations

import ssl_train


def test_public_names() -> None:
    assert sorted(ssl_train.__all__) == [
        "BlockMasks",
        "CollapseMonitor",
        "DINO",
        "DINOv2",
        "DINOv2Crops",
        "EmbeddingGuard",
        "EventFileLogger",
        "FolderExport",
        "FullySharded",
        "GarbageCollection",
        "HeadWarmup",
        "MultiCrop",
        "NonFiniteGradients",
        "PatchData",
        "PatchStream",
        "ReferenceMultiCrop",
        "RunChecks",
        "StageProgressBar",
        "StepCheckpoint",
        "StopOnSignal",
        "Throughput",
        "UnhealthyRunError",
        "export_folder",
    ]
    assert all(hasattr(ssl_train, name) for name in ssl_train.__all__)
