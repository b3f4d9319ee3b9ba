"""What is an object in blob storage to the rest of the package?

A ``ByteSource``: something with a URL that tells its ``info`` and reads ranges of bytes. This module holds that
protocol, its values and the checks that every source applies, so that no source can forget one: a body of another
length than asked for is an error, and so is an object whose size or version differ from those pinned.
"""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Protocol, TypeVar
from urllib.parse import urlsplit

from online_patching.errors import SlideChangedError, SlideFormatError, StorageError
from online_patching.store_errors import CutShortError, no_ranges_error
from online_patching.store_errors import shown_url as shown_url
from online_patching.store_errors import storage_error as storage_error

_MODIFIED = "modified-"

T = TypeVar("T")

ByteRange = tuple[int, int]
"""(start, length) in bytes."""


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """What identifies the bytes of an object.

    Attributes:
        size: Bytes.
        version: Entity tag of a store, ``modified-<UTC>`` where it tells no (strong) tag, ``mtime-<ns>`` of a disk, or
            empty where nothing is told.
    """

    size: int
    version: str


@dataclass(frozen=True, slots=True)
class PinnedObject:
    """An object and the size and version it had when it was indexed."""

    url: str
    info: ObjectInfo


class ByteSource(Protocol):
    """One object whose bytes can be read by ranges."""

    @property
    def url(self) -> str:
        """Where the object lies."""
        ...

    async def info(self) -> ObjectInfo:
        """Size and version of the object now."""
        ...

    async def read_ranges(self, ranges: Sequence[ByteRange], *, expected: ObjectInfo | None = None) -> list[bytes]:
        """The bytes of every range, in order; ``expected`` pins the object that is read."""
        ...

    async def read_start(self, length: int) -> tuple[bytes, ObjectInfo]:
        """The first bytes (all of them where it has fewer), with size and version: by one request where that can be.

        Raises:
            NotFoundError: It does not exist.
            StorageError: It cannot be read.
        """
        ...

    async def read_whole(self, *, max_bytes: int) -> tuple[bytes, ObjectInfo]:
        """All bytes of an object whose size is not known beforehand, with its size and version.

        Raises:
            NotFoundError: It does not exist.
            SlideFormatError: It is larger than ``max_bytes``.
            StorageError: It cannot be read.
        """
        ...


async def read_start_by_info(source: ByteSource, length: int) -> tuple[bytes, ObjectInfo]:
    """``ByteSource.read_start`` by two requests, for a source whose ranges do not tell size and version."""
    info = await source.info()
    (data,) = await source.read_ranges([(0, min(length, info.size))], expected=info)
    return data, info


async def read_whole_by_info(source: ByteSource, max_bytes: int) -> tuple[bytes, ObjectInfo]:
    """``ByteSource.read_whole`` by two requests, for a source whose answers do not tell the size beforehand."""
    info = await source.info()
    check_size(info.size, max_bytes, source.url)
    (data,) = await source.read_ranges([(0, info.size)], expected=info)
    return data, info


async def gathered(reads: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
    """What all of them give, in order, at the same time; the first error ends the others before it is raised.

    How many are under way at a time is for them to bound.
    """
    if len(reads) == 1:
        return [await reads[0]]
    tasks = [asyncio.ensure_future(read) for read in reads]
    try:
        return list(await asyncio.gather(*tasks))
    except BaseException:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        raise


def host_of(url: str, storage_options: Mapping[str, Any]) -> str:
    """Who answers for a URL, as far as limits on requests go: the endpoint given, else bucket, container or host."""
    client = storage_options.get("client_kwargs") or {}
    endpoint = storage_options.get("endpoint_url") or client.get("endpoint_url")
    scheme, bucket, _ = split_object_url(url)
    return str(endpoint or f"{scheme}://{bucket.rpartition('@')[2] if scheme.startswith('http') else bucket}")


def split_object_url(url: str) -> tuple[str, str, str]:
    """Scheme, bucket (or host) and name of the object that a URL of a store names.

    Names of objects may hold ``?``, ``#`` and ``%``: nothing in them is a query, a fragment or an escape.
    """
    scheme, _, rest = url.partition("://")
    bucket, _, name = rest.partition("/")
    return scheme.lower(), bucket, name


def version_of(entity_tag: str | None, modified: datetime | None) -> str:
    """The version that a store's answer tells: its strong entity tag, else when the object was last modified.

    A weak tag (``W/"..."``) promises only that the content means the same, not that its bytes are.
    """
    if entity_tag and not entity_tag.startswith("W/"):
        return entity_tag.strip('"')
    if modified is None or modified.timestamp() == 0:
        return ""
    return f"{_MODIFIED}{modified.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}"


def entity_tag(info: ObjectInfo | None) -> str | None:
    """The tag to send as ``If-Match``, or None where the version is none."""
    if info is None or not info.version or info.version.startswith(_MODIFIED):
        return None
    return f'"{info.version}"'


def check_url(url: str) -> None:
    """Refuse what no store and no disk can have an object at.

    Raises:
        StorageError: The URL or path holds a NUL or what cannot be encoded, or a web address has no host or a bad port.
    """
    path = local_path(url)
    try:
        encoded = url.encode() if path is None else os.fsencode(path)
        if b"\0" in encoded:
            raise ValueError("it holds a NUL character")
        if url.startswith(("http://", "https://")):
            parts = urlsplit(url)
            if not parts.hostname or parts.port == 0:
                raise ValueError("it names no host or the port 0")
    except ValueError as error:
        raise StorageError(f"{ascii(shown_url(url))[:200]}: not a usable URL or path ({error}); check it") from error


def join_url(folder: str, *names: str) -> str:
    """A path below a folder given as URL or local path."""
    return "/".join([folder.rstrip("/"), *names])


def split_reference_url(url: str) -> tuple[str, str] | None:
    """File or folder and slide of a URL of kerchunk references (``refs.json#slide``), or None for another URL."""
    found = re.fullmatch(r"(.*\.(?:json|parquet|parq)(?:\?[^#]*)?)/?(?:#(.*))?", url, re.DOTALL | re.IGNORECASE)
    return None if found is None else (found[1], found[2] or "")


def local_path(url: str) -> str | None:
    """The local path that a URL names, or None for a remote one."""
    if url.startswith("file://"):
        return url.removeprefix("file://")
    return None if "://" in url else url


def check_length(data: bytes, byte_range: ByteRange, url: str, info: ObjectInfo | None = None) -> bytes:
    """The data, if it has the length asked for.

    Args:
        data: What arrived.
        byte_range: What was asked for.
        url: The object.
        info: The object as the answer (or the pin) tells it, if it does.

    Raises:
        CutShortError: Fewer bytes arrived of a range that lies inside the object.
        StorageError: Fewer or more bytes arrived.
    """
    start, length = byte_range
    if len(data) != length:
        if info is not None and len(data) < length and start + length <= info.size:
            raise CutShortError(
                f"{shown_url(url)}: asked for {length} bytes at {start}, got {len(data)} of an object of {info.size};"
                " the server or the network cut the answer: check them"
            )
        raise StorageError(
            f"{shown_url(url)}: asked for {length} bytes at {start}, got {len(data)}; the object is shorter than its"
            " headers say, or the store cut the answer: check the upload"
        )
    return data


def answered_size(url: str, content_range: str | None, start: int, length: int) -> int:
    """The size of the whole object, from the ``Content-Range`` of an answer that holds the range asked for.

    Raises:
        StorageError: The answer holds the whole object, or another range.
    """
    if not content_range:
        raise no_ranges_error(url)
    found = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+)", content_range.strip())
    # A shorter answer is for check_length to judge.
    if found is None or int(found[1]) != start or int(found[2]) >= start + length:
        raise StorageError(
            f"{shown_url(url)}: asked for bytes {start}-{start + length - 1}, got {content_range[:60]!r}: the server,"
            " or a proxy before it, answers range requests wrongly; read it elsewhere"
        )
    return int(found[3])


def check_size(size: int, max_bytes: int, url: str) -> None:
    """Refuse an object that is larger than what it should hold can be.

    Raises:
        SlideFormatError: It is larger.
    """
    if size > max_bytes:
        raise SlideFormatError(
            f"{shown_url(url)}: {size} bytes, at most {max_bytes} are expected there: the file is damaged"
        )


def check_unchanged(info: ObjectInfo, expected: ObjectInfo | None, url: str) -> None:
    """Compare an object with the one that was indexed.

    Raises:
        SlideChangedError: Size or version differ.
    """
    if expected is not None and info != expected:
        raise SlideChangedError(
            f"{shown_url(url)}: the object changed since it was indexed (then {expected.size} bytes, version"
            f" {expected.version or 'unknown'}; now {info.size} bytes, version {info.version or 'unknown'}); run"
            " `online-patching index` again"
        )
