"""What the package leaves behind: nothing after a cancelled read, nothing after close, nothing at exit."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hostile_server import HostileServer
from online_patching import StorageError, loop
from online_patching.bytesource import ByteSource, ObjectInfo
from online_patching.limits import RequestLimits, gates, request_limits, set_request_limits
from online_patching.retry import RetryPolicy, retry_policy, set_retry_policy
from online_patching.storage import open_object

CONTENT = bytes(range(256)) * 400
PINNED = ObjectInfo(len(CONTENT), "one")


@pytest.fixture
def server() -> Iterator[HostileServer]:
    with HostileServer(CONTENT) as running:
        yield running


def _s3(endpoint: str) -> ByteSource:
    client = {"endpoint_url": endpoint}
    return open_object("s3://bucket/a.svs", {"key": "a", "secret": "b", "client_kwargs": client, "use_ssl": False})


CLIENTS: dict[str, Callable[[str], ByteSource]] = {
    "http-obstore": lambda url: open_object(f"{url}/a.svs"),
    "http-query": lambda url: open_object(f"{url}/a.svs?sig=x"),
    "s3-s3fs": _s3,
}
everywhere = pytest.mark.parametrize("client", CLIENTS)


def _until(what: Callable[[], bool], seconds: float = 5.0) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, "it did not come to that in time"
        time.sleep(0.01)


async def _state() -> tuple[int, int, int]:
    return gates().taken, gates().waiting, len(asyncio.all_tasks())


def _sockets() -> int:
    count = 0
    for entry in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            count += str(entry.readlink()).startswith("socket:")
    return count


@everywhere
def test_cancelled_reads_leave_nothing(client: str, server: HostileServer) -> None:
    loop.close()
    source = CLIENTS[client](server.url)
    assert loop.run(source.read_ranges([(0, 4)], expected=PINNED)) == [CONTENT[:4]]
    server.misbehave("stall_head")
    limits = request_limits()
    set_request_limits(RequestLimits(in_flight=60, per_host=50))
    try:
        reads = [loop.submit(source.read_ranges([(k, 9), (k + 50, 9)], expected=PINNED)) for k in range(100)]
        _until(lambda: loop.run(_state())[:2] == (50, 150))
        _until(lambda: server.requests == 50)
        for read in reads:
            read.cancel()
        # Only the task that asks is left, and the server sees its connections go.
        _until(lambda: loop.run(_state()) == (0, 0, 1))
        _until(lambda: server.connections <= 1)
    finally:
        set_request_limits(limits)
    server.misbehave("")
    assert loop.run(source.read_ranges([(0, 4)], expected=PINNED)) == [CONTENT[:4]]


@everywhere
def test_nothing_is_open_after_close(client: str, server: HostileServer) -> None:
    source = CLIENTS[client](server.url)
    loop.close()
    threads, sockets = set(threading.enumerate()), _sockets()
    for _ in range(2):
        ranges = [(k, 9) for k in range(20)]
        assert loop.run(source.read_ranges(ranges, expected=PINNED)) == [CONTENT[s : s + n] for s, n in ranges]
        assert _sockets() > sockets
        server.misbehave("stall_body")
        stalled = loop.submit(source.read_ranges([(0, 9)], expected=PINNED))
        _until(lambda: server.requests == 1)
        loop.close()
        assert stalled.cancelled()
        # Those of other tests may have ended meanwhile.
        assert set(threading.enumerate()) <= threads
        # The server's ends of them are sockets of this process as well.
        _until(lambda: server.connections == 0)
        _until(lambda: _sockets() == sockets)
        server.misbehave("")


def test_a_closed_loop_is_freed(server: HostileServer) -> None:
    loop.close()
    source = open_object(f"{server.url}/a.svs")
    assert loop.run(source.read_ranges([(0, 4)], expected=PINNED)) == [CONTENT[:4]]
    closed = weakref.ref(loop.package_loop())
    loop.close()
    gc.collect()
    assert closed() is None


def test_a_read_that_close_ends_says_so(server: HostileServer) -> None:
    server.misbehave("stall_head")
    source = open_object(f"{server.url}/a.svs")
    threading.Timer(0.3, loop.close).start()
    with pytest.raises(RuntimeError, match="was closed while"):
        loop.run(source.read_ranges([(0, 4)], expected=PINNED))

    async def foreign() -> bytes:
        threading.Timer(0.3, loop.close).start()
        return (await loop.on_loop(source.read_ranges([(0, 4)], expected=PINNED)))[0]

    with pytest.raises(RuntimeError, match="was closed while"):
        asyncio.run(foreign())


def test_close_twice_and_from_the_loop_itself() -> None:
    async def closing() -> None:
        loop.close()

    with pytest.raises(RuntimeError, match="cannot close itself"):
        loop.run(closing())
    loop.close()
    loop.close()


def test_the_loop_is_the_fast_one() -> None:
    pytest.importorskip("uvloop")
    assert any(kind.__module__.startswith("uvloop") for kind in type(loop.package_loop()).__mro__)


def test_from_a_running_loop_and_from_two_threads(server: HostileServer) -> None:
    source = open_object(f"{server.url}/a.svs")

    async def notebook() -> list[bytes]:
        # A blocking call inside a coroutine, then an awaited one.
        (first,) = loop.run(source.read_ranges([(0, 4)]))
        (second,) = await loop.on_loop(source.read_ranges([(4, 4)]))
        return [first, second]

    answers: list[Any] = []
    threads = [threading.Thread(target=lambda: answers.append(asyncio.run(notebook()))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert answers == [[CONTENT[:4], CONTENT[4:8]]] * 2


def test_a_foreign_task_that_is_cancelled_ends_its_read(server: HostileServer) -> None:
    source = open_object(f"{server.url}/a.svs")
    server.misbehave("stall_head")

    async def impatient() -> None:
        async with asyncio.timeout(0.3):
            await loop.on_loop(source.read_ranges([(0, 4)]))

    with pytest.raises(TimeoutError):
        asyncio.run(impatient())
    _until(lambda: loop.run(_state()) == (0, 0, 1))


@pytest.mark.parametrize(
    ("client", "misdeed"), [("http-obstore", ""), ("http-obstore", "stall_head"), ("s3-s3fs", "stall_head")]
)
def test_an_interpreter_ends_at_once_without_noise(client: str, misdeed: str, server: HostileServer) -> None:
    program = """
import sys, time
sys.path.insert(0, sys.argv[3])
from test_loop import CLIENTS, PINNED
from online_patching import loop
source = CLIENTS[sys.argv[2]](sys.argv[1])
loop.run(source.info()) if sys.argv[4] == "" else None
reads = [loop.submit(source.read_ranges([(k, 9)], expected=PINNED)) for k in range(50)]
time.sleep(0.3)
print(time.time())
"""
    server.misbehave(misdeed)
    here = str(Path(__file__).parent)
    done = subprocess.run(
        [sys.executable, "-c", program, server.url, client, here, misdeed],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    ended = time.time()
    assert (done.returncode, done.stderr) == (0, "")
    assert ended - float(done.stdout) < 1.5


@pytest.fixture
def interruptible() -> Iterator[None]:
    """A process that a shell has started in the background ignores interrupts."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_an_interrupted_wait_ends_the_read(server: HostileServer) -> None:
    server.misbehave("stall_head")
    source = open_object(f"{server.url}/a.svs")
    main = threading.main_thread().ident
    assert main is not None
    ended = threading.Event()

    def interrupt() -> None:
        # Again where the first one met a callback of the interpreter, which swallows it.
        while not ended.wait(0.5):
            signal.pthread_kill(main, signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        loop.run(source.read_ranges([(0, 4)], expected=PINNED))
    ended.set()
    _until(lambda: loop.run(_state()) == (0, 0, 1))


def test_waiting_for_a_place_is_not_the_servers_time(server: HostileServer) -> None:
    before, limits = retry_policy(), request_limits()
    set_retry_policy(RetryPolicy(attempts=1, attempt_s=0.4, deadline_s=0.4))
    set_request_limits(RequestLimits(in_flight=1))
    try:
        server.misbehave("stall_head", times=2)
        source = open_object(f"{server.url}/a.svs")
        reads = [loop.submit(source.read_ranges([(k, 9)], expected=PINNED)) for k in range(3)]
        for read in reads[:2]:
            with pytest.raises(StorageError, match="no answer in time"):
                read.result(10)
        assert reads[2].result(10) == [CONTENT[2:11]]
    finally:
        set_retry_policy(before)
        set_request_limits(limits)
