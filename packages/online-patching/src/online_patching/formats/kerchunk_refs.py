"""Which slide is in kerchunk references that somebody made?

1. The arrays that lie in one group are the levels of one slide; where there are several groups, the URL's fragment
   picks one (``refs.json#slide``).
2. Every array must be (height, width, 3) uint8 in tiles of a codec whose colours are certain.
3. Its chunks must be byte ranges of one object, whose size and version are pinned now.

References in a remote store may point to remote objects only: whoever wrote them must not make a reader open files of
its own disk.
"""

from __future__ import annotations

import contextlib
import posixpath
from dataclasses import dataclass
from functools import partial
from typing import Any
from urllib.parse import quote, urlsplit, urlunsplit

from online_patching.bytesource import PinnedObject, check_url, join_url, local_path, shown_url
from online_patching.errors import StorageError
from online_patching.formats.header import Colour, FoundSlide, SlideHeader, TileEncoding, TileRanges
from online_patching.formats.header_reader import HeaderReader
from online_patching.formats.jpeg_header import stated_colour
from online_patching.formats.pyramid import MAX_LEVELS, MAX_SIDE_PX, MAX_TILE_AREA_PX, downsampled
from online_patching.formats.reference_set import Chunks, ReferenceSet, read_json, read_parquet
from online_patching.formats.zarr_codecs import (
    ColourNotStatedError,
    blank_chunk,
    codecs_of,
    encoding_of,
)
from online_patching.geometry import LevelGeometry
from online_patching.storage import Store

VENDOR = "kerchunk-references"
PARQUET_METADATA = ".zmetadata"
REMOTE_SCHEMES = ("s3", "az", "abfs", "abfss", "gs", "gcs", "http", "https")
MAX_TILES = 1 << 22
JPEG_HEAD_BYTES = 4096


async def read_json_slide(store: Store, reader: HeaderReader, slide: str) -> FoundSlide:
    """The slide in a JSON file of references.

    Args:
        store: Opens the objects that are referred to.
        reader: The JSON file.
        slide: Which of several slides, or empty.

    Raises:
        SlideFormatError: Not references of a slide that can be read with certain colours.
        StorageError: The object referred to cannot be reached.
    """
    return await _read_slide(store, reader, await read_json(reader), slide, reader.pinned.url)


async def read_parquet_slide(store: Store, folder: str, slide: str) -> tuple[FoundSlide, HeaderReader]:
    """The slide in a folder of references as Parquet, and the reader that counted what it cost."""
    reader = await HeaderReader.open(store.open(join_url(folder, PARQUET_METADATA)))
    references = await read_parquet(store, reader, folder)
    return await _read_slide(store, reader, references, slide, folder), reader


async def _read_slide(store: Store, reader: HeaderReader, references: ReferenceSet, slide: str, url: str) -> FoundSlide:
    group, names = _pick(reader, references.metadata, slide, shown_url(url).rpartition("/")[2])
    levels = [await _level(reader, references, "/".join(filter(None, [group, name]))) for name in names]
    if sum(len(level.chunks.tiles.length) for level in levels) > 2 * MAX_TILES:
        raise reader.error(f"its arrays have more than {2 * MAX_TILES} tiles together")
    levels.sort(key=lambda level: -level.geometry.width_px)
    targets = [None if each.chunks.target is None else _resolved(reader, url, each.chunks.target) for each in levels]
    urls = list(dict.fromkeys(target for target in targets if target is not None))
    if not urls:
        raise reader.error("references of arrays without a single stored chunk")
    objects = tuple([PinnedObject(each, await store.open(each).info()) for each in urls])
    # A level without any chunk needs no object; it is given the first.
    numbers = [0 if target is None else urls.index(target) for target in targets]
    encodings = []
    for level, number in zip(levels, numbers, strict=True):
        _check_ends(reader, level.chunks.tiles, objects[number])
        encodings.append(await _encoding(store, reader, level, objects[number]))
    header = SlideHeader(
        vendor=VENDOR,
        # The finest level's own first: an export may have left out finer ones, which the group's refers to.
        mpp=_mpp(references.metadata, [levels[0].path, group]),
        levels=tuple(downsampled(level.geometry, levels[0].geometry, error=reader.error) for level in levels),
        encodings=tuple(encodings),
        level_objects=tuple(numbers) if len(objects) > 1 else (),
    )
    return FoundSlide(header, tuple(level.chunks.tiles for level in levels), objects)


@dataclass(frozen=True, slots=True)
class _Level:
    """One array: its key, its name in messages, its metadata, and where its chunks lie."""

    path: str
    name: str
    zarray: dict[str, Any]
    geometry: LevelGeometry
    chunks: Chunks


def _pick(reader: HeaderReader, metadata: dict[str, Any], slide: str, name: str) -> tuple[str, list[str]]:
    """The group of the slide and the names of its arrays."""
    groups: dict[str, list[str]] = {}
    for key in metadata:
        path, _, last = key.rpartition("/")
        if last == ".zarray":
            if ".." in path.split("/"):
                raise reader.error(f"the array {path[:200]!r}: '..' is no name")
            group, _, array = path.rpartition("/")
            groups.setdefault(group, []).append(array)
    if not groups:
        raise reader.error("no Zarr array (.zarray of format 2) is in it: no references of a slide")
    if len(groups) > 1 and not slide:
        shown = ", ".join(sorted(groups)[:5])
        raise reader.error(
            f"references of {len(groups)} slides ({shown[:300]}{', ...' * (len(groups) > 5)}); name one, as"
            f" {name}#{sorted(groups)[0][:100]}"
        )
    chosen = next((each for each in (slide, quote(slide, safe=" ")) if each in groups), None)
    if slide and chosen is None:
        raise reader.error(f"no slide {slide[:200]!r} among {len(groups)} ({', '.join(sorted(groups)[:5])[:300]})")
    group = next(iter(groups)) if chosen is None else chosen
    if len(groups[group]) > MAX_LEVELS:
        raise reader.error(f"{len(groups[group])} arrays in one group (allowed: {MAX_LEVELS} levels)")
    return group, groups[group]


async def _level(reader: HeaderReader, references: ReferenceSet, path: str) -> _Level:
    """One array, checked.

    Raises:
        SlideFormatError: It is no level of RGB tiles.
    """
    zarray = references.metadata[f"{path}/.zarray" if path else ".zarray"]
    name = f"array {path[:200]!r}" if path else "its array"
    if not isinstance(zarray, dict) or zarray.get("zarr_format") != 2:
        raise reader.error(f"{name} is not of Zarr format 2")
    shape, tile = _sides(zarray.get("shape")), _sides(zarray.get("chunks"))
    if shape is None or tile is None or zarray.get("dtype") not in ("|u1", "u1", "<u1", ">u1"):
        described = f"{str(zarray.get('shape'))[:60]} {str(zarray.get('dtype'))[:20]}"
        raise reader.error(f"{name} is {described}; a level is (height, width, 3) uint8 with all channels in a chunk")
    if zarray.get("order", "C") != "C":
        raise reader.error(f"{name} has the order {str(zarray['order'])[:20]!r} (allowed: 'C')")
    if max(shape) > MAX_SIDE_PX or tile[0] * tile[1] > MAX_TILE_AREA_PX:
        raise reader.error(
            f"{name} has {shape} px in tiles of {tile} px (allowed: sides up to {MAX_SIDE_PX}, {MAX_TILE_AREA_PX} px a"
            " tile)"
        )
    geometry = LevelGeometry(shape[1], shape[0], tile[1], tile[0], 1.0)
    if geometry.tiles_x * geometry.tiles_y > MAX_TILES:
        raise reader.error(f"{name} has {geometry.tiles_x} x {geometry.tiles_y} tiles (allowed: {MAX_TILES})")
    with contextlib.suppress(ColourNotStatedError):
        _encoding_of(reader, name, zarray)
    chunks = await references.chunks(path, geometry, partial(_blank, reader, name, zarray, geometry))
    return _Level(path, name, zarray, geometry, chunks)


def _encoding_of(
    reader: HeaderReader, name: str, zarray: dict[str, Any], stream_colour: Colour | None = None
) -> TileEncoding:
    try:
        return encoding_of(zarray.get("compressor"), zarray.get("filters"), stream_colour=stream_colour)
    except ColourNotStatedError:
        raise
    except ValueError as error:
        raise reader.error(f"{name}: {str(error)[:300]}") from None


async def _encoding(store: Store, reader: HeaderReader, level: _Level, pinned: PinnedObject) -> TileEncoding:
    """The encoding of a level; where its metadata leave the colours to the JPEG stream, a tile's start is read."""
    try:
        return _encoding_of(reader, level.name, level.zarray)
    except ColourNotStatedError as error:
        stored = level.chunks.tiles.length.nonzero()[0]
        colour = None
        if len(stored):
            start, length = (
                int(values[stored[0]]) for values in (level.chunks.tiles.offset, level.chunks.tiles.length)
            )
            (head,) = await store.open(pinned.url).read_ranges(
                [(start, min(length, JPEG_HEAD_BYTES))], expected=pinned.info
            )
            reader.requests += 1
            reader.bytes_read += len(head)
            colour = stated_colour(head)
        if colour is None:
            raise reader.error(f"{level.name}: {error}") from None
        return _encoding_of(reader, level.name, level.zarray, colour)


def _blank(reader: HeaderReader, name: str, zarray: dict[str, Any], geometry: LevelGeometry) -> bytes | None:
    """What our own Parquet export writes for a tile that was not stored, if it can have written such an array."""
    try:
        return blank_chunk(codecs_of(_encoding_of(reader, name, zarray), geometry), geometry)
    except (ValueError, RuntimeError):
        # RuntimeError: the codec cannot hold a tile of that size, so nobody wrote one with it.
        return None


def _sides(value: Any) -> tuple[int, int] | None:
    """(height, width) of a shape or chunk shape of three channels."""
    match value:
        case [int(height), int(width), 3] if type(height) is int and type(width) is int and min(height, width) > 0:
            return height, width
    return None


def _resolved(reader: HeaderReader, url: str, target: str) -> str:
    """The URL of the object that references at ``url`` name.

    Raises:
        SlideFormatError: It must not be opened from there.
    """
    remote = local_path(url) is None
    try:
        check_url(target)
    except StorageError as error:
        raise reader.error(f"it refers to an object that cannot be: {error}") from error
    scheme = target.partition("://")[0].lower() if "://" in target else ""
    if "::" in target or (scheme not in ("", "file", *REMOTE_SCHEMES)):
        allowed = ", ".join(("file", *REMOTE_SCHEMES))
        raise reader.error(f"it refers to {shown_url(target)[:200]!r}; allowed are paths and {allowed} URLs")
    if scheme in REMOTE_SCHEMES:
        return target
    if remote and (scheme == "file" or target.startswith("/")):
        raise reader.error(
            f"it refers to the local file {shown_url(target)[:200]!r}, which references in a remote store must not;"
            " give objects of a store, or paths relative to the references"
        )
    if scheme == "file" or target.startswith("/"):
        return local_path(target) or target
    if not remote:
        return join_url((local_path(url) or url).rpartition("/")[0] or ".", target)
    parts = urlsplit(url)
    path = posixpath.normpath(posixpath.join(posixpath.dirname(parts.path) or "/", target))
    return urlunsplit((parts.scheme, parts.netloc, path, "", ""))


def _check_ends(reader: HeaderReader, tiles: TileRanges, pinned: PinnedObject) -> None:
    ends = tiles.offset + tiles.length
    beyond = int(((ends > pinned.info.size) & (tiles.length > 0)).sum())
    if beyond:
        raise reader.error(
            f"{beyond} references lie past the end of {shown_url(pinned.url)} at {pinned.info.size}: made for another"
            " file, or the file is cut off"
        )


def _mpp(metadata: dict[str, Any], paths: list[str]) -> float | None:
    """Resolution of level 0 in um per pixel, where the attributes of one of the paths state it."""
    for path in paths:
        attributes = metadata.get(f"{path}/.zattrs" if path else ".zattrs")
        mpp: Any = attributes.get("mpp") if isinstance(attributes, dict) else None
        if type(mpp) in (int, float) and 0 < mpp < 1000:
            return float(mpp)
    return None
