"""How do N image files become an (N, K) float32 array, quickly and without holding the images?

Threads decode and resize a few batches ahead; the backbone runs under `torch.inference_mode`, in bfloat16
autocast if asked. Rows come back in the order of the index. Before: datasets, transform, backbone. After:
probe, knn, metrics.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from tqdm import tqdm

from fm_eval.backbone import LoadedBackbone
from fm_eval.errors import BackboneError
from fm_eval.transform import load_rgb, resize_and_crop

_BATCHES_AHEAD = 3


def embed_images(
    paths: list[Path],
    backbone: LoadedBackbone,
    *,
    batch_size: int = 64,
    device: str | torch.device = "cpu",
    threads: int = 4,
    bf16: bool = False,
    progress: bool = False,
) -> NDArray[np.float32]:
    """Embed image files with a frozen backbone.

    Args:
        paths: N image files.
        backbone: from `load_backbone`.
        batch_size: images a forward pass.
        device: where the model runs.
        threads: threads that decode and resize.
        bf16: autocast to bfloat16 (faster on accelerators; embeddings change in the third digit).
        progress: show a progress bar with images/s and time left.

    Returns:
        float32 (N, K) in the order of `paths`.

    Raises:
        DatasetError: an image cannot be decoded.
        BackboneError: the backbone fails, or returns another shape or values that are not finite.
    """
    if min(batch_size, threads) < 1 or not paths:
        raise BackboneError(f"embed: got batch_size={batch_size}, threads={threads}, {len(paths)} images; 1 needed")
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).strip().split("\n")[0]
        raise BackboneError(f"device {device}: not available ({reason}); use cpu") from error
    model = backbone.model
    if isinstance(model, nn.Module):
        model.to(device)
    kind = torch.device(device).type
    out: list[NDArray[np.float32]] = []
    with (
        torch.inference_mode(),
        torch.autocast(kind, torch.bfloat16, enabled=bf16),
        tqdm(total=len(paths), desc="embed", unit="image", disable=not progress) as bar,
    ):
        for batch in _decoded_batches(paths, backbone.input_size_px, batch_size=batch_size, threads=threads):
            try:
                embeddings = model(torch.from_numpy(batch).to(device))
            except (RuntimeError, TypeError, AssertionError) as error:
                reason = str(error).strip().split("\n")[0]
                raise BackboneError(
                    f"backbone: failed on uint8 {batch.shape} ({reason}); check its input size"
                ) from error
            out.append(_checked(embeddings, batch, out))
            bar.update(len(batch))
    return np.concatenate(out)


def _decoded_batches(paths: list[Path], size_px: int, *, batch_size: int, threads: int) -> Iterator[NDArray[np.uint8]]:
    """uint8 (B, S, S, 3) batches in order, decoded in threads at most a few batches ahead."""

    def decode(path: Path) -> NDArray[np.uint8]:
        return resize_and_crop(load_rgb(path), size_px=size_px)

    pool = ThreadPoolExecutor(threads)
    try:
        waiting: deque[list[Future[NDArray[np.uint8]]]] = deque()
        for start in range(0, len(paths), batch_size):
            waiting.append([pool.submit(decode, path) for path in paths[start : start + batch_size]])
            if len(waiting) > _BATCHES_AHEAD:
                yield np.stack([future.result() for future in waiting.popleft()])
        while waiting:
            yield np.stack([future.result() for future in waiting.popleft()])
    finally:
        pool.shutdown(cancel_futures=True)


def _checked(embeddings: object, batch: NDArray[np.uint8], earlier: list[NDArray[np.float32]]) -> NDArray[np.float32]:
    if not isinstance(embeddings, torch.Tensor) or embeddings.ndim != 2 or len(embeddings) != len(batch):
        got = tuple(embeddings.shape) if isinstance(embeddings, torch.Tensor) else type(embeddings).__name__
        raise BackboneError(f"backbone: returned {got} for {len(batch)} images, expected ({len(batch)}, K)")
    array: NDArray[np.float32] = embeddings.float().cpu().numpy()
    if earlier and array.shape[1] != earlier[0].shape[1]:
        raise BackboneError(f"backbone: returned K={array.shape[1]} after K={earlier[0].shape[1]}")
    if not np.isfinite(array).all():
        first = sum(map(len, earlier)) + int((~np.isfinite(array).all(axis=1)).argmax())
        raise BackboneError(
            f"backbone: the embedding of image {first} holds NaN or infinity; check weights and precision"
        )
    return array
