"""Places for requests: never more than the limits, first come first served, none lost."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from online_patching.limits import Gates, RequestLimits, request_limits, set_request_limits


@pytest.fixture(autouse=True)
def _limits_as_before() -> Iterator[None]:
    before = request_limits()
    yield
    set_request_limits(before)


async def _hold(gates: Gates, host: str, turns: int, held: Counter[str], peak: Counter[str]) -> None:
    turn = gates.enter(host)
    if turn is not None:
        try:
            await turn
        except asyncio.CancelledError:
            gates.abandon(host, turn)
            raise
    held[host] += 1
    for name, now in ((host, held[host]), ("all", held.total())):
        peak[name] = max(peak[name], now)
    try:
        for _ in range(turns):
            await asyncio.sleep(0)
    finally:
        held[host] -= 1
        gates.leave(host)


@given(
    st.integers(1, 6),
    st.integers(1, 6),
    st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 4), st.integers(0, 12)), max_size=40),
)
def test_limits_hold_and_no_place_is_lost(in_flight: int, per_host: int, requests: list[tuple[str, int, int]]) -> None:
    set_request_limits(RequestLimits(in_flight=in_flight, per_host=per_host))

    async def run() -> None:
        gates, held, peak = Gates(), Counter[str](), Counter[str]()
        tasks = [asyncio.create_task(_hold(gates, host, turns, held, peak)) for host, turns, _ in requests]
        for moment in range(10):
            await asyncio.sleep(0)
            for task, (_, _, cancelled_at) in zip(tasks, requests, strict=True):
                if cancelled_at == moment:
                    task.cancel()
        # Nobody waits for a place that is free, whoever was cancelled before.
        await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 10)
        assert (gates.taken, gates.waiting) == (0, 0)
        assert peak["all"] <= in_flight
        assert all(peak[host] <= per_host for host in "abc")

    asyncio.run(run())


def test_first_come_first_served_but_a_crowded_host_stops_no_other() -> None:
    set_request_limits(RequestLimits(in_flight=3, per_host=2))

    async def run() -> None:
        gates = Gates()
        assert gates.enter("a") is None
        assert gates.enter("a") is None
        third, fourth = gates.enter("a"), gates.enter("a")
        assert gates.enter("b") is None
        late = gates.enter("c")
        assert third is not None
        assert fourth is not None
        assert late is not None
        gates.leave("b")
        # Before it came others, but their host is full.
        assert (third.done(), late.done()) == (False, True)
        gates.leave("a")
        assert (third.done(), fourth.done()) == (True, False)
        set_request_limits(RequestLimits(in_flight=9, per_host=9))
        fifth = gates.enter("a")
        assert fifth is not None
        assert (fourth.done(), fifth.done()) == (True, True)

    asyncio.run(run())


def test_limits_that_let_nothing_through() -> None:
    with pytest.raises(ValueError, match="must be at least 1"):
        RequestLimits(in_flight=0)
