from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from fm_eval import (
    EvalResult,
    ReportContent,
    ReportError,
    get_protocol,
    load_backbone,
    load_dataset,
    render_report,
    summarise,
)
from fm_eval.compare import group_by_role, verdict
from fm_eval.curves import points_of
from fm_eval.evaluate import evaluate
from fm_eval.result import ProbeResult, Scores


@pytest.fixture
def base(make_dataset: Callable[..., Path]) -> EvalResult:
    """A real result; the tests replace its headline numbers."""
    protocol = dataclasses.replace(get_protocol("paper-standardized"), max_steps=20)
    backbone = load_backbone("fm_eval.ColourHistogram", args={"bins": 4, "input_size_px": 32})
    return evaluate(load_dataset(make_dataset()), backbone, name="model", role="x", protocols=[protocol])


def _with(base: EvalResult, role: str, values: list[float], **changes: object) -> EvalResult:
    scores: dict[str, Scores] = {
        split: dataclasses.replace(one, balanced_accuracy=values) for split, one in base.probes[0].scores.items()
    }
    probe: ProbeResult = dataclasses.replace(base.probes[0], scores=scores)
    return dataclasses.replace(base, role=role, probes=[probe], **changes)  # type: ignore[arg-type]


def test_a_clear_lead_over_both_wins(base: EvalResult) -> None:
    results = [
        *(_with(base, "trained", [value] * 5) for value in (0.90, 0.91, 0.92)),
        _with(base, "random", [0.7, 0.71, 0.72]),
        _with(base, "colour", [0.8, 0.81, 0.82]),
    ]
    won, sentence = verdict(group_by_role(results))
    assert won
    assert sentence == (
        "The trained model (balanced accuracy 0.910 ± 0.010 over 3 training seeds) beats both "
        "the random initialisation (0.710 ± 0.010, difference +0.200) and "
        "the colour probe (0.810 ± 0.010, difference +0.100)."
    )
    assert summarise(results)["trained"] == {
        "mean": pytest.approx(0.91),
        "std": pytest.approx(0.01),
        "std_over": "3 training seeds",
        "results": 3,
    }


@pytest.mark.parametrize(
    ("trained", "expected"),
    [
        ([0.75, 0.76, 0.77], "does not beat the colour probe (0.810 ± 0.010, difference -0.050)"),
        (
            [0.82, 0.825, 0.83],
            "a lead smaller than twice the larger std (0.020). It beats the random initialisation",
        ),
        ([0.65, 0.66, 0.67], "does not beat the random initialisation"),
    ],
)
def test_a_lead_that_is_none_or_within_the_spread_is_said_plainly(
    base: EvalResult, trained: list[float], expected: str
) -> None:
    groups = group_by_role(
        [
            _with(base, "trained", trained),
            _with(base, "random", [0.7, 0.71, 0.72]),
            _with(base, "colour", [0.8, 0.81, 0.82]),
        ]
    )
    won, sentence = verdict(groups)
    assert not won
    assert expected in sentence


def test_missing_roles_are_named_and_never_count_as_beaten(base: EvalResult) -> None:
    won, sentence = verdict(group_by_role([_with(base, "trained", [0.9, 0.91]), _with(base, "random", [0.1, 0.2])]))
    assert not won
    assert "Not compared: the colour probe" in sentence
    assert "No trained model" in verdict(group_by_role([_with(base, "colour", [0.9])]))[1]


def test_one_run_has_no_spread_to_judge_a_lead_by(base: EvalResult) -> None:
    won, sentence = verdict(group_by_role([_with(base, "trained", [0.9]), _with(base, "random", [0.1])]))
    assert not won
    assert "no known spread" in sentence


def test_results_of_other_data_or_protocol_are_refused(base: EvalResult) -> None:
    other = dataclasses.replace(base, dataset={**base.dataset, "sha256": "0" * 64})
    with pytest.raises(ReportError, match="differ in dataset"):
        render_report([base, other])
    probe = dataclasses.replace(base.probes[0], protocol={**base.probes[0].protocol, "max_steps": 1})
    with pytest.raises(ReportError, match="differ in headline protocol"):
        render_report([base, dataclasses.replace(base, probes=[probe])])
    with pytest.raises(ReportError, match="no results"):
        render_report([])


def test_text_of_a_result_cannot_become_markup(base: EvalResult) -> None:
    classes = ["<b>a</b>", "b&c", 'd"e']
    hostile = dataclasses.replace(
        base,
        name="<script>alert(1)</script>",
        role="<img src=x>",
        dataset={**base.dataset, "classes": classes, "name": "<i>"},
        examples={"<b>a</b>": next(iter(base.examples.values()))},
    )
    probe = hostile.probes[0]
    renamed = dataclasses.replace(
        probe, scores={"<u>": probe.scores["test"]}, protocol={**probe.protocol, "name": "<s>"}
    )
    hostile = dataclasses.replace(hostile, probes=[renamed], reported_split="<u>")
    point = points_of([hostile], name="<q>", checkpoint="<q>", step=1, task="<q>")
    split = dataclasses.replace(point[0], split="<q>", metric="<q>")
    page = render_report(ReportContent(results=[hostile], curves=[*point, split]))
    for markup in ("<script", "<img src=x", "<b>a", "<i>", "<u>", "<s>", "<q>"):
        assert markup not in page
    with pytest.raises(ReportError, match="not base64"):
        render_report([dataclasses.replace(base, examples={"a": ['"><script>']})])


def test_an_undefined_metric_is_shown_with_its_reason(base: EvalResult) -> None:
    unsupervised = dataclasses.replace(base.unsupervised, odcorr=None, odcorr_undefined="0 rows with any variance")
    page = render_report([dataclasses.replace(base, unsupervised=unsupervised)])
    assert 'undefined<small class="reason">0 rows with any variance</small>' in page
    assert not re.search(r">\W*nan\b", page, re.IGNORECASE)
