"""A DINOv2 of the smallest useful size."""

from __future__ import annotations

from typing import Any

from ssl_train import DINOv2, MultiCrop
from ssl_train.dinov2_network import HeadSettings

HEAD = HeadSettings(out_dim=32, hidden_dim=24, bottleneck_dim=12)
PATCH_HEAD = HeadSettings(out_dim=16, hidden_dim=16, bottleneck_dim=8)


def small_dinov2(kind: type[DINOv2] = DINOv2, **changes: Any) -> DINOv2:
    settings: dict[str, Any] = {
        "architecture": "vit_small_patch14_reg4_dinov2",
        "architecture_kwargs": {"img_size": 32, "patch_size": 8, "depth": 2, "embed_dim": 24, "num_heads": 2},
        "crops": MultiCrop(global_size_px=32, local_size_px=16, n_locals=2),
        "dino_head": HEAD,
        "epoch_size": 16,
        "warmup_epochs": 0,
        "base_learning_rate": 0.05,
        "warmup_teacher_temp_epochs": 2,
        "freeze_last_layer_epochs": 0,
        "drop_path_rate": 0.0,
    }
    return kind(**{**settings, **changes})
