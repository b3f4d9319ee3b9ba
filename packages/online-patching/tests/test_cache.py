from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st
from online_patching import cache
from online_patching.cache import BoundedCache, SharedReads


@given(
    puts=st.lists(st.tuples(st.integers(0, 9), st.integers(0, 40)), max_size=60),
    most=st.integers(1, 6),
    most_bytes=st.integers(0, 100),
)
def test_the_last_used_are_kept_within_both_bounds(puts: list[tuple[int, int]], most: int, most_bytes: int) -> None:
    kept: BoundedCache[int, str] = BoundedCache(most, max_bytes=most_bytes)
    model: list[tuple[int, int]] = []  # (key, bytes), the least recently used first
    for key, weight in puts:
        before = next((entry for entry in model if entry[0] == key), (key, weight))
        model = [entry for entry in model if entry[0] != key] + [before]
        while len(model) > 1 and (len(model) > most or sum(w for _, w in model) > most_bytes):
            model.pop(0)
        if kept.peek(key) is None:
            kept.put(key, str(key), weight)
        assert len(kept) == len(model)
    assert [kept.peek(key) for key, _ in model] == [str(key) for key, _ in model]
    assert all(kept.peek(key) is None for key in set(range(10)) - {key for key, _ in model})


def test_two_threads_that_make_the_same_value_keep_one() -> None:
    kept: BoundedCache[str, list[int]] = BoundedCache(4, max_bytes=10)
    first, second = [1], [2]
    assert kept.put("a", first, 5) is first
    assert kept.put("a", second, 5) is first
    kept.put("b", [3], 5)
    assert kept.peek("a") is first, "the value that was not kept weighs nothing"


def test_many_threads_leave_the_weight_right() -> None:
    kept: BoundedCache[int, int] = BoundedCache(10_000, max_bytes=300)

    def work(start: int) -> None:
        for k in range(2000):
            kept.put((start + k) % 997, -1 - k, 3)
            kept.peek(k % 97)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(0, 4000, 1000)))
    assert len(kept) == 100


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_fork_while_another_thread_holds_the_lock_does_not_hang() -> None:
    kept: BoundedCache[str, int] = BoundedCache(4)
    held, done = threading.Event(), threading.Event()

    def hold() -> None:
        with cache._lock:
            held.set()
            done.wait(30)

    holder = threading.Thread(target=hold)
    holder.start()
    held.wait(30)
    child = os.fork()
    if child == 0:
        kept.put("a", 1)
        os._exit(0 if kept.peek("a") == 1 else 1)
    done.set()
    holder.join()
    assert os.waitpid(child, 0)[1] == 0


class Reader:
    """Reads lengths of texts, counts how often, and fails for an empty one."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.go = asyncio.Event()

    async def read(self, keys: Sequence[str]) -> dict[str, int | BaseException]:
        self.asked += keys
        await self.go.wait()
        return {key: len(key) or ValueError("empty") for key in keys}


def test_readers_at_the_same_time_share_a_read() -> None:
    async def scenario() -> None:
        reader = Reader()
        reads: SharedReads[str, int] = SharedReads(reader.read)
        first = asyncio.ensure_future(reads.get(["a", "bb"]))
        second = asyncio.ensure_future(reads.get(["bb", "ccc", "ccc"]))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        reader.go.set()
        assert await first == {"a": 1, "bb": 2}
        assert await second == {"bb": 2, "ccc": 3}
        assert sorted(reader.asked) == ["a", "bb", "ccc"]
        # What was read is not kept here: that is the cache's part.
        assert await reads.get(["a"]) == {"a": 1}
        assert reader.asked.count("a") == 2

    asyncio.run(scenario())


def test_a_failure_or_a_cancelled_reader_is_nobody_elses() -> None:
    async def scenario() -> None:
        reader = Reader()
        reads: SharedReads[str, int] = SharedReads(reader.read)
        failing = asyncio.ensure_future(reads.get(["a", ""]))
        cancelled = asyncio.ensure_future(reads.get(["a", "bb"]))
        waiting = asyncio.ensure_future(reads.get(["bb"]))
        await asyncio.sleep(0)
        cancelled.cancel()
        await asyncio.sleep(0)
        reader.go.set()
        assert await waiting == {"bb": 2}
        with pytest.raises(ValueError, match="empty"):
            await failing
        with pytest.raises(asyncio.CancelledError):
            await cancelled
        assert await reads.get(["a"]) == {"a": 1}
        assert reader.asked.count("bb") == 1

    asyncio.run(scenario())


def test_a_read_of_another_loop_is_not_waited_for() -> None:
    # As in a forked child: the loop that runs the read does not run here.
    reader = Reader()
    reads: SharedReads[str, int] = SharedReads(reader.read)
    other = asyncio.new_event_loop()
    task = other.create_task(reads.get(["a"]))
    other.run_until_complete(asyncio.sleep(0))
    reader.go = asyncio.Event()
    reader.go.set()
    assert asyncio.run(asyncio.wait_for(reads.get(["a"]), 10)) == {"a": 1}
    task.cancel()
    for left in asyncio.all_tasks(other):
        left.cancel()
    other.run_until_complete(asyncio.gather(*asyncio.all_tasks(other), return_exceptions=True))
    other.close()
