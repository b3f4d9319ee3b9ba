"""Which network turns a crop into an embedding, and with which weights does it start?

Backbones are timm's vision transformers, so that every exported state dict is one that timm loads.
"""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any, Literal

import timm
import torch
import torch.nn.functional as nnf
from safetensors.torch import load_file
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

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
    if "pretrained" in kwargs:
        raise ValueError("architecture_kwargs 'pretrained': not accepted; give init_weights a local file instead")
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


def load_initial_weights(backbone: VisionTransformer, path: str) -> None:
    """Loads backbone weights, strictly, from a checkpoint folder or from a safetensors or torch file.

    Raises:
        ValueError: no such file, an unreadable one, or keys or shapes that do not fit.
    """
    source = Path(path)
    if source.is_dir():
        if not (source / "backbone.json").is_file():
            raise ValueError(f"init_weights {path}: no backbone.json inside, so the folder is not a whole checkpoint")
        version = json.loads((source / "backbone.json").read_text()).get("format_version")
        if version != 1:
            raise ValueError(f"init_weights {path}: format_version {version}; this version reads 1, update ssl-train")
        source = source / "backbone.safetensors"
    if not source.is_file():
        raise ValueError(f"init_weights {path}: no such file; give a checkpoint folder or a .safetensors file")
    try:
        if source.suffix == ".safetensors":
            state = load_file(source)
        else:
            state = torch.load(source, map_location="cpu", weights_only=True)
        backbone.load_state_dict(state)
    except Exception as error:  # torch and safetensors raise a dozen types for a bad file
        reason = " ".join(str(error).split())[:300]
        raise ValueError(f"init_weights {path}: does not fit the backbone ({reason})") from error


def embed_cls(backbone: VisionTransformer, images: Tensor, *, position_interpolation: PositionInterpolation) -> Tensor:
    """CLS embedding after the final norm of float images (B, 3, H, W); returns (B, D).

    At the native size both ways of position interpolation are the same. `timm` resizes to the exact grid with
    antialiasing, as timm does when the exported weights are used; `dino` as the DINO reference did (offset
    0.1).
    """
    if position_interpolation == "timm":
        tokens = backbone.forward_features(images)
    else:
        tokens = _forward_with_offset(backbone, images)
    return tokens[:, 0]


def _forward_with_offset(backbone: VisionTransformer, images: Tensor) -> Tensor:
    grid = backbone.patch_embed(images)
    batch, height, width, dim = grid.shape
    native = backbone.patch_embed.grid_size
    position: Tensor | None = backbone.pos_embed
    assert position is not None, "create_backbone refuses architectures without positions"
    assert backbone.cls_token is not None, "create_backbone refuses architectures without a class token"
    if (height, width) != tuple(native):
        position = resample_positions(position, native=native, grid=(height, width))
    cls = backbone.cls_token.expand(batch, -1, -1)
    tokens = torch.cat([cls, grid.reshape(batch, height * width, dim)], dim=1) + position
    tokens = backbone.norm_pre(backbone.pos_drop(tokens))
    for block in backbone.blocks:
        tokens = block(tokens)
    normed: Tensor = backbone.norm(tokens)
    return normed


def resample_positions(
    position: Tensor, *, native: tuple[int, int], grid: tuple[int, int], offset: float = 0.1
) -> Tensor:
    """Positional embedding (1, 1 + h * w, D) on another grid, as in the DINO reference.

    Bicubic without antialiasing at `scale_factor = (n + offset) / native` (vision_transformer.py,
    interpolate_pos_encoding); the position of the class token is kept.
    """
    cls, patches = position[:, :1], position[:, 1:]
    dim = position.shape[-1]
    resized = nnf.interpolate(
        patches.reshape(1, *native, dim).permute(0, 3, 1, 2),
        scale_factor=[(n + offset) / m for n, m in zip(grid, native, strict=True)],
        mode="bicubic",
    )
    assert resized.shape[-2:] == grid, f"positions {tuple(resized.shape[-2:])} for a grid of {grid}"
    return torch.cat([cls, resized.permute(0, 2, 3, 1).reshape(1, -1, dim)], dim=1)
