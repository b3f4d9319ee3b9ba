"""Against servers that misbehave: the right bytes after a retry, or one clear error in time, through every client."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hostile_server import HostileServer
from online_patching import AccessDeniedError, NotFoundError, SlideChangedError, StorageError
from online_patching.bytesource import ByteSource, ObjectInfo
from online_patching.loop import run
from online_patching.retry import GaveUpError, RetryPolicy, fetch_counts, retry_policy, set_retry_policy
from online_patching.storage import open_object

CONTENT = bytes(range(256)) * 400
PINNED = ObjectInfo(len(CONTENT), "one")
RANGE = (1000, 50)
EXPECTED = [CONTENT[1000:1050]]
FAST = RetryPolicy(attempts=3, attempt_s=0.5, first_wait_s=0.02, longest_wait_s=0.05, deadline_s=2.0)


@pytest.fixture(scope="module")
def server() -> Iterator[HostileServer]:
    with HostileServer(CONTENT) as running:
        yield running


@pytest.fixture(autouse=True)
def _in_seconds() -> Iterator[None]:
    before = retry_policy()
    set_retry_policy(FAST)
    yield
    set_retry_policy(before)


def _s3(endpoint: str, **extra: Any) -> ByteSource:
    options = {"key": "a", "secret": "hush-hush", "client_kwargs": {"endpoint_url": endpoint}, **extra}
    return open_object("s3://bucket/a.svs", options)


CLIENTS: dict[str, tuple[str, Callable[[str], ByteSource]]] = {
    "http-obstore": ("ObstoreSource", lambda url: open_object(f"{url}/a.svs")),
    "http-query": ("HttpSource", lambda url: open_object(f"{url}/a.svs?sig=hush-hush")),
    "s3-obstore": ("ObstoreSource", _s3),
    "s3-s3fs": ("FsspecSource", lambda url: _s3(url, use_ssl=False)),
}
REPEATING = ("http-query", "s3-s3fs")
everywhere = pytest.mark.parametrize("client", CLIENTS)


def _open(client: str, server: HostileServer) -> ByteSource:
    kind, make = CLIENTS[client]
    source = make(server.url)
    assert type(source._source()).__name__ == kind  # type: ignore[attr-defined]
    # A client's first request imports and connects, which may take longer than these tests' attempts.
    hurried = retry_policy()
    set_retry_policy(RetryPolicy())
    server.misbehave("")
    assert run(source.read_ranges([RANGE], expected=PINNED)) == EXPECTED
    set_retry_policy(hurried)
    return source


@everywhere
@pytest.mark.parametrize(
    "misdeed", ["stall_head", "stall_body", "truncate", "short", "reset", "429", "500", "503", "short_untold"]
)
def test_what_passes_is_retried(client: str, misdeed: str, server: HostileServer) -> None:
    source = _open(client, server)
    before = fetch_counts()
    server.misbehave(misdeed, times=2)
    started = time.monotonic()
    assert run(source.read_ranges([RANGE], expected=PINNED)) == EXPECTED
    assert time.monotonic() - started < FAST.deadline_s + 5
    # As often as the policy says: no client multiplies it, but that aiohttp repeats what was reset, once and at once.
    assert server.requests == 3
    after = fetch_counts()
    made = 2 if misdeed == "reset" and client in REPEATING else 3
    assert (after.requests - before.requests, after.retries - before.retries) == (made, made - 1)
    assert after.bytes - before.bytes == 50
    assert after.backoff_s > before.backoff_s


@everywhere
@pytest.mark.parametrize(
    ("misdeed", "reason"),
    [
        ("stall_head", "no answer in time"),
        ("stall_body", "no answer in time"),
        ("drip", "no answer in time"),
        ("truncate", "cut"),
        ("short", "50 bytes at 1000, got 7|cut short"),
        ("reset", "the connection broke|cut short"),
        ("503", "HTTP 503"),
    ],
)
def test_what_does_not_pass_is_given_up_in_time(client: str, misdeed: str, reason: str, server: HostileServer) -> None:
    source = _open(client, server)
    server.misbehave(misdeed)
    started = time.monotonic()
    with pytest.raises(GaveUpError, match=reason) as caught:
        run(source.read_ranges([RANGE], expected=PINNED))
    assert time.monotonic() - started < FAST.deadline_s + 5
    assert server.requests == (6 if misdeed == "reset" and client in REPEATING else 3)
    message = str(caught.value)
    assert "gave up after 3 attempts in" in message
    assert "a.svs" in message
    assert not any(mark in message for mark in ("\n", "hush", "Traceback"))


@everywhere
@pytest.mark.parametrize(
    ("misdeed", "kind", "reason"),
    [
        ("403", AccessDeniedError, "access denied"),
        ("404", NotFoundError, "no such"),
        ("412", SlideChangedError, "changed since"),
        ("416", StorageError, "past its end"),
        ("changed", SlideChangedError, "changed since"),
        ("whole_file", StorageError, "whole files only|changed since"),
        ("whole_file_of_that_length", StorageError, "whole files only|changed since"),
        ("other_range", StorageError, "answers range requests wrongly"),
    ],
)
def test_a_final_answer_is_final(
    client: str, misdeed: str, kind: type[StorageError], reason: str, server: HostileServer
) -> None:
    source = _open(client, server)
    server.misbehave(misdeed)
    with pytest.raises(kind, match=reason) as caught:
        run(source.read_ranges([RANGE], expected=PINNED))
    assert server.requests == 1
    assert not isinstance(caught.value, GaveUpError)
    assert "attempts" not in str(caught.value)


@everywhere
def test_connections_that_close_between_requests_are_no_fault(client: str, server: HostileServer) -> None:
    source = _open(client, server)
    server.misbehave("hang_up_after")
    for _ in range(10):
        assert run(source.read_ranges([RANGE, (0, 9)], expected=PINNED)) == [*EXPECTED, CONTENT[:9]]


@everywhere
def test_the_deadline_ends_a_range_before_its_attempts_do(client: str, server: HostileServer) -> None:
    set_retry_policy(RetryPolicy(attempts=100, attempt_s=0.3, first_wait_s=0.01, deadline_s=0.8))
    source = _open(client, server)
    server.misbehave("stall_head")
    started = time.monotonic()
    with pytest.raises(StorageError, match=r"gave up after \d attempts in \d\.\d s"):
        run(source.read_ranges([RANGE], expected=PINNED))
    assert time.monotonic() - started < 0.8 + 5, "all the attempts take 30 s"


@everywhere
def test_one_bad_range_of_several_ends_the_others(client: str, server: HostileServer) -> None:
    source = _open(client, server)
    server.misbehave("404", times=1)
    with pytest.raises(NotFoundError):
        run(source.read_ranges([(k, 10) for k in range(20)], expected=PINNED))
    server.misbehave("")
    assert run(source.read_ranges([RANGE], expected=PINNED)) == EXPECTED


@everywhere
def test_the_start_of_an_object_is_retried_too(client: str, server: HostileServer) -> None:
    source = _open(client, server)
    server.misbehave("503", times=2)
    assert run(source.read_start(100)) == (CONTENT[:100], PINNED)
    server.misbehave("reset", times=2)
    assert run(source.info()) == PINNED


def test_policies_that_make_no_sense() -> None:
    with pytest.raises(ValueError, match="attempts must be at least 1"):
        RetryPolicy(attempts=0)
    with pytest.raises(ValueError, match="every time positive"):
        RetryPolicy(deadline_s=0)
