"""Reading in workers of every start method, after the parent has used the same stores; noise counts as failure."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

CONTENT = bytes(range(256)) * 40
BUCKET = "process-suite"

# The parent reads through obstore and through fsspec, lists by fsspec, keeps a session open on either loop, and goes on
# reading while and after its children do.
_PROGRAM = """
import gc, json, multiprocessing, sys
from online_patching.errors import StorageError
from online_patching.loop import on_loop, run
from online_patching.storage import Store, open_folder, open_object

PLACES = json.loads(sys.argv[2])

def read_all():
    answers = []
    for url, options in PLACES:
        source = open_object(url, options)
        info = run(source.info())
        answers.append(run(source.read_ranges([(5, 5), (100, 9)], expected=info)) == [CONTENT[5:10], CONTENT[100:109]])
    return answers

CONTENT = bytes(range(256)) * 40
SOURCES = [open_object(url, options) for url, options in PLACES]

def work(task):
    # Old sources and new ones, and whatever the collector frees of the parent's.
    old = [run(source.read_ranges([(5, 5)])) == [CONTENT[5:10]] for source in SOURCES]
    gc.collect()
    return old + read_all()

if __name__ == "__main__":
    assert all(work(0))
    for url, options in PLACES:
        if not url.startswith("http"):
            folder = url.rpartition("/")[0]
            assert len(run(Store(options).list_folder(folder))) == 1
    context = multiprocessing.get_context(sys.argv[1])
    with context.Pool(2) as pool:
        for answers in pool.imap_unordered(work, range(4)):
            assert all(answers), answers
            assert all(work(0))
    print("done")
"""

_FORK_AND_END = _PROGRAM.replace(
    "    context = multiprocessing",
    """    import os
    child = os.fork()
    if not child:
        assert all(work(0))
        # It ends as Python ends: with every farewell that a library has registered.
        sys.exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert all(work(0))
    print("done")
    sys.exit(0)
    context = multiprocessing""",
)


@pytest.fixture(scope="module")
def places(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> list[tuple[str, dict[str, Any]]]:
    folder = tmp_path_factory.mktemp("objects")
    (folder / "a.svs").write_bytes(CONTENT)
    found: list[tuple[str, dict[str, Any]]] = []
    nginx = request.getfixturevalue("nginx_server")
    (nginx.served / "process.svs").write_bytes(CONTENT)
    url = nginx.url("open", "process.svs")
    found += [(url, {}), (url + "?query=x", {})]
    server = request.getfixturevalue("s3_server")
    server.upload(folder, BUCKET)
    options = server.storage_options
    found += [(f"s3://{BUCKET}/a.svs", options), (f"s3://{BUCKET}/a.svs", {**options, "use_ssl": False})]
    return found


# What starts anew has nothing of the parent's to stumble over, and imports for seconds.
ANEW = [pytest.param(method, marks=pytest.mark.slow) for method in ("forkserver", "spawn")]


@pytest.mark.parametrize("method", ["fork", "os.fork", *ANEW])
def test_workers_read_and_end_quietly(method: str, places: list[tuple[str, dict[str, Any]]], tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(_FORK_AND_END if method == "os.fork" else _PROGRAM)
    done = subprocess.run(
        [sys.executable, str(program), method, json.dumps(places)], capture_output=True, text=True, timeout=90
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "done\n"
