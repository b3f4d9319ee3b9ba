"""How well does a light decoder segment from the frozen tokens of one backbone?

Tokens of the test grids and of the training crops once; then decoders are trained one after the other until as
many as wanted have converged, at most `max_runs`; each predicts every held-out image. Val, where there is one,
is scored and chooses nothing.

Before: layouts, features, decoder, training, prediction. After: result, cli.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path
from platform import python_version
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from fm_eval.backbone import LoadedBackbone
from fm_eval.errors import ResultError
from fm_eval.packing import pack
from fm_eval.progress import progress_bar
from fm_eval.segmentation.encoder import WindowEncoder
from fm_eval.segmentation.features import (
    FreshBatches,
    StoredBatches,
    TokenStore,
    Window,
    crop_windows,
    open_tokens,
)
from fm_eval.segmentation.layouts import SegmentationDataset
from fm_eval.segmentation.pictures import as_base64, png_bytes, side_by_side
from fm_eval.segmentation.prediction import Grids, Predictor
from fm_eval.segmentation.result import Picture, SegmentationResult, SegmentationRun
from fm_eval.segmentation.settings import SegmentSettings, build_decoder
from fm_eval.segmentation.training import TrainSettings, judge, single_class_dice, train_decoder
from fm_eval.segmentation.windows import grid_corners

_PACKAGES = ("fm-eval", "torch", "timm", "numpy", "pillow", "scipy")
_HELD_OUT = ("val", "test")
_CHECKED_WINDOWS = 64
_PICTURE_HEIGHT_PX = 320
# What the weights of a run do not depend on.
_FREE_SETTINGS = {"runs", "max_runs", "stride_px", "pictures", "progress", "device"}


def segment(
    dataset: SegmentationDataset,
    backbone: LoadedBackbone,
    *,
    name: str,
    role: str,
    folder: str | Path,
    settings: SegmentSettings | None = None,
    tell: Callable[[str], None] | None = None,
) -> SegmentationResult:
    """Evaluate a frozen backbone by segmentation.

    Args:
        dataset: from `load_segmentation_dataset`.
        backbone: from `load_backbone`; it must give patch tokens.
        name: shown in reports.
        role: `trained`, `random` or any other word.
        folder: holds tokens, states of runs and pictures; a call that was stopped goes on from what lies there.
        settings: windows, decoder, training.
        tell: is given a line for people after each stage.

    Raises:
        FmEvalError: images, backbone, settings or the folder cannot be used.
    """
    settings, folder, tell = settings or SegmentSettings(), Path(folder), tell or (lambda _: None)
    names = dataset.classes.names
    start = time.perf_counter()
    encoder = WindowEncoder(backbone, window_px=settings.window_px, device=settings.device, bf16=settings.bf16)
    tokens_of = partial(open_tokens, folder / "tokens", dataset=dataset, encoder=encoder, progress=settings.progress)
    grids = {split: _grids(split, dataset, settings, tokens_of) for split in _HELD_OUT if dataset.of_split(split)}
    (checked, check_labels), batches = _training_windows(dataset, encoder, settings, tokens_of)
    seconds = {"tokens": time.perf_counter() - start}

    build = partial(build_decoder, settings, embed_dim=encoder.embed_dim, grid=encoder.grid, classes=len(names))
    parameters = sum(parameter.numel() for parameter in build(run=0).parameters())
    side = encoder.grid
    tell(f"{settings.decoder}: {parameters:,} parameters on {side} x {side} tokens of {encoder.embed_dim}")
    floor = single_class_dice(np.bincount(check_labels.numpy().ravel(), minlength=len(names)).tolist())
    runs: list[SegmentationRun] = []
    pictures: list[Picture] = []
    for run in range(settings.max_runs):
        predictor = Predictor(
            decoder=build(run=run).to(settings.device),
            classes=len(names),
            window_px=settings.window_px,
            batch_size=settings.batch_size,
            device=settings.device,
            bf16=settings.bf16,
        )
        outcome, shown = _run(
            predictor,
            batches,
            dataset,
            grids,
            settings,
            run=run,
            check=partial(predictor.window_dice, checked, check_labels),
            floor=floor,
            state_path=folder / "runs" / f"run_{run}.pt",
            fingerprint=_fingerprint(dataset, encoder, settings),
        )
        if not runs or (outcome.not_converged is None and all(other.not_converged for other in runs)):
            pictures = _pictures(dataset, grids["test"], shown, folder / "pictures", run=run)
        runs.append(outcome)
        seconds[f"run {run}"] = outcome.train_seconds + outcome.test_seconds
        tell(_line(outcome))
        if sum(each.not_converged is None for each in runs) == settings.runs:
            break
    return SegmentationResult(
        name=name,
        role=role,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        dataset=_describe(dataset),
        backbone={"weights_sha256": backbone.weights_sha256, **backbone.provenance},
        decoder={"name": settings.decoder, "parameters": parameters, "grid": encoder.grid},
        reported_split="test",
        wanted_runs=settings.runs,
        runs=runs,
        pictures=pictures,
        settings=asdict(settings),
        versions={"python": python_version(), **{package: version(package) for package in _PACKAGES}},
        seconds={stage: round(value, 3) for stage, value in seconds.items()},
        groups=pack(np.unique([image.group_id for image in dataset.of_split("test")], return_inverse=True)[1]),
    )


def _run(
    predictor: Predictor,
    batches: StoredBatches | FreshBatches,
    dataset: SegmentationDataset,
    grids: dict[str, Grids],
    settings: SegmentSettings,
    *,
    run: int,
    check: Callable[[], float | None],
    floor: float,
    state_path: Path,
    fingerprint: str,
) -> tuple[SegmentationRun, list[NDArray[np.uint8]]]:
    """Train and test one decoder; its predictions of the first test images come along."""
    with progress_bar(total=settings.steps, desc=f"run {run}", unit="step", disable=not settings.progress) as bar:
        progress = train_decoder(
            predictor.decoder,
            batches,
            TrainSettings(
                steps=settings.steps,
                learning_rate=settings.learning_rate,
                weight_decay=settings.weight_decay,
                clip_norm=settings.clip_norm,
                bf16=settings.bf16,
            ),
            run=run,
            seed=settings.seed,
            device=settings.device,
            check=check,
            state_path=state_path,
            fingerprint=fingerprint,
            on_step=lambda step: bar.update(step - bar.n),
        )
    start = time.perf_counter()
    tested = {split: predictor.test(dataset, grid, keep=settings.pictures) for split, grid in grids.items()}
    outcome = SegmentationRun(
        run=run,
        not_converged=judge(progress, floor=floor),
        steps=progress.step,
        losses=progress.losses,
        checks=progress.checks,
        scores={split: found.scores for split, found in tested.items()},
        train_seconds=round(progress.seconds, 3),
        test_seconds=round(time.perf_counter() - start, 3),
        counts=pack(tested["test"].counts),
    )
    return outcome, tested["test"].predicted


def _grids(
    split: str, dataset: SegmentationDataset, settings: SegmentSettings, tokens_of: Callable[..., TokenStore]
) -> Grids:
    images, size, stride = dataset.of_split(split), settings.window_px, settings.stride_px
    corners = [
        grid_corners(max(image.height_px, size), max(image.width_px, size), window_px=size, stride_px=stride)
        for image in images
    ]
    windows = [Window(image, corner) for image, of_image in zip(images, corners, strict=True) for corner in of_image]
    return Grids(images, corners, tokens_of(windows, name=split))


def _training_windows(
    dataset: SegmentationDataset,
    encoder: WindowEncoder,
    settings: SegmentSettings,
    tokens_of: Callable[..., TokenStore],
) -> tuple[tuple[Tensor, Tensor], StoredBatches | FreshBatches]:
    """A fixed sample that shows how training goes, and what each step trains on."""
    images, seed = dataset.of_split("train"), settings.seed
    crops = crop_windows(images, window_px=settings.window_px, crops_per_image=settings.crops_per_image or 1, seed=seed)
    store = tokens_of(crops, name="train")
    count = min(_CHECKED_WINDOWS, len(store))
    sample = store.read(np.linspace(0, len(store) - 1, count).round().astype(np.int64))
    if settings.crops_per_image == 0:
        return sample, FreshBatches(images, dataset, encoder, batch_size=settings.batch_size, seed=seed)
    return sample, StoredBatches(store, batch_size=settings.batch_size, seed=seed)


def _pictures(
    dataset: SegmentationDataset, grids: Grids, predicted: Sequence[NDArray[np.uint8]], folder: Path, *, run: int
) -> list[Picture]:
    pictures = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for image, prediction in zip(grids.images, predicted, strict=False):
            picture = side_by_side(*dataset.read(image), prediction)
            (folder / f"{image.image_id}.png").write_bytes(png_bytes(picture))
            small = as_base64(png_bytes(picture, height_px=_PICTURE_HEIGHT_PX))
            pictures.append(Picture(image_id=image.image_id, run=run, png=small))
    except OSError as error:
        raise ResultError(f"pictures {folder}: cannot be written ({error.strerror or error})") from error
    return pictures


def _fingerprint(dataset: SegmentationDataset, encoder: WindowEncoder, settings: SegmentSettings) -> str:
    chosen = {key: value for key, value in asdict(settings).items() if key not in _FREE_SETTINGS}
    content = json.dumps([encoder.identity, dataset.sha256, chosen], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()


def _describe(dataset: SegmentationDataset) -> dict[str, Any]:
    return {
        "name": dataset.root.resolve().name,
        "sha256": dataset.sha256,
        "classes": list(dataset.classes.names),
        "images": {split: len(dataset.of_split(split)) for split in ("train", *_HELD_OUT)},
        "split_source": dataset.split_source,
        # where none is given, an image's group is its own name
        "groups_known": any(image.group_id != image.image_id for image in dataset.images),
    }


def _line(run: SegmentationRun) -> str:
    scores = asdict(run.scores["test"])
    values = (
        f"{name} {value:.3f}" for name, value in scores.items() if name.startswith("dice") and isinstance(value, float)
    )
    verdict = f"not converged ({run.not_converged})" if run.not_converged else "converged"
    return f"run {run.run}: {', '.join(values)}; {run.train_seconds:.1f} s + {run.test_seconds:.1f} s; {verdict}"
