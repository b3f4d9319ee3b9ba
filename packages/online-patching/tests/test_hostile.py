"""Hostile files: a typed error that names the file, within a second and 256 MB."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
import time
from pathlib import Path

import hostile_tiffs
import imagecodecs
import numpy as np
import pytest
import tifffile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from online_patching import CorruptTileError, SlideFormatError, StorageError, open_slide
from online_patching.decode import decode_tile
from online_patching.errors import PatchingError
from online_patching.formats.header import Codec, Colour, TileEncoding
from online_patching.listing import list_slides
from slide_checks import index_bytes
from tiff_bytes import Page, tiff_bytes
from written_slides import tissue_image

# Seconds of work; by the clock a busy machine may take longer, but nothing may wait.
MAX_SECONDS, MAX_CLOCK_SECONDS, MAX_MB = 1.0, 5.0, 256
# What a decoder stops at exactly one tile of is a tile, as in libtiff; and a sparse slide is one of absent tiles.
READ = {"LZW bomb", "3 million tiles, sparse"}


def test_hostile_files_end_in_a_typed_error_within_a_second_and_256_mb(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, hostile_tiffs.__file__, str(tmp_path)], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout)
    assert len(results) > 60
    for name, (outcome, seconds, clock_seconds, grown_mb) in results.items():
        error = outcome.partition(":")[0]
        assert error in ("SlideFormatError", "CorruptTileError") or name in READ, f"{name}: {outcome}"
        assert outcome == "read" or ".tif: " in outcome, f"{name}: {outcome} does not name the file"
        assert seconds < MAX_SECONDS, f"{name}: {seconds} s"
        assert clock_seconds < MAX_CLOCK_SECONDS, f"{name}: {clock_seconds} s by the clock"
        assert grown_mb < MAX_MB, f"{name}: {grown_mb} MB"


PAGES = [Page(700, 500, tile_px=64, padding=300), Page(350, 250, tile_px=64, padding=300, tags={254: (4, [1])})]
TILE = bytes(imagecodecs.zlib_encode(bytes(64 * 64 * 3)))
LAYOUTS = [
    {"big": big, "order": order, **layout}
    for big in (False, True)
    for order in ("<", ">")
    for layout in ({}, {"ifd_first": True}, {"head_ifds": True}, {"arrays": "before"}, {"sub": True})
]


def ome_pages(layout: dict[str, object]) -> list[Page]:
    pages = [Page(p.width_px, p.height_px, p.tile_px, TILE, dict(p.tags), padding=300) for p in PAGES]
    if "sub" in layout:
        text = hostile_tiffs.OME.replace('X="512"', 'X="700"').replace('Y="512"', 'Y="500"')
        pages[0].tags[270] = (2, text)
    return pages


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_every_layout_opens_undamaged(tmp_path: Path, layout: dict[str, object]) -> None:
    path = tmp_path / "x.tif"
    path.write_bytes(tiff_bytes(ome_pages(layout), **layout))  # type: ignore[arg-type]
    slide = open_slide(str(path))
    assert [(g.width_px, g.height_px) for g in slide.levels] == [(700, 500), (350, 250)]
    for level, geometry in enumerate(slide.levels):
        shape = {"width_px": geometry.width_px, "height_px": geometry.height_px}
        assert not slide.read_level(level=level, x_px=0, y_px=0, **shape).any()


def opened_and_read(path: Path) -> tuple[int, ...] | PatchingError:
    try:
        return open_slide(str(path)).read_level(level=0, x_px=0, y_px=0, width_px=100, height_px=100).shape
    except PatchingError as error:
        return error


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_files_of_every_layout_are_read_or_refused_quickly(tmp_path: Path, data: st.DataObject) -> None:
    layout = data.draw(st.sampled_from(LAYOUTS))
    damaged = bytearray(tiff_bytes(ome_pages(layout), **layout))  # type: ignore[arg-type]
    for _ in range(data.draw(st.integers(1, 8))):
        place = data.draw(st.integers(0, min(len(damaged), 12_000) - 8))
        value = data.draw(st.sampled_from([0, 1, 8, 255, 1 << 16, (1 << 31) - 1, (1 << 32) - 1, place]))
        width = data.draw(st.sampled_from([1, 2, 4]))
        damaged[place : place + width] = struct.pack("<Q", value)[:width]
    cut = data.draw(st.one_of(st.just(len(damaged)), st.integers(0, len(damaged))))
    path = tmp_path / "damaged.tif"
    path.write_bytes(bytes(damaged[:cut]))
    started = time.process_time()
    outcome = opened_and_read(path)
    assert outcome == (100, 100, 3) or "damaged.tif" in str(outcome)
    assert time.process_time() - started < 2


ENCODED = {
    (Codec.JPEG, Colour.YCBCR): imagecodecs.jpeg8_encode(tissue_image(64, 64, 1)),
    (Codec.JPEG, Colour.GREY): imagecodecs.jpeg8_encode(np.ascontiguousarray(tissue_image(64, 64, 1)[..., 0])),
    (Codec.JPEG2000, Colour.RGB): imagecodecs.jpeg2k_encode(tissue_image(64, 64, 1), codecformat="j2k"),
    (Codec.JPEG2000, Colour.YCBCR): imagecodecs.jpeg2k_encode(tissue_image(64, 64, 1), codecformat="jp2"),
    (Codec.WEBP, Colour.RGB): imagecodecs.webp_encode(tissue_image(64, 64, 1)),
    (Codec.DEFLATE, Colour.RGB): imagecodecs.zlib_encode(tissue_image(64, 64, 1)),
    (Codec.LZW, Colour.RGB): imagecodecs.lzw_encode(tissue_image(64, 64, 1)),
    (Codec.ZSTD, Colour.RGB): imagecodecs.zstd_encode(tissue_image(64, 64, 1)),
    (Codec.PACKBITS, Colour.RGB): imagecodecs.packbits_encode(tissue_image(64, 64, 1)),
}


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_damaged_tiles_decode_to_a_tile_or_are_corrupt(data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(list(ENCODED)))
    damaged = bytearray(ENCODED[kind])
    for _ in range(data.draw(st.integers(1, 5))):
        damaged[data.draw(st.integers(0, min(300, len(damaged)) - 1))] = data.draw(st.integers(0, 255))
    started = time.process_time()
    try:
        pixels = decode_tile(bytes(damaged), TileEncoding(*kind), 64, 64)
        assert pixels.shape == (64, 64, 3)
        assert pixels.dtype == np.uint8
    except CorruptTileError:
        pass
    assert time.process_time() - started < 1


def test_what_another_writer_wrote_and_was_cut_off_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "cut.tif"
    tifffile.imwrite(path, tissue_image(512, 512, 1), tile=(64, 64), compression="zlib", photometric="rgb")
    whole = path.read_bytes()
    for cut in range(16, len(whole), len(whole) // 40):
        path.write_bytes(whole[:cut])
        with pytest.raises(PatchingError, match=r"cut\.tif"):
            open_slide(str(path))


@pytest.mark.parametrize("url", ["a\0", "file://\0", "http://[", "http://", "http://h:99999/x", "s3://b/\ud800"])
def test_a_url_that_no_object_can_have_is_one_line(url: str) -> None:
    for use in (open_slide, list_slides):
        with pytest.raises(StorageError, match="not a usable URL or path") as caught:
            use(url)
        assert str(caught.value).isprintable()


def test_sub_directories_that_are_no_numbers_are_refused_by_reason() -> None:
    pixels = '<Pixels SizeX="512" SizeY="512" SizeC="3"><Channel SamplesPerPixel="3"/></Pixels>'
    description = f"<OME><Image>{pixels}</Image></OME>\0"
    data = tiff_bytes([Page(512, 512, padding=0, tags={270: (2, description), 330: (2, "abcdefgh\0")})])
    with pytest.raises(SlideFormatError, match="tag 330 holds no whole number"):
        index_bytes(data)


def test_facts_of_absurd_length_or_number_are_left_out() -> None:
    fields = "|".join(f"k{k} = v" for k in range(5000))
    description = f"Aperio\r\nx|MPP = 0.5|long = {'x' * 100_000}|{fields}\0"
    index = index_bytes(tiff_bytes([Page(512, 512, padding=0, tags={270: (2, description)})]))
    assert index.header.mpp == 0.5
    assert "long" not in index.header.properties
    assert len(index.header.properties) == 1000
