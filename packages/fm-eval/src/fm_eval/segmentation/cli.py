"""The command `fm-eval segment`: a data set and a backbone in, `result.json` and pictures out."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any, Literal

from fm_eval.loading import load_backbone
from fm_eval.segmentation.decoder import DecoderName
from fm_eval.segmentation.evaluate import segment as evaluate
from fm_eval.segmentation.labels import LabelKind
from fm_eval.segmentation.layouts import load_segmentation_dataset
from fm_eval.segmentation.result import write_segmentation
from fm_eval.segmentation.settings import SegmentSettings


def segment(
    *,
    data: str,
    backbone: str,
    output: str = "segmentation",
    name: str | None = None,
    role: str = "trained",
    classes: dict[str, list[int]] | None = None,
    labels: LabelKind = "semantic",
    stratify: str | None = None,
    weights: str | None = None,
    random_weights: bool = False,
    backbone_args: dict[str, Any] | None = None,
    decoder: DecoderName = "mask2former",
    window_px: int = 224,
    stride_px: int = 194,
    crops_per_image: int = 32,
    runs: int = 3,
    max_runs: int = 6,
    steps: int = 2000,
    batch_size: int = 16,
    learning_rate: float = 1e-3,
    weight_decay: float = 0.05,
    clip_norm: float = 1.0,
    decoder_layers: int = 9,
    points: int = 12_544,
    seed: int = 0,
    split_seed: int = 0,
    device: str = "cpu",
    threads: int = 4,
    precision: Literal["fp32", "bf16"] = "fp32",
    pictures: int = 6,
    progress: bool = True,
) -> None:
    """Train light decoders on a frozen backbone's tokens and write how well they segment.

    Args:
        data: CoNSeP's folder, or one with images/ and labels/.
        backbone: checkpoint folder, timm name, or class path.
        output: folder for result.json, pictures, tokens and states of runs; an interrupted command goes on there.
        name: shown in reports; the backbone by default.
        role: what reports compare: trained, random or any other word.
        classes: class name to label values, background first; CoNSeP has the paper's.
        labels: whether label PNGs hold class numbers or number the objects.
        stratify: column of index.csv whose values keep their shares in a split that is made.
        weights: state dict file for a timm name.
        random_weights: a checkpoint folder's architecture with random weights, its untrained twin.
        backbone_args: arguments of the timm architecture or class.
        decoder: mask2former, conv or linear.
        window_px: side of crops and windows.
        stride_px: of the test grid.
        crops_per_image: random crops of each training image whose tokens are kept; 0 draws new ones every step.
        runs: converged runs that are wanted.
        max_runs: runs after which it is given up.
        steps: optimizer steps of a run.
        batch_size: crops a step.
        learning_rate: highest rate.
        weight_decay: of AdamW.
        clip_norm: largest norm of the gradients.
        decoder_layers: of mask2former.
        points: that mask2former's matching and losses sample.
        seed: of random weights, crops, orders, decoders and points.
        split_seed: of the split that is made when the layout has none.
        device: cpu, cuda, ...
        threads: threads that decode images.
        precision: of backbone and decoder.
        pictures: test images that the result shows.
        progress: show progress bars.
    """
    settings = SegmentSettings(
        decoder=decoder,
        window_px=window_px,
        stride_px=stride_px,
        crops_per_image=crops_per_image,
        runs=runs,
        max_runs=max_runs,
        steps=steps,
        batch_size=batch_size,
        learning_rate=learning_rate,
        weight_decay=weight_decay,
        clip_norm=clip_norm,
        decoder_layers=decoder_layers,
        points=points,
        seed=seed,
        device=device,
        bf16=precision == "bf16",
        pictures=pictures,
        progress=progress,
    )
    dataset = load_segmentation_dataset(
        data, classes=classes, labels=labels, stratify=stratify, split_seed=split_seed, threads=threads
    )
    loaded = load_backbone(backbone, weights=weights, random_weights=random_weights, seed=seed, args=backbone_args)
    result = evaluate(
        dataset,
        loaded,
        name=name or Path(backbone).name,
        role=role,
        folder=output,
        settings=settings,
        tell=functools.partial(print, flush=True),
    )
    path = Path(output) / "result.json"
    write_segmentation(result, path)
    mean = result.summary()["dice_pooled"]
    spread = "" if mean["std"] is None else f" ± {mean['std']:.3f}"
    counted = f"{len(result.converged)} of {len(result.runs)} runs converged"
    value = "undefined" if mean["mean"] is None else f"{mean['mean']:.3f}{spread}"
    print(f"{result.name}: test dice_pooled {value}, {counted} -> {path}")
