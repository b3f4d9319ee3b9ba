"""How does one backbone do on one dataset?

Embed once; then the linear probe by every protocol asked for, k-NN and the further heads that the task names,
label-free metrics on the reported split, principal components for the plot, thumbnails. Epochs are selected on val and
numbers reported on test; without a val split the test split also selects (the habit of eva), unless the protocol
selects on an inner part of train; the result says which.

Before: datasets, backbone, run_heads, unsupervised. After: result.
"""

from __future__ import annotations

import base64
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from io import BytesIO
from pathlib import Path
from platform import python_version
from typing import get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fm_eval.backbone import LoadedBackbone
from fm_eval.datasets import SPLITS, PatchDataset
from fm_eval.embed import EmbedSettings, Precision
from fm_eval.errors import ProbeError
from fm_eval.metrics import IntArray
from fm_eval.packing import pack
from fm_eval.protocol import ProbeProtocol
from fm_eval.result import EvalResult, Projection, ReportedRows, UnsupervisedResult
from fm_eval.run_heads import EmbeddedDataset, HeadName, run_few_shot, run_knn, run_logistic, run_probe, run_simpleshot
from fm_eval.store import describe, embed_dataset
from fm_eval.transform import TRANSFORM_NAME, resize_and_crop
from fm_eval.unsupervised import unsupervised_metrics

_PACKAGES = ("fm-eval", "torch", "timm", "numpy", "pillow", "scikit-learn")
_THUMBNAILS, _THUMBNAIL_PX = 4, 96
_POINTS = 2000


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalSettings:
    """How an evaluation is run.

    Attributes:
        seed: of probe heads and orders, drawings and the bootstrap.
        heads: further heads beside the linear probe and k-NN.
        resamples: of the bootstrap behind the intervals; 0 leaves them out.
        k: neighbours.
        temperature: of the weighted k-NN vote.
        batch_size: images a forward pass.
        device: for backbone and probe.
        devices: processes that embed, see `EmbedSettings`.
        threads: threads that decode images.
        precision: of the backbone: `fp32`, or `bf16` and `fp16` autocast.
        store: folder where embeddings are kept and looked up; None keeps nothing.
        progress: show progress bars.
    """

    seed: int = 0
    heads: tuple[HeadName, ...] = ("simpleshot",)
    resamples: int = 1000
    k: int = 20
    temperature: float = 0.07
    batch_size: int = 64
    device: str = "cpu"
    devices: int = 1
    threads: int = 4
    precision: Precision = "fp32"
    store: str | None = None
    progress: bool = False

    def __post_init__(self) -> None:
        unknown = [name for name in self.heads if name not in get_args(HeadName)]
        if unknown or self.resamples < 0:
            raise ProbeError(
                f"evaluate: got heads {unknown or list(self.heads)} and {self.resamples} resamples; allowed are "
                f"{', '.join(get_args(HeadName))} and 0 or more"
            )


def evaluate(
    dataset: PatchDataset,
    backbone: LoadedBackbone,
    *,
    name: str,
    role: str,
    protocols: Sequence[ProbeProtocol],
    settings: EvalSettings | None = None,
) -> EvalResult:
    """Evaluate a frozen backbone.

    Args:
        dataset: from `load_dataset`.
        backbone: from `load_backbone`.
        name: shown in reports.
        role: `trained`, `random`, `colour` or any other word that reports group by.
        protocols: at least one; the first one gives the headline number.
        settings: seed, k, device and the like.

    Raises:
        FmEvalError: an image, the backbone's output or a probe is not usable.
    """
    if not protocols:
        raise ProbeError("evaluate: no protocol given, at least one needed")
    settings = settings or EvalSettings()
    embedded = embed_dataset(
        dataset,
        backbone,
        store=None if settings.store is None else Path(settings.store),
        settings=EmbedSettings(
            batch_size=settings.batch_size,
            device=settings.device,
            devices=settings.devices,
            threads=settings.threads,
            precision=settings.precision,
            progress=settings.progress,
        ),
    )
    embeddings = embedded.values
    seconds = {"embed": embedded.seconds}
    data = EmbeddedDataset(
        embeddings=embeddings,
        labels=dataset.labels,
        groups=dataset.table["group_id"].to_numpy(dtype=str),
        rows={split: dataset.rows(split) for split in SPLITS if len(dataset.rows(split))},
        classes=len(dataset.classes),
    )
    common = {"seed": settings.seed, "resamples": settings.resamples}
    probes = [
        run_probe(protocol, data, **common, device=settings.device, progress=settings.progress)
        for protocol in protocols
    ]
    seconds |= {f"probe {probe.protocol['name']}": probe.seconds for probe in probes}
    start = time.perf_counter()
    knn = run_knn(data, k=settings.k, temperature=settings.temperature, **common)
    seconds["knn"] = time.perf_counter() - start
    heads = [
        run(data, **common)
        for name, run in (("simpleshot", run_simpleshot), ("logistic", run_logistic))
        if name in settings.heads
    ]
    few_shot = run_few_shot(data, seed=settings.seed) if "few-shot" in settings.heads else None
    seconds |= {head.name: head.seconds for head in heads}
    seconds |= {"few-shot": few_shot.seconds} if few_shot else {}
    reported = data.rows[data.reported]
    start = time.perf_counter()
    unsupervised = _unsupervised(embeddings[reported], data.reported)
    seconds["unsupervised"] = time.perf_counter() - start
    return EvalResult(
        name=name,
        role=role,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        dataset=_describe(dataset, data.rows) | {"embeddings": describe(embedded)},
        backbone={"weights_sha256": backbone.weights_sha256, **backbone.provenance},
        reported_split=data.reported,
        probes=probes,
        knn=knn,
        unsupervised=unsupervised,
        projection=_project(*data.part(reported), data.reported),
        examples=_examples(dataset, reported),
        settings=_recorded(settings) | {"transform": TRANSFORM_NAME, "input_size_px": backbone.input_size_px},
        versions={"python": python_version(), **{package: version(package) for package in _PACKAGES}},
        seconds={stage: round(value, 3) for stage, value in seconds.items()},
        heads=heads,
        few_shot=few_shot,
        reported_rows=ReportedRows(
            labels=pack(data.labels[reported]),
            groups=pack(np.unique(data.groups[reported], return_inverse=True)[1].astype(np.int64)),
        ),
    )


def _unsupervised(embeddings: NDArray[np.float32], split: str) -> UnsupervisedResult:
    metrics = unsupervised_metrics(embeddings)
    by_name = {metric.name: metric for metric in metrics}
    correlation, rank = by_name["odcorr"], by_name["rankme_uncentred"]
    return UnsupervisedResult(
        split=split,
        rows=len(embeddings),
        dim=embeddings.shape[1],
        odcorr=correlation.value,
        odcorr_undefined=correlation.undefined,
        odcorr_dropped_rows=int(correlation.details["dropped_rows"] or 0),
        odcorr_noise_floor=correlation.details["floor"],
        rankme=rank.value,
        rankme_undefined=rank.undefined,
        metrics=metrics,
    )


def _project(embeddings: NDArray[np.float32], labels: IntArray, split: str) -> Projection:
    """First two principal components; the sign is fixed so that the largest loading is positive."""
    if len(embeddings) > _POINTS:
        chosen = np.sort(np.random.default_rng(0).choice(len(embeddings), _POINTS, replace=False))
    else:
        chosen = np.arange(len(embeddings))
    centred = embeddings[chosen].astype(np.float64)
    centred -= centred.mean(axis=0)
    _, singular, axes = np.linalg.svd(centred, full_matrices=False)
    axes = axes[:2] * np.sign(axes[np.arange(len(axes[:2])), np.abs(axes[:2]).argmax(axis=1)])[:, None]
    points = np.zeros((len(chosen), 2))
    points[:, : len(axes)] = centred @ axes.T
    scale = float(np.abs(points).max()) or 1.0
    total = float((singular**2).sum()) or 1.0
    return Projection(
        split=split,
        x=[round(float(value), 4) for value in points[:, 0] / scale],
        y=[round(float(value), 4) for value in points[:, 1] / scale],
        labels=labels[chosen].tolist(),
        rows=len(embeddings),
        explained=[round(float(value), 4) for value in singular[:2] ** 2 / total],
    )


def _examples(dataset: PatchDataset, rows: IntArray) -> dict[str, list[str]]:
    """A few thumbnails of each class as base64 JPEG, spread over the split."""
    labels = dataset.labels[rows]
    examples: dict[str, list[str]] = {}
    for number, name in enumerate(dataset.classes):
        of_class = rows[labels == number]
        picks = of_class[np.linspace(0, len(of_class) - 1, min(_THUMBNAILS, len(of_class))).astype(int)]
        examples[name] = [_thumbnail(dataset.images.read(int(row))) for row in picks]
    return examples


def _thumbnail(image: Image.Image) -> str:
    buffer = BytesIO()
    Image.fromarray(resize_and_crop(image, size_px=_THUMBNAIL_PX)).save(buffer, "JPEG", quality=85)
    return base64.b64encode(buffer.getvalue()).decode("ascii")


def _recorded(settings: EvalSettings) -> dict[str, object]:
    """The settings without the place of the store, which says something of the machine and nothing of the numbers."""
    return {name: value for name, value in asdict(settings).items() if name != "store"}


def _describe(dataset: PatchDataset, rows: dict[str, IntArray]) -> dict[str, object]:
    counts = {
        split: np.bincount(dataset.labels[which], minlength=len(dataset.classes)).tolist()
        for split, which in rows.items()
    }
    return {
        "name": dataset.name,
        "layout": dataset.layout,
        "sha256": dataset.sha256,
        "classes": list(dataset.classes),
        "rows": {split: len(which) for split, which in rows.items()},
        "rows_by_class": counts,
        "groups": {split: dataset.table["group_id"].iloc[which].nunique() for split, which in rows.items()},
        "groups_known": dataset.groups_known,
        "order_note": dataset.order_note,
        "split_source": dataset.split_source,
        "identical_across_splits": dataset.identical_across_splits,
    }
