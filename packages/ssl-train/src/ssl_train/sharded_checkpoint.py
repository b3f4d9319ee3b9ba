"""How are the weights of many devices brought together?

`FullySharded` writes a folder: a file of tensors a rank, `.metadata` with their places, and `meta.pt` with everything
else (torch.distributed.checkpoint, through Lightning). It is read with any number of ranks, here with none.

Like every training checkpoint it is one's own and trusted: `.metadata` is a pickle.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.tensor import DTensor

from ssl_train.architectures import misfit
from ssl_train.weights import load_file_safely

_METADATA, _REST = ".metadata", "meta.pt"
_PREFIX = "state_dict."


@contextmanager
def told_what_is_wrong(folder: Path) -> Iterator[None]:
    """Raises ValueError in one line for whatever torch says of a damaged folder."""
    if not all((folder / name).is_file() for name in (_METADATA, _REST)):
        raise ValueError(
            f"checkpoint {folder}: not a whole sharded checkpoint ({_METADATA} and {_REST} are written last); take "
            "an earlier one"
        )
    try:
        yield
    except (CheckpointException, OSError, RuntimeError, EOFError) as error:
        failures = error.failures.values() if isinstance(error, CheckpointException) else [error]
        causes = {" ".join(str(failure[0] if isinstance(failure, tuple) else failure).split()) for failure in failures}
        reason = "; ".join(sorted(causes))[:300]
        raise ValueError(
            f"checkpoint {folder}: a shard is missing or damaged ({reason}); take an earlier one"
        ) from error


def gathered_state_dict(module: nn.Module) -> dict[str, Tensor]:
    """A state dict of whole tensors; where they are sharded, all ranks have to ask for it."""
    state = module.state_dict()
    return {name: t.full_tensor() if isinstance(t, DTensor) else t for name, t in state.items()}


def load_sharded_checkpoint(model: pl.LightningModule, folder: Path) -> int:
    """Loads the weights of all shards into a model on one device; returns the checkpoint's step.

    Raises:
        ValueError: a folder that is not whole, or one of another model.
    """
    own = model.state_dict()
    with told_what_is_wrong(folder):
        stored = FileSystemReader(folder).read_metadata().state_dict_metadata
        shapes = {
            name.removeprefix(_PREFIX): torch.empty(entry.size, device="meta")
            for name, entry in stored.items()
            if name.startswith(_PREFIX) and isinstance(entry, TensorStorageMetadata)
        }
        problem = misfit(shapes, own)
        if problem is not None:
            raise ValueError(f"checkpoint {folder}: does not fit the model of the config: {problem}")
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="torch.distributed is disabled")
            load({"state_dict": own}, checkpoint_id=folder, no_dist=True)
    model.load_state_dict(own)
    return int(load_file_safely(folder / _REST)["global_step"])
