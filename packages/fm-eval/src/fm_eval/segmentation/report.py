"""What does the report say of segmentation?

A section for each data set: the DICE by name beside the paper's, by class and of every run, pictures of image, label
and prediction; and where the numbers come from. Everything that comes from a result file is escaped. Before: result,
page. After: report of fm_eval.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from html import escape
from typing import Any

from fm_eval.errors import ReportError
from fm_eval.page import UNDEFINED, Section, definitions, note, table
from fm_eval.published import SOURCE, published_rows
from fm_eval.segmentation.pictures import class_rgb
from fm_eval.segmentation.result import METRICS, SegmentationResult
from fm_eval.segmentation.training import PLATEAU_GAIN

_BASE64 = re.compile(r"[A-Za-z0-9+/=]+")


def segmentation_sections(results: Sequence[SegmentationResult], *, pictures: int) -> list[Section]:
    """A section for each data set.

    Args:
        results: any number, of any data sets.
        pictures: most pictures of a result.

    Raises:
        ReportError: results on different data of one name, or a picture that is none.
    """
    names = list(dict.fromkeys(str(result.dataset["name"]) for result in results))
    of_name = {name: [result for result in results if result.dataset["name"] == name] for name in names}
    return [
        Section(f"segmentation-{number}", f"Segmentation of {name}", _section(of_name[name], pictures))
        for number, name in enumerate(names, start=1)
    ]


def provenance_of(result: SegmentationResult) -> str:
    """Where the numbers of a result come from, folded."""
    facts: dict[str, object] = {
        "created": result.created,
        **{f"data: {key}": value for key, value in result.dataset.items()},
        **{f"backbone: {key}": value for key, value in result.backbone.items()},
        **{f"decoder: {key}": value for key, value in result.decoder.items()},
        **{f"setting: {key}": value for key, value in result.settings.items()},
        **{f"version: {key}": value for key, value in result.versions.items()},
        **{f"seconds: {key}": value for key, value in result.seconds.items()},
    }
    return definitions(_name(result), facts)


def _section(results: Sequence[SegmentationResult], pictures: int) -> str:
    first = results[0]
    for other in results[1:]:
        if other.dataset["sha256"] != first.dataset["sha256"]:
            raise ReportError(
                f"report: {other.name} is of data set {other.dataset['name']}, {first.name} of "
                f"{first.dataset['name']}, but their files or classes differ; report them apart"
            )
    images = ", ".join(f"{count} {split}" for split, count in first.dataset["images"].items() if count)
    shown = "".join(_pictures(result, pictures) for result in results)
    colours = "".join(_key(number, name) for number, name in enumerate(first.dataset["classes"]))
    parts = [
        note(
            f"{len(first.dataset['classes'])} classes, background among them; images: {images} "
            f"(split: {first.dataset['split_source']}). Scores are of {first.reported_split}, without background: mean "
            "over classes, mean ± standard deviation over the runs that converged. dice_pooled counts the pixels of "
            "the data set together, dice_image is the mean over stitched images, dice_patch over the windows of the "
            "test grid (as eva 0.4)."
        ),
        _scores_table(results),
        _class_table(results),
        "<h3>Every run</h3>",
        note(
            "A run has converged if its loss stayed finite and its DICE on training windows ended above that of one "
            f"class everywhere and rose by less than {PLATEAU_GAIN} over the last fifth of the steps. "
            "The others do not count."
        ),
        _runs_table(results),
        f'<h3>Image, label, prediction</h3><ul class="key">{colours}</ul>{shown}' if shown else "",
    ]
    return "".join(parts)


def summary_line(results: Sequence[SegmentationResult]) -> str:
    """The pooled DICE of each result, for people."""
    parts = []
    for result in results:
        mean = result.summary()["dice_pooled"]
        parts.append(f"{result.name} ({result.role}) {_pm(mean)}")
    return f"test dice_pooled: {', '.join(parts)}"


def _scores_table(results: Sequence[SegmentationResult]) -> str:
    rows = []
    for result in results:
        summary = result.summary()
        converged = f"{len(result.converged)} of {len(result.runs)}"
        cells = [_pm(summary[metric]) for metric in METRICS] + [converged, f"{result.decoder['parameters']:,}"]
        rows.append([_name(result), *cells])
    head = ["Model", *METRICS, "runs that converged", "parameters of the decoder"]
    scores = table("Scores", head, rows)
    if str(results[0].dataset["name"]).lower() != "consep":
        return scores
    published = [[escape(row.model), row.cell("consep")] for row in published_rows(["consep"])]
    text = f"{SOURCE}: DICE of the foreground; the paper does not say which of the three."
    return scores + table("Published", ["Model", "DICE"], published) + note(text)


def _class_table(results: Sequence[SegmentationResult]) -> str:
    names = results[0].dataset["classes"]
    rows = [
        [f"{_name(result)}<br><small>{metric}</small>", *(_number(values[name]) for name in names)]
        for result in results
        for metric in ("dice_pooled", "dice_image", "dice_patch")
        for values in [result.by_class(f"{metric}_by_class")]
    ]
    return table("DICE by class; the background is shown and counts in no mean", ["Model", *map(escape, names)], rows)


def _runs_table(results: Sequence[SegmentationResult]) -> str:
    head = ["Run", "dice_pooled", "dice_image", "dice_patch", "miou", "training DICE", "training", "test", "converged"]
    rows = []
    for result in results:
        for run in result.runs:
            scores = run.scores[result.reported_split]
            values = (scores.dice_pooled, scores.dice_image, scores.dice_patch, scores.miou, *run.checks[-1:])
            times = (f"{run.train_seconds:.0f} s", f"{run.test_seconds:.0f} s")
            cells = [*map(_number, values), *times, escape(f"no: {run.not_converged}" if run.not_converged else "yes")]
            rows.append([f"{_name(result)}<br><small>run {run.run}</small>", *cells])
    return table("Runs", head, rows)


def _pictures(result: SegmentationResult, most: int) -> str:
    figures = []
    for picture in result.pictures[:most]:
        if not _BASE64.fullmatch(picture.png):
            raise ReportError(f"report: picture {picture.image_id} of {result.name} is not base64; run it again")
        caption = escape(f"{picture.image_id}: image, label, prediction of run {picture.run}")
        source = f"data:image/png;base64,{picture.png}"
        figures.append(f'<figure><img src="{source}" alt="{caption}"><figcaption>{caption}</figcaption></figure>')
    return f"<h4>{_name(result)}</h4>{''.join(figures)}" if figures else ""


def _key(number: int, name: str) -> str:
    red, green, blue = class_rgb(number)
    return f'<li><i class="square" style="background: rgb({red} {green} {blue})"></i>{escape(name)}</li>'


def _name(result: SegmentationResult) -> str:
    return f"{escape(result.name)} <small>{escape(result.role)}, {escape(result.decoder['name'])}</small>"


def _pm(estimate: dict[str, Any]) -> str:
    if estimate["mean"] is None:
        return UNDEFINED
    spread = "" if estimate["std"] is None else f" ± {estimate['std']:.3f}"
    return f"{estimate['mean']:.3f}{spread}"


def _number(value: float | None) -> str:
    return UNDEFINED if value is None else f"{value:.3f}"
