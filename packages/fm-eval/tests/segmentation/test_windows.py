from __future__ import annotations

import tracemalloc
from collections.abc import Iterator

import numpy as np
import pytest
from fm_eval.segmentation.windows import (
    Corner,
    cut,
    grid_corners,
    grid_positions,
    pad_to_window,
    random_corners,
    stitch,
)
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray


def test_the_grid_of_the_paper() -> None:
    assert grid_positions(1000, window_px=224, stride_px=194) == [0, 194, 388, 582, 776]
    # sizes that the stride does not divide: the last window ends at the border
    assert grid_positions(1001, window_px=224, stride_px=194) == [0, 194, 388, 582, 776, 777]
    assert grid_positions(256, window_px=224, stride_px=194) == [0, 32]
    assert grid_positions(224, window_px=224, stride_px=194) == [0]


@given(st.data())
def test_stitching_an_identity_model_gives_its_labels(data: st.DataObject) -> None:
    """Whatever the size of the image, the window and the stride, each window's one-hot labels come back exactly."""
    window = data.draw(st.integers(2, 24))
    stride = data.draw(st.integers(1, window))
    height, width = (data.draw(st.integers(1, 70)) for _ in range(2))
    seed = data.draw(st.integers(0, 2**32 - 1))
    truth = np.random.default_rng(seed).integers(0, 5, (height, width), dtype=np.uint8)
    padded = pad_to_window(truth, window_px=window)
    corners = grid_corners(*padded.shape, window_px=window, stride_px=stride)

    def windows() -> Iterator[tuple[Corner, NDArray[np.float32]]]:
        for corner in corners:
            label = cut(padded, corner, window_px=window)
            yield corner, np.eye(5, dtype=np.float32)[label].transpose(2, 0, 1)

    stitched = stitch(windows(), height_px=padded.shape[0], width_px=padded.shape[1], classes=5)
    assert np.array_equal(stitched[:height, :width], truth)


@pytest.mark.parametrize("size", [(1000, 1000), (1001, 777), (256, 320), (225, 224), (100, 300)])
def test_stitching_at_the_papers_window_and_stride(size: tuple[int, int]) -> None:
    truth = np.random.default_rng(0).integers(0, 5, size, dtype=np.uint8)
    padded = pad_to_window(truth, window_px=224)
    windows = (
        (corner, np.eye(5, dtype=np.float32)[cut(padded, corner, window_px=224)].transpose(2, 0, 1))
        for corner in grid_corners(*padded.shape, window_px=224, stride_px=194)
    )
    stitched = stitch(windows, height_px=padded.shape[0], width_px=padded.shape[1], classes=5)
    assert np.array_equal(stitched[: size[0], : size[1]], truth)


def test_overlaps_are_averaged_before_the_largest_is_taken() -> None:
    """In the overlap one window is sure of class 1 and two are weakly for class 0: scores decide, not votes."""
    weak, sure = np.array([0.6, 0.4], np.float32), np.array([0.0, 1.0], np.float32)
    windows = [
        ((0, x), np.broadcast_to(scores[:, None, None], (2, 3, 3))) for x, scores in ((0, weak), (1, weak), (2, sure))
    ]
    stitched = stitch(windows, height_px=3, width_px=5, classes=2)
    assert stitched.tolist() == [[0, 0, 1, 1, 1]] * 3
    # column 2: (0.6 + 0.6 + 0.0) / 3 = 0.4 against 0.6; column 1: 0.6 against 0.4


def test_scores_of_one_row_of_windows_are_held_at_a_time() -> None:
    height, width, window, classes = 8000, 16, 16, 8

    def windows() -> Iterator[tuple[Corner, NDArray[np.float32]]]:
        for corner in grid_corners(height, width, window_px=window, stride_px=window):
            yield corner, np.zeros((classes, window, window), np.float32)

    tracemalloc.start()
    try:
        stitch(windows(), height_px=height, width_px=width, classes=classes)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    scores_of_the_image = 4 * classes * height * width
    assert peak < height * width + scores_of_the_image / 10


def test_random_corners_reach_every_place_and_depend_on_the_generator_alone() -> None:
    corners = random_corners(12, 11, window_px=10, count=300, rng=np.random.default_rng(1))
    assert set(corners) == {(y, x) for y in range(3) for x in range(2)}
    assert corners == random_corners(12, 11, window_px=10, count=300, rng=np.random.default_rng(1))


def test_small_images_are_mirrored() -> None:
    image = np.arange(6, dtype=np.uint8).reshape(2, 3)
    assert pad_to_window(image, window_px=3).tolist() == [[0, 1, 2], [3, 4, 5], [3, 4, 5]]
    assert pad_to_window(image, window_px=2) is image
    assert pad_to_window(np.zeros((1, 1, 3), np.uint8), window_px=7).shape == (7, 7, 3)
