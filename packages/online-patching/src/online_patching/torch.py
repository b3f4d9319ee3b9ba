"""How does a torch ``DataLoader`` read a patch stream?

``PatchDataset`` is an ``IterableDataset`` over any patch stream. It yields whole batches, so use it with
``DataLoader(dataset, batch_size=None)``. With ``num_workers=0`` the stream's own threads read ahead, which is the
simpler and usually the faster choice.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch.utils.data import IterableDataset, get_worker_info

from online_patching.stream import PatchStream


class PatchDataset(IterableDataset[dict[str, Any]]):
    """Batches of a patch stream, the same for every number of workers and ranks.

    Args:
        stream: The stream to read.
        batch_size: Patches of one rank's batch.
        rank: This process's rank.
        world_size: Number of ranks.

    Each item is a dict: ``image`` uint8 tensor (batch_size, H, W, 3), ``index`` int64 tensor (batch_size,), every other
    number as a tensor, every text as a list.
    """

    def __init__(self, stream: PatchStream, *, batch_size: int, rank: int = 0, world_size: int = 1) -> None:
        super().__init__()
        if batch_size < 1:
            raise ValueError(f"batch_size: got {batch_size}, allowed at least 1")
        self.stream = stream
        self.batch_size = batch_size
        self.rank = rank
        self.world_size = world_size

    def __iter__(self) -> Iterator[dict[str, Any]]:
        worker = get_worker_info()
        shard = self.stream.shard(
            global_batch_size=self.batch_size * self.world_size,
            rank=self.rank,
            world_size=self.world_size,
            worker=0 if worker is None else worker.id,
            num_workers=1 if worker is None else worker.num_workers,
        )
        patches = iter(shard)
        while batch := list(itertools.islice(patches, self.batch_size)):
            yield {key: _collate([patch[key] for patch in batch]) for key in batch[0]}


def _collate(values: list[Any]) -> Any:
    if isinstance(values[0], np.ndarray):
        return torch.from_numpy(np.stack(values))
    return torch.tensor(values) if isinstance(values[0], (bool, int, float)) else values
