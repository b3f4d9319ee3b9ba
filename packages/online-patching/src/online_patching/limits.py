"""How many requests are under way at a time, in the process and to one host?

Enough to hide latency (100 ms and 1,500 requests/s need 150), not so many that a store sheds load. Every attempt of
every source takes a place here first. Places are given first come, first served, except that who waits for a crowded
host lets others pass. Each event loop has gates of its own, so that a forked child starts with all places free.
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass

from online_patching.loop import PerLoop


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestLimits:
    """Bounds on requests under way.

    Attributes:
        in_flight: In the process.
        per_host: To one host (the bucket or container of a store, the host of a web address).

    Raises:
        ValueError: One of them is no whole number or below 1.
    """

    in_flight: int = 256
    per_host: int = 192

    def __post_init__(self) -> None:
        for value in (self.in_flight, self.per_host):
            if not isinstance(value, int) or value < 1:
                got = f"in_flight={self.in_flight!r}, per_host={self.per_host!r}"
                raise ValueError(f"{got}: both must be at least 1, and whole numbers")


_limits = RequestLimits()


def request_limits() -> RequestLimits:
    """The limits of this process."""
    return _limits


def set_request_limits(limits: RequestLimits) -> None:
    """Set the limits of this process; requests under way keep their places."""
    global _limits
    _limits = limits


class Gates:
    """The places of one event loop; used on that loop only."""

    def __init__(self) -> None:
        self._taken = 0
        self._taken_of_host: dict[str, int] = {}
        self._waiting: dict[str, deque[tuple[int, asyncio.Future[None]]]] = {}
        self._arrivals = 0

    @property
    def taken(self) -> int:
        """Places taken now."""
        return self._taken

    @property
    def waiting(self) -> int:
        """Requests that wait for a place."""
        return sum(len(queue) for queue in self._waiting.values())

    def enter(self, host: str) -> asyncio.Future[None] | None:
        """Take a place: None where there is one at once, else what to await before it is taken."""
        # Who comes later takes no place before those who wait, unless these wait for another host only.
        if host not in self._waiting and self._has_room(host):
            self._take(host)
            return None
        self._arrivals += 1
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(host, deque()).append((self._arrivals, turn))
        # The limits may have been raised since somebody last left.
        self._admit()
        return turn

    def abandon(self, host: str, turn: asyncio.Future[None]) -> None:
        """Give up a turn whose awaiting was cancelled, and the place if it had come meanwhile."""
        if turn.done() and not turn.cancelled():
            self.leave(host)
        else:
            turn.cancel()
            self._admit()

    def leave(self, host: str) -> None:
        """Give the place back, to whoever waits longest and may have it."""
        self._taken -= 1
        left = self._taken_of_host[host] - 1
        if left:
            self._taken_of_host[host] = left
        else:
            del self._taken_of_host[host]
        if self._waiting:
            self._admit()

    def _has_room(self, host: str) -> bool:
        return self._taken < _limits.in_flight and self._taken_of_host.get(host, 0) < _limits.per_host

    def _take(self, host: str) -> None:
        self._taken += 1
        self._taken_of_host[host] = self._taken_of_host.get(host, 0) + 1

    def _admit(self) -> None:
        while (host := self._next_host()) is not None:
            queue = self._waiting[host]
            _, turn = queue.popleft()
            if not queue:
                del self._waiting[host]
            self._take(host)
            turn.set_result(None)

    def _next_host(self) -> str | None:
        """The host with room whose first in line came first."""
        first: tuple[int, str] | None = None
        for host in list(self._waiting):
            queue = self._waiting[host]
            while queue and queue[0][1].done():
                queue.popleft()
            if not queue:
                del self._waiting[host]
            elif self._has_room(host) and (first is None or queue[0][0] < first[0]):
                first = (queue[0][0], host)
        return None if first is None else first[1]


_gates = PerLoop(Gates)


def gates() -> Gates:
    """The gates of the running loop."""
    return _gates.here()
