"""How sure is a score, given that only so many patients were tested?

Percentile bootstrap (Efron) of the mean over runs: groups (patients, slides) are drawn with replacement, each with all
its rows, because rows of one patient are no independent evidence. Without groups every row is its own. Metrics that
are functions of sums over rows (a confusion matrix, sums by calibration bin) are resampled as sums over groups, AUROC
by weights over ranked rows; no row is ever copied.

Before: metrics. After: scores.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fm_eval.errors import MetricError
from fm_eval.metrics import CALIBRATION_BINS, FloatArray, IntArray, calibration_excess, f1_scores, mean_recall

LEVEL = 0.95
# Drawings are taken so many counts at a time: 64 MB.
_COUNTS = 8_000_000
# Rows x classes x runs x resamples above which AUROC would take more than some seconds.
_MOST_FOR_AUROC = 1_000_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Intervals:
    """Bootstrap intervals of the scores on one split.

    Attributes:
        level: share of the resamples inside an interval.
        resamples: how many were drawn.
        seed: of the drawing.
        unit: what was drawn, `group` or `row`.
        units: how many there are.
        bounds: lower and upper bound by metric. A metric that is undefined in a resample is left out, and so is AUROC
            of hundreds of classes.
    """

    level: float
    resamples: int
    seed: int
    unit: str
    units: int
    bounds: dict[str, tuple[float, float]]


def bootstrap(
    labels: IntArray,
    probabilities_RNC: FloatArray,
    *,
    groups: Sequence[str] | NDArray[np.str_] | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> Intervals:
    """Intervals of balanced accuracy, accuracy, F1, calibration error and AUROC.

    Args:
        labels: (N,) true classes.
        probabilities_RNC: (R, N, C) probabilities of R runs.
        groups: (N,) patient, slide or other group of each row; None: rows are independent.
        resamples: drawings with replacement, each of as many units as there are.
        seed: of the drawings.

    Raises:
        MetricError: no rows, other than one group a row, or no resamples.
    """
    rows = len(labels)
    if not rows or resamples < 1 or (groups is not None and len(groups) != rows):
        raise MetricError(f"bootstrap: {rows} rows, {resamples} resamples; needed are 1 of each, and a group a row")
    unit_N = np.arange(rows) if groups is None else np.unique(np.asarray(groups, dtype=str), return_inverse=True)[1]
    units = int(unit_N.max()) + 1
    sums = [_Sums(labels, probabilities_NC, unit_N) for probabilities_NC in probabilities_RNC]
    with_auroc = probabilities_RNC.size * resamples <= _MOST_FOR_AUROC
    ranked = [one for scores_NC in probabilities_RNC for one in _ranked(labels, scores_NC)] if with_auroc else []
    values: dict[str, list[FloatArray]] = {}
    for times_SU in drawings(units, resamples, seed):
        by_run = [one.metrics(times_SU) for one in sums]
        for name in by_run[0]:
            values.setdefault(name, []).append(np.mean([metrics[name] for metrics in by_run], axis=0))
        if ranked:
            values.setdefault("auroc", []).append(_areas(times_SU[:, unit_N], ranked))
    return Intervals(
        level=LEVEL,
        resamples=resamples,
        seed=seed,
        unit="row" if groups is None else "group",
        units=units,
        bounds={name: bounds for name, parts in values.items() if (bounds := _bounds(np.concatenate(parts)))},
    )


def drawings(units: int, resamples: int, seed: int) -> Iterator[FloatArray]:
    """(S, U) how often each unit is in each resample, some resamples at a time."""
    random = np.random.default_rng(seed)
    share, step = np.full(units, 1 / units), max(1, _COUNTS // units)
    for start in range(0, resamples, step):
        yield random.multinomial(units, share, size=min(step, resamples - start)).astype(np.float64)


def _bounds(values_S: FloatArray) -> tuple[float, float] | None:
    if not np.isfinite(values_S).all():
        return None
    low, high = np.quantile(values_S, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


class _Sums:
    """Sums over the rows of each unit from which all metrics but AUROC follow."""

    def __init__(self, labels: IntArray, probabilities_NC: FloatArray, unit_N: IntArray) -> None:
        classes, predicted = probabilities_NC.shape[1], probabilities_NC.argmax(axis=1)
        bins, excess = calibration_excess(labels, probabilities_NC)
        self._true_UC = by_unit(unit_N, labels, classes)
        self._predicted_UC = by_unit(unit_N, predicted, classes)
        self._correct_UC = by_unit(unit_N, labels, classes, (predicted == labels).astype(np.float64))
        self._excess_UM = by_unit(unit_N, bins, CALIBRATION_BINS, excess)

    def metrics(self, times_SU: FloatArray) -> dict[str, FloatArray]:
        """(S,) value of each metric in each resample."""
        true_SC, correct_SC = times_SU @ self._true_UC, times_SU @ self._correct_UC
        rows_S = true_SC.sum(axis=1)
        return {
            "balanced_accuracy": mean_recall(correct_SC, true_SC),
            "accuracy": correct_SC.sum(axis=1) / rows_S,
            "f1": f1_scores(correct_SC, true_SC, times_SU @ self._predicted_UC),
            "calibration_error": np.abs(times_SU @ self._excess_UM).sum(axis=1) / rows_S,
        }


def by_unit(unit_N: IntArray, cell_N: IntArray, cells: int, values_N: FloatArray | None = None) -> FloatArray:
    """(U, cells) sums of values, or counts, over the rows of each unit and cell."""
    units = int(unit_N.max()) + 1
    sums = np.bincount(unit_N * cells + cell_N, values_N, minlength=units * cells)
    return sums.reshape(units, cells).astype(np.float64)


@dataclass(frozen=True, slots=True)
class _Ranked:
    """One class of one run: rows by ascending score, where each distinct score starts, which rows are of the class."""

    order: IntArray
    starts: IntArray
    positive: NDArray[np.bool_]


def _ranked(labels: IntArray, scores_NC: FloatArray) -> list[_Ranked]:
    classes = scores_NC.shape[1]
    found = []
    for one in [1] if classes == 2 else range(classes):
        order = np.argsort(scores_NC[:, one], kind="stable")
        ordered = scores_NC[order, one]
        starts = np.flatnonzero(np.concatenate([[True], ordered[1:] > ordered[:-1]]))
        found.append(_Ranked(order, starts, labels[order] == one))
    return found


def _areas(times_SN: FloatArray, ranked: Sequence[_Ranked]) -> FloatArray:
    """(S,) mean over classes and runs of AUROC, as `metrics.auroc` has it; NaN where a resample has one class only.

    Which classes occur in a resample is the same for all runs, so the mean over runs of means over classes is one sum.
    """
    area_S, defined_S = np.zeros(len(times_SN)), np.zeros(len(times_SN))
    for one in ranked:
        weights_SN = times_SN[:, one.order]
        positives = np.add.reduceat(weights_SN * one.positive, one.starts, axis=1)
        negatives = np.add.reduceat(weights_SN, one.starts, axis=1) - positives
        below = np.cumsum(negatives, axis=1) - negatives / 2
        pairs = positives.sum(axis=1) * negatives.sum(axis=1)
        area_S += (positives * below).sum(axis=1) / np.maximum(pairs, 1)
        defined_S += pairs > 0
    mean: FloatArray = np.divide(area_S, defined_S, out=np.full(len(area_S), np.nan), where=defined_S > 0)
    return mean
