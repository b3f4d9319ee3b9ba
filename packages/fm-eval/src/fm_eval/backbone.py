"""Which frozen model turns images into embeddings, and exactly which weights are these?

A backbone is anything called with uint8 (B, H, W, 3) that returns float32 (B, K). Four ways to name one:

- a checkpoint folder (`backbone.safetensors` + `backbone.json`, written last): rebuilt by timm, loaded
  strictly;
- a timm architecture name: seeded random weights, and labelled as such;
- the same with a local state dict (safetensors, or torch read with `weights_only=True`);
- a `class_path`: any class whose objects keep the call above (for example `fm_eval.ColourHistogram`).

Nothing is downloaded and nothing is unpickled. Before: transform. After: embed.
"""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from fm_eval.checkpoint import load_state_dict, read_checkpoint_folder
from fm_eval.errors import BackboneError

# timm is imported where a model of its own is built: it costs seconds, and reports and class paths do without.

Pooling = Literal["cls", "cls+mean", "mean"]


class Backbone(Protocol):
    """What fm_eval asks of a model.

    `input_size_px` (int, side of the squares it wants) and `provenance` (a JSON-able dict) are used when
    present.
    """

    def __call__(self, images_BHWC: Tensor, /) -> Tensor:
        """Map uint8 (B, H, W, 3) RGB to float32 (B, K)."""
        ...


@dataclass(frozen=True, slots=True)
class LoadedBackbone:
    """A backbone ready for `embed`.

    Attributes:
        model: maps uint8 (B, S, S, 3) to float32 (B, K).
        input_size_px: S.
        weights_sha256: hash of the weights; of class path and arguments when there are no weights.
        provenance: what the result records about it.
    """

    model: Backbone
    input_size_px: int
    weights_sha256: str
    provenance: dict[str, Any] = field(default_factory=dict)


class TimmBackbone(nn.Module):
    """A timm model behind the backbone contract: normalises with the model's own mean/std, then pools tokens.

    Args:
        model: timm model without classifier.
        mean: per channel, for pixels in [0, 1].
        std: per channel.
        pooling: `cls`, `mean` (of the patch tokens) or `cls+mean` (concatenated). None: `cls` if the model
            has a class token, else `mean`.

    Raises:
        BackboneError: the model has no class token but one is asked for.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        model: nn.Module,
        *,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        pooling: Pooling | None = None,
    ) -> None:
        super().__init__()
        if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
            raise BackboneError(f"backbone: got mean {mean} and std {std}, expected 3 values each and std above 0")
        has_cls = getattr(model, "cls_token", None) is not None
        if pooling in {"cls", "cls+mean"} and not has_cls:
            raise BackboneError(
                f"backbone: pooling {pooling} needs a class token, this model has none; use pooling mean"
            )
        self.model = model.eval().requires_grad_(False)
        self.pooling: Pooling = pooling or ("cls" if has_cls else "mean")
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32), persistent=False)
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32), persistent=False)

    def forward(self, images_BHWC: Tensor) -> Tensor:
        """Embed uint8 (B, H, W, 3) as float32 (B, K)."""
        scaled = (images_BHWC.float() / 255.0 - self.mean) / self.std
        features: Tensor = self.model.forward_features(scaled.permute(0, 3, 1, 2))  # type: ignore[operator]
        if features.ndim == 4:  # convolutional: timm knows where the channels are
            return self.model.forward_head(features, pre_logits=True).float()  # type: ignore[operator, no-any-return]
        prefix = int(getattr(self.model, "num_prefix_tokens", 0))
        cls, patches = features[:, 0], features[:, prefix:].mean(dim=1)
        pooled = {
            "cls": lambda: cls,
            "mean": lambda: patches,
            "cls+mean": lambda: torch.cat([cls, patches], dim=1),
        }
        return pooled[self.pooling]().float()


class ColourHistogram:
    """Joint RGB histogram, square-rooted: the floor which no model should fall below.

    Args:
        bins: bins a channel; the embedding has bins^3 values.
        input_size_px: side the images are brought to before counting.
    """

    def __init__(self, *, bins: int = 8, input_size_px: int = 224) -> None:
        if not 2 <= bins <= 32 or input_size_px < 1:
            raise BackboneError(f"ColourHistogram: got bins={bins}, input_size_px={input_size_px}; bins must be 2..32")
        self.bins = bins
        self.input_size_px = input_size_px
        self.provenance = {"weights": "none", "bins": bins, "input_size_px": input_size_px}

    def __call__(self, images_BHWC: Tensor, /) -> Tensor:
        """Map uint8 (B, H, W, 3) to float32 (B, bins^3); each row has unit length."""
        batch, height, width, _ = images_BHWC.shape
        level = (images_BHWC.long() * self.bins) // 256
        cell = (level[..., 0] * self.bins + level[..., 1]) * self.bins + level[..., 2]
        counts = torch.zeros(batch, self.bins**3, device=images_BHWC.device)
        counts.scatter_add_(
            1, cell.reshape(batch, -1), torch.ones(1, device=counts.device).expand(batch, height * width)
        )
        return (counts / (height * width)).sqrt()


def load_backbone(
    name: str,
    *,
    weights: str | Path | None = None,
    random_weights: bool = False,
    seed: int = 0,
    pooling: Pooling | None = None,
    args: Mapping[str, Any] | None = None,
) -> LoadedBackbone:
    """Build a backbone from a checkpoint folder, a timm name or a class path.

    Args:
        name: an existing folder, a timm architecture, or the dotted path of a class (its name begins in upper case).
        weights: state dict file for a timm architecture; None gives seeded random weights.
        random_weights: ignore a checkpoint folder's weights and draw random ones: its untrained twin.
        seed: of random weights.
        pooling: how tokens become one embedding (see `TimmBackbone`).
        args: constructor arguments of the class or of the timm architecture.

    Raises:
        BackboneError: nothing of that name, or weights that do not fit.
    """
    args = dict(args or {})
    if Path(name).is_dir():
        if weights is not None or args:
            raise BackboneError(f"checkpoint {name}: the folder says it all; weights and args are for timm names")
        return _from_folder(Path(name), random_weights=random_weights, seed=seed, pooling=pooling)
    if "/" not in name and name.rpartition(".")[2][:1].isupper():
        if weights is not None or pooling is not None or random_weights:
            raise BackboneError(
                f"backbone {name}: weights, random_weights and pooling are for timm models; use its args"
            )
        return _from_class(name, args=args)
    import timm

    if timm.is_model(name.split(".")[0]):
        return _from_timm(name, args=args, weights=weights, seed=seed, pooling=pooling)
    raise BackboneError(f"backbone {name!r}: no such folder, timm {timm.__version__} architecture or class path")


def _from_folder(folder: Path, *, random_weights: bool, seed: int, pooling: Pooling | None) -> LoadedBackbone:
    checkpoint = read_checkpoint_folder(folder)
    model = _create(checkpoint.architecture, checkpoint.architecture_kwargs, seed=seed)
    sha256, kind = checkpoint.sha256, "checkpoint"
    if random_weights:
        sha256, kind = hash_state_dict(model), "random"
    else:
        _load_strictly(model, checkpoint.weights_path)
    width = getattr(model, "num_features", checkpoint.embed_dim)
    if width != checkpoint.embed_dim:
        raise BackboneError(
            f"checkpoint {folder}: backbone.json says embed_dim {checkpoint.embed_dim}, model has {width}"
        )
    wrapped = TimmBackbone(model, mean=checkpoint.mean, std=checkpoint.std, pooling=pooling)
    provenance: dict[str, Any] = {"weights": kind, "pooling": wrapped.pooling, **checkpoint.provenance}
    if random_weights:
        provenance = {k: v for k, v in provenance.items() if k not in {"method", "step", "git_commit"}} | {"seed": seed}
    return LoadedBackbone(wrapped, checkpoint.input_size_px, sha256, provenance)


def _from_timm(
    name: str, *, args: dict[str, Any], weights: str | Path | None, seed: int, pooling: Pooling | None
) -> LoadedBackbone:
    from timm.data.config import resolve_model_data_config

    model = _create(name, args, seed=seed)
    data = resolve_model_data_config(model)  # type: ignore[no-untyped-call]
    provenance: dict[str, Any] = {"architecture": name, "architecture_kwargs": args}
    if weights is None:
        provenance |= {"weights": "random", "seed": seed}
        sha256 = hash_state_dict(model)
    else:
        path = Path(weights)
        _load_strictly(model, path)
        provenance |= {"weights": path.name}
        sha256 = hash_state_dict(model)
    wrapped = TimmBackbone(model, mean=tuple(data["mean"]), std=tuple(data["std"]), pooling=pooling)
    size = args.get("img_size", data["input_size"][-1])
    if not isinstance(size, int):
        raise BackboneError(f"backbone {name}: got img_size {size!r}, expected one int (inputs are square)")
    return LoadedBackbone(wrapped, size, sha256, provenance | {"pooling": wrapped.pooling})


def _from_class(class_path: str, *, args: dict[str, Any]) -> LoadedBackbone:
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
    return LoadedBackbone(model, int(getattr(model, "input_size_px", 224)), identity, provenance)


def _create(architecture: str, kwargs: Mapping[str, Any], *, seed: int) -> nn.Module:
    """Build a timm model whose weights depend on the seed alone; the global generator stays as it was."""
    import timm

    if not timm.is_model(architecture.split(".")[0]):
        raise BackboneError(f"backbone: timm {timm.__version__} knows no architecture {architecture!r}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            model: nn.Module = timm.create_model(architecture, pretrained=False, **{"num_classes": 0, **kwargs})
        except (TypeError, ValueError, RuntimeError, AssertionError) as error:
            reason = " ".join(str(error).split())
            raise BackboneError(f"backbone {architecture}: cannot be built with {dict(kwargs)} ({reason})") from error
    return model


def _load_strictly(model: nn.Module, path: Path) -> None:
    state = load_state_dict(path)
    expected = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    got = {key: tuple(value.shape) for key, value in state.items()}
    missing, extra = sorted(expected.keys() - got.keys()), sorted(got.keys() - expected.keys())
    wrong = sorted(key for key in expected.keys() & got.keys() if expected[key] != got[key])
    if missing or extra or wrong:
        what = [f"{len(missing)} keys missing (first {missing[0]})"] if missing else []
        what += [f"{len(extra)} unexpected (first {extra[0]})"] if extra else []
        what += (
            [f"{len(wrong)} of another shape (first {wrong[0]}: {got[wrong[0]]}, not {expected[wrong[0]]})"]
            if wrong
            else []
        )
        raise BackboneError(f"weights {path}: do not fit the architecture: {', '.join(what)}")
    model.load_state_dict(state, strict=True)


def hash_state_dict(model: nn.Module) -> str:
    """sha256 over names, shapes, types and bytes of all tensors, in order of the names."""
    total = hashlib.sha256()
    for key, value in sorted(model.state_dict().items()):
        total.update(f"{key} {value.dtype} {tuple(value.shape)}".encode())
        total.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return total.hexdigest()
