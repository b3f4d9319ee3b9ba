"""Is the teacher still better than the model that the training started from?

Continued training can destroy a good backbone while its loss looks healthy. The guard embeds a small folder of images
with the teacher at the start and every few epochs, and compares with the start: balanced leave-one-out k-NN accuracy
where the images have labels, else ODCorr (paper, section IV-D and equation 1), which is low where samples differ.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from ssl_train.embedding_metrics import knn_balanced_accuracy, off_diagonal_correlation, rankme
from ssl_train.monitors import Action, judge
from ssl_train.steps import StepCallback, epochs_completed

_SUFFIXES = {".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}


@dataclass(frozen=True, slots=True)
class GuardImages:
    """Images uint8 (N, 3, S, S), and their class numbers (N,) where the folder has classes."""

    images: Tensor
    labels: Tensor | None


def read_guard_folder(folder: str | Path, *, size_px: int, max_images: int) -> GuardImages:
    """Reads a folder of images, or one of folders of images, a class each.

    The shorter side is resized to `size_px` (bicubic, antialiased) and the middle cut out. Of more than `max_images`,
    equally many of each class are taken, spread evenly over its sorted names.

    Raises:
        ValueError: no such folder, fewer than two images or classes, or a file that is no image.
    """
    root = Path(folder)
    if not root.is_dir():
        raise ValueError(f"guard.folder {folder}: no such folder")
    classes = {sub.name: found for sub in sorted(root.iterdir()) if sub.is_dir() and (found := _images_in(sub))}
    flat = _images_in(root)
    if classes and flat:
        raise ValueError(f"guard.folder {folder}: images both in it and in folders of classes; keep one of the two")
    groups = list(classes.values()) or [flat]
    chosen = [_spread(group, max(1, max_images // len(groups))) for group in groups]
    if len(classes) == 1 or sum(map(len, chosen)) < 2:
        raise ValueError(
            f"guard.folder {folder}: {sum(map(len, groups))} images in {len(classes)} folders of classes; give at "
            "least two images in the folder itself, or two folders of classes"
        )
    images = torch.stack([_read(path, size_px) for group in chosen for path in group])
    labels = [number for number, group in enumerate(chosen) for _ in group]
    return GuardImages(images=images, labels=torch.tensor(labels) if classes else None)


def _images_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_file() and path.suffix.lower() in _SUFFIXES)


def _spread(paths: Sequence[Path], n: int) -> list[Path]:
    if len(paths) <= n:
        return list(paths)
    return [paths[i] for i in np.linspace(0, len(paths) - 1, n).round().astype(int)]


def _read(path: Path, size_px: int) -> Tensor:
    try:
        with Image.open(path) as opened:
            image = opened.convert("RGB")
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise ValueError(f"guard image {path}: cannot be read ({error}); replace or remove it") from error
    scale = size_px / min(image.size)
    width, height = (max(size_px, round(side * scale)) for side in image.size)
    image = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = (width - size_px) // 2, (height - size_px) // 2
    return torch.from_numpy(np.array(image.crop((left, top, left + size_px, top + size_px)))).permute(2, 0, 1)


class EmbeddingGuard(StepCallback):
    """Warns or stops where the teacher's embeddings are worse than those of the initial model.

    Logs `guard_odcorr`, `guard_rankme` and, with labels, `guard_knn`: once at the start, every few epochs, and at the
    last step. A resumed run goes on comparing with the start of the first one. Embedding draws no random numbers.

    Args:
        folder: images, or folders of images named by class; the guard is off where absent.
        every_n_epochs: epochs of the schedules between two readings.
        max_images: of the folder, at most.
        k: neighbours of the k-NN classifier.
        knn_tolerance: by how much the accuracy may be below the initial model's.
        odcorr_tolerance: share of what the initial model's ODCorr lies below 1 that may be lost, where there are no
            labels: 0.2 allows 0.6 from 0.5 on, and 0.92 from 0.9 on.
        batch_size: images embedded at once.
        action: `warn` at every such reading, or `stop`.
    """

    def __init__(
        self,
        *,
        folder: str | None = None,
        every_n_epochs: float = 1.0,
        max_images: int = 1_000,
        k: int = 20,
        knn_tolerance: float = 0.02,
        odcorr_tolerance: float = 0.2,
        batch_size: int = 64,
        action: Action = "warn",
    ) -> None:
        if every_n_epochs <= 0 or min(max_images, k, batch_size) < 1 or min(knn_tolerance, odcorr_tolerance) < 0:
            raise ValueError(
                "EmbeddingGuard: every_n_epochs must be above 0, max_images, k and batch_size at least 1 and "
                f"tolerances at least 0, got every_n_epochs={every_n_epochs}, max_images={max_images}, k={k}, "
                f"batch_size={batch_size}, tolerances {knn_tolerance} and {odcorr_tolerance}"
            )
        self._folder = folder
        self._every_n_epochs = every_n_epochs
        self._max_images = max_images
        self._k = k
        self._knn_tolerance = knn_tolerance
        self._odcorr_tolerance = odcorr_tolerance
        self._batch_size = batch_size
        self._action = action
        self._given: GuardImages | None = None
        self.initial: dict[str, float] | None = None

    def state_dict(self) -> dict[str, Any]:
        """What the initial model reached."""
        return {} if self.initial is None else {"initial": self.initial}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """A resumed run compares with the same start."""
        self.initial = state_dict["initial"]

    def on_fit_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Reads the images, so that a wrong folder is told before the first step."""
        if self._folder is not None:
            size_px = pl_module.input_size_px
            self._given = read_guard_folder(self._folder, size_px=size_px, max_images=self._max_images)

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Measures the initial model."""
        super().on_train_start(trainer, pl_module)
        if self._given is not None and self.initial is None:
            self.initial = self.measure(trainer, pl_module)
            for logger in trainer.loggers:
                logger.log_metrics({f"initial_{name}": value for name, value in self.initial.items()}, step=0)

    def on_step_end(self, trainer: pl.Trainer, pl_module: Any, step: int) -> None:
        """Measures the teacher where an epoch is over, and compares."""
        if self._given is None or self.initial is None:
            return
        turn = epochs_completed(step, epochs_per_step=pl_module.epochs_per_step, every_n_epochs=self._every_n_epochs)
        if not turn and step < trainer.max_steps:
            return
        now = self.measure(trainer, pl_module)
        pl_module.log_dict(now)
        if "guard_knn" in now:
            name, worse, sign = "guard_knn", self.initial["guard_knn"] - self._knn_tolerance, -1
        else:
            start = self.initial["guard_odcorr"]
            name, worse, sign = "guard_odcorr", start + self._odcorr_tolerance * (1 - start), 1
        if not np.isfinite(now[name]) or sign * now[name] > sign * worse:
            judge(
                f"step {step}: the teacher is worse than the initial model: {name} {now[name]:.3f} against "
                f"{self.initial[name]:.3f} at the start (bound {worse:.3f}); lower base_learning_rate, or give fresh "
                "heads a head_warmup",
                self._action,
            )

    @torch.no_grad()
    def measure(self, trainer: pl.Trainer, pl_module: Any) -> dict[str, float]:
        """The measures of the teacher as it is; rank 0's numbers on every rank."""
        assert self._given is not None, "only called with a folder"
        mean, std = (
            torch.tensor(values, device=pl_module.device)[:, None, None]
            for values in (pl_module.crops.mean, pl_module.crops.std)
        )
        parts = []
        for images in torch.split(self._given.images, self._batch_size):
            normalised = (images.to(pl_module.device).float() / 255 - mean) / std
            with trainer.precision_plugin.forward_context():
                parts.append(pl_module(normalised.to(pl_module.teacher.dtype)).float().cpu())
        embeddings = torch.cat(parts)
        if not embeddings.isfinite().all():
            found = {"guard_odcorr": float("nan"), "guard_rankme": float("nan")}
            return found if self._given.labels is None else {**found, "guard_knn": float("nan")}
        found = {"guard_odcorr": off_diagonal_correlation(embeddings), "guard_rankme": rankme(embeddings)}
        if self._given.labels is not None:
            found["guard_knn"] = knn_balanced_accuracy(embeddings, self._given.labels, k=self._k)
        return dict(trainer.strategy.broadcast(found))
