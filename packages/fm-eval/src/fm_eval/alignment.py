"""How alike are the embeddings that two models give to the same patches?

Linear centred kernel alignment (Kornblith et al. 2019, Eq. 4), which no rotation or scale of either embedding changes,
and its debiased form (the HSIC estimator of Song et al. 2012, Eq. 5): the plain one is near 1 for any two embeddings
with more features than rows, the debiased one is near 0 for unrelated embeddings of any size. Both are sums over rows:
one pass, O(K^2) memory, exact.

Before: embed. After: a table of models.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Self

import numpy as np

from fm_eval.checks import CHUNK_ROWS, check_embeddings
from fm_eval.errors import MetricError
from fm_eval.metrics import AnyFloatArray, FloatArray, Metric


@dataclass(frozen=True, slots=True)
class CKA:
    """Linear centred kernel alignment of two embeddings of the same N rows.

    Attributes:
        linear: in [0, 1]; biased upwards when rows are not many more than features.
        debiased: at most 1, about 0 for unrelated embeddings.
        rows: N.
    """

    linear: Metric
    debiased: Metric
    rows: int


class CKAStream:
    """Linear CKA of two embeddings whose rows come batch by batch."""

    def __init__(self) -> None:
        self.rows = 0
        self._sums = _PairSums(), _PairSums(), _PairSums()

    def update(self, one: AnyFloatArray, other: AnyFloatArray) -> Self:
        """Take the embeddings, (n, K1) and (n, K2), of the same patches by two models.

        Raises:
            MetricError: no matrices of equally many rows, another K than before, or a value is not finite.
        """
        for what, array in (("first embeddings", one), ("second embeddings", other)):
            check_embeddings(array, what=what)
        if len(one) != len(other):
            raise MetricError(f"CKA: {len(one)} and {len(other)} rows; give embeddings of the same patches")
        if not self.rows:
            self._origins = [array[:CHUNK_ROWS].mean(axis=0, dtype=np.float64) for array in (one, other)]
            self._scales = [float(np.abs(array[:CHUNK_ROWS]).max()) or 1.0 for array in (one, other)]
        for array, origin in zip((one, other), self._origins, strict=True):
            if array.shape[1] != len(origin):
                raise MetricError(f"CKA: got {array.shape[1]} features after {len(origin)}; use one backbone a side")
        for start in range(0, len(one), CHUNK_ROWS):
            # A shift by the first rows' mean and a scale change nothing but the rounding.
            x, y = (
                (array[start : start + CHUNK_ROWS].astype(np.float64) - origin) / scale
                for array, origin, scale in zip((one, other), self._origins, self._scales, strict=True)
            )
            for sums, (left, right) in zip(self._sums, ((x, x), (x, y), (y, y)), strict=True):
                sums.add(left, right)
        self.rows += len(one)
        return self

    def result(self) -> CKA:
        """The alignment over all rows so far; more rows may follow."""
        # Values are at most about 1 here: a variance below 1e-20 is rounding, one of float32 values is above 1e-15.
        least = (1e-20 * self.rows) ** 2
        plain = _ratio([sums.hsic(self.rows) for sums in self._sums], least) if self.rows > 1 else None
        debiased = _ratio([sums.unbiased_hsic(self.rows) for sums in self._sums], least) if self.rows > 3 else None
        return CKA(
            Metric(plain, None if plain is not None else "an embedding has no variance"),
            Metric(debiased, None if debiased is not None else "fewer than 4 rows, or an embedding has no variance"),
            self.rows,
        )


def cka(one: AnyFloatArray, other: AnyFloatArray) -> CKA:
    """Linear CKA of two embeddings, (N, K1) and (N, K2), of the same patches; computed in float64.

    Raises:
        MetricError: no matrices of equally many rows, or a value is not finite.
    """
    return CKAStream().update(one, other).result()


class _PairSums:
    """Sums over rows that both estimators of the Hilbert-Schmidt independence criterion are made of."""

    def __init__(self) -> None:
        self._cross: FloatArray | float = 0.0  # sum of x y'
        self._x: FloatArray | float = 0.0
        self._y: FloatArray | float = 0.0
        self._norms = np.zeros(3)  # sums of |x|^2, |y|^2, |x|^2 |y|^2
        self._x_by_y_norm: FloatArray | float = 0.0  # sum of x |y|^2
        self._y_by_x_norm: FloatArray | float = 0.0

    def add(self, x: FloatArray, y: FloatArray) -> None:
        x_norm, y_norm = np.square(x).sum(axis=1), np.square(y).sum(axis=1)
        self._cross = self._cross + x.T @ y
        self._x, self._y = self._x + x.sum(axis=0), self._y + y.sum(axis=0)
        self._norms += x_norm.sum(), y_norm.sum(), x_norm @ y_norm
        self._x_by_y_norm, self._y_by_x_norm = self._x_by_y_norm + y_norm @ x, self._y_by_x_norm + x_norm @ y

    def hsic(self, rows: int) -> float:
        """Squared Frobenius norm of the centred cross product."""
        return float(np.square(self._cross - np.outer(self._x, self._y) / rows).sum())

    def unbiased_hsic(self, rows: int) -> float:
        """HSIC_1 of Song et al. (2012, Eq. 5), times rows (rows - 3), from kernels without their diagonals."""
        x, y, cross = np.asarray(self._x), np.asarray(self._y), np.asarray(self._cross)
        both = float(self._norms[2])
        trace = float(np.square(cross).sum()) - both
        totals = (float(x @ x) - self._norms[0]) * (float(y @ y) - self._norms[1])
        products = float(x @ cross @ y) - float(x @ self._x_by_y_norm) - float(y @ self._y_by_x_norm) + both
        return float(trace + totals / ((rows - 1) * (rows - 2)) - 2 * products / (rows - 2))


def _ratio(values: list[float], least: float) -> float | None:
    """The alignment from the three criteria (x, x), (x, y), (y, y); None for 0/0."""
    own, cross, others = values
    return cross / math.sqrt(own * others) if min(own, others) > least else None
