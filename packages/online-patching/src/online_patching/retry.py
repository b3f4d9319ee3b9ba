"""When is a request to a remote store made again, and when is it given up?

One policy for every remote source, at one place, because layers that retry each multiply: the clients' own retries
are off for reading ranges (obstore ``max_retries``, botocore ``total_max_attempts``, s3fs ``retries``, Azure
``retry_total``). They could not take over: they know nothing of the pinned size (a short body), of the deadline of
the whole range, or of the places in ``limits``, and each draws its waits differently. (aiohttp alone repeats a GET
once, at once, whose connection broke before an answer, and offers no way to turn that off.) Listings and the small
files of a catalog, which do not come through here, keep their clients' retries.

An attempt takes a place, and a range keeps its place while it waits for its next attempt: a store that sheds load
gets fewer requests, not more. Waits grow exponentially with full jitter (drawn from 0 up to the bound, so that
workers who failed together do not return together). The time for a range counts from its first attempt.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

from online_patching.deadlines import within
from online_patching.errors import PatchingError, StorageError
from online_patching.limits import gates
from online_patching.store_errors import is_transient, storage_error

T = TypeVar("T")

# Long ranges may take longer than the policy says, by what a poor line needs for them.
SLOWEST_BYTES_PER_S = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """How often and how long a range is tried.

    Attributes:
        attempts: Requests for a range at most.
        attempt_s: What one attempt may take; ranges of a few MB take far less.
        first_wait_s: The longest wait before the second attempt; it doubles with each further one.
        longest_wait_s: Where it stops doubling.
        deadline_s: What a range may take, attempts and waits together.

    Raises:
        ValueError: ``attempts`` is below 1, or a time is not positive.
    """

    attempts: int = 5
    attempt_s: float = 20.0
    first_wait_s: float = 0.2
    longest_wait_s: float = 5.0
    deadline_s: float = 60.0

    def __post_init__(self) -> None:
        times = (self.attempt_s, self.first_wait_s, self.longest_wait_s, self.deadline_s)
        if self.attempts < 1 or not all(each > 0 for each in times):
            raise ValueError(f"{self}: attempts must be at least 1 and every time positive")


@dataclass(frozen=True, slots=True)
class FetchCounts:
    """What this process has asked of remote stores so far.

    Attributes:
        requests: Attempts, those that failed too.
        bytes: Bytes of the ranges that arrived.
        retries: Attempts after a first one that failed.
        queued_s: Seconds that ranges waited for a place (``limits``), summed over all.
        backoff_s: Seconds that ranges waited between their attempts, summed over all.
    """

    requests: int
    bytes: int
    retries: int
    queued_s: float
    backoff_s: float


class GaveUpError(StorageError):
    """Every attempt that the policy allows met a fault that may pass; the message says which, how often, how long."""


class _Counting:
    __slots__ = ("backoff_s", "bytes", "queued_s", "requests", "retries")

    def __init__(self) -> None:
        self.requests = self.bytes = self.retries = 0
        self.queued_s = self.backoff_s = 0.0


_policy = RetryPolicy()
# Added to on the package's loop alone.
_counting = _Counting()


def retry_policy() -> RetryPolicy:
    """The policy of this process."""
    return _policy


def set_retry_policy(policy: RetryPolicy) -> None:
    """Set the policy of this process, from the next attempt on."""
    global _policy
    _policy = policy


def fetch_counts() -> FetchCounts:
    """What this process has asked of remote stores so far; subtract two of them for what lies between."""
    c = _counting
    return FetchCounts(c.requests, c.bytes, c.retries, c.queued_s, c.backoff_s)


def count_received(length: int) -> None:
    """Count the bytes of a range that arrived."""
    _counting.bytes += length


async def with_retries(url: str, host: str, attempt: Callable[[], Awaitable[T]], *, length: int | None = 0) -> T:
    """What an attempt gives, after as many as the policy allows.

    Args:
        url: The object, for messages.
        host: Whose places are taken (``limits``).
        attempt: Makes one request; its errors are those of the client, or the package's own.
        length: Bytes asked for, which lengthen the times allowed; None for a whole object of unknown size, of which
            one attempt may take all the time there is.

    Raises:
        GaveUpError: No attempt that the policy allows succeeded, though it might have.
        StorageError: What the store answered for good, as one line.
    """
    gate = gates()
    turn = gate.enter(host)
    if turn is not None:
        await _take_turn(turn, host)
    try:
        return await _attempts(url, attempt, length)
    finally:
        gate.leave(host)


async def _take_turn(turn: asyncio.Future[None], host: str) -> None:
    asked = time.monotonic()
    try:
        await turn
    except asyncio.CancelledError:
        gates().abandon(host, turn)
        raise
    finally:
        _counting.queued_s += time.monotonic() - asked


async def _attempts(url: str, attempt: Callable[[], Awaitable[T]], length: int | None) -> T:
    started, made = time.monotonic(), 0
    extra_s = (length or 0) / SLOWEST_BYTES_PER_S
    deadline = started + _policy.deadline_s + extra_s
    attempt_s = _policy.deadline_s if length is None else _policy.attempt_s + extra_s
    while True:
        made += 1
        _counting.requests += 1
        try:
            return await within(min(attempt_s, deadline - time.monotonic()), attempt)
        except Exception as error:
            if not is_transient(error):
                if isinstance(error, PatchingError):
                    raise
                raise storage_error(url, error) from error
            wait_s = _wait_s(made)
            if made >= _policy.attempts or time.monotonic() + wait_s >= deadline:
                raise GaveUpError(
                    f"{storage_error(url, error)}; gave up after {made} {'attempts' if made > 1 else 'attempt'}"
                    f" in {time.monotonic() - started:.1f} s"
                ) from error
        _counting.retries += 1
        _counting.backoff_s += wait_s
        await asyncio.sleep(wait_s)


def _wait_s(made: int) -> float:
    bound = min(_policy.longest_wait_s, _policy.first_wait_s * 2 ** (made - 1))
    return random.uniform(0, bound)  # noqa: S311 - no secret is drawn
