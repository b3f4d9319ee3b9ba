"""How are the commands of an experiment carried out, and gone on with where they were stopped?

A step whose files are there is not run again. Everything a step leaves behind is written whole or not at all, or is
gone on with (a training from its last checkpoint), so that a process may be killed at any moment. A lock on the folder
keeps two programs apart; the commands inherit it, so that one which outlives a killed program is waited for as well.

Before: planning. After: outcome.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from job_steps import run_command, say

from experiments.errors import ExperimentError
from experiments.material import Material
from experiments.planning import Step


def is_done(step: Step) -> bool:
    """Whether all of a step's files are there."""
    return all(path.exists() for path in step.done) and (step.mark is None or step.mark.exists())


def do_steps(steps: Sequence[Step], material: Material, lock: int) -> None:
    """Run the steps that are not done yet, in order.

    Args:
        steps: what is needed, each after what it needs.
        material: slides are within reach while a step needs them.
        lock: descriptor that the commands inherit; see `alone`.

    Raises:
        StepFailedError: a command failed.
        ExperimentError: a command succeeded without writing its files.
    """
    left = [step for step in {step.done: step for step in steps}.values() if not is_done(step)]
    if any(step.reads_slides for step in left):
        with material.slides_within_reach(lock):
            _do(left, lock)
    else:
        _do(left, lock)


def _do(steps: Sequence[Step], lock: int) -> None:
    for step in steps:
        for path, text in step.files.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        words = step.words
        if step.resume is not None and step.resume.exists():
            words = (*words, "--ckpt_path", str(step.resume))
        run_command(*words, keep_open=[lock])
        if step.otherwise and not is_done(step):
            run_command(*step.otherwise, keep_open=[lock])
        for path in step.done:
            if not path.exists():
                raise ExperimentError(
                    f"`{' '.join(words[:2])}` ended well, but did not write {path}; what it says above tells why. Mend "
                    "that and run this again"
                )
        if step.mark is not None:
            step.mark.touch()


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[int]:
    """Hold a folder's lock while the block runs; yields its descriptor. Waits for whoever holds it."""
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"{folder}: wait for another experiment there, or a command that a killed one left running")
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield descriptor
    finally:
        os.close(descriptor)
