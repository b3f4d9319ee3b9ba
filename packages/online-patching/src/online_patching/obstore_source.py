"""How are ranges read through obstore, which costs a fraction of the CPU of other clients?

A pinned version travels as ``If-Match`` and is compared in every answer, so an object that was replaced is noticed at
the first range of the new one. A range costs two awaits on obstore's futures (head, then body) and no task of its own.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from online_patching.bytesource import (
    ByteRange,
    ByteSource,
    ObjectInfo,
    check_length,
    check_size,
    check_unchanged,
    entity_tag,
    gathered,
    host_of,
    version_of,
)
from online_patching.errors import AccessDeniedError, StorageError
from online_patching.obstore_store import ObstorePlace, obstore_place
from online_patching.retry import count_received, with_retries

if TYPE_CHECKING:
    from obstore.store import ObjectStore

T = TypeVar("T")


def obstore_source_for(url: str, storage_options: Mapping[str, Any]) -> ByteSource | None:
    """The obstore source of a URL, or None where another client must serve it."""
    place = obstore_place(url, storage_options, client_retries=False)
    return ObstoreSource(url, place, host_of(url, storage_options)) if place is not None and place.name else None


class ObstoreSource:
    """One object of an obstore store."""

    def __init__(self, url: str, place: ObstorePlace, host: str) -> None:
        # Costs 30 ms, which local slides do without.
        import obstore

        self.url = url
        self._host = host
        self._store: ObjectStore | None = place.store
        self._path = place.name
        self._get_async: Any = obstore.get_async
        self._head_async: Any = obstore.head_async

    def drop_store(self) -> None:
        """Let go of the store, whose connections then close; tracebacks of cancelled reads may keep this source."""
        self._store = None

    async def info(self) -> ObjectInfo:
        """Size and version, by one HEAD request."""
        try:
            return info_of(await self._tried(lambda: self._head_async(self._store, self._path)))
        except StorageError as refused:
            if not may_be_told_by_get(refused):
                raise
        # The answer to a HEAD has no body, and some servers answer none: a GET tells more.
        return (await self._tried(lambda: self._get({"range": (0, 1)})))[1]

    async def read_ranges(self, ranges: Sequence[ByteRange], *, expected: ObjectInfo | None = None) -> list[bytes]:
        """The ranges, in parallel."""
        tag = entity_tag(expected)

        async def read_one(byte_range: ByteRange) -> bytes:
            if byte_range[1] == 0:
                return b""
            return await self._tried(lambda: self._read(byte_range, expected, tag), byte_range[1])

        return await gathered([read_one(each) for each in ranges])

    async def read_start(self, length: int) -> tuple[bytes, ObjectInfo]:
        """The first bytes, by one request: its answer tells size and version too."""
        try:
            return await self._tried(lambda: self._read_start(length), length)
        except StorageError as refused:
            # What range the answer of an empty object should have no two servers agree on.
            if type(refused) is StorageError and (info := await self.info()).size == 0:
                return b"", info
            raise

    async def read_whole(self, *, max_bytes: int) -> tuple[bytes, ObjectInfo]:
        """The object, by one request; its body is not fetched where the answer's head says that it is too large."""
        return await self._tried(lambda: self._read_whole(max_bytes), None)

    async def _tried(self, attempt: Callable[[], Awaitable[T]], length: int | None = 0) -> T:
        return await with_retries(self.url, self._host, attempt, length=length)

    async def _read(self, byte_range: ByteRange, expected: ObjectInfo | None, tag: str | None) -> bytes:
        start, length = byte_range
        options: dict[str, Any] = {"range": (start, start + length)}
        if tag is not None:
            options["if_match"] = tag
        answer = await self._get_async(self._store, self._path, options=options)
        meta = answer.meta
        # Most answers are of the pinned object: two comparisons say so.
        if tag is None or expected is None or meta["e_tag"] != tag or meta["size"] != expected.size:
            info = info_of(meta)
            check_unchanged(info, expected, self.url)
        else:
            info = expected
        data = bytes(await answer.bytes_async())
        if len(data) != length:
            check_length(data, byte_range, self.url, info)
        count_received(length)
        return data

    async def _read_start(self, length: int) -> tuple[bytes, ObjectInfo]:
        data, info = await self._get({"range": (0, length)})
        return check_length(data, (0, min(length, info.size)), self.url, info), info

    async def _read_whole(self, max_bytes: int) -> tuple[bytes, ObjectInfo]:
        answer = await self._get_async(self._store, self._path)
        info = info_of(answer.meta)
        check_size(info.size, max_bytes, self.url)
        data = bytes(await answer.bytes_async())
        count_received(len(data))
        return check_length(data, (0, info.size), self.url, info), info

    async def _get(self, options: dict[str, Any]) -> tuple[bytes, ObjectInfo]:
        answer = await self._get_async(self._store, self._path, options=options)
        data = bytes(await answer.bytes_async())
        count_received(len(data))
        return data, info_of(answer.meta)


def may_be_told_by_get(refused: StorageError) -> bool:
    """Whether a range request can say more than the HEAD request that was refused."""
    return isinstance(refused, AccessDeniedError) or any(f"HTTP {code}" in str(refused) for code in (400, 405, 501))


def info_of(meta: Mapping[str, Any]) -> ObjectInfo:
    """Size and version from what obstore tells of an object."""
    return ObjectInfo(int(meta["size"]), version_of(meta["e_tag"], meta["last_modified"]))
