"""Learning curves: what is said of them, how they are drawn, and a tiny pair of runs from slides to the picture."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
import yaml
from learning_curves import COLOUR, HALF, SCRATCH, Reading, cross_entropies, draw, expectations
from make_sample_slides import make_patches, make_slides

LN_K = math.log(1024)


def readings(accuracies: list[float], *, seeds: int = 3, step: float = 0.01) -> list[list[Reading]]:
    return [
        [
            Reading(images=1000 * k, knn=a + step * seed, probe=a + step * seed, odcorr=0.9 - a, rankme=10 * a)
            for k, a in enumerate(accuracies)
        ]
        for seed in range(seeds)
    ]


COLOUR_READING = Reading(images=0, knn=0.5, probe=0.6, odcorr=0.5, rankme=3.0)


@pytest.mark.parametrize(
    ("last", "verdict"), [(0.9, "ahead"), (0.61, "no clear difference"), (0.3, "behind")], ids=lambda v: str(v)
)
def test_a_difference_counts_from_twice_the_spread_on(last: float, verdict: str) -> None:
    runs = {SCRATCH: readings([0.6, 0.6, last]), HALF: readings([0.6, 0.6, 0.6])}
    lines = expectations(runs, COLOUR_READING, [[6.0, 5.0]] * 3, log_prototypes=LN_K)
    assert lines[0].endswith(verdict)
    assert f"trained {last + 0.01:.3f} ± 0.010" in lines[0]


def test_a_loss_at_ln_k_and_a_falling_rank_are_told() -> None:
    runs = {SCRATCH: readings([0.6, 0.7, 0.6]), HALF: readings([0.6, 0.7, 0.8])}
    lines = expectations(runs, COLOUR_READING, [[6.9] * 40, [6.9] * 40, [6.9] * 39 + [6.0]], log_prototypes=LN_K)
    assert any("RankMe rises" in line and "0 of 3" in line for line in lines)
    assert any("below ln K = 6.93 in 0 of 3" in line for line in lines), "the end is the mean of the last tenth"


def test_one_seed_gives_no_verdict() -> None:
    runs = {SCRATCH: readings([0.1, 0.5, 0.9], seeds=1), HALF: readings([0.1, 0.5, 0.9], seeds=1)}
    assert "one seed" in expectations(runs, COLOUR_READING, [[1.0]], log_prototypes=LN_K)[0]


def test_the_picture_has_every_curve_and_stays_inside_its_panels() -> None:
    svg = ET.fromstring(draw({SCRATCH: readings([0.6, 0.7, 0.8]), HALF: readings([0.7, 0.8, 0.9])}, COLOUR_READING))
    space = "{http://www.w3.org/2000/svg}"
    assert len(svg.findall(f".//{space}polyline")) == 14, "two runs and the start in four panels, colour in two"
    texts = {element.text for element in svg.iter(f"{space}text")}
    assert {SCRATCH, HALF, COLOUR} <= texts
    for line in svg.findall(f".//{space}polyline"):
        for point in line.attrib["points"].split():
            x, y = map(float, point.split(","))
            assert 0 <= x <= 360
            assert 0 <= y <= 300


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        ("step,loss,guard_knn\n0,6.9,\n0,,0.5\n1,6.5,\n", [6.9, 6.5]),
        ("loss,dino_global_crops_loss,dino_local_crops_loss\n3.0,2.0,4.25\n", [6.25]),
    ],
    ids=["dino", "dinov2"],
)
def test_the_cross_entropy_is_read_for_either_method(tmp_path: Path, table: str, expected: list[float]) -> None:
    (tmp_path / "logs" / "version_0").mkdir(parents=True)
    (tmp_path / "logs" / "version_0" / "metrics.csv").write_text(table)
    assert cross_entropies(tmp_path) == expected


@pytest.mark.slow
def test_from_slides_to_curves(repository: Path, tmp_path: Path) -> None:
    make_slides(tmp_path / "slides", seed=3, slides=1, small=True, progress=False)
    make_patches(tmp_path / "patches", seed=3, patches_per_class=12, patch_size=64, progress=False)
    config = yaml.safe_load((repository / "configs" / "ssl" / "demo.yaml").read_text())
    arguments = config["model"]["init_args"]
    arguments["architecture_kwargs"] |= {"depth": 1, "embed_dim": 48, "num_heads": 3}
    config["data"]["batch_size"] = 4
    config["data"]["stream"]["init_args"]["min_foreground"] = 0.1
    (tmp_path / "ssl.yaml").write_text(yaml.safe_dump(config))
    command = [sys.executable, str(repository / "tools" / "learning_curves.py"), "--slides", str(tmp_path / "slides")]
    command += ["--labels", str(tmp_path / "patches"), "--config", str(tmp_path / "ssl.yaml"), "--steps", "4"]
    command += ["--seeds", "1", "--output", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads((tmp_path / "out" / "curves.json").read_text())
    (scratch,), (half,) = result["readings"][SCRATCH], result["readings"][HALF]
    assert [reading["images"] for reading in scratch] == [0, 4, 8, 12, 16]
    assert {k: v for k, v in half[0].items() if k != "images"} == {k: v for k, v in scratch[2].items() if k != "images"}
    ET.fromstring((tmp_path / "out" / "curves.svg").read_text())
    again = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert again.returncode == 0, again.stdout + again.stderr
    assert "ssl-train" not in again.stdout, "nothing is trained twice"
    assert json.loads((tmp_path / "out" / "curves.json").read_text()) == result
