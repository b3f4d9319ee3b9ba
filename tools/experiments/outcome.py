"""What came out, and do the expected directions hold?

A cell is one row (a run, a model, a baseline) on one task: the mean over training seeds with their standard deviation
or, for one seed, over the probe's runs (or folds). Nothing is left out of a mean, and nothing here can be tuned: a
difference counts where it is at least twice the larger spread of the two, as in `fm-eval report`; what is smaller is
"not shown", what points the other way "does not hold".

Result files are read as the JSON that they are. Before: working. After: writing.
"""

from __future__ import annotations

import csv
import itertools
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, Literal

from scipy.stats import spearmanr

from experiments.definition import Expected
from experiments.errors import ExperimentError

Verdict = Literal["holds", "not shown", "does not hold", "not judged"]

# Chance of a correlation at least so strong among unrelated numbers, below which it counts.
_SIGNIFICANT = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One number.

    Attributes:
        mean: over seeds.
        std: over seeds or, for one seed, over what `over` says; None where there is one value of that, too.
        over: what the spread is over, in words.
        values: one a seed.
    """

    mean: float
    std: float | None
    over: str
    values: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One checkpoint on one task."""

    row: str
    seed: int
    step: int
    task: str
    balanced_accuracy: float
    std: float | None
    odcorr: float | None
    rankme: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """Whether one expected direction holds on one task.

    Attributes:
        text: what is expected.
        task: where.
        row: of what.
        difference: in the expected direction.
        needed: twice the larger spread; None where there is none.
        verdict: see the module.
        why: what was compared, in words.
    """

    text: str
    task: str
    row: str
    difference: float | None
    needed: float | None
    verdict: Verdict
    why: str


Cells = Mapping[tuple[str, str], Cell]


def read_scores(paths: Sequence[Path]) -> tuple[float, list[float]]:
    """Balanced accuracy of one backbone and task: its mean, and the values of probe runs or, of several files, folds.

    Raises:
        ExperimentError: a file that is no result.
    """
    by_file = []
    for path in paths:
        content = _json(path)
        try:
            scores = content["probes"][0]["scores"][content["reported_split"]]["balanced_accuracy"]
        except (KeyError, IndexError, TypeError) as error:
            raise ExperimentError(f"{path}: not a result of `fm-eval run`; delete it and run again") from error
        by_file.append([float(value) for value in scores])
    values = by_file[0] if len(by_file) == 1 else [fmean(one) for one in by_file]
    return fmean(values), values


def read_label_free(paths: Sequence[Path]) -> tuple[float | None, float | None]:
    """ODCorr and RankMe (uncentred) of one backbone and task, of several files their means; None where undefined."""
    found = [_json(path)["unsupervised"] for path in paths]
    by_metric = ([one[name] for one in found if one[name] is not None] for name in ("odcorr", "rankme"))
    odcorr, rankme = (fmean(values) if values else None for values in by_metric)
    return odcorr, rankme


def read_dice(path: Path) -> tuple[float | None, list[float]]:
    """Pooled DICE without background of a result of `fm-eval segment`: mean and values of the runs that converged."""
    content = _json(path)
    values = [
        float(run["scores"][content["reported_split"]]["dice_pooled"])
        for run in content["runs"]
        if run["not_converged"] is None and run["scores"][content["reported_split"]]["dice_pooled"] is not None
    ]
    return (fmean(values) if values else None), values


def read_curve(path: Path, *, row: str, seed: int) -> list[Point]:
    """The points of a `curves.csv` of `fm-eval watch`, by task and step; probes on the reported split (test, else val).

    Raises:
        ExperimentError: no such table.
    """
    with path.open(newline="", encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    if lines and not {"step", "task", "split", "metric", "value", "std"} <= set(lines[0]):
        raise ExperimentError(f"{path}: not a table of `fm-eval watch`; delete its folder and run again")
    splits = {line["split"] for line in lines}
    wanted = "test" if "test" in splits else "val"
    found: dict[tuple[str, int], dict[str, tuple[float, float | None]]] = {}
    for line in lines:
        if line["split"] == wanted and line["value"]:
            value = float(line["value"]), float(line["std"]) if line["std"] else None
            found.setdefault((line["task"], int(line["step"])), {})[line["metric"]] = value
    points = []
    for (task, step), metrics in sorted(found.items()):
        if "balanced_accuracy" not in metrics:
            continue
        mean, std = metrics["balanced_accuracy"]
        odcorr, rankme = (metrics[name][0] if name in metrics else None for name in ("odcorr", "rankme_uncentred"))
        points.append(
            Point(
                row=row,
                seed=seed,
                step=step,
                task=task,
                balanced_accuracy=mean,
                std=std,
                odcorr=odcorr,
                rankme=rankme,
            )
        )
    return points


def cell_of(by_seed: Sequence[tuple[float, Sequence[float]]], *, inner: str) -> Cell:
    """One number from the seeds' means and what is inside of each.

    Args:
        by_seed: mean and inner values of each seed, at least one.
        inner: what the inner values are, in words.
    """
    values = tuple(mean for mean, _ in by_seed)
    if len(values) > 1:
        return Cell(mean=fmean(values), std=stdev(values), over=f"{len(values)} seeds", values=values)
    inside = by_seed[0][1]
    std = stdev(inside) if len(inside) > 1 else None
    return Cell(mean=values[0], std=std, over=f"{len(inside)} {inner}", values=values)


def judge(
    expected: Sequence[Expected], cells: Cells, points: Sequence[Point], *, rows: Sequence[str], tasks: Sequence[str]
) -> list[Judgement]:
    """Every expected direction on every task.

    Args:
        expected: the directions.
        cells: numbers by (row, task).
        points: of the learning curves, and of everything that a relation is about.
        rows: of the runs, in the table's order.
        tasks: of the table.
    """
    found = []
    for one in expected:
        for task in one.tasks or tasks:
            if one.kind == "above":
                found += [_above(one, cells, row, task) for row in one.rows or rows]
            elif one.kind == "not_falling":
                ordered = one.rows or tuple(rows)
                pairs = list(itertools.pairwise(ordered))
                # Steps that are each within the spread may add up to a fall that is not.
                pairs += [(ordered[0], ordered[-1])] if len(pairs) > 1 else []
                found += [_not_falling(one, cells, *pair, task) for pair in pairs]
            elif one.kind == "faster":
                found.append(_faster(one, points, task))
            else:
                found.append(_falls_with_odcorr(one, points, task))
    return found


def verdict_counts(judgements: Iterable[Judgement]) -> dict[Verdict, int]:
    """How often each verdict was given, in the order in which they first were."""
    return dict(Counter(one.verdict for one in judgements))


def _above(one: Expected, cells: Cells, row: str, task: str) -> Judgement:
    assert one.than is not None, "the definition names the other row"
    why = f"{row} against {one.than}"
    return _by_difference(one, cells.get((row, task)), cells.get((one.than, task)), row=row, task=task, why=why)


def _not_falling(one: Expected, cells: Cells, less: str, more: str, task: str) -> Judgement:
    judged = _by_difference(
        one, cells.get((more, task)), cells.get((less, task)), row=more, task=task, why=f"{more} after {less}"
    )
    if judged.difference is None or judged.needed is None:
        return replace(judged, verdict="not judged")
    # "Not worse" asks for less than "better".
    verdict: Verdict = "holds" if judged.difference >= 0 else "not shown"
    if judged.difference < 0 and judged.difference <= -judged.needed:
        verdict = "does not hold"
    return replace(judged, verdict=verdict)


def _by_difference(one: Expected, cell: Cell | None, other: Cell | None, *, row: str, task: str, why: str) -> Judgement:
    if cell is None or other is None:
        return Judgement(
            text=one.text, task=task, row=row, difference=None, needed=None, verdict="not judged", why=f"{why}: missing"
        )
    difference = cell.mean - other.mean
    spreads = [each.std for each in (cell, other) if each.std is not None]
    needed = 2 * max(spreads) if spreads else None
    verdict: Verdict = "does not hold" if difference <= 0 else "not shown"
    if needed is not None and difference > 0 and difference >= needed:
        verdict = "holds"
    return Judgement(text=one.text, task=task, row=row, difference=difference, needed=needed, verdict=verdict, why=why)


def _faster(one: Expected, points: Sequence[Point], task: str) -> Judgement:
    """The mean height of two learning curves over the steps that both have."""
    (row,), other = one.rows, one.than
    heights: dict[str, dict[int, list[Point]]] = {}
    for point in points:
        if point.task == task and point.row in (row, other):
            heights.setdefault(point.row, {}).setdefault(point.seed, []).append(point)
    curves = [{point.step for point in curve} for seeds in heights.values() for curve in seeds.values()]
    shared = set.intersection(*curves) if len(heights) == 2 else set()
    cells: dict[tuple[str, str], Cell] = {}
    for name, seeds in heights.items():
        by_seed = []
        for curve in seeds.values():
            at = [point for point in curve if point.step in shared]
            if at:
                # Of one seed the spread is the probe's, on average over the checkpoints.
                mean, spread = fmean(p.balanced_accuracy for p in at), fmean(p.std or 0.0 for p in at)
                by_seed.append((mean, [mean - spread, mean, mean + spread]))
        if by_seed:
            cells[name, task] = cell_of(by_seed, inner="probe runs")
    why = f"mean height of the curves of {row} and {other} over {len(shared)} checkpoints"
    return _by_difference(one, cells.get((row, task)), cells.get((str(other), task)), row=row, task=task, why=why)


def _falls_with_odcorr(one: Expected, points: Sequence[Point], task: str) -> Judgement:
    """Spearman's rank correlation of accuracy and ODCorr over all checkpoints of a task."""
    pairs = [(p.odcorr, p.balanced_accuracy) for p in points if p.task == task and p.odcorr is not None]
    why = f"rank correlation of accuracy and ODCorr over {len(pairs)} checkpoints"
    if len(pairs) < 4:
        return Judgement(
            text=one.text,
            task=task,
            row="all",
            difference=None,
            needed=None,
            verdict="not judged",
            why=f"{why}: too few",
        )
    odcorr, accuracy = zip(*pairs, strict=True)
    found = spearmanr(odcorr, accuracy)
    rho, chance = float(found.statistic), float(found.pvalue)
    verdict: Verdict = "does not hold" if not rho < 0 else "holds" if chance < _SIGNIFICANT else "not shown"
    why += f": {rho:+.2f}, p = {chance:.3f}"
    return Judgement(text=one.text, task=task, row="all", difference=None, needed=None, verdict=verdict, why=why)


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ExperimentError(f"{path}: not a readable result ({error}); delete it and run again") from error
