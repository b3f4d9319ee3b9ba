"""What opening a slide costs over a network: requests, bytes and waits, over many layouts of the same headers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import tifffile
from online_patching import SlideFormatError
from online_patching.bytesource import ByteRange, ObjectInfo, read_start_by_info
from online_patching.formats.detect import read_slide
from online_patching.formats.header import FoundSlide
from online_patching.loop import run
from online_patching.storage import Store
from shared_fixtures import real_files
from tiff_bytes import UNDEFINED, Page, tiff_bytes
from written_slides import tissue_image, write_pyramid

APERIO = (2, b"Aperio Image Library v12\r\nx|MPP = 0.25\0")
REDUCED = {254: (4, [1])}


class CountingSource:
    """Bytes in memory, and what was read of them."""

    url = "memory://slide"

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.read: list[ByteRange] = []
        self.rounds = 0

    async def info(self) -> ObjectInfo:
        return ObjectInfo(len(self.data), "1")

    async def read_start(self, length: int) -> tuple[bytes, ObjectInfo]:
        return await read_start_by_info(self, length)

    async def read_ranges(self, ranges: Sequence[ByteRange], *, expected: ObjectInfo | None = None) -> list[bytes]:
        self.read += ranges
        self.rounds += 1
        return [self.data[start : start + length] for start, length in ranges]


class OneObject(Store):
    def __init__(self, source: CountingSource) -> None:
        super().__init__()
        self.source = source

    def open(self, url: str) -> CountingSource:
        return self.source


def opened(data: bytes) -> tuple[FoundSlide, CountingSource]:
    source = CountingSource(data)
    found, requests, bytes_read = run(read_slide(OneObject(source), "memory://slide", experimental=False))
    assert (requests, bytes_read) == (len(source.read), sum(length for _, length in source.read))
    return found, source


def check_cost(source: CountingSource, *, ifds: int, header_bytes: int) -> None:
    assert len(source.read) <= ifds + 4
    assert sum(length for _, length in source.read) <= 1.3 * header_bytes + 32 * 1024 * ifds
    assert source.rounds <= ifds + 2


def pyramid(width: int, height: int, factor: int) -> list[Page]:
    pages = []
    while width > 200:
        pages.append(Page(width, height, tags=dict(REDUCED) if pages else {}))
        width, height = width // factor, height // factor
    return pages


def array_bytes(pages: Sequence[Page], *, big: bool) -> int:
    return sum(page.tiles * (16 if big else 8) for page in pages if not page.striped)


@pytest.mark.parametrize("layout", ["after", "before", "head", "arrays-first"])
@pytest.mark.parametrize("big", [False, True])
@pytest.mark.parametrize(("width", "factor"), [(100_000, 2), (100_000, 4), (30_000, 2), (5000, 2)])
def test_a_pyramid_costs_little_wherever_its_directories_lie(width: int, factor: int, big: bool, layout: str) -> None:
    pages = pyramid(width, width * 4 // 5, factor)
    arrays: Literal["before", "behind"] = "before" if layout == "arrays-first" else "behind"
    data = tiff_bytes(pages, big=big, arrays=arrays, ifd_first=layout == "before", head_ifds=layout == "head")
    found, source = opened(data)
    assert [len(tiles.offset) for tiles in found.tiles] == [page.tiles for page in pages]
    check_cost(source, ifds=len(pages), header_bytes=array_bytes(pages, big=big))
    # The head, each directory with the arrays of the one before, and the arrays of the last.
    assert source.rounds <= len(pages) + 1
    if layout == "head" and width == 5000:
        assert source.rounds == 1


@pytest.mark.parametrize("factor", [2, 4])
@pytest.mark.parametrize("big", [False, True])
def test_sub_directories_are_read_together(factor: int, big: bool) -> None:
    pages = pyramid(100_000, 80_000, factor)
    sizes = b'SizeX="100000" SizeY="80000" SizeC="3"'
    xml = b"<OME><Image><Pixels " + sizes + b'><Channel SamplesPerPixel="3"/></Pixels></Image></OME>'
    pages[0].tags[270] = (2, xml + b"\0")
    found, source = opened(tiff_bytes(pages, big=big, sub=True))
    assert [len(tiles.offset) for tiles in found.tiles] == [page.tiles for page in pages]
    check_cost(source, ifds=len(pages), header_bytes=array_bytes(pages, big=big) + len(xml))
    assert source.rounds <= 5


def test_arrays_far_from_their_directory_and_each_other_wait_for_nothing() -> None:
    pages = pyramid(20_000, 16_000, 4)
    found, source = opened(tiff_bytes(pages, arrays="apart"))
    assert len(found.tiles) == len(pages)
    assert source.rounds <= len(pages) + 2
    assert sum(length for _, length in source.read) <= 1.3 * array_bytes(pages, big=False) + 32 * 1024 * len(pages)


def test_a_small_file_is_two_requests() -> None:
    pages = [Page(5000 >> k, 4000 >> k, tags=dict(REDUCED) if k else {}, padding=14_000 >> 2 * k) for k in range(3)]
    data = tiff_bytes(pages)
    found, source = opened(data[:-29_000])
    assert len(found.tiles) == len(pages)
    assert len(source.read) == source.rounds == 2


def test_neither_strips_nor_colour_profiles_are_read() -> None:
    profile = {34675: (UNDEFINED, b"\x11" * 300_000)}
    pages = [
        Page(20_000, 16_000, tags={270: APERIO, **profile}),
        Page(1000, 40_000, striped=True, tags=dict(profile)),
        Page(5000, 4000, tags=dict(profile)),
        Page(800, 30_000, striped=True, tags={254: (4, [1])}),
        Page(800, 30_000, striped=True, tags={254: (4, [9])}),
    ]
    found, source = opened(tiff_bytes(pages))
    assert len(found.tiles) == 2
    check_cost(source, ifds=len(pages), header_bytes=array_bytes(pages, big=False))


def test_offsets_and_lengths_of_a_large_level_are_one_request() -> None:
    found, source = opened(tiff_bytes([Page(100_000, 80_000)]))
    assert len(found.tiles[0].offset) == 122_383
    assert sum(length > 100_000 for _, length in source.read) == 1
    assert source.rounds <= 3


@pytest.mark.parametrize("kind", ["chain", "ome"])
def test_files_of_another_writer_cost_as_little(tmp_path: Path, kind: str) -> None:
    path, image = tmp_path / "x.tif", tissue_image(3000, 2500, 1)
    if kind == "chain":
        write_pyramid(path, image, downsamples=(1, 2, 4, 8), tile=32)
        ifds = 4
    else:
        with tifffile.TiffWriter(path, ome=True, bigtiff=True) as writer:
            for k in range(4):
                level = np.ascontiguousarray(image[:: 2**k, :: 2**k])
                below = {"subifds": 3} if k == 0 else {"subfiletype": 1}
                writer.write(level, tile=(32, 32), photometric="rgb", compression="zlib", **below)
            writer.write(image[:500, :400], photometric="rgb", metadata={"axes": "YXS", "Name": "label"})
        ifds = 5
    found, source = opened(path.read_bytes())
    assert len(found.tiles) == 4
    per_tile = 16 if kind == "ome" else 8
    check_cost(source, ifds=ifds, header_bytes=per_tile * sum(len(tiles.offset) for tiles in found.tiles))


@pytest.mark.parametrize("path", real_files("SLIDES_DIR", ".svs", ".tif", ".tiff"), ids=lambda path: path.name)
def test_real_slides_cost_little(path: Path) -> None:
    try:
        found, source = opened(path.read_bytes())
    except SlideFormatError as error:
        pytest.skip(f"refused, which test_slides_parity judges: {error}")
    with tifffile.TiffFile(path) as tiff:
        ifds = len(tiff.pages)
    headers = sum(12 * len(tiles.offset) for tiles in found.tiles)
    check_cost(source, ifds=ifds, header_bytes=headers)
