from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from ssl_train.backbone import create_backbone
from ssl_train.packed import KeptSamples, PackedBlock, PositionResampling, WantedTokens, embed_tokens
from timm.layers import resample_abs_pos_embed
from torch import Tensor

SIZES = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2}
ARCHITECTURES = {
    "plain": ("vit_tiny_patch16_224", {}),
    "layer scale and registers": ("vit_small_patch14_reg4_dinov2", {}),
    "gated": ("vit_giant_patch14_dinov2", {}),
    "positions of registers": ("vit_small_patch14_dinov2", {"reg_tokens": 2}),
}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_packed_sizes_give_what_timm_gives(name: str) -> None:
    architecture, extra = ARCHITECTURES[name]
    torch.manual_seed(0)
    timm_model = create_backbone(architecture, **SIZES, **extra)
    for parameter in timm_model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    packed = create_backbone(architecture, block_fn=PackedBlock, **SIZES, **extra)
    packed.load_state_dict(timm_model.state_dict())
    images = [torch.randn(3, 3, 32, 32), torch.randn(5, 3, 16, 24)]
    with torch.no_grad():
        tokens = [embed_tokens(packed, x, resampling=PositionResampling()) for x in images]
        for block in packed.blocks:
            tokens = block(tokens)
        for x, got in zip(images, tokens, strict=True):
            torch.testing.assert_close(packed.norm(got), timm_model.forward_features(x), rtol=1e-4, atol=1e-4)
            # timm's own way through the blocks stays open.
            torch.testing.assert_close(packed.forward_features(x), timm_model.forward_features(x))


def test_resampling_as_timm() -> None:
    position = torch.randn(1, 16, 8)
    resized = PositionResampling()(position, native=(4, 4), grid=(3, 7))
    expected = resample_abs_pos_embed(position, new_size=[3, 7], old_size=[4, 4], num_prefix_tokens=0)
    torch.testing.assert_close(resized, expected)


def test_hidden_tokens_are_the_mask_token_and_no_others() -> None:
    backbone = create_backbone("vit_tiny_patch16_224", block_fn=PackedBlock, **SIZES)
    torch.nn.init.zeros_(backbone.pos_embed)
    mask = torch.rand(2, 16) < 0.5
    token = torch.full((1, 24), 7.0)
    images = torch.randn(2, 3, 32, 32)
    hidden, whole = (
        embed_tokens(backbone, images, resampling=PositionResampling(), mask_BN=m, mask_token_1D=token)[:, 1:]
        for m in (mask, torch.zeros_like(mask))
    )
    assert (hidden[mask] == 7).all()
    assert torch.equal(hidden[~mask], whole[~mask])


def test_a_fixed_number_of_samples_is_kept() -> None:
    def draw(seed: int, rate: float = 0.3) -> KeptSamples | None:
        generator = torch.Generator().manual_seed(seed)
        return KeptSamples.draw([10, 7, 1], rate=rate, n_blocks=3, generator=generator, device=torch.device("cpu"))

    kept = draw(0)
    assert kept is not None
    assert [k.shape for k in kept.by_size] == [(3, 2, 7), (3, 2, 4), (3, 2, 1)]
    for indices in kept.by_size:
        for row in indices.flatten(0, 1).tolist():
            assert len(set(row)) == len(row)
    again, other = draw(0), draw(1)
    assert again is not None
    assert other is not None
    assert torch.equal(kept.by_size[0], again.by_size[0])
    assert not torch.equal(kept.by_size[0], other.by_size[0])
    assert draw(0, rate=0.0) is None


@pytest.mark.parametrize("drops", [False, True])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_wanted_tokens_and_their_gradients_are_those_of_the_whole_block(name: str, drops: bool) -> None:
    """Also where a sample with wanted tokens takes no part in attention, in the MLP or in both."""
    architecture, extra = ARCHITECTURES[name]
    torch.manual_seed(0)
    block = create_backbone(architecture, block_fn=PackedBlock, **SIZES, **extra).blocks[1].double()
    for parameter in block.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    tokens = [torch.randn(4, 9, 24, dtype=torch.float64), torch.randn(3, 5, 24, dtype=torch.float64)]
    wanted = [
        WantedTokens(torch.tensor([0, 1, 2, 3, 0, 2, 2]), torch.tensor([0, 0, 0, 0, 8, 1, 5])),
        WantedTokens.class_tokens(3, device=torch.device("cpu")),
    ]
    kept = [torch.tensor([[0, 1, 3], [3, 0, 2]]), torch.tensor([[2], [0]])] if drops else None
    directions = [torch.randn(7, 24, dtype=torch.float64), torch.randn(3, 24, dtype=torch.float64)]

    def run(calculate: Callable[[list[Tensor]], list[Tensor]]) -> list[Tensor]:
        inputs = [t.clone().requires_grad_() for t in tokens]
        outputs = calculate(inputs)
        total = sum((o * d).sum() for o, d in zip(outputs, directions, strict=True))
        gradients = torch.autograd.grad(total, [*inputs, *block.parameters()])
        return [*outputs, *gradients]

    whole = run(lambda x: [w.of(t) for t, w in zip(block(x, kept), wanted, strict=True)])
    alone = run(lambda x: block(x, kept, wanted))
    for expected, got in zip(whole, alone, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_layer_scale_is_not_lost_in_mixed_precision(dtype: torch.dtype) -> None:
    """Multiplied into weights of half precision, factors of 1e-5 would leave nothing."""
    torch.manual_seed(0)
    block = PackedBlock(dim=24, num_heads=2, init_values=1e-5)
    tokens = torch.randn(4, 5, 24)
    with torch.no_grad():
        exact = block(tokens) - tokens
        for number in range(2):  # autocast has its own idea of a norm's type: only the residuals are compared
            residual = (block._project(block._gather([tokens])), block._feed_forward([tokens]))[number]
            with torch.autocast("cpu", dtype):
                mixed = (block._project(block._gather([tokens])), block._feed_forward([tokens]))[number]
            torch.testing.assert_close(mixed.float(), residual, rtol=0, atol=0.05 * float(residual.abs().max()))
    assert exact.abs().max() > 0


def test_dropped_samples_stay_as_they_are() -> None:
    block = PackedBlock(dim=24, num_heads=2)
    tokens = [torch.randn(4, 5, 24)]
    (out,) = block(tokens, [torch.tensor([[0, 2], [0, 2]])])
    assert torch.equal(out[[1, 3]], tokens[0][[1, 3]])
    assert not torch.isclose(out[[0, 2]], tokens[0][[0, 2]]).all()
