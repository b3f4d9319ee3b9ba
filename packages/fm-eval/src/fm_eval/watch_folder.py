"""Which checkpoints lie in a folder that somebody else is writing to, and how is one read while it may be replaced?

A training writes `backbone.json` last and removes it first when it exports anew; a copy from another machine may
arrive in any order. So a folder counts as listed once its JSON can be read, and as whole once a private copy of its
weights has the sha256 that the JSON states: what is evaluated is that copy, which nobody changes. Called by watch.
"""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from fm_eval.checkpoint import hash_file

DESCRIPTION, WEIGHTS = "backbone.json", "backbone.safetensors"


@dataclass(frozen=True, slots=True, order=True)
class Listed:
    """A checkpoint folder that says it is whole.

    Attributes:
        step: optimizer steps, as its JSON says.
        name: of the folder.
        sha256: that its JSON states for the weights.
        stamp: time of change and size of both files: another one means that it is worth looking again.
    """

    step: int
    name: str
    sha256: str
    stamp: tuple[int, ...]


def list_checkpoints(folder: Path) -> list[Listed]:
    """The checkpoint folders directly below a folder, by step; half-written ones are left out."""
    try:
        children = sorted(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):  # the training has not begun
        return []
    found = []
    for child in children:
        try:
            stamp = tuple(
                number
                for name in (DESCRIPTION, WEIGHTS)
                for status in [(child / name).stat()]
                for number in (status.st_mtime_ns, status.st_size)
            )
            content = json.loads((child / DESCRIPTION).read_text(encoding="utf-8"))
            found.append(Listed(int(content["step"]), child.name, str(content["sha256"]), stamp))
        except (OSError, ValueError, KeyError, TypeError):
            continue  # not there yet, or half of it: it is looked at again
    return sorted(found)


@contextmanager
def private_copy(folder: Path, listed: Listed, *, into: Path) -> Iterator[Path | None]:
    """A copy of a checkpoint folder while the block runs; None where its weights are not those that it states.

    Raises:
        OSError: the copy cannot be written.
    """
    shutil.rmtree(into, ignore_errors=True)
    copy = into / listed.name
    copy.mkdir(parents=True)
    try:
        yield copy if _copied(folder / listed.name, copy, listed.sha256) else None
    finally:
        shutil.rmtree(into, ignore_errors=True)


def _copied(source: Path, copy: Path, sha256: str) -> bool:
    try:
        for name in (DESCRIPTION, WEIGHTS):
            shutil.copyfile(source / name, copy / name)
        stated = json.loads((copy / DESCRIPTION).read_text(encoding="utf-8"))["sha256"]
    except (ValueError, KeyError, TypeError):  # replaced at this moment
        return False
    except OSError as error:  # the same, seen on this machine or on another one's disk
        if error.errno in (errno.ENOENT, errno.ESTALE):
            return False
        raise
    return bool(stated == sha256 == hash_file(copy / WEIGHTS))
