from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from fm_eval import ResultError
from fm_eval.cli import main
from fm_eval.segmentation import read_segmentation
from numpy.typing import NDArray
from PIL import Image

_BACKBONE = [
    "--backbone=vit_tiny_patch16_224",
    '--backbone_args={"img_size": 32, "patch_size": 8, "depth": 2, "embed_dim": 48, "num_heads": 3}',
]
_SMALL = ["--window_px=32", "--stride_px=27", "--batch_size=4", "--threads=2", "--progress=false"]
_QUICK = [*_SMALL, "--steps=20", "--points=64", "--decoder_layers=2", "--crops_per_image=8", "--runs=2", "--max_runs=2"]


def _pixels(path: Path) -> NDArray[np.uint8]:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def test_a_synthetic_consep_from_folder_to_report(
    make_consep: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, output = make_consep(size_px=72), tmp_path / "out"  # the stride does not divide 72
    assert main(["segment", f"--data={data}", *_BACKBONE, f"--output={output}", "--role=random", *_QUICK]) == 0
    lines = capsys.readouterr().out.splitlines()
    result = read_segmentation(output / "result.json")
    assert f"{result.decoder['parameters']:,} parameters" in lines[0]
    assert [line.startswith(f"run {number}: dice_pooled ") for number, line in enumerate(lines[1:3])] == [True, True]
    assert result.dataset["classes"] == ["background", "other", "inflammatory", "epithelial", "spindle-shaped"]
    assert result.dataset["images"] == {"train": 2, "val": 0, "test": 1}
    assert len(result.runs) == 2
    scores = result.runs[0].scores["test"]
    assert scores.dice_pooled is not None
    foreground = [scores.dice_pooled_by_class[name] for name in result.dataset["classes"][1:]]
    assert scores.dice_pooled == pytest.approx(np.mean([value for value in foreground if value is not None]))
    content = json.loads((output / "result.json").read_text())
    assert content["summary"]["dice_pooled"]["runs"] == len(result.converged)

    picture = _pixels(output / "pictures" / "test_1.png")
    assert picture.shape == (72, 3 * 72 + 16, 3)
    assert np.array_equal(picture[:, :72], _pixels(data / "Test" / "Images" / "test_1.png"))

    page = tmp_path / "report.html"
    assert main(["report", str(output / "result.json"), f"--output={page}"]) == 0
    html = page.read_text()
    assert "<script" not in html
    assert "http" not in html
    assert html.count("<figure>") == 1
    for run in result.runs:
        assert run.not_converged is None or run.not_converged in html


def test_a_second_call_trains_nothing_and_finds_the_same(
    make_folder: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, output = make_folder(count=5, instance=True, size_px=(30, 50)), tmp_path / "out"  # lower than a window
    command = ["segment", f"--data={data}", "--labels=instance", *_BACKBONE, f"--output={output}", *_QUICK]
    assert main([*command, "--decoder=conv"]) == 0
    first = read_segmentation(output / "result.json")
    assert set(first.runs[0].scores) == {"val", "test"}
    states = {path: path.stat().st_mtime_ns for path in (output / "runs").iterdir()}
    assert main([*command, "--decoder=conv"]) == 0
    second = read_segmentation(output / "result.json")
    assert [run.scores for run in second.runs] == [run.scores for run in first.runs]
    assert {path: path.stat().st_mtime_ns for path in (output / "runs").iterdir()} == states
    capsys.readouterr()
    assert main([*command, "--decoder=linear"]) == 2
    assert "of other data, weights or settings; give another output folder" in capsys.readouterr().err


def test_fresh_crops_in_mixed_precision(make_folder: Callable[..., Path], tmp_path: Path) -> None:
    data, output = make_folder(count=5, instance=True), tmp_path / "out"
    arguments = ["--labels=instance", *_BACKBONE, f"--output={output}", *_SMALL, "--crops_per_image=0"]
    once = ["--precision=bf16", "--steps=5", "--points=64", "--decoder_layers=2", "--runs=1", "--max_runs=1"]
    assert main(["segment", f"--data={data}", *arguments, *once]) == 0
    result = read_segmentation(output / "result.json")
    assert (result.settings["crops_per_image"], result.settings["bf16"]) == (0, True)
    assert np.isfinite(result.runs[0].losses).all()
    assert result.runs[0].scores["test"].dice_pooled is not None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data=gone", *_BACKBONE], "data gone: no such folder"),
        (["--data=DATA", "--backbone=fm_eval.ColourHistogram"], "no spatial tokens"),
        (["--data=DATA", "--backbone=resnet10t"], "has no grid of patch tokens"),
        (["--data=DATA", *_BACKBONE, "--window_px=36", "--stride_px=36"], "patch size 8 does not divide the window"),
        (["--data=DATA", *_BACKBONE, "--stride_px=300"], "stride_px=300, allowed is 1 to window_px=224"),
        (["--data=DATA", *_BACKBONE, "--runs=3", "--max_runs=2"], "runs=3, allowed is 1 to max_runs=2"),
        (["--data=DATA", *_BACKBONE, "--steps=0"], "steps=0"),
        (["--data=DATA", *_BACKBONE, "--learning_rate=0"], "learning_rate=0.0"),
        (["--data=DATA", *_BACKBONE, "--device=abacus"], "device abacus: not available"),
        (["--data=DATA", *_BACKBONE, "--decoder=unet"], "decoder"),
        (["--data=DATA", *_BACKBONE, "--labels=semantic"], "is in no class"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(
    arguments: list[str],
    message: str,
    make_folder: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    data = str(make_folder(instance=True))
    filled = [argument.replace("DATA", data) for argument in arguments]
    kind = ["--classes={background: [0], a: [1]}"] if "--labels=semantic" in filled else ["--labels=instance"]
    assert main(["segment", *filled, *kind, f"--output={tmp_path}/out", "--progress=false"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("fm-eval: ")
    assert error.count("\n") == 1
    assert message in error


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "not written by `fm-eval segment`"),
        ('{"format": "fm-eval-result"}', "not written by `fm-eval segment`"),
        ('{"format": "fm-eval-segmentation", "format_version": 3}', "format_version 3 is newer than 2"),
        ('{"format": "fm-eval-segmentation", "format_version": 1}', "damaged"),
    ],
)
def test_what_is_no_result_of_segmentation_is_refused(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "r.json").write_text(content)
    with pytest.raises(ResultError, match=rf"r\.json: {message}"):
        read_segmentation(tmp_path / "r.json")
