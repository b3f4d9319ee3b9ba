"""How are ranges of bytes read from an object, wherever it lies?

``open_object(url)`` gives a ``ByteSource``: its ``info`` (size and version), its ``read_ranges``, and ``read_start``,
which does both at once. Four sources stand behind this one small protocol:

- ``LocalSource``: files, by ``os.pread``;
- ``ObstoreSource``: ``s3://``, ``az://``, ``gs://`` and ``http(s)://``, at a fraction of the CPU of other clients;
- ``HttpSource``: signed URLs, passwords, headers: the web addresses that obstore does not serve;
- ``FsspecSource``: every other scheme, and those above where their options need a client that obstore is not.

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
from weakref import WeakSet

from online_patching import loop
from online_patching.bytesource import (
    ByteRange,
    ByteSource,
    ObjectInfo,
    PinnedObject,
    check_length,
    check_size,
    check_unchanged,
    join_url,
    local_path,
    storage_error,
)
from online_patching.errors import AccessDeniedError, NotFoundError, StorageError
from online_patching.fsspec_source import FsspecSource, filesystem_of, object_info, path_in
from online_patching.http_source import HttpSource
from online_patching.obstore_source import ObstoreSource, obstore_source_for

if TYPE_CHECKING:
    import fsspec


@dataclass(frozen=True, slots=True)
class LocalSource:
    """A file on a local or mounted disk."""

    url: str

    async def info(self) -> ObjectInfo:
        """Size and modification time of the file."""
        return await asyncio.to_thread(self._info)

    async def read_ranges(self, ranges: Sequence[ByteRange], *, expected: ObjectInfo | None = None) -> list[bytes]:
        """All ranges in one hop to a thread, with the file checked through the descriptor that is read."""
        return await asyncio.to_thread(self.read_ranges_now, ranges, expected=expected)

    def read_ranges_now(self, ranges: Sequence[ByteRange], *, expected: ObjectInfo | None = None) -> list[bytes]:
        """``read_ranges`` in the calling thread, for callers that have threads for it; no descriptor stays open.

        Raises:
            NotFoundError: The file does not exist.
            SlideChangedError: It is not the pinned one.
            StorageError: It cannot be read, or ends before a range does.
        """
        descriptor = self._open()
        try:
            if expected is not None:
                check_unchanged(stat_info(os.fstat(descriptor)), expected, self.url)
            return [_read_range(descriptor, each, self.url) for each in ranges]
        except OSError as error:
            raise StorageError(f"{self.url}: reading failed ({error.strerror}); check the disk or mount") from error
        finally:
            os.close(descriptor)

    async def read_start(self, length: int) -> tuple[bytes, ObjectInfo]:
        """The file's first bytes, in one hop to a thread."""
        return await asyncio.to_thread(self._read_start, length)

    async def read_whole(self, *, max_bytes: int) -> tuple[bytes, ObjectInfo]:
        """The file, in one hop to a thread."""
        return await asyncio.to_thread(self.read_whole_now, max_bytes=max_bytes)

    def _open(self) -> int:
        path = local_path(self.url)
        assert path is not None, "LocalSource is made for local paths only"
        try:
            return os.open(path, os.O_RDONLY)
        except FileNotFoundError as error:
            raise NotFoundError(
                f"{self.url}: no such file; check the spelling, or index a slide that has moved again"
            ) from error
        except PermissionError as error:
            raise AccessDeniedError(f"{self.url}: access denied; check the permissions of the file") from error
        except OSError as error:
            raise StorageError(f"{self.url}: cannot be opened ({error.strerror}); check the disk or mount") from error

    def _info(self) -> ObjectInfo:
        descriptor = self._open()
        try:
            return stat_info(os.fstat(descriptor))
        finally:
            os.close(descriptor)

    def read_whole_now(self, *, max_bytes: int) -> tuple[bytes, ObjectInfo]:
        """``read_whole`` in the calling thread.

        Raises:
            NotFoundError: The file does not exist.
            StorageError: It cannot be read, or is larger.
        """
        data, info = self._read_start(max_bytes)
        check_size(info.size, max_bytes, self.url)
        return data, info

    def _read_start(self, length: int) -> tuple[bytes, ObjectInfo]:
        descriptor = self._open()
        try:
            info = stat_info(os.fstat(descriptor))
            length = min(length, info.size)
            return _read_range(descriptor, (0, length), self.url), info
        except OSError as error:
            raise StorageError(f"{self.url}: reading failed ({error.strerror}); check the disk or mount") from error
        finally:
            os.close(descriptor)


def _read_range(descriptor: int, byte_range: ByteRange, url: str) -> bytes:
    start, length = byte_range
    data = os.pread(descriptor, length, start)
    # A signal, or a mount in trouble, may end a read early: what follows is asked for until the file ends.
    while len(data) < length and (more := os.pread(descriptor, length - len(data), start + len(data))):
        data += more
    return data if len(data) == length else check_length(data, byte_range, url)


def stat_info(stat: os.stat_result) -> ObjectInfo:
    """Size and version of a file on a disk."""
    return ObjectInfo(stat.st_size, f"mtime-{stat.st_mtime_ns}")


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

    def forget_client(self) -> None:
        """Drop the client and its connections; the next use makes one."""
        client, self._client = self._client, None
        if client is not None and isinstance(client[1], ObstoreSource):
            client[1].drop_store()

    async def info(self) -> ObjectInfo:
        """Size and version of the object now."""
        return await self._source().info()

    async def read_ranges(self, ranges: Sequence[ByteRange], *, expected: ObjectInfo | None = None) -> list[bytes]:
        """The bytes of every range, in order."""
        return await self._source().read_ranges(ranges, expected=expected)

    async def read_start(self, length: int) -> tuple[bytes, ObjectInfo]:
        """The first bytes, with size and version."""
        return await self._source().read_start(length)

    async def read_whole(self, *, max_bytes: int) -> tuple[bytes, ObjectInfo]:
        """All bytes, with size and version."""
        return await self._source().read_whole(max_bytes=max_bytes)

    def _source(self) -> ByteSource:
        if self._client is None or self._client[0] != os.getpid():
            source = obstore_source_for(self.url, self._options)
            if source is None:
                filesystem = filesystem_of(self.url, self._options, blocking=False)
                http = self.url.startswith(("http://", "https://"))
                source = HttpSource(self.url, filesystem) if http else FsspecSource(self.url, filesystem)
            self._client = (os.getpid(), source)
            _with_clients.add(self)
        return self._client[1]


_with_clients: WeakSet[RemoteSource] = WeakSet()


async def _forget_clients() -> None:
    for source in list(_with_clients):
        source.forget_client()
    _with_clients.clear()


loop.at_close(_forget_clients)


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
        path = local_path(folder_url)
        try:
            if path is not None:
                with os.scandir(path) as entries:
                    files = [(entry.name, stat_info(entry.stat())) for entry in entries if entry.is_file()]
            else:
                filesystem, folder = open_folder(folder_url, self._options)
                listed = [each for each in filesystem.ls(folder, detail=True) if each["type"] == "file"]
                files = [(each["name"].rpartition("/")[2], object_info(each)) for each in listed]
        except Exception as error:
            raise storage_error(folder_url, error) from error
        return [PinnedObject(join_url(folder_url, name), info) for name, info in sorted(files)]


def open_folder(url: str, storage_options: Mapping[str, Any] | None = None) -> tuple[fsspec.AbstractFileSystem, str]:
    """The file system and path of a folder, for the few small files of a catalog and for listings.

    Raises:
        StorageError: No client for the scheme is installed, or it refuses the options.
    """
    path = local_path(url)
    if path is not None:
        return filesystem_of("file://", None), str(Path(path).absolute())
    filesystem = filesystem_of(url, storage_options)
    return filesystem, path_in(filesystem, url).rstrip("/")
