"""Has a model become worse than its baseline, by more than is allowed and more than chance?

A task fails if its estimated drop of balanced accuracy (in segmentation of pooled DICE) is above what is allowed *and*
the drop is shown: a one-sided paired test that knows groups and runs, at 1 % for all tasks together (Holm). So noise
alone fails one pull request in a hundred at most, and a gate that is asked for more than it can see says so: the
smallest drop that it would catch in 95 of 100 cases stands beside every verdict.

Before: comparison. After: compare_cli.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fm_eval.comparison import Comparable, by_task, check_same_rows, difference_of, predicted_of
from fm_eval.errors import ReportError
from fm_eval.significance import PairedDifference, holm, smallest_visible

# A red light without a cause is worse here than in a table: it teaches people to press the button again.
GATE_ALPHA = 0.01


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskGate:
    """The verdict on one task.

    Attributes:
        task: name of the dataset; in segmentation with the decoder.
        found: new less baseline.
        max_drop: that is allowed.
        p_adjusted: one-sided, that the new one is not worse; corrected for all tasks.
        smallest_visible: drop that is caught in 95 of 100 cases.
        groups_known: False where rows had to be taken for independent.
    """

    task: str
    found: PairedDifference
    max_drop: float
    p_adjusted: float
    smallest_visible: float
    groups_known: bool

    @property
    def drop(self) -> float:
        """Estimated drop; below zero where the new one is better."""
        return -self.found.difference

    @property
    def passed(self) -> bool:
        """Unless the drop is both larger than allowed and shown."""
        return self.drop <= self.max_drop or self.p_adjusted > GATE_ALPHA


def gate(
    new: Sequence[Comparable],
    baseline: Sequence[Comparable],
    *,
    max_drop: float,
    permutations: int = 10_000,
    resamples: int = 2_000,
    seed: int = 0,
) -> list[TaskGate]:
    """Hold results against a baseline on each of its tasks.

    Args:
        new: results of the model in question; several on the same rows are training seeds.
        baseline: results of what it must not fall below.
        max_drop: of the metric of each task that is allowed, 0.01 is one point.
        permutations: see `paired_difference`.
        resamples: see `paired_difference`.
        seed: of both.

    Raises:
        ReportError: no results, a task of the baseline that was not evaluated, other data or protocol, or a max_drop
            that is no share.
    """
    if not 0 <= max_drop < 1:
        raise ReportError(f"compare: got max_drop {max_drop}, allowed are shares from 0 to below 1 (0.01 is one point)")
    theirs, mine = by_task(baseline), by_task(new)
    absent = [task for task in theirs if task not in mine]
    if absent or not theirs:
        raise ReportError(
            f"compare: the baseline has task {', '.join(absent) or 'none'}, which the new results lack; "
            f"they have {', '.join(mine) or 'none'}"
        )
    found = []
    for task, old in theirs.items():
        check_same_rows(task, mine[task], old)
        one, other = predicted_of(mine[task]), predicted_of(old)
        drawn = {"permutations": permutations, "resamples": resamples, "seed": seed}
        found.append((task, difference_of(one, other, **drawn), one.groups_known and other.groups_known))
    return judge(found, max_drop=max_drop)


def judge(found: Sequence[tuple[str, PairedDifference, bool]], *, max_drop: float) -> list[TaskGate]:
    """Verdicts on (task, new less baseline, whether groups are known), corrected for their number."""
    adjusted = holm([difference.p_lower for _, difference, _ in found])
    return [
        TaskGate(
            task=task,
            found=difference,
            max_drop=max_drop,
            p_adjusted=p,
            smallest_visible=smallest_visible(difference.std_error, alpha=GATE_ALPHA / len(found), beyond=max_drop),
            groups_known=known,
        )
        for (task, difference, known), p in zip(found, adjusted, strict=True)
    ]


def markdown(gates: Sequence[TaskGate]) -> str:
    """A short summary for a pull request."""
    passed = all(one.passed for one in gates)
    allowed, metrics = gates[0].max_drop, " and ".join(dict.fromkeys(one.found.metric for one in gates))
    lines = [
        f"### fm-eval gate: {'passed' if passed else 'failed'}",
        "",
        f"Allowed drop of {metrics}: {100 * allowed:g} points; a task fails if it dropped by more and the drop "
        f"is shown (one-sided paired test by groups and runs, {100 * GATE_ALPHA:g} % for all tasks together).",
        "",
        "| task | baseline | new | change (95 % interval) | p | smallest drop it can see | verdict |",
        "|---|---|---|---|---|---|---|",
    ]
    for one in gates:
        found = one.found
        interval = "" if found.low is None else f" ({_points(found.low)} to {_points(found.high or 0)})"
        verdict = "failed" if not one.passed else "passed"
        lines.append(
            f"| {one.task.replace('|', '/')} | {found.other:.3f} | {found.one:.3f} | "
            f"{_points(found.difference)}{interval} | {one.p_adjusted:.3g} | "
            f"{100 * one.smallest_visible:.1f} points | {verdict} |"
        )
    lines += ["", *(f"- {remark}" for one in gates for remark in _remarks(one))]
    return "\n".join(lines).rstrip() + "\n"


def _remarks(one: TaskGate) -> list[str]:
    found, remarks = one.found, []
    if one.smallest_visible > 2 * one.max_drop:
        remarks.append(
            f"{one.task}: {found.groups} groups and {min(found.runs)} runs show a drop of "
            f"{100 * one.smallest_visible:.1f} points in 95 of 100 cases, but {100 * one.max_drop:g} are asked for; "
            "more test groups would show less"
        )
    if found.run_std_error is None:
        remarks.append(f"{one.task}: one run each, so noise between runs is not known and not counted")
    if not one.groups_known:
        remarks.append(f"{one.task}: groups (patients) are not known, rows are taken for independent")
    return remarks


def _points(share: float) -> str:
    return f"{100 * share:+.1f}"
