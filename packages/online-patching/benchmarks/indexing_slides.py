"""Slides with headers of the size that scanners write, and what those headers weigh.

Directories lie as Aperio's do (data, directory, arrays; stripped pages between the levels), as in files whose arrays
come before their directory, and as tifffile puts them (directory before data). Only tiles are filler bytes: indexing
must not read them. By default they are a tenth as long as real ones, so files are small for their headers, which
favours whoever reads far ahead; ``tile_bytes`` makes them as long as wanted.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tifffile

# Also for indexing.py, which imports this module before it needs the tools.
sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "tools"))
from svs_writer import Tag, TiffPages

_SHORT, _LONG = 3, 4
_JPEG, _LZW, _APERIO_JPEG2000_RGB = 7, 5, 33005
_RGB = 2
# Quantisation and Huffman tables of libjpeg have this length; nobody decodes them here.
_JPEG_TABLES = bytes([0xFF, 0xD8]) + bytes(570) + bytes([0xFF, 0xD9])


@dataclass(frozen=True, slots=True, kw_only=True)
class HeaderSpec:
    """A slide whose headers are as asked for.

    Attributes:
        name: File name.
        width_px, height_px: Size of level 0.
        tile_px: Side of a tile.
        downsamples: Of the levels.
        writer: "aperio", "arrays-first" for an Aperio slide whose arrays lie before their directory, or "tifffile" for
            a generic pyramid.
        compression: TIFF compression of the levels.
        big_tiff: 64-bit offsets.
        tile_bytes: Mean length of a tile.
    """

    name: str
    width_px: int
    height_px: int
    tile_px: int
    downsamples: tuple[int, ...]
    writer: str
    compression: int
    big_tiff: bool = False
    tile_bytes: int = 1024


FULL = (
    HeaderSpec(
        name="aperio-jpeg-122k.svs",
        width_px=100_000,
        height_px=70_000,
        tile_px=240,
        downsamples=(1, 4, 16, 32),
        writer="aperio",
        compression=_JPEG,
    ),
    HeaderSpec(
        name="arrays-first-jpeg2000-33k.svs",
        width_px=49_920,
        height_px=43_000,
        tile_px=256,
        downsamples=(1, 4, 16),
        writer="arrays-first",
        compression=_APERIO_JPEG2000_RGB,
    ),
    HeaderSpec(
        name="tiff-deflate-26k.tif",
        width_px=40_960,
        height_px=40_960,
        tile_px=256,
        downsamples=(1, 2, 4, 8, 16, 32),
        writer="tifffile",
        compression=8,
    ),
    HeaderSpec(
        name="bigtiff-jpeg-122k.tif",
        width_px=100_000,
        height_px=80_000,
        tile_px=256,
        downsamples=(1, 2, 4, 8, 16, 32, 64),
        writer="tifffile",
        compression=_JPEG,
        big_tiff=True,
    ),
)
SMALL = (
    HeaderSpec(
        name="aperio-jpeg-small.svs",
        width_px=20_000,
        height_px=15_000,
        tile_px=240,
        downsamples=(1, 4, 16),
        writer="aperio",
        compression=_JPEG,
    ),
    HeaderSpec(
        name="bigtiff-deflate-small.tif",
        width_px=12_000,
        height_px=9_000,
        tile_px=256,
        downsamples=(1, 2, 4),
        writer="tifffile",
        compression=8,
        big_tiff=True,
    ),
)
COHORT_SLIDE = HeaderSpec(
    name="cohort.svs",
    width_px=40_000,
    height_px=32_000,
    tile_px=240,
    downsamples=(1, 4, 16),
    writer="aperio",
    compression=_JPEG,
    tile_bytes=128,
)


def write_slide(folder: Path, spec: HeaderSpec) -> Path:
    """Write one slide into a folder."""
    path = folder / spec.name
    if spec.writer == "tifffile":
        _write_pyramid(path, spec)
    else:
        _write_aperio(path, spec)
    return path


def _filler(count: int, mean_bytes: int) -> Iterator[bytes]:
    """Blocks of differing lengths, as tiles have them."""
    rng = np.random.default_rng(count)
    pool = rng.bytes(2 * mean_bytes)
    for length in rng.integers(mean_bytes // 2, 3 * mean_bytes // 2, count).tolist():
        yield pool[:length]


def _level_size(spec: HeaderSpec, downsample: int) -> tuple[int, int, int]:
    """Width and height of a level in pixels, and its number of tiles."""
    width, height = spec.width_px // downsample, spec.height_px // downsample
    return width, height, -(-width // spec.tile_px) * -(-height // spec.tile_px)


def _write_aperio(path: Path, spec: HeaderSpec) -> None:
    with TiffPages(path, big_tiff=spec.big_tiff, arrays_first=spec.writer == "arrays-first") as pages:
        for downsample in spec.downsamples:
            width, height, tiles = _level_size(spec, downsample)
            tags: list[Tag] = [(322, _SHORT, (spec.tile_px,)), (323, _SHORT, (spec.tile_px,))]
            if spec.compression == _JPEG:
                tags += [(530, _SHORT, (2, 2)), (347, 7, _JPEG_TABLES)]
            tags += _image_tags(width, height, spec.compression, f"{width}x{height} of a pyramid")
            pages.add_page(tags, pages.append(_filler(tiles, spec.tile_bytes)), tiled=True)
            if downsample == 1:
                _write_stripped(pages, 1024, 768, _JPEG, "thumbnail")
        _write_stripped(pages, 400, 460, _LZW, "label 400x460")
        _write_stripped(pages, 1280, 431, _JPEG, "macro 1280x431")


def _write_stripped(pages: TiffPages, width: int, height: int, compression: int, title: str) -> None:
    tags: list[Tag] = [(278, _SHORT, (16,))]
    if compression == _JPEG:
        tags += [(530, _SHORT, (2, 2)), (347, 7, _JPEG_TABLES)]
    tags += _image_tags(width, height, compression, title)
    pages.add_page(tags, pages.append(_filler(-(-height // 16), 4096)), tiled=False)


def _image_tags(width: int, height: int, compression: int, title: str) -> list[Tag]:
    properties = "|AppMag = 40|MPP = 0.2500|" + "|".join(f"Scanner setting {k} = {k * 1.5}" for k in range(20))
    description = f"Aperio Image Library v12.0.15 \r\n{title}{properties}\0"
    return [
        (254, _LONG, (0,)),
        (256, _LONG, (width,)),
        (257, _LONG, (height,)),
        (258, _SHORT, (8, 8, 8)),
        (259, _SHORT, (compression,)),
        (262, _SHORT, (_RGB,)),
        (270, 2, description.encode("ascii")),
        (277, _SHORT, (3,)),
        (284, _SHORT, (1,)),
    ]


def _write_pyramid(path: Path, spec: HeaderSpec) -> None:
    with tifffile.TiffWriter(path, bigtiff=spec.big_tiff) as writer:
        for downsample in spec.downsamples:
            width, height, tiles = _level_size(spec, downsample)
            writer.write(
                _filler(tiles, spec.tile_bytes),
                shape=(height, width, 3),
                dtype="uint8",
                photometric="rgb",
                tile=(spec.tile_px, spec.tile_px),
                compression=spec.compression,
                subfiletype=1 if downsample > 1 else 0,
                resolution=(40_000 / downsample, 40_000 / downsample),
                resolutionunit="CENTIMETER",
                metadata=None,
            )


@dataclass(frozen=True, slots=True)
class HeaderSize:
    """What an indexer has to read of a TIFF at most.

    Attributes:
        ifds: Directories of the main chain.
        header_bytes: Directories with the values and arrays outside of them.
    """

    ifds: int
    header_bytes: int


def header_size(path: Path) -> HeaderSize:
    """The headers of a TIFF on disk, measured by tifffile.

    Raises:
        tifffile.TiffFileError: Not a TIFF.
    """
    with tifffile.TiffFile(path) as tiff:
        fixed, entry, inline = (16, 20, 8) if tiff.is_bigtiff else (6, 12, 4)
        total = 16
        for page in tiff.pages:
            assert isinstance(page, tifffile.TiffPage), "tifffile reads whole directories unless told otherwise"
            sizes = [tag.valuebytecount for tag in page.tags]
            total += fixed + entry * len(sizes) + sum(size for size in sizes if size > inline)
        return HeaderSize(len(tiff.pages), total)
