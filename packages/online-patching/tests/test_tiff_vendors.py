"""What holds for every vendor's dialect of TIFF: asked for by name, cheap to open, damage survived."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from online_patching import SlideFormatError
from online_patching.index import index_slide
from online_patching.loop import run
from online_patching.storage import Store
from slide_checks import MEMORY_URL, MemoryStore, assert_damage_is_survived, index_bytes
from written_slides import tissue_image
from written_vendor_slides import Pixels, write_leica, write_ndpi, write_philips, write_ventana

WRITERS: dict[str, Callable[[Path, Pixels], None]] = {
    "Philips TIFF": write_philips,
    "Leica SCN": write_leica,
    "Hamamatsu NDPI": write_ndpi,
    "Ventana BIF": write_ventana,
}
dialects = pytest.mark.parametrize("name", WRITERS)


@cache
def written(name: str) -> bytes:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "x.tiff"
        WRITERS[name](path, tissue_image(1024, 768, 3))
        return path.read_bytes()


@cache
def header_places(name: str) -> list[tuple[int, int]]:
    """Where headers lie: the first bytes, the directories, and the texts behind them."""
    places = [(0, 16)]
    with TemporaryDirectory() as folder:
        path = Path(folder) / "x.tiff"
        path.write_bytes(written(name))
        with tifffile.TiffFile(path, is_ndpi=True if name == "Hamamatsu NDPI" else None) as opened:
            for page in opened.pages:
                places.append((page.offset, page.offset + 280))
                places += [(t.valueoffset, t.valueoffset + t.count) for t in page.tags if t.code in (270, 700)]
    return places


@dialects
def test_a_dialect_opens_only_where_experimental_formats_are_asked_for(name: str) -> None:
    with pytest.raises(SlideFormatError, match=rf"a {name}: .* experimental.*own writing.*experimental=True"):
        run(index_slide(MEMORY_URL, MemoryStore(written(name))))


@pytest.mark.parametrize("name", [name for name in WRITERS if name != "Hamamatsu NDPI"])
def test_opening_reads_headers_only(name: str) -> None:
    index = index_bytes(written(name))
    directories = len(header_places(name)) - 1
    arrays = sum(12 * len(ranges.offset) for ranges in index.tiles)
    texts = sum(end - start for start, end in header_places(name))
    assert index.requests <= directories + 4
    assert index.bytes_read <= 1.3 * (arrays + texts) + 32 * 1024 * directories


def test_a_description_of_100_mb_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "x.tiff"
    write_philips(path, tissue_image(128, 128, 3), description="<a>" + "x" * 100_000_000 + "</a>", downsamples=(1,))
    started = time.process_time()
    with pytest.raises(SlideFormatError, match=r"x\.tiff.*claims 100000008 values"):
        run(index_slide(str(path), Store(), experimental=True))
    assert time.process_time() - started < 1


@dialects
@settings(max_examples=100, deadline=2000)
@given(data=st.data())
def test_damaged_headers_end_in_a_typed_error_quickly(name: str, data: st.DataObject) -> None:
    damaged = bytearray(written(name))
    for _ in range(data.draw(st.integers(1, 6))):
        start, end = data.draw(st.sampled_from(header_places(name)))
        place = data.draw(st.integers(start, min(end, len(damaged)) - 1))
        damaged[place] = data.draw(st.integers(0, 255))
    cut = data.draw(st.one_of(st.just(len(damaged)), st.integers(0, len(damaged))))
    assert_damage_is_survived(bytes(damaged[:cut]))
