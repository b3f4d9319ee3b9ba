"""How far do the means of the classes get, and how few labelled patches are enough?

SimpleShot (Wang et al. 2019, CL2N): embeddings less the mean of all training embeddings, at unit length; a query
belongs to the class whose mean is nearest. It has no parameter to choose and needs no selection. With all training
rows it is a head like any other; with a few drawn rows a class, drawn many times, it shows how the embeddings serve
when labels are scarce.

Before: embed. After: scores.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from fm_eval.checks import check_embeddings, check_labelled
from fm_eval.errors import ProbeError
from fm_eval.metrics import AnyFloatArray, FloatArray, IntArray, balanced_accuracies, confusion_matrices

_Float32 = NDArray[np.float32]
# Distances held at once: 128 MB in float32.
_DISTANCES = 32_000_000


class SimpleShot:
    """Nearest class mean of centred embeddings at unit length.

    Args:
        classes: number of classes C.

    Attributes:
        mean_: (K,) mean of the training embeddings.
        means_: (C, K) mean of each class's centred unit embeddings.
    """

    mean_: FloatArray
    means_: _Float32

    def __init__(self, *, classes: int) -> None:
        self.classes = classes

    def fit(self, embeddings: AnyFloatArray, labels: IntArray) -> Self:
        """Take the means of (N, K) training rows with (N,) labels, of which every class needs one.

        Raises:
            ProbeError: empty, non-finite or mismatched arrays, or a class without a row.
        """
        check_labelled(embeddings, labels, classes=self.classes, what="simpleshot: training")
        counts = np.bincount(labels, minlength=self.classes)
        if not counts.all():
            raise ProbeError(f"simpleshot: training has no row of class {int(counts.argmin())}; check the split")
        self.mean_ = embeddings.mean(axis=0, dtype=np.float64)
        unit = self.unit(embeddings)
        self.means_ = np.stack([unit[labels == one].mean(axis=0) for one in range(self.classes)])
        return self

    def predict_proba(self, embeddings: AnyFloatArray) -> FloatArray:
        """(N, C) softmax of minus the squared distances to the class means, for (N, K) embeddings."""
        check_embeddings(embeddings, what="simpleshot", error=ProbeError)
        logits = -_distances(self.unit(embeddings), self.means_).astype(np.float64)
        weights = np.exp(logits - logits.max(axis=1, keepdims=True))
        probabilities: FloatArray = weights / weights.sum(axis=1, keepdims=True)
        return probabilities

    def unit(self, embeddings: AnyFloatArray) -> _Float32:
        """Rows less `mean_`, at unit length; a row that equals it stays zero, as near to every class."""
        centred = (embeddings - self.mean_).astype(np.float32)
        length = np.linalg.norm(centred, axis=1, keepdims=True)
        unit: _Float32 = np.divide(centred, length, out=np.zeros_like(centred), where=length > 0)
        return unit


@dataclass(frozen=True, slots=True, kw_only=True)
class FewShot:
    """Balanced accuracy with few training rows a class.

    Attributes:
        shots: rows a class.
        balanced_accuracy: of each episode, that is, each drawing of the rows.
    """

    shots: int
    balanced_accuracy: list[float]


def few_shot(
    train: AnyFloatArray,
    labels: IntArray,
    queries: AnyFloatArray,
    query_labels: IntArray,
    *,
    classes: int,
    shots: Sequence[int] = (1, 2, 4, 8, 16),
    episodes: int = 100,
    seed: int = 0,
) -> list[FewShot]:
    """SimpleShot with a few drawn rows a class, scored on all queries.

    Embeddings are centred by the mean of all training rows, which takes no labels. An episode is keyed by (seed, shots,
    episode). Numbers of shots that some class has not as many rows for are left out.

    Args:
        train: (N, K) embeddings to draw from.
        labels: (N,) classes.
        queries: (Q, K) embeddings.
        query_labels: (Q,) classes.
        classes: number of classes C.
        shots: rows a class.
        episodes: drawings for each number of shots.
        seed: of the drawings.

    Raises:
        ProbeError: empty, non-finite or mismatched arrays, a class without a row, or no shots or episodes.
    """
    if not shots or min(shots) < 1 or episodes < 1:
        raise ProbeError(f"few-shot: got shots {tuple(shots)} and {episodes} episodes, at least 1 needed")
    check_labelled(queries, query_labels, classes=classes, what="few-shot: queries", width=train.shape[-1])
    head = SimpleShot(classes=classes).fit(train, labels)
    unit_train, unit_queries = head.unit(train), head.unit(queries)
    rows_of = [np.flatnonzero(labels == one) for one in range(classes)]
    together = max(1, _DISTANCES // (classes * len(queries)))
    found = []
    for count in shots:
        if count > min(map(len, rows_of)):
            continue
        scores: list[float] = []
        for start in range(0, episodes, together):
            drawn = [_draw(rows_of, count, [seed, count, e]) for e in range(start, min(start + together, episodes))]
            means = unit_train[np.stack(drawn)].mean(axis=2)
            distances = _distances(unit_queries, means.reshape(-1, means.shape[-1]))
            predicted = distances.reshape(len(queries), len(drawn), classes).argmin(axis=2).T
            scores += balanced_accuracies(confusion_matrices(query_labels, predicted, classes=classes)).tolist()
        found.append(FewShot(shots=count, balanced_accuracy=scores))
    return found


def _draw(rows_of: Sequence[IntArray], count: int, key: Sequence[int]) -> IntArray:
    """(C, count) rows, drawn without replacement from each class."""
    random = np.random.default_rng(key)
    return np.stack([random.choice(rows, count, replace=False) for rows in rows_of])


def _distances(rows: _Float32, means: _Float32) -> _Float32:
    """(N, M) squared distances of unit rows to means, less the rows' own length, which is the same for all means."""
    distances: _Float32 = np.square(means).sum(axis=1) - 2 * (rows @ means.T)
    return distances
