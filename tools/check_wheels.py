"""Builds each package's wheel and proves that it stands alone.

For every package: build the wheel from its own sources only, install it into a fresh environment with nothing else,
import it and run its command there, and check that its siblings are absent. ``online-patching`` must not bring torch.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
UV = REPOSITORY / ".uv" / "bin" / "uv"
PACKAGES = {"online-patching": "online_patching", "ssl-train": "ssl_train", "fm-eval": "fm_eval"}
WITHOUT_TORCH = {"online-patching"}


def main() -> int:
    """Build and check all wheels; returns the exit code."""
    dist = REPOSITORY / "dist"
    shutil.rmtree(dist, ignore_errors=True)
    for package in PACKAGES:
        _check([UV, "build", "--quiet", "--wheel", "--no-sources", "--package", package, "--out-dir", dist])
        (wheel,) = dist.glob(f"{package.replace('-', '_')}-*.whl")
        with tempfile.TemporaryDirectory(prefix="wheel-") as folder:
            _check_alone(package, wheel, Path(folder))
        print(f"{wheel.name}: installs alone, imports, siblings absent")
    return 0


def _check_alone(package: str, wheel: Path, folder: Path) -> None:
    python = folder / "venv" / "bin" / "python"
    _check([UV, "venv", "--quiet", "--python", sys.executable, folder / "venv"])
    _check([UV, "pip", "install", "--quiet", "--python", python, wheel])
    absent = [module for name, module in PACKAGES.items() if name != package]
    if package in WITHOUT_TORCH:
        absent.append("torch")
    code = (
        f"import importlib.util, {PACKAGES[package]} as module\n"
        f"present = [name for name in {absent} if importlib.util.find_spec(name)]\n"
        "assert not present, f'these should be absent: {present}'\n"
        "assert 'site-packages' in module.__file__, module.__file__\n"
        "assert (importlib.resources.files(module) / 'py.typed').is_file(), 'py.typed is missing'\n"
    )
    # Away from the checkout, so that nothing of it can be imported by accident.
    _check([python, "-c", "import importlib.resources\n" + code], cwd=folder)
    _check([folder / "venv" / "bin" / package, "--help"], cwd=folder)


def _check(command: list[str | Path], cwd: Path = REPOSITORY) -> None:
    done = subprocess.run([str(word) for word in command], cwd=cwd, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(str(word) for word in command)}\n{done.stdout}{done.stderr}")


if __name__ == "__main__":
    sys.exit(main())
