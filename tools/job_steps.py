"""How does a program here work through the commands of the packages? Shown before they run, and stopped by a failure.

What the demo and the experiments have in common: a command of the environment that Python runs in, and slides that lie
in a bucket while it is needed.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from s3_server import S3Server

COLOUR_PROBE = "fm_eval.ColourHistogram"


class StepFailedError(Exception):
    """A command of the job failed; it has said why."""


def run_command(program: str, *arguments: object, accept: Sequence[int] = (0,), keep_open: Sequence[int] = ()) -> int:
    """Show a command, run it and return its exit code.

    Args:
        program: Console script beside the Python that runs this.
        arguments: Its command line.
        accept: Exit codes that are no failure.
        keep_open: File descriptors that the command inherits.

    Raises:
        StepFailedError: It ended with another code.
    """
    words = [program, *(str(argument) for argument in arguments)]
    say(shlex.join(words))
    sys.stdout.flush()
    command = [str(Path(sys.executable).parent / program), *words[1:]]
    code = subprocess.run(command, check=False, pass_fds=tuple(keep_open)).returncode
    if code not in accept:
        raise StepFailedError(f"`{program} {words[1]}` ended with exit code {code}; what it says above is the reason")
    return code


def say(text: str) -> None:
    """What is done next, on a line of its own."""
    print(f"\n==> {text}", flush=True)


@contextlib.contextmanager
def slides_in_bucket(folder: Path, make: Callable[[Path], object]) -> Iterator[str]:
    """URL of a bucket with sample slides while the block runs; they are made where the folder has no `slides.csv` yet.

    The commands that read them find the store by environment variables, so that no credential enters a catalog or a
    config.
    """
    if not (folder / "slides.csv").exists():
        say("make sample slides")
        make(folder)
    say("serve them from an S3 store on loopback")
    with S3Server() as server:
        url = server.upload(folder, "slides")
        before = dict(os.environ)
        os.environ.update(server.environment)
        print(f"{url} at {server.endpoint_url}")
        try:
            yield url
        finally:
            for name in server.environment:
                os.environ.pop(name)
                if name in before:
                    os.environ[name] = before[name]
