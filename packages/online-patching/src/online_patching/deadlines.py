"""How does an await end after so many seconds, at next to no cost where it ends in time?

``asyncio.timeout`` sets and cancels a timer of the loop at each use, which a range request of 150 us feels. Here the
awaits that run are kept in a set, and one timer of the loop, while there are any, looks ten times a second which of
them are late and cancels these, as ``asyncio.timeout`` does. Deadlines are therefore met to a tenth of a second.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from online_patching.loop import PerLoop, at_close

T = TypeVar("T")

_LOOK_SECONDS = 0.1


class _Awaited:
    __slots__ = ("cancelled_before", "is_late", "task", "until")

    def __init__(self, task: asyncio.Task[object], until: float) -> None:
        self.task, self.until, self.is_late = task, until, False
        self.cancelled_before = task.cancelling()


class _Watch:
    def __init__(self) -> None:
        self.awaited: set[_Awaited] = set()
        self.timer: asyncio.TimerHandle | None = None

    def add(self, awaited: _Awaited) -> None:
        self.awaited.add(awaited)
        if self.timer is None:
            self.timer = awaited.task.get_loop().call_later(_LOOK_SECONDS, self._look)

    def _look(self) -> None:
        loop = asyncio.get_running_loop()
        now = loop.time()
        for each in self.awaited:
            if each.until <= now and not each.is_late:
                each.is_late = True
                each.task.cancel()
        self.timer = loop.call_later(_LOOK_SECONDS, self._look) if self.awaited else None


_watch = PerLoop(_Watch)


async def _stop_looking() -> None:
    # The timer of a closed loop would keep that loop.
    watch = _watch.here()
    if watch.timer is not None:
        watch.timer.cancel()
        watch.timer = None


at_close(_stop_looking)


async def within(seconds: float, start: Callable[[], Awaitable[T]]) -> T:
    """Await what ``start`` gives for at most so long.

    Raises:
        TimeoutError: It took longer and was cancelled.
    """
    task = asyncio.current_task()
    assert task is not None, "coroutines run in tasks"
    watch = _watch.here()
    awaited = _Awaited(task, task.get_loop().time() + seconds)
    watch.add(awaited)
    try:
        return await start()
    except BaseException as error:
        # Whoever else cancelled the task meanwhile is obeyed.
        alone = awaited.is_late and task.uncancel() <= awaited.cancelled_before
        if alone and isinstance(error, asyncio.CancelledError):
            raise TimeoutError(f"no answer within {seconds:g} s") from None
        raise
    finally:
        watch.awaited.discard(awaited)
