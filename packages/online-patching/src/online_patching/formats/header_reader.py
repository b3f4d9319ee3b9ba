"""How are the headers of a file read over a network with few requests?

``HeaderReader`` keeps the few windows of the file that headers lie in, so that a directory and the arrays behind it
usually cost one request (a TIFF directory often lies *after* its tiles, so reading only the start is not enough), and
counts what it read. ``fetch`` reads many places in one round trip before they are needed one by one. Whatever a
format's reader has to say against a file, it says through ``error``, which names it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

from online_patching.bytesource import ByteRange, ByteSource, ObjectInfo, PinnedObject, shown_url
from online_patching.errors import SlideFormatError

WINDOW_BYTES = 12 * 1024
# Two places that are this near to each other share a request.
MAX_GAP_BYTES = 2 * 1024


class HeaderReader:
    """Reads small pieces of one object and counts what that costs.

    Attributes:
        url: The object's URL as it may appear in messages.
        size: Bytes of the object.
        pinned: The object with its size and version.
        requests: Range requests made.
        rounds: Times that a request had to wait for the answer to another.
        bytes_read: Bytes received.
    """

    def __init__(self, source: ByteSource, info: ObjectInfo, start: bytes = b"") -> None:
        self.url = shown_url(source.url)
        self.size = info.size
        self.pinned = PinnedObject(source.url, info)
        # The read that told size and version, where bytes came with it.
        self.requests = self.rounds = int(bool(start))
        self.bytes_read = len(start)
        self._source = source
        self._windows: list[tuple[int, bytes]] = [(0, start)] if start else []

    @classmethod
    async def open(cls, source: ByteSource) -> Self:
        """A reader that knows the start of the object: one request gives that, its size and its version.

        Raises:
            StorageError: The object cannot be read; ``NotFoundError`` where there is none.
        """
        data, info = await source.read_start(WINDOW_BYTES)
        return cls(source, info, data)

    async def read(self, start: int, length: int) -> bytes:
        """Bytes [start, start + length) of the object.

        Raises:
            SlideFormatError: The range reaches past the end of the file.
        """
        self._check(start, length)
        if (known := self._known(start, length)) is None:
            await self.fetch([(start, max(length, min(WINDOW_BYTES, self.size - start)))])
            known = self._known(start, length)
        assert known is not None, "a range that was just fetched is known"
        return known

    async def fetch(self, ranges: Sequence[ByteRange]) -> None:
        """Make ranges known that ``read`` will ask for: neighbours share a request, all requests run together.

        Raises:
            SlideFormatError: A range reaches past the end of the file.
        """
        for start, length in ranges:
            self._check(start, length)
        merged: list[ByteRange] = []
        for start, length in sorted(r for r in ranges if r[1] and self._known(*r) is None):
            end = merged[-1][0] + merged[-1][1] if merged else 0
            if merged and start <= end + MAX_GAP_BYTES:
                merged[-1] = (merged[-1][0], max(end, start + length) - merged[-1][0])
            else:
                merged.append((start, length))
        if not merged:
            return
        self.requests += len(merged)
        self.rounds += 1
        self.bytes_read += sum(length for _, length in merged)
        bodies = await self._source.read_ranges(merged, expected=self.pinned.info)
        self._windows += [(start, body) for (start, _), body in zip(merged, bodies, strict=True)]

    async def read_apart(self, ranges: Sequence[ByteRange]) -> list[bytes]:
        """Exactly these bytes, all at once and without keeping them: for what is large, or scattered and read once.

        Raises:
            SlideFormatError: A range reaches past the end of the file.
        """
        for start, length in ranges:
            self._check(start, length)
        if not ranges:
            return []
        self.requests += len(ranges)
        self.rounds += 1
        bodies = await self._source.read_ranges(ranges, expected=self.pinned.info)
        self.bytes_read += sum(map(len, bodies))
        return bodies

    def is_known(self, start: int, length: int) -> bool:
        """Whether reading the range costs no request."""
        return self._known(start, length) is not None

    def error(self, message: str) -> SlideFormatError:
        """A format error that names the file."""
        return SlideFormatError(f"{self.url}: {message}")

    def _known(self, start: int, length: int) -> bytes | None:
        if length == 0:
            return b""
        for window_start, data in reversed(self._windows):
            if window_start <= start and start + length <= window_start + len(data):
                return data[start - window_start : start - window_start + length]
        return None

    def _check(self, start: int, length: int) -> None:
        if start < 0 or length < 0 or start + length > self.size:
            raise self.error(
                f"its headers point to {length} bytes at {start}, past its end at {self.size}: the file is cut off or"
                " damaged; copy it again"
            )
