"""How does a reader that knows nothing of this package read a catalog's slides?

Through kerchunk references: Zarr (format 2) metadata beside (url, offset, length) of every stored tile, opened with
fsspec's ``ReferenceFileSystem``, zarr and ``imagecodecs.numcodecs.register_codecs()``. The keys are
``<slide>/<level>/<row>.<column>.0``, the slide's id percent-quoted as in ``Catalog.zarr``.

1. Of every slide, ``_plan`` tells which levels such a reader would decode to exactly our pixels, and says of each
   other level why it is left out.
2. The tiles of those levels are read from the catalog some thousands at a time and handed to a writer (JSON, or Parquet
   as fsspec's ``LazyReferenceMapper`` reads it), so memory does not grow with the cohort.

URLs carry no credentials. References pin no version: nothing tells their reader that a slide was replaced.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import imagecodecs
import numpy as np

from online_patching import loop
from online_patching.bytesource import ByteRange, shown_url
from online_patching.catalog import Catalog
from online_patching.decode import decode_tile
from online_patching.errors import CorruptTileError, StorageError
from online_patching.formats.header import Codec, Colour
from online_patching.formats.zarr_codecs import ChunkCodecs, codecs_of
from online_patching.reference_files import (
    RECORD_TILES,
    JsonWriter,
    LevelArray,
    ParquetWriter,
    ReferenceWriter,
    public_url,
)
from online_patching.slide import Slide
from online_patching.tile_source import RangeTiles
from online_patching.zarr_view import SlideEntry, level_attributes, slide_attributes, zarr_key

ReferenceFormat = Literal["kerchunk-json", "kerchunk-parquet"]


@dataclass(slots=True)
class ExportReport:
    """What an export wrote.

    Attributes:
        slides: Slides with at least one level.
        levels: Levels written.
        tiles: Stored tiles referred to.
        left_out: One line a slide or level that was not exported, with the reason.
    """

    slides: int = 0
    levels: int = 0
    tiles: int = 0
    left_out: list[str] = field(default_factory=list)


def export_references(
    catalog: Catalog,
    output: str,
    *,
    format: ReferenceFormat,  # noqa: A002
    slides: Sequence[str] | None = None,
    storage_options: Mapping[str, Any] | None = None,
) -> ExportReport:
    """Write kerchunk references of a catalog's slides.

    Args:
        catalog: The cohort.
        output: The JSON file, or the folder of Parquet files, that is made; a local path or URL.
        format: ``kerchunk-json`` (one file, read whole by who opens it: for single slides) or ``kerchunk-parquet``
            (a folder read as far as it is used: for cohorts).
        slides: Ids of the slides to export; all where not given.
        storage_options: Options for the store of ``output``.

    Returns:
        What was written, and what was left out and why.

    Raises:
        ValueError: An unknown format, or ``output`` exists.
        CatalogError: No such slide.
        StorageError: The catalog or ``output`` cannot be reached.
    """
    if format not in get_args(ReferenceFormat):
        raise ValueError(f"format: got {format!r}, allowed {', '.join(get_args(ReferenceFormat))}")
    ids = catalog.ids() if slides is None else list(slides)
    for slide_id in ids:
        catalog.row(slide_id)
    report = ExportReport()
    try:
        with contextlib.ExitStack() as stack:
            writer: ReferenceWriter
            if format == "kerchunk-json":
                urls = {url for slide_id in ids for url in _object_urls(catalog.slide(slide_id))}
                writer = stack.enter_context(JsonWriter(output, urls=urls, storage_options=storage_options))
            else:
                writer = stack.enter_context(ParquetWriter(output, storage_options=storage_options))
            writer.group("", {"slides": len(ids)})
            for slide_id in ids:
                loop.run(_export_slide(catalog.slide(slide_id), writer, report))
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise StorageError(
            f"{shown_url(output)}: cannot be written ({reason}); check the place and its space"
        ) from error
    return report


def _object_urls(slide: Slide) -> list[str]:
    tiles = slide.handle.tiles
    return [public_url(source.url) for source, _ in tiles.sources] if isinstance(tiles, RangeTiles) else []


async def _export_slide(slide: Slide, writer: ReferenceWriter, report: ExportReport) -> None:
    """Write one slide and note what was left out."""
    tiles = slide.handle.tiles
    if not isinstance(tiles, RangeTiles):
        report.left_out.append(f"slide {slide.slide_id}: not exported: {_unreferable(slide)}")
        return
    plans: dict[int, ChunkCodecs] = {}
    for level in range(len(slide.header.levels)):
        try:
            plans[level] = await _plan(tiles, level)
        except _LeftOut as reason:
            report.left_out.append(f"slide {slide.slide_id}: level {level} not exported: {reason}")
    if not plans:
        report.left_out.append(f"slide {slide.slide_id}: not exported: no level has colours that plain readers give")
        return
    attributes = slide_attributes(SlideEntry(slide.slide_id, slide.url, slide.header))
    attributes["levels"] = [attributes["levels"][level] for level in plans]
    writer.group(zarr_key(slide.slide_id), attributes)
    for level, codecs in plans.items():
        report.tiles += await _export_level(slide, tiles, level, codecs, writer)
    report.slides += 1
    report.levels += len(plans)


async def _export_level(
    slide: Slide, tiles: RangeTiles, level: int, codecs: ChunkCodecs, writer: ReferenceWriter
) -> int:
    """Write one level; returns its number of stored tiles."""
    geometry = slide.header.levels[level]
    url = _object_urls(slide)[slide.header.level_objects[level] if slide.header.level_objects else 0]
    path = f"{zarr_key(slide.slide_id)}/{level}"
    array = LevelArray(path, geometry, codecs, level_attributes(slide.header, level), url)
    writer.array(array)
    stored = 0
    async for first, ranges in _parts(tiles, level):
        writer.tiles(array, first, ranges)
        stored += sum(length > 0 for _, length in ranges)
    return stored


class _LeftOut(Exception):  # noqa: N818
    """A level that a plain reader would not read as we do; the reason."""


async def _plan(tiles: RangeTiles, level: int) -> ChunkCodecs:
    """Codecs that give exactly our pixels.

    Raises:
        _LeftOut: There are none.
    """
    encoding = tiles.header.encodings[level]
    try:
        codecs = codecs_of(encoding, tiles.header.levels[level])
    except ValueError as error:
        raise _LeftOut(str(error)) from None
    if encoding.codec is Codec.JPEG2000 and encoding.colour is Colour.YCBCR:
        await _try_ycbcr(tiles, level)
    return codecs


async def _try_ycbcr(tiles: RangeTiles, level: int) -> None:
    """Decode one tile as a plain reader does; OpenJPEG converts YCbCr only where its chroma are subsampled.

    Raises:
        _LeftOut: It gives other pixels.
    """
    geometry = tiles.header.levels[level]
    data = await _first_tile(tiles, level)
    try:
        ours = decode_tile(data, tiles.header.encodings[level], geometry.tile_width_px, geometry.tile_height_px)
    except CorruptTileError as error:
        raise _LeftOut(f"its first tile does not decode, so its colours cannot be told ({error})") from None
    if not np.array_equal(ours, imagecodecs.jpeg2k_decode(data)):
        raise _LeftOut("JPEG 2000 in YCbCr (33003) without subsampled chroma, which plain decoders leave as YCbCr")


async def _first_tile(tiles: RangeTiles, level: int) -> bytes:
    async for _, ranges in _parts(tiles, level):
        for start, length in ranges:
            if length:
                source, info = tiles.sources[tiles.header.level_objects[level] if tiles.header.level_objects else 0]
                (data,) = await source.read_ranges([(start, length)], expected=info)
                return data
    raise _LeftOut("it has no stored tile, so its colours cannot be told")


async def _parts(tiles: RangeTiles, level: int) -> AsyncIterator[tuple[int, list[ByteRange]]]:
    """(number of the first tile, byte ranges) of a level, a record at a time."""
    geometry = tiles.header.levels[level]
    count = geometry.tiles_x * geometry.tiles_y
    for first in range(0, count, RECORD_TILES):
        yield first, await tiles.lookup.ranges(level, range(first, min(first + RECORD_TILES, count)))


def _unreferable(slide: Slide) -> str:
    if any(encoding.codec is Codec.ZARR for encoding in slide.header.encodings):
        return "it is Zarr already: open it with zarr"
    return f"the tiles of {slide.header.vendor} are no byte ranges"
