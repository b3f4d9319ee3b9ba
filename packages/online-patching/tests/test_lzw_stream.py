from __future__ import annotations

import subprocess
import sys
import time

import imagecodecs
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from online_patching import CorruptTileError
from online_patching.decode import decode_tile
from online_patching.formats.header import Codec, Colour, TileEncoding
from online_patching.lzw_stream import check_lzw
from written_slides import tissue_image

TILE = tissue_image(64, 64, 1)


def packed(codes: str) -> bytes:
    """Codes written as bits."""
    return int(codes.ljust(-(-len(codes) // 8) * 8, "0"), 2).to_bytes(-(-len(codes) // 8), "big")


def is_safe(data: bytes) -> bool:
    """Code by code: does a byte, or the end, follow every Clear code?"""
    bits = "".join(f"{byte:08b}" for byte in data)
    place, strings, after_clear = 0, 258, False
    while True:
        width = 9 if strings < 511 else 10 if strings < 1023 else 11 if strings < 2047 else 12
        if place + width > len(bits) or strings > 4095:
            return True
        code, place = int(bits[place : place + width], 2), place + width
        if code == 257:
            return True
        if code == 256:
            strings, after_clear = 258, True
        elif after_clear:
            if code > 257:
                return False
            after_clear = False
        else:
            strings += 1


@pytest.mark.parametrize("length", [1, 2, 300, 5000, 200_000])
@pytest.mark.parametrize("values", [1, 3, 256])
def test_what_a_writer_wrote_is_decoded(length: int, values: int) -> None:
    check_lzw(imagecodecs.lzw_encode(np.random.default_rng(0).integers(0, values, length, np.uint8).tobytes()))


@settings(max_examples=300, deadline=None)
@given(damage=st.lists(st.tuples(st.integers(2, 2000), st.integers(0, 255)), max_size=6), cut=st.integers(2, 8000))
def test_streams_that_would_crash_the_library_are_refused(damage: list[tuple[int, int]], cut: int) -> None:
    stream = bytearray(imagecodecs.lzw_encode(TILE))
    for place, value in damage:
        stream[place] = value
    data = bytes(stream[:cut])
    refusal = ""
    try:
        check_lzw(data)
    except ValueError as error:
        refusal = str(error)
    assert "too many" in refusal or bool(refusal) != is_safe(data)


def test_a_string_after_a_clear_code_is_a_corrupt_tile_and_no_crash() -> None:
    clear, string, byte = "100000000", "100101100", "000000001"
    for codes in (clear + string + byte * 40, clear + byte * 5 + clear + string * 3 + byte * 40):
        with pytest.raises(CorruptTileError, match="a string before its bytes"):
            decode_tile(packed(codes), TileEncoding(Codec.LZW, Colour.RGB), 64, 64)
    with pytest.raises(CorruptTileError, match="Clear code"):
        decode_tile(b"\0\1" + bytes(50), TileEncoding(Codec.LZW, Colour.RGB), 64, 64)


def test_tables_cleared_all_the_time_are_refused_in_time() -> None:
    for codes in ("100000000" * 200_000, ("100000000" + "000000001") * 100_000):
        started = time.process_time()
        with pytest.raises(ValueError, match="too many tables"):
            check_lzw(packed(codes))
        assert time.process_time() - started < 2


def test_thousands_of_damaged_tiles_crash_no_process() -> None:
    program = (
        "import imagecodecs, numpy as np\n"
        "from online_patching import CorruptTileError\n"
        "from online_patching.decode import decode_tile\n"
        "from online_patching.formats.header import Codec, Colour, TileEncoding\n"
        "rng = np.random.default_rng(0)\n"
        "tile = np.cumsum(rng.integers(-2, 3, (64, 64, 3)), axis=1).astype(np.uint8)\n"
        "stored, decoded = imagecodecs.lzw_encode(tile.tobytes()), 0\n"
        "for _ in range(4000):\n"
        "    damaged = bytearray(stored)\n"
        "    for _ in range(rng.integers(0, 9)):\n"
        "        damaged[rng.integers(len(damaged))] = rng.integers(256)\n"
        "    try:\n"
        "        decode_tile(bytes(damaged), TileEncoding(Codec.LZW, Colour.RGB), 64, 64)\n"
        "        decoded += 1\n"
        "    except CorruptTileError:\n"
        "        pass\n"
        "print('decoded', decoded)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-500:]
    assert int(done.stdout.split()[1]) > 100
