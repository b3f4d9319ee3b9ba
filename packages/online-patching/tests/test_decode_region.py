from __future__ import annotations

import io
import multiprocessing
import os
import random
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import cv2
import imagecodecs
import numpy as np
import pytest
import simplejpeg
from hypothesis import given, settings
from hypothesis import strategies as st
from online_patching import CorruptTileError, jpeg_decode, nvimgcodec_decode
from online_patching.decode import (
    Pixels,
    TilePart,
    decode_region,
    decode_regions,
    decode_tile,
    decoder_name,
    reductions,
)
from online_patching.formats.header import Codec, Colour, TileEncoding
from online_patching.jpeg2000_stream import reduced
from PIL import Image
from written_slides import tissue_image

YCBCR = TileEncoding(Codec.JPEG, Colour.YCBCR)
SAMPLINGS = ("444", "422", "420", "440", "411")
with_nvimgcodec = pytest.mark.skipif(not nvimgcodec_decode.is_available(), reason="the extra nvimgcodec is not there")


def textured(width: int, height: int, seed: int = 0) -> Pixels:
    """No block is like its neighbour."""
    coarse = np.random.default_rng(seed).integers(0, 256, (height // 5 + 2, width // 5 + 2, 3), dtype=np.uint8)
    return np.ascontiguousarray(cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC))


def jpeg(image: Pixels, sampling: str = "420", quality: int = 80) -> bytes:
    return bytes(simplejpeg.encode_jpeg(image, quality=quality, colorspace="RGB", colorsubsampling=sampling))


def random_region(rng: random.Random, width: int, height: int) -> tuple[int, int, int, int]:
    x0, y0 = rng.randrange(width), rng.randrange(height)
    return x0, y0, rng.randint(x0 + 1, width), rng.randint(y0 + 1, height)


@pytest.fixture(params=["simplejpeg", "nvimgcodec"])
def decoders(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Each of the ways a part of a JPEG can be decoded, for every part."""
    if request.param == "simplejpeg":
        monkeypatch.setattr(nvimgcodec_decode, "is_available", lambda: False)
    elif nvimgcodec_decode.is_available():
        monkeypatch.setattr(jpeg_decode, "REGION_SHARE", 2.0)
        monkeypatch.setattr(jpeg_decode, "REGION_SHARE_SUBSAMPLED", 2.0)
    else:
        pytest.skip("the extra nvimgcodec is not there")
    return str(request.param)


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize(("width", "height"), [(240, 240), (256, 256), (101, 67), (33, 130)])
def test_any_number_of_rows_has_the_pixels_of_the_whole_tile(
    sampling: str, width: int, height: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nvimgcodec_decode, "is_available", lambda: False)
    data = jpeg(textured(width, height), sampling)
    whole = simplejpeg.decode_jpeg(data)
    for rows in range(1, height + 1):
        got = decode_region(TilePart(data, YCBCR, width, height, (0, 0, width, rows)))
        np.testing.assert_array_equal(got, whole[:rows], err_msg=f"{rows} rows")


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize(("width", "height"), [(240, 240), (256, 256), (512, 512), (101, 67)])
def test_a_region_has_the_pixels_of_the_whole_tile(decoders: str, sampling: str, width: int, height: int) -> None:
    rng = random.Random(width)
    data = jpeg(textured(width, height), sampling)
    whole = decode_tile(data, YCBCR, width, height)
    np.testing.assert_array_equal(whole, imagecodecs.jpeg8_decode(data))
    for _ in range(40):
        x0, y0, x1, y1 = random_region(rng, width, height)
        got = decode_region(TilePart(memoryview(b"....." + data)[5:], YCBCR, width, height, (x0, y0, x1, y1)))
        np.testing.assert_array_equal(got, whole[y0:y1, x0:x1], err_msg=f"{decoders}: {(x0, y0, x1, y1)}")


def test_tiles_with_shared_tables_and_other_markers_have_the_stated_colours(decoders: str) -> None:
    image = textured(256, 256)
    whole = bytes(imagecodecs.jpeg8_encode(image, level=80, colorspace="RGB", outcolorspace="RGB", subsampling="444"))
    expected = imagecodecs.jpeg8_decode(whole, colorspace="RGB", outcolorspace="RGB")
    segments, place = [], 2
    while whole[place + 1] != 0xDA:
        end = place + 2 + int.from_bytes(whole[place + 2 : place + 4], "big")
        segments.append(whole[place:end])
        place = end
    tables = b"".join(s for s in segments if s[1] in (0xDB, 0xC4))
    others = b"".join(s for s in segments if s[1] not in (0xDB, 0xC4) and not 0xE0 <= s[1] <= 0xEF)
    encoding = TileEncoding(Codec.JPEG, Colour.RGB, jpeg_tables=b"\xff\xd8" + tables + b"\xff\xd9")
    jfif = b"\xff\xe0\x00\x10JFIF\x00\x01\x01\x00\x00\x01\x00\x01\x00\x00"
    adobe_ycbcr = b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00\x01"
    for remarks in (b"", jfif, adobe_ycbcr):
        data = b"\xff\xd8" + remarks + others + whole[place:] + b"\0" * 7
        np.testing.assert_array_equal(decode_tile(data, encoding, 256, 256), expected)
        got = decode_region(TilePart(data, encoding, 256, 256, (100, 70, 200, 190)))
        np.testing.assert_array_equal(got, expected[70:190, 100:200])


@pytest.mark.parametrize("progressive", [False, True])
def test_restart_markers_and_progressive_jpegs(decoders: str, progressive: bool) -> None:
    options = {"progressive": True} if progressive else {"restart_marker_blocks": 5}
    buffer = io.BytesIO()
    Image.fromarray(textured(240, 200)).save(buffer, "JPEG", quality=80, subsampling=2, **options)
    data = buffer.getvalue()
    assert progressive or b"\xff\xd3" in data
    whole = imagecodecs.jpeg8_decode(data)
    rng = random.Random(0)
    for region in [(0, 0, 240, rows) for rows in range(1, 201)] + [random_region(rng, 240, 200) for _ in range(40)]:
        x0, y0, x1, y1 = region
        got = decode_region(TilePart(data, YCBCR, 240, 200, region))
        np.testing.assert_array_equal(got, whole[y0:y1, x0:x1], err_msg=f"{region}")


def test_grey_tiles(decoders: str) -> None:
    image = np.ascontiguousarray(textured(120, 90)[..., 0])
    data = bytes(imagecodecs.jpeg8_encode(image, level=85))
    grey = imagecodecs.jpeg8_decode(data)
    for colour, want in ((Colour.GREY, grey), (Colour.WHITE_IS_ZERO, 255 - grey)):
        encoding = TileEncoding(Codec.JPEG, colour)
        np.testing.assert_array_equal(decode_tile(data, encoding, 120, 90), np.repeat(want[..., None], 3, 2))
        got = decode_region(TilePart(data, encoding, 120, 90, (10, 20, 50, 61)))
        np.testing.assert_array_equal(got, np.repeat(want[20:61, 10:50, None], 3, 2))


def test_other_codecs_give_the_rectangle_of_the_whole_tile() -> None:
    image = tissue_image(96, 64, 1)
    stored = {
        Codec.JPEG2000: imagecodecs.jpeg2k_encode(image, codecformat="j2k", reversible=True),
        Codec.WEBP: imagecodecs.webp_encode(image, lossless=True),
        Codec.JPEG_LS: imagecodecs.jpegls_encode(image),
        Codec.DEFLATE: imagecodecs.zlib_encode(image.tobytes()),
        Codec.RAW: image.tobytes(),
    }
    for codec, data in stored.items():
        encoding = TileEncoding(codec)
        got = decode_region(TilePart(memoryview(bytes(data)), encoding, 96, 64, (3, 5, 90, 33)))
        np.testing.assert_array_equal(got, image[5:33, 3:90], err_msg=codec)


@pytest.mark.parametrize("sampling", ["444", "420"])
def test_damage_in_what_is_needed_is_an_error_and_below_it_is_not(decoders: str, sampling: str) -> None:
    image = textured(256, 256)
    data = jpeg(image, sampling)
    whole = simplejpeg.decode_jpeg(data)
    half = data[: len(data) // 2]
    rest = len(data) - len(half)
    damaged = (half, half + b"\xff\xd9", half + b"\xff\xd9" + bytes(rest), half + bytes(rest - 2) + b"\xff\xd9")
    for bad in damaged:
        with pytest.raises(CorruptTileError):
            decode_tile(bad, YCBCR, 256, 256)
        for region in ((0, 0, 256, 256), (40, 100, 200, 250), (0, 192, 64, 256), (192, 192, 250, 230), (0, 0, 9, 254)):
            with pytest.raises(CorruptTileError):
                decode_region(TilePart(bad, YCBCR, 256, 256, region))
    got = decode_region(TilePart(half + b"\xff\xd9", YCBCR, 256, 256, (0, 0, 256, 64)))
    np.testing.assert_array_equal(got, whole[:64])


@pytest.mark.parametrize("needed_share", [0.6, 0.95])
def test_data_that_ends_early_never_gives_other_pixels(decoders: str, needed_share: float) -> None:
    """Cut anywhere and closed with the marker for the end: an error, or the pixels of the undamaged tile."""
    data = jpeg(textured(256, 256), "444")
    whole = simplejpeg.decode_jpeg(data)
    bottom, errors = int(256 * needed_share), 0
    for cut in range(len(data) - 3, 700, -len(data) // 150):
        for region in ((30, bottom - 60, 220, bottom), (128, 0, 256, bottom)):
            x0, y0, x1, y1 = region
            try:
                got = decode_region(TilePart(data[:cut] + b"\xff\xd9", YCBCR, 256, 256, region))
            except CorruptTileError:
                errors += 1
            else:
                np.testing.assert_array_equal(got, whole[y0:y1, x0:x1], err_msg=f"cut at {cut}")
    assert errors > 100


def test_a_tile_of_the_grey_that_fills_gaps_is_no_damage(decoders: str) -> None:
    data = jpeg(np.full((256, 256, 3), 128, np.uint8), "444")
    assert (decode_region(TilePart(data, YCBCR, 256, 256, (128, 128, 200, 200))) == 128).all()


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_damaged_jpegs_decode_to_the_rectangle_or_are_corrupt(data: st.DataObject) -> None:
    damaged = bytearray(jpeg(tissue_image(64, 64, 1)))
    for _ in range(data.draw(st.integers(1, 5))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    with suppress(CorruptTileError):
        assert decode_region(TilePart(bytes(damaged), YCBCR, 64, 64, (10, 20, 30, 64))).shape == (44, 20, 3)


@pytest.mark.parametrize("sampling", ["444", "422", "420"])
def test_a_reduced_jpeg_is_libjpegs_scaled_tile_and_near_the_average(sampling: str) -> None:
    image = tissue_image(256, 256, 2)
    data = jpeg(image, sampling)
    whole = decode_tile(data, YCBCR, 256, 256)
    for factor in (2, 4, 8):
        side = 256 // factor
        pillow = Image.open(io.BytesIO(data))
        pillow.draft("RGB", (side, side))
        expected = np.asarray(pillow)
        average = cv2.resize(whole, (side, side), interpolation=cv2.INTER_AREA)
        for region in ((0, 0, side, side), (3, 2, side - 4, side // 2), (0, side - 5, 9, side - 1)):
            x0, y0, x1, y1 = region
            got = decode_region(TilePart(data, YCBCR, 256, 256, region, reduction=factor))
            np.testing.assert_array_equal(got, expected[y0:y1, x0:x1])
            assert np.abs(got.astype(int) - average[y0:y1, x0:x1]).mean() < 4


@pytest.mark.parametrize("options", [{"mct": True}, {"mct": False}, {"reversible": True}, {"resolutions": 3}])
@pytest.mark.parametrize("side", [256, 240])
def test_a_reduced_jpeg2000_is_openjpegs_coarser_resolution(side: int, options: dict[str, object]) -> None:
    data = bytes(imagecodecs.jpeg2k_encode(tissue_image(side, side, 3), level=45, codecformat="j2k", **options))
    for factor in (2, 4):
        pillow = Image.open(io.BytesIO(data))
        pillow.reduce = factor.bit_length() - 1  # type: ignore[attr-defined]
        pillow.load()
        got = decode_region(
            TilePart(
                data, TileEncoding(Codec.JPEG2000), side, side, (0, 0, side // factor, side // factor), reduction=factor
            )
        )
        # Two builds of OpenJPEG round the irreversible wavelet differently.
        assert np.abs(got.astype(int) - np.asarray(pillow)).max() <= 1
        assert reduced(data, factor) is not None


def test_a_jpeg2000_whose_header_tells_too_little_is_averaged() -> None:
    image = tissue_image(64, 64, 3)
    data = bytes(imagecodecs.jpeg2k_encode(image, codecformat="jp2", reversible=True))
    assert reduced(data, 2) is None
    got = decode_region(TilePart(data, TileEncoding(Codec.JPEG2000), 64, 64, (0, 0, 32, 32), reduction=2))
    np.testing.assert_array_equal(got, cv2.resize(image, (32, 32), interpolation=cv2.INTER_AREA))


def test_what_can_be_reduced() -> None:
    assert reductions(YCBCR, 256, 240) == (2, 4, 8)
    assert reductions(TileEncoding(Codec.JPEG2000), 254, 240) == (2,)
    assert reductions(TileEncoding(Codec.DEFLATE), 256, 256) == ()
    with pytest.raises(ValueError, match="cannot be reduced by 3"):
        decode_region(TilePart(b"", YCBCR, 256, 256, (0, 0, 1, 1), reduction=3))


@pytest.mark.parametrize("region", [(0, 0, 65, 64), (-1, 0, 4, 4), (5, 5, 5, 6), (0, 9, 4, 3)])
def test_a_rectangle_outside_of_the_tile_is_refused(region: tuple[int, int, int, int]) -> None:
    with pytest.raises(ValueError, match="not within a tile of 64 x 64 px"):
        decode_region(TilePart(jpeg(tissue_image(64, 64, 1)), YCBCR, 64, 64, region))


@pytest.mark.parametrize("bytes_a_call", [1, 100_000, 4 << 20])
def test_parts_decoded_together_are_those_decoded_alone(
    decoders: str, bytes_a_call: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jpeg_decode, "MAX_BYTES_A_CALL", bytes_a_call)
    rng = random.Random(3)
    images = [jpeg(textured(256, 256, seed), sampling) for seed, sampling in enumerate(SAMPLINGS)]
    grey = bytes(imagecodecs.jpeg8_encode(np.ascontiguousarray(textured(256, 256)[..., 0]), level=85))
    raw = textured(256, 256, 9)
    parts = [TilePart(rng.choice(images), YCBCR, 256, 256, random_region(rng, 256, 256)) for _ in range(24)]
    parts[5] = TilePart(images[0][: len(images[0]) // 3], YCBCR, 256, 256, (0, 0, 256, 250))
    parts[6] = TilePart(b"no JPEG at all", YCBCR, 256, 256, (3, 4, 100, 90))
    parts[7] = TilePart(grey, TileEncoding(Codec.JPEG, Colour.GREY), 256, 256, (1, 2, 30, 40))
    parts[8] = TilePart(raw.tobytes(), TileEncoding(Codec.RAW), 256, 256, (9, 8, 77, 66))
    parts[9] = TilePart(images[1], YCBCR, 256, 256, (0, 0, 64, 64), 2)
    for number, (part, got) in enumerate(zip(parts, decode_regions(parts), strict=True)):
        if number in (5, 6):
            assert isinstance(got, CorruptTileError)
        else:
            # Before the next is decoded: it may take the memory of this one.
            together = np.array(got)
            x0, y0, x1, y1 = part.region
            expected = decode_region(part) if number == 9 else decode_tile(*part[:4])[y0:y1, x0:x1]
            np.testing.assert_array_equal(together, expected, err_msg=f"part {number}")


def test_many_threads_decode_at_once(decoders: str) -> None:
    images = [jpeg(textured(256, 256, seed), "422") for seed in range(8)]
    wholes = [simplejpeg.decode_jpeg(data) for data in images]

    def work(seed: int) -> None:
        rng = random.Random(seed)
        for _ in range(60):
            k, (x0, y0, x1, y1) = rng.randrange(8), random_region(rng, 256, 256)
            got = decode_region(TilePart(images[k], YCBCR, 256, 256, (x0, y0, x1, y1)))
            assert (got == wholes[k][y0:y1, x0:x1]).all()

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(work, range(12)))


def _decode_in_child(data: bytes) -> Pixels:
    return decode_region(TilePart(data, YCBCR, 256, 256, (128, 128, 256, 256))).copy()


@with_nvimgcodec
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_a_forked_child_decodes() -> None:
    data = jpeg(textured(256, 256), "444")
    expected = _decode_in_child(data)
    with multiprocessing.get_context("fork").Pool(1) as pool:
        np.testing.assert_array_equal(pool.apply_async(_decode_in_child, (data,)).get(timeout=30), expected)


@with_nvimgcodec
def test_loading_nvimgcodec_prints_nothing_and_is_put_off_until_it_is_needed() -> None:
    program = (
        "import sys, threading, online_patching.decode as d; assert 'nvidia' not in sys.modules\n"
        "from online_patching import nvimgcodec_decode as n; assert n.is_available()\n"
        "import simplejpeg, numpy as np; image = np.arange(49152, dtype=np.uint8).reshape(128, 128, 3)\n"
        "data = simplejpeg.encode_jpeg(image, colorsubsampling='444')\n"
        "part = lambda: n.decode_jpeg_parts([n.RegionPart(data, (3, 5, 60, 70), (128, 128), (8, 8))])[0]\n"
        "thread = threading.Thread(target=part); thread.start(); thread.join()\n"
        "assert part().shape == (65, 57, 3)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_decoder_is_named() -> None:
    assert decoder_name(YCBCR).endswith("simplejpeg")
    assert ("nvImageCodec" in decoder_name(YCBCR)) == nvimgcodec_decode.is_available()
    assert decoder_name(TileEncoding(Codec.JPEG2000)) == "imagecodecs"
