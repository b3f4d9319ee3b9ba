"""What does a Hugging Face folder of a timm model hold?

`config.json` names the architecture and the input (`pretrained_cfg`); `model.safetensors` or
`pytorch_model.bin` is the state dict. Most pathology models are published so; the folders of the transformers library
are the business of transformers_folder.

After: weights, loading.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fm_eval.errors import BackboneError
from fm_eval.transformers_folder import WEIGHT_FILES


def is_transformers_folder(folder: Path) -> bool:
    """Whether `config.json` describes a model of the transformers library."""
    try:
        content = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError):
        return False  # reading it properly says what is wrong
    return isinstance(content, dict) and "model_type" in content and "architecture" not in content


@dataclass(frozen=True, slots=True)
class HuggingFaceModel:
    """Checked content of `config.json`.

    Attributes:
        weights_path: the state dict.
        architecture: timm name, without tag.
        architecture_kwargs: arguments of `timm.create_model`.
        num_classes: outputs of the classifier that the file holds, 0 for none.
        input_size_px: side of the input.
        mean: per channel, for pixels in [0, 1].
        std: per channel.
    """

    weights_path: Path
    architecture: str
    architecture_kwargs: dict[str, Any]
    num_classes: int
    input_size_px: int
    mean: tuple[float, ...]
    std: tuple[float, ...]


def read_hugging_face_folder(folder: Path) -> HuggingFaceModel:
    """Read and check a folder.

    Raises:
        BackboneError: no weights, a model of the transformers library, or a missing or ill-typed field.
    """
    try:
        content = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise BackboneError(f"backbone {folder}: config.json is not readable JSON ({error})") from error
    if not isinstance(content, dict) or not isinstance(content.get("architecture"), str):
        raise BackboneError(f"backbone {folder}: config.json has neither a timm architecture nor a model_type")
    weights = next((folder / name for name in WEIGHT_FILES if (folder / name).is_file()), None)
    if weights is None:
        raise BackboneError(f"backbone {folder}: neither {' nor '.join(WEIGHT_FILES)} beside config.json")
    config = content.get("pretrained_cfg")
    config = config if isinstance(config, dict) else {}
    size = config.get("input_size", [3, 224, 224])
    if not (isinstance(size, list) and len(size) == 3 and isinstance(size[2], int) and size[1] == size[2] > 0):
        raise BackboneError(f"backbone {folder}: config.json field 'input_size' is {size!r}, expected [3, S, S]")
    kwargs = content.get("model_args", {})
    if not isinstance(kwargs, dict):
        raise BackboneError(f"backbone {folder}: config.json field 'model_args' is {kwargs!r}, expected an object")
    classes = content.get("num_classes", config.get("num_classes", 0))
    if not isinstance(classes, int) or classes < 0:
        raise BackboneError(f"backbone {folder}: config.json field 'num_classes' is {classes!r}, expected an int")
    return HuggingFaceModel(
        weights_path=weights,
        architecture=content["architecture"].split(".")[0],
        architecture_kwargs=kwargs,
        num_classes=classes,
        input_size_px=size[2],
        mean=_three(config, "mean", folder),
        std=_three(config, "std", folder),
    )


def _three(config: dict[str, Any], key: str, folder: Path) -> tuple[float, ...]:
    value = config.get(key)
    if not isinstance(value, list) or len(value) != 3 or not all(isinstance(v, int | float) for v in value):
        raise BackboneError(
            f"backbone {folder}: config.json field 'pretrained_cfg.{key}' is {value}, expected 3 numbers"
        )
    return tuple(float(v) for v in value)
