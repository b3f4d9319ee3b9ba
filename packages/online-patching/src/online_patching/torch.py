"""How do patches reach a torch training loop?

``PatchLoader`` serves the batches of a stream to a loop or to a Lightning trainer: in this process, where the
package's own threads read ahead (``num_workers=0``, the simpler and usually the faster choice), or through worker
processes. It counts what it handed over, so every new epoch goes on where the last one ended, and a checkpoint resumes
at the batch that follows, with any number of workers and ranks::

    loader = PatchLoader(PatchStream(catalog, mpp=[0.5, 1.0]), batch_size=64)
    for batch in loader:  # 1,280,000 patches, an epoch of the paper
        loss = model(batch["image"].permute(0, 3, 1, 2) / 255)

``PatchDataset`` is the ``IterableDataset`` behind it, for one's own ``DataLoader(dataset, batch_size=None)``.
"""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from online_patching.patch_feed import PatchFeed
from online_patching.stream_metrics import StreamMetrics

Batch = dict[str, Any]

FORMAT_VERSION = 1
# What the paper calls an epoch (section IV-B).
EPOCH_PATCHES = 1_280_000
# In which the system tells a process of the death of a child.
DEATH_NOTICE_S = 0.5


class PatchDataset(IterableDataset[Batch]):
    """Batches of a patch stream, the same for every number of workers and ranks.

    Args:
        stream: The stream to read, from its position on at every iteration.
        batch_size: Patches of one rank's batch.
        rank: This process's rank; where not given, that of ``torch.distributed`` or of the launcher (``RANK``).
        world_size: Number of ranks; likewise.

    Each item is a dict: ``image`` uint8 tensor (batch_size, H, W, 3), ``index`` int64 tensor (batch_size,), every other
    number as a tensor, every text as a list.

    Raises:
        ValueError: ``batch_size`` below 1, or one of ``rank`` and ``world_size`` without the other.
    """

    def __init__(
        self, stream: PatchFeed, *, batch_size: int, rank: int | None = None, world_size: int | None = None
    ) -> None:
        super().__init__()
        if batch_size < 1:
            raise ValueError(f"batch_size: got {batch_size}, allowed at least 1")
        if (rank is None) != (world_size is None):
            raise ValueError(f"got rank {rank} and world_size {world_size}, allowed both or none")
        self.stream = stream
        self.batch_size = batch_size
        self._ranks = None if rank is None or world_size is None else (rank, world_size)

    @property
    def ranks(self) -> tuple[int, int]:
        """This process's rank and their number."""
        return self._ranks or _ranks_here()

    def __getstate__(self) -> dict[str, Any]:
        # A worker that starts afresh knows nothing of the ranks.
        return {**self.__dict__, "_ranks": self.ranks}

    def __iter__(self) -> Iterator[Batch]:
        worker = get_worker_info()
        rank, world_size = self.ranks
        shard = self.stream.shard(
            global_batch_size=self.batch_size * world_size,
            rank=rank,
            world_size=world_size,
            worker=0 if worker is None else worker.id,
            num_workers=1 if worker is None else worker.num_workers,
        )
        patches = iter(shard)
        while batch := list(itertools.islice(patches, self.batch_size)):
            yield {key: _collate([patch[key] for patch in batch]) for key in batch[0]}


class PatchLoader:
    """A stream's batches for a training loop; it goes on where it was, epoch after epoch and run after run.

    Its length is known, so a Lightning trainer takes one batch at a time, and ``state_dict``, which Lightning writes
    into its checkpoints, holds just what was trained on. Iterating twice at the same time shares the batches out.

    Args:
        stream: The stream to read, from its position on.
        batch_size: Patches of one rank's batch.
        epoch_patches: Patches of all ranks in an epoch of a stream without end, rounded down to whole batches; a stream
            that ends has its own length.
        num_workers: Worker processes; 0 reads in this process.
        rank: See ``PatchDataset``.
        world_size: Likewise.
        options: Further arguments of ``torch.utils.data.DataLoader`` (``pin_memory``, ``prefetch_factor``,
            ``multiprocessing_context``, ``timeout``, ...).

    Raises:
        ValueError: ``epoch_patches`` below one batch, or see ``PatchDataset``.
        RuntimeError: While iterating: a worker process died; or what the stream raises.
    """

    def __init__(
        self,
        stream: PatchFeed,
        *,
        batch_size: int,
        epoch_patches: int = EPOCH_PATCHES,
        num_workers: int = 0,
        rank: int | None = None,
        world_size: int | None = None,
        **options: Any,
    ) -> None:
        self.stream = stream
        self.batch_size = batch_size
        self.epoch_patches = epoch_patches
        self._dataset = PatchDataset(stream, batch_size=batch_size, rank=rank, world_size=world_size)
        self._loader: DataLoader[tuple[Batch, StreamMetrics]] = DataLoader(
            _CountedBatches(self._dataset),
            batch_size=None,
            num_workers=num_workers,
            collate_fn=_unchanged,  # type: ignore[arg-type]  # it is given single items where batch_size is None
            **options,
        )
        self._batches: Iterator[tuple[Batch, StreamMetrics]] | None = None
        self._position = stream.position
        # What the running epoch has had; a new one starts at nothing, but for the first one of a resumed run.
        self._batches_of_epoch = self._position // self._global_batch if self._is_finite else 0
        self._is_resumed = True
        self._metrics = StreamMetrics()
        if not self._is_finite and epoch_patches < self._global_batch:
            raise ValueError(f"epoch_patches: got {epoch_patches}, allowed at least one batch ({self._global_batch})")

    @property
    def _is_finite(self) -> bool:
        return hasattr(self.stream, "__len__")

    @property
    def _global_batch(self) -> int:
        return self.batch_size * self._dataset.ranks[1]

    def __len__(self) -> int:
        """Batches of this rank in an epoch."""
        if not self._is_finite:
            return self.epoch_patches // self._global_batch
        full, rest = divmod(len(self.stream), self._global_batch)  # type: ignore[arg-type]
        return full + (rest > self._dataset.ranks[0] * self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        if not self._is_resumed:
            self._batches_of_epoch = 0
            if self._is_finite:
                self._start_at(0)
        self._is_resumed = False
        last = time.perf_counter()
        for _ in range(len(self) - self._batches_of_epoch):
            asked = time.perf_counter()
            batch, counts = self._next()
            now = time.perf_counter()
            self._metrics += replace(counts, patches=len(batch["index"]), seconds=now - last, wait_seconds=now - asked)
            last = now
            # Before handing over: the consumer may never come back for another.
            self._position += self._global_batch
            if self._is_finite:
                self._position = min(self._position, len(self.stream))  # type: ignore[arg-type]
            self._batches_of_epoch += 1
            yield batch

    def _next(self) -> tuple[Batch, StreamMetrics]:
        if self._batches is None:
            self.stream.seek(self._position)
            self._batches = iter(self._loader)
        try:
            return next(self._batches)
        except BaseException as error:
            # The next attempt starts anew from the same batch.
            self._batches = None
            if self._loader.num_workers and isinstance(error, (ConnectionError, EOFError, FileNotFoundError)):
                # A batch could not be fetched from a worker that is gone. Torch's watch on its workers knows more, and
                # raises it here.
                time.sleep(DEATH_NOTICE_S)
                raise RuntimeError(
                    f"DataLoader worker died while it handed over the batch of samples {self._position} and following"
                    f" ({error!r}); was it killed for want of memory? Use fewer than {self._loader.num_workers}"
                    " num_workers, or none"
                ) from error
            raise

    def state_dict(self) -> dict[str, Any]:
        """What has been handed over, as JSON values."""
        return {
            "format_version": FORMAT_VERSION,
            "stream": {**self.stream.state_dict(), "position": self._position},
            "epoch_patches_done": self._batches_of_epoch * self._global_batch,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on after what a state's loader had handed over, with any number of workers and ranks.

        Raises:
            ValueError: The state is of another format or stream, or its position would cut a batch.
        """
        if state.get("format_version") != FORMAT_VERSION:
            raise ValueError(f"loader state: format_version {state.get('format_version')!r}, allowed {FORMAT_VERSION}")
        self.stream.load_state_dict(state["stream"])
        position, batch = self.stream.position, self._global_batch
        is_whole = self._is_finite and position == len(self.stream)  # type: ignore[arg-type]
        if position % batch and not is_whole:
            raise ValueError(
                f"loader state: position {position} is not a multiple of {batch} patches, the batches of all ranks"
                " together; keep batch_size x ranks as it was, or a divisor of it"
            )
        self._start_at(position)
        self._batches_of_epoch = state["epoch_patches_done"] // batch
        # A state of the end of an epoch goes on with the next one.
        self._is_resumed = self._batches_of_epoch < len(self)

    def _start_at(self, position: int) -> None:
        self.close()
        self._position = position

    def metrics(self) -> StreamMetrics:
        """What this loader did so far, all its workers together; its waiting is that of the training loop."""
        return self._metrics

    def close(self) -> None:
        """End the worker processes; iterating starts new ones."""
        self._batches = None


class _CountedBatches(IterableDataset[tuple[Batch, StreamMetrics]]):
    """Batches, each with what the stream did for it, since workers cannot be asked."""

    def __init__(self, dataset: PatchDataset) -> None:
        super().__init__()
        self._dataset = dataset

    def __iter__(self) -> Iterator[tuple[Batch, StreamMetrics]]:
        before = self._dataset.stream.metrics()
        for batch in self._dataset:
            now = self._dataset.stream.metrics()
            yield batch, now - before
            before = now


def _unchanged(item: tuple[Batch, StreamMetrics]) -> tuple[Batch, StreamMetrics]:
    return item


def _ranks_here() -> tuple[int, int]:
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


def _collate(values: list[Any]) -> Any:
    if isinstance(values[0], np.ndarray):
        return torch.from_numpy(np.stack(values))
    return torch.tensor(values) if isinstance(values[0], (bool, int, float)) else values
