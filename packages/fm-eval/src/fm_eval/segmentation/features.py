"""Where do the tokens of a window come from, and how often does the frozen backbone run?

Once a window: the crops that training draws and the grids that testing needs are known beforehand, so their
tokens are computed in one pass and kept in half precision in a file that all runs and decoders share. Its name
is a hash of all that the tokens depend on; an interrupted pass goes on at the row where it stopped. Memory is
bounded by a batch of windows and the images that are decoded ahead. `FreshBatches` is the other protocol, new
crops at every step, which has to run the backbone every time.

Before: layouts, windows, encoder. After: training, evaluate.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby, islice
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fm_eval.errors import ResultError
from fm_eval.progress import progress_bar
from fm_eval.result import write_atomically
from fm_eval.segmentation.encoder import WindowEncoder
from fm_eval.segmentation.layouts import LabelledImage, SegmentationDataset
from fm_eval.segmentation.windows import Corner, cut, pad_to_window, random_corners

Pair = tuple[NDArray[np.uint8], NDArray[np.uint8]]
"""Image (S, S, 3) and class numbers (S, S)."""

_T = TypeVar("_T")

_IMAGES_AHEAD = 2
_IMAGES_KEPT = 64
_BATCHES_BETWEEN_MARKS = 16


@dataclass(frozen=True, slots=True)
class Window:
    """A square of one image."""

    image: LabelledImage
    corner: Corner


class TokenStore:
    """Tokens and labels of a list of windows, in files.

    Rows are indexed like the windows. Open one with `open_tokens`.
    """

    def __init__(self, folder: Path) -> None:
        self._tokens = np.load(folder / "tokens.npy", mmap_mode="r")
        self._labels = np.load(folder / "labels.npy", mmap_mode="r")

    def __len__(self) -> int:
        return len(self._labels)

    def read(self, rows: Sequence[int] | NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """Tokens float32 (B, K, h, w) and class numbers int64 (B, S, S) of some rows."""
        rows = np.asarray(rows)
        return torch.from_numpy(self._tokens[rows]).float(), torch.from_numpy(self._labels[rows]).long()


def open_tokens(
    folder: Path,
    windows: Sequence[Window],
    dataset: SegmentationDataset,
    encoder: WindowEncoder,
    *,
    batch_size: int = 32,
    progress: bool = False,
    name: str = "windows",
) -> TokenStore:
    """Tokens of some windows: those that an earlier call left in the folder, the rest computed now.

    Args:
        folder: holds one folder for each set of windows and backbone.
        windows: windows of one image stand together.
        dataset: reads the images.
        encoder: gives the tokens.
        batch_size: windows a forward pass.
        progress: show a progress bar.
        name: shown beside it.

    Raises:
        BackboneError: tokens that cannot be used.
        ResultError: the folder cannot be written.
    """
    rows = "".join(f"{window.image.image_id} {window.corner}\n" for window in windows)
    key = hashlib.sha256(f"{encoder.identity} {dataset.sha256}\n{rows}".encode()).hexdigest()[:24]
    folder = folder / key
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _fill(folder, windows, dataset, encoder, batch_size=batch_size, progress=progress, name=name)
    except OSError as error:
        raise ResultError(f"tokens {folder}: cannot be written ({error.strerror or error})") from error
    return TokenStore(folder)


def _fill(
    folder: Path,
    windows: Sequence[Window],
    dataset: SegmentationDataset,
    encoder: WindowEncoder,
    *,
    batch_size: int,
    progress: bool,
    name: str,
) -> None:
    mark = folder / "rows.json"
    done = _rows_done(mark)
    if done == len(windows):
        return
    size, grid = encoder.window_px, encoder.grid
    mode = "r+" if done else "w+"
    tokens, labels = (
        np.lib.format.open_memmap(folder / f"{part}.npy", mode=mode, dtype=dtype, shape=(len(windows), *shape))
        for part, dtype, shape in (
            ("tokens", np.float16, (encoder.embed_dim, grid, grid)),
            ("labels", np.uint8, (size, size)),
        )
    )
    with progress_bar(
        total=len(windows), initial=done, desc=f"tokens of {name}", unit="window", disable=not progress
    ) as bar:
        pairs = _pairs(windows[done:], dataset, window_px=size)
        for number, batch in enumerate(_batches(pairs, batch_size), start=1):
            end = done + len(batch)
            tokens[done:end] = encoder(np.stack([pixels for pixels, _ in batch])).half().cpu().numpy()
            labels[done:end] = np.stack([classes for _, classes in batch])
            bar.update(len(batch))
            done = end
            if number % _BATCHES_BETWEEN_MARKS == 0 or done == len(windows):
                tokens.flush()
                labels.flush()
                write_atomically(mark, json.dumps({"rows": done}) + "\n")


def _rows_done(mark: Path) -> int:
    if not mark.is_file():
        return 0
    try:
        return int(json.loads(mark.read_text())["rows"])
    except (ValueError, KeyError, TypeError) as error:
        raise ResultError(f"tokens {mark.parent}: damaged ({error}); remove the folder") from error


def _pairs(windows: Sequence[Window], dataset: SegmentationDataset, *, window_px: int) -> Iterator[Pair]:
    """Image and label of each window; an image is decoded once, a few ahead in threads."""
    by_image = [(image, list(group)) for image, group in groupby(windows, key=lambda window: window.image)]
    with ThreadPoolExecutor(_IMAGES_AHEAD) as pool:
        for some in _batches(by_image, _IMAGES_AHEAD):
            decoded = pool.map(dataset.read, [image for image, _ in some])
            for (pixels, labels), (_, group) in zip(decoded, some, strict=True):
                padded = pad_to_window(pixels, window_px=window_px), pad_to_window(labels, window_px=window_px)
                for window in group:
                    yield (
                        cut(padded[0], window.corner, window_px=window_px),
                        cut(padded[1], window.corner, window_px=window_px),
                    )


def _batches(items: Iterable[_T], size: int) -> Iterator[list[_T]]:
    rest = iter(items)
    while batch := list(islice(rest, size)):
        yield batch


def crop_windows(images: Sequence[LabelledImage], *, window_px: int, crops_per_image: int, seed: int) -> list[Window]:
    """Random windows of each image, keyed by the seed and the image's position."""
    return [
        Window(image, corner)
        for number, image in enumerate(images)
        for corner in random_corners(
            max(image.height_px, window_px),
            max(image.width_px, window_px),
            window_px=window_px,
            count=crops_per_image,
            rng=np.random.default_rng([seed, number]),
        )
    ]


class StoredBatches:
    """Batches of stored windows: each run has its own order, every window comes once an epoch.

    What a batch holds depends on (seed, run, step) alone, so a resumed run sees what an uninterrupted one sees.
    """

    def __init__(self, store: TokenStore, *, batch_size: int, seed: int) -> None:
        self._store, self._batch_size, self._seed = store, batch_size, seed

    def __call__(self, run: int, step: int) -> tuple[Tensor, Tensor]:
        """Tokens float32 (B, K, h, w) and class numbers int64 (B, S, S) of one step of a run."""
        count = len(self._store)
        epochs, places = np.divmod(np.arange(step * self._batch_size, (step + 1) * self._batch_size), count)
        orders = {
            epoch: np.random.default_rng([self._seed, run, int(epoch)]).permutation(count)
            for epoch in np.unique(epochs)
        }
        return self._store.read([orders[epoch][place] for epoch, place in zip(epochs, places, strict=True)])


class FreshBatches:
    """Batches of windows drawn anew at every step, keyed by (seed, run, step); the backbone runs on each."""

    def __init__(
        self,
        images: Sequence[LabelledImage],
        dataset: SegmentationDataset,
        encoder: WindowEncoder,
        *,
        batch_size: int,
        seed: int,
    ) -> None:
        self._images, self._encoder, self._batch_size, self._seed = images, encoder, batch_size, seed
        self._read = lru_cache(maxsize=_IMAGES_KEPT)(dataset.read)

    def __call__(self, run: int, step: int) -> tuple[Tensor, Tensor]:
        """Tokens float32 (B, K, h, w) and class numbers int64 (B, S, S) of one step of a run."""
        size = self._encoder.window_px
        rng = np.random.default_rng([self._seed, run, step])
        pixels, labels = [], []
        for number in rng.integers(0, len(self._images), self._batch_size):
            image, label = (pad_to_window(array, window_px=size) for array in self._read(self._images[number]))
            [corner] = random_corners(*label.shape, window_px=size, count=1, rng=rng)
            pixels.append(cut(image, corner, window_px=size))
            labels.append(cut(label, corner, window_px=size))
        # inference tensors cannot be part of a graph, so the tokens are copied
        return self._encoder(np.stack(pixels)).clone(), torch.from_numpy(np.stack(labels)).long()
