from __future__ import annotations

import asyncio
from pathlib import Path

import cv2
import numpy as np
import pytest
from online_patching import MagnificationError, MissingMppError, NotFoundError, open_slide
from written_slides import tissue_image, write_pyramid


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("slide") / "x.svs"
    write_pyramid(path, tissue_image(1600, 1200, 1), mpp=0.25, compression="zstd", downsamples=(1, 4))
    return str(path)


def test_a_patch_at_a_stored_resolution_is_the_stored_pixels(path: str) -> None:
    slide = open_slide(path)
    for mpp, level, down in ((0.25, 0, 1), (1.0, 1, 4)):
        patch = slide.read_patch(x_level0_px=200 * down, y_level0_px=60 * down, size_px=96, mpp=mpp)
        stored = slide.read_level(level=level, x_px=200, y_px=60, width_px=96, height_px=96)
        np.testing.assert_array_equal(patch, stored)


def test_a_coarser_patch_is_the_mean_of_the_finer_pixels(path: str) -> None:
    slide = open_slide(path)
    patch = slide.read_patch(x_level0_px=400, y_level0_px=300, size_px=128, mpp=0.5)
    stored = slide.read_level(level=0, x_px=400, y_px=300, width_px=256, height_px=256)
    mean = stored.reshape(128, 2, 128, 2, 3).mean((1, 3))
    assert np.abs(patch - mean).max() <= 0.5 + 1e-9


def test_outside_of_the_slide_is_white(path: str) -> None:
    slide = open_slide(path)
    patch = slide.read_patch(x_level0_px=-128, y_level0_px=1100, size_px=256, mpp=0.25)
    assert (patch[:, :128] == 255).all()
    assert (patch[100:] == 255).all()
    assert (patch[:100, 128:] != 255).any()
    far = slide.read_patch(x_level0_px=10_000, y_level0_px=0, size_px=64, mpp=1.0)
    assert (far == 255).all()


def test_many_patches_equal_single_ones_in_order(path: str) -> None:
    slide = open_slide(path)
    corners = [(0, 0), (700, 500), (10, 10), (700, 500), (1500, 1100)]
    together = slide.read_patches(corners, size_px=100, mpp=0.4)
    for (x, y), patch in zip(corners, together, strict=True):
        np.testing.assert_array_equal(patch, slide.read_patch(x_level0_px=x, y_level0_px=y, size_px=100, mpp=0.4))
    assert slide.read_patches([], size_px=100, mpp=0.4).shape == (0, 100, 100, 3)


def test_async_twins_read_the_same_from_a_running_loop(path: str) -> None:
    slide = open_slide(path)

    async def read() -> tuple[np.ndarray, np.ndarray, np.ndarray]:  # type: ignore[type-arg]
        return (
            await slide.aread_level(level=1, x_px=3, y_px=4, width_px=50, height_px=40),
            await slide.aread_patch(x_level0_px=3, y_level0_px=4, size_px=50, mpp=0.5),
            await slide.aread_patches([(3, 4)], size_px=50, mpp=0.5),
        )

    level, patch, patches = asyncio.run(read())
    np.testing.assert_array_equal(level, slide.read_level(level=1, x_px=3, y_px=4, width_px=50, height_px=40))
    np.testing.assert_array_equal(patch, slide.read_patch(x_level0_px=3, y_level0_px=4, size_px=50, mpp=0.5))
    np.testing.assert_array_equal(patches[0], patch)


def test_errors_name_the_slide_and_the_remedy(path: str, tmp_path: Path) -> None:
    slide = open_slide(path)
    with pytest.raises(MagnificationError, match=r"x\.svs.*0\.1 um/px.*enlarge"):
        slide.read_patch(x_level0_px=0, y_level0_px=0, size_px=64, mpp=0.1)
    with pytest.raises(ValueError, match="level 7, allowed 0 to 1"):
        slide.read_level(level=7, x_px=0, y_px=0, width_px=1, height_px=1)
    with pytest.raises(ValueError, match="allowed at least 1 x 1"):
        slide.read_level(level=0, x_px=0, y_px=0, width_px=0, height_px=1)
    with pytest.raises(ValueError, match="mpp"):
        open_slide(path, mpp=-1)
    with pytest.raises(NotFoundError, match=r"none\.svs: no such file"):
        open_slide(str(tmp_path / "none.svs"))
    plain = tmp_path / "plain.svs"
    write_pyramid(plain, tissue_image(300, 300, 1), mpp=None)
    with pytest.raises(MissingMppError, match="mpp="):
        open_slide(str(plain)).read_patch(x_level0_px=0, y_level0_px=0, size_px=64, mpp=0.5)
    assert open_slide(str(plain), mpp=0.5).read_patch(x_level0_px=0, y_level0_px=0, size_px=64, mpp=0.5).any()


def test_enlarging_within_tolerance_uses_level_0(tmp_path: Path) -> None:
    path = tmp_path / "x.svs"
    image = tissue_image(600, 600, 2)
    write_pyramid(path, image, mpp=0.27, compression="zstd")
    patch = open_slide(str(path)).read_patch(x_level0_px=100, y_level0_px=100, size_px=256, mpp=0.25)
    side = round(256 * 0.25 / 0.27)
    expected = cv2.resize(image[100 : 100 + side, 100 : 100 + side], (256, 256), interpolation=cv2.INTER_CUBIC)
    np.testing.assert_array_equal(patch, expected)
