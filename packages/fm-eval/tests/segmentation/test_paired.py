from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fm_eval import ReportError, compare_results, gate
from fm_eval.cli import main
from fm_eval.errors import MetricError
from fm_eval.packing import pack, unpack
from fm_eval.segmentation import SegmentationResult, read_segmentation, write_segmentation
from fm_eval.segmentation.dice import score
from fm_eval.segmentation.paired import dice_difference, image_counts
from fm_eval.segmentation.result import SegmentationRun

_NAMES = ("background", "a", "b")


def _counts(images: Sequence[Sequence[tuple[int, int, int]]]) -> np.ndarray:
    """(1, N, 3, C) of one run, from overlap, true and predicted pixels of each class but the background."""
    of_images = [np.array([(0, 0, 0), *classes]).T for classes in images]
    return np.stack(of_images)[None]


def _drawn(seed: int, *, images: int = 24, runs: int = 3, found: float = 0.9) -> np.ndarray:
    """Counts of runs that find a share of the true pixels of the same images, and as many wrong ones as they miss."""
    truth = np.random.default_rng(7).integers(500, 1500, (images, 3))
    own = np.random.default_rng(seed)
    hits = (truth * np.clip(found + 0.02 * own.standard_normal((runs, images, 3)), 0, 1)).astype(int)
    true = np.broadcast_to(truth, hits.shape)
    return np.stack([hits, true, true], axis=2)


def _result(
    counts: np.ndarray, *, name: str = "model", converged: Sequence[bool] = (), **facts: Any
) -> SegmentationResult:
    of_run = score(np.ones((1, 3, 3), dtype=int), np.ones((1, 3, 3), dtype=int), class_names=_NAMES)
    runs = [
        SegmentationRun(
            run=number,
            not_converged=None if number >= len(converged) or converged[number] else "still rose",
            steps=1,
            losses=[1.0],
            checks=[0.5],
            scores={"test": of_run},
            train_seconds=0.0,
            test_seconds=0.0,
            counts=pack(counts_N3C),
        )
        for number, counts_N3C in enumerate(counts)
    ]
    dataset = {"name": "nuclei", "sha256": "0" * 64, "classes": list(_NAMES), "groups_known": True}
    content: dict[str, Any] = {
        "name": name,
        "role": name,
        "created": "",
        "dataset": dataset,
        "backbone": {"weights_sha256": "0" * 64},
        "decoder": {"name": "linear", "parameters": 1},
        "reported_split": "test",
        "wanted_runs": len(runs),
        "runs": runs,
        "pictures": [],
        "settings": {"stride_px": 194, "steps": 300, "runs": len(runs), "seed": 0},
        "versions": {},
        "seconds": {},
        "groups": pack(np.arange(counts.shape[1]) // 2),
    }
    return SegmentationResult(**{**content, **facts})


def _named(result: SegmentationResult) -> str:
    return result.name


def test_counts_are_those_of_the_confusion_matrices() -> None:
    matrices = np.array([[[5, 1, 0], [2, 7, 1], [0, 3, 4]]])
    assert image_counts(matrices).tolist() == [[[5, 7, 4], [6, 10, 7], [7, 11, 5]]]


def test_the_difference_is_that_of_pooled_dice_by_hand() -> None:
    # a: 2 x 28 / (40 + 30) = 0.8, b: 1, so 0.9; of the other 2 x 30 / (40 + 40) = 0.75 and 0, so 0.375
    one = _counts([[(8, 10, 10), (5, 5, 5)], [(20, 30, 20), (0, 0, 0)]])
    other = _counts([[(5, 10, 10), (0, 5, 5)], [(25, 30, 30), (0, 0, 0)]])
    found = dice_difference(np.array([3, 9]), [one], [other])
    assert (found.one, found.other) == (pytest.approx(0.9), pytest.approx(0.375))
    assert found.difference == pytest.approx(0.525)
    assert (found.rows, found.groups, found.runs, found.metric) == (2, 2, (1, 1), "pooled DICE")
    # Drawn twice, the first image alone has 0.8 and 1 against 0.5 and 0; the second holds no b: 0.8 against 5 / 6.
    assert (found.low, found.high) == (pytest.approx(0.8 - 25 / 30), pytest.approx((0.8 + 1 - 0.5) / 2))


def test_a_class_that_no_image_holds_does_not_count() -> None:
    one = _counts([[(8, 10, 10), (0, 0, 0)]])
    other = _counts([[(8, 10, 10), (0, 0, 50)]])
    assert dice_difference(np.zeros(1, dtype=int), [one], [other]).difference == 0
    empty = _counts([[(0, 0, 4), (0, 0, 0)]])
    with pytest.raises(MetricError, match="all background"):
        dice_difference(np.zeros(1, dtype=int), [empty], [empty])
    with pytest.raises(MetricError, match="a run of each model"):
        dice_difference(np.zeros(1, dtype=int), [one], [one[:0]])


def test_what_is_wrong_in_one_image_is_evidence_of_one_image() -> None:
    one = _drawn(1, runs=1)
    other = one.copy()
    other[:, 5, 2, 1:] += 3000  # pixels that are predicted where nothing is
    found = dice_difference(np.arange(24), [one], [other])
    assert found.difference > 0.03
    assert found.p_value > 0.3, "all images share the denominator, and yet one alone is worse"
    assert found.low is not None
    assert found.low < 0.01


def test_the_standard_error_is_the_spread_of_drawn_images() -> None:
    one, other = _drawn(1, runs=1, images=60), _drawn(2, runs=1, images=60, found=0.88)
    found = dice_difference(np.arange(60), [one], [other])
    assert found.low is not None
    assert found.high is not None
    assert found.std_error == pytest.approx((found.high - found.low) / (2 * 1.96), rel=0.15)
    assert found.low < found.difference < found.high


def test_alike_models_show_no_difference_and_a_planted_drop_is_caught() -> None:
    good, twin = _result(_drawn(1), name="good"), _result(_drawn(1), name="twin")
    bad = _result(_drawn(2, found=0.85), name="bad")
    pairs = {(pair.one, pair.other): pair for pair in compare_results([good, twin, bad], by=_named).pairs}
    same = pairs["good", "twin"]
    assert (same.task, same.found.difference, same.p_adjusted) == ("nuclei (linear)", 0, 1)
    assert same.verdict == "no difference shown"
    assert pairs["good", "bad"].verdict == "good is better"
    assert pairs["good", "bad"].found.difference == pytest.approx(0.05, abs=0.01)
    assert pairs["good", "bad"].found.groups == 12
    assert [one.passed for one in gate([bad], [good], max_drop=0.01)] == [False]
    assert [one.passed for one in gate([twin], [good], max_drop=0.01)] == [True]
    assert [one.passed for one in gate([bad], [good], max_drop=0.1)] == [True]


def test_converged_runs_count_and_seeds_become_runs() -> None:
    counts = _drawn(1)
    counts[1, :, 0] = 0
    other = _result(_drawn(2), name="other")
    (pair,) = compare_results([_result(counts, converged=[True, False, True]), other], by=_named).pairs
    assert pair.found.runs == (2, 3)
    assert pair.found.one == pytest.approx(0.9, abs=0.01)
    seeds = [_result(_drawn(seed), settings={"stride_px": 194, "steps": 300, "seed": seed}) for seed in range(4)]
    (pair,) = compare_results([*seeds, other], by=_named).pairs
    assert pair.found.runs == (4, 3)
    alone = [compare_results([seed, other], by=_named).pairs[0].found.one for seed in seeds]
    assert pair.found.one == pytest.approx(np.mean(alone))


def test_what_was_measured_otherwise_is_not_compared() -> None:
    one, counts = _result(_drawn(1)), _drawn(2)
    dataset = {**one.dataset, "sha256": "1" * 64}
    with pytest.raises(ReportError, match="differ in dataset or split"):
        compare_results([one, _result(counts, name="other", dataset=dataset)], by=_named)
    with pytest.raises(ReportError, match="several splits of nuclei"):
        compare_results([one, _result(counts, dataset=dataset), _result(counts, name="other")], by=_named)
    longer = {**one.settings, "steps": 600}
    with pytest.raises(ReportError, match=r"differ in setting steps \(300 and 600\)"):
        compare_results([one, _result(counts, name="other", settings=longer)], by=_named)
    with pytest.raises(ReportError, match="no two models have a task in common"):
        compare_results([one, _result(counts, name="other", decoder={"name": "conv"})], by=_named)
    with pytest.raises(ReportError, match="do not fit its images"):
        compare_results([one, _result(counts, name="other", groups=pack(np.arange(3)))], by=_named)


def test_the_command_compares_and_leaves_out_what_it_cannot(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = {name: str(tmp_path / f"{name}.json") for name in ("good", "bad", "old", "unsettled")}
    write_segmentation(_result(_drawn(1), name="good"), files["good"])
    write_segmentation(_result(_drawn(2, found=0.85), name="bad"), files["bad"])
    write_segmentation(_result(_drawn(1), name="unsettled", converged=[False] * 3), files["unsettled"])
    content = json.loads(Path(files["good"]).read_text())
    content |= {"format_version": 1, "name": "old"}
    del content["groups"], content["dataset"]["groups_known"]
    for run in content["runs"]:
        del run["counts"]
    Path(files["old"]).write_text(json.dumps(content))
    assert read_segmentation(files["old"]).summary() == read_segmentation(files["good"]).summary()

    output = tmp_path / "comparison.json"
    assert main(["compare", *files.values(), f"--output={output}"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"left out: {files['old']} holds no counts of single images (format version 1); run ")
    assert lines[1] == f"left out: {files['unsettled']} has no run that converged"
    assert lines[2].startswith("nuclei (linear): good 0.")
    assert lines[2].endswith("good is better")
    assert any("rank 1.0: good, mean pooled DICE 0." in line for line in lines)
    (pair,) = json.loads(output.read_text())["pairs"]
    assert pair["found"]["metric"] == "pooled DICE"

    against = [f"--baseline={files['good']}", "--max-drop=0.01"]
    assert main(["compare", files["bad"], *against]) == 1
    assert "Allowed drop of pooled DICE: 1 points" in capsys.readouterr().out
    assert main(["compare", files["good"], *against]) == 0
    capsys.readouterr()
    assert main(["compare", files["old"], *against]) == 2, "a gate leaves nothing out"
    assert "old on nuclei holds no counts of single images" in capsys.readouterr().err


def test_a_written_result_holds_the_counts_behind_its_scores(make_folder: Callable[..., Path], tmp_path: Path) -> None:
    data, output = make_folder(count=9, instance=True), tmp_path / "out"
    backbone = '--backbone_args={"img_size": 32, "patch_size": 8, "depth": 1, "embed_dim": 48, "num_heads": 3}'
    options = ["--window_px=32", "--stride_px=27", "--steps=3", "--runs=1", "--max_runs=2", "--crops_per_image=2"]
    command = ["segment", f"--data={data}", "--labels=instance", "--backbone=vit_tiny_patch16_224", backbone]
    assert main([*command, *options, "--decoder=linear", f"--output={output}", "--progress=false"]) == 0
    result = read_segmentation(output / "result.json")
    assert not result.dataset["groups_known"]
    images = result.dataset["images"]["test"]
    assert sorted(unpack(result.groups or "").tolist()) == list(range(images))
    for run in result.runs:
        counts = unpack(run.counts or "")
        assert counts.shape == (images, 3, 2)
        overlap, true, predicted = counts[:, :, 1].sum(axis=0)
        assert run.scores["test"].dice_pooled == pytest.approx(2 * overlap / (true + predicted))
        assert (counts[:, 1].sum(axis=1) == 56 * 72).all()
