"""How are kerchunk references written, a slide at a time?

``JsonWriter`` writes one file of kerchunk's version 1; tiles that were not stored have no reference and read as the
fill value. ``ParquetWriter`` writes what fsspec's ``LazyReferenceMapper`` reads: ``.zmetadata`` with the metadata of
all arrays, and per array ``refs.<n>.parq`` of 10,000 rows (path, offset, size) each. There every tile has a row, and
a missing value in one breaks that reader, so a tile that was not stored is a white one, inline.

pyarrow writes the Parquet files: kerchunk's own writer needs pandas and fastparquet, and takes 67 us a tile.
Everything is written to a temporary folder and put in its place once it is whole.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol, Self

from online_patching.bytesource import ByteRange, local_path, shown_url, storage_error
from online_patching.formats.zarr_codecs import FILL_VALUE, ChunkCodecs, blank_chunk
from online_patching.geometry import LevelGeometry
from online_patching.storage import open_folder

RECORD_TILES = 10_000
# A template in place of every URL saves two thirds of a JSON file; fsspec's cost for each grows with their number.
MAX_TEMPLATES = 64


@dataclass(frozen=True, slots=True)
class LevelArray:
    """One level as a Zarr array of references.

    Attributes:
        path: ``<slide>/<level>``.
        geometry: Size and tile grid.
        codecs: How a chunk is decoded.
        attributes: JSON values.
        url: The object that holds the tiles.
    """

    path: str
    geometry: LevelGeometry
    codecs: ChunkCodecs
    attributes: dict[str, Any]
    url: str

    def zarray(self) -> dict[str, Any]:
        """The array's metadata in Zarr format 2."""
        geometry = self.geometry
        return {
            "zarr_format": 2,
            "shape": [geometry.height_px, geometry.width_px, 3],
            "chunks": [geometry.tile_height_px, geometry.tile_width_px, 3],
            "dtype": "|u1",
            "compressor": self.codecs.compressor,
            "filters": self.codecs.filters,
            "fill_value": FILL_VALUE,
            "order": "C",
            "dimension_separator": ".",
        }

    def zattrs(self) -> dict[str, Any]:
        """The array's attributes, with the names of its axes as xarray reads them."""
        return {"_ARRAY_DIMENSIONS": ["y", "x", "c"], **self.attributes}


class ReferenceWriter(Protocol):
    """Takes groups, arrays and their tiles in order."""

    def group(self, path: str, attributes: Mapping[str, Any]) -> None:
        """Add a group; the root's path is empty."""
        ...

    def array(self, array: LevelArray) -> None:
        """Add an array's metadata."""
        ...

    def tiles(self, array: LevelArray, first: int, ranges: Sequence[ByteRange]) -> None:
        """Add the tiles ``first``, ``first + 1``, ... of an array; a multiple of ``RECORD_TILES`` is first."""
        ...


def public_url(url: str) -> str:
    """A slide's URL for others: without credentials, local paths absolute and as ``file://``."""
    path = local_path(url)
    return shown_url(url) if path is None else "file://" + os.path.abspath(path)  # noqa: PTH100


class _Metadata:
    """Groups and arrays as one JSON object, written while it grows."""

    def __init__(self, file: IO[str], opening: str, *, as_text: bool) -> None:
        self._file = file
        self._as_text = as_text
        self._separator = ""
        file.write(opening)

    def entry(self, key: str, value: Any) -> None:
        text = json.dumps(value)
        self.raw(f"{json.dumps(key)}: {json.dumps(text) if self._as_text else text}")

    def raw(self, text: str) -> None:
        self._file.write(f"{self._separator}{text}")
        self._separator = ",\n"

    def group(self, path: str, attributes: Mapping[str, Any]) -> None:
        folder = f"{path}/" if path else ""
        self.entry(f"{folder}.zgroup", {"zarr_format": 2})
        self.entry(f"{folder}.zattrs", attributes)

    def array(self, array: LevelArray) -> None:
        self.entry(f"{array.path}/.zarray", array.zarray())
        self.entry(f"{array.path}/.zattrs", array.zattrs())


class _Output:
    """A temporary folder whose content is put in its place at the end, or dropped if anything failed."""

    def __init__(self, url: str, storage_options: Mapping[str, Any] | None) -> None:
        self._url = url
        self._filesystem, self._path = open_folder(url, storage_options)
        if self._call("exists", self._path):
            raise ValueError(f"{shown_url(url)}: exists; name another output or delete it")
        parent = None if local_path(url) is None else str(Path(self._path).parent)
        if parent is not None:
            Path(parent).mkdir(parents=True, exist_ok=True)
        self.folder = Path(tempfile.mkdtemp(prefix=".references-", dir=parent))

    def place(self, made: Path) -> None:
        """Put a file or folder that was made in ``folder`` where it belongs."""
        if local_path(self._url) is not None:
            os.replace(made, self._path)
        elif made.is_file():
            self._call("put_file", str(made), self._path)
        else:
            # The metadata last: they are what makes the folder a reference set.
            for file in sorted(made.rglob("*"), key=lambda file: (file.name == ".zmetadata", file)):
                if file.is_file():
                    self._call("put_file", str(file), f"{self._path}/{file.relative_to(made).as_posix()}")

    def drop(self) -> None:
        """Remove the temporary folder."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _call(self, method: str, *arguments: Any) -> Any:
        try:
            return getattr(self._filesystem, method)(*arguments)
        except Exception as error:
            raise storage_error(self._url, error) from error


class _Writer(ABC):
    """What both writers share: metadata in one growing file, and an output that is put in its place when it is whole.

    Args:
        output: Path or URL of what is made.
        storage_options: Options of its store.
        made: Name of it in the temporary folder.
    """

    def __init__(self, output: str, storage_options: Mapping[str, Any] | None, made: str) -> None:
        self._output = _Output(output, storage_options)
        self._made = self._output.folder / made

    def __enter__(self) -> Self:
        self._file, self._metadata = self._open()
        return self

    def group(self, path: str, attributes: Mapping[str, Any]) -> None:
        """Add a group."""
        self._metadata.group(path, attributes)

    def array(self, array: LevelArray) -> None:
        """Add an array's metadata."""
        self._metadata.array(array)

    def __exit__(self, kind: object, *_: object) -> None:
        try:
            self._file.write(self._closing())
            self._file.close()
            if kind is None:
                self._output.place(self._made)
        finally:
            self._output.drop()

    @abstractmethod
    def _open(self) -> tuple[IO[str], _Metadata]:
        """The file that is begun, and what gathers its metadata."""

    @abstractmethod
    def _closing(self) -> str:
        """What ends the file."""


class JsonWriter(_Writer):
    """One JSON file of references; a context manager that puts the file in its place at the end.

    Args:
        output: Path or URL of the file.
        urls: All objects that will be referred to.
        storage_options: Options of its store.
    """

    def __init__(self, output: str, *, urls: Collection[str], storage_options: Mapping[str, Any] | None = None) -> None:
        super().__init__(output, storage_options, "references.json")
        few = len(urls) <= MAX_TEMPLATES
        self._names = {url: f"u{k}" for k, url in enumerate(sorted(urls))} if few else {}

    def _open(self) -> tuple[IO[str], _Metadata]:
        file = self._made.open("w", encoding="utf-8")
        return file, _Metadata(file, '{"version": 1, "refs": {\n', as_text=True)

    def _closing(self) -> str:
        templates = json.dumps({name: url for url, name in self._names.items()})
        return f'\n}}, "templates": {templates}, "gen": []}}\n'

    def tiles(self, array: LevelArray, first: int, ranges: Sequence[ByteRange]) -> None:
        """Add references of tiles; those that were not stored get none."""
        columns = array.geometry.tiles_x
        name = self._names.get(array.url)
        url = json.dumps(array.url if name is None else "{{" + name + "}}")
        path = json.dumps(array.path)[1:-1]
        lines = [
            f'"{path}/{number // columns}.{number % columns}.0": [{url}, {start}, {length}]'
            for number, (start, length) in enumerate(ranges, first)
            if length
        ]
        if lines:
            self._metadata.raw(",\n".join(lines))


class ParquetWriter(_Writer):
    """A folder of references that fsspec reads as far as they are used; a context manager like ``JsonWriter``."""

    def __init__(self, output: str, *, storage_options: Mapping[str, Any] | None = None) -> None:
        super().__init__(output, storage_options, "references")
        self._made.mkdir()

    def _open(self) -> tuple[IO[str], _Metadata]:
        file = (self._made / ".zmetadata").open("w", encoding="utf-8")
        return file, _Metadata(file, f'{{"record_size": {RECORD_TILES}, "metadata": {{\n', as_text=False)

    def _closing(self) -> str:
        return "\n}}\n"

    def tiles(self, array: LevelArray, first: int, ranges: Sequence[ByteRange]) -> None:
        """Write the files of up to any number of records."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        folder = self._made / array.path
        folder.mkdir(parents=True, exist_ok=True)
        assert first % RECORD_TILES == 0, "tiles come by whole records"
        for begin in range(0, len(ranges), RECORD_TILES):
            part = ranges[begin : begin + RECORD_TILES]
            stored = [length > 0 for _, length in part]
            url_numbers = pa.array([0 if there else None for there in stored], pa.int32())
            columns = {
                "path": pa.DictionaryArray.from_arrays(url_numbers, pa.array([array.url])),
                "offset": pa.array([start if length else 0 for start, length in part], pa.int64()),
                "size": pa.array([length for _, length in part], pa.int64()),
            }
            if not all(stored):
                white = blank_chunk(array.codecs, array.geometry)
                columns["raw"] = pa.array([None if there else white for there in stored], pa.binary())
            name = folder / f"refs.{(first + begin) // RECORD_TILES}.parq"
            # Without statistics that say that no number is missing, fastparquet makes floats of them.
            pq.write_table(
                pa.table(columns),
                name,
                compression="zstd",
                write_statistics=["offset", "size"],
                # Differences of offsets are small: 4 bytes a tile in place of 7.
                use_dictionary=["path"],
                column_encoding={"offset": "DELTA_BINARY_PACKED"},
            )
