"""What does the report say of one task?

Summary of every model, runs one by one, other protocols and metrics, calibration, label-free metrics against the
probe, embedding map, confusion, example patches. Before: compare, page, svg, report_metrics. After: report.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from html import escape

import numpy as np
from scipy.stats import spearmanr

from fm_eval.compare import Estimate, Group, headline, pm
from fm_eval.errors import ReportError
from fm_eval.metrics import IntArray
from fm_eval.page import Section, figure, note, scrolling, table, undefined
from fm_eval.report_metrics import metrics_section
from fm_eval.result import EvalResult
from fm_eval.scores import Scores
from fm_eval.svg import scatter, strip_chart
from fm_eval.svg_charts import key, relation_chart, reliability_chart

BASE64 = re.compile(r"[A-Za-z0-9+/=]+")
_MAX_MATRIX_CLASSES = 20
_FEWEST_FOR_RELATION = 3


def task_section(number: int, task: str, groups: Sequence[Group], *, points: int, thumbnails: int) -> Section:
    """All that the report says of one task.

    Args:
        number: of the task, for its anchor.
        task: its name.
        groups: results by role.
        points: most points of an embedding map.
        thumbnails: most example patches of a class.
    """
    first = groups[0].results[0]
    protocol, split = first.probes[0].protocol["name"], first.reported_split
    chart = _runs_chart(groups, protocol, split)
    parts = [
        note(_about(first)),
        _summary_table(groups, protocol, split),
        "<h3>Every run</h3>",
        note("A dot is one probe run (of any seed); line and band: mean and standard deviation."),
        f'<figure class="chart"><div class="plot">{chart}</div></figure>',
        _other_protocols(groups, protocol, split),
        metrics_section(groups, protocol, split),
        _calibration(groups, protocol, split),
        _relations([result for group in groups for result in group.results]),
        "<h3>Embedding map</h3>",
        note(
            f"First two principal components of the {first.projection.split} embeddings; one result of each model. "
            "Axes are scaled alike within a map."
        ),
        key(first.classes),
        f'<div class="grid">{"".join(_embedding_map(group.results[0], points) for group in groups)}</div>',
        "<h3>Confusion</h3>",
        note(
            f"Share of each true class (row) predicted as each class (column) on {split}, over all results and runs "
            f"of {protocol}."
        ),
        f'<div class="grid wide">{"".join(_confusion(group, protocol, split) for group in groups)}</div>',
        _examples(first, thumbnails),
    ]
    return Section(f"task-{number}", f"Task {task}", "".join(parts))


def _about(result: EvalResult) -> str:
    rows = ", ".join(f"{count:,} {split}" for split, count in result.dataset["rows"].items())
    probe = result.probes[0]
    text = f"{len(result.classes)} classes, {rows} patches; linear probe, protocol {probe.protocol['name']}. "
    text += f"Balanced accuracy is the mean recall over classes; chance is {1 / len(result.classes):.3f}. "
    if probe.selected_on == result.reported_split:
        text += f"No val split: {probe.selected_on} also selected the epochs, so its numbers are optimistic. "
    else:
        text += f"Epochs were selected on {probe.selected_on}; the comparison is on {result.reported_split}. "
    if result.dataset["identical_across_splits"]:
        count = result.dataset["identical_across_splits"]
        text += f"{count} images also occur, byte for byte, in another split. "
    text += "ODCorr: root mean square correlation of distinct patches, lower is more distinct, with the floor "
    return text + "that noise of this dimension would give. RankMe: smooth rank of the uncentred embeddings."


def _summary_table(groups: Sequence[Group], protocol: str, split: str) -> str:
    other = "val" if split == "test" and groups[0].estimate(protocol, "val") else None
    head = ["Model", f"{escape(split)}<br>linear probe"]
    head += [f"{other}<br>linear probe"] if other else []
    head += [
        f"{escape(split)}<br>k-NN",
        "ODCorr<br><small>noise floor</small>",
        "RankMe<br><small>of dimension</small>",
    ]
    rows = []
    for group in groups:
        estimate = headline(group)
        cells = [model_cell(group), f"<strong>{pm(estimate)}</strong><br><small>{escape(estimate.over)}</small>"]
        if other:
            selection = group.estimate(protocol, other)
            cells.append(pm(selection) if selection else "not measured")
        rows.append([*cells, _knn_cell(group, split), _odcorr_cell(group), _rankme_cell(group)])
    return table("Balanced accuracy, mean ± standard deviation, and label-free metrics", head, rows)


def model_cell(group: Group) -> str:
    """Name and role of a model."""
    role = "" if group.role == group.label else f"<br><small>{escape(group.role)}</small>"
    return escape(group.label) + role


def _knn_cell(group: Group, split: str) -> str:
    values = [result.knn.majority[split].mean for result in group.results if split in result.knn.majority]
    if len(values) == len(group.results):
        return _mean_std(values, 3)
    return _reason([result.knn.undefined for result in group.results])


def _odcorr_cell(group: Group) -> str:
    found = [result.unsupervised for result in group.results]
    values = [metrics.odcorr for metrics in found if metrics.odcorr is not None]
    if len(values) < len(found):
        return _reason([metrics.odcorr_undefined for metrics in found])
    floor = found[0].odcorr_noise_floor
    dropped = sum(metrics.odcorr_dropped_rows for metrics in found)
    extra = f"{floor:.3f}" if floor is not None else "none"
    extra += f", {dropped} rows dropped" if dropped else ""
    return f"{_mean_std(values, 3)}<br><small>{extra}</small>"


def _rankme_cell(group: Group) -> str:
    found = [result.unsupervised for result in group.results]
    values = [metrics.rankme for metrics in found if metrics.rankme is not None]
    if len(values) < len(found):
        return _reason([metrics.rankme_undefined for metrics in found])
    return f"{_mean_std(values, 1)}<br><small>{escape(str(found[0].dim))}</small>"


def _mean_std(values: Sequence[float], digits: int) -> str:
    spread = f" ± {np.std(values, ddof=1):.{digits}f}" if len(values) > 1 else ""
    return f"{np.mean(values):.{digits}f}{spread}"


def _reason(reasons: Sequence[str | None]) -> str:
    return undefined(next((reason for reason in reasons if reason), None))


def _runs_chart(groups: Sequence[Group], protocol: str, split: str) -> str:
    rows: list[tuple[str, Estimate, list[float]]] = []
    for group in groups:
        single = [value for scores in group.scores(protocol, split) for value in scores.balanced_accuracy]
        rows.append((f"{group.label}: {pm(headline(group))}", headline(group), single))
    return strip_chart(rows, unit=f"balanced accuracy on {split}, {protocol}")


def _other_protocols(groups: Sequence[Group], protocol: str, split: str) -> str:
    names = [probe.protocol["name"] for probe in groups[0].results[0].probes]
    others = [name for name in names if name != protocol and all(group.estimate(name, split) for group in groups)]
    if not others:
        return ""
    rows = [
        [escape(group.label), *(pm(found) for name in others for found in [group.estimate(name, split)] if found)]
        for group in groups
    ]
    caption = f"Balanced accuracy on {split} under other protocols"
    return "<h3>Other protocols</h3>" + table(caption, ["Model", *map(escape, others)], rows)


def _calibration(groups: Sequence[Group], protocol: str, split: str) -> str:
    series = [(group.label, _pooled(group.scores(protocol, split))) for group in groups]
    if not all(bins for _, bins in series):  # results of format version 1 or 2
        return ""
    text = (
        f"How often the linear probe is right on {split} when it is so sure, over all results and runs: on the dashed "
        "line a model is as often right as it says. A dot grows with its share of the rows."
    )
    drawing = reliability_chart(series)
    return (
        f"<h3>Calibration</h3>{note(text)}{key([label for label, _ in series])}"
        f'<figure class="chart"><div class="plot">{drawing}</div></figure>'
    )


def _pooled(scores: Sequence[Scores]) -> list[tuple[int, float, float]]:
    """Bins of several results as one."""
    if not scores or not all(one.reliability for one in scores):
        return []
    stacked = np.array([one.reliability for one in scores])
    rows = stacked[..., 0].sum(axis=0)
    means = (stacked[..., :1] * stacked[..., 1:]).sum(axis=0) / np.maximum(rows, 1)[:, None]
    return [(int(count), float(mean[0]), float(mean[1])) for count, mean in zip(rows, means, strict=True)]


def _relations(results: Sequence[EvalResult]) -> str:
    """Label-free metrics against the probe (Fig. 5 and 6), where there are enough models."""
    known = [
        (result.name, result.unsupervised.odcorr, result.unsupervised.rankme, probe.mean)
        for result in results
        for probe in [result.probes[0].scores[result.reported_split]]
    ]
    points = [(name, o, r, b) for name, o, r, b in known if o is not None and r is not None]
    if len(points) < _FEWEST_FOR_RELATION:
        return ""
    axes = {"ODCorr": [o for _, o, _, _ in points], "RankMe": [r for _, _, r, _ in points]}
    axes["balanced accuracy"] = [b for _, _, _, b in points]
    names = [name for name, *_ in points]
    figures = [
        figure(
            relation_chart(list(zip(names, axes[x], axes[y], strict=True)), x_label=x, y_label=y),
            title=f"{y[0].upper()}{y[1:]} against {x}",
            caption=f"Rank correlation (Spearman) {_spearman(axes[x], axes[y])} over {len(points)} results.",
        )
        for x, y in (("ODCorr", "balanced accuracy"), ("RankMe", "balanced accuracy"), ("ODCorr", "RankMe"))
    ]
    numbered = key([f"{number} {name}" for number, name in enumerate(names, start=1)])
    text = "As in Fig. 5 and 6 of the paper. A dot is a result; few of them prove no relation."
    return (
        f'<h3>Label-free metrics against the probe</h3>{note(text)}{numbered}<div class="grid">{"".join(figures)}</div>'
    )


def _spearman(x: Sequence[float], y: Sequence[float]) -> str:
    if len(set(x)) < 2 or len(set(y)) < 2:
        return "undefined"
    return f"{float(spearmanr(x, y).statistic):+.2f}"


def _embedding_map(result: EvalResult, most: int) -> str:
    points = result.projection
    every = max(1, -(-len(points.x) // most))
    x, y, labels = points.x[::every], points.y[::every], points.labels[::every]
    drawing = scatter(x, y, labels, classes=result.classes, title=f"Embedding map of {result.name}")
    explained = " and ".join(f"{share:.0%}" for share in points.explained)
    shown = f"{len(x):,} of {points.rows:,} patches; " if len(x) < points.rows else ""
    return figure(drawing, title=result.name, caption=f"{shown}{explained} of the variance")


def _confusion(group: Group, protocol: str, split: str) -> str:
    classes = group.results[0].classes
    title = f"<h3>{escape(group.label)}</h3>"
    if len(classes) > _MAX_MATRIX_CLASSES:
        return f"<div>{title}{note(f'{len(classes)} classes: see the result JSON.')}</div>"
    total = _summed(group.scores(protocol, split))
    share = total / np.maximum(total.sum(axis=1, keepdims=True), 1)
    header = "".join(f'<th scope="col">{escape(name)}</th>' for name in classes)
    lines = []
    for name, row in zip(classes, share, strict=True):
        cells = "".join(f'<td style="--share:{value:.3f}">{value:.2f}</td>' for value in row)
        lines.append(f'<tr><th scope="row">{escape(name)}</th>{cells}</tr>')
    matrix = (
        f'<table class="matrix"><caption>{escape(group.label)}: rows are true classes, columns predicted ones</caption>'
        f'<thead><tr><th scope="col">true \\ predicted</th>{header}</tr></thead><tbody>{"".join(lines)}</tbody></table>'
    )
    return f"<div>{scrolling(matrix, label=f'Confusion matrix of {group.label}')}</div>"


def _summed(scores: Sequence[Scores]) -> IntArray:
    total: IntArray = np.sum([matrix for one in scores for matrix in one.confusion], axis=0, dtype=np.int64)
    return total


def _examples(result: EvalResult, most: int) -> str:
    shown = {name: images[:most] for name, images in result.examples.items()}
    if not any(shown.values()):
        return ""
    parts = []
    for name, images in shown.items():
        for image in images:
            if not BASE64.fullmatch(image):
                raise ReportError(f"report: a thumbnail of class {name!r} is not base64; run the evaluation again")
        tags = "".join(
            f'<img alt="{escape(f"{name}, example {number}", quote=True)}" src="data:image/jpeg;base64,{image}">'
            for number, image in enumerate(images, start=1)
        )
        parts.append(f'<figure><figcaption>{escape(name)}</figcaption><div class="thumbs">{tags}</div></figure>')
    return (
        f"<h3>Example patches</h3>{note(f'From the {result.reported_split} split.')}"
        f'<div class="grid">{"".join(parts)}</div>'
    )
