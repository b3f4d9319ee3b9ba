"""How does every reader get a process of its own, on CPUs of its own, while the readers take turns?

``Worker`` starts this file as a program that holds one reader, pins it to its CPUs before any library counts them, and
sends it one task after the other: values go through the pipes pickled, from and to processes of this program alone.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import subprocess
import sys
import time
import traceback
from collections.abc import Sequence
from typing import Any, BinaryIO, NamedTuple, Self

from measuring import wait_until_idle
from reading_readers import READERS, MissingReaderError, Pixels, Reader, Task, Window


class Spent(NamedTuple):
    """What reading takes, and on a busy machine the part that is the reader's own.

    Attributes:
        seconds: By the clock.
        cpu_seconds: CPU time of the process, of all its threads.
        count: Patches, or tiles of bare decoding, that it was spent on.
    """

    seconds: float
    cpu_seconds: float
    count: int = 1

    @classmethod
    def of_one(cls, slices: Sequence[Spent]) -> Spent:
        """What one patch of these slices takes."""
        count = sum(each.count for each in slices)
        return cls(sum(each.seconds for each in slices) / count, sum(each.cpu_seconds for each in slices) / count)


class ReaderError(RuntimeError):
    """The reader's process has failed; the message is its own."""


class Worker:
    """One reader in a process of its own; a context manager.

    Args:
        name: A key of ``READERS``.
        cpus: CPUs of the process; it reads with as many threads.
    """

    def __init__(self, name: str, cpus: Sequence[int]) -> None:
        self.name = name
        self._command = [sys.executable, __file__, name, ",".join(map(str, cpus))]
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None

    def wait_until_ready(self) -> None:
        """Wait for the libraries to be imported; workers that were started together do so side by side.

        Raises:
            MissingReaderError: The reader is not installed.
            ReaderError: It failed otherwise.
        """
        self._answer()

    def pixels(self, task: Task, windows: Sequence[Window], seed: int) -> list[Pixels]:
        """The patches of a task.

        Raises:
            MissingReaderError: The reader cannot do this task.
            ReaderError: It failed otherwise.
        """
        found: list[Pixels] = self._ask("pixels", task, windows, seed)
        return found

    def prepare(self, task: Task, windows: Sequence[Window]) -> int:
        """How many tiles bare decoding will decode in its rounds."""
        return int(self._ask("prepare", task, windows))

    def read(self, task: Task, windows: Sequence[Window], seed: int, first: int) -> Spent:
        """What a slice of a round takes: these windows, of which the first is number ``first`` of the round."""
        # From the program that this file is there, the class would be another one.
        return Spent(*self._ask("read", task, windows, seed, first), len(windows))

    def _ask(self, *request: Any) -> Any:
        assert self._process is not None, "the worker is not running"
        assert self._process.stdin is not None, "a pipe was asked for"
        pickle.dump(request, self._process.stdin)
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> Any:
        assert self._process is not None, "the worker is not running"
        assert self._process.stdout is not None, "a pipe was asked for"
        try:
            kind, value = pickle.load(self._process.stdout)
        except EOFError:
            raise ReaderError(f"{self.name}: its process ended with {self._process.wait()}") from None
        if kind == "missing":
            raise MissingReaderError(value)
        if kind == "failed":
            raise ReaderError(f"{self.name}: {value}")
        return value


def main() -> None:
    """Hold one reader, and do what is asked."""
    name, cpus = sys.argv[1], [int(each) for each in sys.argv[2].split(",")]
    os.sched_setaffinity(0, cpus)
    # Libraries may print: answers have a pipe that no library knows.
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    made: list[Reader] = []

    def make() -> None:
        made.append(READERS[name](len(cpus)))

    _answered(answers, make)
    while made:
        try:
            request = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        _answered(answers, lambda request=request: _do(made[0], *request))


def _do(reader: Reader, what: str, task: Task, *rest: Any) -> Any:
    if what != "read":
        return getattr(reader, what)(task, *rest)
    started, cpu_started = time.perf_counter(), time.process_time()
    reader.read(task, *rest, _forget)
    spent = (time.perf_counter() - started, time.process_time() - cpu_started)
    wait_until_idle()
    return spent


def _forget(_: Pixels) -> None:
    """A consumer that needs no time."""


def _answered(answers: BinaryIO, work: Any) -> None:
    try:
        answer = ("done", work())
    except (MissingReaderError, ImportError) as error:
        answer = ("missing", str(error))
    except Exception as error:
        traceback.print_exc()
        answer = ("failed", f"{type(error).__name__}: {error}")
    with contextlib.suppress(BrokenPipeError):
        pickle.dump(answer, answers)
        answers.flush()


if __name__ == "__main__":
    main()
