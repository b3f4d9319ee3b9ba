from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from online_patching import engine
from online_patching.engine import EngineSettings, MemoryGate, WorkerThreads
from online_patching.limits import request_limits


@pytest.fixture(autouse=True)
def settings_of_before() -> Iterator[None]:
    before, limits = engine.settings(), request_limits()
    yield
    engine.configure(
        decode_threads=before.decode_threads,
        memory_mb=before.memory_mb,
        requests_in_flight=limits.in_flight,
        requests_per_host=limits.per_host,
    )


def test_configure_changes_what_is_given_and_nothing_when_refused() -> None:
    before = engine.settings()
    assert engine.configure(memory_mb=77) == EngineSettings(before.decode_threads, 77) == engine.settings()
    assert engine.configure(decode_threads=3, requests_in_flight=9).memory_mb == 77
    assert request_limits().in_flight == 9
    for wrong in ({"decode_threads": 0}, {"memory_mb": -1}, {"memory_mb": 1.5}, {"requests_in_flight": 0}):
        with pytest.raises(ValueError, match=r"allowed|at least 1"):
            engine.configure(**{"requests_per_host": 5, **wrong})  # type: ignore[arg-type]
        assert engine.settings() == EngineSettings(3, 77)
        assert request_limits().in_flight == 9
        assert request_limits().per_host != 5


def test_threads_do_all_that_was_submitted_and_end() -> None:
    threads = WorkerThreads(3, "test")
    done: list[int] = []
    for k in range(200):
        threads.submit(lambda k=k: done.append(k))  # type: ignore[misc]
    threads.close()
    assert sorted(done) == list(range(200))
    assert not [t for t in threading.enumerate() if t.name.startswith("online-patching-test")]


def test_other_decode_threads_take_the_place_of_those_before() -> None:
    names = set()
    for threads in (2, 2, 3):
        engine.configure(decode_threads=threads, memory_mb=55)
        done = threading.Event()
        engine.on_decoding_threads(lambda done=done: (names.add(threading.current_thread()), done.set()))  # type: ignore[misc]
        assert done.wait(10)
    named = [t for t in threading.enumerate() if t.name.startswith("online-patching-decode")]
    assert len(named) == 3, "threads of before have ended"
    assert names & set(named)


@settings(deadline=None, max_examples=60)
@given(sizes=st.lists(st.integers(0, 15), min_size=1, max_size=12), cancelled=st.sets(st.integers(0, 11)))
def test_the_gate_never_lets_more_in_than_fits_and_is_whole_in_the_end(sizes: list[int], cancelled: set[int]) -> None:
    limit, inside, entered = 10, 0, []

    async def one(gate: MemoryGate, number: int, size: int) -> None:
        nonlocal inside
        async with gate.reserve(size):
            inside += min(size, limit)
            assert inside <= limit
            entered.append(number)
            try:
                await asyncio.sleep(0)
            finally:
                inside -= min(size, limit)

    async def all_of_them() -> None:
        gate = MemoryGate(lambda: limit)
        tasks = [asyncio.ensure_future(one(gate, k, size)) for k, size in enumerate(sizes)]
        await asyncio.sleep(0)
        for k in cancelled & set(range(len(tasks))):
            tasks[k].cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(r is None or isinstance(r, asyncio.CancelledError) for r in results)
        # All of it can be had again at once.
        async with asyncio.timeout(1), AsyncExitStack() as stack:
            for _ in range(limit):
                await stack.enter_async_context(gate.reserve(1))

    asyncio.run(all_of_them())
    assert entered == sorted(entered), "not first come, first served"
    assert set(range(len(sizes))) - cancelled <= set(entered)


def test_the_bound_may_change_while_work_waits() -> None:
    limit = 10

    async def changed() -> None:
        nonlocal limit
        gate = MemoryGate(lambda: limit)
        async with asyncio.timeout(5), AsyncExitStack() as first:
            await first.enter_async_context(gate.reserve(8))
            waits = asyncio.ensure_future(AsyncExitStack().enter_async_context(gate.reserve(9)))
            await asyncio.sleep(0)
            assert not waits.done()
            # What waits is larger than the whole bound now: it gets in alone.
            limit = 5
            await first.aclose()
            await waits
            limit = 20
            await first.enter_async_context(gate.reserve(11))

    asyncio.run(changed())


def test_closing_twice_or_before_any_use_does_nothing() -> None:
    engine.close()
    engine.close()
    assert not [t for t in threading.enumerate() if t.name.startswith("online-patching")]
    started = time.monotonic()
    engine.on_disk_threads(lambda: None)
    engine.close()
    assert time.monotonic() - started < 5
