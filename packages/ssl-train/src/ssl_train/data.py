"""How do patches reach the trainer, and from which sample does a resumed run go on?

A stream is sharded over ranks and workers and collated into whole batches inside the dataset, so that the
samples of every batch are exact whatever the number of ranks and workers. **The position is what the trainer
consumed** (optimizer steps x micro-batches x global batch), never what a loader fetched ahead.
"""

from __future__ import annotations

import queue
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from ssl_train.contract import PatchStream

PREFETCHED_BATCHES = 2
_T = TypeVar("_T")


class PatchBatches(IterableDataset[dict[str, Tensor]]):
    """Whole batches of one rank: `image` uint8 (B, H, W, 3) and `index` int64 (B,).

    Args:
        stream: the stream, already at its position.
        batch_size: patches per rank.
        rank: this process.
        world_size: number of processes.
    """

    def __init__(self, stream: PatchStream, *, batch_size: int, rank: int, world_size: int) -> None:
        super().__init__()
        self._stream = stream
        self._batch_size = batch_size
        self._rank = rank
        self._world_size = world_size

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        """Batches of this rank, or of this worker's share of them."""
        info = get_worker_info()
        shard = self._stream.shard(
            global_batch_size=self._batch_size * self._world_size,
            rank=self._rank,
            world_size=self._world_size,
            worker=info.id if info is not None else 0,
            num_workers=info.num_workers if info is not None else 1,
        )
        batches = self._collate(iter(shard))
        # Worker processes already run ahead of the trainer; without them a thread does.
        return batches if info is not None else prefetch(batches, depth=PREFETCHED_BATCHES)

    def _collate(self, samples: Iterator[dict[str, Any]]) -> Iterator[dict[str, Tensor]]:
        images: list[np.ndarray[Any, Any]] = []
        indices: list[int] = []
        for sample in samples:
            image = np.asarray(sample["image"])
            if image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] != 3:
                raise ValueError(
                    f"sample {sample['index']} of the stream: image must be uint8 (H, W, 3), "
                    f"got {image.dtype} {image.shape}"
                )
            if images and image.shape != images[0].shape:
                raise ValueError(
                    f"sample {sample['index']} of the stream: image of {image.shape} among images of "
                    f"{images[0].shape}; a stream must serve one size"
                )
            images.append(image)
            indices.append(int(sample["index"]))
            if len(images) == self._batch_size:
                yield {"image": torch.from_numpy(np.stack(images)), "index": torch.tensor(indices)}
                images, indices = [], []


def prefetch(items: Iterator[_T], *, depth: int) -> Iterator[_T]:
    """Runs an iterator in a thread, at most `depth` items ahead; its exceptions are raised here.

    Closing the generator stops the thread.
    """
    waiting: queue.Queue[tuple[_T | None, BaseException | None]] = queue.Queue(maxsize=depth)
    stopped = threading.Event()

    def put(item: _T | None, error: BaseException | None) -> None:
        while not stopped.is_set():
            try:
                waiting.put((item, error), timeout=0.1)
                return
            except queue.Full:
                continue

    def run() -> None:
        try:
            for item in items:
                put(item, None)
                if stopped.is_set():
                    return
        except BaseException as error:  # handed to the consumer, whatever it is
            put(None, error)
        else:
            put(None, StopIteration())

    thread = threading.Thread(target=run, name="prefetch", daemon=True)
    thread.start()
    try:
        while True:
            item, error = waiting.get()
            if isinstance(error, StopIteration):
                return
            if error is not None:
                raise error
            yield item  # type: ignore[misc]  # only errors come without an item
    finally:
        stopped.set()
        thread.join(timeout=10)


class LoaderAtPosition:
    """A loader whose every iteration starts at the first sample that the trainer has not consumed.

    A trainer that has epochs of its own (`limit_train_batches`, `max_epochs`) would otherwise see the same patches in
    each of them.

    Args:
        loader: the loader.
        seek: brings its stream to the trainer's position; called before each iteration.
    """

    def __init__(self, loader: DataLoader[dict[str, Tensor]], seek: Callable[[], None]) -> None:
        self.loader = loader
        self._seek = seek

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        """Batches from the trainer's position on."""
        self._seek()
        return iter(self.loader)


def _leave_interrupts_to_the_trainer(_worker: int) -> None:
    """A terminal sends Ctrl-C to all processes of a run, and the step that the trainer finishes needs its workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


class PatchData(pl.LightningDataModule):
    """Feeds a patch stream to the trainer.

    Args:
        stream: the patch stream, given by `class_path` in YAML.
        batch_size: patches per rank and micro-batch.
        num_workers: worker processes; 0 reads in this process, in a thread.
        global_batch_size: patches that an optimizer step must have over all ranks and micro-batches, so that a recipe
            is not changed unnoticed on another number of devices; `RunChecks` holds the run to it.

    Raises:
        ValueError: `batch_size` below 1 or `num_workers` below 0.
    """

    def __init__(
        self, *, stream: PatchStream, batch_size: int, num_workers: int = 0, global_batch_size: int | None = None
    ) -> None:
        super().__init__()
        if batch_size < 1 or num_workers < 0:
            raise ValueError(
                f"data: batch_size must be at least 1 and num_workers at least 0, got {batch_size} and {num_workers}"
            )
        self.stream = stream
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.global_batch_size = global_batch_size
        self._saved: dict[str, Any] | None = None

    def train_dataloader(self) -> LoaderAtPosition:
        """An endless loader that starts at the first sample the trainer has not consumed."""
        assert self.trainer is not None, "PatchData works inside a Lightning trainer"
        self._check_resumed()
        dataset = PatchBatches(
            self.stream,
            batch_size=self.batch_size,
            rank=self.trainer.global_rank,
            world_size=self.trainer.world_size,
        )
        loader = DataLoader(
            dataset,
            batch_size=None,
            num_workers=self.num_workers,
            pin_memory=torch.cuda.is_available(),
            # Workers of before would go on from a position of their own.
            persistent_workers=False,
            prefetch_factor=PREFETCHED_BATCHES if self.num_workers else None,
            worker_init_fn=_leave_interrupts_to_the_trainer,
        )
        return LoaderAtPosition(loader, self._seek)

    def _seek(self) -> None:
        assert self.trainer is not None, "PatchData works inside a Lightning trainer"
        state = self._saved["stream"] if self._saved is not None else self.stream.state_dict()
        self.stream.load_state_dict({**state, "position": self.trainer.global_step * self._patches_per_step()})

    def state_dict(self) -> dict[str, Any]:
        """The stream's state and the batch geometry its position counts in."""
        return {"patches_per_step": self._patches_per_step(), "stream": self.stream.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keeps the state of the interrupted run for `train_dataloader`."""
        self._saved = state_dict

    def _check_resumed(self) -> None:
        if self._saved is not None and self._saved["patches_per_step"] != self._patches_per_step():
            raise ValueError(
                f"resumed with {self._patches_per_step()} patches a step, but the checkpoint was written "
                f"with {self._saved['patches_per_step']}; keep batch_size x devices x "
                "accumulate_grad_batches the same"
            )

    def _patches_per_step(self) -> int:
        assert self.trainer is not None, "PatchData works inside a Lightning trainer"
        return self.batch_size * self.trainer.world_size * int(self.trainer.accumulate_grad_batches)
