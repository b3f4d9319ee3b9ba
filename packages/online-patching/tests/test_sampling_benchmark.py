"""The benchmark of sampling runs through on tiny inputs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARK = Path(__file__).parents[1] / "benchmarks" / "sampling.py"


@pytest.mark.slow
def test_sampling_is_measured_beside_shapely(tmp_path: Path) -> None:
    command = [sys.executable, str(BENCHMARK), "--quick", f"--folder={tmp_path}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "sampling.json").read_text())
    assert (report["format_version"], report["benchmark"], report["quick"]) == (1, "sampling", True)
    assert len(report["results"]) == 5
    for result in report["results"]:
        assert {name: row["median"] > 0 for name, row in result["positions_per_second"].items()} == {
            "online-patching": True,
            "shapely": True,
        }
    assert [each["at_least"] for each in report["targets"]] == [5000, 50_000]
