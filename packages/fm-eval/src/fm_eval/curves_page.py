"""How does the learning curve look, alone or beside others (Fig. 1, 2 and 4 of the paper)?

One figure for each task and metric, a line for each curve name and split, a band for its interval; then the numbers as
a table. Before: curves, page. After: watch, report.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path

from fm_eval.curves import CurvePoint
from fm_eval.page import Section, figure, note, render_page, table
from fm_eval.result import write_atomically
from fm_eval.svg_charts import Series, key, line_chart

_TITLES = {
    "balanced_accuracy": "Balanced accuracy of the linear probe",
    "knn_balanced_accuracy": "Balanced accuracy of k-NN",
    "odcorr": "ODCorr (lower: more distinct)",
    "rankme_uncentred": "RankMe (uncentred)",
}


def write_curves_page(points: Sequence[CurvePoint], path: Path) -> None:
    """Write the page of one or several curves.

    Raises:
        ResultError: the file cannot be written.
    """
    names = list(dict.fromkeys(point.name for point in points))
    steps = [point.step for point in points]
    lead = (
        note(f"{len({p.checkpoint for p in points})} checkpoints, steps {min(steps):,} to {max(steps):,}.")
        if points
        else note("No checkpoint was evaluated yet.")
    )
    page = render_page(f"Learning curve of {', '.join(names)}" if names else "Learning curve", lead, sections(points))
    write_atomically(path, page)


def sections(points: Sequence[CurvePoint]) -> list[Section]:
    """A section for each task, and one with all numbers."""
    tasks = list(dict.fromkeys(point.task for point in points))
    found = [
        Section(f"curves-{number}", f"Learning curves: {task}", _figures([p for p in points if p.task == task]))
        for number, task in enumerate(tasks, start=1)
    ]
    return [*found, Section("curve-numbers", "Learning curves as numbers", _numbers(points))] if points else []


def _figures(points: Sequence[CurvePoint]) -> str:
    lines = list(dict.fromkeys((point.name, point.split) for point in points))
    several = len({name for name, _ in lines}) > 1
    drawn = []
    for metric in dict.fromkeys(point.metric for point in points):
        of_metric = [point for point in points if point.metric == metric]
        splits = list(dict.fromkeys((point.name, point.split) for point in of_metric))
        series = [
            _series(
                [p for p in of_metric if (p.name, p.split) == line], f"{line[0]}, {line[1]}" if several else line[1]
            )
            for line in splits
        ]
        title = _TITLES.get(metric, metric.replace("_", " "))
        if not any(value is not None for one in series for value in one.y):
            drawn.append(figure("", title=title, caption="Undefined for every checkpoint."))
            continue
        drawing = line_chart(series, x_label="optimizer steps", y_label="")
        drawn.append(
            f"<figure><h3>{escape(title)}</h3>{key([one.label for one in series])}"
            f'<div class="plot">{drawing}</div></figure>'
        )
    text = (
        "A dot is a checkpoint: the mean over probe runs, or over folds. The band is the 95 % bootstrap interval over "
        "patients or groups, where there is one."
    )
    return note(text) + f'<div class="grid wide">{"".join(drawn)}</div>'


def _series(points: Sequence[CurvePoint], label: str) -> Series:
    ordered = sorted(points, key=lambda point: (point.step, point.checkpoint))
    return Series(
        label=label,
        x=[point.step for point in ordered],
        y=[point.value for point in ordered],
        low=[point.low for point in ordered],
        high=[point.high for point in ordered],
    )


def _numbers(points: Sequence[CurvePoint]) -> str:
    columns = list(dict.fromkeys((point.task, point.metric, point.split) for point in points))
    rows = list(dict.fromkeys((point.name, point.step, point.checkpoint) for point in points))
    found = {(p.name, p.step, p.checkpoint, p.task, p.metric, p.split): p for p in points}
    head = [
        "Checkpoint",
        *(f"{escape(m.replace('_', ' '))}<br><small>{escape(t)}, {escape(s)}</small>" for t, m, s in columns),
    ]
    body = [
        [
            f"{escape(checkpoint)}<br><small>{escape(name)}, step {step:,}</small>",
            *(_cell(found.get((name, step, checkpoint, *column))) for column in columns),
        ]
        for name, step, checkpoint in rows
    ]
    return table("Mean ± standard deviation over probe runs or folds", head, body)


def _cell(point: CurvePoint | None) -> str:
    if point is None:
        return "not measured"
    if point.value is None:
        return "undefined"
    return f"{point.value:.3f}" + ("" if point.std is None else f" ± {point.std:.3f}")
