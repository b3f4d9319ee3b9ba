from __future__ import annotations

from pathlib import Path

import imagecodecs
import numpy as np
import pytest
import tifffile
from online_patching import CorruptTileError, open_slide
from online_patching.decode import decode_tile
from online_patching.formats.header import Codec, Colour, TileEncoding
from written_slides import tissue_image, write_pyramid


@pytest.mark.parametrize(
    ("compression", "predictor"),
    [
        (None, False),
        ("deflate", False),
        ("deflate", True),
        ("lzw", False),
        ("lzw", True),
        ("zstd", False),
        ("jpeg", False),
    ],
)
def test_pixels_are_those_an_independent_reader_decodes(
    tmp_path: Path, compression: str | None, predictor: bool
) -> None:
    path = tmp_path / "x.tiff"
    levels = write_pyramid(path, tissue_image(500, 300, 2), compression=compression, predictor=predictor)
    slide = open_slide(str(path))
    with tifffile.TiffFile(path) as tiff:
        for k, written in enumerate(levels):
            height, width = written.shape[:2]
            read = slide.read_level(level=k, x_px=0, y_px=0, width_px=width, height_px=height)
            np.testing.assert_array_equal(read, tiff.pages[k].asarray())
            if compression != "jpeg":
                np.testing.assert_array_equal(read, written)


def test_unsubsampled_jpeg2000_of_compression_33003_is_converted_from_ycbcr() -> None:
    rgb = tissue_image(64, 64, 3)
    values = rgb.astype(np.float64)
    red, green, blue = values[..., 0], values[..., 1], values[..., 2]
    y = 0.299 * red + 0.587 * green + 0.114 * blue
    ycbcr = np.stack([y, 128 + (blue - y) / 1.772, 128 + (red - y) / 1.402], -1)
    data = imagecodecs.jpeg2k_encode(np.rint(ycbcr).clip(0, 255).astype(np.uint8), codecformat="j2k", mct=False)
    decoded = decode_tile(bytes(data), TileEncoding(Codec.JPEG2000, Colour.YCBCR), 64, 64)
    assert np.abs(decoded.astype(int) - rgb).max() <= 2


@pytest.mark.parametrize("codec", list(Codec))
def test_bytes_that_do_not_decode_to_one_tile_are_corrupt(codec: Codec) -> None:
    for data in (b"", b"\x00" * 40, bytes(range(256))):
        with pytest.raises(CorruptTileError):
            decode_tile(data, TileEncoding(codec), 64, 64)


def test_a_tile_of_another_size_is_corrupt() -> None:
    data = bytes(imagecodecs.jpeg8_encode(tissue_image(32, 32, 1)))
    with pytest.raises(CorruptTileError, match="header says"):
        decode_tile(data, TileEncoding(Codec.JPEG, Colour.YCBCR), 64, 64)


def test_a_decompression_bomb_stays_within_its_tile() -> None:
    bomb = bytes(imagecodecs.zlib_encode(bytes(50_000_000)))
    with pytest.raises(CorruptTileError):
        decode_tile(bomb, TileEncoding(Codec.DEFLATE), 64, 64)
