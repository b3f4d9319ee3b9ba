"""What becomes of a training program that is hurt: no hang, no process left behind, and it says what happened."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

# No part of the harm may take longer to be noticed.
HANG_S = 10
_PROGRAM = """
import os, signal, sys, time
from multiprocessing import active_children
from online_patching import PatchStream
from online_patching.torch import PatchLoader

loader = PatchLoader(PatchStream(sys.argv[1], size_px=64, mpp=0.5), batch_size=4, num_workers=int(sys.argv[2]))
for number, batch in enumerate(loader):
    if number == 3:
        print("pids", os.getpid(), *(child.pid for child in active_children()), flush=True)
        {harm}
    if number == 3000:
        break
"""


def run(catalog_url: str, workers: int, harm: str, *, sends: int | None = None) -> tuple[int, str, float, list[int]]:
    """Return code, error output, seconds from the harm to the end, and the processes that there were."""
    command = [sys.executable, "-W", "ignore", "-c", _PROGRAM.format(harm=harm), catalog_url, str(workers)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        pids = [int(pid) for pid in process.stdout.readline().split()[1:]]
        started = time.monotonic()
        if sends is not None:
            process.send_signal(sends)
        try:
            _, errors = process.communicate(timeout=60)
        except subprocess.TimeoutExpired:
            process.kill()
            pytest.fail(f"the program hangs after {harm!r}")
        return process.returncode, errors, time.monotonic() - started, pids


def assert_gone(pids: list[int]) -> None:
    """Workers notice that their parent has died after five seconds at most (torch)."""
    deadline = time.monotonic() + HANG_S
    while time.monotonic() < deadline:
        left = [pid for pid in pids if Path(f"/proc/{pid}").exists() and not _is_zombie(pid)]
        if not left:
            return
        time.sleep(0.1)
    pytest.fail(f"processes {left} are left")


def _is_zombie(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def test_a_worker_that_is_killed_ends_the_program_with_its_name(catalog_url: str) -> None:
    code, errors, seconds, pids = run(catalog_url, 2, "os.kill(active_children()[0].pid, signal.SIGKILL)")
    assert code == 1
    assert re.search(r"RuntimeError: DataLoader worker \(pid.*\) is killed by signal: Killed", errors)
    assert seconds < HANG_S
    assert len(pids) == 3
    assert_gone(pids)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_program_that_is_told_to_end_leaves_no_process(catalog_url: str, workers: int) -> None:
    code, _, seconds, pids = run(catalog_url, workers, "time.sleep(30)", sends=signal.SIGTERM)
    assert code == -signal.SIGTERM
    assert seconds < HANG_S
    assert len(pids) == 1 + workers
    assert_gone(pids)


@pytest.mark.parametrize("workers", [0, 2])
def test_an_exception_in_the_loop_is_what_the_program_ends_with(catalog_url: str, workers: int) -> None:
    code, errors, seconds, pids = run(catalog_url, workers, "raise ArithmeticError('loss is NaN')")
    assert code == 1
    assert errors.strip().endswith("ArithmeticError: loss is NaN")
    assert seconds < HANG_S
    assert_gone(pids)


def test_a_stream_that_fails_in_a_worker_says_why(catalog_url: str) -> None:
    harm = (
        "loader.close(); Broken = type('Broken', (), {'keeps': lambda self, pixels: pixels.no_such_thing,"
        " '__repr__': lambda self: 'Broken()'});"
        "stream = PatchStream(sys.argv[1], size_px=64, mpp=0.5, filters=[Broken()]);"
        "next(iter(PatchLoader(stream, batch_size=4, num_workers=2)))"
    )
    code, errors, seconds, pids = run(catalog_url, 2, harm)
    assert code == 1
    assert "AttributeError: Caught AttributeError in DataLoader worker process 0" in errors
    assert "has no attribute 'no_such_thing'" in errors
    assert seconds < HANG_S
    assert_gone(pids)


def test_a_program_that_ends_while_patches_are_under_way_ends_well(tmp_path: Path, catalog_url: str) -> None:
    # Decoding threads that came back from OpenCV to a dead interpreter would abort the process.
    code = (
        "import sys; from online_patching import PatchStream;"
        "patches = iter(PatchStream(sys.argv[1], size_px=500, mpp=0.5, min_foreground=0.1));"
        "[next(patches) for _ in range(int(sys.argv[2]))]"
    )
    for taken in (1, 1, 2, 33, 40, 65):
        done = subprocess.run(
            [sys.executable, "-c", code, catalog_url, str(taken)],
            capture_output=True,
            text=True,
            timeout=60,
            env={**os.environ, "PYTHONFAULTHANDLER": "0"},
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, "")


def test_who_still_reads_when_the_interpreter_ends_gets_an_error(catalog_url: str) -> None:
    code = (
        "import atexit, sys\n"
        "def late():\n"
        "    try:\n"
        "        catalog.slide('a').read_patch(x_level0_px=0, y_level0_px=0, size_px=32, mpp=0.5)\n"
        "    except RuntimeError as error:\n"
        "        print(type(error).__name__)\n"
        "atexit.register(late)\n"
        "from online_patching import Catalog\n"
        "catalog = Catalog.open(sys.argv[1])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, catalog_url], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.strip() == "RuntimeError"
