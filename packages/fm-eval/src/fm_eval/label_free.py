"""How good are embeddings of patches that nobody labelled, straight from a stream?

The paper's Fig. 4: ODCorr on patches of unlabelled slides, over the checkpoints of a training run. The stream is read
once; every backbone embeds each patch when it comes, and neither patches nor embeddings are kept.

Before: contract, embed, unsupervised. After: label_free_cli.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from fm_eval.atomic import replace_file
from fm_eval.backbone import LoadedBackbone
from fm_eval.contract import PatchStream, samples_of
from fm_eval.embed import EmbedSettings, embed_pixels
from fm_eval.errors import DatasetError, ResultError
from fm_eval.progress import progress_bar
from fm_eval.transform import TRANSFORM_NAME, resize_and_crop
from fm_eval.unsupervised import UnsupervisedMetric, UnsupervisedStream

FORMAT = "fm-eval-label-free"
FORMAT_VERSION = 1
_PACKAGES = ("fm-eval", "torch", "timm", "numpy", "pillow")
_READER = "label-free"

Sample = dict[str, Any]


def measure_stream(
    stream: PatchStream, backbones: Mapping[str, LoadedBackbone], *, count: int, settings: EmbedSettings
) -> dict[str, Any]:
    """Every label-free metric of several backbones on the same patches.

    Args:
        stream: of patches; what it serves beside `image` is counted where it is `slide_id` or `mpp`.
        backbones: by the name that the result calls them.
        count: patches to take; a finite stream may end before.
        settings: batch size, device, precision and the like; one device.

    Returns:
        JSON-able: `metrics` and provenance of each model by its name, what the stream was, seconds, versions.

    Raises:
        DatasetError: the stream fails, serves no uint8 images (H, W, 3), or fewer than two patches.
        BackboneError: a backbone fails, or returns another shape or values that are not finite.
        MetricError: a backbone's embeddings change their dimension.
    """
    if count < 2:
        raise DatasetError(f"{_READER}: got count {count}, at least 2 needed: the metrics compare patches")
    began = time.perf_counter()
    state = stream.state_dict()
    metrics = {name: UnsupervisedStream() for name in backbones}
    slides: set[str] = set()
    magnifications: dict[str, int] = {}
    taken = 0
    with (
        ThreadPoolExecutor(settings.threads) as pool,
        progress_bar(total=count, desc="embed", unit="patch", disable=not settings.progress) as bar,
    ):
        for batch in _batches(stream, count, settings.batch_size):
            images, titles = [_image(sample) for sample in batch], [_name(sample) for sample in batch]
            for name, backbone in backbones.items():
                cut = pool.map(partial(resize_and_crop, size_px=backbone.input_size_px), images)
                rows = embed_pixels(np.stack(list(cut)), backbone, settings, name=titles.__getitem__)
                metrics[name].update(rows)
            taken += len(batch)
            slides |= {str(sample["slide_id"]) for sample in batch if "slide_id" in sample}
            for sample in batch:
                if "mpp" in sample:
                    key = f"{sample['mpp']:g}"
                    magnifications[key] = magnifications.get(key, 0) + 1
            bar.update(len(batch))
    if taken < 2:
        raise DatasetError(f"{_READER}: the stream ended after {taken} patches, at least 2 needed")
    return {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "patches": taken,
        "stream": {
            "class_path": f"{type(stream).__module__}.{type(stream).__qualname__}",
            "state": state,
            "slides": len(slides),
            "patches_by_mpp": magnifications,
        },
        "models": {
            name: {
                "metrics": [asdict(metric) for metric in metrics[name].result()],
                "embed_dim": metrics[name].features,
                "input_size_px": backbone.input_size_px,
                "weights_sha256": backbone.weights_sha256,
                "recipe": backbone.recipe,
                "backbone": backbone.provenance,
            }
            for name, backbone in backbones.items()
        },
        "transform": TRANSFORM_NAME,
        "precision": settings.precision,
        "seconds": round(time.perf_counter() - began, 3),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {package: version(package) for package in _PACKAGES},
    }


def write_label_free(result: dict[str, Any], path: Path) -> None:
    """Write a result as JSON.

    Raises:
        ResultError: the file cannot be written.
    """
    try:
        with replace_file(path) as temporary:
            temporary.write_text(json.dumps(result, indent=1, default=str) + "\n", encoding="utf-8")
    except OSError as error:
        raise ResultError(f"output {path}: cannot be written ({error.strerror or error})") from error


def summary_line(name: str, model: Mapping[str, Any]) -> str:
    """The metrics of one model of a result in one line."""
    metrics = [UnsupervisedMetric(**metric) for metric in model["metrics"]]
    shown = [f"{m.name} " + (f"undefined ({m.undefined})" if m.value is None else f"{m.value:.4g}") for m in metrics]
    return f"{name}: {', '.join(shown)}"


def _batches(stream: PatchStream, count: int, batch_size: int) -> Iterator[list[Sample]]:
    samples = islice(samples_of(stream, reader=_READER), count)
    while batch := list(islice(samples, batch_size)):
        yield batch


def _image(sample: Sample) -> Image.Image:
    image = np.asarray(sample.get("image"))
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] != 3:
        raise DatasetError(
            f"{_READER}: {_name(sample)}: image must be uint8 (H, W, 3), got {image.dtype} {image.shape}"
        )
    return Image.fromarray(image)


def _name(sample: Sample) -> str:
    return f"sample {sample.get('index', '?')} of the stream"
