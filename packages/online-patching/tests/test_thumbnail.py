from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from online_patching import open_slide, read_counts
from online_patching.sparse_tiles import SparseTiles, choose_tiles, filled, most_alike
from online_patching.thumbnail import read_thumbnail, thumbnail_of
from online_patching.tissue_classical import stain_mask
from written_slides import tissue_image, write_pyramid


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    return tissue_image(3000, 2400, 1)


@pytest.fixture(scope="module")
def one_level(image: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("thumbnails") / "one.svs"
    write_pyramid(path, image, tile=64, downsamples=(1,))
    return path


def test_a_thumbnail_is_the_slide_shrunk(image: np.ndarray, one_level: Path) -> None:
    thumbnail = read_thumbnail(open_slide(one_level), 500)
    assert thumbnail.pixels.shape == (400, 500, 3)
    assert (thumbnail.level, thumbnail.is_sparse, thumbnail.mpp) == (0, False, 3.0)
    truth = cv2.resize(image, (500, 400), interpolation=cv2.INTER_AREA)
    # JPEG, decoded at a quarter.
    assert np.abs(thumbnail.pixels.astype(int) - truth).mean() < 2
    np.testing.assert_array_equal(thumbnail_of(open_slide(one_level), 500), thumbnail.pixels)
    # Never larger than the slide.
    assert thumbnail_of(open_slide(one_level), 4000).shape == (2400, 3000, 3)


def test_the_bytes_read_are_within_the_budget_and_told(image: np.ndarray, one_level: Path) -> None:
    slide = open_slide(one_level)
    whole = read_thumbnail(slide, 500)
    truth = stain_mask(whole.pixels)
    for share in (0.5, 0.2, 0.06):
        budget = round(share * whole.bytes_read)
        before = read_counts().bytes_planned
        thumbnail = read_thumbnail(slide, 500, max_bytes=budget)
        assert read_counts().bytes_planned - before == thumbnail.bytes_read <= budget
        assert thumbnail.bytes_read > 0.4 * budget
        assert (thumbnail.is_sparse, thumbnail.of_tiles) == (True, 47 * 38)
        assert thumbnail.pixels.shape == whole.pixels.shape
        found = stain_mask(thumbnail.pixels)
        assert (found & truth).sum() / (found | truth).sum() > 0.9
    np.testing.assert_array_equal(read_thumbnail(slide, 500, max_bytes=budget).pixels, thumbnail.pixels)


def test_a_somewhat_coarser_level_is_better_than_a_part_of_a_finer_one(image: np.ndarray, tmp_path: Path) -> None:
    path = tmp_path / "a.svs"
    write_pyramid(path, image, tile=64, downsamples=(1, 8))
    slide = open_slide(path)
    assert read_thumbnail(slide, 600).level == 0
    thumbnail = read_thumbnail(slide, 600, max_bytes=200_000)
    assert (thumbnail.level, thumbnail.is_sparse) == (1, False)
    assert thumbnail.pixels.shape == (300, 375, 3)
    assert thumbnail.mpp == 4.0
    assert read_thumbnail(slide, 2400, max_bytes=200_000).is_sparse, "375 px are too few for 2,400"


def test_tiles_may_be_wide(image: np.ndarray, tmp_path: Path) -> None:
    path = tmp_path / "wide.tiff"
    tifffile.imwrite(path, image, photometric="rgb", tile=(32, 128), compression="zlib", metadata=None)
    slide = open_slide(path)
    whole = read_thumbnail(slide, 300)
    assert not whole.is_sparse
    part = read_thumbnail(slide, 300, max_bytes=whole.bytes_read // 3)
    assert (part.of_tiles, part.pixels.shape) == (24 * 75, whole.pixels.shape)
    assert part.bytes_read <= whole.bytes_read // 3
    found, truth = stain_mask(part.pixels), stain_mask(whole.pixels)
    assert (found & truth).sum() / (found | truth).sum() > 0.9


def test_numbers_that_cannot_be_are_refused(one_level: Path) -> None:
    with pytest.raises(ValueError, match="allowed at least 1"):
        read_thumbnail(open_slide(one_level), 500, max_bytes=0)
    one_tile = read_thumbnail(open_slide(one_level), 500, max_bytes=1)
    assert one_tile.tiles == 1


@settings(max_examples=80, deadline=None)
@given(
    tiles_x=st.integers(1, 60),
    tiles_y=st.integers(1, 60),
    max_bytes=st.integers(1, 200_000),
    max_tiles=st.integers(1, 5000),
    seed=st.integers(0, 9),
)
def test_the_part_of_a_level_is_regular_and_the_densest_that_may_be_read(
    tiles_x: int, tiles_y: int, max_bytes: int, max_tiles: int, seed: int
) -> None:
    lengths = np.random.default_rng(seed).integers(0, 100, (tiles_y, tiles_x))

    def bytes_of(numbers: object) -> int:
        return int(lengths.reshape(-1)[np.asarray(numbers)].sum())

    part = choose_tiles(lengths, max_bytes=max_bytes, max_tiles=max_tiles, bytes_of=bytes_of)
    numbers = part.numbers(tiles_x)
    assert len(numbers) == 1 or (bytes_of(numbers) <= max_bytes and len(numbers) <= max_tiles)
    assert set(np.diff(part.columns)) <= {part.stride}
    assert set(np.diff(part.rows)) <= {part.stride}
    assert 0 <= part.columns[0] <= part.stride // 2
    assert part.columns[-1] + part.stride >= tiles_x
    assert (part.stride == 1) or lengths.sum() * 1.2 > max_bytes or lengths.size * 1.2 > max_tiles
    # Whatever tile is missing is shown by one in or beside its cell, and each that was read shows itself.
    down, right = most_alike(part, lengths)
    assert (np.abs(part.rows[down] - np.arange(tiles_y)[:, None]) <= 1.5 * part.stride).all()
    assert (np.abs(part.columns[right] - np.arange(tiles_x)[None, :]) <= 1.5 * part.stride).all()
    np.testing.assert_array_equal(down[np.ix_(part.rows, part.columns)][:, 0], np.arange(len(part.rows)))


def test_a_missing_tile_is_shown_by_the_one_of_like_length() -> None:
    part = SparseTiles(4, np.array([2, 6]), np.array([2, 6]))
    tiles = np.zeros((2, 2, 1, 1, 3), np.uint8)
    tiles[:, 1] = 200
    # Glass at the left up to column 4, although column 4 is as near to tissue.
    lengths = np.full((9, 9), 1000)
    lengths[:, 5:] = 20_000
    lengths[0, 0] = 0
    shown = filled(tiles, part, lengths)[..., 0]
    assert (shown[:, 1:5] == 0).all()
    assert (shown[:, 5:] == 200).all()
    assert shown[0, 0] == 255, "a tile that was never stored is white"


def test_no_tile_is_read_twice(one_level: Path) -> None:
    slide = open_slide(str(one_level))
    before = read_counts()
    thumbnail = read_thumbnail(slide, 500)
    counts = read_counts() - before
    assert counts.tiles == thumbnail.tiles == thumbnail.of_tiles
    assert counts.bytes_planned == thumbnail.bytes_read
