"""How good are predicted classes and probabilities?

Balanced accuracy, accuracy and F1 come from the confusion matrix; AUROC, log loss and calibration from the
probabilities (never from logits, whose scale means nothing). Before: any head. After: scores, intervals.

A value that the definition leaves open (0/0) is a `Metric` whose value is None, with the reason beside it. The
functions over many counts at once (`f1_scores`) mark it by NaN for the bootstrap, which then gives no interval.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
AnyFloatArray = NDArray[np.floating]

CALIBRATION_BINS = 15


@dataclass(frozen=True, slots=True)
class Metric:
    """One number, or None with the reason why it is undefined."""

    value: float | None
    undefined: str | None = None


NO_ROWS = Metric(None, "no rows")


def confusion_matrix(labels: IntArray, predictions: IntArray, *, classes: int) -> IntArray:
    """Count (true class, predicted class) pairs.

    Args:
        labels: (N,) true classes in [0, classes).
        predictions: (N,) predicted classes in [0, classes).
        classes: number of classes C.

    Returns:
        (C, C) counts; rows are true classes.
    """
    matrix: IntArray = confusion_matrices(labels, predictions[None], classes=classes)[0]
    return matrix


def confusion_matrices(labels: IntArray, predictions_RN: IntArray, *, classes: int) -> IntArray:
    """The (R, C, C) confusion matrices of R runs that predict the same (N,) labels."""
    runs = len(predictions_RN)
    cells = (np.arange(runs)[:, None] * classes + labels) * classes + predictions_RN
    counts = np.bincount(cells.ravel(), minlength=runs * classes * classes)
    return counts.reshape(runs, classes, classes).astype(np.int64)


def accuracies(confusions: NDArray[np.number]) -> FloatArray:
    """(...) share of rows on the diagonal of (..., C, C) confusion matrices, each with at least one row."""
    share: FloatArray = np.trace(confusions, axis1=-2, axis2=-1) / confusions.sum(axis=(-2, -1))
    return share


def balanced_accuracies(confusions: NDArray[np.number]) -> FloatArray:
    """(...) mean recall over the classes with true rows of (..., C, C) confusion matrices with at least one row."""
    return mean_recall(np.diagonal(confusions, axis1=-2, axis2=-1), confusions.sum(axis=-1))


def mean_recall(correct: NDArray[np.number], true: NDArray[np.number]) -> FloatArray:
    """(...) mean recall over the classes with true rows, from (..., C) counts of correct and of true rows."""
    mean: FloatArray = (correct / np.maximum(true, 1)).sum(axis=-1) / (true > 0).sum(axis=-1)
    return mean


def f1_scores(correct: NDArray[np.number], true: NDArray[np.number], predicted: NDArray[np.number]) -> FloatArray:
    """(...) F1 from (..., C) counts, as `f1` defines it; NaN where it is 0/0."""
    either = true + predicted
    by_class = 2 * correct / np.maximum(either, 1)
    if by_class.shape[-1] == 2:
        of_one: FloatArray = np.where(either[..., 1] > 0, by_class[..., 1], np.nan)
        return of_one
    mean: FloatArray = by_class.sum(axis=-1) / (either > 0).sum(axis=-1)
    return mean


def accuracy(confusion: IntArray) -> Metric:
    """Share of rows on the diagonal of a (C, C) confusion matrix."""
    return Metric(float(accuracies(confusion))) if confusion.any() else NO_ROWS


def balanced_accuracy(confusion: IntArray) -> Metric:
    """Mean recall over the classes that occur among the true labels of a (C, C) confusion matrix."""
    return Metric(float(balanced_accuracies(confusion))) if confusion.any() else NO_ROWS


def f1(confusion: IntArray) -> Metric:
    """F1 from a (C, C) confusion matrix: of class 1 for two classes; for more, the mean over the classes that occur.

    A class occurs if it is the true or the predicted one of some row.
    """
    if not confusion.any():
        return NO_ROWS
    value = float(f1_scores(np.diag(confusion), confusion.sum(axis=1), confusion.sum(axis=0)))
    return Metric(value) if np.isfinite(value) else Metric(None, "no row is of class 1 or predicted as it")


def auroc(labels: IntArray, probabilities_NC: AnyFloatArray) -> Metric:
    """Area under the receiver operating characteristic; a tie counts half.

    Two classes: of the probability of class 1. More: each class against the rest, mean over the classes that occur.

    Args:
        labels: (N,) true classes.
        probabilities_NC: (N, C) probabilities or other scores that rank the rows.
    """
    classes = probabilities_NC.shape[1]
    counts = np.bincount(labels, minlength=classes)
    present = np.flatnonzero(counts)
    if len(present) < 2:
        return Metric(None, f"{len(present)} classes among the labels, at least 2 needed") if len(labels) else NO_ROWS
    areas = [
        _binary_auroc(labels == one, probabilities_NC[:, one]) for one in ([1] if classes == 2 else present.tolist())
    ]
    return Metric(float(np.mean(areas)))


def log_loss(labels: IntArray, probabilities_NC: AnyFloatArray) -> Metric:
    """Mean over rows of -ln of the probability of the true class."""
    if not len(labels):
        return NO_ROWS
    of_truth = probabilities_NC[np.arange(len(labels)), labels]
    if of_truth.min() <= 0:
        return Metric(None, f"{int((of_truth <= 0).sum())} rows give their own class a probability of 0")
    return Metric(float(-np.log(of_truth).mean()))


def calibration_error(labels: IntArray, probabilities_NC: AnyFloatArray) -> Metric:
    """Expected calibration error of the largest probability (Guo et al. 2017, Eq. 5), 15 bins of equal width."""
    if not len(labels):
        return NO_ROWS
    bins, excess = calibration_excess(labels, probabilities_NC)
    return Metric(float(np.abs(np.bincount(bins, excess)).sum() / len(labels)))


def calibration_excess(labels: IntArray, probabilities_NC: AnyFloatArray) -> tuple[IntArray, FloatArray]:
    """For each row its bin of confidence, and its confidence less whether it is right."""
    confidence = probabilities_NC.max(axis=1).astype(np.float64)
    # bins are (0, 1/15], ..., (14/15, 1]
    bins = np.clip(np.ceil(confidence * CALIBRATION_BINS).astype(np.int64) - 1, 0, CALIBRATION_BINS - 1)
    return bins, confidence - (probabilities_NC.argmax(axis=1) == labels)


def _binary_auroc(positive: NDArray[np.bool_], scores: AnyFloatArray) -> float:
    """Probability that a positive row has the larger score (Mann-Whitney U)."""
    _, place, counts = np.unique(scores, return_inverse=True, return_counts=True)
    # mean rank, counted from 1, of the rows of each distinct score
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[place]
    positives = int(positive.sum())
    u = ranks[positive].sum() - positives * (positives + 1) / 2
    return float(u / (positives * (len(positive) - positives)))
