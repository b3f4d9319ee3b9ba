"""How does a coroutine wait for what threads do, and for what that begins in turn?"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from functools import partial


class ThreadWork:
    """What threads still have to do for a batch; the first error ends the waiting.

    Attributes:
        is_over: Nobody waits any more: what threads have not begun is left undone.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._end: asyncio.Future[None] = self._loop.create_future()
        self._lock = threading.Lock()
        # One for the batch itself, until it waits: no work that ends early is taken for the last.
        self._open = 1
        self.is_over = False

    def on_threads(self, submit: Callable[[Callable[[], None]], None], work: Callable[[], None]) -> None:
        """Let one of the threads do it that ``submit`` hands work to."""
        with self._lock:
            self._open += 1
        submit(partial(self._guarded, work))

    async def done(self) -> None:
        """Wait for everything that was begun, and for what that begins."""
        self._close_one(None)
        await self._end

    def _guarded(self, work: Callable[[], None]) -> None:
        error: BaseException | None = None
        try:
            if not self.is_over:
                work()
        except BaseException as caught:  # the thread must live on
            error = caught
        self._close_one(error)

    def _close_one(self, error: BaseException | None) -> None:
        with self._lock:
            self._open -= 1
            last = self._open == 0
        if last or error is not None:
            # A loop that was closed in between has nobody who waits.
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._finish, error)

    def _finish(self, error: BaseException | None) -> None:
        if self._end.done() or self.is_over:
            return
        if error is None:
            self._end.set_result(None)
        else:
            self._end.set_exception(error)
