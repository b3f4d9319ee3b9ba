from __future__ import annotations

import ssl_train


def test_public_names() -> None:
    assert sorted(ssl_train.__all__) == [
        "CollapseMonitor",
        "DINO",
        "MultiCrop",
        "PatchData",
        "PatchStream",
        "StageProgressBar",
        "StepCheckpoint",
        "Throughput",
        "export_folder",
    ]
    assert all(hasattr(ssl_train, name) for name in ssl_train.__all__)
