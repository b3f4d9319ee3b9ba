"""How does one backbone do on one dataset?

Embed once; then probe by every protocol asked for, k-NN, ODCorr and RankMe on the reported split, principal
components for the plot, thumbnails. Epochs are selected on val and numbers reported on test; without a val
split the test split also selects (the habit of eva), which the result says.

Before: datasets, backbone. After: result.
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

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fm_eval.backbone import LoadedBackbone
from fm_eval.datasets import SPLITS, PatchDataset
from fm_eval.embed import embed_images
from fm_eval.errors import MetricError, ProbeError
from fm_eval.knn import knn_predict
from fm_eval.metrics import IntArray, accuracy, balanced_accuracy, confusion_matrix, odcorr, rankme
from fm_eval.probe import LinearProbe
from fm_eval.protocol import ProbeProtocol
from fm_eval.result import EvalResult, KnnResult, ProbeResult, Projection, Scores, UnsupervisedResult
from fm_eval.transform import TRANSFORM_NAME, load_rgb, resize_and_crop

_PACKAGES = ("fm-eval", "torch", "timm", "numpy", "pillow", "scikit-learn")
_THUMBNAILS, _THUMBNAIL_PX = 4, 96
_POINTS = 2000


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalSettings:
    """How an evaluation is run.

    Attributes:
        seed: of probe heads and orders.
        k: neighbours.
        temperature: of the weighted k-NN vote.
        batch_size: images a forward pass.
        device: for backbone and probe.
        threads: threads that decode images.
        bf16: embed in bfloat16 autocast.
        progress: show progress bars.
    """

    seed: int = 0
    k: int = 20
    temperature: float = 0.07
    batch_size: int = 64
    device: str = "cpu"
    threads: int = 4
    bf16: bool = False
    progress: bool = False


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
    start = time.perf_counter()
    embeddings = embed_images(
        dataset.paths,
        backbone,
        batch_size=settings.batch_size,
        device=settings.device,
        threads=settings.threads,
        bf16=settings.bf16,
        progress=settings.progress,
    )
    seconds = {"embed": time.perf_counter() - start}
    rows = {split: dataset.rows(split) for split in SPLITS if len(dataset.rows(split))}
    reported = "test" if "test" in rows else "val"
    probes = [_probe(protocol, embeddings, dataset, rows, settings) for protocol in protocols]
    seconds |= {f"probe {probe.protocol['name']}": probe.seconds for probe in probes}
    start = time.perf_counter()
    knn = _knn(embeddings, dataset, rows, settings)
    seconds["knn"] = time.perf_counter() - start
    start = time.perf_counter()
    unsupervised = _unsupervised(embeddings[rows[reported]], reported)
    seconds["unsupervised"] = time.perf_counter() - start
    return EvalResult(
        name=name,
        role=role,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        dataset=_describe(dataset, rows),
        backbone={"weights_sha256": backbone.weights_sha256, **backbone.provenance},
        reported_split=reported,
        probes=probes,
        knn=knn,
        unsupervised=unsupervised,
        projection=_project(embeddings[rows[reported]], dataset.labels[rows[reported]], reported),
        examples=_examples(dataset, rows[reported]),
        settings={**asdict(settings), "transform": TRANSFORM_NAME, "input_size_px": backbone.input_size_px},
        versions={"python": python_version(), **{package: version(package) for package in _PACKAGES}},
        seconds={stage: round(value, 3) for stage, value in seconds.items()},
    )


def _probe(
    protocol: ProbeProtocol,
    embeddings: NDArray[np.float32],
    dataset: PatchDataset,
    rows: dict[str, IntArray],
    settings: EvalSettings,
) -> ProbeResult:
    start = time.perf_counter()
    labels, train = dataset.labels, rows["train"]
    selected_on = "val" if "val" in rows else "test"
    probe = LinearProbe(
        protocol,
        classes=len(dataset.classes),
        seed=settings.seed,
        device=settings.device,
        progress=settings.progress,
    ).fit(embeddings[train], labels[train], embeddings[rows[selected_on]], labels[rows[selected_on]])
    scores = {
        split: _scores(labels[which], probe.predict(embeddings[which]), len(dataset.classes))
        for split, which in rows.items()
    }
    return ProbeResult(
        protocol=asdict(protocol),
        seed=settings.seed,
        selected_on=selected_on,
        scores=scores,
        runs=[asdict(run) for run in probe.runs_],
        seconds=round(time.perf_counter() - start, 3),
    )


def _scores(labels: IntArray, predicted_RN: IntArray, classes: int) -> Scores:
    matrices = [confusion_matrix(labels, predicted, classes=classes) for predicted in predicted_RN]
    balanced = [balanced_accuracy(matrix).value for matrix in matrices]
    plain = [accuracy(matrix).value for matrix in matrices]
    return Scores(
        balanced_accuracy=[value for value in balanced if value is not None],
        accuracy=[value for value in plain if value is not None],
        confusion=[matrix.tolist() for matrix in matrices],
    )


def _knn(
    embeddings: NDArray[np.float32], dataset: PatchDataset, rows: dict[str, IntArray], settings: EvalSettings
) -> KnnResult:
    labels, train, classes = dataset.labels, rows["train"], len(dataset.classes)
    majority: dict[str, Scores] = {}
    softmax: dict[str, Scores] = {}
    k, undefined = settings.k, None
    try:
        for split in (split for split in rows if split != "train"):
            found = knn_predict(
                embeddings[train],
                labels[train],
                embeddings[rows[split]],
                classes=classes,
                k=settings.k,
                temperature=settings.temperature,
            )
            k = found.k
            majority[split] = _scores(labels[rows[split]], found.majority[None], classes)
            softmax[split] = _scores(labels[rows[split]], found.softmax[None], classes)
    except MetricError as error:
        majority, softmax, undefined = {}, {}, str(error)
    return KnnResult(k=k, temperature=settings.temperature, majority=majority, softmax=softmax, undefined=undefined)


def _unsupervised(embeddings: NDArray[np.float32], split: str) -> UnsupervisedResult:
    correlation, rank = odcorr(embeddings), rankme(embeddings)
    return UnsupervisedResult(
        split=split,
        rows=len(embeddings),
        dim=embeddings.shape[1],
        odcorr=correlation.metric.value,
        odcorr_undefined=correlation.metric.undefined,
        odcorr_dropped_rows=correlation.dropped_rows,
        odcorr_noise_floor=correlation.noise_floor,
        rankme=rank.value,
        rankme_undefined=rank.undefined,
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
        examples[name] = [_thumbnail(dataset.paths[row]) for row in picks]
    return examples


def _thumbnail(path: Path) -> str:
    buffer = BytesIO()
    Image.fromarray(resize_and_crop(load_rgb(path), size_px=_THUMBNAIL_PX)).save(buffer, "JPEG", quality=85)
    return base64.b64encode(buffer.getvalue()).decode("ascii")


def _describe(dataset: PatchDataset, rows: dict[str, IntArray]) -> dict[str, object]:
    counts = {
        split: np.bincount(dataset.labels[which], minlength=len(dataset.classes)).tolist()
        for split, which in rows.items()
    }
    return {
        "name": dataset.root.resolve().name,
        "sha256": dataset.sha256,
        "classes": list(dataset.classes),
        "rows": {split: len(which) for split, which in rows.items()},
        "rows_by_class": counts,
        "groups": {split: dataset.table["group_id"].iloc[which].nunique() for split, which in rows.items()},
        "split_source": dataset.split_source,
        "identical_across_splits": dataset.identical_across_splits,
    }
