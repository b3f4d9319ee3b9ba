"""How do the checkpoint files of facebookresearch/dinov2 become this package's, and back?

Two kinds of file: a released backbone is a flat state dict (hub/backbones.py); a teacher of a training run is
`{"teacher": {"backbone.*", "dino_head.*", "ibot_head.*"}}`, its blocks in chunks where the run had any
(train/train.py, do_test). Here a network has the names of `DINOv2Network`: timm's under `backbone.`, and beside it
`mask_token`, the heads and, for models with registers, `cls_position`, which timm does not have: it is added to the
class token where a backbone stands alone.

All functions are pure: state dicts in, state dicts out. Before: nothing. After: weights, convert.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

State = dict[str, Tensor]
MASK_TOKEN = "mask_token"  # noqa: S105  # no password
CLS_POSITION = "cls_position"
HEADS = ("dino_head.", "ibot_head.")
_CHUNKED = re.compile(r"^blocks\.\d+\.(\d+)\.")
# Gated MLPs (layers/swiglu_ffn.py): reference, timm.
_GATED = ((".mlp.w12.", ".mlp.fc1."), (".mlp.w3.", ".mlp.fc2."))


def is_dinov2(content: Mapping[str, Any]) -> bool:
    """Whether the content of a file is the reference's: a backbone with a mask token, or a teacher with its heads."""
    teacher = content.get("teacher")
    if isinstance(teacher, Mapping):
        return any(str(name).startswith(HEADS) for name in teacher)
    return MASK_TOKEN in content and "cls_token" in content


def beside_backbone(state: Mapping[str, Tensor]) -> State:
    """Mask token and heads of a network's state dict; empty for a network of DINO."""
    return {name: tensor for name, tensor in state.items() if name == MASK_TOKEN or name.startswith(HEADS)}


def backbone_alone(state: Mapping[str, Tensor]) -> State:
    """The state dict in timm of a network's backbone, of DINO or DINOv2."""
    backbone = _part(state, "backbone.")
    if CLS_POSITION in state:
        backbone["cls_token"] = backbone["cls_token"] + state[CLS_POSITION]
    return backbone


def from_reference(meta: Mapping[str, Tensor]) -> State:
    """A network's state dict from that of a backbone or of a teacher of the reference.

    Args:
        meta: flat backbone, or the value of `teacher`.

    Raises:
        ValueError: no class token, positions or mask token.
    """
    parts = _part(meta, "backbone.")
    backbone = {_CHUNKED.sub(r"blocks.\1.", name): tensor for name, tensor in (parts or meta).items()}
    missing = {"cls_token", "pos_embed", MASK_TOKEN} - backbone.keys()
    if missing:
        raise ValueError(f"no backbone of DINOv2: {', '.join(sorted(missing))} missing")
    beside = {MASK_TOKEN: backbone.pop(MASK_TOKEN), **(beside_backbone(meta) if parts else {})}
    if "register_tokens" in backbone:
        position = backbone["pos_embed"]
        backbone["reg_token"] = backbone.pop("register_tokens")
        beside[CLS_POSITION], backbone["pos_embed"] = position[:, :1], position[:, 1:]
    return {**{f"backbone.{_renamed(name, _GATED)}": tensor for name, tensor in backbone.items()}, **beside}


def to_reference(network: Mapping[str, Tensor]) -> State:
    """The value of `teacher` for a network's state dict; its names under `backbone.` are those of a released file.

    Args:
        network: state dict of a `DINOv2Network`; zeros stand for a missing mask token or position of the class token.
    """
    backbone = _part(network, "backbone.")
    cls = backbone["cls_token"]
    if "reg_token" in backbone:
        backbone["register_tokens"] = backbone.pop("reg_token")
        position = network.get(CLS_POSITION, torch.zeros_like(cls))
        backbone["pos_embed"] = torch.cat([position, backbone["pos_embed"]], dim=1)
    first, second = backbone["blocks.0.mlp.fc1.weight"], backbone["blocks.0.mlp.fc2.weight"]
    if first.shape[0] == 2 * second.shape[1]:
        pairs = tuple((new, old) for old, new in _GATED)
        backbone = {_renamed(name, pairs): tensor for name, tensor in backbone.items()}
    backbone[MASK_TOKEN] = network.get(MASK_TOKEN, torch.zeros_like(cls[0]))
    heads = {name: tensor for name, tensor in network.items() if name.startswith(HEADS)}
    return {**{f"backbone.{name}": tensor for name, tensor in backbone.items()}, **heads}


def _part(state: Mapping[str, Tensor], prefix: str) -> State:
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}


def _renamed(name: str, pairs: tuple[tuple[str, str], ...]) -> str:
    for old, new in pairs:
        name = name.replace(old, new)
    return name
