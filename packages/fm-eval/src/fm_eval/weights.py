"""How do weights from a file get into a model, so that nothing is left out silently?

Files are safetensors, or torch files read with `weights_only=True` and an allow-list of harmless types. A flat
state dict must fit the architecture exactly. Two kinds of files that do not are known, and what is done to
them is noted in the result:

- a training checkpoint of the original DINO (`student`, `teacher`, ...): the teacher's backbone is taken;
- Meta's DINOv2 names: timm's own conversion is applied.

A ViT's position embedding is resampled only where another input size was asked for. After: loading.
"""

from __future__ import annotations

import argparse
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from fm_eval.errors import BackboneError

# What the original DINO files hold beside tensors; none of these runs code when it is built.
_HARMLESS: list[Any] = [
    argparse.Namespace,
    np.dtype,
    np.dtypes.Float64DType,
    np.dtypes.Int64DType,
    (np.float64(0).__reduce__()[0], "numpy.core.multiarray.scalar"),
    (np.float64(0).__reduce__()[0], "numpy._core.multiarray.scalar"),
]
_WRAPPERS = ("teacher", "state_dict", "model")
_PREFIXES = ("module.", "backbone.")


def load_weights(path: Path) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Read a state dict.

    Args:
        path: safetensors or torch file: a state dict, or one below `teacher`, `state_dict` or `model`.

    Returns:
        Flat names to tensors, without the prefixes `module.` and `backbone.`; and notes of what was changed.

    Raises:
        BackboneError: not such a file, or one that holds code.
    """
    if not path.is_file():
        raise BackboneError(f"weights {path}: no such file")
    try:
        state: Any
        if path.suffix == ".safetensors":
            state = safetensors.torch.load_file(path)
        else:
            with torch.serialization.safe_globals(_HARMLESS):
                state = torch.load(path, map_location="cpu", weights_only=True)
    except (
        OSError,
        RuntimeError,
        EOFError,
        ValueError,
        KeyError,
        AttributeError,
        pickle.UnpicklingError,
        safetensors.SafetensorError,
    ) as error:
        reason = str(error).strip().split("\n")[0][:200]
        raise BackboneError(f"weights {path}: not a safetensors or plain torch state dict ({reason})") from error
    notes: list[str] = []
    wrapper = next((key for key in _WRAPPERS if isinstance(state, dict) and isinstance(state.get(key), dict)), None)
    if wrapper is not None:
        state = state[wrapper]
        notes.append(f"took {wrapper!r} of the file")
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()) or not state:
        raise BackboneError(f"weights {path}: not a flat dict of tensors; save `model.state_dict()` alone")
    for prefix in _PREFIXES:
        if any(key.startswith(prefix) for key in state):
            of_head = [key for key in state if not key.startswith(prefix)]
            if any(not key.startswith("head.") for key in of_head):
                raise BackboneError(f"weights {path}: only some names begin with {prefix!r}, {of_head[0]} does not")
            notes += [f"left out {len(of_head)} tensors of the projection head"] if of_head else []
            state = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    return state, tuple(notes)


def load_strictly(
    model: nn.Module,
    path: Path,
    *,
    may_resample: bool,
    rename: Callable[[dict[str, Tensor]], tuple[dict[str, Tensor], tuple[str, ...]]] | None = None,
) -> tuple[str, ...]:
    """Load a file into a model; every tensor of both must find its match.

    Args:
        model: timm model.
        path: see `load_weights`.
        may_resample: bring a position embedding of another grid to the model's (bicubic, timm's function).
        rename: turns the file's names into timm's, and says what it left out.

    Returns:
        Notes of what was changed on the way, empty for a plain state dict.

    Raises:
        BackboneError: not a state dict, or it does not fit.
    """
    state, notes = load_weights(path)
    if rename is not None:
        state, said = rename(state)
        notes += said
    if "mask_token" in state and hasattr(model, "patch_embed") and "mask_token" not in model.state_dict():
        state = _timm_names(state)
        notes += ("renamed from DINOv2 to timm, mask_token left out",)
    if may_resample and "pos_embed" in state and hasattr(model, "patch_embed"):
        state, resampled = _resampled(state, model)
        notes += resampled
    expected = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    got = {key: tuple(value.shape) for key, value in state.items()}
    missing, extra = sorted(expected.keys() - got.keys()), sorted(got.keys() - expected.keys())
    wrong = sorted(key for key in expected.keys() & got.keys() if expected[key] != got[key])
    if missing or extra or wrong:
        what = [f"{len(missing)} keys missing (first {missing[0]})"] if missing else []
        what += [f"{len(extra)} unexpected (first {extra[0]})"] if extra else []
        if wrong:
            what.append(f"{len(wrong)} of another shape (first {wrong[0]}: {got[wrong[0]]}, not {expected[wrong[0]]})")
        hint = (
            "; for another input size give input_size_px" if wrong == ["pos_embed"] and not (missing or extra) else ""
        )
        raise BackboneError(f"weights {path}: do not fit the architecture: {', '.join(what)}{hint}")
    model.load_state_dict(state, strict=True)
    return notes


def _timm_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """DINOv2 names as timm has them; with registers, timm adds the class token's position to the token itself."""
    renamed = {key.replace("w12.", "fc1.").replace("w3.", "fc2."): value for key, value in state.items()}
    del renamed["mask_token"]
    if "register_tokens" in renamed:
        positions = renamed["pos_embed"]
        renamed["reg_token"] = renamed.pop("register_tokens")
        renamed["cls_token"] = renamed["cls_token"] + positions[:, :1]
        renamed["pos_embed"] = positions[:, 1:]
    return renamed


def _resampled(state: dict[str, Tensor], model: nn.Module) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    from timm.layers.pos_embed import resample_abs_pos_embed

    expected = model.state_dict()["pos_embed"]
    stored = state["pos_embed"]
    if stored.shape == expected.shape or stored.ndim != 3 or stored.shape[2] != expected.shape[2]:
        return state, ()
    prefix = 0 if getattr(model, "no_embed_class", False) else int(getattr(model, "num_prefix_tokens", 1))
    grid: tuple[int, int] = model.patch_embed.grid_size  # type: ignore[union-attr, assignment]
    resampled = resample_abs_pos_embed(stored, new_size=list(grid), num_prefix_tokens=prefix)
    note = f"position embedding resampled from {stored.shape[1]} to {resampled.shape[1]} tokens"
    return state | {"pos_embed": resampled}, (note,)
