"""How does a trained backbone leave training?

As a checkpoint folder: `backbone.safetensors` with timm's state dict of the teacher and, written last as the
mark that the folder is whole, `backbone.json` with everything needed to rebuild it:
`timm.create_model(architecture, pretrained=False, **architecture_kwargs)` and a strict load.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from safetensors.torch import save_file

from ssl_train.backbone import architecture_kwargs
from ssl_train.dino import DINO

FORMAT_VERSION = 1
WEIGHTS_NAME = "backbone.safetensors"
DESCRIPTION_NAME = "backbone.json"


def export_folder(model: DINO, folder: str | Path, *, step: int, mpp: list[float] | None = None) -> Path:
    """Writes the teacher's backbone as a checkpoint folder.

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
    target = Path(folder)
    try:
        target.mkdir(parents=True, exist_ok=True)
        (target / DESCRIPTION_NAME).unlink(missing_ok=True)
        state = {name: tensor.detach().cpu().contiguous() for name, tensor in backbone.state_dict().items()}
        weights = target / WEIGHTS_NAME
        temporary = weights.with_suffix(".part")
        save_file(state, temporary)
        temporary.replace(weights)
        description = {
            "format_version": FORMAT_VERSION,
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
            "versions": {name: _version(name) for name in ("ssl-train", "torch", "timm", "pytorch-lightning")},
            "git_commit": _git_commit(),
            "sha256": hashlib.sha256(weights.read_bytes()).hexdigest(),
        }
        temporary = target / (DESCRIPTION_NAME + ".part")
        temporary.write_text(json.dumps(description, indent=1) + "\n")
        temporary.replace(target / DESCRIPTION_NAME)
    except OSError as error:
        raise ValueError(f"checkpoint folder {folder}: cannot be written ({error})") from error
    return target


def load_training_checkpoint(model: pl.LightningModule, path: str | Path) -> int:
    """Loads the weights of a Lightning checkpoint of one's own into the model; returns its step.

    Raises:
        ValueError: no such file, an unreadable one, or one of another model.
    """
    if not Path(path).is_file():
        raise ValueError(f"checkpoint {path}: no such file; fit writes <default_root_dir>/checkpoints/last.ckpt")
    try:
        checkpoint: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        model.load_state_dict(checkpoint["state_dict"])
        return int(checkpoint["global_step"])
    except Exception as error:  # torch raises a dozen types for a bad file
        reason = " ".join(str(error).split())[:300]
        raise ValueError(f"checkpoint {path}: does not fit the model of the config ({reason})") from error


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
