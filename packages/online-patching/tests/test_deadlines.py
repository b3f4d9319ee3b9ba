"""An await that ends in time is untouched; one that does not is cancelled, and other cancellations pass."""

from __future__ import annotations

import asyncio
import time

import pytest
from online_patching.deadlines import within


async def _answer() -> int:
    await asyncio.sleep(0.01)
    return 7


def test_in_time_and_late() -> None:
    async def both() -> None:
        assert await within(5, _answer) == 7
        started = time.monotonic()
        with pytest.raises(TimeoutError, match=r"within 0\.2 s"):
            await within(0.2, lambda: asyncio.sleep(60))
        assert 0.2 <= time.monotonic() - started < 20
        task = asyncio.current_task()
        assert task is not None
        assert task.cancelling() == 0
        # The next one is watched as well.
        with pytest.raises(TimeoutError):
            await within(0.1, lambda: asyncio.sleep(60))

    asyncio.run(both())


def test_an_outer_timeout_is_its_own() -> None:
    async def inner() -> None:
        await within(30, lambda: asyncio.sleep(60))

    async def outer() -> None:
        with pytest.raises(TimeoutError) as caught:
            async with asyncio.timeout(0.1):
                await inner()
        assert "within" not in str(caught.value)

    asyncio.run(outer())


def test_a_cancelled_task_is_cancelled() -> None:
    async def outer() -> None:
        task = asyncio.create_task(within(30, lambda: asyncio.sleep(60)))  # type: ignore[arg-type]
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(outer())
