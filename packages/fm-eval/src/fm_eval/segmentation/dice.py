"""How well do predicted label images agree with the truth, and which DICE is meant?

Three are in use and differ by several points on the same predictions, so each has its name:

- `dice_pooled`: pixels of the whole data set are counted together, class by class;
- `dice_image`: of each stitched image, then the mean over images;
- `dice_patch`: of each window of the test grid by itself, then the mean over windows, as eva 0.4 reports it
  (MONAI's DiceMetric with `ignore_empty`, mean over classes and then over patches).

All leave the background out and take the mean over classes. Where a class is neither in the truth nor in the
prediction its DICE is undefined and it is left out of the mean; predicted but absent counts 0 in the first two
and is left out of `dice_patch`, which looks at classes of the truth only. An image without any defined class is
left out too. `miou` is pooled, with the same rule, with and without background.

Everything follows from (C, C) confusion matrices, rows are true classes. After: evaluate.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fm_eval.metrics import IntArray

DICE_NAMES = ("dice_pooled", "dice_image", "dice_patch")


@dataclass(frozen=True, slots=True, kw_only=True)
class SegmentationScores:
    """Scores of one run; None where nothing defines them.

    Attributes:
        dice_pooled: mean over foreground classes.
        dice_image: mean over stitched images.
        dice_patch: mean over windows.
        miou: pooled, foreground classes.
        miou_with_background: pooled, all classes.
        dice_pooled_by_class: by class name, background included for information.
        dice_image_by_class: mean over the images that define it.
        dice_patch_by_class: mean over the windows that define it.
        iou_by_class: pooled.
    """

    dice_pooled: float | None
    dice_image: float | None
    dice_patch: float | None
    miou: float | None
    miou_with_background: float | None
    dice_pooled_by_class: dict[str, float | None]
    dice_image_by_class: dict[str, float | None]
    dice_patch_by_class: dict[str, float | None]
    iou_by_class: dict[str, float | None]


def confusion(truth: NDArray[np.uint8], predicted: NDArray[np.uint8], *, classes: int) -> IntArray:
    """Count pixels by true and predicted class.

    Args:
        truth: class numbers of any shape.
        predicted: the same shape.
        classes: C.

    Returns:
        int64 (C, C), rows are true classes.
    """
    assert truth.shape == predicted.shape, (truth.shape, predicted.shape)
    cells = truth.astype(np.int64).ravel() * classes + predicted.ravel()
    return np.bincount(cells, minlength=classes * classes).reshape(classes, classes)


def dice_by_class(matrices_NCC: IntArray, *, ignore_absent: bool) -> NDArray[np.float64]:
    """DICE of each class of each confusion matrix.

    Args:
        matrices_NCC: N confusion matrices.
        ignore_absent: a class that the truth does not hold is undefined even if it is predicted.

    Returns:
        float64 (N, C); NaN where undefined.
    """
    return _ratio(matrices_NCC, weight=2.0, ignore_absent=ignore_absent)


def iou_by_class(matrices_NCC: IntArray) -> NDArray[np.float64]:
    """Intersection over union of each class, float64 (N, C); NaN where undefined."""
    return _ratio(matrices_NCC, weight=1.0, ignore_absent=False)


def score(images_NCC: IntArray, patches_MCC: IntArray, *, class_names: Sequence[str]) -> SegmentationScores:
    """All scores of one run.

    Args:
        images_NCC: confusion matrix of each stitched image.
        patches_MCC: confusion matrix of each window.
        class_names: C names, background first.
    """
    pooled = images_NCC.sum(axis=0, keepdims=True)
    of_pool, of_images = (dice_by_class(matrices, ignore_absent=False) for matrices in (pooled, images_NCC))
    of_patches = dice_by_class(patches_MCC, ignore_absent=True)
    iou = iou_by_class(pooled)
    return SegmentationScores(
        dice_pooled=_mean(of_pool[0, 1:]),
        dice_image=_mean_of_means(of_images[:, 1:]),
        dice_patch=_mean_of_means(of_patches[:, 1:]),
        miou=_mean(iou[0, 1:]),
        miou_with_background=_mean(iou[0]),
        dice_pooled_by_class=_by_name(of_pool, class_names),
        dice_image_by_class=_by_name(of_images, class_names),
        dice_patch_by_class=_by_name(of_patches, class_names),
        iou_by_class=_by_name(iou, class_names),
    )


def _ratio(matrices_NCC: IntArray, *, weight: float, ignore_absent: bool) -> NDArray[np.float64]:
    """`weight` x overlap over that plus what is missed or wrongly predicted, with the same weighting."""
    hit = np.diagonal(matrices_NCC, axis1=1, axis2=2).astype(np.float64)
    true, predicted = matrices_NCC.sum(axis=2), matrices_NCC.sum(axis=1)
    below = (true + predicted) - (2.0 - weight) * hit
    undefined = (true == 0) if ignore_absent else (below == 0)
    return np.where(undefined, np.nan, weight * hit / np.maximum(below, 1))


def _mean(values: NDArray[np.float64]) -> float | None:
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if len(defined) else None


def _mean_of_means(values_NC: NDArray[np.float64]) -> float | None:
    """Mean over the classes of each row, then over the rows that have one."""
    means = [mean for mean in map(_mean, values_NC) if mean is not None]
    return float(np.mean(means)) if means else None


def _by_name(values_NC: NDArray[np.float64], names: Sequence[str]) -> dict[str, float | None]:
    return {name: _mean(values_NC[:, number]) for number, name in enumerate(names)}
