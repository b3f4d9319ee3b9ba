"""Fixtures that the packages' tests share: where real data lies, and a real S3 server.

Real slides, patches and reference values are used where they exist: ``SLIDES_DIR``, ``DATA_DIR`` and ``GOLDEN_DIR``
name the folders, by default ``../shared/data/slides``, ``../shared/data`` and ``../shared/golden`` beside the
repository. A folder that is named must exist and must not be empty; one that is only the default may be missing.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest
from s3_server import S3Server

# CI looks for regressions: the same examples each time. At a desk hypothesis goes on searching.
hypothesis.settings.register_profile("ci", derandomize=True, deadline=None)
if os.environ.get("CI"):
    hypothesis.settings.load_profile("ci")

REPOSITORY = Path(__file__).parent.parent
_DEFAULTS = {
    "SLIDES_DIR": REPOSITORY.parent / "shared" / "data" / "slides",
    "DATA_DIR": REPOSITORY.parent / "shared" / "data",
    "GOLDEN_DIR": REPOSITORY.parent / "shared" / "golden",
}


def real_folder(variable: str) -> Path | None:
    """The folder an environment variable names, its default, or None where the default does not exist."""
    named = os.environ.get(variable)
    folder = Path(named) if named else _DEFAULTS[variable]
    if named and (not folder.is_dir() or not any(folder.iterdir())):
        raise AssertionError(f"{variable}={named}: no such folder, or an empty one")
    return folder if folder.is_dir() else None


def real_files(variable: str, *suffixes: str) -> list[Path]:
    """All files of some suffixes below a folder of real data; empty where there is no such folder."""
    folder = real_folder(variable)
    return [] if folder is None else sorted(p for p in folder.rglob("*") if p.suffix.lower() in suffixes)


@pytest.fixture(scope="session")
def s3_server() -> Iterator[S3Server]:
    with S3Server() as server:
        yield server
