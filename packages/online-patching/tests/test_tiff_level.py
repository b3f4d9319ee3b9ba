"""What a tiled directory becomes: every codec and colour against OpenSlide and tifffile, and what is refused."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import openslide
import pytest
import tifffile
from online_patching import SlideFormatError, open_slide
from online_patching.decode import Pixels
from tiff_bytes import LONG, SHORT, Page, tiff_bytes
from written_slides import tissue_image

WIDTH, HEIGHT = 300, 200
RGB = tissue_image(WIDTH, HEIGHT, 1)
GREY = np.ascontiguousarray(RGB[..., 1])
APERIO = "Aperio Image Library v11.2.1\r\nsample|AppMag = 20|MPP = 0.5"

# One tile of 64 x 64 px of compression 33003 for each chroma subsampling, encoded by OpenJPEG's opj_compress 2.5.0.
TILES_33003 = {
    "4:4:4": (
        "/0//UQAvAAAAAABAAAAAQAAAAAAAAAAAAAAAQAAAAEAAAAAAAAAAAAADBwEBBwEBBwEB/1IADAAAAAEABQQEAAD/XAAjQncgdvB2"
        "8HbAbwBvAG7gZ1BnUGdoUAVQBVBHV9NX01di/2QAJQABQ3JlYXRlZCBieSBPcGVuSlBFRyB2ZXJzaW9uIDIuNS4w/5AACgAAAAAC"
        "5wAB/5PH9gcB33F0sz4vwPyBgA/OtPSe38H6gwAPaIaR0MPA/IGg+8GgfYCgC5pJ8fdtD2NLi0HkCqtQ3NPAHxhIA+kLAHwBgApC"
        "uZ4Ln8DJXwvOysB94NAfeDQH3goKQjg4Cl8Ln8FxkTEOQcGA/cH2CMH4ikD6SAAgwoaA2ZIw6ln4La+mB1F22hm59moeh6MoMvyv"
        "sluU3QTbnmOkJNOLNwiW+KERhiG1/j6OxcA+MVAPjFwB8QkgFoW3qUR2bJrmGnkDtQ9DapQzZhwkWtMI2atAzOrA+sPgfSOgPmGA"
        "H/gYn6cLY1AynxJ319CVGnkFaFlt8hAHZcga8NAkWtMkTxASaBhUt/TB9ZJA+Y/APiPAX9pgqW/6dlYOjQMlSnzM83sLj4+5zzYC"
        "lKDDNlU5BomfBF0NIDELTLjfV0WpvCpIn0RxeIaGY9f0qhSDiniLAlPOaxW5RNnafw3kH3yPmlYmtCb1gnBwKErnQq4K27WGhMA+"
        "IjAHjgBfL4YFKH8LFoClwDWBTReFtCDdDUy431dFqbwqSqllwPpPwHym4A8sXy+9rEYxfNNMf3IWy6546R3HP8vToDkBe5KxEYeg"
        "3CDdDUy431c69fqkqpx+VPdlSeIg99VK0pe6ChZiTHR1IcPm6ysJiVCCvly6R/mdeG/A+JdB8ieA+BdroPUYGvrotqUpi7cHMh3v"
        "8Y8kVJdEPfFpa5cqaJEZr5M9aUGSyc1UKrA+oNn9PJuvu66inXCQHRrBYR+MxXydvi4VUZWNOKgM/Yw9y0ZcjGgYZ7HYc8i9thPS"
        "OrrE8sCH0rqaqZhCxmDihlrAFWBsSXlyLLlDVXr8YcB5qA8wbEvjyRTxWOokgBMqYIaFsNbS+yguBRu5IZQtK3cS6ehrnuw7LzA0"
        "kgdIOWasjS6nrTjANQgC2ADFQkU4gRLAw7LCfyokrQY1XGrkettqex5o5a5SMSIZ7MkJbh6Aqgl1gID/2Q=="
    ),
    "4:2:2": (
        "/0//UQAvAAAAAABAAAAAQAAAAAAAAAAAAAAAQAAAAEAAAAAAAAAAAAADBwEBBwIBBwIB/1IADAAAAAEABQQEAAD/XAAjQncgdvB2"
        "8HbAbwBvAG7gZ1BnUGdoUAVQBVBHV9NX01di/2QAJQABQ3JlYXRlZCBieSBPcGVuSlBFRyB2ZXJzaW9uIDIuNS4w/5AACgAAAAAC"
        "7QAB/5PH9gcB33F0sz4vwH3gYAqfBcH6ggALVTh/wPyBoPvBoH2AoAuaSfH3bQ9jS4tB5AqrUNzTwD7AOAPpBwA4IArbvwuhfwPu"
        "wPyBID7wSAfYBgrfOD8LnP0fA5nfwfYIwfiKQPpIACDChoDZkjDqWfgtr6YHUXbaGbn2ah6Hoygy/K+yW5TdBNueY6Qk04s3CJb4"
        "oRGGIbX+Po7FwD4w8A+kPAHxhgo83rQG3NsaeRORcVApGfAtalmxwPvCoH0iIB9IgAo83rSzB9Qy1NMag32wlaJDZAApjIXAxAUn"
        "wfcVwPmPwD4jwF/aYKlv+nZWDo0DJUp8zPN7C4+Puc82ApSgwzZVOQaJnwRdDWL70Q1oeIYgMQtMuN9XRam8KkifRHF4hoZj1/Sq"
        "FIOKeIsCU85rFblE2dp/DeQffI+aVia0JvWCcHAoSudCrgrbtYaEwD4yEAeHgBxIIrmhYuOWFKmLoOJtbW16VhvG7TBqJEEWmwuy"
        "4UUwClTA+gtAfMQgHxDwIrmhYuPe8oZTeIxKIEq3H7TVVK8B3hvG7TuvC3Gg0XGg+xuMgGYg40JQH7pLkAp6jHbO7KvA+NrB8rKA"
        "+BdroPUYGvrotqUpi7cHMh3v8Y8kVJdEPfFpa5cqaJEZr5M9aUGSyc1UKrA+oNn97fc0rBCbXDybr7uuop1wkB0awWEfjMV8nb4u"
        "FVGVjTioDP2MPctGXIxoGGex2FxKK3th5zbQ2qXqc8i9thPSOrrE8sCH0rqaqZhCxmDihlrANRA+H0Bd4N0vEfcrx8v5s23yesD4"
        "08B8A8AnPih+YSMC0sNlLs4XIfokuSIlX/TeGLTbdcltHHsHoNE7vESMEa9uKMFj4rjZMR1jXPVPDKPANQgC2ADFQkU4gRLAw7LC"
        "fyokrQY1XGrkettqex5o5a5SMSIZ7MkJbh6Aqgl1gMA6+JmQ+b7wYOAAMGaydIxPnoskAgmc74LeCd4pr/mE/Kb/2Q=="
    ),
    "4:2:0": (
        "/0//UQAvAAAAAABAAAAAQAAAAAAAAAAAAAAAQAAAAEAAAAAAAAAAAAADBwEBBwICBwIC/1IADAAAAAEABQQEAAD/XAAjQncgdvB2"
        "8HbAbwBvAG7gZ1BnUGdoUAVQBVBHV9NX01di/2QAJQABQ3JlYXRlZCBieSBPcGVuSlBFRyB2ZXJzaW9uIDIuNS4w/5AACgAAAAAC"
        "7wAB/5PH9gcB33F0sz4vwH3gQARfwPyAgAHIwPyBoP1B4H2AoAuaSfH3bQ9jS4tB5N8Kq1Dc08AfSCgD6QMAPmBAAD8ABD/AfeBQ"
        "H3gUA+wCAa8AAwSfwfeJwfiKQPpIACDChoDZkjDqWfgtr6YHUXbaktEZufZqHoejKDL8r7JblN0E255jpCTTizcIlvihEYYhtf4+"
        "jsXAHBwD6QkAfMEACkKKEEusJwvOr2/AfYCwH2AsA+kKCkI4AX8Ln8DhgQvFHdGvwfcVwPrKYB8aMF/aYKlv+nZWDo0DJUp8zPN7"
        "C4+Puc82ApSgwzZVOQaJnwRdDWL70Q1oeIYgMQtMuN9XRam8KkifRHF4hoZj1/SqFIOKeIsCU85rdWius9+1E0FiCxW5RNnafw3k"
        "H3yPmlYmtCb1gnBwKErnQq4K27WGhADPPFSSwD5RUA+MXAHwEh/4Ks7yWP06l/AadYtuQyY7Ra+CgCQk2S414FZYhsD6w6B9YhAf"
        "MNAf+BifqhimDKrU01Ze1xp1i/8Fuq8HJtmHczIBfLwkJO80nSV6oPO/d6IUwPjawfM5gPgXa6D1GBr66LalKYu3BzId7/GPJFSX"
        "RD3xaWuXKmiRGa+TPWlBksnNVCqwPqDZ/e33NKwQm1w8m6+7rqKdcJAdGsFhH4zFfJ2+LhVRlY04qAz9jD3LRlyMaBhnsdhcSit7"
        "Yec20Nql6jefQd2O489zyL22E9I6usTywIfSupqpmELGYOKGWsB4qAcSXy+HpDUtqY9WbiDdDWppi2qWA8D4iUD4ikA5QBnMRmxX"
        "vJXzFWswvJGQtjAVySDlLntdTZdstCxR1Cv3vcmhrB2TGXstr/jrC6Nq6N4BTMZgycA6zAFsAMVCRTiBEsDDssJ/KiStBjUZyBcz"
        "Fjg/SEhcauR622p7HmjlrlIxIhnsyQluHoCqCXWAwDp8A5QAanIg7oyryApn7O5yDRAmMwpDa3yiAmwCfVAlsoF+jv/Z"
    ),
}


def write(path: Path, pixels: npt.NDArray[Any], *, tile: tuple[int, int] = (64, 64), **options: Any) -> Path:
    tifffile.imwrite(path, pixels, tile=tile, metadata=None, **options)
    return path


def read(path: Path) -> Pixels:
    slide = open_slide(str(path))
    base = slide.levels[0]
    return slide.read_level(level=0, x_px=0, y_px=0, width_px=base.width_px, height_px=base.height_px)


def by_openslide(path: Path) -> npt.NDArray[np.uint8]:
    """RGBA."""
    with openslide.OpenSlide(str(path)) as oracle:
        return np.asarray(oracle.read_region((0, 0), 0, oracle.dimensions))


def by_tifffile(path: Path) -> Pixels:
    pixels = tifffile.imread(path, key=0)
    return pixels if pixels.ndim == 3 else np.repeat(pixels[..., None], 3, axis=2)


LOSSLESS = [
    (None, {}),
    ("deflate", {"predictor": True}),
    ("adobe_deflate", {}),
    ("lzw", {"predictor": True}),
    ("zstd", {"predictor": True}),
    ("packbits", {}),
]
KINDS = [
    *(
        (photometric, *kind)
        for photometric in ("rgb", "minisblack", "miniswhite")
        for kind in [*LOSSLESS, ("jpeg", {})]
    ),
    ("rgb", "jpeg", {"subsampling": (1, 1)}),
    ("ycbcr", "jpeg", {"subsampling": (1, 1)}),
    ("ycbcr", "jpeg", {}),
]


@pytest.mark.parametrize("bigtiff", [False, True])
@pytest.mark.parametrize("byteorder", ["<", ">"])
@pytest.mark.parametrize("tile", [(64, 64), (16, 256)])
@pytest.mark.parametrize(("photometric", "compression", "options"), KINDS)
def test_pixels_are_those_of_openslide(
    tmp_path: Path,
    compression: str | None,
    options: Mapping[str, Any],
    photometric: str,
    tile: tuple[int, int],
    byteorder: str,
    bigtiff: bool,
) -> None:
    pixels = GREY if photometric.startswith("minis") else RGB
    more = {"photometric": photometric, "byteorder": byteorder, "bigtiff": bigtiff, **options}
    path = write(tmp_path / "x.tif", pixels, tile=tile, compression=compression, **more)
    result = read(path)
    if openslide.OpenSlide.detect_format(str(path)) is None:
        assert (byteorder, bigtiff) == (">", False), "OpenSlide refuses no more than big-endian files of tifffile"
    else:
        np.testing.assert_array_equal(result, by_openslide(path)[..., :3])
    stored = by_tifffile(path)
    np.testing.assert_array_equal(result, 255 - stored if photometric == "miniswhite" else stored)


@pytest.mark.parametrize(
    ("compression", "pixels"), [("webp", RGB), ("jpeg2000", RGB), ("jpeg2000", GREY)], ids=["webp", "j2k", "j2k-grey"]
)
def test_codecs_that_openslide_lacks_read_as_tifffile_reads_them(
    tmp_path: Path, compression: str, pixels: npt.NDArray[np.uint8]
) -> None:
    photometric = "rgb" if pixels.ndim == 3 else "minisblack"
    path = write(tmp_path / "x.tif", pixels, compression=compression, photometric=photometric)
    np.testing.assert_array_equal(read(path), by_tifffile(path))


def test_aperio_rgb_jpeg2000_reads_as_openslide_reads_it(tmp_path: Path) -> None:
    path = write(tmp_path / "x.svs", RGB, compression=33005, photometric="rgb", description=APERIO)
    np.testing.assert_array_equal(read(path), by_openslide(path)[..., :3])


@pytest.mark.parametrize("subsampling", list(TILES_33003))
def test_aperio_ycbcr_jpeg2000_is_at_most_1_off_openslide(tmp_path: Path, subsampling: str) -> None:
    tile = base64.b64decode(TILES_33003[subsampling])
    options = {"shape": (128, 128, 3), "dtype": "uint8", "tile": (64, 64), "photometric": "rgb", "metadata": None}
    path = tmp_path / "x.svs"
    tifffile.imwrite(path, iter([tile] * 4), compression=33003, description=APERIO, **options)
    result, expected = read(path).astype(int), by_openslide(path)[..., :3]
    assert np.abs(result - expected).max() <= (0 if subsampling == "4:4:4" else 1)
    assert np.abs(result[:64, :64] - tissue_image(64, 64, 3)).mean() < 6


@pytest.mark.parametrize("kind", ["unassalpha", "assocalpha", "unspecified"])
def test_transparent_pixels_are_laid_over_white(tmp_path: Path, kind: str) -> None:
    alpha = (np.arange(WIDTH) % 256 * np.ones((HEIGHT, 1))).astype(np.uint8)
    alpha[:100] = 255
    colours = RGB if kind == "unassalpha" else (RGB * (alpha[..., None] / 255)).astype(np.uint8)
    options = {"compression": "deflate", "photometric": "rgb", "extrasamples": [kind]}
    path = write(tmp_path / "x.tif", np.dstack([colours, alpha]), **options)
    result, oracle = read(path), by_openslide(path)
    np.testing.assert_array_equal(result[:100], oracle[:100, :, :3])
    over_white = oracle[..., :3] * (oracle[..., 3:] / 255) + 255 - oracle[..., 3:].astype(float)
    # OpenSlide divides by the opacity, in bytes, and this multiplies again: two roundings.
    assert np.abs(result - over_white).max() <= 2


def test_a_second_grey_sample_without_meaning_does_not_count(tmp_path: Path) -> None:
    options = {"compression": "deflate", "photometric": "minisblack", "planarconfig": "contig"}
    path = write(tmp_path / "x.tif", np.dstack([GREY, 255 - GREY]), **options)
    result = read(path)
    np.testing.assert_array_equal(result, by_tifffile(path)[..., :1].repeat(3, 2))
    # libtiff, under OpenSlide, loses its place in the rows of tiles that reach past the right edge.
    whole = WIDTH // 64 * 64
    np.testing.assert_array_equal(result[:, :whole], by_openslide(path)[:, :whole, :3])


@pytest.mark.parametrize("orientation", range(2, 9))
def test_orientation_does_not_move_pixels(tmp_path: Path, orientation: int) -> None:
    tag = [(274, SHORT, 1, orientation, True)]
    path = write(tmp_path / "x.tif", RGB, compression="jpeg", photometric="rgb", extratags=tag)
    np.testing.assert_array_equal(read(path), by_openslide(path)[..., :3])


def test_a_tile_of_no_bytes_is_white(tmp_path: Path) -> None:
    path = tmp_path / "x.tif"
    page = Page(512, 256, padding=0, tile=bytes(256 * 256 * 3), tags={259: (SHORT, [1])})
    data = tiff_bytes([page])
    lengths = (256 * 256 * 3).to_bytes(4, "little")
    path.write_bytes(data.replace(lengths * 2, lengths + bytes(4)))
    result = read(path)
    assert not result[:, :256].any()
    assert (result[:, 256:] == 255).all()


def test_pages_that_are_no_reduced_versions_are_no_levels(tmp_path: Path) -> None:
    """As OpenSlide has it: other pages of a generic TIFF may be anything."""
    path = tmp_path / "x.tif"
    with tifffile.TiffWriter(path) as writer:
        for pixels, kind in ((RGB, 0), (RGB[::2, ::2], 0), (RGB[::4, ::4], 1), (RGB[:64, :20], 0)):
            options = {"tile": (64, 64), "photometric": "rgb", "subfiletype": kind, "metadata": None}
            writer.write(np.ascontiguousarray(pixels), **options)
    sizes = [(level.width_px, level.height_px) for level in open_slide(str(path)).levels]
    with openslide.OpenSlide(str(path)) as oracle:
        assert sizes == list(oracle.level_dimensions) == [(WIDTH, HEIGHT), (WIDTH // 4, HEIGHT // 4)]


@pytest.mark.parametrize(("dpi", "mpp"), [(72, None), (96, None), (50_800, 0.5), (101_600, 0.25)])
def test_mpp_of_what_libraries_write_without_knowing_is_none(tmp_path: Path, dpi: int, mpp: float | None) -> None:
    path = write(tmp_path / "x.tif", RGB, photometric="rgb", resolution=(dpi, dpi), resolutionunit="inch")
    assert open_slide(str(path)).mpp == (pytest.approx(mpp) if mpp else None)


REFUSED: dict[str, tuple[dict[int, tuple[int, Any]], str]] = {
    "palette": ({262: (SHORT, [3]), 277: (SHORT, [1]), 258: (SHORT, [8])}, "palette"),
    "CMYK": ({262: (SHORT, [5]), 277: (SHORT, [4]), 258: (SHORT, [8] * 4)}, "CMYK"),
    "16 bit": ({258: (SHORT, [16] * 3)}, "16 bits"),
    "12-bit JPEG": ({258: (SHORT, [12] * 3), 259: (SHORT, [7])}, "12 bits"),
    "1 bit": ({258: (SHORT, [1]), 277: (SHORT, [1]), 262: (SHORT, [1])}, "1 bits"),
    "float": ({339: (SHORT, [3] * 3)}, "format 3"),
    "planar": ({284: (SHORT, [2])}, "planar configuration 2"),
    "old JPEG": ({259: (SHORT, [6])}, "old-style JPEG"),
    "JPEG XR": ({259: (SHORT, [34934])}, "JPEG XR"),
    "unknown codec": ({259: (SHORT, [52479])}, "52479"),
    "lossless YCbCr": ({262: (SHORT, [6])}, "YCbCr"),
    "grey with alpha": (
        {262: (SHORT, [1]), 277: (SHORT, [2]), 258: (SHORT, [8, 8]), 338: (SHORT, [2])},
        "2 samples a pixel",
    ),
    "5 samples": ({277: (SHORT, [5]), 258: (SHORT, [8] * 5)}, "5 samples a pixel"),
    "RGBA JPEG": ({277: (SHORT, [4]), 258: (SHORT, [8] * 4), 259: (SHORT, [7])}, "4 samples a pixel"),
    "float predictor": ({317: (SHORT, [3])}, "predictor 3"),
    "bits reversed": ({266: (SHORT, [2])}, "fill order 2"),
    "too few offsets": ({324: (LONG, [8])}, "4 tiles expected, 1 offsets"),
}


@pytest.mark.parametrize("name", list(REFUSED))
def test_what_cannot_be_read_with_certain_colours_is_refused_by_name(tmp_path: Path, name: str) -> None:
    tags, reason = REFUSED[name]
    path = tmp_path / "x.tif"
    path.write_bytes(tiff_bytes([Page(512, 512, padding=0, tags=tags)]))
    with pytest.raises(SlideFormatError, match=rf"x\.tif: .*{reason}"):
        open_slide(str(path))


def test_strips_are_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "x.tif"
    tifffile.imwrite(path, RGB, photometric="rgb")
    with pytest.raises(SlideFormatError, match="without tiles"):
        open_slide(str(path))
