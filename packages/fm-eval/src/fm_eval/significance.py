"""Is the difference between two models on the same rows more than chance?

Two models are compared by balanced accuracy on rows that both predicted, each with one or several runs. Two sources of
chance are told apart and both count:

- **which patients were tested**: groups (patients, slides) are independent of one another, their rows are not. With
  weights w_i = 1 / (classes x rows of the class of i), the difference is a sum over groups, Delta = sum_g D_g. If the
  models are alike, swapping them within a group changes nothing, so the sign of each D_g is a coin (a paired
  permutation test by groups, Good 2005, chapter 3).
- **which runs were drawn**: what runs of one model have in common over all groups (a head that is a little worse
  everywhere) is no coin of a group. Its variance is the variance of the runs' balanced accuracy less what their
  groups contribute one by one, and the permutation distribution is widened by it (Student's t, since it is known from
  few runs). A model with a single run borrows it from the other; where both have one it is unknown, and said to be.

The interval is the cluster bootstrap of the difference (Field and Welsh 2007), widened in the same way. Many tests at
once are corrected by Holm (1979). Pure: arrays in, numbers out. Before: intervals. After: comparison, gate.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from fm_eval.errors import MetricError
from fm_eval.intervals import LEVEL, by_unit, drawings
from fm_eval.metrics import FloatArray, IntArray, mean_recall

ALPHA = 0.05
# Signs are drawn so many at a time: 64 MB.
_SIGNS = 16_000_000
# Sums of the same numbers in another order are as far from zero.
_TIE = 1e-12


@dataclass(frozen=True, slots=True, kw_only=True)
class PairedDifference:
    """Score (balanced accuracy, or pooled DICE) of one model less that of another on the same rows.

    Attributes:
        one: score of the first, mean over its runs.
        other: of the second.
        difference: `one` less `other`.
        low: lower bound of the 95 % interval; None for a single group.
        high: its upper bound.
        p_value: two-sided, that the models are alike.
        p_lower: one-sided: small where the first is worse.
        std_error: of the difference, by groups and runs.
        run_std_error: the part of it that is common to all groups of a run; None where it is unknown.
        rows: that were predicted; images in segmentation.
        groups: that they belong to.
        runs: of the first and of the second.
        metric: which score it is.
    """

    one: float
    other: float
    difference: float
    low: float | None
    high: float | None
    p_value: float
    p_lower: float
    std_error: float
    run_std_error: float | None
    rows: int
    groups: int
    runs: tuple[int, int]
    metric: str = "balanced accuracy"


def paired_difference(
    labels: IntArray,
    groups: IntArray,
    one_RN: NDArray[np.floating],
    other_RN: NDArray[np.floating],
    *,
    permutations: int = 10_000,
    resamples: int = 2_000,
    seed: int = 0,
) -> PairedDifference:
    """Compare two models on the same rows.

    Args:
        labels: (N,) true classes.
        groups: (N,) group of each row; rows of one group depend on one another.
        one_RN: (R, N) whether each run of the first model is right (1) or wrong (0); shares where a run is itself a
            mean, for example of the heads on one trained backbone.
        other_RN: (R', N) the same of the second; R' may differ.
        permutations: drawings of the test; the smallest p-value is 1 / (permutations + 1).
        resamples: of the bootstrap.
        seed: of both.

    Raises:
        MetricError: no rows, no runs, or arrays of other lengths.
    """
    rows = len(labels)
    if not rows or not len(one_RN) or not len(other_RN) or permutations < 1 or resamples < 1:
        raise MetricError(f"paired difference: {rows} rows, {len(one_RN)} and {len(other_RN)} runs; 1 of each needed")
    if {len(groups), one_RN.shape[1], other_RN.shape[1]} != {rows}:
        raise MetricError(f"paired difference: {rows} labels, but {len(groups)} groups or other rows of predictions")
    unit_N = np.unique(groups, return_inverse=True)[1]
    counts = np.bincount(labels)
    weight_N = 1.0 / (np.count_nonzero(counts) * counts[labels])
    one_RU, other_RU = (_summed(unit_N, weight_N * runs_RN) for runs_RN in (one_RN, other_RN))
    means_N = one_RN.mean(axis=0), other_RN.mean(axis=0)
    return conclude(
        one_RU,
        other_RU,
        sampling=_sampling_variance(labels, unit_N, weight_N, means_N[0] - means_N[1]),
        drawn=lambda: _bootstrap(labels, unit_N, means_N, resamples=resamples, seed=seed),
        metric="balanced accuracy",
        rows=rows,
        permutations=permutations,
        seed=seed,
    )


def conclude(
    one_RU: FloatArray,
    other_RU: FloatArray,
    *,
    sampling: float,
    drawn: Callable[[], FloatArray],
    metric: str,
    rows: int,
    permutations: int,
    seed: int,
) -> PairedDifference:
    """Test and interval of a score that is a sum over groups.

    Args:
        one_RU: (R, U) what each group adds to the score of each run of the first model; a row sums to that run's score.
        other_RU: (R', U) the same of the second.
        sampling: variance of the difference over draws of groups.
        drawn: gives (S,) differences when groups are drawn with replacement; asked for where there are two groups.
        metric: name of the score.
        rows: that the groups hold.
        permutations: drawings of the test.
        seed: of the test, and of what widens the drawn differences.
    """
    difference_U = one_RU.mean(axis=0) - other_RU.mean(axis=0)
    difference, units = float(difference_U.sum()), len(difference_U)
    common = _common_to_groups(one_RU, other_RU)
    spread, freedom = (0.0, 1) if common is None else common
    random = np.random.default_rng([seed, 0])
    null_P = _sign_flips(difference_U, permutations, random) + spread * random.standard_t(freedom, permutations)
    low, high = None, None
    if units > 1:
        drawn_S = drawn()
        drawn_S = drawn_S + np.random.default_rng([seed, 1]).standard_t(freedom, len(drawn_S)) * spread
        low, high = (float(edge) for edge in np.quantile(drawn_S, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]))
    return PairedDifference(
        one=float(one_RU.mean(axis=0).sum()),
        other=float(other_RU.mean(axis=0).sum()),
        difference=difference,
        low=low,
        high=high,
        p_value=_share(np.abs(null_P) >= abs(difference) - _TIE),
        p_lower=_share(null_P <= difference + _TIE),
        std_error=float(np.sqrt(sampling + spread**2)),
        run_std_error=None if common is None else spread,
        rows=rows,
        groups=units,
        runs=(len(one_RU), len(other_RU)),
        metric=metric,
    )


def smallest_visible(std_error: float, *, alpha: float, beyond: float = 0.0, power: float = 0.95) -> float:
    """Smallest true drop that a one-sided test sees in a share `power` of cases.

    Args:
        std_error: of the difference.
        alpha: level of the test.
        beyond: the estimated drop must be above this too.
        power: share of the cases in which the drop is seen.
    """
    normal = NormalDist()
    reserve = normal.inv_cdf(power) * std_error
    return max(beyond, normal.inv_cdf(1 - alpha) * std_error) + reserve


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values adjusted for their number (Holm 1979): below 5 % is below 5 % for the whole family."""
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, place in enumerate(sorted(range(len(p_values)), key=lambda place: p_values[place])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[place]))
        adjusted[place] = largest
    return adjusted


def _summed(unit_N: IntArray, values_RN: FloatArray) -> FloatArray:
    """(R, U) sums over the rows of each group."""
    units = int(unit_N.max()) + 1
    return np.stack([np.bincount(unit_N, values_N, minlength=units) for values_N in values_RN])


def _common_to_groups(one_RU: FloatArray, other_RU: FloatArray) -> tuple[float, int] | None:
    """Standard error of the difference from what a run has in common over all groups, and its degrees of freedom."""
    runs = [len(one_RU), len(other_RU)]
    freedom = sum(runs) - 2
    if freedom < 1:
        return None
    common = 0.0
    for values_RU in (one_RU, other_RU):
        deviation_RU = values_RU - values_RU.mean(axis=0)
        common += float((deviation_RU.sum(axis=1) ** 2).sum() - (deviation_RU**2).sum())
    return float(np.sqrt(max(0.0, common / freedom) * sum(1 / count for count in runs))), freedom


def _sign_flips(difference_U: FloatArray, permutations: int, random: np.random.Generator) -> FloatArray:
    """(P,) sums of the groups' differences with random signs."""
    units = len(difference_U)
    step = max(1, _SIGNS // units)
    sums = []
    for start in range(0, permutations, step):
        drawn = min(step, permutations - start)
        bits = np.unpackbits(random.integers(0, 256, (drawn, -(-units // 8)), dtype=np.uint8), axis=1, count=units)
        # sum of s_g D_g with s = 2 bit - 1
        sums.append(2 * (bits @ difference_U) - difference_U.sum())
    return np.concatenate(sums)


def _sampling_variance(labels: IntArray, unit_N: IntArray, weight_N: FloatArray, difference_N: FloatArray) -> float:
    """Variance of the difference over draws of groups: the linearised statistic, clustered."""
    units = int(unit_N.max()) + 1
    if units < 2:
        return 0.0
    counts = np.maximum(np.bincount(labels), 1)
    of_class = np.bincount(labels, difference_N) / counts
    residual_U = np.bincount(unit_N, weight_N * (difference_N - of_class[labels]), minlength=units)
    return float(units / (units - 1) * (residual_U**2).sum())


def _bootstrap(
    labels: IntArray, unit_N: IntArray, means_N: tuple[FloatArray, FloatArray], *, resamples: int, seed: int
) -> FloatArray:
    """(S,) differences when groups are drawn with replacement."""
    classes = int(labels.max()) + 1
    true_UC = by_unit(unit_N, labels, classes)
    right_UC = [by_unit(unit_N, labels, classes, mean_N.astype(np.float64)) for mean_N in means_N]
    parts = []
    for times_SU in drawings(len(true_UC), resamples, seed):
        true_SC = times_SU @ true_UC
        one_S, other_S = (mean_recall(times_SU @ of_model_UC, true_SC) for of_model_UC in right_UC)
        parts.append(one_S - other_S)
    return np.concatenate(parts)


def _share(far_P: NDArray[np.bool_]) -> float:
    """Share of the drawings that are as far, the observed one among them."""
    return float((1 + np.count_nonzero(far_P)) / (1 + len(far_P)))
