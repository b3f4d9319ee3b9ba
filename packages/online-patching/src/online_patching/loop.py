"""Which event loop runs the package's coroutines?

One loop a process, on a daemon thread, built at the first use: callers from plain code, from a notebook's running
loop and from any number of threads share it. A forked child has no such thread, so it builds its own.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Coroutine
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

T = TypeVar("T")

# Blocking clients (local disks, fsspec fall-back) run in this many threads; they wait, they do not compute.
IO_THREADS = 32


class _PackageLoop(asyncio.SelectorEventLoop):
    """A loop that says it is closed in a forked child, where no thread runs it: whoever waited for it would hang."""

    def __init__(self) -> None:
        super().__init__()
        self._pid = os.getpid()

    def is_closed(self) -> bool:
        return super().is_closed() or os.getpid() != self._pid


class _LoopThread:
    def __init__(self) -> None:
        self.pid = os.getpid()
        self.loop = _PackageLoop()
        self.loop.set_default_executor(ThreadPoolExecutor(IO_THREADS, thread_name_prefix="online-patching-io"))
        self.thread = threading.Thread(target=self.loop.run_forever, name="online-patching-loop", daemon=True)
        self.thread.start()


_owners: dict[str, _LoopThread] = {}
_lock = threading.Lock()


def _loop_thread(purpose: str = "package") -> _LoopThread:
    with _lock:
        if purpose not in _owners or _owners[purpose].pid != os.getpid():
            _owners[purpose] = _LoopThread()
        return _owners[purpose]


def _forget_after_fork() -> None:
    # The parent's lock may have been held by a thread that does not exist here.
    global _lock
    _lock = threading.Lock()
    _owners.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_after_fork)


def package_loop() -> asyncio.AbstractEventLoop:
    """This process's loop, for clients that are told which loop to run on."""
    return _loop_thread().loop


def blocking_loop() -> asyncio.AbstractEventLoop:
    """A second loop, for asynchronous clients that are called by blocking methods.

    Those calls wait in the package loop's threads; on that loop itself, the clients would wait for the same threads.
    """
    return _loop_thread("blocking").loop


def submit(coroutine: Coroutine[Any, Any, T]) -> Future[T]:
    """Start a coroutine on the package's loop and return its future at once."""
    return asyncio.run_coroutine_threadsafe(coroutine, _loop_thread().loop)


def run(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine on the package's loop and wait for its result.

    Raises:
        RuntimeError: Called from the loop itself, where waiting would never end.
    """
    owner = _loop_thread()
    if threading.current_thread() is owner.thread:
        coroutine.close()
        raise RuntimeError("a blocking read was called from the package's own event loop: await its async twin instead")
    future = submit(coroutine)
    try:
        return future.result()
    except KeyboardInterrupt:
        future.cancel()
        raise


async def on_loop(coroutine: Coroutine[Any, Any, T]) -> T:
    """Await a coroutine that runs on the package's loop, from any other running loop."""
    return await asyncio.wrap_future(submit(coroutine))
