"""How do embeddings come in chunks of a useful size, whatever size they arrive in?

Metrics over a stream fold rows into a small state. A forward pass gives a few dozen rows, too few for a fast matrix
product, an array on disk more than fit into memory: both are cut into float64 chunks here, checked on the way. After:
correlation, eigenvalues.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Self

import numpy as np

from fm_eval.checks import check_embeddings
from fm_eval.errors import MetricError
from fm_eval.metrics import AnyFloatArray, FloatArray

_LEAST_CHUNK_ROWS = 1024


class RowStream(ABC):
    """Base of metrics that take rows batch by batch.

    Attributes:
        rows: rows taken so far.
        features: K, known with the first batch; 0 before.
    """

    def __init__(self) -> None:
        self.rows = 0
        self.features = 0
        self._waiting: list[FloatArray] = []

    def update(self, embeddings: AnyFloatArray) -> Self:
        """Take more rows.

        Args:
            embeddings: (n, K) of any float type; an array on disk is read chunk by chunk.

        Raises:
            MetricError: not a matrix, another K than before, or a value is not finite.
        """
        check_embeddings(embeddings, what=f"embeddings after row {self.rows}" if self.rows else "embeddings")
        if self.features and embeddings.shape[1] != self.features:
            raise MetricError(f"embeddings: got {embeddings.shape[1]} features after {self.features}; use one backbone")
        self.features = embeddings.shape[1]
        # Beside a state of K rows, four times as many keep the cost of folding them in small.
        size = max(_LEAST_CHUNK_ROWS, 4 * self.features)
        for start in range(0, len(embeddings), size):
            chunk = embeddings[start : start + size].astype(np.float64)
            self.rows += len(chunk)
            self._waiting.append(chunk)
            if sum(map(len, self._waiting)) >= size:
                self._fold_waiting()
        return self

    def _fold_waiting(self) -> None:
        """Fold the rows that wait for a full chunk; called before a result is given."""
        if self._waiting:
            self._fold(self._waiting[0] if len(self._waiting) == 1 else np.concatenate(self._waiting))
            self._waiting = []

    @abstractmethod
    def _fold(self, chunk: FloatArray) -> None:
        """Take (n, K) finite rows into the state; the array may be overwritten."""
