from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from fm_eval import (
    EvalResult,
    EvalSettings,
    ResultError,
    evaluate,
    get_protocol,
    load_backbone,
    load_dataset,
    read_result,
    render_report,
    write_result,
)
from fm_eval.result import FORMAT_VERSION


@pytest.fixture
def result(make_dataset: Callable[..., Path]) -> EvalResult:
    """A real result with every head."""
    protocols = [dataclasses.replace(get_protocol(name), max_steps=20) for name in ("paper", "sweep-honest")]
    return evaluate(
        load_dataset(make_dataset()),
        load_backbone("fm_eval.ColourHistogram", args={"bins": 4, "input_size_px": 32}),
        name="model",
        role="trained",
        protocols=protocols,
        settings=EvalSettings(heads=("simpleshot", "logistic", "few-shot"), resamples=40),
    )


def test_a_result_is_read_as_it_was_written(result: EvalResult, tmp_path: Path) -> None:
    write_result(result, tmp_path / "r.json")
    again = read_result(tmp_path / "r.json")
    for part in ("knn", "unsupervised", "heads", "few_shot"):
        assert getattr(again, part) == getattr(result, part), part
    assert [probe.scores for probe in again.probes] == [probe.scores for probe in result.probes]
    text = (tmp_path / "r.json").read_text()
    assert "NaN" not in text
    assert "Infinity" not in text
    assert [probe.selected_on for probe in again.probes] == ["val", "inner train"]
    assert [head.name for head in again.heads] == ["simpleshot", "logistic"]
    assert {metric.name for metric in again.unsupervised.metrics} > {"odcorr", "rankme_centred", "alpha_req_plain"}
    intervals = again.probes[0].scores["test"].intervals
    assert intervals is not None
    assert (intervals.unit, intervals.units, intervals.resamples) == ("group", result.dataset["groups"]["test"], 40)


def test_a_file_of_version_1_is_read_without_what_came_later(result: EvalResult, tmp_path: Path) -> None:
    write_result(result, tmp_path / "r.json")
    content = json.loads((tmp_path / "r.json").read_text())
    content["format_version"] = 1
    for name in ("heads", "few_shot"):
        del content[name]
    del content["unsupervised"]["metrics"]
    for probe in content["probes"]:
        del probe["trials"]
    for holder in (*content["probes"], {"scores": content["knn"]["majority"]}, {"scores": content["knn"]["softmax"]}):
        for scores in holder["scores"].values():
            for name in ("metrics", "undefined", "intervals"):
                del scores[name]
    (tmp_path / "old.json").write_text(json.dumps(content))
    old = read_result(tmp_path / "old.json")
    assert old.probes[0].scores["test"].mean == result.probes[0].scores["test"].mean
    assert (old.heads, old.few_shot) == ([], None)
    assert "Further metrics" not in render_report([old])
    content["format_version"] = FORMAT_VERSION + 1
    (tmp_path / "new.json").write_text(json.dumps(content))
    with pytest.raises(ResultError, match=f"format_version {FORMAT_VERSION + 1} is newer than {FORMAT_VERSION}"):
        read_result(tmp_path / "new.json")


def test_the_report_shows_further_metrics_and_heads(result: EvalResult) -> None:
    page = render_report([result])
    scores = result.probes[0].scores["test"]
    assert scores.intervals is not None
    low, high = scores.intervals.bounds["balanced_accuracy"]
    assert f"{scores.mean:.3f}<br><small>{low:.3f} to {high:.3f}</small>" in page
    assert f"40 resamples of {result.dataset['groups']['test']} patients or groups" in page
    assert '<th scope="col">simpleshot</th>' in page
    assert '<th scope="col">4 shots</th>' in page
    undefined = dataclasses.replace(
        result, heads=[dataclasses.replace(result.heads[0], scores={}, undefined="no row of class 2")]
    )
    assert 'undefined<small class="reason">no row of class 2</small>' in render_report([undefined])
