"""Which tokens of the global crops are hidden from the student?

Block-wise masks of iBOT (arXiv 2111.07832, section 3) as DINOv2 draws them (dinov2/data/masking.py and
collate.py). Three steps, all without a device:

1. `block_mask`: rectangles on one crop's grid until a number of tokens is hidden,
2. `draw_masks`: masks of all global crops of a batch, their ratios spread evenly over a range,
3. `TokenMasks`: a rank's share of them, with what the loss needs.

Every draw comes from a `random.Random` that the caller keys, in the order of the reference: the same generator
gives the same masks.

Legend of shape suffixes: C global crops (view-major: all first views, then all second ones), N tokens of a crop,
M masked tokens.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

N_GLOBALS = 2
_TRIES = 10
_SMALLEST_AREA = 4
_LOG_ASPECT = (math.log(0.3), math.log(1 / 0.3))


def largest_rectangle(*, crop_size_px: int, patch_size_px: int) -> float:
    """Most tokens of one rectangle: half the grid, rounded down as in the reference (train.py: 56 / 8 gives 21)."""
    return 0.5 * crop_size_px // patch_size_px * crop_size_px // patch_size_px


def block_mask(
    n_masked: int, *, grid: tuple[int, int], largest: float, generator: random.Random
) -> npt.NDArray[np.bool_]:
    """Hides up to `n_masked` tokens of a grid under rectangles, (rows, columns).

    It never hides more; it hides fewer where ten rectangles in a row do not fit.

    Args:
        n_masked: tokens to hide.
        grid: rows and columns of the crop's tokens.
        largest: most tokens of one rectangle.
        generator: source of the random numbers.
    """
    mask = np.zeros(grid, dtype=np.bool_)
    hidden = 0
    while hidden < n_masked:
        added = _add_rectangle(mask, min(n_masked - hidden, largest), generator)
        if added == 0:
            break
        hidden += added
    return mask


def _add_rectangle(mask: npt.NDArray[np.bool_], most: float, generator: random.Random) -> int:
    """Hides one more rectangle that adds between 1 and `most` tokens; returns how many, 0 if none was found."""
    rows, columns = mask.shape
    for _ in range(_TRIES):
        area = generator.uniform(_SMALLEST_AREA, most)
        aspect = math.exp(generator.uniform(*_LOG_ASPECT))
        height = round(math.sqrt(area * aspect))
        width = round(math.sqrt(area / aspect))
        if width >= columns or height >= rows:
            continue
        top = generator.randint(0, rows - height)
        left = generator.randint(0, columns - width)
        window = mask[top : top + height, left : left + width]
        added = window.size - int(window.sum())
        if 0 < added <= most:
            window[:] = True
            return added
    return 0


def draw_masks(
    n_crops: int,
    *,
    probability: float,
    ratio: tuple[float, float],
    grid: tuple[int, int],
    largest: float,
    generator: random.Random,
) -> Tensor:
    """Masks of all global crops of a batch, bool (C, N).

    Exactly `int(C * probability)` crops get a mask. The range of ratios is cut into as many equal parts, each
    mask draws its own ratio from its part, and the masks are shuffled over the crops.

    Args:
        n_crops: number of global crops C.
        probability: share of the crops that have a mask at all.
        ratio: smallest and largest share of hidden tokens in those.
        grid: rows and columns of a crop's tokens.
        largest: most tokens of one rectangle, see `largest_rectangle`.
        generator: source of the random numbers.
    """
    n_tokens = grid[0] * grid[1]
    n_masks = int(n_crops * probability)
    # Single precision as in the reference: it decides how n_tokens * ratio is rounded down.
    edges: npt.NDArray[np.float32] = torch.linspace(*ratio, n_masks + 1, dtype=torch.float32).numpy()
    masks = []
    for low, high in pairwise(edges):
        share = low + (high - low) * np.float32(generator.random())
        masks.append(block_mask(int(n_tokens * share), grid=grid, largest=largest, generator=generator))
    masks += [np.zeros(grid, dtype=np.bool_)] * (n_crops - n_masks)
    generator.shuffle(masks)
    return torch.from_numpy(np.stack(masks)).flatten(1)


class BlockMasks:
    """Draws the masks of a global batch, keyed and nothing else.

    Args:
        probability: share of the global crops that have a mask at all.
        ratio: smallest and largest share of hidden tokens in those.

    Raises:
        ValueError: a share outside [0, 1].
    """

    def __init__(self, *, probability: float = 0.5, ratio: tuple[float, float] = (0.1, 0.5)) -> None:
        low, high = ratio
        if not 0 <= probability <= 1 or not 0 <= low <= high <= 1:
            raise ValueError(
                "masks: probability must be between 0 and 1 and ratio satisfy 0 <= low <= high <= 1, got "
                f"probability={probability}, ratio=({low}, {high})"
            )
        self._probability = probability
        self._ratio = ratio

    def __call__(self, n_crops: int, *, crop_size_px: int, patch_size_px: int, key: tuple[int, ...]) -> Tensor:
        """Masks of the global crops of a batch over all ranks, bool (C, N).

        Args:
            n_crops: number of global crops C.
            crop_size_px: side of a crop.
            patch_size_px: side of a token.
            key: what the masks depend on, such as (seed, step, micro-batch).
        """
        side = crop_size_px // patch_size_px
        return draw_masks(
            n_crops,
            probability=self._probability,
            ratio=self._ratio,
            grid=(side, side),
            largest=largest_rectangle(crop_size_px=crop_size_px, patch_size_px=patch_size_px),
            generator=keyed_generator(*key),
        )


def keyed_generator(*key: int) -> random.Random:
    """A generator that depends on the key and nothing else, such as (seed, step)."""
    state = np.random.SeedSequence(key).generate_state(4)
    return random.Random(int.from_bytes(state.tobytes(), "little"))  # noqa: S311  # no secret


@dataclass(frozen=True, slots=True)
class TokenMasks:
    """Masks of a rank's global crops.

    Attributes:
        mask: hidden tokens, bool (C, N).
        index: the hidden tokens' places in the flattened (C * N) tokens, int64 (M,).
        weight: 1 / number of hidden tokens of the same crop, float64 (M,).
    """

    mask: Tensor
    index: Tensor
    weight: Tensor

    @classmethod
    def of(cls, mask_CN: Tensor) -> TokenMasks:
        """Derives places and weights from the masks; on the CPU, where that makes no device wait."""
        share_CN = mask_CN / mask_CN.sum(-1, keepdim=True, dtype=torch.float64).clamp(min=1.0)
        return cls(mask_CN, mask_CN.flatten().nonzero().flatten(), share_CN[mask_CN])

    def to(self, device: torch.device) -> TokenMasks:
        """The same on a device."""
        parts = (t.to(device, non_blocking=True) for t in (self.mask, self.index, self.weight))
        return TokenMasks(*parts)


def rank_share(mask_CN: Tensor, *, rank: int, world_size: int) -> Tensor:
    """The rows of one rank: its contiguous part of the batch in both views, (C / world_size, N)."""
    by_view = mask_CN.reshape(N_GLOBALS, world_size, -1, mask_CN.shape[-1])
    return by_view[:, rank].flatten(0, 1)
