"""How are ranges read through obstore, which costs a fraction of the CPU of other clients?

A pinned version travels as ``If-Match`` and is compared in every answer, so an object that was replaced is noticed at
the first range of the new one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from online_patching.bytesource import (
    ByteRange,
    ByteSource,
    ObjectInfo,
    check_length,
    check_size,
    check_unchanged,
    entity_tag,
    gather_ranges,
    storage_error,
    version_of,
)
from online_patching.errors import AccessDeniedError, PatchingError, StorageError
from online_patching.obstore_store import REQUEST_SECONDS, RETRY_SECONDS, ObstorePlace, obstore_place

if TYPE_CHECKING:
    from obstore.store import ObjectStore

# One object gets at most this many requests at a time; hosts differ, object stores all bear this.
REQUESTS_IN_FLIGHT = 64
# No request outlasts its attempts: the last one may begin just before the time for attempts is over.
DEADLINE_SECONDS = REQUEST_SECONDS + RETRY_SECONDS


def obstore_source_for(url: str, storage_options: Mapping[str, Any]) -> ByteSource | None:
    """The obstore source of a URL, or None where another client must serve it."""
    place = obstore_place(url, storage_options)
    return ObstoreSource(url, place) if place is not None and place.name else None


class ObstoreSource:
    """One object of an obstore store."""

    def __init__(self, url: str, place: ObstorePlace) -> None:
        self.url = url
        self._store: ObjectStore = place.store
        self._path = place.name

    async def info(self) -> ObjectInfo:
        """Size and version, by one HEAD request."""
        import obstore

        try:
            async with asyncio.timeout(DEADLINE_SECONDS):
                return info_of(await obstore.head_async(self._store, self._path))
        except Exception as error:
            refused = storage_error(self.url, error)
            if not may_be_told_by_get(refused):
                raise refused from error
        # The answer to a HEAD has no body, and some servers answer none: a GET tells more.
        try:
            return (await self._get({"range": (0, 1)}))[1]
        except Exception as error:
            raise storage_error(self.url, error) from error

    async def read_ranges(self, ranges: Sequence[ByteRange], *, expected: ObjectInfo | None = None) -> list[bytes]:
        """The ranges, in parallel."""

        async def read_one(byte_range: ByteRange) -> bytes:
            return await self._read(byte_range, expected)

        return await gather_ranges(ranges, read_one, at_once=REQUESTS_IN_FLIGHT)

    async def read_start(self, length: int) -> tuple[bytes, ObjectInfo]:
        """The first bytes, by one request: its answer tells size and version too."""
        try:
            data, info = await self._get({"range": (0, length)})
        except Exception as error:
            refused = storage_error(self.url, error)
            # What range the answer of an empty object should have no two servers agree on.
            if type(refused) is StorageError and (info := await self.info()).size == 0:
                return b"", info
            raise refused from error
        return check_length(data, (0, min(length, info.size)), self.url), info

    async def read_whole(self, *, max_bytes: int) -> tuple[bytes, ObjectInfo]:
        """The object, by one request; its body is not fetched where the answer's head says that it is too large."""
        import obstore

        try:
            async with asyncio.timeout(DEADLINE_SECONDS):
                answer = await obstore.get_async(self._store, self._path)
                info = info_of(answer.meta)
                check_size(info.size, max_bytes, self.url)
                data = bytes(await answer.bytes_async())
        except PatchingError:
            raise
        except Exception as error:
            raise storage_error(self.url, error) from error
        return check_length(data, (0, info.size), self.url), info

    async def _read(self, byte_range: ByteRange, expected: ObjectInfo | None) -> bytes:
        start, length = byte_range
        if length == 0:
            return b""
        options: dict[str, Any] = {"range": (start, start + length)}
        tag = entity_tag(expected)
        if tag is not None:
            options["if_match"] = tag
        try:
            data, info = await self._get(options)
        except Exception as error:
            raise storage_error(self.url, error) from error
        check_unchanged(info, expected, self.url)
        return check_length(data, byte_range, self.url)

    async def _get(self, options: dict[str, Any]) -> tuple[bytes, ObjectInfo]:
        import obstore

        async with asyncio.timeout(DEADLINE_SECONDS):
            answer = await obstore.get_async(self._store, self._path, options=options)  # type: ignore[arg-type]
            return bytes(await answer.bytes_async()), info_of(answer.meta)


def may_be_told_by_get(refused: StorageError) -> bool:
    """Whether a range request can say more than the HEAD request that was refused."""
    return isinstance(refused, AccessDeniedError) or any(f"HTTP {code}" in str(refused) for code in (400, 405, 501))


def info_of(meta: Mapping[str, Any]) -> ObjectInfo:
    """Size and version from what obstore tells of an object."""
    return ObjectInfo(int(meta["size"]), version_of(meta["e_tag"], meta["last_modified"]))
