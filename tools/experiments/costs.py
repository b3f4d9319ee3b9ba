"""What would an experiment cost at paper scale: how many GPU hours, how much disk?

Hours come from one measured throughput, brought to other models by their arithmetic: the multiplications of a step (the
teacher's forward pass on the global crops, the student's forward and backward pass on all crops) on the blocks of a
vision transformer. Heads and data loading are left out, and a model that uses its GPU better or worse than the measured
one is off by that much; whoever has run a model measures it (``--measured RUN``) and is told better.

Disk is counted: checkpoints hold weights of student and teacher with their heads and two moments of Adam, in float32;
exports the teacher's backbone; the patch cache what `online_patching.patch_cache` says of its bytes.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import yaml

from experiments.definition import CONFIGS, EXPERIMENTS, Run
from experiments.errors import ExperimentError

_HOUR = 3600.0
_GIB = 2**30
_FLOAT = 4
# Raw pixels, of which Zstandard keeps about half (`online_patching.patch_cache`).
_CACHED_SHARE = 0.5
# timm's sizes by name: embedding dimension, blocks.
_SIZES = {"tiny": (192, 12), "small": (384, 12), "base": (768, 12), "large": (1024, 24)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Throughput:
    """One measurement.

    Attributes:
        config: of the run that was measured.
        images_per_second: of one device.
        source: who measured what, where.
    """

    config: Mapping[str, Any]
    images_per_second: float
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What a run takes.

    Attributes:
        patches: that it sees.
        gpus: that it asks for.
        gpu_hours: over all of them.
        checkpoint_gib: of `last.ckpt`.
        exports_gib: of all exports.
        cache_gib: of the patch cache.
    """

    patches: int
    gpus: int
    gpu_hours: float
    checkpoint_gib: float
    exports_gib: float
    cache_gib: float

    @property
    def gib(self) -> float:
        """On the local disk."""
        return self.checkpoint_gib + self.exports_gib + self.cache_gib


def read_throughput(path: Path | None) -> Throughput:
    """A measurement: of a run's folder, of a YAML file, or the published one that is shipped.

    Args:
        path: the folder of a run of `ssl-train fit` (`config.yaml`, `logs/*/metrics.csv`), a YAML file with
            recipe, images_per_second and source, or None.

    Raises:
        ExperimentError: nothing was measured there.
    """
    if path is not None and path.is_dir():
        return _of_run(path)
    file = EXPERIMENTS / "throughput.yaml" if path is None else path
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
        config = yaml.safe_load((CONFIGS / content["recipe"]).read_text(encoding="utf-8"))
        rate = float(content["images_per_second"])
        source = str(content["source"])
    except (OSError, UnicodeDecodeError, yaml.YAMLError, KeyError, TypeError, ValueError) as error:
        raise ExperimentError(
            f"--measured {file}: has to be the folder of a run, or a YAML file with recipe, images_per_second (of one "
            f"GPU) and source ({' '.join(str(error).split())})"
        ) from error
    if not rate > 0:
        raise ExperimentError(f"--measured {file}: images_per_second is {rate}, allowed above 0")
    return Throughput(config=config, images_per_second=rate, source=source)


def _of_run(folder: Path) -> Throughput:
    rates = []
    for path in sorted(folder.glob("logs/*/metrics.csv")):
        with path.open(newline="", encoding="utf-8") as file:
            rates += [float(row["images_per_second"]) for row in csv.DictReader(file) if row.get("images_per_second")]
    config = folder / "config.yaml"
    if not rates or not config.is_file():
        raise ExperimentError(f"--measured {folder}: no config.yaml, or no images_per_second in logs/*/metrics.csv")
    content = yaml.safe_load(config.read_text(encoding="utf-8"))
    gpus = gpus_of(content)
    rate = median(rates) / gpus
    return Throughput(config=content, images_per_second=rate, source=f"median of {len(rates)} readings of {folder}")


def cost_of(run: Run, measured: Throughput) -> Cost:
    """What a run takes, by one measurement."""
    config = run.config
    gpus = gpus_of(config)
    patches = int(config["trainer"]["max_steps"]) * patches_per_step(config)
    rate = measured.images_per_second * step_macs(measured.config) / step_macs(config)
    stream = config["data"]["stream"]["init_args"]
    backbone = backbone_parameters(config)
    cached = int(stream.get("distinct_patches") or 0) if stream.get("cache") else 0
    return Cost(
        patches=patches,
        gpus=gpus,
        gpu_hours=patches / rate / _HOUR,
        # Student with two moments, and teacher.
        checkpoint_gib=4 * (backbone + head_parameters(config)) * _FLOAT / _GIB,
        exports_gib=_exports(config, patches) * backbone * _FLOAT / _GIB,
        cache_gib=cached * int(stream["size_px"]) ** 2 * 3 * _CACHED_SHARE / _GIB,
    )


def gpus_of(config: Mapping[str, Any]) -> int:
    """Devices of a config, over all its machines; one where it does not say."""
    trainer = config["trainer"]
    devices, nodes = trainer.get("devices", 1), trainer.get("num_nodes", 1)
    return (devices if isinstance(devices, int) else 1) * (nodes if isinstance(nodes, int) else 1)


def patches_per_step(config: Mapping[str, Any]) -> int:
    """Patches of one optimizer step."""
    accumulated = int(config["trainer"].get("accumulate_grad_batches") or 1)
    return int(config["data"]["batch_size"]) * gpus_of(config) * accumulated


def step_macs(config: Mapping[str, Any]) -> float:
    """Multiplications of a training step for one patch, in the blocks of student and teacher.

    A block of a vision transformer of width d on n tokens takes 12 n d^2 + 2 n^2 d; a backward pass twice as much as a
    forward pass.
    """
    dim, blocks = _width(config)
    patch_px = _patch_px(config)
    crops = config["model"]["init_args"]["crops"]["init_args"]
    global_px, local_px = int(crops.get("global_size_px", 224)), int(crops.get("local_size_px", 96))

    def forward(side_px: int) -> float:
        tokens = (side_px // patch_px) ** 2 + 1
        return float(blocks * (12 * tokens * dim**2 + 2 * tokens**2 * dim))

    # Two global crops through the teacher once and the student three times (forward and backward).
    return 2 * forward(global_px) * 4 + int(crops.get("n_locals", 8)) * forward(local_px) * 3


def backbone_parameters(config: Mapping[str, Any]) -> int:
    """Weights of the backbone, without biases and norms (under a hundredth)."""
    dim, blocks = _width(config)
    crops = config["model"]["init_args"]["crops"]["init_args"]
    patch_px = _patch_px(config)
    tokens = (int(crops.get("global_size_px", 224)) // patch_px) ** 2 + 1
    return blocks * 12 * dim**2 + 3 * patch_px**2 * dim + tokens * dim


def head_parameters(config: Mapping[str, Any]) -> int:
    """Weights of the projection head or heads: three layers and the prototypes."""
    dim, _ = _width(config)
    arguments = config["model"]["init_args"]
    if config["model"]["class_path"].endswith("DINOv2"):
        heads = [head for name in ("dino_head", "ibot_head") if (head := arguments.get(name))]
        sizes = [(int(head.get("out_dim", 65_536)), int(head.get("bottleneck_dim", 256)), 2048) for head in heads]
    else:
        sizes = [
            (
                int(arguments.get("out_dim", 65_536)),
                int(arguments.get("head_bottleneck_dim", 256)),
                int(arguments.get("head_hidden_dim", 2048)),
            )
        ]
    return sum(dim * hidden + hidden**2 + hidden * bottleneck + bottleneck * out for out, bottleneck, hidden in sizes)


def _exports(config: Mapping[str, Any], patches: int) -> float:
    every = float((config.get("exports") or {}).get("every_n_epochs", 1))
    return max(1.0, patches / int(config["model"]["init_args"]["epoch_size"]) / every)


def _width(config: Mapping[str, Any]) -> tuple[int, int]:
    arguments = config["model"]["init_args"]
    size = next((size for word, size in _SIZES.items() if f"_{word}_" in arguments["architecture"]), None)
    if size is None:
        raise ExperimentError(
            f"architecture {arguments['architecture']}: its costs are not known; allowed are timm's vision "
            f"transformers of the sizes {', '.join(_SIZES)}"
        )
    given = arguments.get("architecture_kwargs") or {}
    return int(given.get("embed_dim", size[0])), int(given.get("depth", size[1]))


def _patch_px(config: Mapping[str, Any]) -> int:
    arguments = config["model"]["init_args"]
    given = (arguments.get("architecture_kwargs") or {}).get("patch_size")
    if given is not None:
        return int(given)
    named = re.search(r"_patch(\d+)", arguments["architecture"])
    if named is None:
        raise ExperimentError(
            f"architecture {arguments['architecture']}: its costs are not known, since its name tells no size "
            "of patches; give patch_size among its architecture_kwargs"
        )
    return int(named[1])
