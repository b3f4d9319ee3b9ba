"""Which residual branches does a crop of a sample skip?

Stochastic depth as in the DINO reference (vision_transformer.py, DropPath): every crop of every sample skips each
branch of a block with a probability that rises linearly over the blocks; a branch that stays is divided by the
probability of staying. Here each choice is keyed by (seed, sample index) and nothing else, so that it does not depend
on batch, rank, worker or an interruption. Two steps, as for crops:

1. `draw_branches`: the random numbers of a batch. Pure NumPy.
2. `StochasticDepth.use`: hands them to the blocks. In the next forward pass a branch is computed for the samples alone
   that do not skip it.

Legend of shape suffixes: C crops, B patches, N = C * B samples of one forward pass, P branches, M samples of a branch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import torch
from timm.layers.drop import DropPath
from torch import Tensor, nn

# The crops of a sample draw from the same key with a counter that starts at 0; this one starts far beyond.
_COUNTER = np.array([0, 0, 0, 1], dtype=np.uint64)


def draw_branches(indices: Sequence[int], *, seed: int, n_crops: int, n_branches: int) -> npt.NDArray[np.float32]:
    """Uniform numbers in [0, 1), one for each branch: float32 (C, B, P).

    Args:
        indices: global sample numbers, B of them.
        seed: first half of the key; the sample number is the second.
        n_crops: crops of a patch, C.
        n_branches: branches of the network, P.
    """
    uniform_CBP = np.empty((n_crops, len(indices), n_branches), dtype=np.float32)
    for column, index in enumerate(indices):
        key = np.array([seed, index], dtype=np.uint64)
        generator = np.random.Generator(np.random.Philox(key=key, counter=_COUNTER))
        uniform_CBP[:, column] = generator.random((n_crops, n_branches), dtype=np.float32)
    return uniform_CBP


class Branch(nn.Module):
    """Stands where timm has its DropPath; `kept_M` holds the samples that do not skip the branch."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate
        self.kept_M: Tensor | None = None

    def add(self, x: Tensor, branch: Callable[[Tensor], Tensor], source: Tensor | None = None) -> Tensor:
        """Adds the branch of `source` (of `x` where absent) to `x`; samples that skip it are not computed."""
        source = x if source is None else source
        if not self.training:
            return x + branch(source)
        kept_M = self._kept()
        computed = branch(source.index_select(0, kept_M))
        return x.index_add(0, kept_M, computed.to(x.dtype), alpha=1 / (1 - self.rate))

    def forward(self, computed: Tensor) -> Tensor:
        """Scales a branch that was computed for all samples, with zeros for those that skip it."""
        if not self.training:
            return computed
        factor_N = computed.new_zeros(len(computed)).index_fill_(0, self._kept(), 1 / (1 - self.rate))
        return computed * factor_N.reshape(-1, *[1] * (computed.ndim - 1))

    def _kept(self) -> Tensor:
        assert self.kept_M is not None, "StochasticDepth.use comes before the forward pass of a training step"
        return self.kept_M


class StochasticDepth:
    """Takes the place of timm's stochastic depth in a backbone.

    Args:
        backbone: a network with timm's `DropPath` modules; they are replaced. State dicts stay as they are.

    Attributes:
        n_branches: branches that may be skipped, P; 0 where the backbone has no stochastic depth.
    """

    def __init__(self, backbone: nn.Module) -> None:
        self._branches: list[Branch] = []
        for module in list(backbone.modules()):
            for name, child in list(module.named_children()):
                if isinstance(child, DropPath):
                    branch = Branch(child.drop_prob).train(child.training)
                    setattr(module, name, branch)
                    self._branches.append(branch)
        self.n_branches = len(self._branches)

    def use(self, uniform_NP: npt.NDArray[np.float32], *, device: torch.device) -> None:
        """Hands the choices of the next forward pass, from (N, P) in the order of its samples, to the blocks."""
        kept = [np.flatnonzero(uniform_NP[:, p] >= branch.rate) for p, branch in enumerate(self._branches)]
        # One copy to the device for all.
        parts = torch.split(torch.from_numpy(np.concatenate(kept)).to(device), [len(rows) for rows in kept])
        for branch, kept_M in zip(self._branches, parts, strict=True):
            branch.kept_M = kept_M
