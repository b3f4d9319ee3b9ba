"""What do kerchunk references say: which arrays are there, and where does each chunk lie?

``read_json`` reads a JSON file of version 1, or of version 0 (a plain mapping, as tifffile's ``write_fsspec`` makes);
``read_parquet`` the folder of Parquet files that fsspec's ``LazyReferenceMapper`` reads. Both give an object with the
arrays' metadata by key, and ``chunks``: the one object in which an array's chunks lie, and their byte ranges.

References are untrusted: sizes and counts are bounded, and whatever is not understood is an error that names the file.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from online_patching.bytesource import join_url
from online_patching.errors import NotFoundError
from online_patching.formats.header import TileRanges
from online_patching.formats.header_reader import HeaderReader
from online_patching.geometry import LevelGeometry
from online_patching.storage import Store

# References take eleven times as much memory as their JSON: larger sets are what Parquet is for.
MAX_JSON_BYTES = 20 << 20
MAX_PARQUET_BYTES = 64 << 20
MAX_RECORD_ROWS = 1_000_000
MAX_LENGTH, MAX_OFFSET = (1 << 32) - 1, 1 << 62
METADATA_NAMES = (".zarray", ".zattrs", ".zgroup")
_CHUNK_KEY = re.compile(r"(?:(.*)/)?(\d{1,9})([./])(\d{1,9})\3(\d{1,9})", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Chunks:
    """Where the chunks of one array lie.

    Attributes:
        target: The object as the references name it, or None where no chunk is stored.
        tiles: Byte ranges in row-major order.
    """

    target: str | None
    tiles: TileRanges


class ReferenceSet(Protocol):
    """References of any number of arrays.

    Attributes:
        metadata: Parsed ``.zarray``, ``.zattrs`` and ``.zgroup`` by key.
    """

    metadata: dict[str, Any]

    async def chunks(self, path: str, geometry: LevelGeometry, blank: Callable[[], bytes | None]) -> Chunks:
        """The chunks of one array; an inline one that equals ``blank()`` counts as not stored.

        Raises:
            SlideFormatError: Chunks that this package cannot read as byte ranges of one object.
        """
        ...


def parse_json(reader: HeaderReader, text: str | bytes, what: str) -> dict[str, Any]:
    """A JSON object.

    Raises:
        SlideFormatError: It is none.
    """
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        reason = str(error)[:80] if isinstance(error, ValueError) else "nested too deep"
        raise reader.error(f"{what} is not valid JSON ({reason}): damaged") from None
    if not isinstance(value, dict):
        raise reader.error(f"{what} is a JSON {type(value).__name__}, not an object: damaged")
    return value


async def read_json(reader: HeaderReader) -> ReferenceSet:
    """The references of a JSON file.

    Raises:
        SlideFormatError: No references, too many, or ones that need to be generated.
    """
    if reader.size > MAX_JSON_BYTES:
        raise reader.error(
            f"{reader.size} bytes of JSON (allowed: {MAX_JSON_BYTES}); keep references of that many tiles as Parquet"
        )
    document = parse_json(reader, await reader.read(0, reader.size), "the file")
    references = document.get("refs") if "version" in document else document
    if document.get("version", 0) not in (0, 1) or not isinstance(references, dict):
        raise reader.error("no kerchunk references of version 0 or 1")
    if "version" in document and document.get("gen"):
        raise reader.error("references to be generated ('gen') are not read; have kerchunk expand them")
    templates = document.get("templates", {}) if "version" in document else {}
    if not isinstance(templates, dict) or not all(isinstance(value, str) for value in templates.values()):
        raise reader.error("templates that are no texts: damaged")
    metadata = {}
    for key, value in references.items():
        if key.rpartition("/")[2] in METADATA_NAMES:
            metadata[key] = value if isinstance(value, dict) else parse_json(reader, str(value), key[:200])
    return _JsonReferences(reader, references, templates, metadata)


class _JsonReferences:
    def __init__(
        self, reader: HeaderReader, references: dict[str, Any], templates: dict[str, str], metadata: dict[str, Any]
    ) -> None:
        self.metadata = metadata
        self._reader = reader
        self._references = references
        self._templates = templates
        self._folders: dict[str, list[str]] = {}
        for key in references:
            folder, _, name = key.rpartition("/")
            if not name.startswith(".z"):
                self._folders.setdefault(folder, []).append(key)

    async def chunks(self, path: str, geometry: LevelGeometry, blank: Callable[[], bytes | None]) -> Chunks:  # noqa: ARG002
        tiles = _empty(geometry)
        target: str | None = None
        for key in self._keys_of(path):
            match = _CHUNK_KEY.fullmatch(key)
            if match is None or (match[1] or "") != path:
                if path or "/" not in key:
                    raise self._reader.error(f"{key[:200]!r} is no chunk key such as '0.0.0': damaged")
                continue
            row, column = int(match[2]), int(match[4])
            if row >= geometry.tiles_y or column >= geometry.tiles_x or int(match[5]):
                raise self._reader.error(f"chunk {key[:200]!r} lies outside of its array: damaged")
            found = self._place(key, tiles, row * geometry.tiles_x + column)
            if target not in (None, found):
                raise _several_objects(self._reader, path)
            target = found
        return Chunks(None if target is None else self._rendered(target), tiles)

    def _keys_of(self, path: str) -> Iterator[str]:
        """Keys of an array's chunks; with the separator '/' they lie in folders below it."""
        for folder, keys in self._folders.items():
            if not path or folder == path or folder.startswith(f"{path}/"):
                yield from keys

    def _place(self, key: str, tiles: TileRanges, number: int) -> str:
        """Enter one chunk's range; returns the object that it names."""
        match self._references[key]:
            case [str(target), int(offset), int(length)] if type(offset) is int and type(length) is int:
                if not (0 <= offset <= MAX_OFFSET and 0 <= length <= MAX_LENGTH):
                    raise self._reader.error(f"chunk {key[:200]!r} has the range {offset} + {length}: damaged")
                tiles.offset[number], tiles.length[number] = offset, length
                return target
            case str():
                raise _inline(self._reader, key)
        raise self._reader.error(f"chunk {key[:200]!r} is no [url, offset, length]: only byte ranges are read")

    def _rendered(self, target: str) -> str:
        # In one pass, so that templates within templates cannot grow.
        rendered = re.sub(r"\{\{([^{}]*)\}\}", lambda found: self._templates.get(found[1].strip(), found[0]), target)
        if "{{" in rendered:
            raise self._reader.error(f"the template in {target[:200]!r} is not given, or is one to be computed")
        return rendered


async def read_parquet(store: Store, reader: HeaderReader, folder: str) -> ReferenceSet:
    """The references of a Parquet folder; ``reader`` reads its ``.zmetadata``.

    Raises:
        SlideFormatError: Not such a folder.
    """
    if reader.size > MAX_PARQUET_BYTES:
        raise reader.error(f"{reader.size} bytes of metadata (allowed: {MAX_PARQUET_BYTES})")
    document = parse_json(reader, await reader.read(0, reader.size), ".zmetadata")
    metadata, rows = document.get("metadata"), document.get("record_size")
    if not isinstance(metadata, dict) or type(rows) is not int or not 0 < rows <= MAX_RECORD_ROWS:
        raise reader.error(f"no references in Parquet: its .zmetadata states the record_size {str(rows)[:20]}")
    return _ParquetReferences(store, reader, folder, metadata, rows)


class _ParquetReferences:
    def __init__(
        self, store: Store, reader: HeaderReader, folder: str, metadata: dict[str, Any], record_rows: int
    ) -> None:
        self.metadata = metadata
        self._store = store
        self._reader = reader
        self._folder = folder
        self._record_rows = record_rows

    async def chunks(self, path: str, geometry: LevelGeometry, blank: Callable[[], bytes | None]) -> Chunks:
        tiles = _empty(geometry)
        targets: set[str] = set()
        count = len(tiles.offset)
        for first in range(0, count, self._record_rows):
            name = join_url(self._folder, *filter(None, [path]), f"refs.{first // self._record_rows}.parq")
            try:
                columns = await self._read(name)
            except NotFoundError:
                # kerchunk writes no file for a record without references.
                continue
            targets |= self._fill(tiles, first, columns, path, blank)
            if len(targets) > 1:
                raise _several_objects(self._reader, path)
        return Chunks(targets.pop() if targets else None, tiles)

    async def _read(self, url: str) -> Mapping[str, list[Any]]:
        import pyarrow as pa
        import pyarrow.parquet as pq

        source = self._store.open(url)
        size = (await source.info()).size
        if size > MAX_PARQUET_BYTES:
            raise self._reader.error(f"{url.rpartition('/')[2]} has {size} bytes (allowed: {MAX_PARQUET_BYTES})")
        (data,) = await source.read_ranges([(0, size)])
        self._reader.requests += 1
        self._reader.bytes_read += size
        try:
            file = pq.ParquetFile(io.BytesIO(data))
            about = file.metadata
            unpacked = sum(about.row_group(k).total_byte_size for k in range(about.num_row_groups))
            if about.num_rows > self._record_rows or unpacked > MAX_PARQUET_BYTES:
                raise self._reader.error(f"{about.num_rows} references in a record of {self._record_rows}: damaged")
            names = [name for name in ("path", "offset", "size", "raw") if name in file.schema_arrow.names]
            columns: dict[str, list[Any]] = {name: file.read([name])[name].to_pylist() for name in names}
        except pa.ArrowException as error:
            raise self._reader.error(f"a record is no Parquet file ({str(error)[:80]}): damaged") from None
        return columns

    def _fill(
        self,
        tiles: TileRanges,
        first: int,
        columns: Mapping[str, list[Any]],
        path: str,
        blank: Callable[[], bytes | None],
    ) -> set[str]:
        """Enter the rows of one record; returns the objects that they name."""
        used = min(self._record_rows, len(tiles.offset) - first)
        inline = {value for value in columns.get("raw", [])[:used] if value is not None}
        if inline and inline != {blank()}:
            raise _inline(self._reader, path)
        paths, offsets, lengths = (columns.get(name, [])[:used] for name in ("path", "offset", "size"))
        if not len(paths) == len(offsets) == len(lengths):
            raise self._reader.error("a record without path, offset and size of every chunk: damaged")
        for number, (target, offset, length) in enumerate(zip(paths, offsets, lengths, strict=True), first):
            if target is None:
                continue
            if type(offset) is not int or type(length) is not int or type(target) is not str:
                raise self._reader.error("a record whose columns are not text and whole numbers: damaged")
            if not (0 <= offset <= MAX_OFFSET and 0 < length <= MAX_LENGTH):
                raise self._reader.error(f"a chunk of {path!r} has the range {offset} + {length}: only ranges are read")
            tiles.offset[number], tiles.length[number] = offset, length
        return {target for target in paths if target is not None}


def _empty(geometry: LevelGeometry) -> TileRanges:
    count = geometry.tiles_x * geometry.tiles_y
    offset: npt.NDArray[np.uint64] = np.zeros(count, np.uint64)
    return TileRanges(offset, np.zeros(count, np.uint32))


def _several_objects(reader: HeaderReader, path: str) -> Exception:
    return reader.error(f"the chunks of {path or 'its array'!r} lie in several objects; one object a level is read")


def _inline(reader: HeaderReader, key: str) -> Exception:
    return reader.error(f"{key[:200]!r} holds chunks inline; only byte ranges of an object are read")
