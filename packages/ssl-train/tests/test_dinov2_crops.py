from __future__ import annotations

import pytest
import torch
from ssl_train import DINOv2Crops


@pytest.mark.parametrize(("blur", "probabilities"), [("meta", (0.0, 0.9, 0.5)), ("paper", (1.0, 0.1, 0.5))])
def test_the_blur_is_the_one_named(blur: str, probabilities: tuple[float, float, float]) -> None:
    """Seen in the crops of noise, of which only blur takes the detail; other changes are off."""
    crops = DINOv2Crops(
        blur=blur,  # type: ignore[arg-type]
        global_size_px=32,
        local_size_px=32,
        n_locals=1,
        global_scale=(1.0, 1.0),
        local_scale=(1.0, 1.0),
        jitter_p=0.0,
        grey_p=0.0,
        solarise_p=0.0,
    )
    # Squares keep their size: a crop is the whole patch or, with another ratio, the middle of it.
    patches = torch.randint(0, 256, (300, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    global_, local = crops(patches, torch.arange(300), seed=0)
    for views, p in zip((*global_, *local), probabilities, strict=True):
        detail = views.diff(dim=-1).abs().mean(dim=(1, 2, 3))
        blurred = (detail < 0.75 * detail.max()).float().mean()
        # A radius near 0.1 blurs nothing to be seen.
        assert 0.7 * p - 0.05 <= blurred <= p + 0.09
