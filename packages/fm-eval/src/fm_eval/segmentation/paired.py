"""Is the difference in pooled DICE of two models on the same images more than chance?

As for classification (significance), with images in place of rows: groups of images are swapped for the test and drawn
for the interval. Pooled DICE of a class, D = 2 H / S with the overlap H and S true and predicted pixels together, is a
ratio of sums over images. With the mean level m = (D + D') / 2 of two runs, one of each model, a group adds to their
difference

    (2 (h_g - h_g') - m (s_g - s_g')) / ((S + S') / 2)

which sums to D - D' exactly and is zero where both predict the same: what a model spoils in one image counts in that
image alone, while 2 h_g / S - 2 h_g' / S' would spread it over all of them.

The mean is over the classes that the truth of the images holds, without background. Pure: counts in, numbers out.
Before: dice. After: comparison.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from fm_eval.errors import MetricError
from fm_eval.intervals import drawings
from fm_eval.metrics import FloatArray, IntArray
from fm_eval.significance import PairedDifference, conclude


def image_counts(matrices_NCC: IntArray) -> IntArray:
    """(N, 3, C) overlap, true and predicted pixels of each class, from (N, C, C) confusion matrices of N images."""
    hits = np.diagonal(matrices_NCC, axis1=1, axis2=2)
    return np.stack([hits, matrices_NCC.sum(axis=2), matrices_NCC.sum(axis=1)], axis=1)


def dice_difference(
    groups: IntArray,
    one: Sequence[IntArray],
    other: Sequence[IntArray],
    *,
    permutations: int = 10_000,
    resamples: int = 2_000,
    seed: int = 0,
) -> PairedDifference:
    """Compare two models by pooled DICE without background.

    Args:
        groups: (N,) group of each image; images of one group depend on one another.
        one: (R, N, 3, C) counts (`image_counts`) of the runs of each training seed of the first model, with the same
            truth in all; the runs of a seed are averaged where there are several seeds.
        other: the same of the second.
        permutations: drawings of the test.
        resamples: of the bootstrap.
        seed: of both.

    Raises:
        MetricError: no image, no run, or no pixel of any class beside the background.
    """
    runs = [len(one), len(other), *(len(counts) for counts in (*one, *other))]
    if min(len(groups), permutations, resamples, *runs) < 1:
        raise MetricError(f"paired DICE: {len(groups)} images; an image, a run of each model and a drawing needed")
    unit_N = np.unique(groups, return_inverse=True)[1]
    true_UC = _by_unit(unit_N, one[0][0, None, :, 1, 1:])[0]
    held = true_UC.sum(axis=0) > 0
    if not held.any():
        raise MetricError("paired DICE: the truth of the images is all background, so DICE is undefined")
    models = [_Runs(seeds, unit_N, held) for seeds in (one, other)]
    parts = _parts(*models)
    residual_U, units = models[0].about_own_level() - models[1].about_own_level(), len(true_UC)

    def drawn() -> FloatArray:
        differences = []
        for times_SU in drawings(units, resamples, seed):
            there_SC = times_SU @ true_UC[:, held] > 0
            some_S = there_SC.any(axis=1)  # the others hold no class, so that they say nothing
            one_S, other_S = (model.drawn(times_SU[some_S], there_SC[some_S]) for model in models)
            differences.append(one_S - other_S)
        return np.concatenate(differences)

    return conclude(
        *parts,
        sampling=float(units / (units - 1) * (residual_U**2).sum()) if units > 1 else 0.0,
        drawn=drawn,
        metric="pooled DICE",
        rows=len(groups),
        permutations=permutations,
        seed=seed,
    )


class _Runs:
    """All decoder runs of one model by group and class.

    Attributes:
        twice_RUC: twice the overlap, pixels.
        both_RUC: true and predicted pixels together.
        dice_RC: pooled DICE.
        mean_SR: what makes means over the runs of each training seed of values by run; with a single seed the runs
            stand for themselves.
    """

    def __init__(self, seeds: Sequence[IntArray], unit_N: IntArray, held: NDArray[np.bool_]) -> None:
        counts_RNKC = np.concatenate(seeds)[..., 1:][..., held]
        self.twice_RUC = 2 * _by_unit(unit_N, counts_RNKC[:, :, 0])
        self.both_RUC = _by_unit(unit_N, counts_RNKC[:, :, 1] + counts_RNKC[:, :, 2])
        self.dice_RC = self.twice_RUC.sum(axis=1) / self.both_RUC.sum(axis=1)
        self.mean_SR = np.eye(len(counts_RNKC))
        if len(seeds) > 1:
            lengths = [len(runs) for runs in seeds]
            self.mean_SR = np.repeat(np.diag([1 / length for length in lengths]), lengths, axis=1)

    def mean(self) -> float:
        """Pooled DICE, mean over classes, runs and seeds."""
        return float((self.mean_SR @ self.dice_RC).mean())

    def about_own_level(self) -> FloatArray:
        """(U,) how far each group pulls the mean DICE up or down: the linearised statistic."""
        excess_RUC = self.twice_RUC - self.dice_RC[:, None] * self.both_RUC
        excess_RU: FloatArray = (excess_RUC / self.both_RUC.sum(axis=1, keepdims=True)).mean(axis=2)
        return np.asarray((self.mean_SR @ excess_RU).mean(axis=0))

    def drawn(self, times_SU: FloatArray, there_SC: NDArray[np.bool_]) -> FloatArray:
        """(S,) mean DICE of drawn groups over the classes that they hold."""
        runs = zip(self.twice_RUC, self.both_RUC, strict=True)
        dice_RSC = np.stack([times_SU @ twice / np.maximum(times_SU @ both, 1) for twice, both in runs])
        dice_RS = (dice_RSC * there_SC).sum(axis=2) / there_SC.sum(axis=1)
        return np.asarray((self.mean_SR @ dice_RS).mean(axis=0))


def _parts(one: _Runs, other: _Runs) -> tuple[FloatArray, FloatArray]:
    """(R, U) and (R', U) what each group adds to the DICE of each run (or seed) of both models."""
    pairs_RQU = np.zeros((len(one.dice_RC), len(other.dice_RC), one.both_RUC.shape[1]))
    for number in range(one.dice_RC.shape[1]):
        both_RU, both_QU = one.both_RUC[:, None, :, number], other.both_RUC[None, :, :, number]
        level_RQ1 = (one.dice_RC[:, None, None, number] + other.dice_RC[None, :, None, number]) / 2
        gain_RQU = one.twice_RUC[:, None, :, number] - other.twice_RUC[None, :, :, number]
        gain_RQU = gain_RQU - level_RQ1 * (both_RU - both_QU)
        pairs_RQU += gain_RQU * 2 / (both_RU.sum(axis=2, keepdims=True) + both_QU.sum(axis=2, keepdims=True))
    pairs_RQU /= one.dice_RC.shape[1]
    pairs_SZU = np.einsum("sr,zq,rqu->szu", one.mean_SR, other.mean_SR, pairs_RQU)
    # The difference is halved between the models; what a run has more or less than the others of its model is its own.
    of_one_SU, of_other_ZU = pairs_SZU.mean(axis=1), -pairs_SZU.mean(axis=0)
    half_U, shared = pairs_SZU.mean(axis=(0, 1)) / 2, (one.mean() + other.mean()) / 2 / pairs_SZU.shape[2]
    return shared + of_one_SU - half_U, shared + of_other_ZU + half_U


def _by_unit(unit_N: IntArray, values_RNC: IntArray) -> FloatArray:
    """(R, U, C) sums over the images of each group."""
    sums_URC = np.zeros((int(unit_N.max()) + 1, len(values_RNC), values_RNC.shape[2]))
    np.add.at(sums_URC, unit_N, values_RNC.swapaxes(0, 1))
    return sums_URC.swapaxes(0, 1)
