"""How does training spread over devices when student, teacher and optimizer do not fit on each?

FSDP2 through Lightning's ModelParallelStrategy, all devices data parallel: every block and head is a unit that is
gathered when it is needed. Parameters, the teacher's included, are kept in float32 as shards; they are gathered and
used in `param_dtype`, gradients are reduced in float32, and the moving average runs on the shards.

Checkpoints are folders with a file a rank (torch.distributed.checkpoint) and load with any number of ranks.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist
from pytorch_lightning.strategies import ModelParallelStrategy
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method

from ssl_train.dinov2_network import DINOv2Network
from ssl_train.sharded_checkpoint import told_what_is_wrong

_ADDRESS = re.compile(r" at 0x[0-9a-f]+")


class FullySharded(ModelParallelStrategy):
    """Data parallel over all devices with everything sharded; give it as `trainer.strategy`.

    Leave `trainer.precision` at 32-true: it is the precision of the shards.

    Args:
        param_dtype: type in which gathered parameters are used.
        save_distributed_checkpoint: write checkpoints as folders of shards; otherwise rank 0 gathers all and
            writes one file.
    """

    def __init__(
        self,
        *,
        param_dtype: Literal["float32", "bfloat16"] = "bfloat16",
        save_distributed_checkpoint: bool = True,
    ) -> None:
        super().__init__(tensor_parallel_size=1, save_distributed_checkpoint=save_distributed_checkpoint)
        self._policy = MixedPrecisionPolicy(param_dtype=getattr(torch, param_dtype), reduce_dtype=torch.float32)

    def setup_environment(self) -> None:
        """Makes all devices of all nodes one data-parallel group; Lightning's "auto" would take one per node."""
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()

    def load_checkpoint(self, checkpoint_path: str | Path, weights_only: bool | None = None) -> dict[str, Any]:
        """Loads a checkpoint of any number of ranks; what is wrong with a folder is told in one line."""
        path = Path(checkpoint_path)
        with told_what_is_wrong(path) if path.is_dir() else nullcontext():
            loaded: dict[str, Any] = super().load_checkpoint(checkpoint_path, weights_only=weights_only)
        return loaded

    def shard(self, network: DINOv2Network) -> None:
        """Shards a network in place."""
        # The logits are slices of what the heads return, and nothing changes them in place.
        warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
        mesh = self.device_mesh["data_parallel"]
        heads = [head for head in (network.dino_head, network.ibot_head) if head is not None]
        for unit in [*network.backbone.blocks, *heads]:
            fully_shard(unit, mesh=mesh, mp_policy=self._policy)
        # The outermost unit would stay gathered for a backward pass, which a teacher does not have: its moving
        # average would then meet whole tensors among shards.
        fully_shard(network, mesh=mesh, mp_policy=self._policy, reshard_after_forward=True)
        register_fsdp_forward_method(network, "embed")


def check_agreement(settings: Mapping[str, str]) -> None:
    """Compares settings over all ranks; without a process group there is nothing to compare.

    Raises:
        ValueError: on every rank, a setting that differs, with the values and their ranks.
    """
    if not dist.is_initialized():
        return
    # Some objects name their place in memory.
    own = {name: _ADDRESS.sub("", value) for name, value in settings.items()}
    gathered: list[Mapping[str, str]] = [{}] * dist.get_world_size()
    dist.all_gather_object(gathered, own)
    for name in settings:
        values = [theirs.get(name, "absent") for theirs in gathered]
        other = next((rank for rank, value in enumerate(values) if value != values[0]), None)
        if other is not None:
            raise ValueError(
                f"ranks disagree on {name}: rank 0 has {values[0]}, rank {other} has {values[other]}; "
                "start all ranks with the same config and packages"
            )
