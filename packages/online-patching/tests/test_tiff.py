"""Headers over a network: what they cost, and what hostile ones do."""

from __future__ import annotations

import struct
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from online_patching import SlideFormatError, open_slide
from online_patching.bytesource import ByteRange, ObjectInfo, read_start_by_info
from online_patching.errors import PatchingError
from online_patching.index import SlideIndex, index_slide
from online_patching.loop import run
from online_patching.storage import Store
from written_slides import tissue_image, write_pyramid


class MemorySource:
    """Bytes in memory as an object (a source like any other: it only has no network)."""

    url = "memory://slide"

    def __init__(self, data: bytes) -> None:
        self.data = data

    async def info(self) -> ObjectInfo:
        return ObjectInfo(len(self.data), "1")

    async def read_start(self, length: int) -> tuple[bytes, ObjectInfo]:
        return await read_start_by_info(self, length)

    async def read_ranges(self, ranges: Sequence[ByteRange], *, expected: ObjectInfo | None = None) -> list[bytes]:
        return [self.data[start : start + length] for start, length in ranges]


class MemoryStore(Store):
    """A store that holds one object, whatever its name."""

    def __init__(self, source: MemorySource) -> None:
        super().__init__()
        self.source = source

    def open(self, url: str) -> MemorySource:
        return self.source


@pytest.fixture(scope="module")
def pyramid(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("tiff") / "p.svs"
    write_pyramid(path, tissue_image(900, 700, 5), downsamples=(1, 2, 4))
    return path.read_bytes()


@pytest.mark.parametrize("bigtiff", [False, True])
@pytest.mark.parametrize("byteorder", ["<", ">"])
def test_levels_of_both_tiffs_in_both_byte_orders(tmp_path: Path, bigtiff: bool, byteorder: str) -> None:
    path = tmp_path / "x.svs"
    levels = write_pyramid(path, tissue_image(700, 500, 1), mpp=0.499, bigtiff=bigtiff, byteorder=byteorder)
    slide = open_slide(str(path))
    assert [(g.height_px, g.width_px) for g in slide.levels] == [level.shape[:2] for level in levels]
    assert slide.mpp == 0.499
    assert slide.header.vendor == "aperio"


def test_indexing_reads_headers_only(tmp_path: Path) -> None:
    path = tmp_path / "x.svs"
    write_pyramid(path, tissue_image(4000, 3000, 1), downsamples=(1, 4, 16), tile=64)
    index = run(index_slide(str(path), Store()))
    ifds = 3
    array_bytes = sum(12 * len(ranges.offset) for ranges in index.tiles)
    assert index.requests <= ifds + 4
    assert index.bytes_read <= 1.3 * array_bytes + 32 * 1024 * ifds


def index_or_error(source: MemorySource) -> SlideIndex | PatchingError:
    try:
        return run(index_slide("memory://slide", MemoryStore(source)))
    except PatchingError as error:
        return error


@settings(max_examples=150, deadline=2000, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_headers_end_in_a_typed_error_quickly(pyramid: bytes, data: st.DataObject) -> None:
    damaged = bytearray(pyramid)
    ifd = struct.unpack("<I", damaged[4:8])[0]
    for _ in range(data.draw(st.integers(1, 6))):
        place = data.draw(st.one_of(st.integers(0, 15), st.integers(ifd, min(ifd + 300, len(damaged) - 1))))
        damaged[place] = data.draw(st.integers(0, 255))
    cut = data.draw(st.one_of(st.just(len(damaged)), st.integers(0, len(damaged))))
    started = time.monotonic()
    result = index_or_error(MemorySource(bytes(damaged[:cut])))
    if isinstance(result, PatchingError):
        assert "memory://slide" in str(result)
    else:
        assert all(g.width_px > 0 and g.tile_width_px > 0 for g in result.header.levels)
    assert time.monotonic() - started < 1


def test_a_loop_of_directories_is_an_error() -> None:
    entries = struct.pack("<HHHII", 1, 256, 3, 1, 100)
    loop = b"II*\0" + struct.pack("<I", 8) + entries + struct.pack("<I", 8) + bytes(32)
    with pytest.raises(SlideFormatError, match="loop"):
        run(index_slide("memory://slide", MemoryStore(MemorySource(loop))))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "0 bytes"),
        (b"not a slide at all, but long enough", "not a slide"),
        (b"II*\0" + struct.pack("<I", 10**9) + bytes(64), "past its end"),
        (b"II*\0" + struct.pack("<I", 0) + bytes(64), "without any image directory"),
        (b"II+\0" + struct.pack("<HHQ", 4, 0, 16) + bytes(64), "offset size"),
    ],
)
def test_what_is_not_a_slide_is_refused_by_reason(data: bytes, reason: str) -> None:
    with pytest.raises(SlideFormatError, match=reason):
        run(index_slide("memory://slide", MemoryStore(MemorySource(data))))


def test_a_truncated_slide_is_refused_when_it_is_opened(tmp_path: Path) -> None:
    path = tmp_path / "cut.svs"
    write_pyramid(path, tissue_image(700, 500, 1), compression=None)
    path.write_bytes(path.read_bytes()[:-50_000])
    with pytest.raises(SlideFormatError, match=r"cut\.svs.*cut off"):
        open_slide(str(path))
