"""DICOM files that are damaged or made to do harm: a typed error that names the file, quickly and in little memory."""

from __future__ import annotations

import struct
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from online_patching import SlideFormatError
from online_patching.errors import PatchingError
from slide_checks import index_bytes, index_or_error
from written_dicom import write_dicom
from written_slides import tissue_image

URL = "memory://cohort/a.dcm"
SECONDS, MEMORY_BYTES = 1.0, 256 << 20
ITEM, ITEM_END, SEQUENCE_END = b"\xfe\xff\x00\xe0", b"\xfe\xff\x0d\xe0", b"\xfe\xff\xdd\xe0"
UNDEFINED = b"\xff" * 4
PER_FRAME, SPECIMEN = b"\x00\x52\x30\x92SQ\0\0", b"\x40\x00\x60\x05SQ\0\0"


def assert_names_the_file(error: PatchingError) -> None:
    assert URL in str(error)
    assert "\n" not in str(error)


def refusal(data: bytes) -> str:
    """The error of a hostile file, which must come in time and in little memory."""
    started = time.process_time()
    with pytest.raises(SlideFormatError) as caught:
        index_bytes(data, URL)
    assert time.process_time() - started < SECONDS
    assert_names_the_file(caught.value)
    tracemalloc.start()
    try:
        index_or_error(data, URL)
        assert tracemalloc.get_traced_memory()[1] < MEMORY_BYTES
    finally:
        tracemalloc.stop()
    return str(caught.value)


def written(folder: Path, **options: object) -> bytes:
    image = tissue_image(300, 200, 3)
    return write_dicom(folder / "x.dcm", image, series="1.2.3", **options).read_bytes()  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("dicom")
    sparse = [13, 0, 7, 3, 9, 19]
    return {
        "full": written(folder),
        "extended": written(folder, table="extended"),
        "walked": written(folder, table="none"),
        "sparse": written(folder, frames_of=sparse, undefined_lengths=True),
        "implicit": written(folder, codec="implicit", frames_of=sparse),
    }


@settings(max_examples=300, deadline=2000, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_files_end_in_a_typed_error_quickly(files: dict[str, bytes], data: st.DataObject) -> None:
    base = files[data.draw(st.sampled_from(sorted(files)))]
    damaged = bytearray(base)
    pixels = max(base.find(b"\xe0\x7f\x10\x00"), 132)
    for _ in range(data.draw(st.integers(1, 5))):
        place = data.draw(st.one_of(st.integers(128, pixels + 120), st.integers(0, len(base) - 1)))
        if data.draw(st.booleans()):
            damaged[place] = data.draw(st.sampled_from([0, 1, 0x7F, 0x80, 0xFE, 0xFF]))
        else:
            damaged[place : place + 4] = data.draw(st.binary(min_size=4, max_size=4))
    cut = data.draw(st.one_of(st.just(len(damaged)), st.integers(0, len(damaged))))
    started = time.process_time()
    result = index_or_error(bytes(damaged[:cut]), URL)
    assert time.process_time() - started < SECONDS
    if isinstance(result, PatchingError):
        assert_names_the_file(result)
    else:
        assert all(g.width_px > 0 and g.tile_width_px > 0 for g in result.header.levels)
        for ranges, geometry in zip(result.tiles, result.header.levels, strict=True):
            assert len(ranges.offset) == len(ranges.length) == geometry.tiles_x * geometry.tiles_y
            assert (ranges.offset + ranges.length <= cut).all()


@settings(max_examples=60, deadline=2000, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(share=st.floats(0, 1, exclude_max=True), name=st.sampled_from(["full", "extended", "walked", "sparse"]))
def test_cut_files_are_refused(files: dict[str, bytes], share: float, name: str) -> None:
    # The delimiter behind the last frame may be lost: every frame is there.
    data = files[name]
    result = index_or_error(data[: int(share * (len(data) - 9))], URL)
    assert isinstance(result, SlideFormatError)
    assert_names_the_file(result)


def before_pixels(data: bytes, inserted: bytes) -> bytes:
    """The file with an element in place of all between the shared groups and the pixels."""
    start = data.find(b"\x00\x52\x29\x92SQ")
    assert start > 0
    return data[:start] + inserted + data[data.find(b"\xe0\x7f\x10\x00OB") :]


def nested(depth: int) -> bytes:
    return (SPECIMEN + UNDEFINED + ITEM + UNDEFINED) * depth


@pytest.mark.parametrize(
    ("inserted", "reason"),
    [
        (PER_FRAME + struct.pack("<I", 0xFFFFFFF0), "past its end"),
        (PER_FRAME + UNDEFINED, "where an item of a sequence should"),
        (PER_FRAME + UNDEFINED + ITEM + struct.pack("<I", 0xFFFFFFF0), "no end of it"),
        (nested(5000), "nested more than 16 deep"),
        (PER_FRAME + UNDEFINED + (ITEM + bytes(4)) * 4_000_000, "more elements in it than any slide needs"),
        (PER_FRAME + struct.pack("<I", 24_000_000) + (ITEM + bytes(4)) * 3_000_000, "allowed: 1073152"),
        (PER_FRAME + struct.pack("<I", 800_000) + (ITEM + bytes(4)) * 100_000, "frame 1 of 6 has no position"),
        (PER_FRAME + UNDEFINED + ITEM_END + bytes(4), "ends where none was open"),
        ((b"\x00\x52\x2a\x92UT\0\0" + bytes(4)) * 5000, "more than 4096 elements"),
        (b"\x00\x52\x2a\x92\x01\x02\x03\x04", "for its representation"),
    ],
    ids=[
        "huge",
        "no-items",
        "huge-item",
        "nested",
        "many-items",
        "many-bytes",
        "empty-items",
        "end",
        "many-elements",
        "garbage",
    ],
)
def test_sequences_are_bounded(files: dict[str, bytes], inserted: bytes, reason: str) -> None:
    assert reason in refusal(before_pixels(files["sparse"], inserted))


def replaced_table(data: bytes, change: Callable[[np.ndarray], None]) -> bytes:
    """The file with another basic offset table."""
    start = data.find(b"\xe0\x7f\x10\x00OB") + 12
    (length,) = struct.unpack_from("<I", data, start + 4)
    table = np.frombuffer(data, "<u4", length // 4, start + 8).copy()
    change(table)
    return data[: start + 8] + table.tobytes() + data[start + 8 + length :]


def test_wrong_offset_tables_are_refused(files: dict[str, bytes]) -> None:
    def far(table: np.ndarray) -> None:
        table[-1] = 0xFFFFFFF0

    def falling(table: np.ndarray) -> None:
        table[3], table[4] = table[4], table[3]

    def shifted(table: np.ndarray) -> None:
        table[1:] += 2

    assert "points past its end" in refusal(replaced_table(files["full"], far))
    assert "does not rise" in refusal(replaced_table(files["full"], falling))
    assert "no frame begins at byte" in refusal(replaced_table(files["full"], shifted))
    start = files["full"].find(b"\xe0\x7f\x10\x00OB") + 16
    short = files["full"][:start] + struct.pack("<I", 76) + files["full"][start + 4 :]
    assert "an offset table of 76 bytes for 20 frames" in refusal(short)


def test_wrong_extended_tables_are_refused(files: dict[str, bytes]) -> None:
    data = files["extended"]
    offsets, lengths = (data.find(tag + b"OV\0\0") + 12 for tag in (b"\xe0\x7f\x01\x00", b"\xe0\x7f\x02\x00"))
    for start, value, reason in (
        (offsets + 8, 1 << 63, "points past its end"),
        (offsets + 8, 3, "does not rise"),
        (lengths + 8, 1 << 63, "not the one fragment"),
        (lengths + 8, 1, "not the one fragment"),
    ):
        assert reason in refusal(data[:start] + struct.pack("<Q", value) + data[start + 8 :])
    shorter = data[: lengths - 4] + struct.pack("<I", 152) + data[lengths : lengths + 152] + data[lengths + 160 :]
    assert "extended offset tables of 160 and 152 bytes for 20 frames" in refusal(shorter)


def test_chains_of_frames_that_lead_astray_are_refused(files: dict[str, bytes]) -> None:
    data = files["walked"]
    first = data.find(b"\xe0\x7f\x10\x00OB") + 12 + 8
    assert data[first : first + 4] == ITEM
    for length, reason in ((0xFFFFFFF0, "past its end"), (0xFFFFFFFF, "no frame begins"), (6, "no frame begins")):
        assert reason in refusal(data[: first + 4] + struct.pack("<I", length) + data[first + 8 :])
    assert "20 frames expected, 0 found" in refusal(data[:first] + SEQUENCE_END + bytes(4))
    assert "more fragments than its 20 frames" in refusal(data[:first] + (ITEM + bytes(4)) * 200_000)


def test_a_file_that_claims_millions_of_frames_is_refused(files: dict[str, bytes]) -> None:
    stored = b"\x28\x00\x08\x00IS\x02\x0020"
    assert stored in files["full"]
    for digits in (10, 60_000):
        claim = stored[:6] + struct.pack("<H", digits) + b"9" * digits
        assert "frames on a grid of 5 x 4 tiles" in refusal(files["full"].replace(stored, claim))
