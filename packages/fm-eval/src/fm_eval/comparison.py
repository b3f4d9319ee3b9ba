"""Which of several models is better, on which tasks, and how far is that more than chance?

1. results are sorted by model and task; results of one model on the same rows are its training seeds, and results on
   the folds of one dataset are put together;
2. every two models are compared on every task, row by row (significance), in segmentation image by image;
3. p-values are corrected for all of these tests together (Holm);
4. models are ranked: by mean rank over the tasks, and by what was shown.

Before: result, significance. After: report, compare_cli.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from statistics import fmean
from typing import TypeVar

import numpy as np
from scipy.stats import rankdata

from fm_eval.errors import ReportError
from fm_eval.metrics import FloatArray, IntArray
from fm_eval.packing import unpack
from fm_eval.result import EvalResult, write_atomically
from fm_eval.segmentation.comparing import TaskImages, images_of, settings_of
from fm_eval.segmentation.paired import dice_difference
from fm_eval.segmentation.result import SegmentationResult
from fm_eval.significance import ALPHA, PairedDifference, holm, paired_difference

FORMAT = "fm-eval-comparison"
FORMAT_VERSION = 1

Comparable = EvalResult | SegmentationResult
_Result = TypeVar("_Result", EvalResult, SegmentationResult, Comparable)


@dataclass(frozen=True, slots=True)
class TaskRows:
    """What one model predicted on one task.

    Attributes:
        labels: (N,) true classes.
        groups: (N,) group of each row.
        right: (R, N) whether each run is right; the mean over probe runs of each training seed where there are
            several seeds.
        groups_known: False where each row had to stand for its own group.
        fingerprint: hash of dataset and split, by fold: equal ones have the same rows in the same order.
    """

    labels: IntArray
    groups: IntArray
    right: FloatArray
    groups_known: bool
    fingerprint: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """Two models on one task.

    Attributes:
        task: name of the dataset; in segmentation with the decoder.
        one: name of the first model.
        other: name of the second.
        found: difference of the first less the second.
        p_adjusted: the two-sided p-value, corrected for all tests that were made together.
        groups_known: False where rows had to be taken for independent.
    """

    task: str
    one: str
    other: str
    found: PairedDifference
    p_adjusted: float
    groups_known: bool

    @property
    def shown(self) -> bool:
        """Whether a difference is shown, at 5 % for all tests together."""
        return self.p_adjusted <= ALPHA

    @property
    def better(self) -> str | None:
        """The model that was shown to be better, if one was."""
        return None if not self.shown else self.one if self.found.difference > 0 else self.other

    @property
    def verdict(self) -> str:
        """In words."""
        return "no difference shown" if self.better is None else f"{self.better} is better"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rank:
    """Where a model stands.

    Attributes:
        model: its name.
        mean: of balanced accuracy (pooled DICE in segmentation) over the tasks.
        mean_rank: over the tasks; 1 is best, equals share their ranks.
        better_than: pairs of a task and another model that it was shown to be better on.
        worse_than: the same for worse.
    """

    model: str
    mean: float
    mean_rank: float
    better_than: int
    worse_than: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """All models on all tasks: every pair, and the ranks (best first) over the tasks that all models have."""

    tasks: list[str]
    models: list[str]
    pairs: list[Compared]
    ranks: list[Rank]


def compare_results(
    results: Sequence[_Result],
    *,
    by: Callable[[_Result], str],
    permutations: int = 10_000,
    resamples: int = 2_000,
    seed: int = 0,
) -> Comparison:
    """Compare models pair by pair on every task that both have.

    Args:
        results: of at least two models; several of one model on the same rows are its training seeds.
        by: names the model of a result.
        permutations: see `paired_difference`.
        resamples: see `paired_difference`.
        seed: of both.

    Raises:
        ReportError: fewer than two models, no common task, predictions that are not in the result, or two models that
            were evaluated on other rows or by other protocols.
    """
    models = list(dict.fromkeys(by(result) for result in results))
    if len(models) < 2:
        raise ReportError(
            f"compare: all results are of model {models[0] if models else 'none'!r}, two models needed; "
            "tell them apart by --by role, --by file or --by weights"
        )
    of_model = {model: by_task([result for result in results if by(result) == model]) for model in models}
    tasks = list(dict.fromkeys(task for model in models for task in of_model[model]))
    found = []
    for task in tasks:
        rows = {model: predicted_of(of_model[model][task]) for model in models if task in of_model[model]}
        for one, other in combinations(rows, 2):
            check_same_rows(task, of_model[one][task], of_model[other][task])
            known = rows[one].groups_known and rows[other].groups_known
            drawn = {"permutations": permutations, "resamples": resamples, "seed": seed}
            found.append((task, one, other, difference_of(rows[one], rows[other], **drawn), known))
    if not found:
        raise ReportError("compare: no two models have a task in common; evaluate them on the same data")
    adjusted = holm([pair.p_value for _, _, _, pair, _ in found])
    pairs = [
        Compared(task=task, one=one, other=other, found=pair, p_adjusted=p, groups_known=known)
        for (task, one, other, pair, known), p in zip(found, adjusted, strict=True)
    ]
    return Comparison(tasks=tasks, models=models, pairs=pairs, ranks=_ranks(models, pairs))


def by_task(results: Sequence[_Result]) -> dict[str, list[_Result]]:
    """Results of one model by their dataset (in segmentation with the decoder), in order of first appearance."""
    found: dict[str, list[_Result]] = {}
    for result in results:
        name = str(result.dataset["name"])
        task = f"{name} ({result.decoder['name']})" if isinstance(result, SegmentationResult) else name
        found.setdefault(task, []).append(result)
    return found


def predicted_of(results: Sequence[Comparable]) -> TaskRows | TaskImages:
    """Put together what one model predicted on one task, of either kind (see `rows_of` and `images_of`)."""
    segmented = [result for result in results if isinstance(result, SegmentationResult)]
    if segmented:
        return images_of(segmented)
    return rows_of([result for result in results if isinstance(result, EvalResult)])


def rows_of(results: Sequence[EvalResult]) -> TaskRows:
    """Put together what one model predicted on one task: seeds become runs, folds become rows.

    Raises:
        ReportError: no predictions in a result, folds with other numbers of seeds, or two splits of one dataset that
            are no folds.
    """
    name = results[0].dataset["name"]
    by_hash: dict[str, list[EvalResult]] = {}
    for result in results:
        by_hash.setdefault(result.dataset["sha256"], []).append(result)
    if len(by_hash) > 1 and not all(str(result.dataset["split_source"]).startswith("fold ") for result in results):
        raise ReportError(
            f"compare: {results[0].name} has results on several splits of {name}; give those of one split"
        )
    if len({len(seeds) for seeds in by_hash.values()}) > 1:
        raise ReportError(f"compare: {results[0].name} has folds of {name} with other numbers of training seeds")
    labels, groups, right, shift = [], [], [], 0
    for _, seeds in sorted(by_hash.items()):
        one = [_decoded(result) for result in seeds]
        truth, group_numbers = one[0][0], one[0][1]
        rights = [predicted == truth for _, _, predicted in one]
        labels.append(truth)
        groups.append(group_numbers + shift)
        right.append(np.stack([r.mean(axis=0) for r in rights]) if len(rights) > 1 else rights[0].astype(np.float64))
        shift += int(group_numbers.max()) + 1
    fewest = min(len(runs_RN) for runs_RN in right)
    return TaskRows(
        labels=np.concatenate(labels),
        groups=np.concatenate(groups),
        right=np.concatenate([runs_RN[:fewest] for runs_RN in right], axis=1),
        groups_known=all(bool(result.dataset["groups_known"]) for result in results),
        fingerprint=tuple(sorted(by_hash)),
    )


def check_same_rows(task: str, one: Sequence[Comparable], other: Sequence[Comparable]) -> None:
    """Refuse to compare what was measured otherwise.

    Raises:
        ReportError: other data, split, reported split, headline protocol or settings of segmentation.
    """
    of_one, of_other = ([_facts(result) for result in results] for results in (one, other))
    for what in dict.fromkeys(name for facts in (*of_one, *of_other) for name in facts):
        value, theirs = (sorted({facts.get(what, "none") for facts in of_model}) for of_model in (of_one, of_other))
        if value != theirs or (what != "dataset or split" and len(value) > 1):
            raise ReportError(
                f"compare: {one[0].name} and {other[0].name} on {task} differ in {what} ({', '.join(value)} and "
                f"{', '.join(theirs)}), so their rows cannot be paired; run them alike"
            )


def difference_of(one: TaskRows | TaskImages, other: TaskRows | TaskImages, **drawn: int) -> PairedDifference:
    """The paired difference of two models whose rows were checked to be the same."""
    assert one.fingerprint == other.fingerprint, "check_same_rows comes first"
    if isinstance(one, TaskImages):
        assert isinstance(other, TaskImages), "tasks of one name are of one kind"
        return dice_difference(one.groups, one.seeds, other.seeds, **drawn)
    assert isinstance(other, TaskRows), "tasks of one name are of one kind"
    return paired_difference(one.labels, one.groups, one.right, other.right, **drawn)


def write_comparison(comparison: Comparison, path: Path) -> None:
    """Write a comparison as JSON.

    Raises:
        ResultError: the path cannot be written.
    """
    content = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        **asdict(comparison),
        "pairs": [{**asdict(pair), "verdict": pair.verdict} for pair in comparison.pairs],
    }
    write_atomically(path, json.dumps(content, indent=1, allow_nan=False) + "\n")


def _facts(result: Comparable) -> dict[str, str]:
    """What has to be alike for two results to be compared."""
    facts = {"dataset or split": str(result.dataset["sha256"])[:12], "reported split": result.reported_split}
    if isinstance(result, SegmentationResult):
        return {**facts, **{f"setting {name}": value for name, value in settings_of(result).items()}}
    return {**facts, "headline protocol": str(result.probes[0].protocol["name"])}


def _decoded(result: EvalResult) -> tuple[IntArray, IntArray, IntArray]:
    packed = result.probes[0].predicted
    if packed is None or result.reported_rows is None:
        raise ReportError(
            f"compare: the result {result.name} on {result.dataset['name']} holds no predictions of single rows "
            "(format version 1 or 2); run the evaluation again"
        )
    labels, groups = unpack(result.reported_rows.labels), unpack(result.reported_rows.groups)
    predicted_RN = unpack(packed)
    if labels.ndim != 1 or groups.shape != labels.shape or predicted_RN.shape[1:] != labels.shape:
        raise ReportError(f"compare: the predictions in result {result.name} do not fit its rows; run it again")
    return labels, groups, predicted_RN


def _ranks(models: Sequence[str], pairs: Sequence[Compared]) -> list[Rank]:
    values: dict[str, dict[str, float]] = {}
    for pair in pairs:
        values.setdefault(pair.task, {}).update({pair.one: pair.found.one, pair.other: pair.found.other})
    whole = [of_task for of_task in values.values() if len(of_task) == len(models)]
    ranks = [
        dict(zip(models, rankdata([-of_task[model] for model in models]).tolist(), strict=True)) for of_task in whole
    ]
    found = [
        Rank(
            model=model,
            mean=fmean(of_task[model] for of_task in whole),
            mean_rank=fmean(of_task[model] for of_task in ranks),
            better_than=sum(pair.better == model for pair in pairs),
            worse_than=sum(pair.shown and pair.better != model and model in (pair.one, pair.other) for pair in pairs),
        )
        for model in models
        if whole
    ]
    return sorted(found, key=lambda rank: (rank.mean_rank, -rank.mean))
