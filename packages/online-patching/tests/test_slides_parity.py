"""Stored pixels against OpenSlide, on every slide of SLIDES_DIR and on slides written by an independent library.

OpenSlide takes level-0 coordinates and resamples where those are no whole pixels of the level; a window is compared
where its corner is a whole pixel in both. Its transparent pixels (outside of the slide) are white here.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import openslide
import pytest
import tifffile
from online_patching import CorruptTileError, PatchingError, Slide, open_slide
from online_patching.decode import Pixels
from online_patching.formats.header import Codec, Colour
from shared_fixtures import real_files, real_folder
from slide_checks import OTHER_PIXELS
from written_slides import tissue_image, write_pyramid

# Larger levels are compared in windows: corners, edges and random places.
WHOLE_LEVEL_PX = 16_000_000
WINDOW_PX = 700
RANDOM_WINDOWS = 12
# A corner is a whole pixel where OpenSlide's own arithmetic gives one up to this rounding.
WHOLE = 1e-6

# Slides that OpenSlide opens and this package refuses: name -> why.
REFUSED: dict[str, str] = {}
# Slides that this package reads and OpenSlide refuses: name -> why, and who judges the pixels.
READ_HERE_ONLY = {"sm_image_jpegls.dcm": "OpenSlide knows no JPEG-LS; test_dicom compares it with pydicom"}


def aligned(slide: Slide, level: int, x: int, y: int) -> tuple[int, int, tuple[int, int]] | None:
    """The nearest corner at or before (x, y) that is a whole pixel of the level and of level 0, and its location."""
    base, geometry = slide.levels[0], slide.levels[level]
    downs = (base.width_px / geometry.width_px + base.height_px / geometry.height_px) / 2
    corner = []
    location = []
    for start in (x, y):
        for place in range(start, start - 1500, -1):
            level0 = round(place * downs)
            if abs(level0 / downs - place) < WHOLE:
                corner.append(place)
                location.append(level0)
                break
        else:
            return None
    return corner[0], corner[1], (location[0], location[1])


def windows(slide: Slide, level: int) -> Iterator[tuple[int, int, int, int]]:
    """(x, y, width, height) in pixels of the level: all of it, its corners and edges, random places, some beyond."""
    width, height = slide.levels[level].width_px, slide.levels[level].height_px
    if width * height <= WHOLE_LEVEL_PX:
        yield 0, 0, width, height
    side = WINDOW_PX
    for x in (-40, width // 2 - side // 2, width - side + 40):
        for y in (-40, height // 2 - side // 2, height - side + 40):
            yield x, y, side, side
    rng = random.Random(level)
    for _ in range(RANDOM_WINDOWS):
        yield rng.randrange(-30, width), rng.randrange(-30, height), rng.randrange(1, 400), rng.randrange(1, 400)


def assert_same_pixels(slide: Slide, oracle: openslide.OpenSlide) -> None:
    sizes = [(geometry.width_px, geometry.height_px) for geometry in slide.levels]
    # OpenSlide does not see the lower levels of an OME-TIFF; test_ome judges those by tifffile.
    seen = 1 if slide.header.vendor == "ome-tiff" else len(sizes)
    assert sizes[:seen] == list(oracle.level_dimensions)
    for level in range(oracle.level_count):
        encoding = slide.header.encodings[level]
        allowed = 1 if (encoding.codec, encoding.colour) == (Codec.JPEG2000, Colour.YCBCR) else 0
        compared = 0
        for x, y, width, height in windows(slide, level):
            place = aligned(slide, level, x, y)
            if place is None:
                continue
            x, y, location = place
            expected = np.asarray(oracle.read_region(location, level, (width, height)))
            read = slide.read_level(level=level, x_px=x, y_px=y, width_px=width, height_px=height)
            compared += assert_close(read, expected, allowed, f"level {level} at {(x, y)} {(width, height)}")
        assert compared, f"level {level}: nothing could be compared"


def assert_close(read: Pixels, expected: npt.NDArray[np.uint8], allowed: int, where: str) -> int:
    """Compares where OpenSlide has pixels, and returns how many those are."""
    inside = expected[..., 3] == 255
    difference = np.abs(read[inside].astype(np.int16) - expected[..., :3][inside])
    assert difference.max(initial=0) <= allowed, f"{where}: off by {difference.max()}"
    assert (read[expected[..., 3] == 0] == 255).all(), f"{where}: not white outside of the slide"
    return int(inside.sum())


def known_to_openslide() -> list[Path]:
    """Whatever OpenSlide takes for a slide, by its content."""
    files = [path for path in real_files("SLIDES_DIR", *suffixes()) if path.is_file()]
    return [path for path in files if openslide.OpenSlide.detect_format(str(path)) is not None]


def suffixes() -> tuple[str, ...]:
    folder = real_folder("SLIDES_DIR")
    return tuple({path.suffix.lower() for path in folder.rglob("*")}) if folder else ()


@pytest.mark.slides_parity
@pytest.mark.parametrize("path", known_to_openslide(), ids=lambda path: path.name)
def test_real_slides_read_as_openslide_reads_them(path: Path) -> None:
    """Equal pixels at every level, or the same refusal; what differs by design is listed by name above."""
    try:
        oracle = openslide.OpenSlide(str(path))
    except openslide.OpenSlideError:
        if path.name in READ_HERE_ONLY:
            assert open_slide(str(path)).levels
            return
        with pytest.raises(PatchingError, match=path.name):
            open_slide(str(path), experimental=True)
        return
    with oracle:
        if path.name in REFUSED:
            with pytest.raises(PatchingError, match=path.name):
                open_slide(str(path), experimental=True)
            return
        slide = open_slide(str(path), experimental=True)
        if path.name in OTHER_PIXELS:
            assert_equals_tifffile(slide, path)
            return
        try:
            assert_same_pixels(slide, oracle)
        except openslide.OpenSlideError:
            # A corrupt tile: both readers must refuse it.
            base = slide.levels[0]
            with pytest.raises(CorruptTileError, match=path.name):
                slide.read_level(level=0, x_px=0, y_px=0, width_px=base.width_px, height_px=base.height_px)


@pytest.mark.slides_parity
def test_some_real_slide_is_compared() -> None:
    if real_folder("SLIDES_DIR") is None:
        pytest.skip("no SLIDES_DIR")
    names = {path.name for path in known_to_openslide()} - set(REFUSED)
    assert names - set(OTHER_PIXELS), "SLIDES_DIR holds no slide that OpenSlide knows: nothing was compared"


def whole_level(slide: Slide, level: int) -> Pixels:
    geometry = slide.levels[level]
    return slide.read_level(level=level, x_px=0, y_px=0, width_px=geometry.width_px, height_px=geometry.height_px)


def assert_equals_tifffile(slide: Slide, path: Path) -> None:
    with tifffile.TiffFile(path) as tiff:
        assert len(slide.levels) == len(tiff.pages)
        for k, level in enumerate(tiff.pages):
            expected = level.asarray()
            expected = expected if expected.ndim == 3 else np.repeat(expected[..., None], 3, axis=2)
            np.testing.assert_array_equal(whole_level(slide, k), expected, err_msg=f"level {k}")


@pytest.mark.parametrize("compression", [None, "deflate", "zstd", "jpeg"])
def test_written_slides_read_as_openslide_reads_them(tmp_path: Path, compression: str | None) -> None:
    path = tmp_path / "x.svs"
    write_pyramid(path, tissue_image(900, 700, 7), compression=compression, tile=256, downsamples=(1, 2, 4))
    with openslide.OpenSlide(str(path)) as oracle:
        assert_same_pixels(open_slide(str(path)), oracle)
