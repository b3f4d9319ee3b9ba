"""What the numbers of an experiment say, and how they are written."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from experiments.definition import (
    RANDOM,
    Expected,
    Experiment,
    Published,
    read_experiment,
)
from experiments.errors import ExperimentError
from experiments.outcome import Cell, Point, cell_of, judge, read_curve, read_dice, read_label_free, read_scores
from experiments.writing import Outcome, table_csv, table_markdown, write_outcome


def cell(mean: float, std: float | None = 0.01) -> Cell:
    return Cell(mean=mean, std=std, over="3 seeds", values=(mean,))


def verdicts(expected: Expected, cells: dict[tuple[str, str], Cell], rows: Sequence[str]) -> list[str]:
    return [one.verdict for one in judge([expected], cells, [], rows=rows, tasks=["t"])]


def test_a_difference_counts_where_it_is_twice_the_spread() -> None:
    above = Expected(text="trained above random", kind="above", than="random")
    cells = {("random", "t"): cell(0.60), ("a", "t"): cell(0.63), ("b", "t"): cell(0.61), ("c", "t"): cell(0.55)}
    assert verdicts(above, cells, ["a", "b", "c", "d"]) == ["holds", "not shown", "does not hold", "not judged"]
    assert verdicts(above, {("random", "t"): cell(0.6, None), ("a", "t"): cell(0.9, None)}, ["a"]) == ["not shown"]


def test_not_worse_asks_for_less_than_better() -> None:
    rising = Expected(text="more is not worse", kind="not_falling")

    def given(*means: float, std: float | None = 0.01) -> list[str]:
        cells = {(row, "t"): cell(mean, std) for row, mean in zip("abcd", means, strict=False)}
        return verdicts(rising, cells, list("abcd"[: len(means)]))

    # From each to the next, and from the first to the last.
    assert given(0.60, 0.61, 0.60, 0.50) == ["holds", "not shown", "does not hold", "does not hold"]
    assert given(0.60, 0.59, 0.58, 0.575) == ["not shown", "not shown", "not shown", "does not hold"]
    assert given(0.60, 0.60) == ["holds"]
    assert given(0.60, 0.70, std=None) == ["not judged"]


def points_of(row: str, heights: Sequence[float], *, seed: int = 0, odcorr: Sequence[float] = ()) -> list[Point]:
    return [
        Point(
            row=row,
            seed=seed,
            step=10 * (number + 1),
            task="t",
            balanced_accuracy=height,
            std=0.01,
            odcorr=odcorr[number] if odcorr else None,
            rankme=None,
        )
        for number, height in enumerate(heights)
    ]


def test_faster_is_the_height_of_the_curve() -> None:
    faster = Expected(text="faster", kind="faster", rows=("warm",), than="cold")
    cold = points_of("cold", [0.4, 0.5, 0.6])
    for heights, verdict in (([0.5, 0.6, 0.6], "holds"), ([0.4, 0.5, 0.61], "not shown"), ([0.3] * 3, "does not hold")):
        (found,) = judge([faster], {}, [*cold, *points_of("warm", heights)], rows=["warm"], tasks=["t"])
        assert found.verdict == verdict
    (found,) = judge([faster], {}, cold, rows=["warm"], tasks=["t"])
    assert found.verdict == "not judged"


def test_a_relation_is_a_rank_correlation() -> None:
    falls = Expected(text="lower ODCorr, higher accuracy", kind="falls_with_odcorr")
    heights = [0.4, 0.5, 0.55, 0.6, 0.7, 0.8]
    for odcorr, verdict in (
        ([0.9, 0.8, 0.7, 0.5, 0.4, 0.2], "holds"),
        ([0.1, 0.2, 0.3, 0.4, 0.5, 0.6], "does not hold"),
    ):
        (found,) = judge([falls], {}, points_of("m", heights, odcorr=odcorr), rows=["m"], tasks=["t"])
        assert found.verdict == verdict
    (found,) = judge([falls], {}, points_of("m", [0.5], odcorr=[0.5]), rows=["m"], tasks=["t"])
    assert found.verdict == "not judged"


def test_spread_is_over_seeds_where_there_are_several() -> None:
    one, several = cell_of([(0.5, [0.4, 0.6])], inner="folds"), cell_of([(0.5, [0.1]), (0.7, [0.9])], inner="folds")
    assert (one.mean, one.over) == (0.5, "2 folds")
    assert one.std == pytest.approx(0.1414, abs=1e-4)
    assert (several.mean, several.over) == (pytest.approx(0.6), "2 seeds")
    assert several.std == pytest.approx(0.1414, abs=1e-4)


def test_curves_are_read_from_the_table_of_watch(tmp_path: Path) -> None:
    path = tmp_path / "curves.csv"
    head = "name,checkpoint,step,task,split,metric,value,std,runs,low,high,weights_sha256"
    rows = [
        "a,step-10,10,t,val,balanced_accuracy,0.9,0.01,5,,,x",
        "a,step-10,10,t,test,balanced_accuracy,0.5,0.01,5,,,x",
        "a,step-10,10,t,test,odcorr,0.3,,,,,x",
        "a,step-10,10,t,test,rankme_uncentred,7.5,,,,,x",
        "a,step-5,5,t,test,balanced_accuracy,0.4,,5,,,x",
    ]
    path.write_text("\n".join([head, *rows]) + "\n")
    first, second = read_curve(path, row="a", seed=0)
    assert (first.step, first.balanced_accuracy, first.std, first.odcorr) == (5, 0.4, None, None)
    assert (second.step, second.balanced_accuracy, second.odcorr, second.rankme) == (10, 0.5, 0.3, 7.5)


def test_results_are_read_as_they_are_written(tmp_path: Path) -> None:
    files = []
    for fold, values in enumerate(([0.5, 0.7], [0.8, 0.8])):
        scores = {"test": {"balanced_accuracy": values}, "val": {"balanced_accuracy": [1.0, 1.0]}}
        unsupervised = {"odcorr": 0.2 * (fold + 1), "rankme": None}
        content = {"probes": [{"scores": scores}], "reported_split": "test", "unsupervised": unsupervised}
        files.append(tmp_path / f"{fold}.json")
        files[-1].write_text(json.dumps(content))
    assert read_scores(files[:1]) == (pytest.approx(0.6), [0.5, 0.7])
    assert read_scores(files) == (pytest.approx(0.7), [pytest.approx(0.6), pytest.approx(0.8)]), "folds count alike"
    assert read_label_free(files) == (pytest.approx(0.3), None)
    runs = [
        {"not_converged": None, "scores": {"test": {"dice_pooled": 0.6}}},
        {"not_converged": "the loss became NaN", "scores": {"test": {"dice_pooled": 0.1}}},
        {"not_converged": None, "scores": {"test": {"dice_pooled": 0.8}}},
    ]
    files[0].write_text(json.dumps({"reported_split": "test", "runs": runs}))
    assert read_dice(files[0]) == (pytest.approx(0.7), [0.6, 0.8])
    with pytest.raises(ExperimentError, match="not a result of `fm-eval run`; delete it and run again"):
        read_scores(files[:1])
    files[0].write_text("{")
    with pytest.raises(ExperimentError, match="not a readable result"):
        read_scores(files[:1])


def outcome() -> Outcome:
    experiment: Experiment = replace(
        read_experiment("table3", "pocket"),
        published=(Published(row="1 %", task="bach", value=0.668, std=None),),
    )
    cells = {("1 %", "t"): cell(0.512), ("100 %", "t"): cell(0.61), (RANDOM, "t"): cell(0.4, None)}
    judgements = judge(experiment.expected, cells, [], rows=["1 %", "100 %"], tasks=["t"])
    return Outcome(
        experiment=experiment,
        seeds=3,
        rows=[RANDOM, "1 %", "100 %"],
        tasks=["t"],
        cells=cells,
        points=points_of("1 %", [0.4, 0.5]),
        judgements=judgements,
        missing=["model X: no --weights FOLDER was given"],
    )


def test_the_table_has_the_papers_numbers_beside_ours(tmp_path: Path) -> None:
    text = table_markdown(outcome())
    assert "| 1 % | 0.512 ± 0.010 | 0.668 |" in text
    assert "bach (paper, Table III)" in text
    assert "3 seeds" in text
    assert "no number to be reached" in text
    assert "model X: no --weights" in text
    rows = list(csv.DictReader(table_csv(outcome()).splitlines()))
    assert {row["source"] for row in rows if row["published"]} == {"paper, Table III"}
    assert [row["value"] for row in rows if (row["row"], row["task"]) == ("100 %", "t")] == ["0.610000"]
    first = {path.name: path.read_bytes() for path in write_outcome(outcome(), tmp_path)}
    assert first == {path.name: path.read_bytes() for path in write_outcome(outcome(), tmp_path)}
    assert ET.fromstring(first["plot.svg"]).tag.endswith("svg")


# What they see
