"""What do the further metrics and heads say, beside balanced accuracy of the linear probe?

Two tables of the report: every metric of the headline probe with its bootstrap interval, and balanced accuracy of the
other heads. Undefined values show their reason. Before: compare. After: report.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from statistics import fmean

from fm_eval.compare import Group
from fm_eval.page import note, table, undefined
from fm_eval.scores import Scores

_NAMES = {
    "balanced_accuracy": "Balanced accuracy",
    "accuracy": "Accuracy",
    "f1": "F1",
    "auroc": "AUROC",
    "log_loss": "Log loss",
    "calibration_error": "Calibration error",
}


def metrics_section(groups: Sequence[Group], protocol: str, split: str) -> str:
    """Metrics of the headline probe and other heads on one split, as HTML; empty for results of format version 1."""
    scores = {group.label: group.scores(protocol, split) for group in groups}
    if not all(one.metrics for of_group in scores.values() for one in of_group):
        return ""
    rows = [[escape(label), *(_metric(of_group, name) for name in _NAMES)] for label, of_group in scores.items()]
    parts = [
        "<h3>Further metrics</h3>",
        note("Means over results and runs. " + _note(scores[groups[0].label][0])),
        table(f"Linear probe, protocol {protocol}, on {split}", ["Model", *_NAMES.values()], rows),
    ]
    heads = list(dict.fromkeys(head.name for group in groups for head in group.results[0].heads))
    shots = [one.shots for one in groups[0].results[0].few_shot.shots] if groups[0].results[0].few_shot else []
    if heads or shots:
        columns = [*heads, *(f"{count} shot{'s' if count > 1 else ''}" for count in shots)]
        rows = [
            [escape(group.label), *(_head(group, name, split) for name in heads), *(_shots(group, n) for n in shots)]
            for group in groups
        ]
        parts.append(table(f"Balanced accuracy of other heads on {split}", ["Model", *map(escape, columns)], rows))
    return "".join(parts)


def _note(scores: Scores) -> str:
    intervals = scores.intervals
    if intervals is None:
        return "No intervals were asked for."
    unit = "patients or groups" if intervals.unit == "group" else "rows"
    return (
        f"Below: {intervals.level:.0%} bootstrap interval of one result's mean over runs, "
        f"{intervals.resamples} resamples of {intervals.units} {unit}."
    )


def _metric(of_group: Sequence[Scores], name: str) -> str:
    values = []
    for scores in of_group:
        by_run = [value for value in scores.by_run(name) if value is not None]
        if len(by_run) < len(scores.balanced_accuracy):
            return undefined(scores.undefined.get(name, "undefined"))
        values.append(fmean(by_run))
    bounds = of_group[0].intervals.bounds.get(name) if of_group[0].intervals else None
    interval = f"<br><small>{bounds[0]:.3f} to {bounds[1]:.3f}</small>" if bounds and len(of_group) == 1 else ""
    return f"{fmean(values):.3f}{interval}"


def _head(group: Group, name: str, split: str) -> str:
    found = [head for result in group.results for head in result.heads if head.name == name]
    reasons = [head.undefined or "not run" for head in found if split not in head.scores]
    if reasons or len(found) < len(group.results):
        return undefined(reasons[0] if reasons else "not run for every result")
    return f"{fmean(head.scores[split].mean for head in found):.3f}"


def _shots(group: Group, count: int) -> str:
    found = [one for result in group.results if result.few_shot for one in result.few_shot.shots if one.shots == count]
    if len(found) < len(group.results):
        return undefined("not run for every result")
    return f"{fmean(fmean(one.balanced_accuracy) for one in found):.3f}"
