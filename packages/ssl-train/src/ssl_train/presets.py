"""In what does a run differ from a published recipe, and that from the one it came from?

A preset is a table: which argument of the config has which value, and where that is written. It changes nothing; a
config that names it (`preset: kaiko`) states its values itself, and the run prints two lists when it starts: what the
recipe deviates in from its parent, and what the run deviates in from the recipe.

Sources: "paper" is *Towards Large-Scale Training of Pathology Foundation Models* (arXiv 2404.15217), "DINO" is arXiv
2104.14294 with its code, facebookresearch/dino. What DINO's authors changed from their defaults for the models that
they released is in the argument files beside those.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

PresetName = Literal["meta", "kaiko", "kaiko-phase2"]
_MODEL = "model.init_args."
_CROPS = "model.init_args.crops.init_args."
_STREAM = "data.stream.init_args."
# Not arguments but what follows from several of them: see `derived`.
PATCHES_PER_STEP = "patches per step"
EPOCHS = "epochs"
# Stated by a preset where any value is as good as another, as long as there is one.
_GIVEN = "given"


@dataclass(frozen=True, slots=True)
class Setting:
    """A value of a recipe and where it is written."""

    value: Any
    source: str


@dataclass(frozen=True, slots=True)
class Difference:
    """One setting in which two recipes, or a recipe and a run, differ; `theirs` is None where it says nothing."""

    path: str
    theirs: Any
    ours: Any
    source: str

    def __str__(self) -> str:
        """One line: the argument without its sections, both values, the source."""
        name = self.path.removeprefix(_CROPS).removeprefix(_MODEL).removeprefix(_STREAM)
        return f"{name}: {_shown(self.theirs)} -> {_shown(self.ours)}" + (f"  [{self.source}]" if self.source else "")


def _settings(source: str, prefix: str = "", **values: Any) -> dict[str, Setting]:
    return {prefix + name: Setting(value, source) for name, value in values.items()}


_DEFAULTS = {
    **_settings(
        "DINO, main_dino.py",
        _MODEL,
        drop_path_rate=0.1,
        position_interpolation="dino",
        out_dim=65_536,
        head_use_bn=False,
        base_learning_rate=5e-4,
        min_learning_rate=1e-6,
        warmup_epochs=10,
        weight_decay=0.04,
        weight_decay_end=0.4,
        teacher_momentum=0.996,
        warmup_teacher_temp=0.04,
        freeze_last_layer_epochs=1,
    ),
    **_settings("DINO, DINOLoss and DINOHead", _MODEL, student_temp=0.1, center_momentum=0.9),
    **_settings(
        "DINO, DataAugmentationDINO",
        _CROPS,
        global_size_px=224,
        local_size_px=96,
        jitter_p=0.8,
        brightness=0.4,
        contrast=0.4,
        saturation=0.2,
        hue=0.1,
        grey_p=0.2,
        blur_p=(1.0, 0.1, 0.5),
        solarise_p=0.2,
        dihedral=False,
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
    ),
    **_settings("DINO, released models", _CROPS, n_locals=10, global_scale=(0.25, 1.0), local_scale=(0.05, 0.25)),
    **_settings("DINO, released models", _MODEL, init_weights=None, teacher_temp=0.07),
    EPOCHS: Setting(100, "DINO, main_dino.py"),
}
_SMALL = {
    **_settings("DINO, released S", _MODEL, norm_last_layer=False, clip_grad=0.0, warmup_teacher_temp_epochs=30),
    EPOCHS: Setting(800, "DINO, released S"),
    PATCHES_PER_STEP: Setting(1024, "DINO, released S"),
}
_RELEASED = {
    "vit_small_patch16": _SMALL,
    "vit_small_patch8": _SMALL,
    "vit_base_patch16": {
        **_settings(
            "DINO, released B/16",
            _MODEL,
            norm_last_layer=True,
            clip_grad=0.3,
            base_learning_rate=7.5e-4,
            warmup_teacher_temp_epochs=50,
        ),
        EPOCHS: Setting(400, "DINO, released B/16"),
        PATCHES_PER_STEP: Setting(1024, "DINO, released B/16"),
    },
    "vit_base_patch8": {
        **_settings(
            "DINO, released B/8",
            _MODEL,
            norm_last_layer=True,
            clip_grad=3.0,
            warmup_teacher_temp=0.03,
            warmup_teacher_temp_epochs=50,
        ),
    },
}
# Patches per GPU and GPUs (paper, section IV-C).
_KAIKO_BATCH = {
    "vit_small_patch16": (256, 4),
    "vit_small_patch8": (64, 4),
    "vit_base_patch16": (128, 4),
    "vit_base_patch8": (32, 8),
}


def recipe(preset: PresetName, architecture: str) -> dict[str, Setting]:
    """The settings of a preset for an architecture, by the path of the argument in the config.

    Raises:
        ValueError: no such preset, or the preset has no recipe for the architecture.
    """
    if preset not in get_args(PresetName):
        raise ValueError(f"preset {preset!r}: none of {', '.join(get_args(PresetName))}")
    family = next((name for name in _RELEASED if architecture.startswith(name + "_")), None)
    if family is None:
        raise ValueError(
            f"preset {preset!r}: no recipe for architecture {architecture!r}; it has one for "
            f"{', '.join(_RELEASED)}; leave the preset out"
        )
    settings = {**_DEFAULTS, **_RELEASED[family]}
    if preset == "meta":
        return settings
    per_gpu, gpus = _KAIKO_BATCH[family]
    section = "paper, section IV-C"
    published = settings[f"{_MODEL}base_learning_rate"].value
    settings |= {
        **_settings(f"{section} (i)", _MODEL, init_weights=_GIVEN),
        **_settings(f"{section} (ii): a tenth", _MODEL, base_learning_rate=published / 10),
        **_settings(f"{section} (iii)", _STREAM, size_px=256, min_foreground=0.4),
        # 5x, 10x, 20x and 40x.
        **_settings(f"{section} (iv)", _STREAM, mpp=(2.0, 1.0, 0.5, 0.25)),
        **_settings(f"{section} (v)", _CROPS, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)),
        **_settings(f"{section}: the ImageNet epoch", _MODEL, epoch_size=1_280_000),
        PATCHES_PER_STEP: Setting(per_gpu * gpus, f"{section}: {per_gpu} on each of {gpus} GPUs"),
        EPOCHS: Setting(100, f"{section}: phase 1"),
    }
    if preset == "kaiko-phase2":
        half = published / 20
        settings |= _settings(f"{section}: phase 2, half of phase 1", _MODEL, base_learning_rate=half)
        settings[EPOCHS] = Setting(100, f"{section}: phase 2")
    return settings


def parent(preset: PresetName) -> PresetName | None:
    """The preset that a preset is described against."""
    parents: dict[PresetName, PresetName] = {"kaiko": "meta", "kaiko-phase2": "kaiko"}
    return parents.get(preset)


def deviations(preset: PresetName, architecture: str) -> list[Difference]:
    """What a preset changes of its parent, in the order of the arguments."""
    older = parent(preset)
    if older is None:
        return []
    before = recipe(older, architecture)
    found = []
    for path, setting in recipe(preset, architecture).items():
        theirs = before.get(path)
        if theirs is None or not _same(theirs.value, setting.value):
            found.append(Difference(path, None if theirs is None else theirs.value, setting.value, setting.source))
    return found


def differences(preset: PresetName, architecture: str, run: Mapping[str, Any]) -> list[Difference]:
    """In what a run differs from a preset.

    Args:
        preset: the recipe.
        architecture: timm name.
        run: values of the config by path (`flatten`), and what follows from them (`derived`).
    """
    found = []
    for path, setting in recipe(preset, architecture).items():
        ours = run.get(path)
        if setting.value == _GIVEN:
            if ours is None:
                found.append(Difference(path, _GIVEN, None, setting.source))
        elif not _same(setting.value, ours):
            found.append(Difference(path, setting.value, ours, setting.source))
    return found


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested sections as one table from dotted paths to values."""
    flat: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat


def derived(*, max_steps: int, patches_per_step: int, epoch_size: int) -> dict[str, Any]:
    """What a recipe states, but a config only implies."""
    return {PATCHES_PER_STEP: patches_per_step, EPOCHS: max_steps * patches_per_step / epoch_size}


def report(preset: PresetName, architecture: str, run: Mapping[str, Any]) -> str:
    """What is printed when a run starts."""
    lines = [f"preset {preset} for {architecture}"]
    older = parent(preset)
    if older is not None:
        lines.append(f"{preset} differs from {older} in")
        lines += [f"  {difference}" for difference in deviations(preset, architecture)]
    found = differences(preset, architecture, run)
    lines.append(f"this run differs from {preset} in" if found else f"this run does not differ from {preset}")
    lines += [f"  {Difference(d.path, d.theirs, d.ours, '')}" for d in found]
    return "\n".join(lines)


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        return len(a) == len(b) and all(map(_same, a, b))
    if _is_number(a) and _is_number(b):
        return math.isclose(a, b, rel_tol=1e-6)
    return bool(a == b)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _shown(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, (list, tuple)):
        return "(" + ", ".join(map(_shown, value)) + ")"
    return f"{value:g}" if isinstance(value, float) else str(value)
