"""Which views does DINOv2 see? Those of DINO with smaller areas and another blur."""

from __future__ import annotations

from typing import Any, Literal

from ssl_train.crops import MultiCrop

# Probability of blur in (first global, second global, local) crops. The reference hands 1 - p to RandomApply, which
# takes it for the probability to apply (dinov2/data/transforms.py, GaussianBlur): as run, not as meant.
_BLUR_P = {"meta": (0.0, 0.9, 0.5), "paper": (1.0, 0.1, 0.5)}


class DINOv2Crops(MultiCrop):
    """Multi-crop with the defaults of DINOv2 (dinov2/data/augmentations.py).

    The reference blurs with nine taps; here the blur is Pillow's, as in DINO.

    Args:
        blur: `meta` blurs as the reference's code runs and the released models were trained: never the first global
            crop, the second in 90 %; `paper` as the code says: always the first, the second in 10 %.
        global_scale: relative area of a global crop, (smallest, largest).
        local_scale: relative area of a local crop.
        **others: see `MultiCrop`.
    """

    def __init__(
        self,
        *,
        blur: Literal["meta", "paper"] = "meta",
        global_scale: tuple[float, float] = (0.32, 1.0),
        local_scale: tuple[float, float] = (0.05, 0.32),
        **others: Any,
    ) -> None:
        super().__init__(blur_p=_BLUR_P[blur], global_scale=global_scale, local_scale=local_scale, **others)
