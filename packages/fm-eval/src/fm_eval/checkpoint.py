"""What does a checkpoint folder hold?

The folder is the contract with the training package: `backbone.safetensors` is a timm state dict;
`backbone.json`, written last as the mark that the folder is whole, describes it. Both are untrusted: every
field is checked, and the weights must have the sha256 that the JSON states.

After: weights, which reads the file; loading, which builds the model.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from fm_eval.errors import BackboneError

FORMAT_VERSION = 1

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Checked content of `backbone.json`.

    Attributes:
        weights_path: the safetensors file.
        architecture: timm name.
        architecture_kwargs: arguments of `timm.create_model`.
        embed_dim: K of the class token.
        input_size_px: side of the input.
        mean: per channel, for pixels in [0, 1].
        std: per channel.
        sha256: of the weights file, verified.
        provenance: the fields that a result repeats (method, step, versions, git commit, ...).
    """

    weights_path: Path
    architecture: str
    architecture_kwargs: dict[str, Any]
    embed_dim: int
    input_size_px: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    sha256: str
    provenance: dict[str, Any]


def read_checkpoint_folder(folder: Path) -> Checkpoint:
    """Read and verify a checkpoint folder.

    Raises:
        BackboneError: half-written, newer format, a missing or ill-typed field, or weights with another
            sha256.
    """
    description = folder / "backbone.json"
    weights = folder / "backbone.safetensors"
    if not description.is_file():
        raise BackboneError(f"checkpoint {folder}: no backbone.json, so the export is not finished; export it again")
    try:
        content = json.loads(description.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise BackboneError(f"checkpoint {folder}: backbone.json is not readable JSON ({error})") from error
    if not isinstance(content, dict):
        raise BackboneError(f"checkpoint {folder}: backbone.json holds {type(content).__name__}, expected an object")
    version = _field(content, "format_version", int, folder)
    if version > FORMAT_VERSION:
        raise BackboneError(
            f"checkpoint {folder}: format_version {version} is newer than {FORMAT_VERSION}; update fm-eval"
        )
    if not weights.is_file():
        raise BackboneError(f"checkpoint {folder}: no backbone.safetensors beside backbone.json; export it again")
    stated, found = _field(content, "sha256", str, folder), hash_file(weights)
    if stated != found:
        raise BackboneError(
            f"checkpoint {folder}: backbone.safetensors has sha256 {found[:12]}..., backbone.json says "
            f"{stated[:12]}...; the folder is damaged or mixed, export it again"
        )
    return Checkpoint(
        weights_path=weights,
        architecture=_field(content, "architecture", str, folder),
        architecture_kwargs=_field(content, "architecture_kwargs", dict, folder),
        embed_dim=_field(content, "embed_dim", int, folder),
        input_size_px=_positive(content, "input_size_px", folder),
        mean=_three(content, "mean", folder),
        std=_three(content, "std", folder),
        sha256=found,
        provenance={key: value for key, value in content.items() if key not in {"format_version", "sha256"}},
    )


def hash_file(path: Path) -> str:
    """sha256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _field(content: dict[str, Any], key: str, kind: type[_T], folder: Path) -> _T:
    value = content.get(key)
    if not isinstance(value, kind) or isinstance(value, bool):
        raise BackboneError(f"checkpoint {folder}: backbone.json field {key!r} is {value!r}, expected {kind.__name__}")
    return value


def _positive(content: dict[str, Any], key: str, folder: Path) -> int:
    value = _field(content, key, int, folder)
    if value < 1:
        raise BackboneError(f"checkpoint {folder}: backbone.json field {key!r} is {value}, expected at least 1")
    return value


def _three(content: dict[str, Any], key: str, folder: Path) -> tuple[float, ...]:
    value = _field(content, key, list, folder)
    if len(value) != 3 or not all(isinstance(v, int | float) and not isinstance(v, bool) for v in value):
        raise BackboneError(f"checkpoint {folder}: backbone.json field {key!r} is {value}, expected 3 numbers")
    return tuple(float(v) for v in value)
