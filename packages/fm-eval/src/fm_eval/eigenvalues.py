"""How many directions do embeddings use, and how fast does their variance decay?

Rows are folded into a triangular factor by QR: of the centred rows, with the mean beside it, updated chunk by chunk as
in Chan et al. (1983) by one row more. Its singular values are those of the whole matrix, small ones included, which a
covariance matrix would lose; with the mean as a further row they are those of the uncentred matrix.

Definitions vary between tools and papers by large factors, so the variant is part of each name. Before: rows. After:
unsupervised.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from fm_eval.metrics import AnyFloatArray, FloatArray, Metric
from fm_eval.rows import RowStream

FIRST_RANK, LAST_RANK = 11, 100
_LEAST_RANKS = 3
_NO_VARIANCE = "all rows are equal: the centred covariance is zero"


@dataclass(frozen=True, slots=True)
class PowerLaw:
    """A power law fitted to the decay of eigenvalues.

    Attributes:
        metric: alpha, minus the slope of ln(eigenvalue) on ln(rank).
        ranks: first and last rank of the fit, counted from 1.
        r_squared: of the fit; None where alpha or the variance of the logarithms is none.
    """

    metric: Metric
    ranks: tuple[int, int]
    r_squared: float | None


@dataclass(frozen=True, slots=True)
class Spectrum:
    """Singular values of an (N, K) embedding matrix, in descending order.

    Attributes:
        rows: N.
        uncentred: (min(N, K),) of the rows as they are.
        centred: (min(N, K),) of the rows less their mean.
        rank: numerical rank of the centred matrix.
    """

    rows: int
    uncentred: FloatArray
    centred: FloatArray
    rank: int

    def rankme_uncentred(self) -> Metric:
        """RankMe (Garrido et al. 2023, Eq. 1-2): exp(-sum p ln p), p = s / sum(s) + 1e-7, of the uncentred matrix."""
        return _smooth_rank(self.uncentred) if self.uncentred[0] else Metric(None, "all embeddings are zero")

    def rankme_centred(self) -> Metric:
        """The same of the centred matrix."""
        return _smooth_rank(self.centred) if self.rank else Metric(None, _NO_VARIANCE)

    def nesum_centred(self) -> Metric:
        """NESum (He and Ozay 2022): sum of the eigenvalues of the centred covariance over the largest one."""
        if not self.rank:
            return Metric(None, _NO_VARIANCE)
        return Metric(float(np.square(self.centred / self.centred[0]).sum()))

    def alpha_req(self, *, weighted: bool) -> PowerLaw:
        """alpha-ReQ (Agrawal et al. 2022) over ranks 11 to 100, or to the numerical rank where that is less.

        Args:
            weighted: least squares with weights 1/rank instead of equal ones.
        """
        last = min(LAST_RANK, self.rank)
        ranks = (FIRST_RANK, last)
        if last < FIRST_RANK + _LEAST_RANKS - 1:
            least = FIRST_RANK + _LEAST_RANKS - 1
            reason = _NO_VARIANCE if not self.rank else f"{self.rank} eigenvalues above zero, at least {least} needed"
            return PowerLaw(Metric(None, reason), ranks, None)
        rank = np.arange(FIRST_RANK, last + 1)
        weights = (1.0 / rank if weighted else np.ones(len(rank))) / (1.0 / rank if weighted else rank * 0 + 1.0).sum()
        x, y = np.log(rank), 2 * np.log(self.centred[FIRST_RANK - 1 : last] / self.centred[0])
        x, y = x - weights @ x, y - weights @ y
        slope = float(weights @ (x * y) / (weights @ (x * x)))
        variance, left = float(weights @ (y * y)), float(weights @ np.square(y - slope * x))
        return PowerLaw(Metric(-slope), ranks, 1 - left / variance if variance > 1e-24 else None)


class SpectrumStream(RowStream):
    """Singular values of rows that come batch by batch; O(K^2) memory, float64."""

    def __init__(self) -> None:
        super().__init__()
        self._folded = 0

    def result(self) -> Spectrum:
        """The singular values of all rows so far; more rows may follow."""
        self._fold_waiting()
        values = min(self.rows, self.features)
        uncentred = np.linalg.svd(np.vstack([self._factor, math.sqrt(self.rows) * self._mean]), compute_uv=False)
        centred = np.zeros(values)
        found = np.linalg.svd(self._factor, compute_uv=False)[:values]
        centred[: len(found)] = found
        # rounding of the centring is that of the uncentred values
        noise = np.finfo(np.float64).eps * max(self.rows, self.features) * uncentred[0]
        return Spectrum(self.rows, uncentred[:values], centred, int((centred > noise).sum()))

    def _fold(self, chunk: FloatArray) -> None:
        rows, mean = len(chunk), chunk.mean(axis=0)
        chunk -= mean
        if not self._folded:
            self._factor, self._mean, self._folded = np.linalg.qr(chunk, mode="r"), mean, rows
            return
        total, step = self._folded + rows, mean - self._mean
        between = math.sqrt(self._folded * rows / total) * step
        self._factor = np.linalg.qr(np.vstack([self._factor, chunk, between]), mode="r")
        self._mean, self._folded = self._mean + step * (rows / total), total


def spectrum(embeddings: AnyFloatArray) -> Spectrum:
    """Singular values of an (N, K) array of any float type, in memory or on disk; computed in float64.

    Raises:
        MetricError: not a matrix, or a value is not finite.
    """
    return SpectrumStream().update(embeddings).result()


def rankme(embeddings: AnyFloatArray) -> Metric:
    """RankMe of the uncentred (N, K) matrix (Garrido et al. 2023, Eq. 1-2): a smooth rank, at most min(N, K).

    Raises:
        MetricError: not a matrix, or a value is not finite.
    """
    return spectrum(embeddings).rankme_uncentred()


def _smooth_rank(singular: FloatArray) -> Metric:
    p = singular / singular.sum() + 1e-7
    return Metric(float(np.exp(-(p * np.log(p)).sum())))
