"""How do several results become one page to send to a colleague?

One static HTML file: a first line that says whether the trained model beats both baselines, a summary table,
every run, embedding plots, confusion matrices, example patches, provenance. No script, no network, figures as
inline SVG. Everything that comes from a result file is escaped. Before: compare, svg. The layout is
`report_template.html`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

import numpy as np

from fm_eval.compare import Estimate, Group, group_by_role, headline, pm, verdict
from fm_eval.errors import ReportError
from fm_eval.metrics import IntArray
from fm_eval.result import EvalResult, Scores, write_atomically
from fm_eval.svg import class_colour, scatter, strip_chart

_BASE64 = re.compile(r"[A-Za-z0-9+/=]+")
_MAX_MATRIX_CLASSES = 20
_UNDEFINED = "undefined"


def write_report(results: Sequence[EvalResult], path: str | Path) -> None:
    """Write the report of comparable results as one HTML file.

    Args:
        results: of one dataset and headline protocol; results of one role are treated as seeds of one model.
        path: HTML file.

    Raises:
        ReportError: no results, or results that cannot be compared.
        ResultError: the file cannot be written.
    """
    write_atomically(Path(path), render_report(results))


def render_report(results: Sequence[EvalResult]) -> str:
    """The report as a string; see `write_report`."""
    groups = group_by_role(results)
    first = results[0]
    won, sentence = verdict(groups)
    protocol, split = first.probes[0].protocol["name"], first.reported_split
    fields = {
        "title": escape(f"Evaluation on {first.dataset['name']}"),
        "verdict": escape(sentence),
        "verdict_class": "won" if won else "",
        "subtitle": _subtitle(first),
        "summary_note": _summary_note(first),
        "summary_table": _summary_table(groups, protocol, split),
        "runs_note": "A dot is one probe run (of any seed); line and band: mean and standard deviation.",
        "runs_chart": _runs_chart(groups, protocol, split),
        "other_protocols": _other_protocols(groups, protocol, split),
        "embedding_note": escape(
            f"First two principal components of the {first.projection.split} embeddings; one result a role. "
            "Axes are scaled alike within a plot."
        ),
        "key": _key(first.classes),
        "embedding_plots": "".join(_embedding_plot(group.results[0]) for group in groups),
        "confusion_note": escape(
            f"Share of each true class (row) predicted as each class (column) on {split}, "
            f"over all results and runs of {protocol}."
        ),
        "confusion": "".join(_confusion(group, protocol, split) for group in groups),
        "examples_note": escape(f"From the {split} split."),
        "examples": "".join(_examples(name, images) for name, images in first.examples.items()),
        "provenance": "".join(_provenance(result) for result in results),
    }
    template = (files("fm_eval") / "report_template.html").read_text(encoding="utf-8")
    return Template(template).substitute(fields)


def _subtitle(result: EvalResult) -> str:
    rows = ", ".join(f"{count:,} {split}" for split, count in result.dataset["rows"].items())
    text = f"Dataset {result.dataset['name']}: {len(result.classes)} classes, {rows} patches; "
    return escape(text + f"linear probe, protocol {result.probes[0].protocol['name']}.")


def _summary_note(result: EvalResult) -> str:
    probe = result.probes[0]
    text = f"Balanced accuracy is the mean recall over classes; chance is {1 / len(result.classes):.3f}. "
    if probe.selected_on == result.reported_split:
        text += f"No val split: {probe.selected_on} also selected the epochs, so its numbers are optimistic. "
    else:
        text += f"Epochs were selected on {probe.selected_on}; the comparison is on {result.reported_split}. "
    if result.dataset["identical_across_splits"]:
        count = result.dataset["identical_across_splits"]
        text += f"{count} images also occur, byte for byte, in another split. "
    text += "ODCorr: root mean square correlation of distinct patches, lower is more distinct, with the floor "
    return escape(text + "that noise of this dimension would give. RankMe: smooth rank of the uncentred embeddings.")


def _summary_table(groups: Sequence[Group], protocol: str, split: str) -> str:
    other = "val" if split == "test" and groups[0].estimate(protocol, "val") else None
    head = ["Model", f"{split}<br>linear probe"]
    head += [f"{other}<br>linear probe"] if other else []
    head += [
        f"{split}<br>k-NN",
        "ODCorr<br><small>noise floor</small>",
        "RankMe<br><small>of dimension</small>",
    ]
    lines = []
    for group in groups:
        estimate = headline(group)
        cells = [f"<strong>{pm(estimate)}</strong><br><small>{escape(estimate.over)}</small>"]
        if other:
            selection = group.estimate(protocol, other)
            cells.append(pm(selection) if selection else "-")
        cells += [_knn_cell(group, split), _odcorr_cell(group), _rankme_cell(group)]
        name = f"{escape(group.label)}<br><small>{escape(group.role)}</small>"
        lines.append(f'<tr><th scope="row">{name}</th>{"".join(f"<td>{cell}</td>" for cell in cells)}</tr>')
    header = "".join(f'<th scope="col">{cell}</th>' for cell in head)
    caption = "<caption>Balanced accuracy, mean ± standard deviation, and label-free metrics</caption>"
    body = f"<thead><tr>{header}</tr></thead><tbody>{''.join(lines)}</tbody>"
    return f'<table class="summary">{caption}{body}</table>'


def _knn_cell(group: Group, split: str) -> str:
    values = [result.knn.majority[split].mean for result in group.results if split in result.knn.majority]
    return (
        _mean_std(values, 3)
        if len(values) == len(group.results)
        else _undefined([r.knn.undefined for r in group.results])
    )


def _odcorr_cell(group: Group) -> str:
    found = [result.unsupervised for result in group.results]
    values = [metrics.odcorr for metrics in found if metrics.odcorr is not None]
    if len(values) < len(found):
        return _undefined([metrics.odcorr_undefined for metrics in found])
    floor = found[0].odcorr_noise_floor
    dropped = sum(metrics.odcorr_dropped_rows for metrics in found)
    extra = f"{floor:.3f}" if floor is not None else "none"
    extra += f", {dropped} rows dropped" if dropped else ""
    return f"{_mean_std(values, 3)}<br><small>{extra}</small>"


def _rankme_cell(group: Group) -> str:
    found = [result.unsupervised for result in group.results]
    values = [metrics.rankme for metrics in found if metrics.rankme is not None]
    if len(values) < len(found):
        return _undefined([metrics.rankme_undefined for metrics in found])
    return f"{_mean_std(values, 1)}<br><small>{found[0].dim}</small>"


def _mean_std(values: Sequence[float], digits: int) -> str:
    spread = f" ± {np.std(values, ddof=1):.{digits}f}" if len(values) > 1 else ""
    return f"{np.mean(values):.{digits}f}{spread}"


def _undefined(reasons: Sequence[str | None]) -> str:
    reason = next((reason for reason in reasons if reason), "not measured")
    return f'<span title="{escape(reason, quote=True)}">{_UNDEFINED}</span>'


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
    header = "".join(f'<th scope="col">{escape(name)}</th>' for name in others)
    lines = []
    for group in groups:
        estimates = [group.estimate(name, split) for name in others]
        cells = "".join(f"<td>{pm(estimate)}</td>" for estimate in estimates if estimate is not None)
        lines.append(f'<tr><th scope="row">{escape(group.label)}</th>{cells}</tr>')
    caption = f"<caption>Balanced accuracy on {escape(split)} under other protocols</caption>"
    return (
        f'<h2>Other protocols</h2><div class="scroll"><table>{caption}'
        f'<thead><tr><th scope="col">Model</th>{header}</tr>'
        f"</thead><tbody>{''.join(lines)}</tbody></table></div>"
    )


def _key(classes: Sequence[str]) -> str:
    items = (f'<li><i style="background:{class_colour(n)}"></i>{escape(name)}</li>' for n, name in enumerate(classes))
    return f'<ul class="key">{"".join(items)}</ul>'


def _embedding_plot(result: EvalResult) -> str:
    points = result.projection
    drawing = scatter(
        points.x, points.y, points.labels, classes=result.classes, title=f"Embedding plot of {result.name}"
    )
    explained = " and ".join(f"{share:.0%}" for share in points.explained)
    shown = f"{len(points.x):,} of {points.rows:,} patches; " if len(points.x) < points.rows else ""
    return (
        f"<figure><h3>{escape(result.name)}</h3>"
        f'<div class="plot">{drawing}</div>'
        f"<figcaption>{shown}{explained} of the variance</figcaption></figure>"
    )


def _confusion(group: Group, protocol: str, split: str) -> str:
    classes = group.results[0].classes
    title = f"<h3>{escape(group.label)}</h3>"
    if len(classes) > _MAX_MATRIX_CLASSES:
        return f"<div>{title}<p class='note'>{len(classes)} classes: see the result JSON.</p></div>"
    total = _summed(group.scores(protocol, split))
    share = total / np.maximum(total.sum(axis=1, keepdims=True), 1)
    header = "".join(f'<th scope="col">{escape(name)}</th>' for name in classes)
    lines = []
    for name, row in zip(classes, share, strict=True):
        cells = "".join(
            f'<td style="--share:{value:.3f}"{" class=strong" if value > 0.6 else ""}>{value:.2f}</td>' for value in row
        )
        lines.append(f'<tr><th scope="row">{escape(name)}</th>{cells}</tr>')
    caption = "<caption>rows: true, columns: predicted</caption>"
    return (
        f'<div>{title}<div class="scroll"><table class="matrix">{caption}'
        f"<thead><tr><td></td>{header}</tr></thead>"
        f"<tbody>{''.join(lines)}</tbody></table></div></div>"
    )


def _summed(scores: Sequence[Scores]) -> IntArray:
    total: IntArray = np.sum([matrix for one in scores for matrix in one.confusion], axis=0, dtype=np.int64)
    return total


def _examples(name: str, images: Sequence[str]) -> str:
    for image in images:
        if not _BASE64.fullmatch(image):
            raise ReportError(f"report: a thumbnail of class {name!r} is not base64; run the evaluation again")
    tags = "".join(f'<img alt="{escape(name, quote=True)}" src="data:image/jpeg;base64,{image}">' for image in images)
    return f'<div><h3>{escape(name)}</h3><div class="thumbs">{tags}</div></div>'


def _provenance(result: EvalResult) -> str:
    probe = result.probes[0]
    facts: dict[str, Any] = {
        "created": result.created,
        "weights sha256": result.backbone["weights_sha256"],
        "dataset sha256": result.dataset["sha256"],
        "split": result.dataset["split_source"],
        "groups": _flat(result.dataset["groups"]),
        "selected on": probe.selected_on,
        "protocol": _flat(probe.protocol),
        "backbone": _flat({key: value for key, value in result.backbone.items() if key != "weights_sha256"}),
        "k-NN": f"k={result.knn.k}, cosine, majority vote",
        "settings": _flat(result.settings),
        "seconds": _flat(result.seconds),
        "versions": _flat(result.versions),
    }
    items = "".join(f"<dt>{escape(key)}</dt><dd>{escape(str(value))}</dd>" for key, value in facts.items())
    title = f"{escape(result.name)} <small>{escape(result.role)}</small>"
    return f"<details><summary>{title}</summary><dl>{items}</dl></details>"


def _flat(facts: dict[str, Any]) -> str:
    return ", ".join(f"{key} {_flat(value) if isinstance(value, dict) else value}" for key, value in facts.items())
