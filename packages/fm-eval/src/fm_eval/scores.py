"""Which numbers does a head get on one split?

Every metric of every run, from class probabilities, with bootstrap intervals of the mean over runs. What is undefined
is None with its reason. Before: any head, metrics, intervals. After: result.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import fmean, stdev

import numpy as np
from numpy.typing import NDArray

from fm_eval.intervals import Intervals, bootstrap
from fm_eval.metrics import (
    CALIBRATION_BINS,
    FloatArray,
    IntArray,
    Metric,
    accuracy,
    auroc,
    balanced_accuracy,
    calibration_error,
    calibration_excess,
    confusion_matrices,
    f1,
    log_loss,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """Scores of R runs on one split.

    Attributes:
        balanced_accuracy: by run.
        accuracy: by run.
        confusion: (C, C) counts by run; rows are true classes.
        metrics: further metrics by name, each by run: f1, auroc, log_loss, calibration_error. None where
            undefined.
        undefined: the reason by name of a metric that is None in some run.
        intervals: of the means over runs; None where they were not asked for.
        reliability: by bin of confidence, over all runs: rows, mean confidence, accuracy (0 where there are no rows).
    """

    balanced_accuracy: list[float]
    accuracy: list[float]
    confusion: list[list[list[int]]]
    metrics: dict[str, list[float | None]] = field(default_factory=dict)
    undefined: dict[str, str] = field(default_factory=dict)
    intervals: Intervals | None = None
    reliability: list[tuple[int, float, float]] = field(default_factory=list)

    def by_run(self, name: str) -> list[float | None]:
        """Values of one metric by run; None where undefined."""
        first = {"balanced_accuracy": self.balanced_accuracy, "accuracy": self.accuracy}
        return list(first[name]) if name in first else self.metrics[name]

    @property
    def mean(self) -> float:
        """Mean balanced accuracy over the runs."""
        return fmean(self.balanced_accuracy)

    @property
    def std(self) -> float | None:
        """Standard deviation (n - 1) of the balanced accuracy over the runs; None for a single run."""
        return stdev(self.balanced_accuracy) if len(self.balanced_accuracy) > 1 else None


def score(
    labels: IntArray,
    probabilities_RNC: FloatArray,
    *,
    groups: Sequence[str] | NDArray[np.str_] | None = None,
    resamples: int = 0,
    seed: int = 0,
) -> Scores:
    """Score the class probabilities of R runs on one split.

    Args:
        labels: (N,) true classes, N at least 1.
        probabilities_RNC: (R, N, C) probabilities; the predicted class is the most probable one, the first of equals.
        groups: (N,) what the bootstrap draws, or None for single rows.
        resamples: of the bootstrap; 0 leaves it out.
        seed: of the bootstrap.

    Raises:
        MetricError: no rows, or other than one group a row.
    """
    classes = probabilities_RNC.shape[2]
    confusions = confusion_matrices(labels, probabilities_RNC.argmax(axis=2), classes=classes)
    by_run: dict[str, list[Metric]] = {
        "balanced_accuracy": [balanced_accuracy(confusion) for confusion in confusions],
        "accuracy": [accuracy(confusion) for confusion in confusions],
        "f1": [f1(confusion) for confusion in confusions],
        "auroc": [auroc(labels, probabilities) for probabilities in probabilities_RNC],
        "log_loss": [log_loss(labels, probabilities) for probabilities in probabilities_RNC],
        "calibration_error": [calibration_error(labels, probabilities) for probabilities in probabilities_RNC],
    }
    values = {name: [metric.value for metric in metrics] for name, metrics in by_run.items()}
    return Scores(
        balanced_accuracy=[value for value in values.pop("balanced_accuracy") if value is not None],
        accuracy=[value for value in values.pop("accuracy") if value is not None],
        confusion=confusions.tolist(),
        metrics=values,
        undefined={
            name: reason
            for name, metrics in by_run.items()
            for reason in [next((metric.undefined for metric in metrics if metric.undefined), None)]
            if reason is not None
        },
        intervals=bootstrap(labels, probabilities_RNC, groups=groups, resamples=resamples, seed=seed)
        if resamples
        else None,
        reliability=_reliability(labels, probabilities_RNC),
    )


def _reliability(labels: IntArray, probabilities_RNC: FloatArray) -> list[tuple[int, float, float]]:
    """Rows, mean confidence and accuracy by bin of confidence, summed over the runs."""
    sums_BV = np.zeros((CALIBRATION_BINS, 3))
    for probabilities_NC in probabilities_RNC:
        bins, _ = calibration_excess(labels, probabilities_NC)
        correct = (probabilities_NC.argmax(axis=1) == labels).astype(np.float64)
        for column, values in enumerate((None, probabilities_NC.max(axis=1), correct)):
            sums_BV[:, column] += np.bincount(bins, values, minlength=CALIBRATION_BINS)
    return [
        (int(rows), round(confidence / max(rows, 1), 6), round(right / max(rows, 1), 6))
        for rows, confidence, right in sums_BV.tolist()
    ]
