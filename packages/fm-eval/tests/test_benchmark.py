"""Every public layout from the files to a result, through the command line and the shipped configs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import safetensors.torch
import timm
from fm_eval import PROTOCOLS, ProbeProtocol, read_result
from fm_eval.cli import main
from written_datasets import (
    write_bach,
    write_cifar10,
    write_cifar100,
    write_crc,
    write_food101,
    write_mhist,
    write_pcam,
)

_CONFIGS = Path(__file__).resolve().parents[3] / "configs" / "eval"
_FAST = ["--batch_size=64", "--threads=2", "--progress=false"]
_COLOUR = ["--backbone=fm_eval.ColourHistogram", '--backbone_args={"bins": 4, "input_size_px": 32}']

_WRITERS: dict[str, Callable[[Path], Path]] = {
    "bach": lambda root: write_bach(root, [*range(1, 4), 42, 43, 50, 59, 60, *range(65, 75), 91, 92, 96]),
    "crc": write_crc,
    "mhist": write_mhist,
    "pcam": write_pcam,
    "cifar10": write_cifar10,
    "cifar100": write_cifar100,
    "food101": write_food101,
}


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A protocol that leaves the time to the data."""
    quick = ProbeProtocol(name="quick", standardize=True, runs=2, max_steps=150, base_lr=1.6, patience_fraction=1.0)
    monkeypatch.setitem(PROTOCOLS, "quick", quick)


pytestmark = pytest.mark.skipif(not _CONFIGS.is_dir(), reason="only in the workspace")


def test_every_layout_runs_from_its_config(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for layout, write in _WRITERS.items():
        root, output = write(tmp_path / layout), tmp_path / f"{layout}.json"
        config = ["run", f"--config={_CONFIGS / layout}.yaml", "--protocol=quick"]
        assert main([*config, f"--data={root}", f"--output={output}", *_COLOUR, *_FAST]) == 0, layout
        said = capsys.readouterr().out
        assert f"note: {layout} is not the published dataset" in said
        result = read_result(output)
        assert result.dataset["layout"] == layout
        assert result.dataset["split_source"] == "given"
        assert result.dataset["rows"].keys() == ({"train", "val", "test"} if layout == "pcam" else {"train", "test"})
        # tint tells the classes apart; that of CIFAR-100 repeats itself after 27
        assert result.probes[0].scores["test"].mean > (0.2 if layout == "cifar100" else 0.9)


def test_the_whole_benchmark_skips_what_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_mhist(tmp_path / "data" / "mhist")
    write_crc(tmp_path / "data" / "crc")
    arguments = ["run", f"--config={_CONFIGS / 'all.yaml'}", f"--data_root={tmp_path}", "--protocol=quick"]
    output = tmp_path / "results"
    assert main([*arguments, f"--output={output}", *_COLOUR, *_FAST]) == 0
    said = capsys.readouterr().out
    for missing in ("bach", "pcam", "tp53"):
        assert f"skipped {missing}: data {tmp_path / 'data' / missing}: no such file or folder" in said
    assert said.splitlines()[-1] == f"2 results -> {output}; skipped: bach, pcam, tp53; failed: 0"
    assert sorted(path.name for path in (output / "ColourHistogram").iterdir()) == ["crc.json", "mhist.json"]
    table = pd.read_csv(output / "benchmark.csv")
    assert table["task"].tolist() == ["crc", "mhist"]
    assert table["balanced_accuracy"].min() > 0.9
    # again: nothing is embedded twice
    assert main([*arguments, f"--output={output}", *_COLOUR, *_FAST]) == 0
    for task in ("crc", "mhist"):
        embeddings = json.loads((output / "ColourHistogram" / f"{task}.json").read_text())["dataset"]["embeddings"]
        assert (embeddings["computed"], embeddings["read"] > 20) == (0, True)


def test_a_task_that_fails_does_not_stop_the_others(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_mhist(tmp_path / "data" / "mhist")
    (write_crc(tmp_path / "data" / "crc") / "CRC-VAL-HE-7K").rename(tmp_path / "elsewhere")
    arguments = ["run", f"--config={_CONFIGS / 'all.yaml'}", f"--data_root={tmp_path}", "--protocol=quick"]
    assert main([*arguments, f"--output={tmp_path / 'results'}", *_COLOUR, *_FAST]) == 2
    said = capsys.readouterr()
    assert "failed  crc: data" in said.out
    assert "1 failed, the first: crc: data" in said.err
    assert (tmp_path / "results" / "ColourHistogram" / "mhist.json").is_file()


def test_nothing_on_disk_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["run", f"--config={_CONFIGS / 'all.yaml'}", f"--data_root={tmp_path}", f"--output={tmp_path / 'r'}"]
    assert main([*arguments, *_COLOUR, *_FAST]) == 2
    assert "no task has its data on disk" in capsys.readouterr().err


def test_folds_write_a_result_and_a_split_each(
    make_dataset: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = make_dataset(groups=6, splits=False)
    arguments = ["run", f"--config={_CONFIGS / 'tp53.yaml'}", f"--data={data}", "--folds=3"]
    output = tmp_path / "tp53.json"
    assert main([*arguments, "--protocol=quick", f"--output={output}", *_COLOUR, *_FAST]) == 0
    assert "over 3 folds" in capsys.readouterr().out
    held_out = []
    for fold in range(3):
        result = read_result(tmp_path / f"tp53.fold{fold}.json")
        assert result.dataset["embeddings"]["computed"] == (36 if fold == 0 else 0)
        table = pd.read_csv(tmp_path / f"tp53.fold{fold}.split.csv")
        assert set(table["fold"]) == {0, 1, 2}
        held_out += table.loc[table["split"] == "test", "path"].tolist()
    assert len(held_out) == len(set(held_out)) == 36


def test_natural_images_with_several_backbones(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The natural-image experiment in small: backbones x CIFAR, weights from a folder, one of which is missing."""
    write_cifar10(tmp_path / "data" / "cifar10")
    names = ["vit_tiny_patch16_224", "vit_tiny_patch16_224.augreg_in21k", "vit_small_patch16_224.dino"]
    args = {"img_size": 32, "patch_size": 16, "depth": 1}
    (tmp_path / "weights").mkdir()
    for name in names[:2]:
        state = timm.create_model(name, num_classes=0, **args).state_dict()
        safetensors.torch.save_file(state, tmp_path / "weights" / f"{name}.safetensors")
    arguments = ["run", f"--config={_CONFIGS / 'natural_images.yaml'}", f"--data_root={tmp_path}"]
    arguments += [f"--backbone={json.dumps(names)}", f"--backbone_args={json.dumps(args)}", "--pooling=mean"]
    arguments += [f"--weights={tmp_path / 'weights'}", "--protocol=quick"]
    assert main([*arguments, f"--output={tmp_path / 'results'}", *_FAST]) == 2
    said = capsys.readouterr()
    assert "neither vit_small_patch16_224.dino.safetensors nor vit_small_patch16_224.dino.pth" in said.err
    table = pd.read_csv(tmp_path / "results" / "benchmark.csv")
    assert sorted(table["backbone"]) == names[:2]
    assert table["odcorr"].between(0, 1).all()
    assert table["accuracy"].between(0, 1).all()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("data: 3", "says no data"),
        ("data: a\nbackbone: b", "'backbone' does not belong to a task"),
        ("- data", "says no data"),
        ("data: [", "not a readable YAML"),
    ],
)
def test_a_file_that_is_no_task_is_refused(
    tmp_path: Path, content: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "task.yaml").write_text(content)
    assert main(["run", f"--tasks=[{tmp_path / 'task.yaml'}]", *_COLOUR, f"--output={tmp_path / 'r'}"]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--tasks=[{task}]", "--data=x"], "got data and tasks"),
        (["--tasks=[{task}]", "--folds=3"], "belong into the files of the tasks"),
        (["--tasks=[{task}]", "--resamples=9", "--heads=[logistic]"], "heads, resamples: given beside tasks"),
        (["--tasks=[{task}]", "--output=r.json"], "with tasks it is a folder"),
        (["--tasks=[]"], "got 0 tasks"),
        ([], "give data and one backbone, or tasks"),
    ],
)
def test_arguments_that_contradict(
    tmp_path: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "task.yaml").write_text("data: nowhere")
    given = [argument.format(task=tmp_path / "task.yaml") for argument in arguments]
    output = [] if any("--output" in argument for argument in given) else [f"--output={tmp_path / 'r'}"]
    assert main(["run", *given, *_COLOUR, *output]) == 2
    assert message in capsys.readouterr().err
