"""How evenly do embeddings fill the sphere?

Uniformity (Wang and Isola 2020): ln of the mean over pairs of distinct rows of exp(-t |u_i - u_j|^2), t = 2, u the
rows at unit length. 0 when all point the same way, about -4 when directions are independent in many dimensions. Pairs
are taken block by block, so memory does not grow with the rows; time grows with their square. Before: embed. After:
unsupervised.
"""

from __future__ import annotations

import math

import numpy as np

from fm_eval.checks import check_embeddings
from fm_eval.metrics import AnyFloatArray, Metric

_BLOCK_ROWS = 1024


def uniformity(embeddings: AnyFloatArray) -> Metric:
    """Uniformity (t = 2) over all pairs of rows.

    Args:
        embeddings: (N, K) of any float type; computed in float64.

    Raises:
        MetricError: not a matrix, or a value is not finite.
    """
    check_embeddings(embeddings)
    rows = len(embeddings)
    if rows < 2:
        return Metric(None, f"{rows} rows, at least 2 needed")
    unit = embeddings.astype(np.float64)
    largest = np.abs(unit).max(axis=1, keepdims=True)
    zero = largest[:, 0] == 0
    if zero.any():
        return Metric(None, f"row {int(zero.argmax())} is all zero (one of {int(zero.sum())}): it has no direction")
    unit /= largest
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    total = 0.0
    for start in range(0, rows, _BLOCK_ROWS):
        block = unit[start : start + _BLOCK_ROWS]
        # |u - v|^2 = 2 - 2 u.v
        within = np.exp(np.minimum(4 * (block @ block.T) - 4, 0))
        total += (float(within.sum()) - float(np.trace(within))) / 2
        for other in range(start + _BLOCK_ROWS, rows, _BLOCK_ROWS):
            total += float(np.exp(4 * (block @ unit[other : other + _BLOCK_ROWS].T) - 4).sum())
    return Metric(math.log(total / (rows * (rows - 1) / 2)))
