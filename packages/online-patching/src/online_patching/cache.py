"""What is kept of recently used slides, and how do many readers at once read each of them only once?

``BoundedCache`` keeps the most recently used values, up to a number and up to a weight in bytes; ``SharedReads`` lets
whoever asks for a value that is being read wait for that reading.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Generic, TypeVar

from online_patching.fork_lock import ForkLock

K = TypeVar("K")
V = TypeVar("V")

# One for all caches, held for a dictionary operation or two.
_lock = ForkLock()


class BoundedCache(Generic[K, V]):
    """The most recently used values, up to a number and a weight; the last one used is kept whatever it weighs.

    Args:
        max_values: So many are kept.
        max_bytes: So many bytes are kept, as the values were weighed when they were put in; None for no such bound.
    """

    def __init__(self, max_values: int, *, max_bytes: int | None = None) -> None:
        self._max_values = max_values
        self._max_bytes = max_bytes
        self._values: OrderedDict[K, tuple[V, int]] = OrderedDict()
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._values)

    def peek(self, key: K) -> V | None:
        """The kept value, or None."""
        with _lock:
            kept = self._values.get(key)
            if kept is None:
                return None
            self._values.move_to_end(key)
            return kept[0]

    def put(self, key: K, value: V, weight_bytes: int = 0) -> V:
        """Keep a value; gives it back, or the one that another thread has put there in the meantime."""
        with _lock:
            kept = self._values.setdefault(key, (value, weight_bytes))
            self._values.move_to_end(key)
            if kept[0] is value:
                self._bytes += weight_bytes
                self._shrink()
            return kept[0]

    def _shrink(self) -> None:
        while len(self._values) > 1 and (
            len(self._values) > self._max_values or (self._max_bytes is not None and self._bytes > self._max_bytes)
        ):
            _, (_, weight_bytes) = self._values.popitem(last=False)
            self._bytes -= weight_bytes


class SharedReads(Generic[K, V]):
    """Reads of values by their keys, each key at most once at a time on one event loop.

    A reader that is cancelled leaves the reading to the others that wait for it; it ends by itself.

    Args:
        read: Reads the values of some keys; the error in the place of one that cannot be read.
    """

    def __init__(self, read: Callable[[Sequence[K]], Coroutine[Any, Any, dict[K, V | BaseException]]]) -> None:
        self._read = read
        self._tasks: dict[K, asyncio.Task[dict[K, V | BaseException]]] = {}

    async def get(self, keys: Sequence[K]) -> dict[K, V]:
        """The values of the keys.

        Raises:
            BaseException: The first key's that cannot be read.
        """
        running = asyncio.get_running_loop()
        # A task of another loop, such as that of the process before a fork, would never end here.
        tasks = {key: task for key in keys if (task := self._tasks.get(key)) and task.get_loop() is running}
        new = [key for key in dict.fromkeys(keys) if key not in tasks]
        if new:
            task = running.create_task(self._read(new))
            task.add_done_callback(lambda done: self._forget(new, done))
            self._tasks.update(dict.fromkeys(new, task))
            tasks.update(dict.fromkeys(new, task))
        answers = {task: await asyncio.shield(task) for task in set(tasks.values())}
        found: dict[K, V] = {}
        for key, task in tasks.items():
            answer = answers[task][key]
            if isinstance(answer, BaseException):
                raise answer
            found[key] = answer
        return found

    def _forget(self, keys: Sequence[K], done: asyncio.Task[dict[K, V | BaseException]]) -> None:
        for key in keys:
            if self._tasks.get(key) is done:
                del self._tasks[key]
