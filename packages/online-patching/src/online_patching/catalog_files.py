"""What lies in a catalog folder, and how is a file of it read and written?

::

    catalog.json                 format_version
    slides.parquet               one row a slide: everything but byte ranges and polygons
    slides/<id>/slide.json       the same row, written last: the mark that the slide is indexed
    slides/<id>/tiles.optt       byte ranges of its tiles (tiletable)
    slides/<id>/foreground.wkb   polygons in level-0 pixels

Each slide is a folder of its own, so that slides are indexed in parallel and a stopped job loses none that was done;
``slides.parquet`` gathers the rows, so that opening a catalog reads one file.
"""

from __future__ import annotations

import base64
import json
import os
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any
from urllib.parse import quote

from online_patching.bytesource import ObjectInfo, PinnedObject, join_url, local_path, shown_url, storage_error
from online_patching.errors import CatalogError, NotFoundError
from online_patching.formats.header import Codec, Colour, SlideHeader, TileEncoding
from online_patching.geometry import LevelGeometry
from online_patching.storage import open_folder

FORMAT_VERSION = 1
TILE_TABLE, FOREGROUND, SLIDE_ROW = "tiles.optt", "foreground.wkb", "slide.json"

Scalar = str | int | float | bool | None


@dataclass(frozen=True, slots=True)
class SlideRow:
    """One row of the slide table.

    Attributes:
        id: Unique in the catalog.
        url: Where the slide lies.
        objects: The slide's objects with the size and version that are pinned; most formats have one.
        header: Levels, encodings, mpp (as overridden by the user, where they did).
        foreground_area_level0_px2: Area of the foreground in square level-0 pixels, or None where not computed yet.
        columns: The user's columns (patient, label, split, ...).
    """

    id: str
    url: str
    objects: tuple[PinnedObject, ...]
    header: SlideHeader
    foreground_area_level0_px2: float | None = None
    columns: dict[str, Scalar] = field(default_factory=dict)

    @property
    def info(self) -> ObjectInfo:
        """Size and version of the (first) object."""
        return self.objects[0].info

    @property
    def foreground_area_mm2(self) -> float | None:
        """Area of the foreground, or None where it or the mpp is not known."""
        if self.foreground_area_level0_px2 is None or self.header.mpp is None:
            return None
        return self.foreground_area_level0_px2 * self.header.mpp**2 / 1e6


class CatalogFolder:
    """Reads and writes the small files of one catalog, at any URL."""

    def __init__(self, url: str, storage_options: Mapping[str, Any] | None = None) -> None:
        self.url = url
        self.shown_url = shown_url(url)
        self.storage_options = dict(storage_options or {})

    def slide_url(self, slide_id: str, name: str) -> str:
        """URL of one file of a slide."""
        return join_url(self.url, "slides", quote(slide_id, safe=" "), name)

    def read(self, *names: str) -> bytes:
        """A whole small file.

        Raises:
            NotFoundError: It does not exist.
            StorageError: The store failed.
        """
        filesystem, root = open_folder(self.url, self.storage_options)
        try:
            return bytes(filesystem.cat_file(join_url(root, *names)))
        except Exception as error:
            raise storage_error(join_url(self.url, *names), error) from error

    def write(self, data: bytes, *names: str) -> None:
        """Write a file so that nobody ever sees a part of it (stores put whole objects, disks rename)."""
        filesystem, root = open_folder(self.url, self.storage_options)
        path = join_url(root, *names)
        try:
            if local_path(self.url) is None:
                filesystem.pipe_file(path, data)
                return
            filesystem.makedirs(path.rpartition("/")[0], exist_ok=True)
            partial = f"{path}.{uuid.uuid4().hex}.partial"
            filesystem.pipe_file(partial, data)
            os.replace(partial, path)
        except Exception as error:
            raise storage_error(join_url(self.url, *names), error) from error

    def read_rows(self) -> list[SlideRow]:
        """All rows of the slide table.

        Raises:
            CatalogError: No catalog there, or one of a newer format.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            about = json.loads(self.read("catalog.json"))
            table = pq.read_table(pa.BufferReader(self.read("slides.parquet")))
        except NotFoundError as error:
            raise CatalogError(
                f"{self.shown_url}: no catalog there ({error}); make one with `online-patching index SLIDES --catalog"
                f" {self.shown_url}`"
            ) from error
        except (ValueError, pa.ArrowException) as error:
            raise CatalogError(f"{self.shown_url}: the catalog is damaged ({error}); index the slides again") from error
        _check_version(about, self.shown_url)
        return [row_from_json(json.loads(text)) for text in table["record"].to_pylist()]

    def write_rows(self, rows: Iterable[SlideRow]) -> None:
        """Write the slide table, and with it the mark that the folder is a catalog."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        ordered = sorted(rows, key=lambda row: row.id)
        user_columns = sorted({name for row in ordered for name in row.columns})
        data: dict[str, Any] = {
            "id": [row.id for row in ordered],
            "url": [row.url for row in ordered],
            "size": [row.info.size for row in ordered],
            "version": [row.info.version for row in ordered],
            "vendor": [row.header.vendor for row in ordered],
            "mpp": pa.array([row.header.mpp for row in ordered], pa.float64()),
            "levels": [len(row.header.levels) for row in ordered],
            "foreground_area_mm2": pa.array([row.foreground_area_mm2 for row in ordered], pa.float64()),
        }
        # User columns may mix types between slides (a label that is 1 here and "1" there): text is the common ground.
        for name in user_columns:
            data[name] = [None if row.columns.get(name) is None else str(row.columns[name]) for row in ordered]
        data["record"] = [json.dumps(row_to_json(row)) for row in ordered]
        sink = pa.BufferOutputStream()
        pq.write_table(pa.table(data), sink, compression="zstd")
        self.write(sink.getvalue().to_pybytes(), "slides.parquet")
        self.write(json.dumps({"format_version": FORMAT_VERSION}).encode(), "catalog.json")

    def read_slide_row(self, slide_id: str) -> SlideRow | None:
        """The row that a slide's own folder holds, or None where the slide is not (wholly) indexed."""
        try:
            record = json.loads(self.read_slide_file(slide_id, SLIDE_ROW))
        except NotFoundError:
            return None
        except ValueError as error:
            raise CatalogError(f"{self.shown_url}: slide.json of {slide_id} is damaged; delete that folder") from error
        return row_from_json(record)

    def read_slide_file(self, slide_id: str, name: str) -> bytes:
        """One file of a slide's folder."""
        return self.read("slides", quote(slide_id, safe=" "), name)

    def write_slide_file(self, slide_id: str, name: str, data: bytes) -> None:
        """Write one file of a slide's folder."""
        self.write(data, "slides", quote(slide_id, safe=" "), name)

    def write_slide_row(self, row: SlideRow) -> None:
        """Write a slide's own row, which marks it as done."""
        self.write_slide_file(row.id, SLIDE_ROW, json.dumps(row_to_json(row)).encode())


def _check_version(about: Any, url: str) -> None:
    version = about.get("format_version") if isinstance(about, dict) else None
    if not isinstance(version, int):
        raise CatalogError(f"{url}: catalog.json has no format_version; index the slides again")
    if version > FORMAT_VERSION:
        raise CatalogError(
            f"{url}: catalog format_version {version}, this version of online-patching reads up to {FORMAT_VERSION};"
            " upgrade online-patching"
        )


def row_to_json(row: SlideRow) -> dict[str, Any]:
    """A row as plain JSON values."""
    header = row.header
    return {
        "format_version": FORMAT_VERSION,
        "id": row.id,
        "url": row.url,
        "objects": [[each.url, each.info.size, each.info.version] for each in row.objects],
        "level_objects": list(header.level_objects),
        "vendor": header.vendor,
        "mpp": header.mpp,
        "levels": [asdict(level) for level in header.levels],
        "encodings": [
            {
                "codec": encoding.codec.value,
                "colour": encoding.colour.value,
                "jpeg_tables": base64.b64encode(encoding.jpeg_tables).decode(),
                "predictor": encoding.predictor,
                "jpeg_header": base64.b64encode(encoding.jpeg_header).decode(),
            }
            for encoding in header.encodings
        ],
        "properties": header.properties,
        "foreground_area_level0_px2": row.foreground_area_level0_px2,
        "columns": row.columns,
    }


def row_from_json(record: dict[str, Any]) -> SlideRow:
    """The row of ``row_to_json``.

    Raises:
        CatalogError: A newer format, or missing and unknown values.
    """
    name = str(record.get("id", "a slide"))
    _check_version(record, name)
    try:
        encodings = tuple(
            TileEncoding(
                Codec(e["codec"]),
                Colour(e["colour"]),
                base64.b64decode(e["jpeg_tables"]),
                e["predictor"],
                base64.b64decode(e["jpeg_header"]),
            )
            for e in record["encodings"]
        )
        header = SlideHeader(
            vendor=record["vendor"],
            mpp=record["mpp"],
            levels=tuple(LevelGeometry(**level) for level in record["levels"]),
            encodings=encodings,
            properties=record["properties"],
            level_objects=tuple(record["level_objects"]),
        )
        objects = tuple(PinnedObject(url, ObjectInfo(size, version)) for url, size, version in record["objects"])
        area = record["foreground_area_level0_px2"]
        return SlideRow(record["id"], record["url"], objects, header, area, record["columns"])
    except (KeyError, TypeError, ValueError) as error:
        raise CatalogError(f"catalog row of {name} is damaged ({error}); index the slide again") from error


def with_mpp(row: SlideRow, mpp: float) -> SlideRow:
    """The row with another resolution of level 0."""
    return replace(row, header=replace(row.header, mpp=mpp))
