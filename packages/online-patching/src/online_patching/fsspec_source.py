"""How are ranges read through fsspec's clients, for every scheme and option that obstore does not serve?

Asynchronous file systems run on the package's own loop; the others block a thread each. Where the client can send
``If-Match`` (s3fs, adlfs) every range is pinned by it; elsewhere the version is compared after the ranges were read.
File systems are made anew in each process: fsspec's own instances do not survive a fork.
"""

from __future__ import annotations

import asyncio
import inspect
import os
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from online_patching import loop
from online_patching.bytesource import (
    ByteRange,
    ObjectInfo,
    check_length,
    check_unchanged,
    entity_tag,
    gather_ranges,
    read_start_by_info,
    read_whole_by_info,
    split_object_url,
    storage_error,
    version_of,
)
from online_patching.errors import StorageError
from online_patching.obstore_source import may_be_told_by_get
from online_patching.obstore_store import CONNECT_SECONDS, REQUEST_SECONDS, azure_container, gcs_filesystem

if TYPE_CHECKING:
    import fsspec

GCS_SCHEMES = ("gs", "gcs")
S3_SCHEMES = ("s3", "s3a")
AZURE_SCHEMES = ("az", "abfs", "abfss")
# These clients try again by themselves; this ends them where an endpoint does not answer.
DEADLINE_SECONDS = 90
REQUESTS_IN_FLIGHT = 32
# Azure's client waits at least 15 s before it tries again: not for an endpoint that does not answer.
_AZURE_BOUNDS = {"connection_timeout": CONNECT_SECONDS, "read_timeout": REQUEST_SECONDS, "retry_connect": 0}

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
    options = _with_defaults(url, scheme, dict(storage_options or {}))
    key = (os.getpid(), scheme, repr(sorted(options.items())), blocking)
    if key not in _filesystems:
        # Costs a quarter of the package's import time and local slides do without.
        import fsspec

        try:
            kind = fsspec.get_filesystem_class(scheme)
            if kind.async_impl:
                options["loop"] = loop.blocking_loop() if blocking else loop.package_loop()
            _filesystems[key] = kind(skip_instance_cache=True, **options)
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


def _with_defaults(url: str, scheme: str, options: dict[str, Any]) -> dict[str, Any]:
    """The options, with bounds on time where the user set none."""
    if scheme in S3_SCHEMES:
        config = {
            "connect_timeout": CONNECT_SECONDS,
            "read_timeout": REQUEST_SECONDS,
            "retries": {"max_attempts": 1},
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
        self._tells_info = self._scheme in (*S3_SCHEMES, *AZURE_SCHEMES)

    async def info(self) -> ObjectInfo:
        """Size and version as the file system tells them."""
        try:
            async with asyncio.timeout(DEADLINE_SECONDS):
                if self._scheme in AZURE_SCHEMES:
                    return await self._info_azure()
                return object_info(await self._call("info", self._path))
        except Exception as error:
            refused = storage_error(self.url, error)
            if self._scheme not in S3_SCHEMES or not may_be_told_by_get(refused):
                raise refused from error
        # The answer to a HEAD has no body: a GET tells an expired token from a wrong key.
        await self.read_ranges([(0, 1)])
        raise refused

    async def read_ranges(self, ranges: Sequence[ByteRange], *, expected: ObjectInfo | None = None) -> list[bytes]:
        """The ranges, in parallel."""

        async def read_one(byte_range: ByteRange) -> tuple[bytes, ObjectInfo | None]:
            async with asyncio.timeout(DEADLINE_SECONDS):
                return await self._read(byte_range, expected)

        try:
            answers = await gather_ranges(ranges, read_one, at_once=REQUESTS_IN_FLIGHT)
        except Exception as error:
            raise storage_error(self.url, error) from error
        infos = {info for _, info in answers}
        if expected is not None and None in infos:
            infos = {await self.info()}
        for info in infos:
            if info is not None:
                check_unchanged(info, expected, self.url)
        return [check_length(data, r, self.url) for (data, _), r in zip(answers, ranges, strict=True)]

    async def read_start(self, length: int) -> tuple[bytes, ObjectInfo]:
        """The first bytes, by one request where the client tells size and version of a range."""
        try:
            async with asyncio.timeout(DEADLINE_SECONDS):
                data, info = await self._read((0, length), None) if self._tells_info else (b"", None)
        except Exception as error:
            refused = storage_error(self.url, error)
            # No range of an empty object can be asked for.
            if type(refused) is StorageError and (empty := await self.info()).size == 0:
                return b"", empty
            raise refused from error
        if info is None:
            return await read_start_by_info(self, length)
        return check_length(data, (0, min(length, info.size)), self.url), info

    async def read_whole(self, *, max_bytes: int) -> tuple[bytes, ObjectInfo]:
        """The object; its size and version cost a request of their own here."""
        return await read_whole_by_info(self, max_bytes)

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
            data = bytes(await body.read())
        size = int(answer["ContentRange"].rpartition("/")[2])
        return data, ObjectInfo(size, version_of(answer.get("ETag"), answer.get("LastModified")))

    async def _read_azure(
        self, start: int, length: int, expected: ObjectInfo | None
    ) -> tuple[bytes, ObjectInfo | None]:
        from azure.core import MatchConditions

        tag = entity_tag(expected)
        condition = {"etag": tag, "match_condition": MatchConditions.IfNotModified} if tag else {}
        async with self._azure_client() as client:
            stream = await client.download_blob(offset=start, length=length, **condition, **_AZURE_BOUNDS)
            data = bytes(await stream.readall())
        # The size among these properties is that of the range asked for; the whole is in the range header.
        size = int(str(stream.properties.content_range).rpartition("/")[2])
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
