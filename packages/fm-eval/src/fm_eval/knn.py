"""Which class do the nearest training embeddings vote for?

Cosine similarity, k = 20 by default, two read-outs: majority vote (a tie goes to the smaller class) and votes
weighted by exp(similarity / 0.07) (Wu et al. 2018, the read-out of DINO). Rows of equal similarity are taken in the
order of the training rows.

Similarities of all pairs are computed in float32, which leaves a few candidates a query; these are compared in
float64, so the neighbours are those of float64 throughout. Queries are handled in chunks. Before: embed. After: scores.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fm_eval.checks import CHUNK_ROWS, check_embeddings
from fm_eval.errors import MetricError
from fm_eval.metrics import AnyFloatArray, FloatArray, IntArray

_CHUNK_VALUES = 16_000_000  # similarities held at once: 64 MB in float32
_MOST_BLOCK = 64


@dataclass(frozen=True, slots=True)
class KnnPrediction:
    """Votes on Q queries.

    Attributes:
        majority_votes: (Q, C) share of the neighbours of each class.
        softmax_votes: (Q, C) share of the sum of exp(similarity / temperature).
        k: neighbours used; the number of training rows when that is smaller than asked for.
    """

    majority_votes: FloatArray
    softmax_votes: FloatArray
    k: int

    @property
    def majority(self) -> IntArray:
        """(Q,) most frequent class among the neighbours."""
        return np.asarray(self.majority_votes.argmax(axis=1), np.int64)

    @property
    def softmax(self) -> IntArray:
        """(Q,) class of the largest weighted vote."""
        return np.asarray(self.softmax_votes.argmax(axis=1), np.int64)


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
        MetricError: k or temperature not above 0, no row, or an all-zero or non-finite row, whose cosine is undefined.
    """
    if k < 1 or not temperature > 0:
        raise MetricError(f"k-NN: got k={k} and temperature={temperature}, both must be above 0")
    unit_train, unit_queries = _UnitRows(train, "training"), _UnitRows(queries, "query")
    k = min(k, len(train))
    majority, softmax = np.zeros((len(queries), classes)), np.zeros((len(queries), classes))
    for query, (rows, similarity) in enumerate(_nearest(unit_train, unit_queries, k)):
        neighbours = labels[rows]
        weights = np.exp((similarity - 1.0) / temperature)
        majority[query] = np.bincount(neighbours, minlength=classes) / k
        softmax[query] = np.bincount(neighbours, weights / weights.sum(), minlength=classes)
    return KnnPrediction(majority, softmax, k)


class _UnitRows:
    """Rows at unit length: all of them in float32, and any of them in float64."""

    def __init__(self, rows: AnyFloatArray, which: str) -> None:
        check_embeddings(rows, what=f"k-NN: {which} rows")
        self._rows = rows
        self.rough: NDArray[np.float32] = np.empty(rows.shape, np.float32)
        for start in range(0, len(rows), CHUNK_ROWS):
            chunk = np.arange(start, min(start + CHUNK_ROWS, len(rows)))
            zero = ~rows[chunk].any(axis=1)
            if zero.any():
                raise MetricError(
                    f"k-NN: {which} row {start + int(zero.argmax())} is all zero, "
                    "so its cosine similarity is undefined; check the backbone"
                )
            self.rough[chunk] = self.exact(chunk)

    def __len__(self) -> int:
        return len(self._rows)

    def exact(self, numbers: IntArray) -> FloatArray:
        """(n, K) some of the rows."""
        values = self._rows[numbers].astype(np.float64)
        values /= np.abs(values).max(axis=1, keepdims=True)  # so that no square leaves the range of float64
        unit: FloatArray = values / np.linalg.norm(values, axis=1, keepdims=True)
        return unit


def _nearest(train: _UnitRows, queries: _UnitRows, k: int) -> Iterator[tuple[IntArray, FloatArray]]:
    """For each query the k nearest rows, nearest first, among equals in their order, and their similarities."""
    # Blocks of rows whose largest similarities bound the k-th largest one from below: there are at least 4 k of them.
    block = int(np.clip(len(train) // (4 * k), 1, _MOST_BLOCK))
    whole = len(train) // block * block
    # A sum of K products of float32 is wrong by at most K units in the last place, either way (Higham 2002, 3.1).
    slack = np.float32(2 * (train.rough.shape[1] + 4) * np.finfo(np.float32).eps)
    chunk = max(1, _CHUNK_VALUES // len(train))
    for start in range(0, len(queries), chunk):
        exact = queries.exact(np.arange(start, min(start + chunk, len(queries))))
        rough = queries.rough[start : start + chunk] @ train.rough.T
        best = rough[:, :whole].reshape(len(rough), -1, block).max(axis=2)
        at_least = np.partition(best, -k, axis=1)[:, -k] - slack
        query_of, row_of = np.nonzero(rough >= at_least[:, None])
        for query, rows in enumerate(np.split(row_of, np.searchsorted(query_of, np.arange(1, len(exact))))):
            # equal rows must tie exactly, whatever order the product sums in
            similarity = np.round(train.exact(rows) @ exact[query], 12)
            nearest = np.argsort(-similarity, kind="stable")[:k]
            yield rows[nearest], similarity[nearest]
