"""Every YAML that the project ships is one that its commands accept."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import yaml
from fm_eval.cli import build_parser
from online_patching import PatchStream
from ssl_train import cli as ssl_cli

CONFIGS = Path(__file__).parent.parent / "configs"


def test_every_config_belongs_to_a_command() -> None:
    folders = {path.relative_to(CONFIGS).parts[0] for path in CONFIGS.rglob("*.yaml")}
    # What lies in `experiments` is of tools/experiment.py and tested with it.
    assert folders == {"ssl", "eval", "experiments"}
    assert not list(CONFIGS.rglob("*.yml"))


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("ssl/*.yaml")), ids=lambda path: path.stem)
def test_ssl_configs_parse(path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["ssl-train", "fit", "--config", str(path), "--print_config"])
    with pytest.raises(SystemExit) as ended:
        ssl_cli.run()
    assert ended.value.code == 0
    printed = yaml.safe_load(capsys.readouterr().out)
    written = yaml.safe_load(path.read_text())
    assert printed["trainer"]["max_steps"] == written["trainer"]["max_steps"] > 0
    stream = printed["data"]["stream"]
    assert stream["class_path"].endswith(PatchStream.__name__)
    assert stream["init_args"]["mpp"] == written["data"]["stream"]["init_args"]["mpp"]


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("eval/*.yaml")), ids=lambda path: path.stem)
def test_eval_configs_parse(path: Path) -> None:
    written = yaml.safe_load(path.read_text())
    if "stream" in written:
        command = "patches" if "labels" in written else "label-free"
    else:
        command = "segment" if "decoder" in written else "run"
    # a task is run with the backbone of whoever runs it
    given = [] if command == "patches" or "backbone" in written else ["--backbone", "fm_eval.ColourHistogram"]
    config = build_parser().parse_args([command, "--config", str(path), *given])[command]
    if "stream" in written:
        assert config.stream.class_path.endswith(PatchStream.__name__)
        assert config.stream.init_args.mpp == written["stream"]["init_args"]["mpp"]
        assert config.count == written["count"]
    else:
        assert config.output == written["output"]
        assert (config.data is None) == ("tasks" in written)
