"""The benchmarks of reading and of foreground run through on tiny inputs; reports say what was measured where."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
OURS, ORACLE = "online-patching", "OpenSlide"

# Most of their time goes into starting processes and importing the peers.
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("bench")


def run(name: str, folder: Path) -> dict[str, Any]:
    command = [sys.executable, str(BENCHMARKS / f"{name}.py"), "--quick", f"--folder={folder}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    report: dict[str, Any] = json.loads((folder / f"{name}.json").read_text())
    assert (report["format_version"], report["benchmark"], report["quick"]) == (1, name, True)
    assert report["machine"]["cores"] >= 1
    assert report["machine"]["versions"]["numpy"]
    assert all(each["met"] in (True, False) for each in report["targets"])
    return report


def check_plot(path: Path, *, lines: int) -> None:
    found = ET.parse(path).getroot()
    assert len(found.findall("{http://www.w3.org/2000/svg}polyline")) == lines


def test_reading_compares_pixels_and_times_every_reader(folder: Path) -> None:
    report = run("reading", folder)
    assert len(report["results"]) == 6
    for result in report["results"]:
        assert result["threads"] == 1
        assert 1 <= result["tiles_per_patch"] <= 16
        assert 0 <= result["tiles_saved_by_sharing"] < 1
        ours = result["readers"][OURS]
        assert ours["greatest_difference"] == 0, "other pixels than OpenSlide's"
        assert ours["patches_per_second"]["median"] > 0
        assert ours["times_as_fast_as"][ORACLE] > 0
        assert ours["share_of_ceiling"]["pure decoding, whole tiles"] > 0
    check_plot(folder / "reading_threads_stored.svg", lines=2)


def test_remote_reads_through_the_proxy(folder: Path) -> None:
    if shutil.which("nginx", path="/usr/sbin:/usr/local/sbin") is None and shutil.which("nginx") is None:
        pytest.skip("nginx is not installed")
    report = run("remote", folder)
    (throughput,) = report["throughput"]
    assert set(throughput["patches_per_second"]) == {"local files", "0 ms", "20 ms", "100 ms"}
    (over_read,) = report["over_read"]
    assert over_read["requests_per_patch"] > 0
    assert 1 <= over_read["bytes_fetched_over_needed"] < 2
    assert {each["latency_ms"] for each in report["cpu_per_request"]} == {0, 20}
    check_plot(folder / "remote_in_flight.svg", lines=1)


def test_memory_is_followed_and_what_is_left_is_named(folder: Path) -> None:
    report = run("memory", folder)
    measured = {each["measure"]: each for each in report["results"]}
    assert {"stream", "read_patches"} <= set(measured)
    for name in ("stream", "read_patches"):
        assert len(measured[name]["curve"]) >= 2
        assert measured[name]["last_mib"] > 0
    assert all(set(each["left"]) == {"python_threads", "threads", "sockets", "files"} for each in measured.values())
    check_plot(folder / "memory.svg", lines=2)


def test_the_foreground_of_huge_slides_costs_no_more_than_its_budget(folder: Path) -> None:
    report = run("foreground_cost", folder)
    assert len(report["results"]) == 4
    for result in report["results"]:
        assert result["overlap"] > 0.9, result["slide"]
        assert result["megabytes"] < 64
    assert not list(folder.glob("tmp*")), "a slide was left behind"
