from __future__ import annotations

import numpy as np
import pytest
import torch
from ssl_train.backbone import create_backbone, embed_cls
from ssl_train.stochastic_depth import StochasticDepth, draw_branches
from torch import Tensor


def test_draws_depend_on_seed_and_sample_only() -> None:
    drawn = draw_branches([7, 3, 9], seed=5, n_crops=4, n_branches=6)
    assert drawn.shape == (4, 3, 6)
    assert np.array_equal(draw_branches([3], seed=5, n_crops=4, n_branches=6)[:, 0], drawn[:, 1])
    assert not np.array_equal(draw_branches([3], seed=6, n_crops=4, n_branches=6)[:, 0], drawn[:, 1])
    # No stream of numbers that crops are drawn from, either.
    key = np.array([5, 3], dtype=np.uint64)
    of_crops = np.random.Generator(np.random.Philox(key=key)).random((4, 6), dtype=np.float32)
    assert not np.isin(drawn[:, 1], of_crops).any()


def test_branches_are_skipped_at_the_rate_of_their_depth_and_keep_their_mean() -> None:
    backbone = create_backbone(
        "vit_tiny_patch16_224", img_size=32, depth=3, embed_dim=12, num_heads=1, drop_path_rate=0.4
    )
    depth = StochasticDepth(backbone)
    # The first block has a rate of 0 and no such branch.
    assert depth.n_branches == 4
    depth.use(draw_branches(range(20_000), seed=0, n_crops=1, n_branches=4)[0], device=torch.device("cpu"))
    for block, rate in ((1, 0.2), (2, 0.4)):
        for name in ("drop_path1", "drop_path2"):
            branch = getattr(backbone.blocks[block], name)
            factors = branch(torch.ones(20_000, 1, 1)).flatten()
            assert float((factors == 0).float().mean()) == pytest.approx(rate, abs=0.01)
            assert factors.max() == pytest.approx(1 / (1 - rate))
            assert float(factors.mean()) == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("skipped", [False, True])
def test_a_sample_that_skips_a_branch_misses_exactly_that_residual(skipped: bool) -> None:
    """Against the block's formula; the last block runs on the class token alone, the first on all."""
    torch.manual_seed(0)
    backbone = create_backbone(
        "vit_tiny_patch16_224", img_size=32, depth=2, embed_dim=12, num_heads=2, drop_path_rate=0.5
    )
    depth = StochasticDepth(backbone.train())
    # The first sample skips the MLP, the second never skips anything.
    drawn = np.array([[0.9, 0.1 if skipped else 0.9], [0.9, 0.9]], dtype=np.float32)
    depth.use(drawn, device=torch.device("cpu"))
    images = torch.randn(2, 3, 32, 32)
    got = embed_cls(backbone, images, position_interpolation="dino")

    def block(number: int, tokens: Tensor, attention: float, mlp: float | Tensor) -> Tensor:
        part = backbone.blocks[number]
        tokens = tokens + attention * part.attn(part.norm1(tokens))
        return tokens + mlp * part.mlp(part.norm2(tokens))

    patches = backbone.patch_embed(images).flatten(1, 2)
    tokens = torch.cat([backbone.cls_token.expand(2, -1, -1), patches], dim=1) + backbone.pos_embed
    kept = torch.tensor([0.0 if skipped else 2.0, 2.0])[:, None, None]
    tokens = block(1, block(0, tokens, 1.0, 1.0), 2.0, kept)
    torch.testing.assert_close(got, backbone.norm(tokens)[:, 0])


def test_nothing_is_skipped_in_evaluation() -> None:
    backbone = create_backbone(
        "vit_tiny_patch16_224", img_size=32, depth=2, embed_dim=12, num_heads=2, drop_path_rate=0.9
    )
    plain = create_backbone("vit_tiny_patch16_224", img_size=32, depth=2, embed_dim=12, num_heads=2)
    plain.load_state_dict(backbone.state_dict())
    StochasticDepth(backbone.eval())
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(
        embed_cls(backbone, images, position_interpolation="timm"), plain.eval().forward_features(images)[:, 0]
    )
