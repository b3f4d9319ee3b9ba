"""Which class do the nearest training embeddings vote for?

Cosine similarity, k = 20 by default, two read-outs: majority vote (a tie goes to the smaller class) and votes
weighted by exp(similarity / 0.07) (Wu et al. 2018, the read-out of DINO). Rows of equal similarity are taken
in the order of the training rows. Queries are handled in chunks. Before: embed. After: result.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fm_eval.errors import MetricError
from fm_eval.metrics import AnyFloatArray, FloatArray, IntArray

_CHUNK_VALUES = 16_000_000  # similarities held at once: 128 MB in float64


@dataclass(frozen=True, slots=True)
class KnnPrediction:
    """Predicted classes of Q queries.

    Attributes:
        majority: (Q,) int64, most frequent class among the neighbours.
        softmax: (Q,) int64, class of the largest sum of exp(similarity / temperature).
        k: neighbours used; the number of training rows when that is smaller than asked for.
    """

    majority: IntArray
    softmax: IntArray
    k: int


def knn_predict(
    train: AnyFloatArray,
    labels: IntArray,
    queries: AnyFloatArray,
    *,
    classes: int,
    k: int = 20,
    temperature: float = 0.07,
) -> KnnPrediction:
    """Classify queries by their nearest training rows under cosine similarity.

    Args:
        train: (N, K) embeddings.
        labels: (N,) int64 classes in [0, classes).
        queries: (Q, K) embeddings.
        classes: number of classes.
        k: neighbours; at most N are used.
        temperature: of the weighted vote.

    Raises:
        MetricError: k below 1, no training row, or an all-zero or non-finite row, whose cosine is undefined.
    """
    if k < 1 or len(train) == 0:
        raise MetricError(f"k-NN: got k={k} and {len(train)} training rows, both must be at least 1")
    k = min(k, len(train))
    unit_train = _unit(train, "training")
    unit_queries = _unit(queries, "query")
    one_hot = np.eye(classes)[labels]
    majority, softmax = [], []
    chunk = max(1, _CHUNK_VALUES // len(train))
    for start in range(0, len(queries), chunk):
        # equal rows must tie exactly, whatever order the matrix product sums in
        similarity = np.round(unit_queries[start : start + chunk] @ unit_train.T, 12)
        rows = _nearest(similarity, k)
        votes = one_hot[rows]
        weights = np.exp((np.take_along_axis(similarity, rows, axis=1) - 1.0) / temperature)
        majority.append(votes.sum(axis=1).argmax(axis=1))
        softmax.append((votes * weights[:, :, None]).sum(axis=1).argmax(axis=1))
    return KnnPrediction(
        majority=np.concatenate([np.zeros(0, np.int64), *majority]),
        softmax=np.concatenate([np.zeros(0, np.int64), *softmax]),
        k=k,
    )


def _unit(rows: AnyFloatArray, which: str) -> FloatArray:
    values = rows.astype(np.float64)
    scale = np.abs(values).max(axis=1, keepdims=True, initial=0.0)
    bad = ~np.isfinite(scale[:, 0]) | (scale[:, 0] == 0.0)
    if bad.any():
        raise MetricError(
            f"k-NN: {which} row {int(bad.argmax())} is all zero or not finite (one of {int(bad.sum())}), "
            "so its cosine similarity is undefined; check the backbone"
        )
    values /= scale
    unit: FloatArray = values / np.linalg.norm(values, axis=1, keepdims=True)
    return unit


def _nearest(similarity: FloatArray, k: int) -> IntArray:
    """Columns of the k largest values of each row; among equal values the leftmost ones."""
    kth = np.partition(similarity, -k, axis=1)[:, -k][:, None]
    above = similarity > kth
    tied = similarity == kth
    room = k - above.sum(axis=1, keepdims=True)
    chosen = above | (tied & (np.cumsum(tied, axis=1) <= room))
    return np.nonzero(chosen)[1].reshape(len(similarity), k)
