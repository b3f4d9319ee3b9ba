"""Which network turns a crop into an embedding, and with which weights does it start?

Backbones are timm's vision transformers, so that every exported state dict is one that timm loads.
"""

from __future__ import annotations

import inspect
import math
from typing import Any, Literal

import timm
import torch
import torch.nn.functional as nnf
from timm.layers.patch_embed import resample_patch_embed
from timm.layers.pos_embed import resample_abs_pos_embed
from timm.models.vision_transformer import Attention, Block, VisionTransformer  # type: ignore[attr-defined]
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from ssl_train.architectures import misfit
from ssl_train.stochastic_depth import Branch

PositionInterpolation = Literal["timm", "dino"]


def create_backbone(architecture: str, *, drop_path_rate: float = 0.0, **kwargs: Any) -> VisionTransformer:
    """A vision transformer without classifier that accepts any input size divisible by its patch size.

    Args:
        architecture: a timm name such as `vit_small_patch16_224`.
        drop_path_rate: stochastic depth, linear over the blocks (for the student only).
        **kwargs: passed to timm, for example `img_size`, `patch_size`, `depth`, `embed_dim`, `num_heads`.

    Raises:
        ValueError: an unknown name, one that is no vision transformer with a class token, or a wrong
            argument.
    """
    if not timm.is_model(architecture):
        close = timm.list_models(f"*{architecture.split('_')[0]}*")[:5]
        raise ValueError(
            f"architecture {architecture!r}: timm {timm.__version__} has no model of that name; "
            f"see timm.list_models('vit_*'){', for example ' + ', '.join(close) if close else ''}"
        )
    for name, remedy in {
        "pretrained": "give init_weights the timm name, a file or a folder",
        "dynamic_img_size": "the backbone takes every size that its patch size divides",
        **dict.fromkeys(
            ("pos_drop_rate", "patch_drop_rate", "proj_drop_rate", "attn_drop_rate"),
            "dropout is not keyed by sample, so runs would not be repeatable; take drop_path_rate",
        ),
    }.items():
        if name in kwargs:
            raise ValueError(f"architecture_kwargs {name!r}: not accepted; {remedy}")
    try:
        model = timm.create_model(
            architecture,
            pretrained=False,
            **{"num_classes": 0, "dynamic_img_size": True, **kwargs},
            drop_path_rate=drop_path_rate,
        )
    except (TypeError, AssertionError, RuntimeError, ValueError) as error:
        allowed = ", ".join(list(inspect.signature(VisionTransformer).parameters)[:12])
        raise ValueError(
            f"architecture {architecture!r} with {kwargs}: timm refuses it ({error}); arguments are {allowed}, ..."
        ) from error
    if not isinstance(model, VisionTransformer) or not model.has_class_token or model.pos_embed is None:
        raise ValueError(
            f"architecture {architecture!r}: DINO needs a vision transformer with a class token "
            "and positions; take a vit_* name"
        )
    return model


def architecture_kwargs(backbone: VisionTransformer, given: dict[str, Any]) -> dict[str, Any]:
    """The JSON-able arguments with which `timm.create_model` rebuilds this backbone, without drop path."""
    return {
        **given,
        "img_size": list(backbone.patch_embed.img_size),
        "patch_size": backbone.patch_embed.patch_size[0],
        "num_classes": 0,
        "dynamic_img_size": True,
    }


def load_backbone(
    backbone: VisionTransformer, state: dict[str, Tensor], *, source: str, position_interpolation: PositionInterpolation
) -> None:
    """Loads a state dict strictly, after resizing positions and patch kernels to those of the backbone.

    Positions are taken to lie on a square grid unless their number is that of the backbone. The kernel of another
    patch size is the one that gives the same tokens of resized patches (FlexiViT, arXiv 2212.08013, section 3.4).

    Raises:
        ValueError: keys or shapes that do not fit; they are listed and the nearest architecture is named.
    """
    state = dict(state)
    kernel, own_kernel = state.get("patch_embed.proj.weight"), backbone.patch_embed.proj.weight
    if kernel is not None and kernel.ndim == 4 and kernel.shape[:2] == own_kernel.shape[:2]:
        state["patch_embed.proj.weight"] = resample_patch_embed(kernel, list(own_kernel.shape[-2:]))
    position, own = state.get("pos_embed"), backbone.pos_embed
    n_prefix = 0 if backbone.no_embed_class else backbone.num_prefix_tokens
    assert own is not None, "create_backbone refuses architectures without positions"
    if position is not None and position.ndim == 3 and position.shape[1] != own.shape[1]:
        side = math.isqrt(max(0, position.shape[1] - n_prefix))
        grid = tuple(backbone.patch_embed.grid_size)
        if 0 < side * side == position.shape[1] - n_prefix:
            resized = _resize_positions(position.float(), (side, side), grid, n_prefix, position_interpolation)
            state["pos_embed"] = resized.to(position.dtype)
    problem = misfit(state, backbone.state_dict())
    if problem is not None:
        raise ValueError(f"weights {source}: do not fit the backbone: {problem}")
    backbone.load_state_dict(state)


def embed_cls(backbone: VisionTransformer, images: Tensor, *, position_interpolation: PositionInterpolation) -> Tensor:
    """CLS embedding after the final norm of float images (B, 3, H, W); returns (B, D).

    At the native size both ways of position interpolation are the same. `dino` resizes as the DINO reference does
    (offset 0.1, see `resample_positions`); `timm` to the exact grid with antialiasing, as timm does when the
    exported weights are used.
    """
    tokens = backbone.norm_pre(_tokens(backbone, images, position_interpolation))
    *blocks, last = backbone.blocks
    for block in blocks:
        tokens = _after(block, tokens)
    embedding: Tensor = backbone.norm(_cls_after(last, tokens))[:, 0]
    return embedding


def _tokens(backbone: VisionTransformer, images: Tensor, position_interpolation: PositionInterpolation) -> Tensor:
    """Class token, registers and patches with their positions: what enters the first block."""
    grid = backbone.patch_embed(images)
    batch, height, width, dim = grid.shape
    native = tuple(backbone.patch_embed.grid_size)
    position: Tensor | None = backbone.pos_embed
    assert position is not None, "create_backbone refuses architectures without positions"
    n_prefix = 0 if backbone.no_embed_class else backbone.num_prefix_tokens
    if (height, width) != native:
        position = _resize_positions(position, native, (height, width), n_prefix, position_interpolation)
    tokens = grid.reshape(batch, height * width, dim)
    prefix = [token.expand(batch, -1, -1) for token in (backbone.cls_token, backbone.reg_token) if token is not None]
    if backbone.no_embed_class:
        return torch.cat([*prefix, tokens + position], dim=1)
    return torch.cat([*prefix, tokens], dim=1) + position


def _resize_positions(
    position: Tensor,
    native: tuple[int, int],
    grid: tuple[int, int],
    n_prefix: int,
    interpolation: PositionInterpolation,
) -> Tensor:
    if interpolation == "dino":
        return resample_positions(position, native=native, grid=grid, n_prefix=n_prefix)
    resized: Tensor = resample_abs_pos_embed(
        position, new_size=list(grid), old_size=list(native), num_prefix_tokens=n_prefix
    )
    return resized


def _after(block: Any, tokens: Tensor) -> Tensor:
    """The tokens after a block; its branches are not computed for samples that skip them."""
    if not (_is_plain(block) and isinstance(block.drop_path1, Branch)):
        whole: Tensor = block(tokens)
        return whole
    tokens = block.drop_path1.add(tokens, lambda x: block.ls1(block.attn(block.norm1(x))))
    return _add_mlp(block, tokens)


def _cls_after(block: Any, tokens: Tensor) -> Tensor:
    """The class token (B, 1, D) after the last block.

    Of the last block only this token is used, so its queries, projection and MLP are computed for it alone: of the
    12 D^2 multiplications a token that a block costs, the other tokens cost 2 D^2.
    """
    if not _is_plain(block):
        whole: Tensor = block(tokens)
        return whole[:, :1]
    cls = tokens[:, :1]
    if isinstance(block.drop_path1, Branch):
        return _add_mlp(block, block.drop_path1.add(cls, lambda x: _cls_attention(block, x), tokens))
    return _add_mlp(block, cls + _cls_attention(block, tokens))


def _add_mlp(block: Any, tokens: Tensor) -> Tensor:
    def branch(x: Tensor) -> Tensor:
        computed: Tensor = block.ls2(block.mlp(block.norm2(x)))
        return computed

    if isinstance(block.drop_path2, Branch):
        return block.drop_path2.add(tokens, branch)
    return tokens + branch(tokens)


def _cls_attention(block: Any, tokens: Tensor) -> Tensor:
    """What the class token (B, 1, D) gathers from all tokens (B, N, D) in a block."""
    attention = block.attn
    batch, length, _ = tokens.shape
    normed = block.norm1(tokens)
    heads, width = attention.num_heads, attention.num_heads * attention.head_dim
    weight, bias = attention.qkv.weight, attention.qkv.bias
    query = nnf.linear(normed[:, :1], weight[:width], None if bias is None else bias[:width])
    both = nnf.linear(normed, weight[width:], None if bias is None else bias[width:])
    query = query.reshape(batch, 1, heads, -1).transpose(1, 2)
    key, value = both.reshape(batch, length, 2, heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
    seen = nnf.scaled_dot_product_attention(query, key, value).transpose(1, 2).reshape(batch, 1, width)
    gathered: Tensor = block.ls1(attention.proj(seen))
    return gathered


def _is_plain(block: Any) -> bool:
    """Whether a block is timm's without extras, whose parts may be run one by one."""
    if type(block) is not Block or type(block.attn) is not Attention:
        return False
    attention = block.attn
    norms = (attention.q_norm, attention.k_norm, getattr(attention, "norm", nn.Identity()))
    untouched = all(isinstance(m, nn.Identity) for m in norms)
    gated = getattr(attention, "gate", None) is not None
    # Sharded parameters are gathered by the hooks of whole modules.
    sharded = isinstance(attention.qkv.weight, DTensor)
    return untouched and not gated and not sharded


def resample_positions(
    position: Tensor, *, native: tuple[int, int], grid: tuple[int, int], offset: float = 0.1, n_prefix: int = 1
) -> Tensor:
    """Positional embedding (1, n_prefix + h * w, D) on another grid, as in the DINO reference.

    Bicubic without antialiasing at `scale_factor = (n + offset) / native` (vision_transformer.py,
    interpolate_pos_encoding); the positions of the prefix (class token, registers) are kept.
    """
    prefix, patches = position[:, :n_prefix], position[:, n_prefix:]
    dim = position.shape[-1]
    resized = nnf.interpolate(
        patches.reshape(1, *native, dim).permute(0, 3, 1, 2),
        scale_factor=[(n + offset) / m for n, m in zip(grid, native, strict=True)],
        mode="bicubic",
    )
    assert resized.shape[-2:] == grid, f"positions {tuple(resized.shape[-2:])} for a grid of {grid}"
    return torch.cat([prefix, resized.permute(0, 2, 3, 1).reshape(1, -1, dim)], dim=1)
