"""How are backbones built that bring their own code?

An entry of a torch hub folder, or a class that is named by its path. Both run code that is not fm_eval's, which is why
they are named one by one and never looked for. The source of that code is part of what decides the embeddings.

Before: backbone. After: loading.
"""

from __future__ import annotations

import hashlib
import importlib
import inspect
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fm_eval.backbone import LoadedBackbone, Pooling, TensorBackbone, TimmBackbone, hash_state_dict
from fm_eval.errors import BackboneError


def from_hub(
    folder: Path, *, args: dict[str, Any], seed: int, pooling: Pooling | None, input_size_px: int | None
) -> LoadedBackbone:
    """Call an entry of a torch hub folder.

    Args:
        folder: holds `hubconf.py`.
        args: `entry`, its arguments, and `mean` and `std` where the model does not know them.
        seed: of random weights that the entry may draw.
        pooling: for timm models only; others return their embedding themselves.
        input_size_px: instead of the model's own, 224 where it has none.

    Raises:
        BackboneError: no entry is named, it fails, or what it returns is no model of known mean and std.
    """
    args = dict(args)
    entry, mean, std = args.pop("entry", None), args.pop("mean", None), args.pop("std", None)
    if not isinstance(entry, str):
        raise BackboneError(
            f"backbone {folder}: a torch hub folder; say which entry in args, for example entry=dino_vits16"
        )
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = torch.hub.load(str(folder), entry, source="local", **args)  # type: ignore[no-untyped-call]
    except Exception as error:  # the folder's own code may raise anything
        reason = " ".join(str(error).split())[:200]
        raise BackboneError(f"backbone {folder}: entry {entry!r} cannot be built with {args} ({reason})") from error
    if not isinstance(model, nn.Module):
        raise BackboneError(
            f"backbone {folder}: entry {entry!r} returned {type(model).__name__}, expected a torch model"
        )
    config = getattr(model, "pretrained_cfg", None) or {}
    mean, std = mean or config.get("mean"), std or config.get("std")
    if mean is None or std is None:
        raise BackboneError(f"backbone {folder}: the model does not know its mean and std; give them in args")
    size = input_size_px or (config.get("input_size") or (3, 224, 224))[-1]
    provenance = {"hub": folder.resolve().name, "entry": entry, "args": args, "mean": list(mean), "std": list(std)}
    if hasattr(model, "forward_features") and config:
        wrapped: nn.Module = TimmBackbone(model, mean=tuple(mean), std=tuple(std), pooling=pooling)
    elif pooling is not None:
        raise BackboneError(f"backbone {folder}: pooling is for timm models; this one returns its embedding itself")
    else:
        wrapped = TensorBackbone(model, mean=tuple(mean), std=tuple(std))
    recipe = provenance | {"pooling": pooling, "source": _source_hash(folder / "hubconf.py")}
    return LoadedBackbone(wrapped, size, hash_state_dict(model), provenance, recipe)


def from_class(class_path: str, *, args: dict[str, Any]) -> LoadedBackbone:
    """Build an object of any importable class.

    Args:
        class_path: dotted path.
        args: constructor arguments.

    Raises:
        BackboneError: not importable, not built with these arguments, or not callable.
    """
    module_name, _, class_name = class_path.rpartition(".")
    try:
        cls = getattr(importlib.import_module(module_name), class_name)
    except (ImportError, AttributeError) as error:
        raise BackboneError(
            f"backbone {class_path}: neither a timm architecture nor an importable class ({error})"
        ) from error
    try:
        model = cls(**args)
    except TypeError as error:
        raise BackboneError(f"backbone {class_path}: cannot be built with {args} ({error})") from error
    if not callable(model):
        raise BackboneError(f"backbone {class_path}: not callable; it must map uint8 (B, H, W, 3) to float32 (B, K)")
    identity = hashlib.sha256(f"{class_path} {sorted(args.items())}".encode()).hexdigest()
    if isinstance(model, nn.Module):
        model.eval().requires_grad_(False)
        identity = hash_state_dict(model)
    provenance = {"class_path": class_path, "args": args, **getattr(model, "provenance", {})}
    source = inspect.getsourcefile(cls)
    recipe = {"class_path": class_path, "args": args, "source": source and _source_hash(Path(source))}
    return LoadedBackbone(model, int(getattr(model, "input_size_px", 224)), identity, provenance, recipe)


def _source_hash(path: Path) -> str | None:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None
