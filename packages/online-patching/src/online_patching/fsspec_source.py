"""How are ranges read through fsspec's clients, for every scheme and option that obstore does not serve?

Asynchronous file systems run on the package's own loop; the others block a thread each. Ranges are retried by ``retry``
alone, so the clients' own retries are off for them (not for the blocking methods that catalogs are written by). Where
the client can send ``If-Match`` (s3fs, adlfs) every range is pinned by it; elsewhere the version is compared after the
ranges were read.
File systems are made anew in each process: fsspec's own instances do not survive a fork.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import logging
import os
import weakref
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from online_patching import loop
from online_patching.bytesource import (
    ByteRange,
    ObjectInfo,
    answered_size,
    check_length,
    check_unchanged,
    entity_tag,
    gathered,
    host_of,
    read_start_by_info,
    read_whole_by_info,
    split_object_url,
    storage_error,
    version_of,
)
from online_patching.errors import StorageError
from online_patching.limits import request_limits
from online_patching.obstore_source import may_be_told_by_get
from online_patching.obstore_store import CONNECT_SECONDS, REQUEST_SECONDS, azure_container, gcs_filesystem
from online_patching.retry import count_received, with_retries

if TYPE_CHECKING:
    import fsspec

_log = logging.getLogger(__name__)

T = TypeVar("T")

GCS_SCHEMES = ("gs", "gcs")
S3_SCHEMES = ("s3", "s3a")
AZURE_SCHEMES = ("az", "abfs", "abfss")
_AZURE_BOUNDS = {"connection_timeout": CONNECT_SECONDS, "read_timeout": REQUEST_SECONDS, "retry_total": 0}

_filesystems: dict[tuple[int, str, str, bool], Any] = {}


def filesystem_of(
    url: str, storage_options: Mapping[str, Any] | None, *, blocking: bool = True
) -> fsspec.AbstractFileSystem:
    """This process's file system for a URL.

    Args:
        url: A URL or a local path.
        storage_options: The client's options.
        blocking: Whether its blocking methods will be called, or its asynchronous ones on the package's loop.

    Raises:
        StorageError: No client for the scheme is installed, or it refuses the options.
    """
    scheme = urlsplit(url).scheme if "://" in url else "file"
    options = _with_defaults(url, scheme, dict(storage_options or {}), blocking)
    key = (os.getpid(), scheme, repr(sorted(options.items())), blocking)
    if key not in _filesystems:
        # Costs a quarter of the package's import time and local slides do without.
        import fsspec

        try:
            kind = fsspec.get_filesystem_class(scheme)
            if kind.async_impl:
                options["loop"] = loop.blocking_loop() if blocking else loop.package_loop()
            _filesystems[key] = kind(skip_instance_cache=True, **options)
            if scheme in S3_SCHEMES and not blocking:
                _filesystems[key].retries = 1
        except ImportError as error:
            served = gcs_filesystem(options) if scheme in GCS_SCHEMES else None
            if served is None:
                raise _no_client(scheme, error) from error
            _filesystems[key] = served
        except ValueError as error:
            raise _no_client(scheme, error) from error
        except Exception as error:
            raise storage_error(f"{scheme}://", error) from error
    return _filesystems[key]


def _no_client(scheme: str, error: Exception) -> StorageError:
    if isinstance(error, ImportError) or "not known" in str(error):
        return StorageError(f"{scheme}://: no client for this scheme is installed ({error})")
    # A client's own words on wrong options may quote them: the option names are all that is safe to say.
    return StorageError(f"{scheme}://: the client refuses the storage_options; check their names and values")


def _with_defaults(url: str, scheme: str, options: dict[str, Any], blocking: bool) -> dict[str, Any]:
    """The options, with bounds on time and attempts where the user set none."""
    if scheme in S3_SCHEMES:
        config = {
            "connect_timeout": CONNECT_SECONDS,
            "read_timeout": REQUEST_SECONDS,
            # botocore's pool would queue requests that have taken a place already.
            "max_pool_connections": 64 if blocking else request_limits().in_flight,
            "retries": {"total_max_attempts": 2 if blocking else 1},
            **options.get("config_kwargs", {}),
        }
        return {"use_listings_cache": False, **options, "config_kwargs": config}
    if scheme in AZURE_SCHEMES:
        account = azure_container(split_object_url(url)[1])[1]
        named = {"account_name": account} if account else {}
        timeouts = {"connection_timeout": CONNECT_SECONDS, "read_timeout": REQUEST_SECONDS}
        return {"use_listings_cache": False, **named, **timeouts, **options}
    return options


class FsspecSource:
    """One object of an fsspec file system."""

    def __init__(self, url: str, filesystem: fsspec.AbstractFileSystem) -> None:
        self.url = url
        self._filesystem = filesystem
        self._path = path_in(filesystem, url)
        self._scheme = split_object_url(url)[0]
        self._host = host_of(url, filesystem.storage_options)
        self._tells_info = self._scheme in (*S3_SCHEMES, *AZURE_SCHEMES)

    async def info(self) -> ObjectInfo:
        """Size and version as the file system tells them."""
        try:
            return await self._tried(self._info)
        except StorageError as error:
            refused = error
            if self._scheme not in S3_SCHEMES or not may_be_told_by_get(refused):
                raise
        # The answer to a HEAD has no body: a GET tells an expired token from a wrong key.
        await self.read_ranges([(0, 1)])
        raise refused

    async def read_ranges(self, ranges: Sequence[ByteRange], *, expected: ObjectInfo | None = None) -> list[bytes]:
        """The ranges, in parallel."""

        async def read_one(byte_range: ByteRange) -> tuple[bytes, ObjectInfo | None]:
            return await self._tried(lambda: self._read_checked(byte_range, expected), byte_range[1])

        answers = await gathered([read_one(each) for each in ranges])
        if expected is not None and any(info is None for _, info in answers):
            check_unchanged(await self.info(), expected, self.url)
        return [data for data, _ in answers]

    async def read_start(self, length: int) -> tuple[bytes, ObjectInfo]:
        """The first bytes, by one request where the client tells size and version of a range."""
        if not self._tells_info:
            return await read_start_by_info(self, length)
        try:
            return await self._tried(lambda: self._read_start(length), length)
        except StorageError as refused:
            # No range of an empty object can be asked for.
            if type(refused) is StorageError and (empty := await self.info()).size == 0:
                return b"", empty
            raise

    async def read_whole(self, *, max_bytes: int) -> tuple[bytes, ObjectInfo]:
        """The object; its size and version cost a request of their own here."""
        return await read_whole_by_info(self, max_bytes)

    async def _tried(self, attempt: Callable[[], Awaitable[T]], length: int = 0) -> T:
        return await with_retries(self.url, self._host, attempt, length=length)

    async def _read_start(self, length: int) -> tuple[bytes, ObjectInfo]:
        data, info = await self._read((0, length), None)
        assert info is not None, "the clients that come here tell it"
        count_received(len(data))
        return check_length(data, (0, min(length, info.size)), self.url, info), info

    async def _info(self) -> ObjectInfo:
        if self._scheme in AZURE_SCHEMES:
            return await self._info_azure()
        return object_info(await self._call("info", self._path))

    async def _read_checked(
        self, byte_range: ByteRange, expected: ObjectInfo | None
    ) -> tuple[bytes, ObjectInfo | None]:
        data, info = await self._read(byte_range, expected)
        if info is not None:
            check_unchanged(info, expected, self.url)
        check_length(data, byte_range, self.url, info or expected)
        count_received(len(data))
        return data, info

    async def _read(self, byte_range: ByteRange, expected: ObjectInfo | None) -> tuple[bytes, ObjectInfo | None]:
        start, length = byte_range
        if length == 0:
            return b"", None
        if self._scheme in S3_SCHEMES:
            return await self._read_s3(start, length, expected)
        if self._scheme in AZURE_SCHEMES:
            return await self._read_azure(start, length, expected)
        return bytes(await self._call("cat_file", self._path, start=start, end=start + length)), None

    async def _read_s3(self, start: int, length: int, expected: ObjectInfo | None) -> tuple[bytes, ObjectInfo | None]:
        bucket, key, version = self._filesystem.split_path(self._path)
        tag = entity_tag(expected)
        answer = await self._filesystem._call_s3(
            "get_object",
            Bucket=bucket,
            Key=key,
            Range=f"bytes={start}-{start + length - 1}",
            **({"IfMatch": tag} if tag else {}),
            **({"VersionId": version} if version else {}),
        )
        async with answer["Body"] as body:
            size = answered_size(self.url, answer.get("ContentRange"), start, length)
            data = bytes(await body.read())
        return data, ObjectInfo(size, version_of(answer.get("ETag"), answer.get("LastModified")))

    async def _read_azure(
        self, start: int, length: int, expected: ObjectInfo | None
    ) -> tuple[bytes, ObjectInfo | None]:
        from azure.core import MatchConditions

        tag = entity_tag(expected)
        condition = {"etag": tag, "match_condition": MatchConditions.IfNotModified} if tag else {}
        async with self._azure_client() as client:
            stream = await client.download_blob(offset=start, length=length, **condition, **_AZURE_BOUNDS)
            # The size among these properties is that of the range asked for; the whole is in the range header.
            size = answered_size(self.url, stream.properties.content_range, start, length)
            data = bytes(await stream.readall())
        return data, ObjectInfo(size, version_of(stream.properties.etag, stream.properties.last_modified))

    async def _info_azure(self) -> ObjectInfo:
        async with self._azure_client() as client:
            found = await client.get_blob_properties(**_AZURE_BOUNDS)
        return ObjectInfo(int(found.size), version_of(found.etag, found.last_modified))

    def _azure_client(self) -> Any:
        container, _, blob = self._path.partition("/")
        return self._filesystem.service_client.get_blob_client(container=container, blob=blob)

    async def _call(self, method: str, *args: Any, **kwargs: Any) -> Any:
        twin = getattr(self._filesystem, f"_{method}", None)
        if self._filesystem.async_impl and inspect.iscoroutinefunction(twin):
            return await twin(*args, **kwargs)
        return await asyncio.to_thread(getattr(self._filesystem, method), *args, **kwargs)


def path_in(filesystem: fsspec.AbstractFileSystem, url: str) -> str:
    """The path by which a file system knows a URL."""
    scheme, bucket, name = split_object_url(url)
    if scheme in AZURE_SCHEMES:
        return f"{azure_container(bucket)[0]}/{name}"
    return str(filesystem._strip_protocol(url))


def object_info(details: Mapping[str, Any]) -> ObjectInfo:
    """Size and version from what an fsspec file system tells of a file."""
    names = ("LastModified", "last_modified", "updated", "mtime", "created")
    modified = next((details[name] for name in names if isinstance(details.get(name), datetime)), None)
    tag = next((details[name] for name in ("ETag", "etag", "e_tag") if details.get(name)), None)
    return ObjectInfo(int(details["size"] or 0), version_of(tag, modified))


def _farewells(filesystems: Iterable[Any]) -> list[weakref.finalize[..., Any]]:
    """What fsspec would do when these are freed or the process ends; ``weakref`` lists it under a private name only."""
    own = {id(filesystem) for filesystem in filesystems}
    known = [(each, each.peek()) for each in list(getattr(weakref.finalize, "_registry", ()))]
    return [each for each, alive in known if alive is not None and id(alive[0]) in own]


def _disown_after_fork() -> None:
    """A child leaves its copies of the parent's clients alone: their sockets, and the loop they name, are the parent's.

    Their farewells would end in tracebacks, from a loop that nobody runs.
    """
    for farewell in _farewells(_filesystems.values()):
        farewell.detach()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_disown_after_fork)


async def _close_clients(blocking: bool) -> None:
    """Close the sessions of one loop's file systems, and forget these."""
    for key in [each for each in _filesystems if each[3] is blocking and each[0] == os.getpid()]:
        filesystem = _filesystems.pop(key)
        for farewell in _farewells([filesystem]):
            farewell.detach()
        s3, azure, web = (getattr(filesystem, name, None) for name in ("_s3creator", "service_client", "_session"))
        try:
            if s3 is not None:
                await s3.__aexit__(None, None, None)
            elif azure is not None:
                await azure.close()
            elif web is not None:
                await web.close()
        except Exception:
            # Nobody waits for its answer any more.
            _log.debug("closing a client failed", exc_info=True)


loop.at_close(functools.partial(_close_clients, False))
loop.at_close(functools.partial(_close_clients, True), blocking=True)
