from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from ssl_train import cli


@pytest.fixture
def config(tmp_path: Path) -> Path:
    content: dict[str, Any] = {
        "seed_everything": 5,
        "model": {
            "class_path": "ssl_train.DINO",
            "init_args": {
                "architecture": "vit_tiny_patch16_224",
                "architecture_kwargs": {
                    "img_size": 32,
                    "patch_size": 8,
                    "depth": 1,
                    "embed_dim": 24,
                    "num_heads": 2,
                },
                "crops": {
                    "class_path": "ssl_train.MultiCrop",
                    "init_args": {"global_size_px": 32, "local_size_px": 16, "n_locals": 1},
                },
                "out_dim": 16,
                "head_hidden_dim": 16,
                "head_bottleneck_dim": 8,
                "epoch_size": 8,
                "warmup_epochs": 1,
            },
        },
        "data": {
            "stream": {
                "class_path": "synthetic_stream.SyntheticStream",
                "init_args": {
                    "mpp": [0.5, 1.0],
                    "storage_options": {"key": "abc", "anon": False, "client": {"secret": "d"}},
                },
            },
            "batch_size": 4,
        },
        "trainer": {
            "max_steps": 4,
            "accelerator": "cpu",
            "default_root_dir": str(tmp_path / "run"),
            "log_every_n_steps": 1,
            "enable_model_summary": False,
        },
    }
    path = tmp_path / "x.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def main(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["ssl-train", *arguments])
    cli.main()


def fails(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line on stderr of a command that must fail."""
    with pytest.raises(SystemExit) as stop:
        main(monkeypatch, *arguments)
    assert stop.value.code == 1
    lines = [line for line in capsys.readouterr().err.splitlines() if "train dino" not in line and line.strip()]
    assert len(lines) == 1, lines
    assert lines[0].startswith("ssl-train: ")
    return lines[0]


def test_fit_then_export(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    main(monkeypatch, "fit", "--config", str(config))
    assert (run / "checkpoints" / "last.ckpt").is_file()
    header = (run / "logs" / "version_0" / "metrics.csv").read_text().splitlines()[0].split(",")
    assert {"loss", "learning_rate", "teacher_entropy", "step"} <= set(header)
    assert len(list((run / "logs" / "version_0").glob("events.out.tfevents.*"))) == 1
    saved = (run / "config.yaml").read_text()
    assert "abc" not in saved
    options = yaml.safe_load(saved)["data"]["stream"]["init_args"]["storage_options"]
    assert options == {"key": "***", "anon": False, "client": {"secret": "***"}}

    last = str(run / "checkpoints" / "last.ckpt")
    main(
        monkeypatch,
        "export",
        "--config",
        str(config),
        "--ckpt_path",
        last,
        "--output",
        str(tmp_path / "trained"),
    )
    monkeypatch.setenv("JSONARGPARSE_DEPRECATION_WARNINGS", "all")
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("always")
        main(monkeypatch, "export", "--config", str(config), "--output", str(tmp_path / "random"))
    assert not [warning for warning in shown if "ssl_train" in warning.filename], "advice that no user can follow"
    assert "exported vit_tiny_patch16_224 at step 4" in capsys.readouterr().out
    folders = [tmp_path / name for name in ("trained", "random")]
    described = [json.loads((folder / "backbone.json").read_text()) for folder in folders]
    assert [d["step"] for d in described] == [4, 0]
    assert described[0]["mpp"] == [0.5, 1.0]
    trained, random = (load_file(folder / "backbone.safetensors") for folder in folders)
    kept = torch.load(last, weights_only=True)["state_dict"]
    assert all(torch.equal(t, kept[f"teacher.backbone.{name}"]) for name, t in trained.items())
    assert not torch.equal(trained["blocks.0.attn.qkv.weight"], random["blocks.0.attn.qkv.weight"])

    # A second command goes on from the checkpoint: nothing is left to do, so nothing changes.
    main(monkeypatch, "fit", "--config", str(config), "--ckpt_path", last)
    again = torch.load(last, weights_only=True)["state_dict"]
    assert all(torch.equal(tensor, kept[name]) for name, tensor in again.items())


@pytest.mark.usefixtures("interruptible")
def test_a_run_that_is_told_to_end_says_so_and_is_no_success(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def terminated(sample: int, name: str = "sigterm", code: int = 143) -> str:
        arguments = ("--trainer.max_steps=40", f"--data.stream.init_args.{name}_at={sample}")
        with pytest.raises(SystemExit) as stop:
            main(monkeypatch, "fit", "--config", str(config), *arguments)
        assert stop.value.code == code
        return capsys.readouterr().err

    assert "ssl-train: SIGTERM while starting; nothing was saved" in terminated(0)
    # The stream is a few batches of 4 ahead of the trainer.
    told = terminated(48)
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    step = torch.load(last, weights_only=True)["global_step"]
    assert 0 < step < 40
    assert f"ssl-train: SIGTERM: stopped after step {step} of 40; go on with --ckpt_path {last}" in told

    told = terminated(48, "sigint", 130)
    step = torch.load(last, weights_only=True)["global_step"]
    assert 0 < step < 40
    assert f"ssl-train: Ctrl-C: stopped after step {step} of 40; go on with --ckpt_path {last}" in told


def test_exports_of_a_run_know_the_magnification(config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    watched = tmp_path / "watched"
    main(monkeypatch, "fit", "--config", str(config), f"--exports.folder={watched}")
    # An epoch is 8 patches, so 2 steps.
    assert sorted(folder.name for folder in watched.iterdir()) == ["step-00000002", "step-00000004"]
    assert json.loads((watched / "step-00000004" / "backbone.json").read_text())["mpp"] == [0.5, 1.0]


@pytest.mark.parametrize("shown", [True, False])
def test_the_bar_is_there_unless_the_config_says_no(
    shown: bool, config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    main(monkeypatch, "fit", "--config", str(config), f"--trainer.enable_progress_bar={str(shown).lower()}")
    assert ("train dino" in capsys.readouterr().err) == shown


def test_keys_of_a_config_that_nothing_knows_are_named(
    config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    content = yaml.safe_load(config.read_text())
    for section in (content, content["model"]["init_args"], content["data"], content["trainer"]):
        section["learning_rat"] = 1
        config.write_text(yaml.safe_dump(content))
        assert "learning_rat" in fails(monkeypatch, capsys, "fit", "--config", str(config))
        del section["learning_rat"]


def test_the_baseline_is_the_start_of_the_run(config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a learning rate of 0 the trained export equals the untrained one."""
    still = ["--model.init_args.base_learning_rate=0", "--model.init_args.min_learning_rate=0"]
    main(monkeypatch, "fit", "--config", str(config), *still)
    last = str(tmp_path / "run" / "checkpoints" / "last.ckpt")
    main(monkeypatch, "export", "--config", str(config), "--ckpt_path", last, "--output", str(tmp_path / "a"))
    main(monkeypatch, "export", "--config", str(config), "--output", str(tmp_path / "b"))
    a, b = (load_file(tmp_path / name / "backbone.safetensors") for name in "ab")
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model.init_args.architecture=vit_nope"], "no model of that name"),
        (["--model.init_args.nope=1"], "nope"),
        (["--guard.nope=1"], "nope"),
        (["--preset=nope"], "'meta', 'kaiko', 'kaiko-phase2'"),
        (["--preset=kaiko"], "no recipe for architecture 'vit_tiny_patch16_224'"),
        (["--guard.folder=absent"], "guard.folder absent: no such folder"),
        (["--checkpoints.every_n_steps=0"], "every_n_steps must be at least 1"),
        (["--data.stream.init_args.end_at=6"], "training ended after 1 of 4 steps"),
        (["--data.batch_size=0"], "batch_size"),
        (["--data.stream.init_args.fail_at=6"], "slide s6: bucket unreachable"),
        (["--data.stream.init_args.fail_at=6", "--data.num_workers=1"], "slide s6: bucket unreachable"),
        (["--data.stream.init_args.size_px=0"], "size_px 0"),
        (["--trainer.max_steps=1"], "raise max_steps"),
        (["--ckpt_path=absent.ckpt"], "absent.ckpt"),
    ],
)
def test_mistakes_end_in_one_line(
    arguments: list[str],
    message: str,
    config: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert message in fails(monkeypatch, capsys, "fit", "--config", str(config), *arguments)


def test_files_that_are_none_end_in_one_line(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "absent.yaml" in fails(monkeypatch, capsys, "fit", "--config", "absent.yaml")
    for command in (["fit"], ["export", "--output", str(tmp_path / "out")]):
        line = fails(monkeypatch, capsys, *command, "--config", str(config), "--ckpt_path", str(config))
        assert "not a checkpoint" in line


def test_masking_reaches_only_storage_options() -> None:
    def config(secret: str) -> dict[str, Any]:
        options = {"sas_token": secret, "region": "eu", "key": None}
        return {"key": "kept", "streams": [{"storage_options": options, "slide_storage_options": options}]}

    assert cli.mask_secrets(config("x")) == config("***")
