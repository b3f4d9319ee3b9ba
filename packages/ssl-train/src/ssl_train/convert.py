"""How do weights get from one format into another?

`ssl-train convert --source X --to FORMAT --output Y` reads whatever `weights` reads, rebuilds the backbone with timm
and writes it as one of

| format | what is written |
|---|---|
| `folder` | a checkpoint folder, with `head.safetensors` where the source has a head |
| `timm` | timm's state dict as safetensors |
| `meta` | the backbone alone, as Meta's released `dino_*_pretrain.pth` |
| `meta_full` | student, teacher, heads and centre, as Meta's `dino_*_full_checkpoint.pth` (without optimizer) |
| `meta_dinov2` | the backbone with its mask token, as Meta's released `dinov2_*_pretrain.pth` |
| `meta_dinov2_teacher` | the teacher with its heads, as `teacher_checkpoint.pth` of Meta's training code |

Weights stay the same bit for bit, unless `architecture_kwargs` asks for another `img_size` or `patch_size`: then
positions and patch kernels are resized. Before: weights, backbone, checkpoint. After: cli.
"""

from __future__ import annotations

import re
import warnings
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from jsonargparse import ArgumentParser
from safetensors.torch import save_file
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from ssl_train.architectures import infer_architecture
from ssl_train.backbone import PositionInterpolation, architecture_kwargs, create_backbone, load_backbone
from ssl_train.checkpoint import write_folder
from ssl_train.meta_dinov2 import to_reference
from ssl_train.weights import NetworkWeights, SourceWeights, State, read_weights

Format = Literal["folder", "timm", "meta", "meta_full", "meta_dinov2", "meta_dinov2_teacher"]
# ImageNet's, with which Meta's and most of timm's weights were trained.
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# The tensors of the reference's vision transformer (vision_transformer.py).
_META_NAME = re.compile(
    r"cls_token|pos_embed|patch_embed\.proj\.(weight|bias)|norm\.(weight|bias)"
    r"|blocks\.\d+\.(norm[12]|attn\.qkv|attn\.proj|mlp\.fc[12])\.(weight|bias)"
)


def convert(
    *,
    source: str,
    output: str,
    to: Format = "folder",
    network: Literal["teacher", "student"] = "teacher",
    architecture: str | None = None,
    architecture_kwargs: dict[str, Any] | None = None,
    position_interpolation: PositionInterpolation = "dino",
    mean: tuple[float, float, float] | None = None,
    std: tuple[float, float, float] | None = None,
) -> Path:
    """Convert weights between checkpoint folders, timm and Meta's DINO files.

    Args:
        source: checkpoint folder, weights file (.safetensors, .pth, .ckpt) or timm name.
        output: folder or file to write.
        to: format to write, see above: folder, timm, meta, meta_full, meta_dinov2 or meta_dinov2_teacher.
        network: which network to take where the source has both; meta_full takes both.
        architecture: timm name; read off the source where absent.
        architecture_kwargs: arguments of the architecture, for example {"img_size": 256} for another input size,
            {"patch_size": 8} or {"num_heads": 3}.
        position_interpolation: how positions are resized for another size: as the DINO reference or as timm does.
        mean: channel means for the folder, in [0, 1]; those of the source where absent, or ImageNet's, with a
            warning where they may be others.
        std: channel standard deviations for the folder.

    Returns:
        What was written.

    Raises:
        ValueError: a source that cannot be read, does not fit, or lacks what the format needs.
    """
    found = read_weights(source)
    if to == "folder" and found.origin == "run" and (mean is None or std is None):
        raise ValueError(
            f"weights {source}: a training checkpoint does not say how its images were normalised; use "
            "`ssl-train export --config`, or give mean and std"
        )
    target = Path(output)
    if to in {"meta", "meta_full"} and target.suffix == ".safetensors":
        raise ValueError(f"output {output}: Meta's files are torch files; name it .pth")
    chosen = (found.student or found.teacher) if network == "student" else found.teacher
    name, kwargs = _architecture(found, chosen.backbone, source, architecture, architecture_kwargs)

    def rebuild(weights: NetworkWeights) -> VisionTransformer:
        backbone = create_backbone(name, **kwargs)
        load_backbone(backbone, weights.backbone, source=source, position_interpolation=position_interpolation)
        return backbone

    if to == "meta_full":
        networks = {"student": found.student or found.teacher, "teacher": found.teacher}
        if not all(weights.head for weights in networks.values()):
            raise ValueError(f"weights {source}: no head inside, which meta_full needs; take --to meta")
        full = {key: _full_state(rebuild(weights), weights.head, source) for key, weights in networks.items()}
        # Meta's student is saved inside DistributedDataParallel (main_dino.py, save_dict).
        student = OrderedDict((f"module.{key}", tensor) for key, tensor in full["student"].items())
        loss = {"dino_loss": OrderedDict(center=found.center)} if found.center is not None else {}
        return _write({"student": student, "teacher": full["teacher"], "epoch": 0, **loss}, target)
    backbone = rebuild(chosen)
    if to in ("meta_dinov2", "meta_dinov2_teacher"):
        return _write(_dinov2_content(backbone, chosen, to, source), target)
    if to == "folder":
        description = _describe(found, backbone, name, kwargs, mean, std)
        return write_folder(
            target, backbone=backbone.state_dict(), description=description, head=chosen.head or chosen.dinov2
        )
    return _write(_meta_state(backbone, source) if to == "meta" else dict(backbone.state_dict()), target)


def _architecture(
    found: SourceWeights,
    state: State,
    source: str,
    architecture: str | None,
    kwargs: dict[str, Any] | None,
) -> tuple[str, dict[str, Any]]:
    """The timm name and its arguments: the user's word goes before the source's, and that before the tensors."""
    own_kwargs: Mapping[str, Any] = found.description.get("architecture_kwargs", {})
    if architecture is None and "architecture" in found.description:
        architecture = str(found.description["architecture"])
    elif architecture is None:
        architecture, own_kwargs = infer_architecture(state, source=source)
    given = {name: value for name, value in own_kwargs.items() if name not in {"num_classes", "dynamic_img_size"}}
    return architecture, {**given, **(kwargs or {})}


def _describe(
    found: SourceWeights,
    backbone: VisionTransformer,
    name: str,
    kwargs: dict[str, Any],
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
) -> dict[str, Any]:
    """The fields of `backbone.json`."""
    known = found.description
    if found.origin == "file" and (mean is None or std is None):
        warnings.warn(
            "nothing says how the images of these weights were normalised: the folder will say ImageNet's mean and "
            "std; give mean and std where that is wrong",
            stacklevel=3,
        )
    described_kwargs = architecture_kwargs(backbone, kwargs)
    return {
        "architecture": name,
        "architecture_kwargs": described_kwargs,
        "embed_dim": int(backbone.embed_dim),
        "patch_size": int(backbone.patch_embed.patch_size[0]),
        "input_size_px": max(described_kwargs["img_size"]),
        "mean": list(mean or known.get("mean") or _MEAN),
        "std": list(std or known.get("std") or _STD),
        "mpp": known.get("mpp"),
        "method": known.get("method", "dino" if found.origin == "meta" else "unknown"),
        "step": known.get("step", 0),
    }


def _meta_state(backbone: VisionTransformer, source: str) -> OrderedDict[str, Tensor]:
    """The backbone's tensors, which have the same names in the reference; refuses what the reference cannot hold."""
    state = OrderedDict(backbone.state_dict())
    foreign = [name for name in state if not _META_NAME.fullmatch(name)]
    missing = [name for name in ("cls_token", "blocks.0.attn.qkv.bias", "norm.weight") if name not in state]
    height, width = backbone.patch_embed.grid_size
    if foreign or missing or height != width:
        reason = ", ".join([*foreign[:4], *(f"no {name}" for name in missing)]) or f"a grid of {height} x {width}"
        raise ValueError(
            f"weights {source}: Meta's DINO code has no such vision transformer ({reason}); take --to timm or folder"
        )
    return state


def _dinov2_content(backbone: VisionTransformer, weights: NetworkWeights, to: Format, source: str) -> dict[str, Any]:
    """The content of a file of Meta's DINOv2."""
    if to == "meta_dinov2_teacher" and not weights.has_dinov2_heads:
        raise ValueError(f"weights {source}: no heads of DINOv2 inside, which {to} needs; take --to meta_dinov2")
    network = {f"backbone.{name}": tensor for name, tensor in backbone.state_dict().items()}
    teacher = to_reference({**network, **weights.dinov2})
    if to == "meta_dinov2_teacher":
        return {"teacher": teacher}
    prefix = "backbone."
    return {name.removeprefix(prefix): tensor for name, tensor in teacher.items() if name.startswith(prefix)}


def _full_state(backbone: VisionTransformer, head: State, source: str) -> OrderedDict[str, Tensor]:
    """Backbone and head with the prefixes of the reference's wrapper."""
    parts = {"backbone": _meta_state(backbone, source), "head": head}
    return OrderedDict((f"{part}.{name}", tensor) for part, state in parts.items() for name, tensor in state.items())


def _write(content: Mapping[str, Any], target: Path) -> Path:
    """Writes a file whole or not at all: safetensors where its name says so, else torch."""
    temporary = target.with_name(target.name + ".part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.suffix == ".safetensors":
            save_file(dict(content), temporary)
        else:
            torch.save(content, temporary)
        temporary.replace(target)
    except OSError as error:
        raise ValueError(f"output {target}: cannot be written ({error})") from error
    return target


def run(arguments: Sequence[str]) -> Path:
    """Parses the arguments of `ssl-train convert` and converts; returns what was written."""
    parser = ArgumentParser(prog="ssl-train convert", exit_on_error=False)
    parser.add_function_arguments(convert)
    return convert(**parser.parse_args(list(arguments)).as_dict())
