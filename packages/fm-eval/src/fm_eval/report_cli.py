"""The command `fm-eval report`: files of any kind that this project writes in, one page out."""

from __future__ import annotations

from pathlib import Path

from fm_eval.benchmarks_page import is_benchmark, read_benchmark
from fm_eval.compare import group_by_role, verdict, write_summary
from fm_eval.comparison import by_task
from fm_eval.curves import is_curves, read_curves
from fm_eval.errors import ReportError
from fm_eval.report import ReportContent, write_report
from fm_eval.result import read_result
from fm_eval.segmentation.report import summary_line
from fm_eval.segmentation.result import is_segmentation, read_segmentation


def report(results: list[str], *, output: str = "report.html", summary: str | None = None) -> None:
    """Write one HTML report of several results, with its tables as CSV and JSON beside it.

    Args:
        results: files of `fm-eval run`, of which those of one role and task count as seeds of one model; of
            `fm-eval segment`; curves.json of `fm-eval watch`; and of benchmarks, oldest first.
        output: HTML file.
        summary: also write mean and std of the headline balanced accuracy by role, as JSON; for one task.
    """
    kinds = {is_segmentation: "segmentation", is_curves: "curves", is_benchmark: "benchmark"}
    of_kind: dict[str, list[str]] = {}
    for path in results:
        kind = next((name for test, name in kinds.items() if test(path)), "result")
        of_kind.setdefault(kind, []).append(path)
    content = ReportContent(
        results=[read_result(path) for path in of_kind.get("result", [])],
        segmentations=[read_segmentation(path) for path in of_kind.get("segmentation", [])],
        curves=[point for path in of_kind.get("curves", []) for point in read_curves(path)],
        benchmarks=[read_benchmark(path) for path in of_kind.get("benchmark", [])],
    )
    page, given = Path(output), {Path(path).resolve() for path in results}
    for beside in (page, page.with_suffix(".csv"), page.with_suffix(".json")):
        if beside.resolve() in given:
            raise ReportError(
                f"report: {beside} is one of the results and would be written over; give another --output"
            )
    tasks = by_task(content.results)
    if summary is not None and len(tasks) != 1:
        raise ReportError(f"report: --summary is of one task, got {len(tasks)}; the JSON beside the report holds all")
    write_report(content, page)
    if summary is not None:
        write_summary(content.results, summary)
    for task, found in tasks.items():
        start = f"{task}: " if len(tasks) > 1 else ""
        folds = len({result.dataset["sha256"] for result in found}) > 1
        print(f"{start}{len(found)} folds and seeds" if folds else f"{start}{verdict(group_by_role(found))[1]}")
    if content.segmentations:
        print(summary_line(content.segmentations))
    print(f"-> {output}")
