"""Which vision transformer does a state dict belong to, and why does it not fit the one at hand?

Sizes are read off the tensors; the number of attention heads leaves no trace there and comes from the table of
well-known architectures. State dicts have timm's names.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

_LISTED = 6


@dataclass(frozen=True, slots=True)
class Sizes:
    """What the tensors of a vision transformer tell.

    Attributes:
        embed_dim: width D of the tokens.
        depth: number of blocks.
        patch_size: side of a token in pixels.
        n_registers: register tokens.
        layer_scale: whether residual branches have learned scales.
        n_positions: rows of the positional embedding, those of prefix tokens included.
    """

    embed_dim: int
    depth: int
    patch_size: int
    n_registers: int
    layer_scale: bool
    n_positions: int

    def __str__(self) -> str:
        extras = f", {self.n_registers} registers" if self.n_registers else ""
        extras += ", layer scale" if self.layer_scale else ""
        return f"embed_dim {self.embed_dim}, depth {self.depth}, patch size {self.patch_size}{extras}"


# timm's names with the published sizes: ViT (arXiv 2010.11929, table 1), ViT-Ti/S (DeiT, arXiv 2012.12877), the
# patch sizes 8 of DINO and the layer-scaled ones of DINOv2 (arXiv 2304.07193), with and without registers.
_KNOWN = {
    "vit_tiny_patch16_224": Sizes(192, 12, 16, 0, False, 197),
    "vit_small_patch16_224": Sizes(384, 12, 16, 0, False, 197),
    "vit_small_patch8_224": Sizes(384, 12, 8, 0, False, 785),
    "vit_base_patch16_224": Sizes(768, 12, 16, 0, False, 197),
    "vit_base_patch8_224": Sizes(768, 12, 8, 0, False, 785),
    "vit_large_patch16_224": Sizes(1024, 24, 16, 0, False, 197),
    "vit_huge_patch14_224": Sizes(1280, 32, 14, 0, False, 257),
    "vit_small_patch14_dinov2": Sizes(384, 12, 14, 0, True, 1370),
    "vit_base_patch14_dinov2": Sizes(768, 12, 14, 0, True, 1370),
    "vit_large_patch14_dinov2": Sizes(1024, 24, 14, 0, True, 1370),
    "vit_giant_patch14_dinov2": Sizes(1536, 40, 14, 0, True, 1370),
    "vit_small_patch14_reg4_dinov2": Sizes(384, 12, 14, 4, True, 1369),
    "vit_base_patch14_reg4_dinov2": Sizes(768, 12, 14, 4, True, 1369),
    "vit_large_patch14_reg4_dinov2": Sizes(1024, 24, 14, 4, True, 1369),
    "vit_giant_patch14_reg4_dinov2": Sizes(1536, 40, 14, 4, True, 1369),
}


def sizes_of(state: Mapping[str, Tensor]) -> Sizes | None:
    """The sizes of a vision transformer's state dict; None where it is none."""
    kernel, position = state.get("patch_embed.proj.weight"), state.get("pos_embed")
    blocks = {int(name.split(".")[1]) for name in state if name.startswith("blocks.") and name.split(".")[1].isdigit()}
    if kernel is None or kernel.ndim != 4 or position is None or position.ndim != 3 or not blocks:
        return None
    registers = state.get("reg_token")
    return Sizes(
        embed_dim=int(kernel.shape[0]),
        depth=max(blocks) + 1,
        patch_size=int(kernel.shape[-1]),
        n_registers=int(registers.shape[1]) if registers is not None else 0,
        layer_scale="blocks.0.ls1.gamma" in state,
        n_positions=int(position.shape[1]),
    )


def nearest_architecture(sizes: Sizes) -> str:
    """The well-known architecture of the most similar sizes; width and depth count before all else."""

    def distance(name: str) -> tuple[float, int, int]:
        known = _KNOWN[name]
        shape = abs(math.log(sizes.embed_dim / known.embed_dim)) + abs(math.log(sizes.depth / known.depth))
        extras = (sizes.layer_scale != known.layer_scale) + (sizes.n_registers != known.n_registers)
        return shape, extras, abs(sizes.patch_size - known.patch_size)

    return min(_KNOWN, key=distance)


def infer_architecture(state: Mapping[str, Tensor], *, source: str) -> tuple[str, dict[str, Any]]:
    """The timm name and constructor arguments of a well-known architecture, from the tensors alone.

    Positions are taken to lie on a square grid.

    Raises:
        ValueError: no vision transformer, or one whose number of heads nothing tells.
    """
    sizes = sizes_of(state)
    if sizes is None:
        raise ValueError(f"weights {source}: not the state dict of a vision transformer; it holds {_some(list(state))}")
    name = nearest_architecture(sizes)
    known = _KNOWN[name]
    same = ("embed_dim", "depth", "n_registers", "layer_scale")
    if any(getattr(sizes, field) != getattr(known, field) for field in same):
        raise ValueError(
            f"weights {source}: {sizes}, which is no well-known architecture (nearest: {name}), and the number of "
            "attention heads cannot be read off the tensors; give architecture and architecture_kwargs, for example "
            f"--architecture {name} --architecture_kwargs "
            f'\'{{"embed_dim": {sizes.embed_dim}, "depth": {sizes.depth}, "num_heads": ...}}\''
        )
    kwargs: dict[str, Any] = {}
    if sizes.patch_size != known.patch_size:
        kwargs["patch_size"] = sizes.patch_size
    side = math.isqrt(sizes.n_positions) * sizes.patch_size
    if side != math.isqrt(known.n_positions) * known.patch_size:
        kwargs["img_size"] = side
    return name, kwargs


def misfit(state: Mapping[str, Tensor], model: Mapping[str, Tensor]) -> str | None:
    """What keeps a state dict from being loaded strictly: wrong keys and shapes, and what it looks like.

    Args:
        state: what is to be loaded.
        model: the state dict of the module that it is for.

    Returns:
        One line, or None where everything fits.
    """
    parts = [
        f"missing {_some([name for name in model if name not in state])}",
        f"unknown {_some([name for name in state if name not in model])}",
    ]
    shapes = [
        f"{name} {tuple(state[name].shape)} instead of {tuple(tensor.shape)}"
        for name, tensor in model.items()
        if name in state and state[name].shape != tensor.shape
    ]
    parts = [part for part in parts if not part.endswith(" ")]
    if shapes:
        parts.append(f"other shapes: {_some(shapes)}")
    if not parts:
        return None
    sizes = sizes_of(state)
    if sizes is not None:
        parts.append(f"the weights have {sizes}; the nearest architecture is {nearest_architecture(sizes)}")
    return "; ".join(parts)


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(names[:_LISTED]) + more
