"""How alike are the embeddings of different patches?

The off-diagonal correlation (the paper's section IV-D.1, Eq. 1): root mean square of the Pearson correlation, over
features, of all pairs of distinct rows. With rows centred over their features and scaled to unit length, the sum of
all squared correlations is the squared Frobenius norm of the (K, K) Gram matrix: no N x N matrix is formed, and the
value is exact for any number of rows in one pass.

Before: rows. After: unsupervised.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from fm_eval.metrics import AnyFloatArray, FloatArray, Metric
from fm_eval.rows import RowStream


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


class ODCorrStream(RowStream):
    """Off-diagonal correlation of rows that come batch by batch; O(K^2) memory, float64."""

    def __init__(self) -> None:
        super().__init__()
        self._used = 0
        self._gram = np.zeros((0, 0))

    def result(self) -> ODCorr:
        """The value over all rows so far; more rows may follow."""
        self._fold_waiting()
        floor = 1.0 / math.sqrt(self.features - 1) if self.features > 1 else None
        used, dropped = self._used, self.rows - self._used
        if used < 2:
            return ODCorr(Metric(None, f"{used} rows with any variance, at least 2 needed"), used, dropped, floor)
        mean_square = (float((self._gram * self._gram).sum()) - used) / (used * (used - 1))
        return ODCorr(Metric(math.sqrt(min(max(mean_square, 0.0), 1.0))), used, dropped, floor)

    def _fold(self, chunk: FloatArray) -> None:
        largest, smallest = chunk.max(axis=1), chunk.min(axis=1)
        # not variance == 0: the mean of equal values need not be exact
        varies = largest > smallest
        if not varies.all():
            chunk, largest, smallest = chunk[varies], largest[varies], smallest[varies]
        chunk /= np.maximum(largest, -smallest)[:, None]  # so that no square leaves the range of float64
        chunk -= chunk.mean(axis=1, keepdims=True)
        chunk /= np.sqrt(np.einsum("nk,nk->n", chunk, chunk))[:, None]
        gram = chunk.T @ chunk
        self._gram = self._gram + gram if self._used else gram
        self._used += len(chunk)


def odcorr(embeddings: AnyFloatArray) -> ODCorr:
    """Off-diagonal correlation of an array, in memory or on disk.

    Args:
        embeddings: (N, K) of any float type; computed in float64.

    Returns:
        The value with the rows that were dropped and the noise floor.

    Raises:
        MetricError: not a matrix, or a value is not finite.
    """
    return ODCorrStream().update(embeddings).result()
