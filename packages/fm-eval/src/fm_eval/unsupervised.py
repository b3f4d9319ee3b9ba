"""How good are embeddings, judged without labels?

All label-free metrics over one pass of rows, whether they come from an array or from an endless stream of unlabelled
patches (the paper's Fig. 4). A metric carries its variant in its name, and beside its value what is needed to read
it: the floor or ceiling of the dimension, the rows that took part or were dropped, the ranks of a fit.

Before: correlation, eigenvalues, hypersphere. After: result.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from fm_eval.checks import check_embeddings
from fm_eval.correlation import ODCorrStream
from fm_eval.eigenvalues import SpectrumStream
from fm_eval.hypersphere import uniformity
from fm_eval.metrics import AnyFloatArray, FloatArray, Metric
from fm_eval.rows import RowStream

UNIFORMITY_ROWS = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class UnsupervisedMetric:
    """One label-free metric.

    Attributes:
        name: with its variant.
        value: None where it is undefined.
        undefined: the reason where there is no value.
        details: what is needed to read the value, by name.
    """

    name: str
    value: float | None
    undefined: str | None = None
    details: dict[str, float | None] = field(default_factory=dict)


class UnsupervisedStream(RowStream):
    """Every label-free metric of rows that come batch by batch; O(K^2) memory, float64.

    All metrics are over all rows but uniformity, whose time grows with the square of the rows: it is over the first
    rows, as many as `uniformity_rows`. Rows of an index in the order of its classes have to be shuffled first
    (`unsupervised_metrics` does).
    """

    def __init__(self, *, uniformity_rows: int = UNIFORMITY_ROWS) -> None:
        super().__init__()
        self._uniformity_rows = uniformity_rows
        self._odcorr, self._spectrum = ODCorrStream(), SpectrumStream()
        self._first: list[FloatArray] = []

    def result(self) -> list[UnsupervisedMetric]:
        """The metrics over all rows so far; more rows may follow."""
        self._fold_waiting()
        correlation, spectrum = self._odcorr.result(), self._spectrum.result()
        ceiling = {"ceiling": float(min(self.rows, self.features))}
        first = np.concatenate(self._first)
        metrics = [
            _named(
                "odcorr",
                correlation.metric,
                floor=correlation.noise_floor,
                rows=correlation.rows,
                dropped_rows=correlation.dropped_rows,
            ),
            _named("rankme_uncentred", spectrum.rankme_uncentred(), **ceiling),
            _named("rankme_centred", spectrum.rankme_centred(), **ceiling),
            _named("nesum_centred", spectrum.nesum_centred(), **ceiling),
            _named("uniformity_t2", uniformity(first), floor=-4.0, rows=len(first)),
        ]
        for variant, weighted in (("plain", False), ("weighted", True)):
            fit = spectrum.alpha_req(weighted=weighted)
            details = {"first_rank": fit.ranks[0], "last_rank": fit.ranks[1], "r_squared": fit.r_squared}
            metrics.append(_named(f"alpha_req_{variant}", fit.metric, **details))
        return metrics

    def _fold(self, chunk: FloatArray) -> None:
        room = self._uniformity_rows - sum(map(len, self._first))
        if room > 0:
            self._first.append(chunk[:room].copy())
        self._odcorr.update(chunk)
        self._spectrum.update(chunk)


def unsupervised_metrics(embeddings: AnyFloatArray) -> list[UnsupervisedMetric]:
    """Every label-free metric of (N, K) embeddings of any float type, in memory or on disk.

    Raises:
        MetricError: not a matrix, or a value is not finite.
    """
    check_embeddings(embeddings)
    stream = UnsupervisedStream()
    order = np.random.default_rng(0).permutation(len(embeddings))
    for start in range(0, len(order), UNIFORMITY_ROWS):
        stream.update(embeddings[np.sort(order[start : start + UNIFORMITY_ROWS])])
    return stream.result()


def _named(name: str, metric: Metric, **details: float | None) -> UnsupervisedMetric:
    return UnsupervisedMetric(name=name, value=metric.value, undefined=metric.undefined, details=details)
