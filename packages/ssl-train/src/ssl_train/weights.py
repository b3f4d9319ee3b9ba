"""What weights does a folder, a file or a name hold?

Everything becomes the same thing, `SourceWeights`: backbones under timm's names, heads under the DINO reference's, of
the teacher and, where the source has it, of the student.

| source | holds |
|---|---|
| checkpoint folder | the teacher's backbone, and its head where `head.safetensors` lies beside it |
| Meta's full DINO checkpoint | student, teacher, heads, centre |
| Meta's DINOv2 files (`meta_dinov2`) | a backbone with its mask token; a teacher with its heads |
| training checkpoint of this package (`*.ckpt`) | student, teacher, heads, centre |
| flat state dict (Meta's backbone-only files, timm's) | one backbone; a classifier is left out |
| timm name | the backbone that timm downloads |

Files may come from strangers: safetensors, or torch files read with `weights_only=True` and a fixed list of harmless
types. A pickle that asks for anything else is refused. Before: nothing. After: backbone, initial_weights, convert.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import pickle
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import timm
import torch
from numpy._core import multiarray
from safetensors.torch import load_file
from torch import Tensor

from ssl_train.meta_dinov2 import backbone_alone, beside_backbone, from_reference, is_dinov2

FORMAT_VERSION = 1
WEIGHTS_NAME = "backbone.safetensors"
HEAD_NAME = "head.safetensors"
DESCRIPTION_NAME = "backbone.json"
# What Meta's files hold beside tensors: the arguments of the run and learning rates as NumPy scalars (written by
# NumPy 1 under another name of the same function).
_HARMLESS: list[Any] = [
    argparse.Namespace,
    (multiarray.scalar, "numpy._core.multiarray.scalar"),
    (multiarray.scalar, "numpy.core.multiarray.scalar"),
    np.dtype,
    *(type(np.dtype(name)) for name in ("float16", "float32", "float64", "int32", "int64", "bool")),
]
# How torch names what a pickle asks for beyond them.
_ASKED = re.compile(r"unsupported global:? (?:GLOBAL )?(\S+)", re.IGNORECASE)

State = dict[str, Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkWeights:
    """State dicts of a backbone and of what belongs to it, empty where the source has none.

    Attributes:
        backbone: under timm's names.
        head: DINO's head.
        dinov2: what DINOv2 has beside its backbone: `mask_token`, `dino_head.*`, `ibot_head.*`.
    """

    backbone: State
    head: State = field(default_factory=dict)
    dinov2: State = field(default_factory=dict)

    @property
    def has_dinov2_heads(self) -> bool:
        """Whether there is more than a mask token."""
        return len(self.dinov2) > 1


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceWeights:
    """What a source holds.

    Attributes:
        origin: what the source is: `folder`, `timm`, `meta` (full checkpoint), `run` (training checkpoint) or `file`.
        teacher: the weights to use, where only one network is there.
        student: those of the student, where the source tells them apart.
        center: centre of the loss (1, K), where the source has it.
        patch_center: that of DINOv2's masked patches.
        description: what the source says of itself: fields of `backbone.json` for a checkpoint folder, architecture
            and normalisation for a timm name, else empty.
    """

    origin: Literal["folder", "timm", "meta", "run", "file"]
    teacher: NetworkWeights
    student: NetworkWeights | None = None
    center: Tensor | None = None
    patch_center: Tensor | None = None
    description: Mapping[str, Any] = field(default_factory=dict)


def read_weights(source: str) -> SourceWeights:
    """Reads weights from a checkpoint folder, a file (safetensors or torch) or a timm name.

    Raises:
        ValueError: nothing of that name, a folder that is not whole or newer, a damaged file, a pickle that could
            run code, or content that is none of the above.
    """
    path = Path(source)
    if path.is_dir():
        return _from_folder(path)
    if path.is_file():
        return _from_content(load_file_safely(path), source)
    if timm.is_model(source):
        return _from_timm(source)
    raise ValueError(
        f"weights {source}: no such file or folder and no timm model; give a checkpoint folder, a .safetensors, .pth "
        "or .ckpt file, or a name of timm.list_models(pretrained=True)"
    )


def load_file_safely(path: Path) -> Any:
    """The content of a safetensors or torch file; tensors stay on the CPU and, where possible, memory-mapped.

    Raises:
        ValueError: a damaged file, or a pickle that asks for more than tensors and harmless types.
    """
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with torch.serialization.safe_globals(_HARMLESS):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        asked = _ASKED.search(str(error))
        what = f"asks for {asked.group(1)}" if asked else "does more than hold weights"
        raise ValueError(
            f"weights {path}: refused, for its pickle {what}, and that may run code; take a .safetensors file, or "
            "save its tensors alone where you trust it"
        ) from error
    except Exception as error:  # torch and safetensors raise a dozen types for a bad file
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"weights {path}: not a whole safetensors or torch file ({reason})") from error


def _from_folder(folder: Path) -> SourceWeights:
    if not (folder / DESCRIPTION_NAME).is_file():
        raise ValueError(f"weights {folder}: no {DESCRIPTION_NAME} inside, so the folder is not a whole checkpoint")
    try:
        description = json.loads((folder / DESCRIPTION_NAME).read_text())
        version, stated = description["format_version"], description["sha256"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"weights {folder}: {DESCRIPTION_NAME} is damaged ({error!r}); export it again") from error
    if version != FORMAT_VERSION:
        raise ValueError(
            f"weights {folder}: format_version {version}; this version reads {FORMAT_VERSION}, update ssl-train"
        )
    files = {WEIGHTS_NAME: stated} | ({HEAD_NAME: head} if (head := description.get("head_sha256")) else {})
    states = []
    for name, digest in files.items():
        if not (folder / name).is_file():
            raise ValueError(f"weights {folder}: no {name} beside {DESCRIPTION_NAME}; export it again")
        if hash_file(folder / name) != digest:
            raise ValueError(f"weights {folder}: {name} is not the file that {DESCRIPTION_NAME} names; export it again")
        states.append(load_file_safely(folder / name))
    head = states[1] if len(states) > 1 else {}
    dinov2 = beside_backbone(head)
    teacher = NetworkWeights(backbone=states[0], head={} if dinov2 else head, dinov2=dinov2)
    return SourceWeights(origin="folder", teacher=teacher, description=description)


def _from_timm(name: str) -> SourceWeights:
    try:
        model = timm.create_model(name, pretrained=True, num_classes=0)
    except Exception as error:  # whatever a download may raise
        reason = " ".join(str(error).split())[:200]
        raise ValueError(
            f"weights {name}: timm cannot get pretrained weights of that name ({reason}); without a network, give "
            "the path of a downloaded file"
        ) from error
    found: Any = model.pretrained_cfg
    description = {"architecture": found["architecture"], "mean": list(found["mean"]), "std": list(found["std"])}
    weights = NetworkWeights(backbone=dict(model.state_dict()))
    return SourceWeights(origin="timm", teacher=weights, description=description)


def _from_content(content: Any, source: str) -> SourceWeights:
    if not isinstance(content, Mapping):
        raise ValueError(f"weights {source}: holds {type(content).__name__}, expected a dictionary of tensors")
    if is_dinov2(content):
        state = _tensors(content.get("teacher", content), source)
        try:
            network = _network(from_reference(state))
        except ValueError as error:
            raise ValueError(f"weights {source}: {error}") from error
        return SourceWeights(origin="meta", teacher=network, description={"method": "dinov2"})
    if "student" in content or "teacher" in content:  # main_dino.py, save_dict
        parts = {name: _tensors(content[name], source) for name in ("student", "teacher") if name in content}
        networks = {name: _network(state) for name, state in parts.items()}
        return SourceWeights(
            origin="meta",
            teacher=networks.get("teacher") or networks["student"],
            student=networks.get("student"),
            center=(content.get("dino_loss") or {}).get("center"),
        )
    state = _tensors(content.get("state_dict", content), source)
    student, teacher = (_part(state, f"{name}.") for name in ("student", "teacher"))
    if student and teacher:
        return SourceWeights(
            origin="run",
            teacher=_network(teacher),
            student=_network(student),
            center=state.get("loss.center", state.get("loss.cls_centering.center")),
            patch_center=state.get("loss.patch_centering.center"),
        )
    return SourceWeights(origin="file", teacher=_network(state))


def _network(state: State) -> NetworkWeights:
    """Takes off the prefixes of the wrappers that a network was saved in, and a classifier."""
    # DistributedDataParallel.
    state = _part(state, "module.") or state
    backbone = backbone_alone(state)
    if backbone:
        return NetworkWeights(backbone=backbone, head=_part(state, "head."), dinov2=beside_backbone(state))
    return NetworkWeights(backbone={name: t for name, t in state.items() if name not in {"head.weight", "head.bias"}})


def _part(state: State, prefix: str) -> State:
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}


def _tensors(value: Any, source: str) -> State:
    if not isinstance(value, Mapping) or not value or not all(isinstance(t, Tensor) for t in value.values()):
        held = ", ".join(str(name) for name in list(value)[:6]) if isinstance(value, Mapping) else type(value).__name__
        raise ValueError(f"weights {source}: expected a state dict, that is names and tensors, got {held or 'nothing'}")
    return {str(name): tensor for name, tensor in value.items()}


def hash_file(path: Path) -> str:
    """sha256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
