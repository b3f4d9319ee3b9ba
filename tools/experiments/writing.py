"""In which files does the outcome stand? `table.md` and `plot.svg` for people, two more for programs.

The paper's numbers stand beside ours, with the name of their table. At pocket scale they are of other slides, tasks and
models and are there to show the pattern that is looked for, not to be reached; the text says so.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from panel_plot import Panel, Series, render

from experiments.definition import Experiment
from experiments.outcome import Cell, Cells, Judgement, Point, verdict_counts

FORMAT, FORMAT_VERSION = "experiment-outcome", 1
_PAPER = "paper"


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """All of an experiment.

    Attributes:
        experiment: what it was.
        seeds: training seeds.
        rows: of the table, in order.
        tasks: of the table, in order.
        cells: numbers by (row, task).
        points: of learning curves and relations.
        judgements: whether the expected directions hold.
        metric: what the cells are.
        missing: what was left out and where to get it.
        results: row and result file of what `fm-eval report` shows.
        pictures: further files, relative to the folder.
    """

    experiment: Experiment
    seeds: int
    rows: Sequence[str]
    tasks: Sequence[str]
    cells: Cells
    points: Sequence[Point]
    judgements: Sequence[Judgement]
    metric: str = "balanced accuracy"
    missing: Sequence[str] = ()
    results: Sequence[tuple[str, Path]] = ()
    pictures: Mapping[str, str] = field(default_factory=dict)


def write_outcome(outcome: Outcome, folder: Path) -> list[Path]:
    """Write all files of an outcome; returns them."""
    folder.mkdir(parents=True, exist_ok=True)
    texts = {
        "table.csv": table_csv(outcome),
        "plot.svg": plot(outcome),
        "outcome.json": outcome_json(outcome),
        "table.md": table_markdown(outcome),
    }
    paths = []
    for name, text in texts.items():
        path, partial = folder / name, folder / f"{name}.partial"
        partial.write_text(text, encoding="utf-8")
        paths.append(partial.replace(path))
    return paths


def table_csv(outcome: Outcome) -> str:
    """row,task,value,std,over and, where the paper has that row and task, its number."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["row", "task", "value", "std", "over", "published", "published_std", "source"])
    published = {(one.row, one.task): one for one in outcome.experiment.published}
    source = f"{_PAPER}, {outcome.experiment.source}"
    for row in outcome.rows:
        for task in outcome.tasks:
            cell, known = outcome.cells.get((row, task)), published.pop((row, task), None)
            ours = ["", "", ""] if cell is None else [f"{cell.mean:.6f}", _csv_number(cell.std), cell.over]
            theirs = ["", "", ""] if known is None else [f"{known.value:g}", _csv_number(known.std), source]
            writer.writerow([row, task, *ours, *theirs])
    for known in published.values():
        writer.writerow([known.row, known.task, "", "", "", f"{known.value:g}", _csv_number(known.std), source])
    return out.getvalue()


def table_markdown(outcome: Outcome) -> str:
    """The page for people."""
    experiment = outcome.experiment
    lines = [f"# {experiment.title}", ""]
    seeds = "one seed" if outcome.seeds == 1 else f"{outcome.seeds} seeds"
    lines += [f"The paper's {experiment.source}, {experiment.scale} scale, {seeds}: {outcome.metric}.", ""]
    if experiment.scale == "pocket":
        lines += [
            "Slides, tasks and models are small stand-ins: what the paper shows is a pattern to look for, no number to "
            "be reached.",
            "",
        ]
    if experiment.note:
        lines += [experiment.note, ""]
    lines += [*_table(outcome), ""]
    spreads = sorted({cell.over for cell in outcome.cells.values() if cell.std is not None})
    if spreads:
        lines += [f"± is the standard deviation over {' or '.join(spreads)}.", ""]
    if outcome.seeds == 1:
        lines += ["Of one seed it is the probe's alone: another training may differ by more; `--seeds 3` tells.", ""]
    lines += [*_expected(outcome), "![plot](plot.svg)", ""]
    lines += [f"- [{text}]({path})" for path, text in outcome.pictures.items()]
    if outcome.missing:
        lines += ["", "## Left out", "", *(f"- {line}" for line in outcome.missing)]
    return "\n".join(lines).rstrip() + "\n"


def outcome_json(outcome: Outcome) -> str:
    """Everything, for programs."""
    content = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "experiment": outcome.experiment.name,
        "source": outcome.experiment.source,
        "scale": outcome.experiment.scale,
        "seeds": outcome.seeds,
        "metric": outcome.metric,
        "cells": [{"row": row, "task": task, **asdict(cell)} for (row, task), cell in sorted(outcome.cells.items())],
        "points": [asdict(point) for point in outcome.points],
        "judgements": [asdict(one) for one in outcome.judgements],
        "published": [asdict(one) for one in outcome.experiment.published],
        "missing": list(outcome.missing),
    }
    return json.dumps(content, indent=1, allow_nan=False) + "\n"


def plot(outcome: Outcome) -> str:
    """The picture: learning curves and relations where there are points, else the table's cells."""
    experiment = outcome.experiment
    title = f"{experiment.title} ({experiment.source}, {experiment.scale} scale)"
    if experiment.kind == "relation":
        return render(_relations(outcome), title=title)
    panels = [_curves(outcome, task) for task in _tasks_of_points(outcome)]
    panels += [_dots(outcome, task) for task in outcome.tasks if any(key[1] == task for key in outcome.cells)]
    paper_tasks = [task for task in dict.fromkeys(p.task for p in experiment.published) if task not in outcome.tasks]
    panels += [_published_dots(outcome, task) for task in paper_tasks]
    return render(panels, title=title)


def _table(outcome: Outcome) -> list[str]:
    published = {(one.row, one.task): one for one in outcome.experiment.published}
    theirs = list(dict.fromkeys(one.task for one in outcome.experiment.published))
    rows = list(dict.fromkeys([*outcome.rows, *(one.row for one in outcome.experiment.published)]))
    source = outcome.experiment.source
    lines = [_line(["", *outcome.tasks, *(f"{task} ({_PAPER}, {source})" for task in theirs)])]
    lines.append(_line(["---"] * (1 + len(outcome.tasks) + len(theirs))))
    for row in rows:
        ours = [_shown(outcome.cells.get((row, task))) for task in outcome.tasks]
        known = [published.get((row, task)) for task in theirs]
        lines.append(_line([row, *ours, *("" if one is None else _pm(one.value, one.std) for one in known)]))
    return lines


def _expected(outcome: Outcome) -> list[str]:
    if not outcome.judgements:
        return []
    counts = verdict_counts(outcome.judgements)
    summary = ", ".join(f"{count} {verdict}" for verdict, count in counts.items())
    lines = [f"## Expected directions: {summary}", ""]
    lines += [
        "A difference counts where it is at least twice the larger spread; every planned comparison is listed.",
        "",
    ]
    lines += [_line(["expected", "task", "compared", "difference", "needed", "verdict"]), _line(["---"] * 6)]
    for one in outcome.judgements:
        difference = "" if one.difference is None else f"{one.difference:+.3f}"
        needed = "" if one.needed is None else f"{one.needed:.3f}"
        verdict = one.verdict if one.verdict == "holds" else f"**{one.verdict}**"
        lines.append(_line([one.text, one.task, one.why, difference, needed, verdict]))
    return [*lines, ""]


def _curves(outcome: Outcome, task: str) -> Panel:
    rows = dict.fromkeys(point.row for point in outcome.points if point.task == task)
    series = []
    for row in rows:
        by_step: dict[int, list[float]] = {}
        for point in outcome.points:
            if (point.row, point.task) == (row, task):
                by_step.setdefault(point.step, []).append(point.balanced_accuracy)
        steps = sorted(by_step)
        means = [sum(by_step[step]) / len(by_step[step]) for step in steps]
        half = [(max(by_step[step]) - min(by_step[step])) / 2 for step in steps]
        series.append(Series(name=row, x=steps, y=means, spread=half, joined=True))
    return Panel(title=f"{task} while training", x_label="optimizer steps", y_label=outcome.metric, series=series)


def _dots(outcome: Outcome, task: str) -> Panel:
    rows = [row for row in outcome.rows if (row, task) in outcome.cells]
    cells = [outcome.cells[row, task] for row in rows]
    ours = Series(
        name="measured here",
        x=list(range(len(rows))),
        y=[cell.mean for cell in cells],
        spread=[cell.std or 0.0 for cell in cells],
    )
    known = {one.row: one.value for one in outcome.experiment.published if one.task == task and one.row in rows}
    theirs = (
        [
            Series(
                name=f"{_PAPER}, {outcome.experiment.source}",
                x=[rows.index(row) for row in known],
                y=list(known.values()),
                hollow=True,
            )
        ]
        if known
        else []
    )
    return Panel(title=task, x_label="", y_label=outcome.metric, series=[ours, *theirs], categories=rows)


def _published_dots(outcome: Outcome, task: str) -> Panel:
    known = [one for one in outcome.experiment.published if one.task == task]
    series = Series(
        name=f"{_PAPER}, {outcome.experiment.source}",
        x=list(range(len(known))),
        y=[one.value for one in known],
        spread=[one.std or 0.0 for one in known],
        hollow=True,
    )
    rows = [one.row for one in known]
    return Panel(title=f"{task} ({_PAPER})", x_label="", y_label=outcome.metric, series=[series], categories=rows)


def _relations(outcome: Outcome) -> list[Panel]:
    """Accuracy against ODCorr for each task and, as in Fig. 6, against RankMe, and RankMe against ODCorr."""
    panels = []
    pairs = [("odcorr", "ODCorr", "balanced_accuracy", outcome.metric)]
    if outcome.experiment.name == "fig6":
        pairs += [("rankme", "RankMe", "balanced_accuracy", outcome.metric), ("odcorr", "ODCorr", "rankme", "RankMe")]
    for x_name, x_label, y_name, y_label in pairs:
        for task in _tasks_of_points(outcome):
            rows = dict.fromkeys(point.row for point in outcome.points if point.task == task)
            series = []
            for row in rows:
                of_row = [point for point in outcome.points if (point.row, point.task) == (row, task)]
                xy = [(getattr(p, x_name), getattr(p, y_name)) for p in of_row]
                known = [(x, y) for x, y in xy if x is not None and y is not None]
                if known:
                    series.append(Series(name=row, x=[x for x, _ in known], y=[y for _, y in known]))
            panels.append(Panel(title=task, x_label=x_label, y_label=y_label, series=series))
    return panels


def _tasks_of_points(outcome: Outcome) -> list[str]:
    """In the order of the experiment."""
    found = {point.task for point in outcome.points}
    known = [*outcome.experiment.curves, *outcome.experiment.tasks, *sorted(found)]
    return [task for task in dict.fromkeys(known) if task in found]


def _shown(cell: Cell | None) -> str:
    return "" if cell is None else _pm(cell.mean, cell.std)


def _pm(mean: float, std: float | None) -> str:
    return f"{mean:.3f}" + ("" if std is None else f" ± {std:.3f}")


def _line(words: Sequence[str]) -> str:
    return "| " + " | ".join(word.replace("|", "/") for word in words) + " |"


def _csv_number(value: float | None) -> str:
    return "" if value is None else f"{value:.6f}"
