from __future__ import annotations

import random
import threading

import cv2
import numpy as np
import pytest
from online_patching.assemble import Assembly, resize
from online_patching.decode import Pixels
from online_patching.errors import CorruptTileError
from online_patching.geometry import LevelGeometry, LevelWindow
from online_patching.plan import Piece, plan_tiles, region_of
from written_slides import tissue_image

SIZE = 96


def textured(height: int, width: int, seed: int = 0) -> Pixels:
    """Fine structure everywhere, as in tissue at high power."""
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return np.asarray(cv2.GaussianBlur(noise, (0, 0), 1.0), np.uint8)


def area_weights(source: int, target: int) -> np.ndarray:  # type: ignore[type-arg]
    """Row k: the share of every source pixel in the k-th target pixel, whose interval is [k, k + 1) x the ratio."""
    edges = np.arange(target + 1) * (source / target)
    start = np.maximum(edges[:-1, None], np.arange(source)[None])
    end = np.minimum(edges[1:, None], np.arange(1, source + 1)[None])
    return np.maximum(end - start, 0) * (target / source)


def exact_area(pixels: Pixels, size_px: int) -> np.ndarray:  # type: ignore[type-arg]
    """The mean of the pixels that each target pixel covers, in floating point."""
    height, width = pixels.shape[:2]
    rows = np.tensordot(area_weights(height, size_px), pixels.astype(float), (1, 0))
    return np.tensordot(rows, area_weights(width, size_px), (1, 1)).transpose(0, 2, 1)


def psnr(left: np.ndarray, right: np.ndarray) -> float:  # type: ignore[type-arg]
    return float(10 * np.log10(255**2 / np.mean((left.astype(float) - right) ** 2)))


@pytest.mark.parametrize("ratio", [1.01, 1.014, 1.05, 1.09, 1.11, 1.3, 1.9, 2, 2.03, 3, 3.7, 4.05, 5.5, 8])
def test_shrinking_is_area_averaging(ratio: float) -> None:
    side = round(SIZE * ratio)
    for image, least_db in ((tissue_image(side, side, 1), 55), (textured(side, side), 45)):
        assert psnr(resize(image, SIZE), exact_area(image, SIZE)) >= least_db


@pytest.mark.parametrize("factor", [2, 3, 4, 5, 8])
def test_whole_factors_are_the_mean_of_each_block(factor: int) -> None:
    image = textured(SIZE * factor, SIZE * factor)
    expected = cv2.resize(image, (SIZE, SIZE), interpolation=cv2.INTER_AREA)
    shrunk = resize(image, SIZE)
    np.testing.assert_array_equal(shrunk, expected)
    assert np.abs(shrunk - exact_area(image, SIZE)).max() <= 0.5 + 1e-9


def test_a_window_of_the_size_asked_for_stays_as_it_is() -> None:
    image = textured(SIZE, SIZE)
    assert resize(image, SIZE) is image
    out = np.zeros_like(image)
    assert resize(image, SIZE, out) is out
    np.testing.assert_array_equal(out, image)


@pytest.mark.parametrize("side", [60, 90, 97, 104, 120, 192, 200, 355, 500, 768])
def test_results_go_to_the_memory_that_is_given(side: int) -> None:
    image = textured(side, side)
    whole = np.full((3, SIZE, SIZE, 3), 7, np.uint8)
    written = resize(image, SIZE, whole[1])
    assert np.shares_memory(written, whole)
    np.testing.assert_array_equal(whole[1], resize(image, SIZE))
    assert (whole[[0, 2]] == 7).all()


@pytest.mark.parametrize("side", [60, 77, 92])
def test_enlarging_is_bicubic(side: int) -> None:
    image = textured(side, side)
    expected = cv2.resize(image, (SIZE, SIZE), interpolation=cv2.INTER_CUBIC)
    np.testing.assert_array_equal(resize(image, SIZE), expected)


GEOMETRY = LevelGeometry(150, 110, 32, 48, 1.0)


def random_windows(rng: random.Random, count: int) -> list[LevelWindow]:
    return [
        LevelWindow(0, rng.randrange(-40, 160), rng.randrange(-40, 120), rng.randint(1, 90), rng.randint(1, 90))
        for _ in range(count)
    ]


@pytest.mark.parametrize("threads", [1, 4])
@pytest.mark.parametrize("with_outs", [False, True])
def test_pieces_pasted_by_any_threads_in_any_order_are_the_windows(threads: int, with_outs: bool) -> None:
    rng = random.Random(5)
    rows, columns = GEOMETRY.tiles_y * 48, GEOMETRY.tiles_x * 32
    image = np.random.default_rng(1).integers(0, 255, (rows, columns, 3), dtype=np.uint8)
    level = np.full((rows + 500, columns + 500, 3), 255, np.uint8)
    level[200 : 200 + 110, 200 : 200 + 150] = image[:110, :150]
    windows = random_windows(rng, 40)
    shapes = [(window.height_level_px, window.width_level_px) for window in windows]
    outs = [np.zeros((*shape, 3), np.uint8) if with_outs else None for shape in shapes]
    assembly = Assembly(shapes, [None] * len(windows), outs)
    planned = list(plan_tiles(list(enumerate(windows)), GEOMETRY).items())
    counts = [sum(piece.window == k for _, pieces in planned for piece in pieces) for k in range(len(windows))]
    areas = [0] * len(windows)
    for _, pieces in planned:
        for piece in pieces:
            areas[piece.window] += (piece.x1_tile_px - piece.x0_tile_px) * (piece.y1_tile_px - piece.y0_tile_px)
    for k, shape in enumerate(shapes):
        assembly.expect(k, counts[k], white=areas[k] < shape[0] * shape[1])
    rng.shuffle(planned)

    def paste(part: list[tuple[int, list[Piece]]]) -> None:
        for tile, pieces in part:
            x0, y0, x1, y1 = region_of(pieces)
            row, column = divmod(tile, GEOMETRY.tiles_x)
            corner_y, corner_x = row * 48, column * 32
            assembly.paste(image[corner_y + y0 : corner_y + y1, corner_x + x0 : corner_x + x1], pieces, x0, y0)

    workers = [threading.Thread(target=paste, args=(planned[k::threads],)) for k in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    for window, out, result in zip(windows, outs, assembly.collected(), strict=True):
        x, y = window.x_level_px + 200, window.y_level_px + 200
        expected = level[y : y + window.height_level_px, x : x + window.width_level_px]
        assert not isinstance(result, CorruptTileError)
        np.testing.assert_array_equal(result, expected)
        assert out is None or result is out


def test_a_failed_piece_fails_its_windows_alone_and_the_first_error_stays() -> None:
    assembly = Assembly([(2, 4)] * 2, [None, None], [None, None])
    left = [Piece(0, 0, 0, 2, 2, 0, 0), Piece(1, 0, 0, 2, 2, 0, 0)]
    right, other = [Piece(0, 0, 0, 2, 2, 2, 0)], [Piece(1, 0, 0, 2, 2, 2, 0)]
    for window in (0, 1):
        assembly.expect(window, 2, white=False)
    pixels = np.full((2, 2, 3), 9, np.uint8)
    error = CorruptTileError("first")
    assembly.fail(right, error)
    assert not assembly.is_wanted(right)
    assert assembly.is_wanted(left)
    assembly.paste(pixels, left, 0, 0)
    assembly.fail(left[:1], CorruptTileError("second"))
    assembly.paste(pixels, other, 0, 0)
    first, second = assembly.collected()
    assert first is error
    assert not isinstance(second, CorruptTileError)
    assert (second == 9).all()


def test_nothing_is_written_after_close() -> None:
    out = np.zeros((4, 4, 3), np.uint8)
    assembly = Assembly([(4, 4)], [4], [out])
    assembly.expect(0, 2, white=False)
    grey = np.full((4, 4, 3), 7, np.uint8)
    assembly.paste(grey, [Piece(0, 0, 0, 4, 2, 0, 0)], 0, 0)
    assembly.close()
    out[:] = 1
    assembly.paste(grey, [Piece(0, 0, 2, 4, 4, 0, 2)], 0, 0)
    assert (out == 1).all()
