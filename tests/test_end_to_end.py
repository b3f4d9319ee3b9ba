"""The main job on small slides: a bucket at one end, a report at the other, every step a real command."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from make_sample_slides import make_patches, make_slides


def run_demo(repository: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(repository / "tools" / "demo.py"), *(str(a) for a in arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=550, check=False)


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small slides, labelled patches, and the demo's config cut down to two steps."""
    folder = tmp_path_factory.mktemp("material")
    make_slides(folder / "slides", seed=1, slides=3, small=True, progress=False)
    make_patches(folder / "patches", seed=1, patches_per_class=12, patch_size=96, progress=False)
    config = yaml.safe_load((Path(__file__).parent.parent / "configs" / "ssl" / "demo.yaml").read_text())
    arguments: dict[str, Any] = config["model"]["init_args"]
    arguments["architecture_kwargs"] |= {"depth": 1, "embed_dim": 48, "num_heads": 3}
    arguments["input_size_px"] = 96
    arguments["epoch_size"] = 4
    config["data"]["batch_size"] = 4
    config["trainer"]["max_steps"] = 2
    (folder / "ssl.yaml").write_text(yaml.safe_dump(config))
    return folder


@pytest.mark.slow
def test_from_slides_to_report(repository: Path, material: Path, tmp_path: Path) -> None:
    slides = sorted((material / "slides").glob("*.svs"))
    broken = tmp_path / "broken.svs"
    broken.write_bytes(slides[0].read_bytes()[:5000])
    output = tmp_path / "out"
    options = ["--eval", material / "patches", "--config", material / "ssl.yaml", "--output", output]
    done = run_demo(repository, "--slides", *slides, broken, *options)
    assert done.returncode == 1, done.stderr
    assert "left out broken: " in done.stderr
    summary = json.loads((output / "result.json").read_text())
    for role in ("random", "trained", "colour"):
        assert 0 <= summary[role]["mean"] <= 1
        assert summary[role]["std"] >= 0
    page = (output / "report.html").read_text()
    assert "<svg" in page
    assert "http://" not in page.replace("http://www.w3.org", "")
    about = json.loads((output / "seed_0" / "trained" / "backbone.json").read_text())
    assert (about["step"], about["method"]) == (2, "dinov2")


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--slides", "{empty}"], "no slides found"),
        (["--slides", "{text}"], "not a slide"),
        (["--slides", "{none}"], "no such folder"),
        (["--eval", "{none}"], "does not exist"),
    ],
)
def test_bad_input_is_one_clear_line(repository: Path, tmp_path: Path, arguments: list[str], reason: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.svs").write_text("I am not a slide. " * 10)
    places = {"empty": tmp_path / "empty", "text": tmp_path / "text.svs", "none": tmp_path / "none"}
    done = run_demo(repository, *(a.format(**places) for a in arguments), "--output", tmp_path / "out")
    assert done.returncode == 2
    assert reason in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("index", "reason"),
    [
        ("path,label,split\na.png,x,train\n", "group_id"),
        ("path,label,group_id,split\nmissing.png,x,1,train\n", "missing.png"),
    ],
)
def test_mistakes_in_the_labels_are_found_before_training(
    repository: Path, material: Path, tmp_path: Path, index: str, reason: str
) -> None:
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "index.csv").write_text(index)
    output = tmp_path / "out"
    options = ["--eval", tmp_path / "labels", "--config", material / "ssl.yaml", "--output", output]
    done = run_demo(repository, "--slides", material / "slides", *options)
    assert done.returncode == 2
    assert reason in done.stderr
    assert "Traceback" not in done.stderr
    assert (output / "catalog" / "slides.parquet").exists(), "what was done stays"
    assert not (output / "seed_0" / "checkpoints").exists()
