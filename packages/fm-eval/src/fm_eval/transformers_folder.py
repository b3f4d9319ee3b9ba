"""What does a Hugging Face folder of a transformers ViT or DINOv2 hold, said in timm's words?

`config.json` has the sizes of the model (`model_type` vit or dinov2), `preprocessor_config.json` its input, and
`model.safetensors` or `pytorch_model.bin` the weights. The model is rebuilt by timm, so that it is run, pooled and
checked like every other; the transformers library is not needed. Other model types are refused.

After: loading.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fm_eval.errors import BackboneError

# any plain ViT of timm: all its sizes are given
ARCHITECTURE = "vit_base_patch16_224"
WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")

_LAYER = r"encoder\.layer\.(\d+)\."
_RENAMED = [
    (r"embeddings\.cls_token", "cls_token"),
    (r"embeddings\.position_embeddings", "pos_embed"),
    (r"embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (rf"{_LAYER}attention\.output\.dense\.", r"blocks.\1.attn.proj."),
    (rf"{_LAYER}(?:layernorm_before|norm1)\.", r"blocks.\1.norm1."),
    (rf"{_LAYER}(?:layernorm_after|norm2)\.", r"blocks.\1.norm2."),
    (rf"{_LAYER}(?:intermediate\.dense|mlp\.fc1)\.", r"blocks.\1.mlp.fc1."),
    (rf"{_LAYER}(?:output\.dense|mlp\.fc2)\.", r"blocks.\1.mlp.fc2."),
    (rf"{_LAYER}layer_scale([12])\.lambda1", r"blocks.\1.ls\2.gamma"),
    (r"layernorm\.", "norm."),
]
_UNUSED = re.compile(r"pooler\.|embeddings\.mask_token|classifier\.")
_PREFIX = re.compile(r"^(?:vit|dinov2)\.")


@dataclass(frozen=True, slots=True)
class TransformersModel:
    """Checked content of the two JSON files.

    Attributes:
        weights_path: the state dict.
        architecture_kwargs: arguments of `timm.create_model` for `ARCHITECTURE`.
        norm_eps: epsilon of the layer normalisations.
        input_size_px: side of the input.
        mean: per channel, for pixels in [0, 1].
        std: per channel.
    """

    weights_path: Path
    architecture_kwargs: dict[str, Any]
    norm_eps: float
    input_size_px: int
    mean: tuple[float, ...]
    std: tuple[float, ...]


def read_transformers_folder(folder: Path) -> TransformersModel:
    """Read and check a folder.

    Raises:
        BackboneError: no weights, another type of model, or a missing or ill-typed field.
    """
    config, input_config = _json(folder / "config.json"), _json(folder / "preprocessor_config.json")
    kind = config.get("model_type")
    plain = kind in {"vit", "dinov2"} and config.get("hidden_act", "gelu") == "gelu"
    if not plain or config.get("use_swiglu_ffn"):
        what = "a dinov2 with SwiGLU" if config.get("use_swiglu_ffn") else f"of type {kind!r}"
        raise BackboneError(
            f"backbone {folder}: a transformers model {what}, only vit and dinov2 with GELU are known; "
            "wrap it in a class and give its class path"
        )
    weights = next((folder / name for name in WEIGHT_FILES if (folder / name).is_file()), None)
    if weights is None:
        raise BackboneError(f"backbone {folder}: neither {' nor '.join(WEIGHT_FILES)} beside config.json")

    def size(field: str) -> int:
        value = config.get(field)
        if not isinstance(value, int) or value < 1:
            raise BackboneError(f"backbone {folder}: config.json field {field!r} is {value!r}, expected a positive int")
        return value

    width = size("hidden_size")
    hidden = size("intermediate_size") / width if kind == "vit" else size("mlp_ratio")
    kwargs = {
        "img_size": size("image_size"),
        "patch_size": size("patch_size"),
        "embed_dim": width,
        "depth": size("num_hidden_layers"),
        "num_heads": size("num_attention_heads"),
        "mlp_ratio": hidden,
        "qkv_bias": bool(config.get("qkv_bias", True)),
        "init_values": None if kind == "vit" else 1.0,
    }
    return TransformersModel(
        weights_path=weights,
        architecture_kwargs=kwargs,
        norm_eps=float(config.get("layer_norm_eps", 1e-12 if kind == "vit" else 1e-6)),
        input_size_px=_input_size(input_config, folder) or size("image_size"),
        mean=_three(input_config, "image_mean", folder),
        std=_three(input_config, "image_std", folder),
    )


def timm_names(state: dict[str, Tensor]) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Rename a state dict: query, key and value become one tensor, as timm has them.

    Args:
        state: names of transformers, with or without the prefix of a model with a head.

    Returns:
        Names of timm, names that are not known as they were; and notes of what was left out.
    """
    state = {_PREFIX.sub("", key): value for key, value in state.items()}
    unused = sorted(key for key in state if _UNUSED.match(key))
    renamed: dict[str, Tensor] = {}
    for key in state.keys() - set(unused):
        part = re.fullmatch(rf"{_LAYER}attention\.attention\.(query|key|value)\.(weight|bias)", key)
        if part is None:
            renamed[next((re.sub(old, new, key) for old, new in _RENAMED if re.match(old, key)), key)] = state[key]
        elif part[2] == "query":
            names = [key.replace(".query.", f".{name}.") for name in ("query", "key", "value")]
            if all(name in state for name in names):
                renamed[f"blocks.{part[1]}.attn.qkv.{part[3]}"] = torch.cat([state[name] for name in names])
    return renamed, (f"left out {', '.join(unused)}",) if unused else ()


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise BackboneError(f"backbone {path.parent}: {path.name} is not readable JSON ({error})") from error
    if not isinstance(content, dict):
        raise BackboneError(f"backbone {path.parent}: {path.name} holds {type(content).__name__}, expected an object")
    return content


def _input_size(config: dict[str, Any], folder: Path) -> int | None:
    """Side of what the model is given after resizing and cropping; None where the file says nothing."""
    cropped = config.get("do_center_crop", "crop_size" in config)
    size = config.get("crop_size" if cropped else "size")
    if isinstance(size, dict):
        size = size.get("height", size.get("shortest_edge"))
    if size is not None and (not isinstance(size, int) or size < 1):
        raise BackboneError(f"backbone {folder}: preprocessor_config.json has input size {size!r}, expected an int")
    return size


def _three(config: dict[str, Any], key: str, folder: Path) -> tuple[float, ...]:
    value = config.get(key)
    if not isinstance(value, list) or len(value) != 3 or not all(isinstance(v, int | float) for v in value):
        raise BackboneError(f"backbone {folder}: preprocessor_config.json field {key!r} is {value}, expected 3 numbers")
    return tuple(float(v) for v in value)
