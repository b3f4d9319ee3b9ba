"""Trains the U-Net that finds tissue on thumbnails, on drawn views alone.

Steps: draw a library of textures and a pool of views (`foreground_scene`), of which a few are drawn anew at every
step; cut, turn and light them in other ways, bring their glass to one colour (`online_patching.tissue_glass`); learn
by cross entropy; average the weights over the steps; write ONNX (`foreground_net`); choose the threshold on drawn
views that were not trained on and, with ``--development``, on real images that neither train nor score the network
(`foreground_development`); write what was measured beside it. One core, no real image trains unless ``--images``
names a folder of thumbnails: those are labelled where two classical rules agree (`foreground_images`).

    uv run --group foreground python tools/train_foreground.py --output net.onnx --development ../shared/data
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from foreground_development import development_cases, development_score
from foreground_images import pseudo_labelled
from foreground_net import ForegroundNet, export
from foreground_scene import Scene, Texture, paint_textures, scene
from online_patching.tissue import UNET_UNKNOWN_SCALES
from online_patching.tissue_glass import COMMON_GLASS, glass_colour, like_its_glass, on_common_glass
from online_patching.tissue_onnx import OnnxTissue
from torch import Tensor

VIEW_PX = 160
CUT_PX = 128
VALIDATION_VIEWS = 256
THRESHOLDS = np.round(np.arange(0.2, 0.81, 0.05), 2)


@dataclass(frozen=True, slots=True)
class Settings:
    """What one training is: everything that its weights depend on."""

    steps: int = 3600
    batch: int = 16
    fresh: int = 1
    pool: int = 2000
    rate: float = 4e-3
    seed: int = 0


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the program."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="ONNX file to write; a .json appears beside it")
    parser.add_argument("--steps", type=int, default=Settings().steps)
    parser.add_argument("--seed", type=int, default=Settings().seed)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--images", type=Path, help="folder of thumbnails (.png, .jpg) to learn from as well")
    parser.add_argument("--development", type=Path, help="folder of real images that help to choose the threshold")
    parser.add_argument("--start", type=Path, help="weights (.pt) of an earlier training to go on from")
    given = parser.parse_args(arguments)
    torch.set_num_threads(given.threads)
    cv2.setNumThreads(given.threads)
    torch.use_deterministic_algorithms(True)
    settings = Settings(steps=given.steps, seed=given.seed)
    begun = time.perf_counter()
    real: list[Scene] = []
    if given.images is not None:
        real = pseudo_labelled(given.images, size_px=VIEW_PX, rng=np.random.default_rng(given.seed))
    textures = paint_textures(np.random.default_rng([settings.seed, 1]))
    net = train(settings, textures, real, start=given.start)
    report: dict[str, Any] = {"opencv_minus_torch": export(net, given.output)}
    drawn = validate(net, textures, seed=settings.seed)
    real_scores = [{"score": 0.0} for _ in THRESHOLDS]
    if given.development is not None:
        real_scores = development(given.output, given.development)
    chosen = int(np.argmax([a + b["score"] for a, b in zip(drawn, real_scores, strict=True)]))
    report |= {"threshold": float(THRESHOLDS[chosen]), "validation_iou": drawn[chosen]}
    report["development"] = real_scores[chosen]
    report["all_thresholds"] = {
        f"{t:g}": [round(a, 4), round(b["score"], 4)] for t, a, b in zip(THRESHOLDS, drawn, real_scores, strict=True)
    }
    report |= {"steps": settings.steps, "seed": settings.seed, "seconds": round(time.perf_counter() - begun)}
    report["parameters"] = sum(p.numel() for p in net.parameters())
    report["real_images"] = 0 if given.images is None else len(real)
    torch.save(net.state_dict(), given.output.with_suffix(".pt"))
    given.output.with_suffix(".json").write_text(json.dumps(report, indent=1))
    print(json.dumps(report, indent=1))


def train(
    settings: Settings, textures: Sequence[Texture], real: Sequence[Scene] = (), *, start: Path | None = None
) -> ForegroundNet:
    """Learns from drawn views; returns the average of the weights over the steps, which is steadier than the last."""
    rng = np.random.default_rng([settings.seed, 2])
    torch.manual_seed(settings.seed)
    net = ForegroundNet().to(memory_format=torch.channels_last)
    if start is not None:
        net.load_state_dict(torch.load(start, weights_only=True))
    average = copy.deepcopy(net)
    optimizer = torch.optim.AdamW(net.parameters(), lr=settings.rate, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, settings.rate, total_steps=settings.steps + 1, pct_start=0.15
    )
    pool = [scene(rng, textures, size_px=VIEW_PX) for _ in range(settings.pool)]
    begun, running = time.perf_counter(), 0.0
    for step in range(settings.steps):
        for _ in range(settings.fresh):
            pool[int(rng.integers(len(pool)))] = scene(rng, textures, size_px=VIEW_PX)
        views = [pool[int(k)] for k in rng.integers(len(pool), size=settings.batch)]
        if real:
            views[: settings.batch // 4] = [real[int(k)] for k in rng.integers(len(real), size=settings.batch // 4)]
        image, tissue, certain = _batch([augmented(view, rng) for view in views])
        loss = _loss(net(image), tissue, certain)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        _average(average, net, keep=min(0.995, (step + 1) / (step + 10)))
        running += (float(loss.detach()) - running) * max(0.02, 1 / (step + 1))
        if step % 100 == 99:
            print(f"step {step + 1}: loss {running:.4f}, {time.perf_counter() - begun:.0f} s", flush=True)
    return average.eval()


def validate(
    net: ForegroundNet, textures: Sequence[Texture], *, seed: int, views: int = VALIDATION_VIEWS
) -> list[float]:
    """Mean of per-view intersection over union at every one of `THRESHOLDS`, on views of another seed."""
    rng = np.random.default_rng([seed, 3])
    drawn = [scene(rng, textures, size_px=VIEW_PX) for _ in range(views)]
    scores = np.zeros((views, len(THRESHOLDS)))
    for number, view in enumerate(drawn):
        image, tissue, certain = _batch([Scene(on_common_glass(view.image), view.tissue, view.certain)])
        with torch.no_grad():
            probability = torch.sigmoid(net(image))
        for column, threshold in enumerate(THRESHOLDS):
            found, wanted = ((probability > threshold) & (certain > 0)), ((tissue > 0) & (certain > 0))
            # One pixel of grace, so that views without tissue count too.
            shared, either = float((found & wanted).sum()), float((found | wanted).sum())
            scores[number, column] = (shared + 50) / (either + 50)
    return [float(each) for each in scores.mean(axis=0)]


def development(network: Path, folder: Path) -> list[dict[str, float]]:
    """`development_score` at every one of `THRESHOLDS`, through OpenCV as the package runs it."""
    cases, finder = development_cases(folder), OnnxTissue(network, unknown_scales=UNET_UNKNOWN_SCALES)
    values = [finder.probability(on_common_glass(case.image), case.mpp) for case in cases]
    # As `tissue` does: where the resolution is known.
    glass = [
        like_its_glass(case.image, each) if case.mpp is not None else np.zeros(each.shape, np.bool_)
        for case, each in zip(cases, values, strict=True)
    ]
    return [
        development_score(cases, [(each, (each > t) & ~alike) for each, alike in zip(values, glass, strict=True)])
        for t in THRESHOLDS
    ]


def _batch(views: Sequence[Scene]) -> tuple[Tensor, Tensor, Tensor]:
    image = np.stack([view.image for view in views]).transpose(0, 3, 1, 2).astype(np.float32) / 255
    labels: list[npt.NDArray[np.float32]] = [
        np.stack(masks)[:, None].astype(np.float32) for masks in ([v.tissue for v in views], [v.certain for v in views])
    ]
    return (
        torch.from_numpy(image).to(memory_format=torch.channels_last),
        torch.from_numpy(labels[0]),
        torch.from_numpy(labels[1]),
    )


def augmented(view: Scene, rng: np.random.Generator) -> Scene:
    """A cut of a view, one of the eight ways to lay it, its glass at one colour, in other light."""
    top, left = (int(rng.integers(side - CUT_PX + 1)) for side in view.tissue.shape)
    turns, mirrored = int(rng.integers(4)), bool(rng.integers(2))
    image, tissue, certain = (
        np.rot90(each[top : top + CUT_PX, left : left + CUT_PX][:, :: -1 if mirrored else 1], turns)
        for each in (view.image, view.tissue, view.certain)
    )
    # The estimate for a whole slide differs from one for a view, most of all if the view is full of tissue.
    colour = glass_colour(view.image) * (1 + rng.normal(0, 0.012, 3)) * rng.uniform(0.97, 1.04)
    if view.tissue.mean() > 0.7:
        colour = colour * max(1.0, rng.uniform(0.7, 1.35))
    levels = np.arange(256, dtype=np.float32)[:, None] * (COMMON_GLASS / colour)
    table = np.clip(COMMON_GLASS * (levels / COMMON_GLASS) ** rng.uniform(0.8, 1.25), 0, 255).astype(np.uint8)
    light = cv2.LUT(np.ascontiguousarray(image), table[None])
    return Scene(np.asarray(light, np.uint8), tissue, certain)


def _loss(logit: Tensor, tissue: Tensor, certain: Tensor) -> Tensor:
    entropy = F.binary_cross_entropy_with_logits(logit, tissue, reduction="none")
    return (entropy * certain).sum() / certain.sum().clamp(min=1)


@torch.no_grad()
def _average(average: ForegroundNet, net: ForegroundNet, *, keep: float) -> None:
    for mean, latest in zip(average.state_dict().values(), net.state_dict().values(), strict=True):
        if mean.is_floating_point():
            mean.mul_(keep).add_(latest, alpha=1 - keep)
        else:
            mean.copy_(latest)


if __name__ == "__main__":
    main()
