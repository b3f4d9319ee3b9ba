"""How does a trained backbone leave training?

As a checkpoint folder: `backbone.safetensors` with timm's state dict of the teacher and, written last as the
mark that the folder is whole, `backbone.json` with everything needed to rebuild it:
`timm.create_model(architecture, pretrained=False, **architecture_kwargs)` and a strict load.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch.distributed as dist
from safetensors.torch import save_file
from torch import Tensor

from ssl_train.architectures import misfit
from ssl_train.backbone import architecture_kwargs
from ssl_train.dino import DINO
from ssl_train.dinov2 import DINOv2
from ssl_train.meta_dinov2 import backbone_alone
from ssl_train.sharded_checkpoint import gathered_state_dict, load_sharded_checkpoint
from ssl_train.weights import (
    DESCRIPTION_NAME,
    FORMAT_VERSION,
    HEAD_NAME,
    WEIGHTS_NAME,
    hash_file,
    load_file_safely,
)


def export_folder(model: DINO | DINOv2, folder: str | Path, *, step: int, mpp: list[float] | None = None) -> Path:
    """Writes the teacher's backbone as a checkpoint folder; of several ranks all call it and the first writes.

    Args:
        model: the trained (or freshly made) model.
        folder: where to; an older export there is replaced.
        step: optimizer steps done.
        mpp: um per pixel that the training stream sampled, where known.

    Returns:
        The folder.

    Raises:
        ValueError: the folder cannot be written.
    """
    backbone = model.teacher.backbone
    description = {
        "architecture": model.architecture,
        "architecture_kwargs": architecture_kwargs(backbone, model.architecture_kwargs),
        "embed_dim": int(backbone.embed_dim),
        "patch_size": model.teacher.patch_size,
        "input_size_px": model.input_size_px,
        "mean": list(model.crops.mean),
        "std": list(model.crops.std),
        "mpp": mpp,
        "method": model.method,
        "step": step,
    }
    state = backbone_alone(gathered_state_dict(model.teacher))
    if dist.is_initialized() and dist.get_rank():
        return Path(folder)
    return write_folder(folder, backbone=state, description=description)


def write_folder(
    folder: str | Path,
    *,
    backbone: Mapping[str, Tensor],
    description: Mapping[str, Any],
    head: Mapping[str, Tensor] | None = None,
) -> Path:
    """Writes a checkpoint folder from its parts, the description last.

    Args:
        folder: where to; an older one there is replaced.
        backbone: timm state dict.
        description: fields of `backbone.json` but versions, commit and hashes, which are added here.
        head: state dict of the projection head, written beside the backbone.

    Returns:
        The folder.

    Raises:
        ValueError: the folder cannot be written.
    """
    target = Path(folder)
    try:
        target.mkdir(parents=True, exist_ok=True)
        for name in (DESCRIPTION_NAME, HEAD_NAME):
            (target / name).unlink(missing_ok=True)
        hashes = {"sha256": _save(backbone, target / WEIGHTS_NAME)}
        if head:
            hashes["head_sha256"] = _save(head, target / HEAD_NAME)
        content = {
            "format_version": FORMAT_VERSION,
            **description,
            "versions": {name: _version(name) for name in ("ssl-train", "torch", "timm", "pytorch-lightning")},
            "git_commit": _git_commit(),
            **hashes,
        }
        temporary = target / (DESCRIPTION_NAME + ".part")
        temporary.write_text(json.dumps(content, indent=1) + "\n")
        temporary.replace(target / DESCRIPTION_NAME)
    except OSError as error:
        raise ValueError(f"checkpoint folder {folder}: cannot be written ({error})") from error
    return target


def _save(state: Mapping[str, Tensor], path: Path) -> str:
    """Writes a safetensors file whole or not at all; returns its sha256."""
    temporary = path.with_suffix(".part")
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}, temporary)
    temporary.replace(path)
    return hash_file(path)


def save_training_checkpoint(trainer: pl.Trainer, path: Path) -> None:
    """Writes a Lightning checkpoint whole or not at all: what lies at `path` survives a run that is killed meanwhile.

    To be called on all ranks. A sharded checkpoint is a folder, which cannot take another's place in one move: between
    two renames the former one lies at `path` + `.old`.
    """
    temporary = path.with_name(path.name + ".part")
    trainer.save_checkpoint(temporary, weights_only=False)  # ends in a barrier
    if not trainer.is_global_zero:
        return
    if temporary.is_dir():
        former = path.with_name(path.name + ".old")
        shutil.rmtree(former, ignore_errors=True)
        if path.exists():
            path.rename(former)
        temporary.rename(path)
        shutil.rmtree(former, ignore_errors=True)
        return
    with temporary.open("rb") as file:
        os.fsync(file.fileno())
    temporary.replace(path)


def load_training_checkpoint(model: pl.LightningModule, path: str | Path) -> int:
    """Loads the weights of a Lightning checkpoint of one's own, a file or sharded, into the model; returns its step.

    Raises:
        ValueError: no such file, an unreadable one, or one of another model.
    """
    if Path(path).is_dir():
        return load_sharded_checkpoint(model, Path(path))
    if not Path(path).is_file():
        raise ValueError(f"checkpoint {path}: no such file; fit writes <default_root_dir>/checkpoints/last.ckpt")
    checkpoint = load_file_safely(Path(path))
    if not isinstance(checkpoint, dict) or not {"state_dict", "global_step"} <= checkpoint.keys():
        raise ValueError(f"checkpoint {path}: not a training checkpoint; give one that fit has written")
    problem = misfit(checkpoint["state_dict"], model.state_dict())
    if problem is not None:
        raise ValueError(f"checkpoint {path}: does not fit the model of the config: {problem}")
    model.load_state_dict(checkpoint["state_dict"])
    return int(checkpoint["global_step"])


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _git_commit() -> str | None:
    """The commit of the code that runs, where it runs from a git checkout."""
    here = Path(__file__)
    try:
        # An installed copy inside some other checkout is not tracked there.
        _git(here.parent, "ls-files", "--error-unmatch", here.name)
        return _git(here.parent, "rev-parse", "HEAD")
    except (OSError, subprocess.SubprocessError):
        return None


def _git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)  # noqa: S603
    return done.stdout.strip()
