from __future__ import annotations

import csv
import fcntl
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import timm
import torch
from fm_eval import read_result
from fm_eval.checkpoint import hash_file
from fm_eval.cli import main
from fm_eval.curves import COLUMNS, read_curves
from fm_eval.errors import ResultError
from fm_eval.watch_folder import list_checkpoints, private_copy

Make = Callable[..., Path]
Watch = Callable[..., int]


@pytest.fixture
def export(make_checkpoint: Make, tmp_path: Path) -> Callable[..., Path]:
    """Write `exports/step-N`, with weights of its own; keyword arguments replace JSON fields."""

    described: dict[str, Any] = json.loads((make_checkpoint(folder="described") / "backbone.json").read_text())

    def write(step: int, *, seed: int | None = None, **fields: Any) -> Path:
        target = tmp_path / "exports" / f"step-{step:08d}"
        target.mkdir(parents=True, exist_ok=True)
        (target / "backbone.json").unlink(missing_ok=True)
        with torch.random.fork_rng():
            torch.manual_seed(step if seed is None else seed)
            model = timm.create_model(described["architecture"], pretrained=False, **described["architecture_kwargs"])
        weights = target / "backbone.safetensors"
        safetensors.torch.save_file(model.state_dict(), weights)
        content = {**described, "step": step, "sha256": hash_file(weights), **fields}
        (target / "backbone.json").write_text(json.dumps(content))
        return target

    return write


@pytest.fixture
def watch(make_dataset: Make, tmp_path: Path) -> Watch:
    """Run `fm-eval watch` on the exports."""
    index = make_dataset(groups=4)

    def run(*options: str, output: str = "curve") -> int:
        given = [f"--data={index}", f"--output={tmp_path / output}", "--resamples=40", "--heads=[]", "--name=curve"]
        return main(["watch", str(tmp_path / "exports"), *given, "--poll-seconds=0.05", *options])

    return run


def _rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "curves.csv").open() as file:
        return list(csv.DictReader(file))


def test_the_curve_is_that_of_the_results(export: Callable[..., Path], watch: Watch, tmp_path: Path) -> None:
    for step in (20, 5):
        export(step)
    assert watch("--once=true") == 0
    rows = _rows(tmp_path / "curve")
    assert tuple(rows[0]) == COLUMNS
    assert [int(row["step"]) for row in rows] == sorted(int(row["step"]) for row in rows)
    for step in (5, 20):
        result = read_result(tmp_path / f"curve/results/step-{step:08d}/data.json")
        assert result.backbone["step"] == step
        scores = result.probes[0].scores["test"]
        assert scores.intervals is not None
        expected = {
            ("balanced_accuracy", "test"): scores.mean,
            ("balanced_accuracy", "val"): result.probes[0].scores["val"].mean,
            ("knn_balanced_accuracy", "test"): result.knn.majority["test"].mean,
            ("odcorr", "test"): result.unsupervised.odcorr,
            ("rankme_uncentred", "test"): result.unsupervised.rankme,
        }
        found = {(row["metric"], row["split"]): row for row in rows if row["step"] == str(step)}
        assert {what: float(found[what]["value"]) for what in expected} == expected
        probe = found["balanced_accuracy", "test"]
        assert (float(probe["std"]), probe["runs"]) == (scores.std, "5")
        assert (float(probe["low"]), float(probe["high"])) == scores.intervals.bounds["balanced_accuracy"]
        assert probe["weights_sha256"] == result.backbone["weights_sha256"]
    assert [str(point.step) for point in read_curves(tmp_path / "curve/curves.json")] == [row["step"] for row in rows]
    page = (tmp_path / "curve/curves.html").read_text()
    assert page.count("<svg") == 4
    assert "<script" not in page
    assert "http" not in page.replace('xmlns="http://www.w3.org/2000/svg"', "")


def test_what_is_half_written_is_never_evaluated(
    export: Callable[..., Path], watch: Watch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    export(1)
    (export(2) / "backbone.json").unlink()
    cut = export(3) / "backbone.safetensors"
    whole = cut.read_bytes()
    cut.write_bytes(whole[:-100])
    (tmp_path / "exports/step-00000004").mkdir()
    half = export(5) / "backbone.json"
    half.write_text(half.read_text()[:-40])
    assert watch("--once=true") == 0
    assert {row["step"] for row in _rows(tmp_path / "curve")} == {"1"}
    assert "waiting step-00000003" in capsys.readouterr().out
    cut.write_bytes(whole)
    assert watch("--once=true") == 0
    assert {row["step"] for row in _rows(tmp_path / "curve")} == {"1", "3"}


def test_a_restart_computes_what_is_new_or_replaced_and_ends_with_the_same_bytes(
    export: Callable[..., Path], watch: Watch, tmp_path: Path
) -> None:
    for step in (1, 2):
        export(step)
    assert watch("--max-checkpoints=1") == 0
    assert {row["step"] for row in _rows(tmp_path / "curve")} == {"1"}
    first = tmp_path / "curve/results/step-00000001/data.json"
    kept = first.stat().st_mtime_ns
    # what a killed watch may leave: an evaluation cut short, a curve that lacks a result, a copy of weights
    (tmp_path / "curve/results/step-00000002").mkdir()
    (tmp_path / "curve/results/step-00000002/data.json").write_text('{"format": "fm-eval-result", ')
    (tmp_path / "curve/curves.csv").unlink()
    (tmp_path / "curve/.checkpoint/step-00000002").mkdir(parents=True)
    assert watch("--until-step=2") == 0
    assert first.stat().st_mtime_ns == kept
    export(1, seed=77)
    assert watch("--idle-seconds=0.1") == 0
    assert first.stat().st_mtime_ns != kept
    assert watch("--once=true", output="clean") == 0
    for name in ("curves.csv", "curves.json", "curves.html"):
        assert (tmp_path / "curve" / name).read_bytes() == (tmp_path / "clean" / name).read_bytes(), name
    assert not (tmp_path / "curve/.checkpoint").exists()


def test_it_waits_for_a_training_that_has_not_begun(
    export: Callable[..., Path],
    watch: Watch,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    steps = iter([[], [1], [], [2, 3]])
    # While it sleeps the training goes on.
    monkeypatch.setattr("fm_eval.watch.time.sleep", lambda _: [export(step) for step in next(steps)])
    assert watch("--until-step=2") == 0
    assert {row["step"] for row in _rows(tmp_path / "curve")} == {"1", "2", "3"}
    said = capsys.readouterr().out
    assert "not there yet, waiting" in said
    assert "step 2 is reached" in said


def test_the_budget_counts_earlier_sessions(
    export: Callable[..., Path], watch: Watch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for step in (1, 2):
        export(step)
    assert watch("--budget-seconds=0.001") == 0
    assert "step-00000002 was not evaluated" in capsys.readouterr().out
    assert watch("--budget-seconds=0.001") == 0
    assert {row["step"] for row in _rows(tmp_path / "curve")} == {"1"}


def test_a_checkpoint_that_cannot_be_evaluated_stops_no_other(
    export: Callable[..., Path], watch: Watch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    export(1, architecture="no_such_architecture")
    export(2)
    assert watch("--until-step=2") == 1
    assert "failed  step-00000001: " in capsys.readouterr().out
    assert {row["step"] for row in _rows(tmp_path / "curve")} == {"2"}
    export(1)
    assert watch("--until-step=2") == 0
    assert {row["step"] for row in _rows(tmp_path / "curve")} == {"1", "2"}
    export(2, seed=5, architecture="no_such_architecture")
    assert watch("--until-step=2") == 1
    assert {row["step"] for row in _rows(tmp_path / "curve")} == {"1"}, "of weights that are no longer there"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--protocol=paper"], "was begun with data.protocol ['paper-standardized'], now it is ['paper']"),
        (["--seed=1"], "was begun with model.seed 0, now it is 1"),
        (["--poll-seconds=0"], "poll_seconds"),
        (["--max-checkpoints=0"], "checkpoints 0, at least 1"),
        (["--protocol=papers"], "allowed are paper"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(
    options: list[str], message: str, watch: Watch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "exports").mkdir()
    assert watch("--once=true") == 0
    assert watch("--once=true", *options) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_two_watches_never_write_one_curve(watch: Watch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert watch("--once=true") == 2
    assert "no such folder; without --once it is waited for" in capsys.readouterr().err
    (tmp_path / "exports").mkdir()
    assert watch("--once=true") == 0
    with (tmp_path / "curve/.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert watch("--once=true") == 2
    assert "another watch writes there" in capsys.readouterr().err


def test_a_copy_is_of_the_listed_weights_or_none(export: Callable[..., Path], tmp_path: Path) -> None:
    target = export(1)
    listed = list_checkpoints(target.parent)[0]
    with private_copy(target.parent, listed, into=tmp_path / "copy") as copy:
        assert copy is not None
        export(1, seed=5)
        assert hash_file(copy / "backbone.safetensors") == listed.sha256
    with private_copy(target.parent, listed, into=tmp_path / "copy") as copy:
        assert copy is None
    assert not (tmp_path / "copy").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[]", "not written by"),
        ('{"format": "fm-eval-curves", "format_version": 2, "points": []}', "format_version 2 is newer than 1"),
        ('{"format": "fm-eval-curves", "format_version": 1, "points": [{}]}', "damaged"),
        ("{", "not a readable JSON"),
    ],
)
def test_what_is_no_curve_is_refused(content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "c.json").write_text(content)
    with pytest.raises(ResultError, match=message):
        read_curves(tmp_path / "c.json")
