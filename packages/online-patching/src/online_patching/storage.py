"""How are ranges of bytes read from an object, wherever it lies?

``open_object(url)`` gives a ``ByteSource``: its ``info`` (size and version) and its ``read_ranges``. Three sources
stand behind this one small protocol:

- ``LocalSource``: files, by ``os.pread``;
- ``ObstoreSource``: ``s3://`` and ``http(s)://`` through obstore, which costs a fifth of the CPU of other clients;
- ``FsspecSource``: every other scheme, and those two where their options need a client that obstore is not.

``storage_options`` speak fsspec's dialect everywhere. A short body is an error, and so is an object whose size or
version differ from those pinned in ``expected``. No credential appears in an error: URLs are shown without
user, password and query.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from online_patching.bytesource import (
    ByteRange,
    ByteSource,
    ObjectInfo,
    PinnedObject,
    check_length,
    check_unchanged,
    join_url,
    local_path,
    shown_url,
    split_reference_url,
    storage_error,
)
from online_patching.errors import NotFoundError, StorageError
from online_patching.obstore_source import obstore_source_for

if TYPE_CHECKING:
    import fsspec

SLIDE_SUFFIXES = (".svs", ".tif", ".tiff")


@dataclass(frozen=True, slots=True)
class LocalSource:
    """A file on a local or mounted disk."""

    url: str

    async def info(self) -> ObjectInfo:
        """Size and modification time of the file."""
        return await asyncio.to_thread(self._info)

    async def read_ranges(self, ranges: Sequence[ByteRange], *, expected: ObjectInfo | None = None) -> list[bytes]:
        """All ranges in one hop to a thread, with the file checked through the descriptor that is read."""
        return await asyncio.to_thread(self._read, ranges, expected)

    def _open(self) -> int:
        path = local_path(self.url)
        assert path is not None, "LocalSource is made for local paths only"
        try:
            return os.open(path, os.O_RDONLY)
        except FileNotFoundError as error:
            raise NotFoundError(f"{self.url}: no such file") from error
        except OSError as error:
            raise StorageError(f"{self.url}: cannot be opened ({error.strerror}); check the permissions") from error

    def _info(self) -> ObjectInfo:
        descriptor = self._open()
        try:
            return _stat_info(descriptor)
        finally:
            os.close(descriptor)

    def _read(self, ranges: Sequence[ByteRange], expected: ObjectInfo | None) -> list[bytes]:
        descriptor = self._open()
        try:
            check_unchanged(_stat_info(descriptor), expected, self.url)
            return [check_length(os.pread(descriptor, r[1], r[0]), r, self.url) for r in ranges]
        except OSError as error:
            raise StorageError(f"{self.url}: reading failed ({error.strerror})") from error
        finally:
            os.close(descriptor)


def _stat_info(descriptor: int) -> ObjectInfo:
    stat = os.fstat(descriptor)
    return ObjectInfo(stat.st_size, f"mtime-{stat.st_mtime_ns}")


class FsspecSource:
    """Any scheme that fsspec serves; its blocking calls run in threads.

    The client is made fresh in each process (fsspec's instance cache does not survive a fork).
    """

    def __init__(self, url: str, filesystem: fsspec.AbstractFileSystem, path: str) -> None:
        self.url = url
        self._filesystem = filesystem
        self._path = path
        self._seen: ObjectInfo | None = None

    async def info(self) -> ObjectInfo:
        """Size and version as the file system tells them."""
        return object_info(await self._call("info", self._path))

    async def read_ranges(self, ranges: Sequence[ByteRange], *, expected: ObjectInfo | None = None) -> list[bytes]:
        """The ranges, in parallel; the version is checked once while this source is in use."""
        if expected is not None and self._seen != expected:
            info = await self.info()
            check_unchanged(info, expected, self.url)
            self._seen = info
        answers = await asyncio.gather(*(self._call("cat_file", self._path, start=s, end=s + n) for s, n in ranges))
        return [check_length(bytes(data), r, self.url) for data, r in zip(answers, ranges, strict=True)]

    async def _call(self, method: str, *args: Any, **kwargs: Any) -> Any:
        try:
            return await asyncio.to_thread(getattr(self._filesystem, method), *args, **kwargs)
        except Exception as error:
            raise storage_error(self.url, error) from error


_sources: dict[tuple[int, str, str], Any] = {}


def _filesystem(scheme: str, storage_options: Mapping[str, Any] | None) -> fsspec.AbstractFileSystem:
    key = (os.getpid(), scheme, repr(sorted((storage_options or {}).items())))
    if key not in _sources:
        # Costs a quarter of the package's import time and local slides do without.
        import fsspec

        try:
            _sources[key] = fsspec.filesystem(scheme, skip_instance_cache=True, **dict(storage_options or {}))
        except (ImportError, ValueError) as error:
            raise StorageError(f"{scheme}://: no client for this scheme is installed ({error})") from error
        except Exception as error:
            raise storage_error(f"{scheme}://", error) from error
    return _sources[key]


class RemoteSource:
    """An object of a remote store: a plain description, whose client is made where and when it is first used.

    It may be pickled and may cross a fork: each process gets a client of its own.
    """

    def __init__(self, url: str, storage_options: Mapping[str, Any] | None = None) -> None:
        self.url = url
        self._options = dict(storage_options or {})
        self._client: tuple[int, ByteSource] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {"url": self.url, "_options": self._options, "_client": None}

    async def info(self) -> ObjectInfo:
        """Size and version of the object now."""
        return await self._source().info()

    async def read_ranges(self, ranges: Sequence[ByteRange], *, expected: ObjectInfo | None = None) -> list[bytes]:
        """The bytes of every range, in order."""
        return await self._source().read_ranges(ranges, expected=expected)

    def _source(self) -> ByteSource:
        if self._client is None or self._client[0] != os.getpid():
            source = obstore_source_for(self.url, self._options)
            if source is None:
                filesystem = _filesystem(urlsplit(self.url).scheme, self._options)
                source = FsspecSource(self.url, filesystem, filesystem._strip_protocol(self.url))
            self._client = (os.getpid(), source)
        return self._client[1]


def open_object(url: str, storage_options: Mapping[str, Any] | None = None) -> ByteSource:
    """The source of a URL or local path; nothing is requested yet.

    Args:
        url: Local path, ``file://``, ``s3://``, ``az://``, ``abfs://``, ``gs://`` or ``http(s)://``.
        storage_options: Options of the client, in fsspec's dialect.
    """
    return LocalSource(url) if local_path(url) is not None else RemoteSource(url, storage_options)


class Store:
    """Opens objects and lists folders with one set of options; slides of several files need both.

    It may be pickled, like the sources it opens.
    """

    def __init__(self, storage_options: Mapping[str, Any] | None = None) -> None:
        self._options = dict(storage_options or {})

    def open(self, url: str) -> ByteSource:
        """The source of a URL or local path; nothing is requested yet."""
        return open_object(url, self._options)

    async def list_folder(self, folder_url: str) -> list[PinnedObject]:
        """The files that lie directly in a folder, with size and version where the listing tells them.

        Raises:
            StorageError: The folder cannot be listed.
        """
        return await asyncio.to_thread(self._list, folder_url)

    def _list(self, folder_url: str) -> list[PinnedObject]:
        filesystem, path = open_folder(folder_url, self._options)
        try:
            entries = filesystem.ls(path, detail=True)
        except Exception as error:
            raise storage_error(folder_url, error) from error
        return [
            PinnedObject(join_url(folder_url, entry["name"].rpartition("/")[2]), object_info(entry))
            for entry in sorted(entries, key=lambda entry: str(entry["name"]))
            if entry["type"] == "file"
        ]


def object_info(details: Mapping[str, Any]) -> ObjectInfo:
    """Size and version from what an fsspec file system tells of a file."""
    tag = details.get("ETag") or details.get("etag") or details.get("mtime") or details.get("LastModified") or ""
    return ObjectInfo(int(details["size"] or 0), str(tag).strip('"'))


def open_folder(url: str, storage_options: Mapping[str, Any] | None = None) -> tuple[fsspec.AbstractFileSystem, str]:
    """The file system and path of a folder, for the few small files of a catalog and for listings."""
    path = local_path(url)
    if path is not None:
        return _filesystem("file", None), str(Path(path).absolute())
    filesystem = _filesystem(urlsplit(url).scheme, storage_options)
    return filesystem, filesystem._strip_protocol(url).rstrip("/")


def list_slides(url: str, storage_options: Mapping[str, Any] | None = None) -> list[str]:
    """URLs of the slides below a folder, in order of their names; a slide's own URL lists itself.

    Raises:
        NotFoundError: The folder, bucket or file does not exist.
        StorageError: The store cannot be reached, or the folder holds no slide.
    """
    if url.lower().endswith(SLIDE_SUFFIXES) or split_reference_url(url):
        return [url]
    filesystem, path = open_folder(url, storage_options)
    try:
        if local_path(url) is not None and not Path(path).is_dir():
            raise NotFoundError(f"{url}: no such folder")
        found = sorted(filesystem.find(path))
    except Exception as error:
        raise storage_error(url, error) from error
    names = [name for name in found if name.lower().endswith(SLIDE_SUFFIXES)]
    if not names:
        raise StorageError(
            f"{shown_url(url)}: no slides found ({len(found)} other files; slides end in"
            f" {', '.join(SLIDE_SUFFIXES)}); name the folder that holds them"
        )
    if local_path(url) is not None:
        return names
    return [filesystem.unstrip_protocol(name) for name in names]
