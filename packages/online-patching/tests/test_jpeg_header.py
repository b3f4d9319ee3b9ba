"""The header of a JPEG: what encoders write is understood, what cannot be read in parts is refused."""

from __future__ import annotations

import cv2
import imagecodecs
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from online_patching.formats.header import Colour
from online_patching.formats.jpeg_header import parse_jpeg_header

IMAGE = np.random.default_rng(0).integers(0, 256, (48, 96, 3), np.uint8)


def encoded(*options: int) -> bytes:
    return bytes(cv2.imencode(".jpg", IMAGE, list(options))[1].tobytes())


@pytest.mark.parametrize(
    ("sampling", "mcu"),
    [
        (cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444, (8, 8)),
        (cv2.IMWRITE_JPEG_SAMPLING_FACTOR_422, (16, 8)),
        (cv2.IMWRITE_JPEG_SAMPLING_FACTOR_420, (16, 16)),
        (cv2.IMWRITE_JPEG_SAMPLING_FACTOR_411, (32, 8)),
    ],
)
def test_size_mcu_and_interval_are_those_that_were_asked_for(sampling: int, mcu: tuple[int, int]) -> None:
    jpeg = encoded(cv2.IMWRITE_JPEG_SAMPLING_FACTOR, sampling, cv2.IMWRITE_JPEG_RST_INTERVAL, 3)
    header = parse_jpeg_header(jpeg)
    assert (header.width_px, header.height_px) == (96, 48)
    assert (header.mcu_width_px, header.mcu_height_px) == mcu
    assert header.restart_interval_mcus == 3
    assert jpeg.startswith(header.data)
    assert parse_jpeg_header(header.resized(1000, 8)).width_px == 1000


@pytest.mark.parametrize(("space", "colour"), [("rgb", Colour.RGB), ("ycbcr", Colour.YCBCR)])
def test_colour_is_what_the_encoder_stored(space: str, colour: Colour) -> None:
    header = parse_jpeg_header(bytes(imagecodecs.jpeg8_encode(IMAGE, level=90, outcolorspace=space)))
    assert header.colour is colour


def test_component_ids_tell_rgb_where_no_marker_does() -> None:
    jpeg = bytes(imagecodecs.jpeg8_encode(IMAGE, level=90, outcolorspace="rgb"))
    adobe = jpeg.index(b"\xff\xee")
    length = int.from_bytes(jpeg[adobe + 2 : adobe + 4], "big")
    assert parse_jpeg_header(jpeg[:adobe] + jpeg[adobe + 2 + length :]).colour is Colour.RGB


@pytest.mark.parametrize(
    ("jpeg", "reason"),
    [
        (encoded(cv2.IMWRITE_JPEG_PROGRESSIVE, 1), "SOF2"),
        (bytes(imagecodecs.jpeg8_encode(IMAGE[..., 0].copy(), level=90)), "three 8-bit components"),
        (encoded()[:200], "broken or longer"),
        (b"", "no JPEG"),
    ],
    ids=["progressive", "grey", "cut", "empty"],
)
def test_other_jpegs_are_refused_by_reason(jpeg: bytes, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        parse_jpeg_header(jpeg)


@given(place=st.integers(0, 700), value=st.integers(0, 255), cut=st.integers(0, 800))
def test_a_damaged_header_is_read_or_refused(place: int, value: int, cut: int) -> None:
    jpeg = bytearray(encoded())
    jpeg[place] = value
    try:
        header = parse_jpeg_header(bytes(jpeg[:cut]))
    except ValueError:
        return
    assert header.mcu_width_px in (8, 16, 24, 32)
    assert header.mcu_height_px in (8, 16, 24, 32)
    assert len(header.resized(8, 8)) == len(header.data)
