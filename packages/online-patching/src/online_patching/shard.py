"""Which samples does one worker of one rank serve?

Global batch *b* holds samples ``b*B ... b*B + B-1`` (B = ``global_batch_size``); rank r of R takes its contiguous part
of each; worker w of n serves the rank's batches w, w + n, ... So the batches are the same for every number of ranks and
workers, and resuming is setting a position: the number of samples that the consumer has taken from all shards together.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Shard:
    """The part of the stream that one worker of one rank serves."""

    global_batch_size: int = 1
    rank: int = 0
    world_size: int = 1
    worker: int = 0
    num_workers: int = 1

    def __post_init__(self) -> None:
        if self.global_batch_size < 1 or self.world_size < 1 or self.global_batch_size % self.world_size:
            raise ValueError(
                f"global_batch_size {self.global_batch_size} over {self.world_size} ranks: allowed a multiple of the"
                " number of ranks"
            )
        if not 0 <= self.rank < self.world_size or not 0 <= self.worker < self.num_workers:
            raise ValueError(
                f"rank {self.rank} of {self.world_size}, worker {self.worker} of {self.num_workers}: counted from 0"
            )

    def indices(self, position: int, exists: Callable[[int], bool] | None = None) -> Iterator[int]:
        """Global sample numbers of this shard from ``position`` on.

        Args:
            position: Samples consumed, in whole global batches.
            exists: Of a stream that ends: whether it has a sample. Its last batch may be short, and is split at the
                same places as the others.
        """
        per_rank = self.global_batch_size // self.world_size
        for batch in itertools.count(position // self.global_batch_size + self.worker, self.num_workers):
            first = batch * self.global_batch_size
            for index in range(first + self.rank * per_rank, first + (self.rank + 1) * per_rank):
                if exists is not None and not exists(index):
                    return
                yield index

    def position_after(self, index: int, *, is_last: bool = False) -> int:
        """Samples consumed once this shard has handed over sample ``index``, in whole global batches.

        A batch that is cut short counts as not consumed, so continuing from here repeats it rather than losing it; the
        last sample of a stream ends its batch.
        """
        batch, place = divmod(index, self.global_batch_size)
        last_of_rank = (self.rank + 1) * (self.global_batch_size // self.world_size) - 1
        return index + 1 if is_last else (batch + (place == last_of_rank)) * self.global_batch_size
