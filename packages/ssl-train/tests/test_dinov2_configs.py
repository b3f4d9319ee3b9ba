"""The shipped YAMLs of DINOv2 train: a few steps of a small model on the CPU; the stream lives elsewhere."""

from __future__ import annotations

import csv
import math
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from ssl_train import DINOv2, cli

ALL = sorted((Path(__file__).parents[3] / "configs" / "ssl").glob("*.yaml"))
CONFIGS = [path for path in ALL if yaml.safe_load(path.read_text())["model"]["class_path"] == "ssl_train.DINOv2"]
STEPS = 20
BATCH = 2


def small(config: dict[str, Any], run: Path) -> dict[str, Any]:
    """The config with other sizes, one device and no downloads; everything else is as shipped."""
    model = config["model"]["init_args"]
    patch = 14 if "img_size" not in model.get("architecture_kwargs", {}) else 16
    kwargs = {"img_size": 2 * patch, "patch_size": patch, "depth": 1, "embed_dim": 24, "num_heads": 2}
    # At this batch size the peak can lie below the end of the schedule.
    model |= {"architecture_kwargs": kwargs, "init_weights": None, "epoch_size": BATCH, "min_learning_rate": 0.0}
    for head in ("dino_head", "ibot_head"):
        if model.get(head) is not None:
            model[head] |= {"out_dim": 32, "hidden_dim": 16, "bottleneck_dim": 8}
    model["crops"]["init_args"] |= {"global_size_px": 2 * patch, "local_size_px": patch}
    config["data"] |= {"batch_size": BATCH, "num_workers": 0}
    config["data"]["stream"] = {"class_path": "synthetic_stream.SyntheticStream", "init_args": {"mpp": [0.5]}}
    trainer = {"max_steps": STEPS, "accelerator": "cpu", "devices": 1, "strategy": "auto", "precision": "32-true"}
    trainer |= {"num_nodes": 1, "default_root_dir": str(run), "log_every_n_steps": 1, "enable_model_summary": False}
    config["trainer"] |= trainer
    return config


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_config_trains(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shipped = yaml.safe_load(path.read_text())
    changed = tmp_path / path.name
    changed.write_text(yaml.safe_dump(small(yaml.safe_load(path.read_text()), tmp_path / "run")))
    monkeypatch.setattr(sys, "argv", ["ssl-train", "fit", "--config", str(changed)])
    trained = cli.run()
    assert isinstance(trained.model, DINOv2)
    assert trained.trainer.global_step == STEPS
    with (tmp_path / "run" / "logs" / "version_0" / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["loss"]]
    assert len(rows) == STEPS
    assert all(math.isfinite(float(row["loss"])) for row in rows)
    # The peak of the schedule, for this number of patches a step.
    peak = shipped["model"]["init_args"]["base_learning_rate"] * math.sqrt(BATCH / 1024)
    assert max(float(row["learning_rate"]) for row in rows) == pytest.approx(peak)


@pytest.mark.parametrize("path", [p for p in CONFIGS if p.stem != "demo"], ids=lambda path: path.name)
def test_epochs_and_patches_per_step_are_the_papers(path: Path) -> None:
    config = yaml.safe_load(path.read_text())
    trainer = config["trainer"]
    per_step = config["data"]["batch_size"] * trainer["devices"] * trainer.get("num_nodes", 1)
    assert per_step == {"dinov2_vitl14": 512, "dinov2_vits16": 256}[path.stem]
    assert trainer["max_steps"] * per_step == 100 * config["model"]["init_args"]["epoch_size"]


def test_there_are_configs() -> None:
    assert [path.stem for path in CONFIGS] == ["demo", "dinov2_vitl14", "dinov2_vits16"]
