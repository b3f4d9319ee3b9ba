"""What lies in a catalog folder, and how is a file of it read and written?

::

    catalog.json                 format_version; written first
    slides.parquet               one row a slide (slide_table): all that is known without opening it
    failures.parquet             one row a slide that could not be indexed, with its reason
    slides/<id>/tiles.optt       its header and the byte ranges of its tiles (tiletable)
    slides/<id>/foreground.wkb   polygons in level-0 pixels
    slides/<id>/slide.json       its row, written last: the mark that the slide is done
    .partial/                    files being written to a disk; a stopped job may leave some, the next one removes them

Each slide is a folder of its own, so that slides are indexed in parallel and a stopped job loses none that was done;
``slides.parquet`` gathers the rows, so that opening a catalog reads one file.

Every file appears whole or not at all. Two jobs on one catalog do not damage it: they write the same slides' files
with the same content, and of ``slides.parquet`` the last one written holds; slides that it lacks are taken up from
their ``slide.json`` when they are indexed again, without reading them.
"""

from __future__ import annotations

import contextlib
import json
import os
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

from online_patching.bytesource import join_url, local_path, shown_url, storage_error
from online_patching.errors import CatalogError, NotFoundError, StorageError
from online_patching.slide_row import SlideRow, row_from_json, row_to_json
from online_patching.slide_table import SlideTable
from online_patching.storage import open_folder

FORMAT_VERSION = 2
ABOUT, SLIDES, FAILURES, PARTIAL = "catalog.json", "slides.parquet", "failures.parquet", ".partial"
TILE_TABLE, FOREGROUND, SLIDE_ROW = "tiles.optt", "foreground.wkb", "slide.json"
# The folder of partial files is made when it turns out to be missing. Another job that cleans up may take it away while
# a file is written there; then that is written again.
WRITE_ATTEMPTS = 5


class CatalogFolder:
    """Reads and writes the small files of one catalog, at any URL."""

    def __init__(self, url: str, storage_options: Mapping[str, Any] | None = None) -> None:
        self.url = url
        self.shown_url = shown_url(url)
        self.storage_options = dict(storage_options or {})

    def slide_folder(self, slide_id: str, folder: str | None = None) -> str:
        """URL of the folder of a slide's files; ``folder`` as in the slide table."""
        if folder is None:
            return join_url(self.url, "slides", _folder_name(slide_id))
        return folder if "://" in folder or folder.startswith("/") else join_url(self.url, folder)

    def slide_url(self, row: SlideRow, name: str) -> str:
        """URL of one file of a slide."""
        return self.file_url(row.id, row.folder, name)

    def file_url(self, slide_id: str, folder: str | None, name: str) -> str:
        """The same, for who has no row: ``folder`` as in the slide table."""
        return join_url(self.slide_folder(slide_id, folder), name)

    def read(self, *names: str) -> bytes:
        """A whole small file of the catalog.

        Raises:
            NotFoundError: It does not exist.
            StorageError: The store failed.
        """
        return self.read_url(join_url(self.url, *names))

    def read_url(self, url: str) -> bytes:
        """A whole small file, by its URL."""
        local = local_path(url)
        try:
            if local is not None:
                # A third of the time that a file system takes for it: a stream reads one at almost every patch.
                return Path(local).read_bytes()
            filesystem, path = open_folder(url, self.storage_options)
            return bytes(filesystem.cat_file(path))
        except Exception as error:
            raise storage_error(url, error) from error

    def write(self, data: bytes, *names: str) -> None:
        """Write a file so that nobody ever sees a part of it (stores put whole objects, disks rename)."""
        self.write_url(data, join_url(self.url, *names))

    def write_url(self, data: bytes, url: str) -> None:
        """The same, by the file's URL."""
        filesystem, path = open_folder(url, self.storage_options)
        try:
            if local_path(self.url) is None:
                filesystem.pipe_file(path, data)
            else:
                self._write_local(data, path)
        except Exception as error:
            raise storage_error(url, error) from error

    def _write_local(self, data: bytes, path: str) -> None:
        folder = open_folder(join_url(self.url, PARTIAL))[1]
        partial = os.path.join(folder, uuid.uuid4().hex)  # noqa: PTH118
        for attempt in range(WRITE_ATTEMPTS):
            try:
                os.makedirs(os.path.dirname(path), exist_ok=True)  # noqa: PTH103, PTH120
                with open(partial, "wb") as file:  # noqa: PTH123
                    file.write(data)
                os.replace(partial, path)
                return
            except FileNotFoundError:
                if attempt + 1 == WRITE_ATTEMPTS:
                    raise
                # "It exists" is said as well of one that another job removes at this very moment.
                with contextlib.suppress(FileExistsError):
                    os.makedirs(folder, exist_ok=True)  # noqa: PTH103

    def remove_partial_files(self) -> None:
        """Remove what a stopped job left half written."""
        path = local_path(self.url)
        if path is None:
            return
        filesystem, folder = open_folder(join_url(self.url, PARTIAL))
        if filesystem.exists(folder):
            try:
                filesystem.rm(folder, recursive=True)
            except OSError:
                return  # Another job cleans up there, or writes: then it does so at its end.

    def exists(self) -> bool:
        """Whether a catalog of this format lies here; a folder without one is none.

        Raises:
            CatalogError: A catalog of another format, or a damaged one.
        """
        try:
            about = json.loads(self.read(ABOUT))
        except NotFoundError:
            return False
        except ValueError as error:
            raise CatalogError(
                f"{self.shown_url}: catalog.json is damaged ({error}); index into a new folder"
            ) from error
        _check_version(about, self.shown_url)
        return True

    def create(self) -> None:
        """Write the mark that this folder is a catalog."""
        self.write(json.dumps({"format_version": FORMAT_VERSION}).encode(), ABOUT)

    def read_table(self) -> SlideTable:
        """The slide table.

        Raises:
            CatalogError: No catalog there, or one of another format.
        """
        remedy = f"make one with `online-patching index SLIDES --catalog {self.shown_url}`"
        if not self.exists():
            raise CatalogError(f"{self.shown_url}: no catalog there; {remedy}")
        try:
            return SlideTable.from_parquet(self.read(SLIDES), self.shown_url)
        except NotFoundError as error:
            raise CatalogError(f"{self.shown_url}: indexing was stopped before its first slides; {remedy}") from error

    def write_table(self, table: SlideTable) -> None:
        """Write the slide table."""
        self.write(table.to_parquet(), SLIDES)

    def read_slide_row(self, slide_id: str) -> SlideRow | None:
        """The row that a slide's own folder holds, or None where the slide is not (wholly) indexed."""
        url = join_url(self.slide_folder(slide_id), SLIDE_ROW)
        try:
            record = json.loads(self.read_url(url))
            if record.pop("format_version") != FORMAT_VERSION:
                return None
            return row_from_json(record, url)
        except (NotFoundError, CatalogError, ValueError, KeyError, AttributeError):
            # What cannot be read is made again.
            return None

    def write_slide_row(self, row: SlideRow) -> None:
        """Write a slide's own row, which marks it as done."""
        record = {"format_version": FORMAT_VERSION, **row_to_json(row)}
        self.write_slide_file(row, SLIDE_ROW, json.dumps(record, sort_keys=True).encode())

    def read_slide_file(self, row: SlideRow, name: str) -> bytes:
        """One file of a slide's folder."""
        return self.read_url(self.slide_url(row, name))

    def write_slide_file(self, row: SlideRow, name: str, data: bytes) -> None:
        """Write one file of a slide's folder."""
        self.write_url(data, self.slide_url(row, name))

    def remove_slide_file(self, row: SlideRow, name: str) -> None:
        """Remove one file of a slide's folder, where it exists."""
        url = self.slide_url(row, name)
        filesystem, path = open_folder(url, self.storage_options)
        try:
            filesystem.rm_file(path)
        except FileNotFoundError:
            return
        except Exception as error:
            failure = storage_error(url, error)
            if not isinstance(failure, NotFoundError):
                raise StorageError(str(failure)) from error


def _folder_name(slide_id: str) -> str:
    name = quote(slide_id, safe=" ")
    # A name of dots only would be another folder.
    return name.replace(".", "%2E") if set(name) == {"."} else name


def _check_version(about: Any, url: str) -> None:
    version = about.get("format_version") if isinstance(about, dict) else None
    if not isinstance(version, int):
        raise CatalogError(f"{url}: catalog.json has no format_version; index the slides again into a new folder")
    if version > FORMAT_VERSION:
        raise CatalogError(
            f"{url}: catalog format_version {version}, this version of online-patching reads {FORMAT_VERSION};"
            " upgrade online-patching"
        )
    if version < FORMAT_VERSION:
        raise CatalogError(
            f"{url}: catalog format_version {version} is of an earlier online-patching, this one reads"
            f" {FORMAT_VERSION}; index the slides again into a new folder"
        )
