"""Every shipped YAML builds its model; the stream, which lives elsewhere, is replaced by a synthetic one."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import yaml
from ssl_train import DINO, cli

CONFIGS = sorted((Path(__file__).parents[3] / "configs" / "ssl").glob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_config_builds_its_model(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = yaml.safe_load(path.read_text())
    config["data"]["stream"] = {"class_path": "synthetic_stream.SyntheticStream"}
    changed = tmp_path / path.name
    changed.write_text(yaml.safe_dump(config))
    arguments = ["export", "--config", str(changed), "--output", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", ["ssl-train", *arguments])
    built = cli.run()
    assert isinstance(built.model, DINO)
    assert (tmp_path / "out" / "backbone.json").is_file()


def test_there_are_configs() -> None:
    assert CONFIGS
