from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from fm_eval import DatasetError
from fm_eval.transform import load_rgb, resize_and_crop
from PIL import Image


@pytest.mark.parametrize(("width", "height"), [(40, 40), (48, 40), (31, 97), (20, 10), (300, 200)])
def test_the_output_is_a_contiguous_square(width: int, height: int) -> None:
    pixels = resize_and_crop(Image.new("RGB", (width, height), (10, 20, 30)), size_px=32)
    assert pixels.shape == (32, 32, 3)
    assert pixels.dtype == np.uint8
    assert pixels.flags.c_contiguous
    assert (pixels == (10, 20, 30)).all()


def test_an_image_of_the_right_height_is_only_cropped() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (32, 50, 3), dtype=np.uint8)
    assert np.array_equal(resize_and_crop(Image.fromarray(pixels), size_px=32), pixels[:, 9:41])


def test_shrinking_is_antialiased() -> None:
    board = np.indices((64, 64)).sum(axis=0) % 2 * 255
    pixels = resize_and_crop(Image.fromarray(np.repeat(board[..., None], 3, axis=2).astype(np.uint8)), size_px=16)
    assert np.abs(pixels[2:-2, 2:-2].astype(int) - 127).max() <= 2  # without: 0 or 255


def test_a_truncated_file_and_unclear_pixels_are_refused(tmp_path: Path) -> None:
    whole = tmp_path / "whole.jpg"
    Image.effect_noise((64, 64), 80).convert("RGB").save(whole)
    cut = tmp_path / "cut.jpg"
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    with pytest.raises(DatasetError, match=r"cut\.jpg: cannot be decoded"):
        load_rgb(cut)
    Image.fromarray(np.full((4, 4), 40_000, np.uint16)).save(tmp_path / "deep.png")
    with pytest.raises(DatasetError, match="pixel mode I;16"):
        load_rgb(tmp_path / "deep.png")
    Image.new("RGBA", (4, 4), (1, 2, 3, 40)).save(tmp_path / "clear.png")
    with pytest.raises(DatasetError, match="transparent"):
        load_rgb(tmp_path / "clear.png")
