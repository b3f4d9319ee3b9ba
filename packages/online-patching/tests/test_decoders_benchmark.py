"""The benchmark of the decoders runs, and the libraries that it compares give the same pixels."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import cv2
import pytest
from written_slides import tissue_image

BENCHMARK = Path(__file__).parents[1] / "benchmarks" / "decoders.py"


@pytest.mark.slow
def test_all_libraries_decode_the_same_pixels(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "image.png"), tissue_image(600, 600, 1)[..., ::-1])
    command = [sys.executable, str(BENCHMARK), "--image", str(tmp_path / "image.png"), "--tiles=4", "--rounds=1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    assert (report["format_version"], report["benchmark"]) == (1, "decoders")
    rows = {(row["tiles"], row["task"], row["library"]): row for row in report["results"]}
    assert len({tiles for tiles, _, _ in rows}) == 4
    for (tiles, task, library), row in rows.items():
        # Two builds of OpenJPEG round differently; OpenCV averages where others decode a coarser resolution.
        allowed = 1 if "2000" in tiles else 0
        if task in ("whole", "quarter") or library == "Pillow":
            assert row["difference"] is not None, (tiles, task, library)
            assert row["difference"] <= allowed, (tiles, task, library)
            assert row["tiles_per_second_1"] > 0
