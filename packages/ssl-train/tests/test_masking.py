from __future__ import annotations

import random

import pytest
import torch
from ssl_train.masking import BlockMasks, TokenMasks, block_mask, draw_masks, keyed_generator, rank_share


def masks_of(n_crops: int, *key: int, **settings: object) -> torch.Tensor:
    return BlockMasks(**settings)(n_crops, crop_size_px=64, patch_size_px=8, key=key)  # type: ignore[arg-type]


@pytest.mark.parametrize("n_masked", [0, 1, 5, 20, 31])
def test_a_mask_never_hides_more_than_asked(n_masked: int) -> None:
    for seed in range(20):
        mask = block_mask(n_masked, grid=(8, 8), largest=32.0, generator=random.Random(seed))
        assert n_masked - 8 <= mask.sum() <= n_masked


def test_exactly_the_given_share_of_crops_has_a_mask_and_ratios_are_spread_evenly() -> None:
    masks = draw_masks(40, probability=0.5, ratio=(0.1, 0.5), grid=(16, 16), largest=128.0, generator=random.Random(3))
    shares = masks.float().mean(1).sort().values
    assert (shares > 0).sum() == 20
    edges = torch.linspace(0.1, 0.5, 21)
    # A mask may fall short of its ratio by a few tokens.
    assert (shares[20:] <= edges[1:]).all()
    assert (shares[20:] >= edges[:-1] - 8 / 256).all()


def test_masks_depend_on_the_key_alone() -> None:
    random.seed(1)
    first = masks_of(8, 0, 5)
    random.seed(2)
    assert torch.equal(first, masks_of(8, 0, 5))
    assert not torch.equal(first, masks_of(8, 0, 6))
    assert keyed_generator(1, 2).random() != keyed_generator(2, 1).random()


def test_ranks_share_the_masks_of_the_batch() -> None:
    whole = masks_of(12, 0)
    parts = [rank_share(whole, rank=rank, world_size=3).unflatten(0, (2, 2)) for rank in range(3)]
    assert torch.equal(torch.cat(parts, dim=1).flatten(0, 1), whole)


def test_places_and_weights() -> None:
    mask = torch.tensor([[True, False, True], [False, False, False], [False, True, False]])
    masks = TokenMasks.of(mask)
    assert masks.index.tolist() == [0, 2, 7]
    assert masks.weight.tolist() == [0.5, 0.5, 1.0]


def test_no_masks_at_all() -> None:
    for settings in ({"probability": 0.0}, {"ratio": (0.0, 0.0)}):
        masks = TokenMasks.of(masks_of(4, 0, **settings))
        assert masks.mask.shape == (4, 64)
        assert not masks.mask.any()
        assert masks.index.shape == masks.weight.shape == (0,)


@pytest.mark.parametrize("wrong", [{"probability": 1.5}, {"ratio": (0.5, 0.1)}, {"ratio": (-0.1, 0.1)}])
def test_wrong_shares_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="masks:"):
        BlockMasks(**wrong)  # type: ignore[arg-type]
