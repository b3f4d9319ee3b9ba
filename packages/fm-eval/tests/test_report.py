from __future__ import annotations

import csv
import dataclasses
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from fm_eval import (
    EvalResult,
    EvalSettings,
    ReportError,
    evaluate,
    get_protocol,
    load_backbone,
    load_dataset,
    render_report,
    write_report,
    write_result,
)
from fm_eval.benchmarks_page import read_benchmark
from fm_eval.cli import main
from fm_eval.curves import points_of, write_curves
from fm_eval.published import published_rows
from fm_eval.report import MOST_BYTES, ReportContent


@pytest.fixture(scope="module")
def base(module_dataset: Path) -> EvalResult:
    """A real result."""
    protocol = dataclasses.replace(get_protocol("paper-standardized"), max_steps=20)
    backbone = load_backbone("fm_eval.ColourHistogram", args={"bins": 4, "input_size_px": 32})
    settings = EvalSettings(resamples=30)
    return evaluate(
        load_dataset(module_dataset), backbone, name="colour", role="colour", protocols=[protocol], settings=settings
    )


@pytest.fixture
def results(base: EvalResult) -> list[EvalResult]:
    """Three models on two tasks, one of them known to the paper."""
    other = {**base.dataset, "name": "bach", "layout": "bach", "sha256": "b" * 64}
    roles = ("trained", "random", "colour")
    return [
        dataclasses.replace(base, name=role, role=role, dataset=dataset)
        for dataset in (base.dataset, other)
        for role in roles
    ]


class _Checked(HTMLParser):
    """Collects what a page must have or must not have."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.links: list[str] = []
        self.headings: list[int] = []
        self.open: list[str] = []
        self.bad: list[str] = []
        self.tables = 0
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.ids += [given["id"] or ""] if "id" in given else []
        for name in ("href", "src"):
            target = given.get(name) or ""
            self.links += [target] if target else []
        if tag == "script" or any(name.startswith("on") for name in given):
            self.bad.append(f"{tag} {given}")
        if (tag == "img" and not given.get("alt")) or (tag == "svg" and not given.get("aria-label")):
            self.bad.append(f"{tag} without a text")
        if tag == "th" and "scope" not in given:
            self.bad.append("th without a scope")
        if re.fullmatch("h[1-6]", tag):
            self.headings.append(int(tag[1]))
        if tag == "table":
            self.tables += 1
        if tag not in ("meta", "link", "img", "br", "circle", "line", "path", "polygon", "polyline"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in ("circle", "line", "path", "polygon", "polyline") and self.open.pop() != tag:
            self.bad.append(f"</{tag}> closes another")


def test_the_page_is_whole_accessible_and_needs_nothing_else(results: list[EvalResult]) -> None:
    points = points_of([results[0]], name="run", checkpoint="step-1", step=1, task="data")
    points += points_of([results[1]], name="run", checkpoint="step-2", step=2, task="data")
    page = render_report(ReportContent(results=results, curves=points))
    found = _Checked(page)
    assert found.bad == []
    assert found.open == []
    assert len(found.ids) == len(set(found.ids))
    assert all(link.startswith(("#", "data:")) for link in found.links)
    assert {link[1:] for link in found.links if link.startswith("#")} <= set(found.ids)
    assert found.headings[0] == 1
    assert all(later <= earlier + 1 for earlier, later in zip(found.headings, found.headings[1:], strict=False))
    assert page.count("<caption>") == found.tables > 10
    assert "http" not in page.replace('xmlns="http://www.w3.org/2000/svg"', "")
    assert len(page.encode()) < MOST_BYTES


def test_several_tasks_stand_beside_the_published_rows(results: list[EvalResult]) -> None:
    page = render_report(results)
    summary = page.split('<h2 id="summary">')[1].split("</section>")[0]
    mean = results[0].probes[0].scores["test"].mean
    assert summary.count(f"{mean:.3f}") >= 6
    assert "0.797 ± 0.003" in summary
    assert "Virchow" not in summary
    assert page.count('class="verdict') == 2
    differences = page.split('<h2 id="comparison">')[1].split("</section>")[0]
    assert differences.count("no difference shown") == 6
    assert '<h2 id="summary">' not in render_report(results[:3])


def test_published_rows_are_those_of_the_tables() -> None:
    """Sums of the columns of means in Table VIII and, for TP53, Table I."""
    sums = {"bach": 7.517, "crc": 10.057, "mhist": 8.625, "pcam": 9.673, "tp53": 5.988, "consep": 6.675}
    rows = published_rows(list(sums))
    assert len(rows) == 11
    for task, total in sums.items():
        assert sum(row.values[task][0] for row in rows if task in row.values) == pytest.approx(total)
    assert published_rows(["cifar10"]) == []


def test_tables_lie_beside_the_page(results: list[EvalResult], tmp_path: Path) -> None:
    write_report(results, tmp_path / "r.html")
    with (tmp_path / "r.csv").open() as file:
        rows = list(csv.DictReader(file))
    probe = results[0].probes[0].scores["test"]
    assert probe.intervals is not None
    wanted = ("data", "trained", "probe paper-standardized", "balanced_accuracy", "test")
    [row] = [r for r in rows if (r["task"], r["model"], r["head"], r["metric"], r["split"]) == wanted]
    assert (float(row["value"]), float(row["std"])) == pytest.approx((probe.mean, probe.std))
    assert (float(row["low"]), float(row["high"])) == probe.intervals.bounds["balanced_accuracy"]
    content = json.loads((tmp_path / "r.json").read_text())
    assert (content["format"], content["format_version"]) == ("fm-eval-report", 1)
    assert len(content["scores"]) == len(rows)
    assert {pair["verdict"] for pair in content["differences"]} == {"no difference shown"}


def test_a_large_report_is_cut_to_size_and_says_so(results: list[EvalResult]) -> None:
    thumbnail = "A" * 400_000
    heavy = [dataclasses.replace(one, examples={"class0": [thumbnail] * 4}) for one in results]
    tasks = [
        dataclasses.replace(one, dataset={**one.dataset, "name": f"task{number}"}) for number, one in enumerate(heavy)
    ]
    page = render_report(tasks)
    assert len(page.encode()) < MOST_BYTES
    assert page.count(thumbnail) == 2 * 6
    assert "To stay under 5 MB" in page
    assert "To stay under 5 MB" not in render_report(results)


def test_the_command_takes_files_of_every_kind(
    results: list[EvalResult], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = [str(tmp_path / f"{number}.json") for number in range(3)]
    for result, path in zip((results[0], results[1], results[3]), files, strict=True):
        write_result(result, path)
    write_curves(points_of([results[0]], name="run", checkpoint="step-1", step=1, task="data"), tmp_path)
    speeds = []
    for number, speed in enumerate((100, 150)):
        speeds.append(str(tmp_path / f"v{number}.json"))
        content = {"format_version": 1, "benchmark": "streaming", "results": [{"name": "ours", "per_second": speed}]}
        Path(speeds[-1]).write_text(json.dumps(content))
    page = tmp_path / "page" / "report.html"
    assert main(["report", *files, str(tmp_path / "curves.json"), *speeds, f"--output={page}"]) == 0
    assert "data: The trained model" in capsys.readouterr().out
    text = page.read_text()
    assert "Learning curves: data" in text
    assert "<td>100</td><td>150</td><td>+50.0%</td>" in text
    assert "[ours].per_second" in text


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["0.json", "--output={folder}/0.html"], "is one of the results and would be written over"),
        (["0.json", "3.json", "--summary={folder}/s.json"], "--summary is of one task, got 2"),
        (["new.json"], "format_version 2 is newer than 1"),
        (["empty.json"], "no figures under 'results'"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(
    given: list[str], message: str, results: list[EvalResult], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in (0, 3):
        write_result(results[number], tmp_path / f"{number}.json")
    (tmp_path / "new.json").write_text('{"format_version": 2, "benchmark": "b", "results": {"a": 1}}')
    (tmp_path / "empty.json").write_text('{"format_version": 1, "benchmark": "b", "results": {"a": "fast"}}')
    words = [str(tmp_path / one) if one.endswith(".json") and "=" not in one else one for one in given]
    before = (tmp_path / "0.json").read_bytes()
    assert main(["report", *(word.format(folder=tmp_path) for word in words)]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert (tmp_path / "0.json").read_bytes() == before


def test_figures_of_a_benchmark_are_found_wherever_they_are(tmp_path: Path) -> None:
    content = {
        "format_version": 1,
        "benchmark": "b",
        "git_commit": "0123456789abcdef",
        "results": {"a": {"b": 1, "flag": True, "list": [2, 3.5]}, "rows": [{"name": "x", "case": "y", "seconds": 4}]},
    }
    (tmp_path / "v1.json").write_text(json.dumps(content))
    found = read_benchmark(tmp_path / "v1.json")
    assert found.figures == {"a.b": 1, "a.list[0]": 2, "a.list[1]": 3.5, "rows[x y].seconds": 4}
    assert found.label == "v1 0123456789ab"


def test_nothing_makes_no_report() -> None:
    with pytest.raises(ReportError, match="no results given"):
        render_report(ReportContent())
