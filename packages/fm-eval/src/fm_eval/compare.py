"""Which of several results is better, and is the difference more than the spread?

Results of one role (for example three training seeds of `trained`) form a group; its spread is the standard
deviation over its results or, for a single result, over the probe's runs. A group *beats* another when its
mean balanced accuracy is higher by at least twice the larger of the two spreads. Before: result. After:
report.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev

from fm_eval.errors import ReportError
from fm_eval.result import EvalResult, write_atomically
from fm_eval.scores import Scores


@dataclass(frozen=True, slots=True)
class Estimate:
    """Mean and spread of balanced accuracy.

    Attributes:
        mean: over results of the means over probe runs.
        std: over results, or over the probe's runs where there is one result; None where neither can be had.
        over: what the spread is over, in words.
        values: what was averaged: one per result, or one per run where there is one result.
    """

    mean: float
    std: float | None
    over: str
    values: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Group:
    """Results of one role."""

    role: str
    results: tuple[EvalResult, ...]

    @property
    def label(self) -> str:
        """The result's own name if there is one result, else the role."""
        return self.results[0].name if len(self.results) == 1 else f"{self.role} ({len(self.results)} seeds)"

    def scores(self, protocol: str, split: str) -> list[Scores]:
        """Scores of every result on one split; empty if one of them lacks the protocol or split."""
        probes = [result.probe(protocol) for result in self.results]
        found = [probe.scores[split] for probe in probes if probe is not None and split in probe.scores]
        return found if len(found) == len(self.results) else []

    def estimate(self, protocol: str, split: str) -> Estimate | None:
        """Balanced accuracy under one protocol on one split; None if it was not measured."""
        scores = self.scores(protocol, split)
        if not scores:
            return None
        if len(scores) == 1:
            runs = tuple(scores[0].balanced_accuracy)
            return Estimate(scores[0].mean, scores[0].std, f"{len(runs)} probe runs", runs)
        means = tuple(score.mean for score in scores)
        return Estimate(fmean(means), stdev(means), f"{len(means)} training seeds", means)


@dataclass(frozen=True, slots=True)
class Comparison:
    """Whether one group beats another.

    Attributes:
        difference: of the means.
        needed: twice the larger spread; None when no spread is known.
    """

    difference: float
    needed: float | None

    @property
    def beats(self) -> bool:
        """Ahead by at least twice the larger spread."""
        return self.needed is not None and self.difference > 0 and self.difference >= self.needed


def group_by_role(results: Sequence[EvalResult]) -> list[Group]:
    """Group results by role, in order of first appearance, after checking that they may be compared.

    Raises:
        ReportError: no results, or results of different datasets or headline protocols.
    """
    if not results:
        raise ReportError("report: no results given")
    first = results[0]
    for other in results[1:]:
        for what, mine, yours in (
            ("dataset", first.dataset["sha256"][:12], other.dataset["sha256"][:12]),
            ("headline protocol", first.probes[0].protocol, other.probes[0].protocol),
        ):
            if mine != yours:
                shown = (mine["name"], yours["name"]) if isinstance(mine, dict) else (mine, yours)
                raise ReportError(
                    f"report: {first.name} and {other.name} differ in {what} ({shown[0]} and {shown[1]}), "
                    "so their numbers cannot stand side by side; run them alike"
                )
    roles = list(dict.fromkeys(result.role for result in results))
    return [Group(role, tuple(result for result in results if result.role == role)) for role in roles]


def compare(one: Estimate, other: Estimate) -> Comparison:
    """Compare two estimates of balanced accuracy."""
    spreads = [std for std in (one.std, other.std) if std is not None]
    return Comparison(one.mean - other.mean, 2 * max(spreads) if spreads else None)


def summarise(results: Sequence[EvalResult]) -> dict[str, dict[str, float | int | str | None]]:
    """Headline balanced accuracy by role: mean, std, what the std is over, number of results.

    Raises:
        ReportError: the results cannot be compared (see `group_by_role`).
    """
    summary: dict[str, dict[str, float | int | str | None]] = {}
    for group in group_by_role(results):
        estimate = headline(group)
        summary[group.role] = {
            "mean": estimate.mean,
            "std": estimate.std,
            "std_over": estimate.over,
            "results": len(group.results),
        }
    return summary


def write_summary(results: Sequence[EvalResult], path: str | Path) -> None:
    """Write `summarise(results)` as JSON with a `format_version`.

    Raises:
        ReportError: the results cannot be compared.
        ResultError: the path cannot be written.
    """
    content = {"format": "fm-eval-summary", "format_version": 1, **summarise(results)}
    write_atomically(Path(path), json.dumps(content, indent=1, allow_nan=False) + "\n")


def headline(group: Group) -> Estimate:
    """Balanced accuracy under the first protocol on the reported split."""
    first = group.results[0]
    estimate = group.estimate(first.probes[0].protocol["name"], first.reported_split)
    assert estimate is not None, "every result has its headline protocol on its reported split"
    return estimate


def verdict(groups: Sequence[Group]) -> tuple[bool, str]:
    """Say plainly whether `trained` beats both `random` and `colour`.

    Returns:
        Whether it beats both, and the sentences.
    """
    by_role = {group.role: headline(group) for group in groups}
    baselines = {"random": "the random initialisation", "colour": "the colour probe"}
    if "trained" not in by_role:
        return False, "No trained model among these results, so nothing is compared with a baseline."
    trained = by_role["trained"]
    won, lost = [], []
    for role, words in baselines.items():
        if role not in by_role:
            continue
        result = compare(trained, by_role[role])
        figure = f"{words} ({pm(by_role[role])}, difference {result.difference:+.3f})"
        if result.beats:
            won.append(figure)
        elif result.difference <= 0:
            lost.append(f"{figure}, which is not below it")
        elif result.needed is None:
            lost.append(f"{figure}, a lead with no known spread to judge it by")
        else:
            lost.append(f"{figure}, a lead smaller than twice the larger std ({result.needed:.3f})")
    absent = [words for role, words in baselines.items() if role not in by_role]
    start = f"The trained model (balanced accuracy {pm(trained)} over {trained.over})"
    if lost:
        text = f"{start} does not beat {' nor '.join(lost)}."
        text += f" It beats {won[0]}." if won else ""
    elif won:
        text = f"{start} beats {'both ' if len(won) == 2 else ''}{' and '.join(won)}."
    else:
        text = f"{start} stands alone."
    if absent:
        text += f" Not compared: {' and '.join(absent)} (no such result given)."
    return len(won) == 2, text


def pm(estimate: Estimate) -> str:
    """`0.912 ± 0.004`, or the mean alone."""
    return f"{estimate.mean:.3f}" + ("" if estimate.std is None else f" ± {estimate.std:.3f}")
