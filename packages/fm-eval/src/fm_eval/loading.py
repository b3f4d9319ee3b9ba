"""Which frozen model does a name stand for, and exactly which weights are these?

- a checkpoint folder (`backbone.safetensors` + `backbone.json`, written last): rebuilt by timm, loaded
  strictly;
- a Hugging Face folder (`config.json` + `model.safetensors` or `pytorch_model.bin`) of a timm model, or of a ViT or
  DINOv2 of the transformers library, which timm rebuilds;
- a torch hub folder (`hubconf.py`) and the entry to call: this runs the folder's code;
- a timm architecture name: seeded random weights, and labelled as such, or a local state dict;
- a `class_path`: any class whose objects keep the call of `backbone.Backbone` (`fm_eval.ColourHistogram`).

Input size, mean, std and embedding dimension are the model's own. Nothing is downloaded, and no weights are
unpickled freely. One grey image is embedded at once, so that a model that cannot take its stated input says
so before the data is read. After: embed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fm_eval.backbone import LoadedBackbone, Pooling, TimmBackbone, hash_state_dict
from fm_eval.checkpoint import read_checkpoint_folder
from fm_eval.errors import BackboneError
from fm_eval.foreign_code import from_class, from_hub
from fm_eval.hugging_face import is_transformers_folder, read_hugging_face_folder
from fm_eval.transformers_folder import ARCHITECTURE, read_transformers_folder, timm_names
from fm_eval.weights import load_strictly

# timm is imported where a model of its own is built: it costs seconds, and reports and class paths do without.


def load_backbone(
    name: str,
    *,
    weights: str | Path | None = None,
    random_weights: bool = False,
    seed: int = 0,
    pooling: Pooling | None = None,
    input_size_px: int | None = None,
    args: Mapping[str, Any] | None = None,
) -> LoadedBackbone:
    """Build a backbone from a folder, a timm name or a class path.

    Args:
        name: an existing folder, a timm architecture, or the dotted path of a class (its name begins in upper case).
        weights: state dict file for a timm architecture; None gives seeded random weights.
        random_weights: ignore a checkpoint folder's weights and draw random ones: its untrained twin.
        seed: of random weights.
        pooling: how tokens become one embedding (see `TimmBackbone`).
        input_size_px: another input size than the model's own; a ViT's position embedding is resampled to it.
        args: constructor arguments of the class or of the timm architecture; for a torch hub folder `entry` and the
            arguments of that entry, and `mean` and `std` where the model does not know them.

    Raises:
        BackboneError: nothing of that name, or weights that do not fit.
    """
    args = dict(args or {})
    if input_size_px is not None and input_size_px < 1:
        raise BackboneError(f"backbone {name}: got input_size_px {input_size_px}, at least 1 needed")
    folder = Path(name)
    if folder.is_dir() and (folder / "hubconf.py").is_file() and not (folder / "backbone.json").is_file():
        _refuse(name, "a torch hub folder", weights=weights, random_weights=random_weights)
        loaded = from_hub(folder, args=args, seed=seed, pooling=pooling, input_size_px=input_size_px)
    elif folder.is_dir() and (folder / "config.json").is_file() and not (folder / "backbone.json").is_file():
        _refuse(name, "a Hugging Face folder", weights=weights, random_weights=random_weights, args=args)
        read = _from_transformers if is_transformers_folder(folder) else _from_hugging_face
        loaded = read(folder, pooling=pooling, input_size_px=input_size_px)
    elif folder.is_dir():
        if weights is not None or args:
            raise BackboneError(f"checkpoint {name}: the folder says it all; weights and args are for timm names")
        loaded = _from_folder(folder, random_weights, seed, pooling, input_size_px)
    elif "/" not in name and name.rpartition(".")[2][:1].isupper():
        if weights is not None or pooling is not None or random_weights or input_size_px is not None:
            raise BackboneError(
                f"backbone {name}: weights, random_weights, pooling and input_size_px are for timm models; use its args"
            )
        loaded = from_class(name, args=args)
    else:
        import timm

        if not timm.is_model(name.split(".")[0]):
            raise BackboneError(
                f"backbone {name!r}: no such folder, timm {timm.__version__} architecture or class path"
            )
        loaded = _from_timm(name, args, weights, seed, pooling, input_size_px)
    return dataclasses.replace(loaded, embed_dim=_try_one_image(name, loaded))


def _refuse(name: str, what: str, **given: object) -> None:
    for argument, value in given.items():
        if value:
            raise BackboneError(f"backbone {name}: {what} takes no {argument}")


def _from_folder(
    folder: Path, random_weights: bool, seed: int, pooling: Pooling | None, input_size_px: int | None
) -> LoadedBackbone:
    checkpoint = read_checkpoint_folder(folder)
    kwargs = checkpoint.architecture_kwargs | _size_argument(checkpoint.architecture, input_size_px)
    model = _create(checkpoint.architecture, kwargs, seed=seed)
    sha256, kind = checkpoint.sha256, "checkpoint"
    notes: tuple[str, ...] = ()
    if random_weights:
        sha256, kind = hash_state_dict(model), "random"
    else:
        notes = load_strictly(model, checkpoint.weights_path, may_resample=input_size_px is not None)
    width = getattr(model, "num_features", checkpoint.embed_dim)
    if width != checkpoint.embed_dim:
        raise BackboneError(
            f"checkpoint {folder}: backbone.json says embed_dim {checkpoint.embed_dim}, model has {width}"
        )
    provenance: dict[str, Any] = {"weights": kind, **checkpoint.provenance}
    if random_weights:
        provenance = {k: v for k, v in provenance.items() if k not in {"method", "step", "git_commit"}} | {"seed": seed}
    return _timm_backbone(
        model,
        architecture=checkpoint.architecture,
        kwargs=kwargs,
        mean=checkpoint.mean,
        std=checkpoint.std,
        input_size_px=input_size_px or checkpoint.input_size_px,
        pooling=pooling,
        sha256=sha256,
        provenance=provenance | _noted(notes),
    )


def _from_timm(
    name: str,
    args: dict[str, Any],
    weights: str | Path | None,
    seed: int,
    pooling: Pooling | None,
    input_size_px: int | None,
) -> LoadedBackbone:
    from timm.data.config import resolve_model_data_config

    args = args | _size_argument(name, input_size_px)
    model = _create(name, args, seed=seed)
    data = resolve_model_data_config(model)  # type: ignore[no-untyped-call]
    provenance: dict[str, Any] = {"architecture": name, "architecture_kwargs": args}
    if weights is None:
        provenance |= {"weights": "random", "seed": seed}
    else:
        notes = load_strictly(model, Path(weights), may_resample=input_size_px is not None)
        provenance |= {"weights": Path(weights).name, **_noted(notes)}
    size = input_size_px or args.get("img_size", data["input_size"][-1])
    if not isinstance(size, int):
        raise BackboneError(f"backbone {name}: got img_size {size!r}, expected one int (inputs are square)")
    return _timm_backbone(
        model,
        architecture=name,
        kwargs=args,
        mean=tuple(data["mean"]),
        std=tuple(data["std"]),
        input_size_px=size,
        pooling=pooling,
        sha256=hash_state_dict(model),
        provenance=provenance,
    )


def _from_hugging_face(folder: Path, *, pooling: Pooling | None, input_size_px: int | None) -> LoadedBackbone:
    found = read_hugging_face_folder(folder)
    kwargs = found.architecture_kwargs | _size_argument(found.architecture, input_size_px)
    model = _create(found.architecture, {"num_classes": found.num_classes, **kwargs}, seed=0)
    notes = load_strictly(model, found.weights_path, may_resample=input_size_px is not None)
    model.reset_classifier(0)  # type: ignore[operator]
    provenance = {"architecture": found.architecture, "architecture_kwargs": kwargs, "weights": found.weights_path.name}
    return _timm_backbone(
        model,
        architecture=found.architecture,
        kwargs=kwargs,
        mean=found.mean,
        std=found.std,
        input_size_px=input_size_px or found.input_size_px,
        pooling=pooling,
        sha256=hash_state_dict(model),
        provenance=provenance | {"source": folder.resolve().name} | _noted(notes),
    )


def _from_transformers(folder: Path, *, pooling: Pooling | None, input_size_px: int | None) -> LoadedBackbone:
    found = read_transformers_folder(folder)
    size = input_size_px or found.input_size_px
    kwargs = found.architecture_kwargs | {"img_size": size}
    model = _create(ARCHITECTURE, kwargs, seed=0)
    for module in model.modules():
        if isinstance(module, nn.LayerNorm):
            module.eps = found.norm_eps
    # its own library resamples positions for every input, so the file's grid is often another
    notes = load_strictly(model, found.weights_path, may_resample=True, rename=timm_names)
    provenance = {"architecture": ARCHITECTURE, "architecture_kwargs": kwargs, "weights": found.weights_path.name}
    return _timm_backbone(
        model,
        architecture=ARCHITECTURE,
        kwargs=kwargs | {"norm_eps": found.norm_eps},
        mean=found.mean,
        std=found.std,
        input_size_px=size,
        pooling=pooling,
        sha256=hash_state_dict(model),
        provenance=provenance | {"source": folder.resolve().name} | _noted(notes),
    )


def _timm_backbone(
    model: nn.Module,
    *,
    architecture: str,
    kwargs: Mapping[str, Any],
    mean: tuple[float, ...],
    std: tuple[float, ...],
    input_size_px: int,
    pooling: Pooling | None,
    sha256: str,
    provenance: dict[str, Any],
) -> LoadedBackbone:
    wrapped = TimmBackbone(model, mean=mean, std=std, pooling=pooling)
    recipe = {
        "architecture": architecture.split(".")[0],  # the tag names weights, whose hash is known
        "architecture_kwargs": dict(kwargs),
        "mean": list(mean),
        "std": list(std),
        "pooling": wrapped.pooling,
    }
    return LoadedBackbone(wrapped, input_size_px, sha256, provenance | {"pooling": wrapped.pooling}, recipe)


def _size_argument(architecture: str, input_size_px: int | None) -> dict[str, Any]:
    """`img_size` where the architecture has a grid of positions; convolutions take any size."""
    if input_size_px is None:
        return {}
    with torch.device("meta"):
        model = _create(architecture, {}, seed=0)
    return {"img_size": input_size_px} if hasattr(model, "patch_embed") else {}


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


def _try_one_image(name: str, loaded: LoadedBackbone) -> int:
    """Embed one grey image; returns K."""
    size = loaded.input_size_px
    weights = loaded.model.parameters() if isinstance(loaded.model, nn.Module) else iter(())
    device = next((weight.device for weight in weights), torch.device("cpu"))
    grey = torch.full((1, size, size, 3), 128, dtype=torch.uint8, device=device)
    try:
        with torch.inference_mode():
            embedding = loaded.model(grey)
    except (RuntimeError, TypeError, ValueError, AssertionError) as error:
        reason = " ".join(str(error).split())[:200]
        raise BackboneError(
            f"backbone {name}: failed on one image of {size} x {size} ({reason}); check its input size"
        ) from error
    if not isinstance(embedding, Tensor) or embedding.ndim != 2 or len(embedding) != 1:
        got = tuple(embedding.shape) if isinstance(embedding, Tensor) else type(embedding).__name__
        raise BackboneError(f"backbone {name}: returned {got} for one image, expected (1, K)")
    return int(embedding.shape[1])


def _noted(notes: tuple[str, ...]) -> dict[str, Any]:
    return {"weights_notes": list(notes)} if notes else {}
