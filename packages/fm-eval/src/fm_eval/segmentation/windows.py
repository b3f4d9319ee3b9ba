"""Which windows does an image have, and how do their scores become one label image again?

Training takes windows at random positions, testing those of a grid with overlap (paper, section IV-D.2: 224
pixels, stride 194). The last row and column of a grid are moved back so that they end at the border: every
pixel is covered whatever the size. Scores of overlapping windows are averaged before the largest is taken.

Pure: arrays and numbers in, arrays out. Before: layouts. After: features, evaluate.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

Corner = tuple[int, int]
"""(y, x) of a window's top left pixel; y first, as arrays are indexed."""


def grid_positions(length_px: int, *, window_px: int, stride_px: int) -> list[int]:
    """Starts of the windows along one axis, ascending; the last one ends at the border.

    Args:
        length_px: of the axis, at least `window_px`.
        window_px: side of a window.
        stride_px: distance of starts, 1 to `window_px`.
    """
    assert 1 <= stride_px <= window_px <= length_px, (length_px, window_px, stride_px)
    return [*range(0, length_px - window_px, stride_px), length_px - window_px]


def grid_corners(height_px: int, width_px: int, *, window_px: int, stride_px: int) -> list[Corner]:
    """Corners of all windows, row by row."""
    rows = grid_positions(height_px, window_px=window_px, stride_px=stride_px)
    columns = grid_positions(width_px, window_px=window_px, stride_px=stride_px)
    return [(y, x) for y in rows for x in columns]


def random_corners(
    height_px: int, width_px: int, *, window_px: int, count: int, rng: np.random.Generator
) -> list[Corner]:
    """Corners of windows, each uniform over all positions inside the image."""
    rows = rng.integers(0, height_px - window_px + 1, count)
    columns = rng.integers(0, width_px - window_px + 1, count)
    return [(int(y), int(x)) for y, x in zip(rows, columns, strict=True)]


def pad_to_window(array: NDArray[np.uint8], *, window_px: int) -> NDArray[np.uint8]:
    """Mirror an image or label (H, W, ...) at its lower and right border up to the size of a window."""
    missing = [max(0, window_px - length) for length in array.shape[:2]]
    if not any(missing):
        return array
    return np.pad(array, [(0, missing[0]), (0, missing[1]), *[(0, 0)] * (array.ndim - 2)], mode="symmetric")


def cut(array: NDArray[np.uint8], corner: Corner, *, window_px: int) -> NDArray[np.uint8]:
    """The window of an array (H, W, ...) at a corner."""
    y, x = corner
    return array[y : y + window_px, x : x + window_px]


def stitch(
    windows: Iterable[tuple[Corner, NDArray[np.float32]]], *, height_px: int, width_px: int, classes: int
) -> NDArray[np.uint8]:
    """Average overlapping scores and take the class of the largest.

    Rows that no later window touches are settled at once, so that scores are held for one row of windows and
    not for the image.

    Args:
        windows: corner and float32 (C, S, S) scores of windows that cover the image, row by row as
            `grid_corners` gives them.
        height_px: of the image.
        width_px: of the image.
        classes: C.

    Returns:
        uint8 (H, W) class numbers. Ties go to the lower number.
    """
    labels = np.zeros((height_px, width_px), dtype=np.uint8)
    top, sums, counts = 0, np.zeros((classes, 0, width_px), np.float32), np.zeros((0, width_px), np.float32)

    def settle(rows: int) -> None:
        nonlocal top, sums, counts
        assert rows == 0 or counts[:rows].min() > 0, "windows do not cover the image"
        labels[top : top + rows] = (sums[:, :rows] / counts[:rows]).argmax(axis=0)
        top, sums, counts = top + rows, sums[:, rows:], counts[rows:]

    for (y, x), scores in windows:
        assert y >= top, "windows must come row by row"
        settle(min(y - top, len(counts)))
        window_px = scores.shape[-1]
        missing = y + window_px - top - len(counts)
        if missing > 0:
            sums = np.concatenate([sums, np.zeros((classes, missing, width_px), np.float32)], axis=1)
            counts = np.concatenate([counts, np.zeros((missing, width_px), np.float32)])
        rows, columns = slice(y - top, y - top + window_px), slice(x, x + window_px)
        sums[:, rows, columns] += scores
        counts[rows, columns] += 1
    settle(len(counts))
    assert top == height_px, f"windows cover {top} of {height_px} rows"
    return labels
