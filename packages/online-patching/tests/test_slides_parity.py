"""Stored pixels against OpenSlide, on every slide of SLIDES_DIR and on slides written here."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import openslide
import pytest
from online_patching import CorruptTileError, Slide, SlideFormatError, open_slide
from shared_fixtures import real_files, real_folder
from written_slides import tissue_image, write_pyramid

TIFF_SUFFIXES = (".svs", ".tif", ".tiff")
# Larger levels are compared in windows spread over them.
WHOLE_LEVEL_PX = 30_000_000
WINDOW_PX = 1500


def windows(width: int, height: int) -> list[tuple[int, int, int, int]]:
    if width * height <= WHOLE_LEVEL_PX:
        return [(0, 0, width, height)]
    side_x, side_y = min(WINDOW_PX, width), min(WINDOW_PX, height)
    places = [(round((width - side_x) * fx), round((height - side_y) * fy)) for fx in (0, 0.5, 1) for fy in (0, 0.5, 1)]
    return [(x, y, side_x, side_y) for x, y in places]


def assert_same_pixels(slide: Slide, oracle: openslide.OpenSlide) -> None:
    assert [(g.width_px, g.height_px) for g in slide.levels] == list(oracle.level_dimensions)
    for level, geometry in enumerate(slide.levels):
        for x, y, width, height in windows(geometry.width_px, geometry.height_px):
            if level and (x, y) != (0, 0):
                # OpenSlide takes level-0 coordinates: only those that are whole pixels of the level can agree.
                x, y = (round(round(v * geometry.downsample) / geometry.downsample) for v in (x, y))
                location = (round(x * geometry.downsample), round(y * geometry.downsample))
                if any(abs(v / geometry.downsample - w) > 1e-9 for v, w in zip(location, (x, y), strict=True)):
                    continue
            else:
                location = (x, y)
            expected = np.asarray(oracle.read_region(location, level, (width, height)))
            read = slide.read_level(level=level, x_px=x, y_px=y, width_px=width, height_px=height)
            inside = expected[..., 3] == 255
            np.testing.assert_array_equal(read[inside], expected[..., :3][inside])


def opened_or_refusal(path: Path) -> Slide | SlideFormatError:
    try:
        return open_slide(str(path))
    except SlideFormatError as error:
        return error


@pytest.mark.slides_parity
@pytest.mark.parametrize("path", real_files("SLIDES_DIR", *TIFF_SUFFIXES), ids=lambda path: path.name)
def test_real_slides_read_as_openslide_reads_them(path: Path) -> None:
    """Equal pixels, or the same refusal, or a refusal that names what is not supported; never other pixels."""
    slide = opened_or_refusal(path)
    if isinstance(slide, SlideFormatError):
        assert path.name in str(slide)
        return
    try:
        oracle = openslide.OpenSlide(str(path))
        assert_same_pixels(slide, oracle)
    except openslide.OpenSlideError:
        # A corrupt tile: both readers must refuse it.
        base = slide.levels[0]
        with pytest.raises(CorruptTileError, match=path.name):
            slide.read_level(level=0, x_px=0, y_px=0, width_px=base.width_px, height_px=base.height_px)


@pytest.mark.slides_parity
def test_some_real_slide_was_compared_and_no_svs_is_refused() -> None:
    if real_folder("SLIDES_DIR") is None:
        pytest.skip("no SLIDES_DIR")
    known = [path for path in real_files("SLIDES_DIR", *TIFF_SUFFIXES) if openslide.OpenSlide.detect_format(str(path))]
    opened = [path for path in known if isinstance(opened_or_refusal(path), Slide)]
    assert opened, "SLIDES_DIR holds no slide that both readers open: nothing was compared"
    refused = [path.name for path in known if path not in opened and path.suffix.lower() == ".svs"]
    assert not refused


@pytest.mark.parametrize("compression", [None, "deflate", "zstd", "jpeg"])
def test_written_slides_read_as_openslide_reads_them(tmp_path: Path, compression: str | None) -> None:
    path = tmp_path / "x.svs"
    write_pyramid(path, tissue_image(900, 700, 7), compression=compression, tile=256, downsamples=(1, 2, 4))
    assert_same_pixels(open_slide(str(path)), openslide.OpenSlide(str(path)))
