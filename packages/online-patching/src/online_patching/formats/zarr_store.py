"""How does the zarr library read one array through this package's own storage?

``open_array`` gives zarr's ``AsyncArray`` over an ``ArrayStore``: a read-only zarr store of a single array. Its
metadata is the document that was checked, never the one in storage; its chunks come from ``storage.Store``, so
credentials, retries and errors are the package's own and every request runs on the loop that asks. This module imports
zarr, so it is itself imported only where a Zarr slide is read.
"""

from __future__ import annotations

import asyncio
import io
import json
import struct
import time
import warnings
from collections import OrderedDict
from collections.abc import AsyncIterator, Iterable
from typing import Any

import zarr
import zarr.api.asynchronous
from zarr.abc.store import ByteRequest, OffsetByteRequest, SuffixByteRequest
from zarr.abc.store import Store as ZarrStore
from zarr.core.buffer import Buffer, BufferPrototype

from online_patching.bytesource import ByteSource, ObjectInfo, PinnedObject, check_unchanged, join_url
from online_patching.errors import NotFoundError, SlideFormatError
from online_patching.formats.chunk_bytes import ChunkClaimError, check_claim
from online_patching.formats.zarr_array import ZarrArray
from online_patching.storage import Store

# Indexes of shards that are kept; one of 1,000 chunks takes 16 KB.
KEPT_SHARDS = 256
# A chunk that is missing is the fill value only while the slide itself is there, which is asked this often.
PRESENCE_SECONDS = 30.0
# Offset and length of a chunk in the index of its shard; a checksum may follow the index.
_INDEX_ENTRY, _CHECKSUM_BYTES = struct.Struct("<QQ"), 4
NO_LISTING = "the chunks of an OME-Zarr slide are not listed"


class ArrayStore(ZarrStore):
    """The chunks of one array, read-only.

    Args:
        store: Opens objects.
        folder_url: Where the array lies.
        array: Its checked metadata.
        pinned: An object of the slide that must be there where a chunk is not.
    """

    def __init__(self, store: Store, folder_url: str, array: ZarrArray, pinned: PinnedObject) -> None:
        super().__init__(read_only=True)
        name = ".zarray" if array.zarr_format == 2 else "zarr.json"
        self._documents = {name: json.dumps(array.document).encode()}
        self._store = store
        self._folder = folder_url
        self._array = array
        self._pinned = pinned
        self._present_until = 0.0
        self._checking = asyncio.Lock()
        self._shards: OrderedDict[str, asyncio.Future[_Shard]] = OrderedDict()

    def __eq__(self, other: object) -> bool:
        return self is other

    __hash__ = object.__hash__

    async def get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        """The bytes of a chunk, or None where it is missing."""
        if key in self._documents or key in (".zarray", ".zattrs", ".zgroup", "zarr.json"):
            document = self._documents.get(key)
            return None if document is None else prototype.buffer.from_bytes(document)
        try:
            data = await (self._whole(key) if byte_range is None else self._part(key, byte_range))
        except NotFoundError:
            await self._check_presence()
            return None
        return prototype.buffer.from_bytes(data)

    async def _whole(self, key: str) -> bytes:
        data, _ = await self._source_of(key).read_whole(max_bytes=self._array.max_stored_bytes)
        self._check(data if self._array.shard_index is None else self._only_chunk(data))
        return data

    def _check(self, data: bytes) -> None:
        check_claim(data, self._array.codecs, self._array.chunk_bytes)

    def _only_chunk(self, shard: bytes) -> bytes:
        """The chunk of a shard of one, which zarr reads whole."""
        checksums = len(self._array.document["codecs"][0]["configuration"]["index_codecs"]) - 1
        size = _INDEX_ENTRY.size + checksums * _CHECKSUM_BYTES
        offset, length = _INDEX_ENTRY.unpack_from(shard, len(shard) - size if self._array.shard_index == "end" else 0)
        return shard[offset : offset + length]

    async def _part(self, key: str, byte_range: ByteRequest) -> bytes:
        shard = await self._shard(key)
        if isinstance(byte_range, SuffixByteRequest):
            return await shard.index(byte_range.suffix)
        if isinstance(byte_range, OffsetByteRequest):
            start, end = byte_range.offset, shard.info.size
        else:
            start, end = byte_range.start, byte_range.end
        if not 0 <= start <= end <= shard.info.size or end - start > self._array.max_stored_bytes:
            raise ChunkClaimError(f"its shard says that it lies at {start} to {end} of {shard.info.size} bytes")
        (data,) = await shard.source.read_ranges([(start, end - start)], expected=shard.info)
        if (self._array.shard_index, start) != ("start", 0):
            self._check(data)
        return data

    async def _shard(self, key: str) -> _Shard:
        """A shard whose size and index are asked once, however many of its chunks are wanted at the same time."""
        if key not in self._shards:
            self._shards[key] = asyncio.ensure_future(self._open_shard(key))
            while len(self._shards) > KEPT_SHARDS:
                self._shards.popitem(last=False)
        opening = self._shards[key]
        try:
            # Who gives up must not take it away from the others who wait.
            return await asyncio.shield(opening)
        except BaseException:
            if opening.done() and self._shards.get(key) is opening:
                del self._shards[key]
            raise

    async def _open_shard(self, key: str) -> _Shard:
        source = self._source_of(key)
        return _Shard(source, await source.info())

    def _source_of(self, key: str) -> ByteSource:
        return self._store.open(join_url(self._folder, key))

    async def _check_presence(self) -> None:
        async with self._checking:
            if time.monotonic() >= self._present_until:
                check_unchanged(await self._store.open(self._pinned.url).info(), self._pinned.info, self._pinned.url)
                self._present_until = time.monotonic() + PRESENCE_SECONDS

    async def get_partial_values(
        self, prototype: BufferPrototype, key_ranges: Iterable[tuple[str, ByteRequest | None]]
    ) -> list[Buffer | None]:
        """Parts of several chunks, all at once."""
        return list(await asyncio.gather(*(self.get(key, prototype, part) for key, part in key_ranges)))

    async def exists(self, key: str) -> bool:
        """Whether a document or chunk is there."""
        if key in self._documents:
            return True
        try:
            await self._source_of(key).info()
        except NotFoundError:
            return False
        return True

    @property
    def supports_writes(self) -> bool:
        """Never."""
        return False

    @property
    def supports_deletes(self) -> bool:
        """Never."""
        return False

    @property
    def supports_listing(self) -> bool:
        """Never: stores behind HTTP cannot list."""
        return False

    async def set(self, key: str, value: Buffer) -> None:  # noqa: ARG002
        """Not possible: the store is read-only."""
        self._check_writable()

    async def delete(self, key: str) -> None:  # noqa: ARG002
        """Not possible: the store is read-only."""
        self._check_writable()

    def list(self) -> AsyncIterator[str]:
        """Not possible: see ``supports_listing``."""
        raise io.UnsupportedOperation(NO_LISTING)

    def list_prefix(self, prefix: str) -> AsyncIterator[str]:  # noqa: ARG002
        """Not possible: see ``supports_listing``."""
        raise io.UnsupportedOperation(NO_LISTING)

    def list_dir(self, prefix: str) -> AsyncIterator[str]:  # noqa: ARG002
        """Not possible: see ``supports_listing``."""
        raise io.UnsupportedOperation(NO_LISTING)


class _Shard:
    """One shard, pinned to the size and version it had when it was first asked."""

    def __init__(self, source: ByteSource, info: ObjectInfo) -> None:
        self.source = source
        self.info = info
        self._index: dict[int, asyncio.Future[list[bytes]]] = {}

    async def index(self, suffix: int) -> bytes:
        """The last bytes of the shard: the index of its chunks."""
        if suffix > self.info.size:
            raise ChunkClaimError(f"its shard has {self.info.size} bytes, its index alone {suffix}")
        if suffix not in self._index:
            place = (self.info.size - suffix, suffix)
            self._index[suffix] = asyncio.ensure_future(self.source.read_ranges([place], expected=self.info))
        reading = self._index[suffix]
        try:
            (data,) = await asyncio.shield(reading)
        except BaseException:
            if reading.done() and self._index.get(suffix) is reading:
                del self._index[suffix]
            raise
        return data


async def open_array(store: Store, folder_url: str, array: ZarrArray, pinned: PinnedObject) -> zarr.AsyncArray[Any]:
    """Zarr's own array over a slide's level; nothing is requested.

    Raises:
        SlideFormatError: The zarr library refuses the metadata.
    """
    if any(name.startswith("imagecodecs_") for name in array.codecs):
        from imagecodecs.numcodecs import register_codecs

        register_codecs(verbose=False)
    chunks = ArrayStore(store, folder_url, array, pinned)
    try:
        with warnings.catch_warnings():
            # zarr warns of codecs that version 3 does not list; which are allowed is decided here.
            warnings.simplefilter("ignore")
            opened = await zarr.api.asynchronous.open_array(store=chunks, mode="r", zarr_format=array.zarr_format)
    except Exception as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise SlideFormatError(f"{join_url(folder_url)}: not an array that zarr reads ({reason})") from error
    return opened
