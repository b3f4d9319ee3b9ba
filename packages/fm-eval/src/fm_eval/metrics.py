"""How good are predictions and, without labels, embeddings?

Supervised: confusion matrices, accuracy, balanced accuracy. Unsupervised: ODCorr and RankMe, both streamed
over row chunks in float64 with O(K^2) memory, so that they are exact for any number of rows.

Before: embed. After: result. A value that the definition leaves open (0/0) is a `Metric` whose value is None,
with the reason beside it; NaN never leaves this module.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fm_eval.errors import MetricError

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
AnyFloatArray = NDArray[np.floating]

_CHUNK_ROWS = 4096


@dataclass(frozen=True, slots=True)
class Metric:
    """One number, or None with the reason why it is undefined."""

    value: float | None
    undefined: str | None = None


@dataclass(frozen=True, slots=True)
class ODCorr:
    """Off-diagonal correlation of the rows of an embedding matrix.

    Attributes:
        metric: the value, in [0, 1].
        rows: rows that took part.
        dropped_rows: rows left out because all their features are equal, so that no correlation is defined.
        noise_floor: what independent noise of this dimension gives, 1/sqrt(K-1); None for K < 2.
    """

    metric: Metric
    rows: int
    dropped_rows: int
    noise_floor: float | None


def confusion_matrix(labels: IntArray, predictions: IntArray, *, classes: int) -> IntArray:
    """Count (true class, predicted class) pairs.

    Args:
        labels: (N,) true classes in [0, classes).
        predictions: (N,) predicted classes in [0, classes).
        classes: number of classes C.

    Returns:
        (C, C) counts; rows are true classes.
    """
    flat = np.bincount(labels * classes + predictions, minlength=classes * classes)
    return flat.reshape(classes, classes).astype(np.int64)


def accuracy(confusion: IntArray) -> Metric:
    """Share of rows on the diagonal of a (C, C) confusion matrix."""
    total = int(confusion.sum())
    if total == 0:
        return Metric(None, "no rows")
    return Metric(float(np.trace(confusion)) / total)


def balanced_accuracy(confusion: IntArray) -> Metric:
    """Mean recall over the classes that occur among the true labels of a (C, C) confusion matrix."""
    per_class = confusion.sum(axis=1)
    present = per_class > 0
    if not present.any():
        return Metric(None, "no rows")
    return Metric(float((np.diag(confusion)[present] / per_class[present]).mean()))


def odcorr(embeddings: AnyFloatArray) -> ODCorr:
    """Off-diagonal correlation (the paper's Eq. 1): root mean square Pearson correlation of distinct rows.

    With rows centred over their features and scaled to unit length, the sum of all squared correlations is
    the squared Frobenius norm of the (K, K) Gram matrix, so no N x N matrix is formed.

    Args:
        embeddings: (N, K) of any float type; computed in float64.

    Returns:
        The value with the rows that were dropped and the noise floor.

    Raises:
        MetricError: not a matrix, or a value is not finite.
    """
    _check(embeddings)
    rows, dim = 0, embeddings.shape[1]
    gram = np.zeros((dim, dim))
    for chunk in _chunks(embeddings):
        # max == min, not variance == 0: the mean of equal values need not be exact
        scale = np.abs(chunk).max(axis=1, keepdims=True)
        varies = chunk.max(axis=1) > chunk.min(axis=1)
        unit = chunk[varies] / scale[varies]
        unit -= unit.mean(axis=1, keepdims=True)
        unit /= np.linalg.norm(unit, axis=1, keepdims=True)
        gram += unit.T @ unit
        rows += len(unit)
    floor = 1.0 / math.sqrt(dim - 1) if dim > 1 else None
    dropped = len(embeddings) - rows
    if rows < 2:
        return ODCorr(Metric(None, f"{rows} rows with any variance, at least 2 needed"), rows, dropped, floor)
    mean_square = (float((gram * gram).sum()) - rows) / (rows * (rows - 1))
    value = math.sqrt(min(max(mean_square, 0.0), 1.0))
    return ODCorr(Metric(value), rows, dropped, floor)


def rankme(embeddings: AnyFloatArray) -> Metric:
    """RankMe of the uncentred matrix (Garrido et al. 2023, Eq. 1-2): a smooth rank.

    exp(-sum p ln p) with p = s / sum(s) + 1e-7 over the min(N, K) singular values s. Rows are folded into one
    triangular factor by QR, which keeps small singular values exact where a Gram matrix would lose them.

    Args:
        embeddings: (N, K) of any float type; computed in float64.

    Raises:
        MetricError: not a matrix, or a value is not finite.
    """
    _check(embeddings)
    largest = float(np.abs(embeddings).max())
    if largest == 0.0:
        return Metric(None, "all embeddings are zero")
    factor = np.zeros((0, embeddings.shape[1]))
    for chunk in _chunks(embeddings):
        factor = np.asarray(np.linalg.qr(np.concatenate([factor, chunk / largest]), mode="r"))
    singular = np.linalg.svd(factor, compute_uv=False)[: min(embeddings.shape)]
    p = singular / singular.sum() + 1e-7
    return Metric(float(np.exp(-(p * np.log(p)).sum())))


def _check(embeddings: AnyFloatArray) -> None:
    if embeddings.ndim != 2 or 0 in embeddings.shape:
        raise MetricError(f"embeddings: got shape {embeddings.shape}, expected (N, K) with N and K above 0")
    for start in range(0, len(embeddings), _CHUNK_ROWS):
        bad = ~np.isfinite(embeddings[start : start + _CHUNK_ROWS]).all(axis=1)
        if bad.any():
            raise MetricError(f"embeddings: row {start + int(bad.argmax())} holds NaN or infinity; check the backbone")


def _chunks(embeddings: AnyFloatArray) -> Iterator[FloatArray]:
    for start in range(0, len(embeddings), _CHUNK_ROWS):
        yield embeddings[start : start + _CHUNK_ROWS].astype(np.float64)
