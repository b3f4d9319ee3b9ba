"""What is an object in blob storage to the rest of the package?

A ``ByteSource``: something with a URL that tells its ``info`` and reads ranges of bytes. This module holds that
protocol, its values and the checks that every source applies, so that no source can forget one: a body of another
length than asked for is an error, and so is an object whose size or version differ from those pinned.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol
from urllib.parse import urlsplit, urlunsplit

from online_patching.errors import NotFoundError, SlideChangedError, StorageError

ByteRange = tuple[int, int]
"""(start, length) in bytes."""


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """What identifies the bytes of an object.

    Attributes:
        size: Bytes.
        version: Entity tag of a store, ``mtime-<ns>`` of a disk, or empty where neither is told.
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


def shown_url(url: str) -> str:
    """The URL as it may appear in messages: without user, password, query and fragment."""
    parts = urlsplit(url)
    if len(parts.scheme) < 2:
        return url
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


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


def check_length(data: bytes, byte_range: ByteRange, url: str) -> bytes:
    """The data, if it has the length asked for.

    Raises:
        StorageError: Fewer or more bytes arrived.
    """
    start, length = byte_range
    if len(data) != length:
        raise StorageError(
            f"{shown_url(url)}: asked for {length} bytes at {start}, got {len(data)}; the object is shorter than its"
            " headers say, or the store cut the answer: check the upload"
        )
    return data


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


def storage_error(url: str, error: Exception) -> StorageError:
    """One clear line for whatever a client library raised."""
    if isinstance(error, StorageError):
        return error
    shown = shown_url(url)
    if isinstance(error, FileNotFoundError):
        return NotFoundError(f"{shown}: no such object, bucket or folder; check the spelling and the endpoint")
    reason = " ".join(str(error).split())[:200] or type(error).__name__
    return StorageError(
        f"{shown}: cannot be read ({type(error).__name__}: {reason}); check the endpoint, the network and the"
        " credentials (storage_options)"
    )
