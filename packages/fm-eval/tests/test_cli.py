from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import fm_eval
import numpy as np
import pytest
import yaml
from fm_eval import LAYOUTS, ResultError, cli, read_result
from fm_eval.cli import build_parser, main
from fm_eval.task import read_task

_REPOSITORY = Path(__file__).resolve().parents[3]
_FAST = ["--batch_size=16", "--threads=2", "--progress=false"]


def test_from_images_to_report(
    make_dataset: Callable[..., Path], make_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    index, folder = str(make_dataset()), str(make_checkpoint())
    models = {
        "trained": [folder],
        "random": [folder, "--random_weights=true"],
        "colour": ["fm_eval.ColourHistogram", '--backbone_args={"bins": 4, "input_size_px": 32}'],
    }
    for role, arguments in models.items():
        output = f"--output={tmp_path / role}.json"
        protocol = "--protocol=[paper-standardized, paper]"
        arguments = [f"--data={index}", "--backbone", *arguments, f"--role={role}", output, protocol, *_FAST]
        assert main(["run", *arguments]) == 0
    result = read_result(tmp_path / "trained.json")
    assert result.backbone["weights"] == "checkpoint"
    assert [probe.protocol["name"] for probe in result.probes] == ["paper-standardized", "paper"]
    assert len(result.probes[0].scores["test"].balanced_accuracy) == 5
    assert np.sum(result.probes[0].scores["test"].confusion[0]) == result.dataset["rows"]["test"] == 12
    assert (result.reported_split, result.probes[0].selected_on) == ("test", "val")
    # tint alone tells these classes apart
    assert read_result(tmp_path / "colour.json").probes[0].scores["test"].mean > 0.95

    page, summary = tmp_path / "report.html", tmp_path / "summary.json"
    files = [str(tmp_path / f"{role}.json") for role in models]
    assert main(["report", *files, f"--output={page}", f"--summary={summary}"]) == 0
    content = json.loads(summary.read_text())
    assert {role: content[role]["mean"] for role in models} == {
        role: read_result(tmp_path / f"{role}.json").probes[0].scores["test"].mean for role in models
    }
    html = page.read_text()
    body = html.split("<body>")[1]
    assert "the colour probe" in body.split("</p>")[0]
    assert "<script" not in html
    assert "http" not in html.replace('xmlns="http://www.w3.org/2000/svg"', "")


def test_embed_writes_rows_in_index_order(make_dataset: Callable[..., Path], tmp_path: Path) -> None:
    arguments = [
        f"--data={make_dataset()}",
        "--backbone=fm_eval.ColourHistogram",
        f"--output={tmp_path}/e.npy",
    ]
    assert main(["embed", *arguments, *_FAST]) == 0
    assert np.load(tmp_path / "e.npy").shape == (48, 512)


def test_without_val_the_result_says_what_selected(make_dataset: Callable[..., Path], tmp_path: Path) -> None:
    index = make_dataset()
    index.write_text("\n".join(line for line in index.read_text().split("\n") if not line.endswith(",val")))
    output = tmp_path / "r.json"
    arguments = [f"--data={index}", "--backbone=fm_eval.ColourHistogram", f"--output={output}", *_FAST]
    assert main(["run", *arguments]) == 0
    assert read_result(output).probes[0].selected_on == "test"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data=gone.csv", "--backbone=resnet18"], "index gone.csv: no such file"),
        (["--data=gone.csv"], "backbone"),
        (["--data=gone.csv", "--backbone=resnet18", "--protocol=papers"], "allowed are paper"),
        (["--data=gone.csv", "--backbone=resnet18", "--k=many"], "k"),
        (["--config=gone.yaml"], "gone.yaml"),
        (
            ["--data=INDEX", "--backbone=fm_eval.ColourHistogram", "--device=abacus"],
            "device abacus: not available",
        ),
        (["--data=INDEX", "--backbone=fm_eval.ColourHistogram", "--batch_size=0"], "batch_size=0"),
        (["--data=INDEX", "--backbone=fm_eval.ColourHistogram", "--protocol=[]"], "no protocol given"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(
    arguments: list[str], message: str, make_dataset: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    index = str(make_dataset())
    assert main(["run", *(argument.replace("INDEX", index) for argument in arguments)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("fm-eval: ")
    assert error.count("\n") == 1
    assert message in error


def test_the_installed_command_reports_a_bad_result_file(tmp_path: Path) -> None:
    (tmp_path / "r.json").write_text('{"format": "fm-eval-result", "format_version": 4}')
    command = [Path(sys.executable).with_name("fm-eval"), "report", str(tmp_path / "r.json")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "format_version 4 is newer than 3" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"format": "fm-eval-result", "format_version": 1}'])
def test_what_is_no_result_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "r.json").write_text(content)
    with pytest.raises(ResultError, match=r"r\.json"):
        read_result(tmp_path / "r.json")


_ALL = sorted((_REPOSITORY / "configs" / "eval").glob("*.yaml"))
# a stream is built with the package that it comes from: tests/test_configs.py
_CONFIGS = [path for path in _ALL if "stream" not in yaml.safe_load(path.read_text())]


@pytest.mark.skipif(not _CONFIGS, reason="only in the workspace")
@pytest.mark.parametrize("path", _CONFIGS, ids=lambda path: path.stem)
def test_shipped_configs_are_parsed(path: Path) -> None:
    written = yaml.safe_load(path.read_text())
    command = "segment" if "decoder" in written else "run"
    given = [] if "backbone" in written else ["--backbone=fm_eval.ColourHistogram"]
    parsed = build_parser().parse_args([command, f"--config={path}", *given])[command]
    for task in parsed.get("tasks") or []:
        assert Path(str(task.absolute)).parent == path.parent
        assert read_task(Path(str(task.absolute))).layout in LAYOUTS
    assert {key: parsed[key] for key in written if key != "tasks"} == {
        key: value for key, value in written.items() if key != "tasks"
    }


def test_public_names() -> None:
    names = """
        accuracy Backbone BackboneError balanced_accuracy ColourHistogram confusion_matrix DatasetError
        DatasetNotFoundError embed_batches embed_dataset embed_images EmbedSettings EvalResult EvalSettings evaluate
        examine Finding FmEvalError get_protocol knn_predict KnnPrediction LAYOUTS LinearProbe load_backbone
        load_dataset load_folds LoadedBackbone Metric MetricError odcorr ODCorr PatchDataset ProbeError
        ProbeProtocol ProbeRun PROTOCOLS rankme read_dataset read_result render_report ReportError ResultError
        StoredEmbeddings StoreError summarise TensorBackbone TimmBackbone write_report write_result write_summary
        CKA CKAStream EmbeddedDataset FewShot Intervals LogisticProbe ODCorrStream PowerLaw Scores SimpleShot Spectrum
        SpectrumStream UnsupervisedMetric UnsupervisedStream auroc bootstrap calibration_error cka f1 few_shot
        log_loss run_few_shot run_knn run_logistic run_probe run_simpleshot score spectrum uniformity
        unsupervised_metrics SegmentationError ReportContent read_curves CurvePoint compare_results Comparison
        write_comparison paired_difference PairedDifference gate TaskGate
    """
    assert set(fm_eval.__all__) == set(names.split())


@pytest.mark.parametrize(
    ("raised", "code", "told"),
    [
        (KeyboardInterrupt(), 130, "interrupted; the same command goes on"),
        (
            OSError(28, "No space left on device", "embeddings.npy"),
            2,
            "No space left on device: 'embeddings.npy'; check",
        ),
        (BrokenPipeError(32, "Broken pipe"), 141, ""),
    ],
)
def test_what_ends_a_command_from_outside_ends_it_without_a_traceback(
    raised: BaseException, code: int, told: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def doctor(**_: object) -> int:
        raise raised

    monkeypatch.setitem(cli._COMMANDS, "doctor", doctor)
    output = os.dup(1)
    try:
        assert main(["doctor", "x"]) == code
    finally:
        os.dup2(output, 1)
        os.close(output)
    shown = capfd.readouterr().err
    assert told in shown
    assert shown.count("\n") == (1 if told else 0)
