"""How do results become one page to send to a colleague?

One static HTML file: a first line a task that says whether the trained model beats both baselines, all models on all
tasks beside the published rows, differences with their correction, a section for each task and each segmentation,
learning curves, benchmarks over versions, provenance and cost. No script, no network, figures as inline SVG. It stays
under 5 MB, for which pictures and points are left out, and the page says so. The tables lie beside it as CSV and JSON.
Everything that comes from a result file is escaped. Before: compare, page, and what makes the sections. After: cli.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from html import escape
from pathlib import Path
from typing import Any

from fm_eval.benchmarks_page import Benchmark, benchmark_section
from fm_eval.compare import Group, group_by_role
from fm_eval.comparison import by_task
from fm_eval.curves import CurvePoint
from fm_eval.curves_page import sections as curve_sections
from fm_eval.errors import ReportError
from fm_eval.page import Section, definitions, note, render_page
from fm_eval.report_overview import compared, comparison_section, cost_section, summary_section, verdicts
from fm_eval.report_tasks import task_section
from fm_eval.result import EvalResult, write_atomically
from fm_eval.segmentation.report import provenance_of, segmentation_sections
from fm_eval.segmentation.result import SegmentationResult

MOST_BYTES = 5_000_000
FORMAT = "fm-eval-report"
FORMAT_VERSION = 1
_COLUMNS = ("task", "model", "role", "head", "metric", "split", "value", "std", "runs", "low", "high")


@dataclass(frozen=True, slots=True)
class _Detail:
    """How much a page shows: points of an embedding map, patches of a class, pictures of a segmentation."""

    points: int
    thumbnails: int
    pictures: int


_DETAILS = (_Detail(2000, 4, 6), _Detail(600, 2, 2), _Detail(200, 1, 1), _Detail(100, 0, 0))


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportContent:
    """What a report is made of; every part may be empty, but not all of them.

    Attributes:
        results: of probes, on one or several tasks; those of one role and task are seeds of one model.
        segmentations: of segmentation.
        curves: points of learning curves, of one or several names.
        benchmarks: files of benchmarks, oldest first.
    """

    results: Sequence[EvalResult] = ()
    segmentations: Sequence[SegmentationResult] = ()
    curves: Sequence[CurvePoint] = ()
    benchmarks: Sequence[Benchmark] = ()


def write_report(content: ReportContent | Sequence[EvalResult], path: str | Path) -> None:
    """Write the report as HTML, and its tables beside it as CSV and JSON.

    Args:
        content: what it shows; or only results, of which those of one role and task are seeds of one model.
        path: HTML file; the other two have its name.

    Raises:
        ReportError: nothing to report, or results that cannot be compared.
        ResultError: a file cannot be written.
    """
    content, path = _content(content), Path(path)
    tasks = _tasks(content.results)
    found, reason = compared(tasks)
    page = _fitting_page(content, tasks, comparison_section(found, reason))
    rows = report_rows(content.results)
    text = io.StringIO()
    writer = csv.DictWriter(text, _COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: "" if value is None else value for key, value in row.items()} for row in rows)
    data = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "scores": rows,
        "differences": [] if found is None else [{**asdict(p), "verdict": p.verdict} for p in found.pairs],
        "segmentation": [
            {"name": one.name, "role": one.role, "task": one.dataset["name"], **one.summary()}
            for one in content.segmentations
        ],
        "curves": [asdict(point) for point in content.curves],
        "benchmarks": [asdict(one) for one in content.benchmarks],
    }
    write_atomically(path.with_suffix(".csv"), text.getvalue())
    write_atomically(path.with_suffix(".json"), json.dumps(data, indent=1, allow_nan=False) + "\n")
    write_atomically(path, page)


def render_report(content: ReportContent | Sequence[EvalResult]) -> str:
    """The page as a string; see `write_report`."""
    content = _content(content)
    tasks = _tasks(content.results)
    return _fitting_page(content, tasks, comparison_section(*compared(tasks)))


def report_rows(results: Sequence[EvalResult]) -> list[dict[str, Any]]:
    """Every score of every result as plain values: what `report.csv` holds."""
    rows: list[dict[str, Any]] = []
    for task, of_task in by_task(results).items():
        for result in of_task:
            common = {"task": task, "model": result.name, "role": result.role}
            heads = {f"probe {probe.protocol['name']}": probe.scores for probe in result.probes}
            heads |= {"knn": result.knn.majority, **{head.name: head.scores for head in result.heads}}
            for head, by_split in heads.items():
                for split, scores in by_split.items():
                    for metric in ("balanced_accuracy", "accuracy", *scores.metrics):
                        values = [value for value in scores.by_run(metric) if value is not None]
                        whole = len(values) == len(scores.balanced_accuracy)
                        bounds = scores.intervals.bounds.get(metric) if scores.intervals else None
                        mean = sum(values) / len(values) if whole else None
                        std = scores.std if metric == "balanced_accuracy" else None
                        low, high = bounds or (None, None)
                        measured = (head, metric, split, mean, std, len(scores.balanced_accuracy), low, high)
                        rows.append({**common, **dict(zip(_COLUMNS[3:], measured, strict=True))})
            label_free = result.unsupervised
            for metric, value in (("odcorr", label_free.odcorr), ("rankme_uncentred", label_free.rankme)):
                measured = ("label-free", metric, label_free.split, value, None, 1, None, None)
                rows.append({**common, **dict(zip(_COLUMNS[3:], measured, strict=True))})
    return rows


def _fitting_page(content: ReportContent, tasks: dict[str, list[Group]], differences: Section) -> str:
    for detail in _DETAILS:
        page = _page(content, tasks, differences, detail)
        if len(page.encode()) < MOST_BYTES:
            return page
    raise ReportError(
        f"report: {len(page.encode()):,} bytes without any pictures, at most {MOST_BYTES:,} are allowed; report fewer "
        "results at a time"
    )


def _content(given: ReportContent | Sequence[EvalResult]) -> ReportContent:
    content = given if isinstance(given, ReportContent) else ReportContent(results=given)
    if not (content.results or content.segmentations or content.curves or content.benchmarks):
        raise ReportError("report: no results given")
    return content


def _tasks(results: Sequence[EvalResult]) -> dict[str, list[Group]]:
    """Groups of results by role, by task; each fold of a dataset is a task of its own."""
    tasks: dict[str, list[EvalResult]] = {}
    for task, of_task in by_task(results).items():
        for result in of_task:
            fold = str(result.dataset["split_source"]).split(":")[0]
            tasks.setdefault(f"{task}, {fold}" if fold.startswith("fold ") else task, []).append(result)
    return {task: group_by_role(of_task) for task, of_task in tasks.items()}


def _page(content: ReportContent, tasks: dict[str, list[Group]], differences: Section, detail: _Detail) -> str:
    sections: list[Section] = []
    lead = ""
    if tasks:
        lead = verdicts(tasks)
        sections += [summary_section(tasks), differences]
        sections += [
            task_section(number, task, groups, points=detail.points, thumbnails=detail.thumbnails)
            for number, (task, groups) in enumerate(tasks.items(), start=1)
        ]
    sections += segmentation_sections(content.segmentations, pictures=detail.pictures)
    sections += curve_sections(content.curves)
    sections.append(benchmark_section(content.benchmarks))
    if tasks:
        sections.append(cost_section(tasks))
    provenance = "".join(map(_provenance, content.results)) + "".join(map(provenance_of, content.segmentations))
    sections.append(Section("provenance", "Where the numbers come from", provenance))
    if detail != _DETAILS[0]:
        lead += note(
            f"To stay under {MOST_BYTES // 1_000_000} MB, a map shows at most {detail.points} points, a class "
            f"{detail.thumbnails} patches and a segmentation {detail.pictures} pictures; the result files hold all."
        )
    return render_page(_title(tasks, content), lead, sections)


def _title(tasks: dict[str, list[Group]], content: ReportContent) -> str:
    if tasks or content.segmentations:
        names = [*tasks, *(str(one.dataset["name"]) for one in content.segmentations)]
        return f"Evaluation on {', '.join(dict.fromkeys(names))}"
    return "Learning curves" if content.curves else "Benchmarks"


def _provenance(result: EvalResult) -> str:
    probe = result.probes[0]
    facts: dict[str, object] = {
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
    about = f"{escape(result.role)}, {escape(str(result.dataset['name']))}"
    return definitions(f"{escape(result.name)} <small>{about}</small>", facts)


def _flat(facts: dict[str, Any]) -> str:
    return ", ".join(f"{key} {_flat(value) if isinstance(value, dict) else value}" for key, value in facts.items())
