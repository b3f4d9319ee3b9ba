"""Do the batched crops have the distribution of the reference's image-by-image pipeline?"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from ssl_train import MultiCrop, ReferenceMultiCrop
from torch import Tensor

SIZES = {"global_size_px": 32, "local_size_px": 16, "n_locals": 1}
N = 250
# Chance of a false alarm of one comparison; there are 3 views x 10 measures.
ALPHA = 1e-5


def ramps() -> Tensor:
    """A patch that tells where it was cut: red grows to the right, green to the bottom; blue is texture."""
    y, x = np.mgrid[0:64, 0:64]
    texture = np.random.default_rng(0).integers(0, 256, (64, 64))
    return torch.from_numpy(np.stack([40 + 2 * x, 40 + 2 * y, texture], axis=-1).astype(np.uint8))


def measures(crops: Tensor) -> dict[str, np.ndarray]:
    """One number a crop of normalised crops (N, 3, S, S), for each of several measures."""
    half = crops.shape[-1] // 2
    red, green, blue = crops.unbind(1)
    found = {f"mean of channel {i}": channel.mean((1, 2)) for i, channel in enumerate((red, green, blue))}
    found |= {
        "width of the box": red.mean(1).diff(dim=1).abs().mean(1),
        "height of the box": green.mean(2).diff(dim=1).abs().mean(1),
        "flip": (red[..., half:] - red[..., :half]).mean((1, 2)),
        "sharpness": blue.diff(dim=2).abs().mean((1, 2)),
        "contrast": crops.std((1, 2, 3)),
        "colour": (crops.amax(1) - crops.amin(1)).mean((1, 2)),
        "brightest": crops.amax((1, 2, 3)),
    }
    return {name: values.numpy() for name, values in found.items()}


def distance(a: np.ndarray, b: np.ndarray) -> float:
    """Statistic of Kolmogorov and Smirnov: largest difference of the two cumulative distributions."""
    at = np.concatenate([a, b])
    below = (np.searchsorted(np.sort(values), at, side="right") / len(values) for values in (a, b))
    return float(np.abs(np.subtract(*below)).max())


def bound(n: int, m: int) -> float:
    return float(np.sqrt(-np.log(ALPHA / 2) / 2 * (n + m) / (n * m)))


def crops_of(cutter: MultiCrop) -> list[Tensor]:
    patches = ramps().expand(N, -1, -1, -1).contiguous()
    global_crops, local_crops = cutter(patches, torch.arange(N), seed=3)
    return [*global_crops, *local_crops]


PLAIN: dict[str, Any] = {"jitter_p": 0.0, "grey_p": 0.0, "blur_p": (0.0, 0.0, 0.0), "solarise_p": 0.0}
SETTINGS: dict[str, dict[str, Any]] = {
    "as in the reference": {},
    "boxes alone": {**PLAIN, "dihedral": True},
}


@cache
def batched(name: str) -> list[Tensor]:
    return crops_of(MultiCrop(**SIZES, **SETTINGS[name]))


@pytest.mark.parametrize("name", SETTINGS)
def test_both_paths_have_one_distribution(name: str) -> None:
    reference = crops_of(ReferenceMultiCrop(**SIZES, **SETTINGS[name]))
    for view, (ours, theirs) in enumerate(zip(batched(name), reference, strict=True)):
        theirs_measured = measures(theirs)
        for measure, values in measures(ours).items():
            assert distance(values, theirs_measured[measure]) < bound(N, N), f"view {view}: {measure}"


@pytest.mark.parametrize(
    ("name", "change", "view", "measure"),
    [
        ("as in the reference", {"blur_p": (0.5, 0.1, 0.5)}, 0, "sharpness"),
        ("as in the reference", {"grey_p": 0.5}, 0, "colour"),
        ("as in the reference", {"solarise_p": 0.6}, 1, "brightest"),
        ("boxes alone", {"local_scale": (0.05, 0.15)}, 2, "width of the box"),
    ],
)
def test_the_comparison_sees_a_wrong_setting(name: str, change: dict[str, Any], view: int, measure: str) -> None:
    right, wrong = batched(name), crops_of(MultiCrop(**SIZES, **SETTINGS[name] | change))
    assert distance(measures(right[view])[measure], measures(wrong[view])[measure]) > bound(N, N)


STRENGTHS = {"brightness": 0.4, "contrast": 0.4, "saturation": 0.2, "hue": 0.1}


def jittered(cls: type[MultiCrop], operation: str, strength: float, measure: str) -> np.ndarray:
    """A measure of whole patches, 2 N of them, that one operation of the jitter has changed."""
    alone = dict.fromkeys(STRENGTHS, 0.0) | {operation: strength, "jitter_p": 1.0, "global_scale": (1.0, 1.0)}
    global_1, global_2, *_ = crops_of(cls(**SIZES | {"n_locals": 0} | PLAIN | alone))
    return measures(torch.cat([global_1, global_2]))[measure]


@pytest.mark.parametrize(
    ("operation", "measure"),
    [
        ("brightness", "mean of channel 0"),
        ("contrast", "contrast"),
        ("saturation", "colour"),
        ("hue", "sharpness"),
    ],
)
def test_each_jitter_has_the_strength_of_the_reference(operation: str, measure: str) -> None:
    strength = STRENGTHS[operation]
    fast, reference = (jittered(cls, operation, strength, measure) for cls in (MultiCrop, ReferenceMultiCrop))
    assert distance(fast, reference) < bound(2 * N, 2 * N)
    # Twice the strength would show.
    assert distance(fast, jittered(MultiCrop, operation, 2 * strength, measure)) > bound(2 * N, 2 * N)


def test_reference_crops_are_keyed_by_seed_and_sample() -> None:
    cutter = ReferenceMultiCrop(**SIZES)
    patches = torch.stack([ramps().roll(i, 0) for i in range(3)])
    state = torch.get_rng_state()
    together = cutter(patches, torch.tensor([4, 5, 6]), seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    alone = cutter(patches[1:2], torch.tensor([5]), seed=1)
    other = cutter(patches[1:2], torch.tensor([5]), seed=2)
    for a, b, c in zip(together, alone, other, strict=True):
        assert torch.equal(a[:, 1:2], b)
        assert not torch.equal(b, c)


def test_without_chance_both_paths_are_the_same_image() -> None:
    whole = {
        "global_scale": (1.0, 1.0),
        "n_locals": 0,
        "jitter_p": 0.0,
        "grey_p": 0.0,
        "blur_p": (0.0, 0.0, 0.0),
        "solarise_p": 1.0,
    }
    patches = ramps()[None]
    fast, reference = (
        cls(global_size_px=32, local_size_px=16, **whole)(patches, torch.tensor([0]), seed=0)[0]  # type: ignore[arg-type]
        for cls in (MultiCrop, ReferenceMultiCrop)
    )
    for view in range(2):
        # Up to the flip; 8-bit rounding of the reference may cross the threshold of solarisation at single pixels.
        differences = [(fast[view] - turned).abs() for turned in (reference[view], reference[view].flip(-1))]
        assert min(float((d > 2 / 127.5).float().mean()) for d in differences) < 0.01


@pytest.mark.parametrize("ours", [{"hed_p": 0.5}, {"extended_context": True}])
def test_what_the_reference_does_not_have_is_refused(ours: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="neither hed_p nor extended_context"):
        ReferenceMultiCrop(**ours)
