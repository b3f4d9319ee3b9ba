"""Hand-computed cases; every expected number is written out."""

from __future__ import annotations

import numpy as np
import pytest
from fm_eval.segmentation.dice import confusion, dice_by_class, iou_by_class, score

NAMES = ("background", "a", "b")


def matrix(truth: list[int], predicted: list[int]) -> np.ndarray:
    return confusion(np.array(truth, np.uint8), np.array(predicted, np.uint8), classes=3)


def test_confusion_counts_true_classes_in_rows() -> None:
    assert matrix([0, 0, 1, 2, 2], [0, 1, 1, 1, 2]).tolist() == [[1, 1, 0], [0, 1, 0], [0, 1, 1]]


def test_three_dice_of_the_same_predictions_differ_as_they_should() -> None:
    # image 1: a 2 true, 1 predicted, 1 hit -> 2/3; b in neither -> undefined
    # image 2: a 1 true, 3 predicted, 1 hit -> 2/4; b 2 true, 0 predicted -> 0
    first = matrix([1, 1, 0, 0], [1, 0, 0, 0])
    second = matrix([1, 2, 2, 0], [1, 1, 1, 0])
    scores = score(np.stack([first, second]), np.stack([first, second]), class_names=NAMES)
    # pooled: a 3 true, 4 predicted, 2 hit -> 4/7; b 0/(2 + 0) -> 0
    assert scores.dice_pooled_by_class == {"background": pytest.approx(2 * 3 / (3 + 4)), "a": 4 / 7, "b": 0.0}
    assert scores.dice_pooled == pytest.approx((4 / 7 + 0) / 2)
    assert scores.dice_image == pytest.approx((2 / 3 + (1 / 2 + 0) / 2) / 2)
    assert scores.dice_image_by_class["a"] == pytest.approx((2 / 3 + 1 / 2) / 2)
    # IoU: a 2/(3 + 4 - 2), b 0/2, background 3/(3 + 4 - 3)
    assert scores.miou == pytest.approx((2 / 5 + 0) / 2)
    assert scores.miou_with_background == pytest.approx((3 / 4 + 2 / 5 + 0) / 3)
    assert scores.iou_by_class == {"background": 3 / 4, "a": 2 / 5, "b": 0.0}


def test_a_predicted_class_that_is_absent_counts_zero_but_in_dice_patch() -> None:
    one = matrix([1, 1, 0, 0], [1, 1, 2, 0])  # a is perfect, b is invented
    scores = score(one[None], one[None], class_names=NAMES)
    assert scores.dice_pooled == scores.dice_image == pytest.approx((1 + 0) / 2)
    assert scores.dice_patch == 1.0
    assert scores.dice_patch_by_class == {"background": pytest.approx(2 * 1 / (2 + 1)), "a": 1.0, "b": None}


def test_empty_masks_are_undefined_and_left_out() -> None:
    empty, full = matrix([0, 0], [0, 0]), matrix([1, 1], [1, 0])
    nothing = score(empty[None], empty[None], class_names=NAMES)
    assert (nothing.dice_pooled, nothing.dice_image, nothing.dice_patch, nothing.miou) == (None,) * 4
    assert nothing.miou_with_background == 1.0
    both = score(np.stack([empty, full]), np.stack([empty, full]), class_names=NAMES)
    assert both.dice_pooled == both.dice_image == both.dice_patch == pytest.approx(2 / 3)
    assert both.dice_pooled_by_class["b"] is None


def test_an_empty_truth_with_a_prediction() -> None:
    invented = matrix([0, 0], [1, 0])
    scores = score(invented[None], invented[None], class_names=NAMES)
    assert scores.dice_pooled == scores.dice_image == 0.0
    assert scores.dice_patch is None


def test_dice_follows_from_iou() -> None:
    matrices = np.random.default_rng(0).integers(0, 50, (20, 3, 3))
    iou = iou_by_class(matrices)
    np.testing.assert_allclose(dice_by_class(matrices, ignore_absent=False), 2 * iou / (1 + iou))
