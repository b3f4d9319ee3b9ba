"""The indexing benchmark runs through the real server, and what it measures of this package is within its budget."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

# Most of its time goes into starting the server and importing the peers.
pytestmark = pytest.mark.slow

BENCHMARK = Path(__file__).parents[1] / "benchmarks" / "indexing.py"
OURS = "online-patching"


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    output = tmp_path_factory.mktemp("benchmark") / "indexing.json"
    command = [sys.executable, str(BENCHMARK), "--small", "--repeats=1", "--latency-ms=0", "--cohort=2"]
    done = subprocess.run([*command, f"--output={output}"], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    read: dict[str, Any] = json.loads(output.read_text())
    return read


def test_headers_cost_no_more_than_their_budget(report: dict[str, Any]) -> None:
    """Requests of any kind at most IFDs + 4, bytes at most 1.3 x headers + 32 KiB an IFD."""
    ours = {row["slide"]: row for row in report["results"] if row["client"] == OURS}
    assert len(report["slides"]) == len(ours) == 2
    for slide in report["slides"]:
        row = ours[slide["slide"]]
        assert row["refused"] is None
        assert row["requests"] <= slide["ifds"] + 4, slide
        assert row["bytes"] <= 1.3 * slide["header_bytes"] + 32 * 1024 * slide["ifds"], slide


def test_peers_that_read_a_slide_find_the_same_tiles(report: dict[str, Any]) -> None:
    compared = [row for row in report["results"] if row["client"] != OURS and not row["refused"]]
    assert all(row["same_tiles"] is True for row in compared)
    assert {row["client"] for row in compared} >= {"kerchunk", "tifffile, default cache", "tifffile write_fsspec"}


def test_the_report_says_what_was_measured_where(report: dict[str, Any]) -> None:
    assert (report["format_version"], report["benchmark"], report["repeats"]) == (1, "indexing", 1)
    assert report["machine"]["cores"] >= 1
    assert {"online-patching", "tifffile", "kerchunk", "fsspec"} <= set(report["versions"])
    assert {row["client"] for row in report["cohort"]} >= {OURS}
    assert all(row["requests"] > 0 and row["seconds"] > 0 for row in report["cohort"])
