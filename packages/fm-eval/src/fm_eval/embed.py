"""How do N images become an (N, K) float32 array, quickly and without holding the images?

Threads decode and resize a few batches ahead; the backbone runs under `torch.inference_mode`, in bfloat16 or
float16 autocast if asked; on an accelerator a batch is copied there while the one before is computed, and its
embeddings come back while the next one is. Rows come back in the order of the images.

Several devices are several processes: see embed_processes. Before: datasets, transform, loading. After: store, which
keeps the rows, and label_free, which embeds a stream.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fm_eval.backbone import LoadedBackbone
from fm_eval.errors import BackboneError
from fm_eval.images import ImageFiles, Images, SelectedImages
from fm_eval.progress import progress_bar
from fm_eval.transform import resize_and_crop

Precision = Literal["fp32", "bf16", "fp16"]

_BATCHES_AHEAD = 3
_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbedSettings:
    """How images are embedded.

    Attributes:
        batch_size: images a forward pass.
        device: where the model runs.
        devices: processes that share the work batch by batch, on as many devices of that kind (`cuda`: the first
            ones) or, with `cpu`, on the cores; the rows are those of one.
        threads: threads that decode and resize, in each process.
        precision: `bf16` and `fp16` autocast: faster on accelerators, embeddings change in the third digit.
        progress: show a progress bar with images/s and time left.
    """

    batch_size: int = 64
    device: str = "cpu"
    devices: int = 1
    threads: int = 4
    precision: Precision = "fp32"
    progress: bool = False

    def __post_init__(self) -> None:
        if min(self.batch_size, self.devices, self.threads) < 1:
            raise BackboneError(
                f"embed: got batch_size={self.batch_size}, devices={self.devices}, threads={self.threads}; "
                "at least 1 needed"
            )
        if self.precision not in ("fp32", *_AUTOCAST):
            raise BackboneError(f"embed: got precision={self.precision!r}, allowed are fp32, bf16, fp16")


def embed_images(
    images: Images | Sequence[Path], backbone: LoadedBackbone, settings: EmbedSettings | None = None
) -> NDArray[np.float32]:
    """Embed images with a frozen backbone and hold the result in memory.

    Args:
        images: N images, or paths of image files.
        backbone: from `load_backbone`.
        settings: batch size, device, precision and the like.

    Returns:
        float32 (N, K) in the order of `images`.

    Raises:
        DatasetError: an image cannot be decoded.
        BackboneError: the backbone fails, or returns another shape or values that are not finite.
    """
    source = images if not isinstance(images, Sequence) else ImageFiles(images)
    if not len(source):
        raise BackboneError("embed: got 0 images, at least 1 needed")
    return np.concatenate(list(embed_batches(source, backbone, settings or EmbedSettings())))


def embed_batches(
    images: Images, backbone: LoadedBackbone, settings: EmbedSettings, *, done: int = 0
) -> Iterator[NDArray[np.float32]]:
    """Embed images batch by batch.

    Args:
        images: N images.
        backbone: from `load_backbone`.
        settings: batch size, device, precision and the like.
        done: images before these that the progress bar counts as done.

    Yields:
        float32 (B, K), in order; the last batch may be shorter.

    Raises:
        DatasetError: an image cannot be decoded.
        BackboneError: the backbone fails, or returns another shape or values that are not finite.
    """
    if settings.devices == 1:
        batches = embed_here(images, backbone, settings)
    else:
        from fm_eval.embed_processes import embed_in_processes  # which stands on this module

        batches = embed_in_processes(images, backbone, settings)
    start, width = 0, None
    with progress_bar(
        total=done + len(images), initial=done, desc="embed", unit="image", disable=not settings.progress
    ) as bar:
        for rows in batches:
            if width not in (None, rows.shape[1]):
                raise BackboneError(f"backbone: returned K={rows.shape[1]} after K={width}")
            width = rows.shape[1]
            _check_finite(rows, settings, SelectedImages(images, np.arange(start, start + len(rows))).name)
            yield rows
            start += len(rows)
            bar.update(len(rows))


def embed_here(images: Images, backbone: LoadedBackbone, settings: EmbedSettings) -> Iterator[NDArray[np.float32]]:
    """Embed images in this process, on one device; arguments and batches are those of `embed_batches`, unchecked.

    A device that is not there is told at once, not at the first batch.
    """
    device = _placed(backbone, settings)
    batches = _decoded_batches(images, backbone.input_size_px, settings.batch_size, settings.threads)
    started = (_forward(batch, backbone, device, settings.precision) for batch in batches)
    return (embeddings.numpy() for embeddings in _one_behind(started))


def embed_pixels(
    pixels: NDArray[np.uint8], backbone: LoadedBackbone, settings: EmbedSettings, *, name: Callable[[int], str]
) -> NDArray[np.float32]:
    """Embed one batch that has the backbone's input size.

    Args:
        pixels: uint8 (B, S, S, 3).
        backbone: from `load_backbone`.
        settings: device and precision; the others play no part.
        name: what messages call a row of the batch.

    Returns:
        float32 (B, K).

    Raises:
        BackboneError: the backbone fails, or returns another shape or values that are not finite.
    """
    rows: NDArray[np.float32] = _arrived(
        *_forward(pixels, backbone, _placed(backbone, settings), settings.precision)
    ).numpy()
    _check_finite(rows, settings, name)
    return rows


def _placed(backbone: LoadedBackbone, settings: EmbedSettings) -> torch.device:
    """The device of the settings, with the model on it."""
    device = _checked_device(settings.device)
    if isinstance(backbone.model, nn.Module):
        backbone.model.to(device)
    return device


def _check_finite(rows: NDArray[np.float32], settings: EmbedSettings, name: Callable[[int], str]) -> None:
    finite = np.isfinite(rows).all(axis=1)
    if not finite.all():
        raise BackboneError(
            f"backbone: the embedding of image {name(int(finite.argmin()))} holds NaN or infinity; "
            f"check weights and precision ({settings.precision})"
        )


def _checked_device(name: str) -> torch.device:
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        reason = str(error).strip().split("\n")[0]
        raise BackboneError(f"device {name}: not available ({reason}); use cpu") from error


def _forward(
    batch: NDArray[np.uint8], backbone: LoadedBackbone, device: torch.device, precision: Precision
) -> tuple[Tensor, torch.cuda.Event | None]:
    """Start one forward pass; on CUDA it is still running when this returns, and the event says when it ended."""
    pixels = torch.from_numpy(batch)
    cuda = device.type == "cuda"
    if cuda:
        pixels = pixels.pin_memory().to(device, non_blocking=True)
    try:
        with (
            torch.inference_mode(),
            torch.autocast(device.type, _AUTOCAST.get(precision), enabled=precision in _AUTOCAST),
        ):
            embeddings = backbone.model(pixels if cuda else pixels.to(device))
    except (RuntimeError, TypeError, AssertionError) as error:
        reason = str(error).strip().split("\n")[0]
        raise BackboneError(f"backbone: failed on uint8 {batch.shape} ({reason}); check its input size") from error
    if not isinstance(embeddings, Tensor) or embeddings.ndim != 2 or len(embeddings) != len(batch):
        got = tuple(embeddings.shape) if isinstance(embeddings, Tensor) else type(embeddings).__name__
        raise BackboneError(f"backbone: returned {got} for {len(batch)} images, expected ({len(batch)}, K)")
    if not cuda:
        return embeddings.float().cpu(), None
    on_host = torch.empty(embeddings.shape, dtype=torch.float32, pin_memory=True)
    on_host.copy_(embeddings, non_blocking=True)
    event = torch.cuda.Event()  # type: ignore[no-untyped-call]
    event.record()
    return on_host, event


def _one_behind(started: Iterator[tuple[Tensor, torch.cuda.Event | None]]) -> Iterator[Tensor]:
    """Hand out each result when the pass after it has started, so that the accelerator never waits for us."""
    waiting: deque[tuple[Tensor, torch.cuda.Event | None]] = deque()
    for result in started:
        waiting.append(result)
        if result[1] is None or len(waiting) > 1:
            yield _arrived(*waiting.popleft())
    while waiting:
        yield _arrived(*waiting.popleft())


def _arrived(embeddings: Tensor, event: torch.cuda.Event | None) -> Tensor:
    if event is not None:
        event.synchronize()
    return embeddings


def _decoded_batches(images: Images, size_px: int, batch_size: int, threads: int) -> Iterator[NDArray[np.uint8]]:
    """uint8 (B, S, S, 3) batches in order, decoded in threads at most a few batches ahead."""

    def decode(row: int) -> NDArray[np.uint8]:
        return resize_and_crop(images.read(row), size_px=size_px)

    pool = ThreadPoolExecutor(threads)
    try:
        waiting: deque[list[Future[NDArray[np.uint8]]]] = deque()
        for start in range(0, len(images), batch_size):
            rows = range(start, min(start + batch_size, len(images)))
            waiting.append([pool.submit(decode, row) for row in rows])
            if len(waiting) > _BATCHES_AHEAD:
                yield np.stack([future.result() for future in waiting.popleft()])
        while waiting:
            yield np.stack([future.result() for future in waiting.popleft()])
    finally:
        pool.shutdown(cancel_futures=True)
