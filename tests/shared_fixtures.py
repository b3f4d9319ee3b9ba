"""Fixtures that the packages' tests share: where real data lies, and real servers on loopback.

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
from azure_server import AzureServer
from moto_server import MotoServer
from nginx_server import NginxServer
from s3_server import S3Server
from server_process import MissingServerError, ServerProcess

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


def _running(server: ServerProcess) -> Iterator[ServerProcess]:
    """The server while the session lasts, or a skip that says what is not installed."""
    try:
        server.__enter__()
    except MissingServerError as error:
        pytest.skip(str(error))
    try:
        yield server
    finally:
        server.__exit__()


@pytest.fixture(scope="session")
def s3_server() -> Iterator[ServerProcess]:
    yield from _running(S3Server())


@pytest.fixture(scope="session")
def moto_server() -> Iterator[ServerProcess]:
    yield from _running(MotoServer())


@pytest.fixture(scope="session")
def azure_server() -> Iterator[ServerProcess]:
    yield from _running(AzureServer())


@pytest.fixture(scope="session")
def nginx_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    yield from _running(NginxServer(tmp_path_factory.mktemp("served")))
