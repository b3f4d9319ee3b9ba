"""How does a command show how far it is?

By a bar on a terminal; where standard error is none, in the log of a job, by a line every 30 seconds.
"""

from __future__ import annotations

import sys
from typing import Any, TextIO

from tqdm import tqdm

_LINE_SECONDS = 30.0
_LINE = "{desc}: {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_fmt}{postfix}]"


def progress_bar(**settings: Any) -> tqdm[Any]:
    """A bar of tqdm with these settings."""
    if not sys.stderr.isatty():
        settings |= {"file": _Lines(sys.stderr), "bar_format": _LINE, "mininterval": _LINE_SECONDS}
    return tqdm(**settings)


class _Lines:
    """A file that puts each state of a bar on a line of its own."""

    def __init__(self, file: TextIO) -> None:
        self._file = file

    def write(self, text: str) -> None:
        if text.strip():
            self._file.write(text.strip() + "\n")

    def flush(self) -> None:
        self._file.flush()
