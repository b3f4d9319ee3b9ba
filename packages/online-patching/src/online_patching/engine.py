"""How much of the machine may reading use, and which threads does the work run on?

One engine a process, built lazily: decoding threads (``decoding_threads``), threads that wait for disks, and a bound on
the bytes that are under way (``memory_gate``). ``configure`` sets them; ``close`` gives everything back, the network
clients and the event loop too. A forked child builds its own.
"""

from __future__ import annotations

import asyncio
import atexit
import os
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from queue import Empty, SimpleQueue

import cv2

from online_patching import loop
from online_patching.limits import RequestLimits, request_limits, set_request_limits

# Reads of a disk or mount wait; on a network mount these many wait at the same time.
DISK_THREADS = 16
MEBIBYTE = 1 << 20
# A hand-over from thread to thread costs a tenth of a tile.
MAX_TILES_A_TURN = 16
MAX_DECODE_THREADS = 1024
MAX_MEMORY_MB = 1 << 20


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """What reading may use in one process.

    Attributes:
        decode_threads: Threads that decode and assemble patches.
        memory_mb: Bound, in MiB, on what is under way: stored bytes that were fetched but not decoded yet, and patches
            that are being assembled. Patches that were handed over are the caller's.
    """

    decode_threads: int
    memory_mb: int = 1024

    def __post_init__(self) -> None:
        for name, most in (("decode_threads", MAX_DECODE_THREADS), ("memory_mb", MAX_MEMORY_MB)):
            value = getattr(self, name)
            if not isinstance(value, int) or not 1 <= value <= most:
                raise ValueError(f"{name}: got {value!r}, allowed a whole number from 1 to {most}")


class WorkerThreads:
    """Daemon threads that take work from one queue; work raises nothing."""

    def __init__(self, count: int, name: str) -> None:
        self._queue: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._threads = [
            threading.Thread(target=self._run, name=f"online-patching-{name}-{k}", daemon=True) for k in range(count)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, work: Callable[[], None]) -> None:
        """Run ``work`` on one of the threads, first come first served."""
        self._queue.put(work)

    def close(self, *, drop: bool = False) -> None:
        """End the threads when what was submitted is done; one that a disk keeps waiting is left to end by itself.

        Args:
            drop: Leave undone what no thread has begun.
        """
        with suppress(Empty):
            while drop:
                self._queue.get_nowait()
        for _ in self._threads:
            self._queue.put(None)
        deadline = time.monotonic() + loop.CLOSE_SECONDS
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))

    def _run(self) -> None:
        while (work := self._queue.get()) is not None:
            work()
            # The last work would otherwise keep its patches alive until the next one comes.
            del work


class MemoryGate:
    """Lets work in while its bytes fit, first come first served; used on one event loop.

    Args:
        limit_bytes: Tells the bound, which may change while work is under way.
    """

    def __init__(self, limit_bytes: Callable[[], int]) -> None:
        self._limit_bytes = limit_bytes
        self._taken = 0
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    @asynccontextmanager
    async def reserve(self, size_bytes: int) -> AsyncIterator[None]:
        """Hold so many bytes of the bound; what is larger than the bound is let in alone."""
        if self._waiting or not self._has_room(size_bytes):
            turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.append((size_bytes, turn))
            # The bound may have been raised since somebody last left.
            self._admit()
            try:
                await turn
            except asyncio.CancelledError:
                # It may have been let in at the same moment.
                if turn.done() and not turn.cancelled():
                    self._give_back(size_bytes)
                raise
        else:
            self._taken += size_bytes
        try:
            yield
        finally:
            self._give_back(size_bytes)

    def _has_room(self, size_bytes: int) -> bool:
        return self._taken == 0 or self._taken + size_bytes <= self._limit_bytes()

    def _give_back(self, size_bytes: int) -> None:
        self._taken -= size_bytes
        self._admit()

    def _admit(self) -> None:
        while self._waiting:
            wanted, turn = self._waiting[0]
            if not turn.done():
                if not self._has_room(wanted):
                    break
                self._taken += wanted
                turn.set_result(None)
            self._waiting.popleft()


def usable_cores() -> int:
    """Cores that this process may use."""
    # A container or a job scheduler may have given this process fewer than the machine has.
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


_settings = EngineSettings(decode_threads=usable_cores())
_lock = threading.Lock()
_threads: dict[str, WorkerThreads] = {}
_is_over = False
_gate = loop.PerLoop(lambda: MemoryGate(lambda: _settings.memory_mb * MEBIBYTE))


def _forget_after_fork() -> None:
    # Neither the threads nor whoever held the lock exist here.
    global _lock
    _lock = threading.Lock()
    _threads.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_after_fork)


def settings() -> EngineSettings:
    """What this process may use."""
    return _settings


def tiles_a_turn(tiles: int) -> int:
    """How many of a batch's tiles a decoding thread takes in one go, so that all threads have their part."""
    threads = _settings.decode_threads
    return MAX_TILES_A_TURN if threads == 1 else max(1, min(MAX_TILES_A_TURN, tiles // (2 * threads)))


def configure(
    *,
    decode_threads: int | None = None,
    memory_mb: int | None = None,
    requests_in_flight: int | None = None,
    requests_per_host: int | None = None,
) -> EngineSettings:
    """Set what reading may use in this process; reads that are under way keep the memory that they have.

    Args:
        decode_threads: Threads that decode, at most 1024 (default: one a core).
        memory_mb: Bound on the bytes under way, in MiB (default 1024).
        requests_in_flight: Requests to all stores together at the same time (default 256).
        requests_per_host: Requests to one host at the same time (default 192).

    Returns:
        The settings from now on.

    Raises:
        ValueError: A number that is not allowed; nothing is changed then.
    """
    global _settings
    known = request_limits()
    limits = RequestLimits(
        in_flight=known.in_flight if requests_in_flight is None else requests_in_flight,
        per_host=known.per_host if requests_per_host is None else requests_per_host,
    )
    given = {
        name: value
        for name, value in (("decode_threads", decode_threads), ("memory_mb", memory_mb))
        if value is not None
    }
    new = replace(_settings, **given)
    set_request_limits(limits)
    with _lock:
        old = _threads.pop("decode", None) if new.decode_threads != _settings.decode_threads else None
        _settings = new
    if old is not None:
        old.close()
    return new


def on_decoding_threads(work: Callable[[], None]) -> None:
    """Run ``work`` on one of this process's decoding threads."""
    _submit("decode", work)


def on_disk_threads(work: Callable[[], None]) -> None:
    """Run ``work``, which waits for a disk, on one of this process's threads for that."""
    _submit("disk", work)


def memory_gate() -> MemoryGate:
    """The bound on the bytes under way on the running loop."""
    return _gate.here()


def close() -> None:
    """End this process's threads, connections and event loop; the next read builds them anew.

    Reads that are under way fail. Nothing needs it: threads and sockets end with the process. It is for programs
    that read for a while and then do something else.
    """
    loop.close()
    # What the disks have given is decoded still.
    for name in ("disk", "decode"):
        with _lock:
            ended = _threads.pop(name, None)
        if ended is not None:
            ended.close()


def _end_with_the_interpreter() -> None:
    """Let decoding threads end while they can: OpenCV aborts the process of one that comes back to a dead interpreter.

    What a stream has begun ahead is dropped; who still asks for pixels gets an error.
    """
    global _is_over
    with _lock:
        _is_over = True
        threads = _threads.pop("decode", None)
    if threads is not None:
        threads.close(drop=True)


atexit.register(_end_with_the_interpreter)


def _submit(name: str, work: Callable[[], None]) -> None:
    # Under one lock with ``configure`` and ``close``: work that comes after the end of its threads would never be done.
    with _lock:
        threads = _threads.get(name)
        if threads is None:
            if _is_over:
                raise RuntimeError("online_patching reads no more: the interpreter is ending")
            # These threads are the parallelism: OpenCV's own below them would only fight for the same cores.
            cv2.setNumThreads(0)
            count = _settings.decode_threads if name == "decode" else DISK_THREADS
            threads = _threads[name] = WorkerThreads(count, name)
        threads.submit(work)
