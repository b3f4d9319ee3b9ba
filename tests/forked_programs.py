"""Runs of `tools/experiment.py` that end at a chosen moment, without its imports each time.

    python tests/forked_programs.py TOOLS

imports the three packages once. Each line of JSON on its stdin is a run: it is forked off into a session of its own,
and so are the commands that it starts. That nothing is imported anew, and that probes end after a few steps, is all
that differs from a run at a desk. The exit code is the answer on stdout, negative for the signal that ended it.

A moment is what a process is about to do (an audit event of Python, as "about to rename something to .../curves.csv"),
not a time: it is the same on any machine. At it the whole process group gets a signal, whichever of its processes is
there.
"""

from __future__ import annotations

import fnmatch
import json
import mmap
import os
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

# Which of an event's arguments is the path that it is about.
_PATH_OF = {"open": 0, "os.rename": 1, "os.mkdir": 0}


def signal_at(number: int, event: str, pattern: str, count: int) -> None:
    """Send this process group a signal at the `count`-th event whose path matches, in whichever of its processes."""
    seen = mmap.mmap(-1, 8)  # shared with all that is forked from here

    def hook(name: str, arguments: tuple[Any, ...]) -> None:
        if name == event and fnmatch.fnmatch(str(arguments[_PATH_OF[event]]), pattern):
            so_far = int.from_bytes(seen[:8], "little") + 1
            seen[:8] = so_far.to_bytes(8, "little")
            if so_far == count:
                os.killpg(0, number)

    sys.addaudithook(hook)


def run_forked(entries: dict[str, Callable[[], int | None]], command: Sequence[str], **_: Any) -> SimpleNamespace:
    """In place of `subprocess.run`: the same command in a fork of this process."""
    child = os.fork()
    if not child:
        sys.argv = list(command)
        end_with(entries[Path(command[0]).name])
    try:
        return SimpleNamespace(returncode=os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    except KeyboardInterrupt:
        # As `subprocess.run` does, which waits for a quarter of a second before.
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        raise


def end_with(work: Callable[[], int | None]) -> NoReturn:
    """End this process as a console script would."""
    code: Any = 1
    try:
        code = work() or 0
    except SystemExit as ended:
        code = ended.code or 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else 1)


def run(experiment: Callable[[list[str]], int], order: dict[str, Any]) -> int:
    """One run, from its fork to its end; returns its exit code."""
    child = os.fork()
    if not child:
        os.setsid()
        signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell's background jobs ignore
        log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        for standard in (1, 2):
            os.dup2(log, standard)
        if order["moment"] is not None:
            signal_at(*order["moment"])
        end_with(lambda: experiment(order["arguments"]))
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def main() -> None:
    """Answer what stdin asks for."""
    sys.path.insert(0, sys.argv[1])
    import cv2
    import experiment
    import job_steps
    from fm_eval import cli as fm_eval
    from fm_eval.protocol import PROTOCOLS
    from online_patching import cli as online_patching
    from ssl_train import cli as ssl_train

    cv2.setNumThreads(1)  # whose threads do not survive a fork
    for name, protocol in list(PROTOCOLS.items()):
        PROTOCOLS[name] = replace(protocol, max_steps=20)
    entries = {"online-patching": online_patching.main, "ssl-train": ssl_train.main, "fm-eval": fm_eval.main}
    forked: Any = SimpleNamespace(run=lambda command, **kwargs: run_forked(entries, command, **kwargs))
    job_steps.subprocess = forked
    for line in sys.stdin:
        sys.stdout.write(f"{run(experiment.main, json.loads(line))}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
