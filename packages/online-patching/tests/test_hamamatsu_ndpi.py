"""Hamamatsu NDPI: restart intervals as tiles, offsets of 64 bits in a 32-bit TIFF, levels wider than a JPEG."""

from __future__ import annotations

import json
import os
from pathlib import Path

import cv2
import numpy as np
import openslide
import pytest
from online_patching import CorruptTileError, SlideFormatError, open_slide
from online_patching.formats.header_json import header_from_json, header_to_json
from online_patching.index import index_slide
from online_patching.loop import run
from online_patching.storage import Store
from slide_checks import assert_levels_equal_openslide
from written_slides import tissue_image
from written_vendor_slides import NdpiWriter, joined_jpeg, restart_jpeg, write_ndpi

IMAGE = tissue_image(1024, 512, 4)
SAMPLINGS = [cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_422]
FOUR_GIB = 1 << 32


def assert_stored_levels_equal_openslide(path: Path) -> None:
    """OpenSlide adds levels that libjpeg scales down by 2, 4 and 8; here levels are what is stored."""
    slide, oracle = open_slide(str(path), experimental=True), openslide.OpenSlide(str(path))
    stored = [oracle.level_dimensions.index((g.width_px, g.height_px)) for g in slide.levels]
    assert_levels_equal_openslide(slide, oracle, levels=stored)


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=["444", "422"])
def test_every_level_is_that_of_openslide(tmp_path: Path, sampling: int) -> None:
    path = tmp_path / "x.ndpi"
    write_ndpi(path, IMAGE, sampling=sampling)
    slide, oracle = open_slide(str(path), experimental=True), openslide.OpenSlide(str(path))
    assert oracle.properties["openslide.vendor"] == slide.header.vendor == "hamamatsu"
    assert [(g.width_px, g.height_px) for g in slide.levels] == [(1024, 512), (512, 256), (256, 128)]
    for level in (0, 1):
        width, height = (oracle.properties[f"openslide.level[{level}].tile-{side}"] for side in ("width", "height"))
        assert (slide.levels[level].tile_width_px, slide.levels[level].tile_height_px) == (int(width), int(height))
    assert_stored_levels_equal_openslide(path)


def test_resolution_and_properties_are_those_of_openslide(tmp_path: Path) -> None:
    path = tmp_path / "x.ndpi"
    write_ndpi(path, IMAGE)
    slide, oracle = open_slide(str(path), experimental=True), openslide.OpenSlide(str(path))
    properties = slide.header.properties
    assert slide.mpp == pytest.approx(float(oracle.properties["openslide.mpp-x"]))
    assert properties["objective_power"] == oracle.properties["openslide.objective-power"] == "20"
    assert properties["Product"] == oracle.properties["hamamatsu.Product"] == "NDP"
    assert properties["x_offset_from_slide_centre_nm"] == oracle.properties["hamamatsu.XOffsetFromSlideCentre"]
    assert properties["scanner"] == "C9600-12"


def test_offsets_beyond_4_gib_are_followed(tmp_path: Path) -> None:
    path = tmp_path / "x.ndpi"
    write_ndpi(path, IMAGE, gap_bytes=FOUR_GIB)
    assert path.stat().st_size > FOUR_GIB
    assert_stored_levels_equal_openslide(path)


@pytest.mark.parametrize("stated_height", [16, 0])
def test_a_level_wider_than_a_jpeg_can_state_is_read(tmp_path: Path, stated_height: int) -> None:
    path = tmp_path / "wide.ndpi"
    image = np.tile(tissue_image(1024, 16, 4), (1, 65, 1))
    writer = NdpiWriter(path)
    writer.write((image.shape[1], image.shape[0]), *joined_jpeg(image, 64, stated_height=stated_height), {})
    writer.close()
    slide, oracle = open_slide(str(path), experimental=True), openslide.OpenSlide(str(path))
    assert slide.levels[0].width_px == oracle.dimensions[0] == 66_560
    for x in (0, 500, 66_560 - 300):
        expected = np.asarray(oracle.read_region((x, 0), 0, (300, 16)))[..., :3]
        np.testing.assert_array_equal(slide.read_level(level=0, x_px=x, y_px=0, width_px=300, height_px=16), expected)


def test_a_short_level_without_a_list_of_intervals_is_searched(tmp_path: Path) -> None:
    path = tmp_path / "x.ndpi"
    write_ndpi(path, IMAGE, tags={65426: (0, None), 65432: (0, None)})
    assert_stored_levels_equal_openslide(path)


def test_wrong_starts_of_intervals_are_a_corrupt_tile_never_other_pixels(tmp_path: Path) -> None:
    path = tmp_path / "x.ndpi"
    starts = list(range(700, 700 + 512 * 8, 8))
    write_ndpi(path, IMAGE, tags={65426: (4, starts), 65432: (0, None)})
    slide = open_slide(str(path), experimental=True)
    with pytest.raises(CorruptTileError, match=r"x\.ndpi.*no restart marker"):
        slide.read_level(level=0, x_px=0, y_px=0, width_px=1024, height_px=512)


def test_a_catalog_row_keeps_what_decoding_needs(tmp_path: Path) -> None:
    path = tmp_path / "x.ndpi"
    write_ndpi(path, IMAGE)
    header = open_slide(str(path), experimental=True).header
    assert header.encodings[0].jpeg_header
    assert header_from_json(json.loads(json.dumps(header_to_json(header, ()))))[0] == header


@pytest.mark.parametrize(
    ("tags", "reason"),
    [
        ({259: (3, [22610])}, "one JPEG in one strip"),
        ({262: (3, [2])}, "photometric 2, but its JPEG is ycbcr"),
        ({256: (4, [1000])}, "holds a JPEG of 1024 x 512"),
        ({65421: (0, None)}, "without magnification"),
        ({279: (4, [1 << 40])}, "past the file's end"),
        ({273: (4, [4])}, "no JPEG begins there"),
        ({65426: (4, [700] * 512)}, "do not rise"),
        ({65426: (2, b"a" * 512)}, "no whole numbers"),
        ({256: (3, [0])}, "damaged"),
    ],
)
def test_what_is_no_grid_of_intervals_is_refused_by_reason(
    tmp_path: Path, tags: dict[int, tuple[int, object]], reason: str
) -> None:
    path = tmp_path / "x.ndpi"
    write_ndpi(path, IMAGE, tags=tags)
    with pytest.raises(SlideFormatError, match=rf"x\.ndpi.*{reason}"):
        open_slide(str(path), experimental=True)


def test_levels_that_do_not_fall_in_size_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.ndpi"
    write_ndpi(path, IMAGE, downsamples=(1, 1, 2))
    with pytest.raises(SlideFormatError, match=r"widths \[1024, 1024, 512\] px"):
        open_slide(str(path), experimental=True)


def test_intervals_that_do_not_divide_a_row_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.ndpi"
    write_ndpi(path, IMAGE, interval_mcus=48)
    with pytest.raises(SlideFormatError, match="every 48 of 128 MCUs a row"):
        open_slide(str(path), experimental=True)


def test_chroma_that_reaches_across_intervals_is_refused_where_openslide_fails(tmp_path: Path) -> None:
    path = tmp_path / "x.ndpi"
    write_ndpi(path, IMAGE, sampling=cv2.IMWRITE_JPEG_SAMPLING_FACTOR_420)
    with pytest.raises(openslide.OpenSlideError, match="Corrupt JPEG"):
        openslide.OpenSlide(str(path)).read_region((0, 0), 0, (256, 64))
    with pytest.raises(SlideFormatError, match="vertically subsampled"):
        open_slide(str(path), experimental=True)


def test_starts_of_intervals_beyond_4_gib_have_high_halves(tmp_path: Path) -> None:
    path = tmp_path / "x.ndpi"
    jpeg, written = restart_jpeg(tissue_image(64, 32, 1), 8, sampling=SAMPLINGS[0])
    starts = [written[0], 3 << 30, 5 << 30, (5 << 30) + 1000]
    writer = NdpiWriter(path)
    writer.write((64, 32), jpeg, starts, {279: (4, [6 << 30])})
    writer.close()
    os.truncate(path, 7 << 30)
    (tiles,) = run(index_slide(str(path), Store(), experimental=True)).tiles
    strip = int(tiles.offset[0]) - written[0]
    assert (tiles.offset - strip).tolist() == starts
    assert tiles.length.sum() == (6 << 30) - written[0]


def test_opening_a_large_file_costs_three_requests_a_level(tmp_path: Path) -> None:
    path = tmp_path / "x.ndpi"
    write_ndpi(path, tissue_image(4096, 3072, 5))
    index = run(index_slide(str(path), Store(), experimental=True))
    levels, other_directories = 3, 2
    # A directory, the starts of its intervals and its JPEG's header lie apart from one another.
    assert index.requests <= 3 * levels + other_directories + 1
    arrays = sum(8 * len(ranges.offset) for ranges in index.tiles)
    assert index.bytes_read <= 1.3 * arrays + 32 * 1024 * (levels + other_directories)
