"""A patch stream without slides, wired in by class_path: noise with a tint, a pure function of (seed,
index)."""

from __future__ import annotations

import copy
import os
import signal
from collections.abc import Iterator
from typing import Any, Self

import numpy as np


class StreamError(Exception):
    """Streams have exceptions of their own."""


class SyntheticStream:
    """Counts what it serves from its position on.

    At the sample of that number `fail_at` raises, `end_at` ends the stream, and `sigterm_at` and `sigint_at`
    ask the process to end.
    """

    def __init__(
        self,
        *,
        size_px: int = 40,
        mpp: list[float] | None = None,
        seed: int = 0,
        fail_at: int | None = None,
        end_at: int | None = None,
        sigterm_at: int | None = None,
        sigint_at: int | None = None,
        storage_options: dict[str, Any] | None = None,
    ) -> None:
        if size_px < 1:
            raise StreamError(f"size_px {size_px}: must be at least 1")
        self.size_px = size_px
        self.seed = seed
        self.fail_at = fail_at
        self.end_at = end_at
        self.sigterm_at = sigterm_at
        self.sigint_at = sigint_at
        self._position = 0
        self._shard = (1, 0, 1, 0, 1)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        size, rank, world_size, worker, num_workers = self._shard
        share = size // world_size
        batch = self._position // size + worker
        while True:
            start = batch * size + rank * share
            for index in range(start, start + share):
                if index == self.fail_at:
                    raise StreamError(f"slide s{index}: bucket unreachable")
                if index == self.end_at:
                    return
                if index == self.sigterm_at:
                    os.kill(os.getpid(), signal.SIGTERM)
                if index == self.sigint_at:
                    os.kill(os.getpid(), signal.SIGINT)
                yield {"image": self._image(index), "index": index, "slide_id": f"s{index % 3}"}
            batch += num_workers

    def _image(self, index: int) -> np.ndarray[Any, Any]:
        generator = np.random.default_rng([self.seed, index])
        noise = generator.integers(0, 128, (self.size_px, self.size_px, 3))
        return (noise + generator.integers(0, 128, 3)).astype(np.uint8)

    def shard(self, *, global_batch_size: int, rank: int, world_size: int, worker: int, num_workers: int) -> Self:
        shard = copy.copy(self)
        shard._shard = (global_batch_size, rank, world_size, worker, num_workers)
        return shard

    def state_dict(self) -> dict[str, Any]:
        return {
            "format_version": 1,
            "position": self._position,
            "seed": self.seed,
            "fingerprint": "synthetic",
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state["fingerprint"] != "synthetic":
            raise ValueError("state of another stream")
        self._position = state["position"]
        self.seed = state["seed"]


class FiniteStream(SyntheticStream):
    """One that knows where it ends."""

    def __init__(self, *, length: int) -> None:
        super().__init__(end_at=length)
        self._length = length

    def __len__(self) -> int:
        return self._length
