from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fm_eval import (
    EvalResult,
    EvalSettings,
    ReportError,
    ResultError,
    evaluate,
    get_protocol,
    load_backbone,
    load_dataset,
    load_folds,
    write_result,
)
from fm_eval.cli import main
from fm_eval.comparison import compare_results, rows_of
from fm_eval.gate import gate, markdown
from fm_eval.packing import pack, unpack
from fm_eval.result import ReportedRows


@pytest.fixture(scope="module")
def base(module_dataset: Path) -> EvalResult:
    """A real result; the tests replace its rows and predictions."""
    protocol = dataclasses.replace(get_protocol("paper-standardized"), max_steps=20)
    backbone = load_backbone("fm_eval.ColourHistogram", args={"bins": 4, "input_size_px": 32})
    settings = EvalSettings(resamples=0, heads=())
    return evaluate(
        load_dataset(module_dataset), backbone, name="base", role="x", protocols=[protocol], settings=settings
    )


def _predicting(
    base: EvalResult, share: float, *, seed: int, name: str, task: str = "data", **facts: Any
) -> EvalResult:
    """A result on 300 rows in 60 groups whose five runs are right on a share of them, mostly the same ones."""
    random = np.random.default_rng(7)
    labels, easy = random.integers(0, 3, 300), random.random(300)
    own = np.random.default_rng(seed)
    right = easy + 0.1 * own.standard_normal((5, 300)) < share
    predicted = np.where(right, labels, (labels + 1) % 3)
    probe = dataclasses.replace(base.probes[0], predicted=pack(predicted))
    rows = ReportedRows(labels=pack(labels), groups=pack(np.arange(300) // 5))
    dataset = {**base.dataset, "name": task, "sha256": f"{task:0<64}", **facts}
    return dataclasses.replace(base, name=name, dataset=dataset, probes=[probe], reported_rows=rows)


def _named(result: EvalResult) -> str:
    return result.name


@pytest.mark.parametrize("largest", [1, 255, 256, 70_000])
def test_packed_numbers_are_unpacked(largest: int) -> None:
    values = np.random.default_rng(0).integers(0, largest + 1, (3, 50))
    assert (unpack(pack(values)) == values).all()


@pytest.mark.parametrize(
    "text",
    ["", "u1:2:!", "u1:3:eJxjZAQAAAcABA==", "f8:2:eJxjZAQAAAcABA==", "u4:999999999:eJxjZAQAAAcABA==", "u1:2:AAAA"],
)
def test_damaged_packed_numbers_are_refused(text: str) -> None:
    with pytest.raises(ResultError, match="packed numbers"):
        unpack(text)


def test_the_predictions_in_a_result_are_those_of_its_confusion_matrices(base: EvalResult) -> None:
    rows = rows_of([base])
    confusion = np.array(base.probes[0].scores["test"].confusion)
    assert rows.right.sum(axis=1) == pytest.approx(np.trace(confusion, axis1=1, axis2=2))
    assert len(np.unique(rows.groups)) == base.dataset["groups"]["test"]
    assert (np.bincount(rows.labels) == base.dataset["rows_by_class"]["test"]).all()


def test_a_clear_difference_is_shown_and_a_small_one_is_not(base: EvalResult) -> None:
    results = [
        _predicting(base, 0.80, seed=1, name="good"),
        _predicting(base, 0.60, seed=2, name="bad"),
        _predicting(base, 0.802, seed=3, name="alike"),
    ]
    comparison = compare_results(results, by=_named)
    verdicts = {(pair.one, pair.other): pair.verdict for pair in comparison.pairs}
    assert verdicts == {
        ("good", "bad"): "good is better",
        ("good", "alike"): "no difference shown",
        ("bad", "alike"): "alike is better",
    }
    assert all(pair.p_adjusted >= pair.found.p_value for pair in comparison.pairs)
    last = comparison.ranks[-1]
    assert (last.model, last.mean_rank, last.better_than, last.worse_than) == ("bad", 3, 0, 2)
    assert sum(rank.mean_rank for rank in comparison.ranks) == 6


def test_seeds_become_runs_and_folds_become_rows(base: EvalResult, module_dataset: Path) -> None:
    seeds = [_predicting(base, 0.8, seed=seed, name="model") for seed in (1, 2, 3)]
    rows = rows_of(seeds)
    assert rows.right.shape == (3, 300)
    assert rows.right[0] == pytest.approx(rows_of(seeds[:1]).right.mean(axis=0))
    protocol = dataclasses.replace(get_protocol("paper-standardized"), max_steps=5)
    backbone = load_backbone("fm_eval.ColourHistogram", args={"bins": 2, "input_size_px": 32})
    views = load_folds(module_dataset, folds=2)
    folds = [
        evaluate(
            view,
            backbone,
            name="model",
            role="x",
            protocols=[protocol],
            settings=EvalSettings(resamples=0, heads=()),
        )
        for view in views
    ]
    together = rows_of(folds)
    assert together.right.shape == (5, sum(len(view.rows("test")) for view in views))
    assert len(np.unique(together.groups)) == views[0].table["group_id"].nunique()
    with pytest.raises(ReportError, match="several splits of"):
        rows_of([base, dataclasses.replace(base, dataset={**base.dataset, "sha256": "1" * 64})])


def test_what_was_measured_otherwise_is_not_compared(base: EvalResult) -> None:
    one = _predicting(base, 0.8, seed=1, name="one")
    with pytest.raises(ReportError, match="differ in dataset or split"):
        compare_results([one, _predicting(base, 0.8, seed=2, name="two", sha256="2" * 64)], by=_named)
    other = _predicting(base, 0.8, seed=2, name="two")
    renamed = dataclasses.replace(other.probes[0], protocol={**other.probes[0].protocol, "name": "paper"})
    with pytest.raises(ReportError, match="differ in headline protocol"):
        compare_results([one, dataclasses.replace(other, probes=[renamed])], by=_named)
    old = dataclasses.replace(other, probes=[dataclasses.replace(other.probes[0], predicted=None)])
    with pytest.raises(ReportError, match="holds no predictions of single rows"):
        compare_results([one, old], by=_named)
    with pytest.raises(ReportError, match="two models needed"):
        compare_results([one, one], by=_named)
    with pytest.raises(ReportError, match="no two models have a task in common"):
        compare_results([one, _predicting(base, 0.8, seed=2, name="two", task="else")], by=_named)
    torn = dataclasses.replace(other, reported_rows=ReportedRows(labels=pack(np.zeros(3, int)), groups="u1:3:"))
    with pytest.raises(ResultError, match="another number of bytes"):
        compare_results([one, torn], by=_named)


def test_the_gate_needs_a_drop_that_is_both_large_and_shown(base: EvalResult) -> None:
    old = [_predicting(base, 0.80, seed=1, name="old"), _predicting(base, 0.7, seed=1, name="old", task="other")]
    new = [_predicting(base, 0.70, seed=2, name="new"), _predicting(base, 0.7, seed=3, name="new", task="other")]
    verdicts = {one.task: one for one in gate(new, old, max_drop=0.01)}
    assert {task: one.passed for task, one in verdicts.items()} == {"data": False, "other": True}
    assert verdicts["data"].drop == pytest.approx(0.1, abs=0.03)
    assert all(one.passed for one in gate(new, old, max_drop=0.3))
    assert all(one.passed for one in gate(old, new, max_drop=0.0))
    summary = markdown(list(verdicts.values()))
    assert "### fm-eval gate: failed" in summary
    assert "| failed |" in summary
    assert f"| {100 * verdicts['other'].smallest_visible:.1f} points | passed |" in summary
    with pytest.raises(ReportError, match="task data, which the new results lack"):
        gate(new[1:], old, max_drop=0.01)
    with pytest.raises(ReportError, match="max_drop 1, allowed"):
        gate(new, old, max_drop=1)


def test_the_command_ends_with_the_gates_verdict(
    base: EvalResult, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = {}
    for name, share in (("good", 0.8), ("bad", 0.6), ("alike", 0.8)):
        files[name] = str(tmp_path / f"{name}.json")
        write_result(_predicting(base, share, seed=len(files), name=name), files[name])
    output = tmp_path / "comparison.json"
    assert main(["compare", files["good"], files["bad"], files["alike"], f"--output={output}"]) == 0
    said = capsys.readouterr().out
    assert "good is better" in said
    assert "no difference shown" in said
    content = json.loads(output.read_text())
    assert (content["format"], content["format_version"]) == ("fm-eval-comparison", 1)
    assert [pair["verdict"] for pair in content["pairs"]].count("no difference shown") == 1

    summary = tmp_path / "gate.md"
    against = [f"--baseline={files['good']}", "--max-drop=0.01", f"--markdown-output={summary}"]
    assert main(["compare", files["bad"], *against]) == 1
    assert summary.read_text().startswith("### fm-eval gate: failed")
    assert main(["compare", files["alike"], *against]) == 0
    assert summary.read_text() in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["{a}", "{b}", "--max-drop=0.01"], "give a baseline too"),
        (["{a}", "--baseline={b}", "--output=x.json"], "a gate writes --markdown_output"),
        (["{a}", "{a}"], "given twice"),
        (["{a}", "{c}"], "tell them apart by"),
        (["{a}", "gone.json"], "gone.json: not a readable JSON file"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(
    options: list[str], message: str, base: EvalResult, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for file, name in (("a", "one"), ("b", "two"), ("c", "one")):
        write_result(_predicting(base, 0.8, seed=1, name=name), tmp_path / f"{file}.json")
    places = {file: str(tmp_path / f"{file}.json") for file in "abc"}
    assert main(["compare", *(option.format(**places) for option in options)]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
