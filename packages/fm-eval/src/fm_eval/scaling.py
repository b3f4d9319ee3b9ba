"""How are features put on one scale?

Mean and standard deviation of each feature over the training rows, in float64 and in chunks, so that half precision,
large offsets and data as large as memory are no matter. A feature that is constant stays constant. Before: embed.
After: probe, logistic.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fm_eval.checks import CHUNK_ROWS
from fm_eval.metrics import AnyFloatArray, FloatArray


@dataclass(frozen=True, slots=True)
class FeatureScale:
    """What is subtracted from and divided out of each feature.

    Attributes:
        mean: (K,) float64.
        std: (K,) float64, 1 for a constant feature.
    """

    mean: FloatArray
    std: FloatArray

    @staticmethod
    def of(embeddings: AnyFloatArray) -> FeatureScale:
        """Mean and standard deviation (over N, not N - 1) of (N, K) rows."""
        rows = len(embeddings)
        starts = range(0, rows, CHUNK_ROWS)
        mean = sum(embeddings[s : s + CHUNK_ROWS].sum(axis=0, dtype=np.float64) for s in starts) / rows
        variance, largest = np.zeros_like(mean), np.zeros_like(mean)
        for start in starts:
            chunk = embeddings[start : start + CHUNK_ROWS].astype(np.float64)
            largest = np.maximum(largest, np.abs(chunk).max(axis=0))
            variance += np.square(chunk - mean).sum(axis=0)
        std = np.sqrt(variance / rows)
        std[std <= 1e-12 * largest] = 1.0
        return FeatureScale(mean, std)

    def apply(self, embeddings: AnyFloatArray) -> NDArray[np.float32]:
        """(N, K) float32 scaled rows; a copy."""
        scaled = np.empty(embeddings.shape, np.float32)
        for start in range(0, len(embeddings), CHUNK_ROWS):
            stop = start + CHUNK_ROWS
            scaled[start:stop] = (embeddings[start:stop].astype(np.float64) - self.mean) / self.std
        return scaled
