"""How do crops of several sizes go through a vision transformer together?

The tokens of all crops lie in one long row for norms, projections and MLPs; attention alone is calculated size by
size, so that no token sees another crop. The numbers are those of separate passes; the matrix products are fewer
and larger (DINOv2 does the same with block-diagonal attention, layers/block.py). Stochastic depth skips the work
of the samples that it drops.

1. `embed_tokens`: crops of one size become tokens, hidden ones the mask token,
2. `PackedBlock`: timm's block for a list of sizes,
3. `KeptSamples`: which samples each block works on,
4. `WantedTokens`: which tokens are looked at after the last block, which calculates little of the others.

Legend of shape suffixes: B crops of a size, N tokens of a crop, P class token and registers, D dimension, M wanted
tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as nnf
from timm.layers.layer_scale import LayerScale
from timm.layers.mlp import Mlp
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class PositionResampling:
    """How positions are stretched to another grid (vision_transformer.py, interpolate_pos_encoding).

    Attributes:
        offset: added to the grid before the scale is calculated; 0 stretches to the exact size. The DINO models
            and DINOv2 without registers were trained with 0.1.
        antialias: low-pass where the grid shrinks, as timm and DINOv2 with registers do.
    """

    offset: float = 0.0
    antialias: bool = True

    def __call__(self, position_1ND: Tensor, *, native: tuple[int, int], grid: tuple[int, int]) -> Tensor:
        """Bicubic resize of patch positions from the native grid; unchanged where the grids are the same."""
        if native == grid:
            return position_1ND
        dtype = torch.promote_types(position_1ND.dtype, torch.float32)
        image = position_1ND.to(dtype).reshape(1, *native, -1).permute(0, 3, 1, 2)
        scale = [(n + self.offset) / m for n, m in zip(grid, native, strict=True)]
        resized = nnf.interpolate(
            image,
            size=None if self.offset else grid,
            scale_factor=scale if self.offset else None,
            mode="bicubic",
            antialias=self.antialias,
        )
        assert resized.shape[-2:] == grid, f"positions {tuple(resized.shape[-2:])} for a grid of {grid}"
        return resized.permute(0, 2, 3, 1).flatten(1, 2).to(position_1ND.dtype)


def embed_tokens(
    backbone: VisionTransformer,
    images: Tensor,
    *,
    resampling: PositionResampling,
    mask_BN: Tensor | None = None,
    mask_token_1D: Tensor | None = None,
    cls_position_11D: Tensor | None = None,
) -> Tensor:
    """Class token, registers and patches of crops of one size before the first block, (B, P + N, D).

    Args:
        backbone: timm's transformer, see `create_backbone`.
        images: normalised float images (B, 3, H, W).
        resampling: how positions reach this size.
        mask_BN: tokens to hide, bool (B, N).
        mask_token_1D: what stands in their place.
        cls_position_11D: position of the class token, where the backbone's positions are those of patches only.
    """
    grid_BHWD = backbone.patch_embed(images)
    height, width = grid_BHWD.shape[1:3]
    patches = grid_BHWD.flatten(1, 2)
    if mask_BN is not None:
        assert mask_token_1D is not None, "masks need a mask token"
        patches = torch.where(mask_BN[..., None], mask_token_1D.to(patches.dtype), patches)
    prefix: Tensor | None = backbone.cls_token
    position: Tensor | None = backbone.pos_embed
    assert prefix is not None, "create_backbone refuses architectures without a class token"
    assert position is not None, "create_backbone refuses architectures without positions"
    if cls_position_11D is not None:
        prefix = prefix + cls_position_11D
    if backbone.reg_token is not None:
        prefix = torch.cat([prefix, backbone.reg_token], dim=1)
    n_positions = 0 if backbone.no_embed_class else backbone.num_prefix_tokens
    prefix = prefix + position[:, :n_positions] if n_positions else prefix
    native = backbone.patch_embed.grid_size
    patches = patches + resampling(position[:, n_positions:], native=tuple(native), grid=(height, width))
    tokens = torch.cat([prefix.expand(len(patches), -1, -1).to(patches.dtype), patches], dim=1)
    embedded: Tensor = backbone.norm_pre(tokens)
    return embedded


class WantedTokens(NamedTuple):
    """The tokens of crops of one size that are looked at after the last block.

    Attributes:
        crop: int64 (M,), the crop of each.
        token: int64 (M,), its number in the crop.
    """

    crop: Tensor
    token: Tensor

    @classmethod
    def class_tokens(cls, n_crops: int, *, device: torch.device) -> WantedTokens:
        """The class token of every crop."""
        crops = torch.arange(n_crops, device=device)
        return cls(crops, torch.zeros_like(crops))

    def of(self, tokens_BND: Tensor) -> Tensor:
        """Picks them out, (M, D)."""
        return tokens_BND.flatten(0, 1).index_select(0, self.crop * tokens_BND.shape[1] + self.token)

    def among(self, kept_k: Tensor, n_crops: int) -> WantedTokens:
        """Where they are when only some crops are left; tokens of others point to the first of those."""
        place_B = kept_k.new_zeros(n_crops).index_copy(0, kept_k, torch.arange(len(kept_k), device=kept_k.device))
        return WantedTokens(place_B[self.crop], self.token)

    def scale(self, kept_k: Tensor, n_crops: int, dtype: torch.dtype) -> Tensor:
        """Of their residuals, (M, 1): B / k where their crop is left, else 0."""
        scale_B = torch.zeros(n_crops, dtype=dtype, device=kept_k.device)
        return scale_B.index_fill(0, kept_k, n_crops / len(kept_k))[self.crop, None]


class PackedBlock(Block):
    """timm's block, which also takes a list of token tensors of several sizes.

    Parameters and state dict are timm's. Give it to a timm model as `block_fn`.
    """

    def forward(  # type: ignore[override]  # more than timm's own
        self,
        tokens: Tensor | list[Tensor],
        kept: list[Tensor] | None = None,
        wanted: list[WantedTokens] | None = None,
        **attention: Any,
    ) -> Tensor | list[Tensor]:
        """Maps tokens (B, N, D), or a list of such of several sizes, to the same shapes.

        Args:
            tokens: one tensor, as timm calls it, or one per size.
            kept: per size the samples that take part, (2, k): first in attention, then in the MLP. Their
                residuals are scaled by B / k. All take part where absent.
            wanted: per size the tokens that are needed; the result is (M, D) for each size. All where absent.
            **attention: timm's arguments of attention, for a single tensor only.
        """
        if isinstance(tokens, Tensor):
            single: Tensor = super().forward(tokens, **attention)
            return single
        if wanted is not None:
            return self._wanted(tokens, kept, wanted)
        for branch, residual in enumerate((self._attention, self._feed_forward)):
            taking_part = _of_samples(tokens, kept, branch)
            updates = _unpack(residual(taking_part), taking_part)
            if kept is None:
                tokens = [t + u.to(t.dtype) for t, u in zip(tokens, updates, strict=True)]
            else:
                tokens = [
                    t.index_add(0, k[branch], u.to(t.dtype), alpha=len(t) / len(u))
                    for t, k, u in zip(tokens, kept, updates, strict=True)
                ]
        return tokens

    def _wanted(self, tokens: list[Tensor], kept: list[Tensor] | None, wanted: list[WantedTokens]) -> list[Tensor]:
        """Of 12 D^2 multiplications a token, 9 D^2 are done for the wanted tokens alone: projection and MLP.

        Those of samples that do not take part go along and count nothing: they are few, and to leave them out their
        number would have to be known, for which a device would wait.
        """
        taking_part = _of_samples(tokens, kept, 0)
        gathered = _unpack(self._gather(taking_part), taking_part)
        out_MD = torch.cat([w.of(t) for t, w in zip(tokens, wanted, strict=True)])
        if kept is None:
            gathered_MD = torch.cat([w.of(g) for g, w in zip(gathered, wanted, strict=True)])
            out_MD = out_MD + self._project(gathered_MD).to(out_MD.dtype)
            out_MD = out_MD + self._feed_forward([out_MD]).to(out_MD.dtype)
        else:
            sizes = list(zip(wanted, kept, map(len, tokens), strict=True))
            gathered_MD = torch.cat([w.among(k[0], n).of(g) for g, (w, k, n) in zip(gathered, sizes, strict=True)])
            scale_2M1 = [torch.cat([w.scale(k[branch], n, out_MD.dtype) for w, k, n in sizes]) for branch in range(2)]
            out_MD = out_MD + scale_2M1[0] * self._project(gathered_MD)
            out_MD = out_MD + scale_2M1[1] * self._feed_forward([out_MD])
        return list(torch.split(out_MD, [len(w.crop) for w in wanted]))

    def _attention(self, tokens: list[Tensor]) -> Tensor:
        return self._project(self._gather(tokens))

    def _gather(self, tokens: list[Tensor]) -> Tensor:
        """What each token gathers from those of its crop, before the projection."""
        attn: Any = self.attn
        qkv = attn.qkv(self.norm1(_pack(tokens)))
        seen = []
        for part, like in zip(torch.split(qkv, _lengths(tokens)), tokens, strict=True):
            # Cut before the heads are: in the backward pass each gradient is then copied once on its way together.
            by_role = part.chunk(3, dim=-1)
            query, key, value = (x.view(*like.shape[:2], attn.num_heads, -1).transpose(1, 2) for x in by_role)
            out = nnf.scaled_dot_product_attention(attn.q_norm(query), attn.k_norm(key), value)
            seen.append(out.transpose(1, 2).flatten(2).flatten(0, 1))
        return torch.cat(seen)

    def _project(self, gathered: Tensor) -> Tensor:
        attn: Any = self.attn
        return _scaled_linear(attn.norm(gathered), attn.proj, self.ls1)

    def _feed_forward(self, tokens: list[Tensor]) -> Tensor:
        mlp: Any = self.mlp
        gated = type(self.mlp) is not Mlp
        normed = self.norm2(_pack(tokens))
        if gated:
            scaled: Tensor = self.ls2(mlp(normed))
            return scaled
        return _scaled_linear(mlp.norm(mlp.act(mlp.fc1(normed))), mlp.fc2, self.ls2)


def _scaled_linear(x_TD: Tensor, linear: nn.Linear, scale: nn.Module) -> Tensor:
    """LayerScale after a linear layer, multiplied into its weights.

    Under autocast it stays apart: half precision has no room for products of weights and factors of 1e-5.
    """
    if torch.is_autocast_enabled(x_TD.device.type) or not isinstance(scale, LayerScale):
        scaled: Tensor = scale(linear(x_TD))
        return scaled
    product: Tensor = _ScaledLinear.apply(x_TD, linear.weight, linear.bias, scale.gamma)
    return product


class _ScaledLinear(torch.autograd.Function):
    """`gamma * linear(x)` without a pass over the tokens for the factors, and without anything kept for them."""

    @staticmethod
    def forward(ctx: Any, x_TD: Tensor, weight: Tensor, bias: Tensor | None, gamma: Tensor) -> Tensor:
        ctx.save_for_backward(x_TD, weight, bias, gamma)
        return nnf.linear(x_TD, weight * gamma[:, None], None if bias is None else bias * gamma)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x_TD, weight, bias, gamma = ctx.saved_tensors
        (grad,) = gradients
        grad_x = grad @ (weight * gamma[:, None])
        unscaled = grad.T @ x_TD
        grad_gamma, total = torch.einsum("oi,oi->o", unscaled, weight), grad.sum(0)
        if bias is None:
            return grad_x, unscaled.mul_(gamma[:, None]), None, grad_gamma
        return grad_x, unscaled.mul_(gamma[:, None]), total * gamma, grad_gamma + total * bias


def _of_samples(tokens: list[Tensor], kept: list[Tensor] | None, branch: int) -> list[Tensor]:
    if kept is None:
        return tokens
    return [t.index_select(0, k[branch]) for t, k in zip(tokens, kept, strict=True)]


def _lengths(tokens: list[Tensor]) -> list[int]:
    return [t[..., 0].numel() for t in tokens]


def _pack(tokens: list[Tensor]) -> Tensor:
    return torch.cat([t.flatten(0, -2) for t in tokens])


def _unpack(packed: Tensor, like: list[Tensor]) -> list[Tensor]:
    return [p.view(t.shape) for p, t in zip(torch.split(packed, _lengths(like)), like, strict=True)]


@dataclass(frozen=True, slots=True)
class KeptSamples:
    """Stochastic depth on subsets: which samples each block works on.

    Every branch of every block keeps `max(int(B * (1 - rate)), 1)` random samples of each size, a fixed number
    (DINOv2, layers/block.py, get_branges_scales).

    Attributes:
        by_size: for each size, int64 (blocks, 2, k).
    """

    by_size: list[Tensor]

    @classmethod
    def draw(
        cls, batches: list[int], *, rate: float, n_blocks: int, generator: torch.Generator, device: torch.device
    ) -> KeptSamples | None:
        """Draws for all blocks at once; None where nothing is dropped.

        Args:
            batches: number of samples B of each size.
            rate: share of samples that a branch drops.
            n_blocks: number of blocks.
            generator: source of the random numbers, on the CPU.
            device: where the indices are needed.
        """
        if rate == 0.0:
            return None
        by_size = []
        for batch in batches:
            order = torch.rand(n_blocks, 2, batch, generator=generator).argsort(dim=-1)
            by_size.append(order[..., : max(int(batch * (1 - rate)), 1)].to(device, non_blocking=True))
        return cls(by_size)

    def of_block(self, number: int) -> list[Tensor]:
        """What `PackedBlock` takes: for each size (2, k)."""
        return [indices[number] for indices in self.by_size]
