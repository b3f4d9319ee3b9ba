"""The training script of the README, unchanged, on slides behind a web server, in a bucket and in a DICOM folder."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from check_training import training_script
from s3_server import S3Server
from server_process import ServerProcess
from shared_fixtures import nginx_server  # noqa: F401
from written_dicom import write_dicom
from written_slides import tissue_image, write_pyramid

# Mean square of log2(mpp) over 0.5, 1 and 2 um/px: the loss of who always answers 0, the best answer without looking.
UNTAUGHT = 2 / 3


@pytest.fixture(scope="module")
def script(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The one program of the README's section on training."""
    program = training_script((repository / "packages/online-patching/README.md").read_text())
    assert 15 <= len(program.strip().splitlines()) <= 24
    path = tmp_path_factory.mktemp("script") / "train.py"
    path.write_text(program)
    return path


def train(script: Path, *arguments: str, environment: dict[str, str] | None = None) -> float:
    """The loss that the script ends with."""
    done = subprocess.run(
        [sys.executable, "-W", "error::UserWarning:online_patching", str(script), *arguments],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, **(environment or {})},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = re.fullmatch(r"640 patches, loss (\d+\.\d+)", done.stdout.strip().splitlines()[-1])
    assert found, done.stdout
    return float(found[1])


def test_a_slide_behind_a_web_server_with_workers(script: Path, nginx_server: ServerProcess) -> None:  # noqa: F811
    write_pyramid(nginx_server.served / "training.svs", tissue_image(1500, 1200, 1), mpp=0.5)
    assert train(script, nginx_server.url("open", "training.svs"), "", "4") < UNTAUGHT


def test_a_slide_without_mpp_in_a_bucket(script: Path, s3_server: S3Server, tmp_path: Path) -> None:
    write_pyramid(tmp_path / "training.svs", tissue_image(1500, 1200, 1), mpp=None)
    url = s3_server.upload(tmp_path, "training")
    assert train(script, f"{url}/training.svs", "0.5", environment=s3_server.environment) < UNTAUGHT


def test_a_dicom_folder_with_workers(script: Path, tmp_path: Path) -> None:
    image = tissue_image(1500, 1200, 1)
    (tmp_path / "series").mkdir()
    write_dicom(tmp_path / "series" / "level_0.dcm", image, series="1.2.3", mpp=0.5)
    write_dicom(tmp_path / "series" / "level_1.dcm", image[::4, ::4], series="1.2.3", mpp=2.0)
    assert train(script, str(tmp_path / "series"), "", "4") < UNTAUGHT
