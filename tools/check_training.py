"""Proves that the wheel with ``[torch]`` trains, installed alone: the README's script on slides of all kinds.

    python tools/check_training.py --http SLIDE.svs --s3 SLIDE.svs --s3-mpp 0.25 --dicom SLIDE.dcm

Each slide is read with no workers and with four, at the default start method: the first from a web server, the second
from an S3 store with a given mpp, the third from the disk.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from nginx_server import NginxServer
from s3_server import S3Server

REPOSITORY = Path(__file__).resolve().parent.parent
UV = REPOSITORY / ".uv" / "bin" / "uv"
README = REPOSITORY / "packages" / "online-patching" / "README.md"


def main() -> int:
    """Build, install, train; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--http", type=Path, required=True, help="slide to serve by nginx")
    parser.add_argument("--s3", type=Path, required=True, help="slide to put into a bucket")
    parser.add_argument("--s3-mpp", type=float, required=True, help="its um per pixel")
    parser.add_argument("--dicom", type=Path, required=True, help="file or folder of a DICOM slide")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="training-") as name:
        folder = Path(name)
        python = _install(folder)
        (folder / "train.py").write_text(training_script(README.read_text()))
        with NginxServer(_folder_of(arguments.http, folder / "http")) as web, S3Server() as store:
            url = store.upload(_folder_of(arguments.s3, folder / "s3"), "training")
            places = (
                (web.url("open", arguments.http.name), ""),
                (f"{url}/{arguments.s3.name}", str(arguments.s3_mpp)),
                (str(arguments.dicom.resolve()), ""),
            )
            for slide, mpp in places:
                for workers in ("4", "0"):
                    said = _run([python, "train.py", slide, mpp, workers], folder, store.environment)
                    print(f"{slide.rpartition('/')[2]}, {workers} workers: {said.splitlines()[-1]}", flush=True)
    return 0


def training_script(readme: str) -> str:
    """The one program of the README's section on training."""
    section = readme.partition("\n## Training\n")[2]
    (program,) = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    return str(program)


def _install(folder: Path) -> Path:
    """An environment with nothing but the wheel and what it asks for."""
    _run([UV, "build", "--quiet", "--wheel", "--no-sources", "--package", "online-patching", "--out-dir", folder])
    (wheel,) = folder.glob("*.whl")
    python = folder / "venv" / "bin" / "python"
    _run([UV, "venv", "--quiet", "--python", sys.executable, folder / "venv"])
    _run([UV, "pip", "install", "--quiet", "--python", python, f"{wheel}[torch]"])
    return python


def _folder_of(slide: Path, folder: Path) -> Path:
    folder.mkdir()
    shutil.copy(slide, folder)
    return folder


def _run(command: list[str | Path], cwd: Path = REPOSITORY, environment: dict[str, str] | None = None) -> str:
    words = [str(word) for word in command]
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | (environment or {})
    done = subprocess.run(words, cwd=cwd, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(words)}\n{done.stdout}{done.stderr}")
    return done.stdout


if __name__ == "__main__":
    sys.exit(main())
