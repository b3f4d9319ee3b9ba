"""Which event loop runs the package's coroutines?

One loop a process, on a daemon thread, built at the first use: callers from plain code, from a notebook's running
loop and from any number of threads share it. It is uvloop's where that is installed (a third less CPU for a range
request), the standard one elsewhere. A forked child has no such thread, so it builds its own; ``close`` ends the
threads and whatever clients registered with ``at_close``, and the next use builds everything anew.
"""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from typing import Any, Generic, Protocol, TypeVar
from weakref import WeakKeyDictionary

T = TypeVar("T")

# Blocking clients (local disks, fsspec fall-back) run in this many threads; they wait, they do not compute.
IO_THREADS = 32
# What clients get to say goodbye to their servers, and threads to come back from them.
CLOSE_SECONDS = 5.0
_ENDED = "online_patching was closed while this was under way; begin it anew"


class _Closer(Protocol):
    async def __call__(self) -> None: ...


def _new_loop() -> asyncio.AbstractEventLoop:
    """A loop that in a forked child, where no thread runs it, says that it is closed: who waited for it would hang."""
    base: type[asyncio.AbstractEventLoop] = asyncio.SelectorEventLoop
    try:
        import uvloop

        base = uvloop.Loop
    except ImportError:
        pass

    class _PackageLoop(base):  # type: ignore[misc, valid-type]
        def __init__(self) -> None:
            super().__init__()
            self._owner_pid = os.getpid()

        def is_closed(self) -> bool:
            return bool(super().is_closed()) or os.getpid() != self._owner_pid

        def call_exception_handler(self, context: dict[str, Any]) -> None:
            # A child that ends drops its copies of the parent's sessions, which then complain that nobody closed them.
            # So do reads that are under way when the interpreter ends, which a stream that reads ahead always has.
            if os.getpid() == self._owner_pid and not sys.is_finalizing():
                super().call_exception_handler(context)

    return _PackageLoop()


class _LoopThread:
    def __init__(self, purpose: str) -> None:
        self.pid = os.getpid()
        self.purpose = purpose
        self.loop = _new_loop()
        self.executor = ThreadPoolExecutor(IO_THREADS, thread_name_prefix="online-patching-io")
        self.loop.set_default_executor(self.executor)
        self.thread = threading.Thread(target=self.loop.run_forever, name=f"online-patching-{purpose}", daemon=True)
        self.thread.start()

    def close(self, deadline_s: float) -> None:
        """End tasks, clients and threads; what does not end by itself is left to its daemon thread."""
        ending = asyncio.run_coroutine_threadsafe(_end_everything(self.purpose), self.loop)
        try:
            ending.result(deadline_s)
        except TimeoutError:
            ending.cancel()
        self.executor.shutdown(wait=False, cancel_futures=True)
        waiter = threading.Thread(target=self.executor.shutdown, daemon=True)
        waiter.start()
        waiter.join(deadline_s)
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(deadline_s)
        if not self.thread.is_alive():
            self.loop.close()


async def _end_everything(purpose: str) -> None:
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    for _, closer in [each for each in _closers if each[0] == purpose]:
        await closer()
    await asyncio.get_running_loop().shutdown_asyncgens()


_owners: dict[str, _LoopThread] = {}
_inherited: list[_LoopThread] = []
_closers: list[tuple[str, _Closer]] = []
_lock = threading.RLock()


def _loop_thread(purpose: str = "package") -> _LoopThread:
    with _lock:
        if purpose not in _owners or _owners[purpose].pid != os.getpid():
            _owners[purpose] = _LoopThread(purpose)
        return _owners[purpose]


def _forget_after_fork() -> None:
    # The parent's lock may have been held by a thread that does not exist here.
    global _lock
    _lock = threading.RLock()
    for owner in _owners.values():
        _disarm(owner.loop)
    # Kept, since a loop that is freed while it says that it runs complains.
    _inherited.extend(_owners.values())
    _owners.clear()


def _disarm(inherited: asyncio.AbstractEventLoop) -> None:
    """Take the parent's poll set from a child's copy of its loop: closing a copied socket would change the original."""
    backend = getattr(inherited, "_get_backend_id", None) or getattr(
        getattr(inherited, "_selector", None), "fileno", None
    )
    if backend is not None:
        nothing = os.open(os.devnull, os.O_RDONLY)
        os.dup2(nothing, backend())
        os.close(nothing)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_after_fork)


class PerLoop(Generic[T]):
    """One value for each event loop, made when a coroutine on that loop first asks for it."""

    def __init__(self, make: Callable[[], T]) -> None:
        self._make = make
        self._values: WeakKeyDictionary[asyncio.AbstractEventLoop, T] = WeakKeyDictionary()

    def here(self) -> T:
        """The value of the running loop."""
        running = asyncio.get_running_loop()
        value = self._values.get(running)
        if value is None:
            value = self._values[running] = self._make()
        return value


def package_loop() -> asyncio.AbstractEventLoop:
    """This process's loop, for clients that are told which loop to run on."""
    return _loop_thread().loop


def blocking_loop() -> asyncio.AbstractEventLoop:
    """A second loop, for asynchronous clients that are called by blocking methods.

    Those calls wait in the package loop's threads; on that loop itself, the clients would wait for the same threads.
    """
    return _loop_thread("blocking").loop


def at_close(closer: _Closer, *, blocking: bool = False) -> None:
    """Have a coroutine function called on the loop (or on the blocking one) when ``close`` ends it; once a process."""
    _closers.append(("blocking" if blocking else "package", closer))


def close() -> None:
    """End the loops and their threads, cancel what they run, and close the clients; a later use builds all anew.

    Raises:
        RuntimeError: Called from the loop itself, which cannot wait for its own end.
    """
    with _lock:
        owners = [owner for owner in _owners.values() if owner.pid == os.getpid()]
        if any(threading.current_thread() is owner.thread for owner in owners):
            raise RuntimeError("the package's event loop cannot close itself: call close() from another thread")
        _owners.clear()
    for owner in sorted(owners, key=lambda each: each.purpose, reverse=True):
        owner.close(CLOSE_SECONDS)


def submit(coroutine: Coroutine[Any, Any, T]) -> Future[T]:
    """Start a coroutine on the package's loop and return its future at once; cancelling that ends the coroutine."""
    with _lock:
        # Held until it is handed over: ``close`` would otherwise miss it, and who waits for it would wait for ever.
        return asyncio.run_coroutine_threadsafe(coroutine, _loop_thread().loop)


def run(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine on the package's loop and wait for its result; an interruption of the wait ends the coroutine.

    Raises:
        RuntimeError: Called from the loop itself, where waiting would never end; or ``close`` ended it.
    """
    owner = _loop_thread()
    if threading.current_thread() is owner.thread:
        coroutine.close()
        raise RuntimeError("a blocking read was called from the package's own event loop: await its async twin instead")
    return wait_for(submit(coroutine))


def wait_for(future: Future[T]) -> T:
    """The result of what ``submit`` started; an interruption of the wait ends the coroutine.

    Raises:
        RuntimeError: ``close`` ended it.
    """
    try:
        return future.result()
    except CancelledError:
        raise RuntimeError(_ENDED) from None
    except BaseException:
        future.cancel()
        raise


async def on_loop(coroutine: Coroutine[Any, Any, T]) -> T:
    """Await a coroutine that runs on the package's loop, from any other running loop.

    Raises:
        RuntimeError: ``close`` ended it.
    """
    try:
        return await asyncio.wrap_future(submit(coroutine))
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if task is None or task.cancelling():
            raise
        raise RuntimeError(_ENDED) from None
