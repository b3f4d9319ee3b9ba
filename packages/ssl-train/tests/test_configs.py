"""Every shipped YAML of DINO trains: 20 steps of a small model on the CPU, on a synthetic stream."""

from __future__ import annotations

import csv
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from ssl_train import DINO, cli

ALL = sorted((Path(__file__).parents[3] / "configs" / "ssl").glob("*.yaml"))
CONFIGS = [path for path in ALL if yaml.safe_load(path.read_text())["model"]["class_path"] == "ssl_train.DINO"]
STEPS = 20
BATCH = 2


def small(config: dict[str, Any], run: Path) -> dict[str, Any]:
    """The config with other sizes, one device and no downloads; everything else is as shipped."""
    model = config["model"]["init_args"]
    patch = 8 if "patch8" in model["architecture"] else 16
    model["architecture_kwargs"] = {"img_size": 2 * patch, "depth": 1, "embed_dim": 24, "num_heads": 2}
    model |= {"init_weights": None, "input_size_px": None, "out_dim": 32, "head_hidden_dim": 16}
    model |= {"head_bottleneck_dim": 8, "epoch_size": BATCH * STEPS // 10}
    model["crops"]["init_args"] |= {"global_size_px": 2 * patch, "local_size_px": patch}
    config["data"] |= {"batch_size": BATCH, "global_batch_size": BATCH, "num_workers": 0}
    config["data"]["stream"] = {"class_path": "synthetic_stream.SyntheticStream", "init_args": {"mpp": [0.5]}}
    trainer = {"max_steps": STEPS, "accelerator": "cpu", "devices": 1, "strategy": "auto", "precision": "32-true"}
    config["trainer"] |= trainer | {"default_root_dir": str(run), "log_every_n_steps": 1, "enable_model_summary": False}
    return config


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_config_trains(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shipped = yaml.safe_load(path.read_text())
    changed = tmp_path / path.name
    changed.write_text(yaml.safe_dump(small(yaml.safe_load(path.read_text()), tmp_path / "run")))
    monkeypatch.setattr(sys, "argv", ["ssl-train", "fit", "--config", str(changed)])
    trained = cli.run()
    assert isinstance(trained.model, DINO)
    assert trained.trainer.global_step == STEPS
    assert (tmp_path / "run" / "checkpoints" / "last.ckpt").is_file()
    with (tmp_path / "run" / "logs" / "version_0" / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["loss"]]
    assert len(rows) == STEPS
    # The peak of the schedule, for this number of patches a step.
    rates = [float(row["learning_rate"]) for row in rows]
    assert max(rates) == pytest.approx(shipped["model"]["init_args"]["base_learning_rate"] * BATCH / 256)
    printed = capsys.readouterr().out
    if "preset" in shipped:
        assert f"preset {shipped['preset']} for {shipped['model']['init_args']['architecture']}" in printed
        assert f"  patches per step: {shipped['data']['batch_size'] * shipped['trainer']['devices']} -> 2" in printed
    else:
        assert "preset" not in printed


def test_there_are_configs() -> None:
    assert len(CONFIGS) >= 9
