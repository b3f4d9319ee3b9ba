"""How is a pyramidal slide written, tile by tile, without holding it in memory?

Steps: `write_slide` takes the finest level as bands (full-width stripes from the top), encodes each
band's tiles at once and appends them to the file, and keeps only the lower levels, by area averaging.
When the last band is in, it writes the pages in Aperio's order: baseline (tiled), thumbnail (stripped),
lower levels (tiled), label, macro. `TiffPages` is the container: blocks first, then the page's IFD and
behind it the values that do not fit there, as Aperio does.

`tile_encoding` makes the bytes of a tile.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import cv2
import imagecodecs
import numpy as np
import numpy.typing as npt
from tile_encoding import U8, TileEncoder

_SHORT, _LONG, _RATIONAL, _LONG8 = 3, 4, 5, 16
_FORMATS = {1: "B", 2: "B", _SHORT: "H", _LONG: "I", _RATIONAL: "I", 7: "B", _LONG8: "Q"}
_STRIP_ROWS = 16
_LIBRARY = "Aperio Image Library v12.0.15 "

Tag = tuple[int, int, tuple[int, ...] | bytes]  # number, field type, values


@dataclass(frozen=True, slots=True, kw_only=True)
class SlideSpec:
    """What a written slide shall be.

    Attributes:
        width_px, height_px: Size of level 0.
        tile_px: Edge of a tile, a multiple of 16.
        encoding: A key of `tile_encoding.ENCODINGS`.
        quality: 1 to 100.
        mpp: um per pixel of level 0, or None: the file then says nothing.
        app_mag: Aperio's nominal magnification, or None.
        downsamples: Of the levels, rising from 1, whole numbers.
        vendor: "aperio", or "generic" for a plain pyramidal TIFF.
        big_tiff: 64-bit offsets.
        name: Written on the label and into the description.
    """

    width_px: int
    height_px: int
    tile_px: int = 256
    encoding: str = "jpeg-rgb"
    quality: int = 75
    mpp: float | None = None
    app_mag: int | None = None
    downsamples: tuple[int, ...] = (1, 4, 16)
    vendor: str = "aperio"
    big_tiff: bool = False
    name: str = "slide"

    def __post_init__(self) -> None:
        TileEncoder(encoding=self.encoding, quality=self.quality)  # refuses what it cannot encode
        if self.tile_px < 16 or self.tile_px % 16:
            raise ValueError(f"tile {self.tile_px}: must be a multiple of 16, such as 240 or 256")
        if self.encoding == "none" and self.tile_px % 32:  # libtiff 4.7 misjudges the size of the last raw tile
            raise ValueError(f"tile {self.tile_px}: must be a multiple of 32 without compression, such as 256")
        if self.downsamples[:1] != (1,) or list(self.downsamples) != sorted(set(self.downsamples)):
            raise ValueError(f"downsamples {self.downsamples}: must rise from 1, such as 1,4,16")
        if min(self.width_px, self.height_px) < max(self.downsamples):
            size = f"{self.width_px} x {self.height_px}"
            raise ValueError(f"image of {size} px: too small for downsample {max(self.downsamples)}; leave it out")
        if self.mpp is not None and not (math.isfinite(self.mpp) and self.mpp > 0):
            raise ValueError(f"mpp {self.mpp}: must be a positive number of um per pixel")
        if self.vendor not in ("aperio", "generic"):
            raise ValueError(f"vendor {self.vendor!r}: must be aperio or generic")
        if self.vendor == "generic" and self.encoding.startswith("jp2k"):
            raise ValueError(f"encoding {self.encoding} exists in Aperio files only; use vendor aperio")

    @property
    def band_px(self) -> int:
        """Height in pixels of every band but the last: whole tiles, and whole pixels of every level."""
        return math.lcm(self.tile_px, *self.downsamples)


def write_slide(
    path: Path, spec: SlideSpec, bands: Iterable[U8], *, on_band: Callable[[int], object] | None = None
) -> None:
    """Writes one slide; the file appears under its name only when it is whole.

    Args:
        path: The file to write.
        spec: What to write.
        bands: Level 0 from the top, uint8 RGB (`spec.band_px`, width, 3), the last one as high as what
            is left.
        on_band: Called with the number of rows of each band that is written.

    Raises:
        ValueError: A band is not of the size that `spec` asks for.
    """
    partial = path.with_name(path.name + ".partial")
    try:
        with TiffPages(partial, big_tiff=spec.big_tiff) as pages:
            _write_pages(pages, spec, bands, on_band)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _write_pages(
    pages: TiffPages, spec: SlideSpec, bands: Iterable[U8], on_band: Callable[[int], object] | None
) -> None:
    lower = {d: np.empty((spec.height_px // d, spec.width_px // d, 3), np.uint8) for d in spec.downsamples[1:]}
    encoder = TileEncoder(encoding=spec.encoding, quality=spec.quality)
    tiles = _tiles_of_bands(spec, bands, lower, on_band)
    _write_level(pages, spec, 1, (spec.width_px, spec.height_px), tiles, encoder)
    if spec.vendor == "aperio" and lower:
        large_enough = [image for image in lower.values() if image.shape[1] >= 1024 or image.shape[0] >= 768]
        source = large_enough[-1] if large_enough else next(iter(lower.values()))
        thumbnail = _fit(source, width_px=min(1024, source.shape[1]), height_px=min(768, source.shape[0]))
        height, width = thumbnail.shape[:2]
        title = f"{spec.width_px}x{spec.height_px} -> {width}x{height} - |{_properties(spec)}"
        _write_stripped(pages, thumbnail, title=title, subfile=0, compression=7)
    for downsample, image in lower.items():
        height, width = image.shape[:2]
        encoder = TileEncoder(encoding=spec.encoding, quality=spec.quality)
        tiles = _tiles_of_rows(spec.tile_px, image)
        _write_level(pages, spec, downsample, (width, height), tiles, encoder)
    if spec.vendor == "aperio" and lower:
        label = _label(spec.name)
        _write_stripped(pages, label, title="label 400x460", subfile=1, compression=5)
        _write_stripped(pages, _macro(label, thumbnail), title="macro 1280x431", subfile=9, compression=7)


def _tiles_of_bands(
    spec: SlideSpec, bands: Iterable[U8], lower: dict[int, U8], on_band: Callable[[int], object] | None
) -> Iterator[U8]:
    """Yields the tiles of level 0 in row-major order and fills the lower levels on the way."""
    top = 0
    for band in bands:
        rows = min(spec.band_px, spec.height_px - top)
        if band.shape != (rows, spec.width_px, 3) or rows <= 0:
            raise ValueError(f"band at row {top}: got shape {band.shape}, need ({rows}, {spec.width_px}, 3)")
        for downsample, image in lower.items():
            part = image[top // downsample : (top + rows) // downsample]
            height, width = part.shape[:2]
            if height:
                whole = band[: height * downsample, : width * downsample]
                part[:] = cv2.resize(whole, (width, height), interpolation=cv2.INTER_AREA)
        yield from _tiles_of_rows(spec.tile_px, band)
        top += rows
        if on_band is not None:
            on_band(rows)
    if top != spec.height_px:
        raise ValueError(f"bands ended at row {top} of {spec.height_px}")


def _tiles_of_rows(tile_px: int, image: U8) -> Iterator[U8]:
    """Yields full-size tiles in row-major order; beyond the right and bottom edge the last pixels repeat."""
    for top in range(0, image.shape[0], tile_px):
        for left in range(0, image.shape[1], tile_px):
            tile = image[top : top + tile_px, left : left + tile_px]
            missing = [(0, tile_px - tile.shape[0]), (0, tile_px - tile.shape[1]), (0, 0)]
            yield np.pad(tile, missing, mode="edge") if np.any(missing) else np.ascontiguousarray(tile)


def _write_level(
    pages: TiffPages,
    spec: SlideSpec,
    downsample: int,
    size_px: tuple[int, int],
    tiles: Iterable[U8],
    encoder: TileEncoder,
) -> None:
    encoding = encoder.encoding
    blocks = pages.append(encoder.encode(tile) for tile in tiles)
    tags: list[Tag] = [(322, _SHORT, (spec.tile_px,)), (323, _SHORT, (spec.tile_px,))]
    if encoding.subsampling is not None:
        tags.append((530, _SHORT, encoding.subsampling))
    if encoder.tables is not None:
        tags.append((347, 7, encoder.tables))
    if spec.vendor == "aperio":
        full = f"{spec.width_px}x{spec.height_px} [0,0 {spec.width_px}x{spec.height_px}]"
        smaller = "" if downsample == 1 else f" -> {size_px[0]}x{size_px[1]}"
        words = f"({spec.tile_px}x{spec.tile_px}){smaller} {encoding.words} Q={spec.quality}"
        tags.append(_description(f"{full} {words}|{_properties(spec)}"))
    elif spec.mpp is not None:
        per_cm = (round(1e4 / (spec.mpp * downsample) * 1e4), 10_000)
        tags += [(282, _RATIONAL, per_cm), (283, _RATIONAL, per_cm), (296, _SHORT, (3,))]
    subfile = 1 if spec.vendor == "generic" and downsample > 1 else 0
    tags += _image_tags(size_px, subfile, encoding.compression, encoding.photometric)
    pages.add_page(tags, blocks, tiled=True)


def _write_stripped(pages: TiffPages, image: U8, *, title: str, subfile: int, compression: int) -> None:
    height, width = image.shape[:2]
    strips = (image[top : top + _STRIP_ROWS] for top in range(0, height, _STRIP_ROWS))
    tags = [_description(title), (278, _SHORT, (_STRIP_ROWS,))]
    if compression == 7:
        encoder = TileEncoder(encoding="jpeg-rgb", quality=85)
        blocks = pages.append(encoder.encode(strip) for strip in strips)
        tags += [(530, _SHORT, (2, 2)), (347, 7, encoder.tables or b"")]
    else:
        blocks = pages.append(bytes(imagecodecs.lzw_encode(strip.tobytes())) for strip in strips)
    pages.add_page([*tags, *_image_tags((width, height), subfile, compression, 2)], blocks, tiled=False)


def _image_tags(size_px: tuple[int, int], subfile: int, compression: int, photometric: int) -> list[Tag]:
    return [
        (254, _LONG, (subfile,)),
        (256, _LONG, size_px[:1]),
        (257, _LONG, size_px[1:]),
        (258, _SHORT, (8, 8, 8)),
        (259, _SHORT, (compression,)),
        (262, _SHORT, (photometric,)),
        (277, _SHORT, (3,)),
        (284, _SHORT, (1,)),
    ]


def _description(text: str) -> Tag:
    return (270, 2, f"{_LIBRARY}\r\n{text}".encode("ascii", "replace") + b"\0")


def _properties(spec: SlideSpec) -> str:
    """Returns the `name = value` list of an Aperio description; unknown values are left out, as TCGA's
    files do.
    """
    known = {
        "AppMag": spec.app_mag,
        "Filename": spec.name.replace("|", "_"),
        "MPP": None if spec.mpp is None else f"{spec.mpp:.4f}",
        "OriginalWidth": spec.width_px,
        "OriginalHeight": spec.height_px,
    }
    return "|".join(f"{name} = {value}" for name, value in known.items() if value is not None)


def _fit(image: U8, *, width_px: int, height_px: int) -> U8:
    scale = min(width_px / image.shape[1], height_px / image.shape[0])
    size = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
    return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), dtype=np.uint8)


def _label(name: str) -> U8:
    label = np.full((460, 400, 3), (236, 238, 233), np.uint8)
    cv2.rectangle(label, (12, 12), (387, 447), (90, 100, 120), 3)
    for line, part in enumerate([name[i : i + 16] for i in range(0, min(len(name), 80), 16)]):
        cv2.putText(label, part, (30, 90 + 60 * line), cv2.FONT_HERSHEY_SIMPLEX, 1.1, (30, 30, 40), 2)
    return label


def _macro(label: U8, thumbnail: U8) -> U8:
    """Draws the overview of the whole glass slide: label at the left, tissue at the right."""
    macro = np.full((431, 1280, 3), 226, np.uint8)
    small = _fit(label, width_px=320, height_px=400)
    macro[15 : 15 + small.shape[0], 15 : 15 + small.shape[1]] = small
    tissue = _fit(thumbnail, width_px=800, height_px=380)
    top, left = (431 - tissue.shape[0]) // 2, 400 + (800 - tissue.shape[1]) // 2
    macro[top : top + tissue.shape[0], left : left + tissue.shape[1]] = tissue
    return macro


class TiffPages:
    """A little-endian TIFF or BigTIFF that is written from front to back, a page after its blocks.

    Args:
        path: The file to write.
        big_tiff: 64-bit offsets.
        arrays_first: Values that do not fit an entry lie before their IFD, as some writers have it.
    """

    def __init__(self, path: Path, *, big_tiff: bool, arrays_first: bool = False) -> None:
        self._big = big_tiff
        self._arrays_first = arrays_first
        self._file = path.open("wb")
        self._file.write(struct.pack("<2sHHHQ", b"II", 43, 8, 0, 0) if big_tiff else struct.pack("<2sHI", b"II", 42, 0))
        self._link = 8 if big_tiff else 4  # where the offset of the next page goes

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def append(self, blocks: Iterable[bytes]) -> npt.NDArray[np.int64]:
        """Writes blocks one behind the other. Returns their offsets and lengths in bytes, shape (2, N)."""
        places = []
        for block in blocks:
            places.append((self._file.tell(), len(block)))
            self._file.write(block)
        return np.array(places, dtype=np.int64).reshape(-1, 2).T

    def add_page(self, tags: list[Tag], blocks: npt.NDArray[np.int64], *, tiled: bool) -> None:
        """Writes the page of blocks that `append` has written: its IFD and the values that do not fit there."""
        offset_type = _LONG8 if self._big else _LONG
        offsets: Tag = (324 if tiled else 273, offset_type, tuple(blocks[0].tolist()))
        counts: Tag = (325 if tiled else 279, _LONG, tuple(blocks[1].tolist()))
        word, count_word, inline_size = ("Q", "Q", 8) if self._big else ("I", "H", 4)
        fields = [(*tag[:2], _encoded(tag)) for tag in sorted([*tags, offsets, counts])]
        outside = sum(len(data) + -len(data) % 8 for _, _, data in fields if len(data) > inline_size)
        entries_at = struct.calcsize(f"<{count_word}")
        links_at = entries_at + len(fields) * (4 + 2 * inline_size)
        size = links_at + inline_size + -(links_at + inline_size) % 8
        start = self._write_aligned(b"")
        position, place = (start + outside, start) if self._arrays_first else (start, start + size)
        entries: list[bytes] = []
        values: list[bytes] = []
        for number, field, data in fields:
            inline = data
            if len(data) > inline_size:
                inline = struct.pack("<" + word, place + sum(map(len, values)))
                values.append(data + bytes(-len(data) % 8))
            entries.append(
                struct.pack(f"<HH{word}", number, field, _count(field, data)) + inline.ljust(inline_size, b"\0")
            )
        directory = (struct.pack(f"<{count_word}", len(fields)) + b"".join(entries)).ljust(size, b"\0")
        self._file.write(b"".join([*values, directory] if self._arrays_first else [directory, *values]))
        self._file.seek(self._link)
        self._file.write(struct.pack("<" + word, position))
        self._link = position + links_at
        self._file.seek(0, 2)

    def _write_aligned(self, data: bytes) -> int:
        self._file.write(bytes(-self._file.tell() % 8))
        position = self._file.tell()
        self._file.write(data)
        return position


def _encoded(tag: Tag) -> bytes:
    _, field, values = tag
    return values if isinstance(values, bytes) else struct.pack(f"<{len(values)}{_FORMATS[field]}", *values)


def _count(field: int, data: bytes) -> int:
    """How many values of a type these bytes are."""
    return len(data) // (8 if field == _RATIONAL else struct.calcsize(f"<{_FORMATS[field]}"))
