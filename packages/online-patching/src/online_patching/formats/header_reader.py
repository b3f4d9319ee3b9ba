"""How are the headers of a file read over a network with few requests?

``HeaderReader`` keeps the few windows of the file that headers lie in, so that a directory and the arrays behind it
usually cost one request (a TIFF directory often lies *after* its tiles, so reading only the start is not enough), and
counts what it read. Whatever a format's reader has to say against a file, it says through ``error``, which names it.
"""

from __future__ import annotations

from collections.abc import Sequence

from online_patching.bytesource import ByteRange, ByteSource, ObjectInfo, PinnedObject, shown_url
from online_patching.errors import SlideFormatError

WINDOW_BYTES = 16 * 1024


class HeaderReader:
    """Reads small pieces of one object and counts what that costs.

    Attributes:
        url: The object's URL as it may appear in messages.
        size: Bytes of the object.
        pinned: The object with its size and version.
        requests: Range requests made.
        bytes_read: Bytes received.
    """

    def __init__(self, source: ByteSource, info: ObjectInfo) -> None:
        self.url = shown_url(source.url)
        self.size = info.size
        self.pinned = PinnedObject(source.url, info)
        self.requests = 0
        self.bytes_read = 0
        self._source = source
        self._windows: list[tuple[int, bytes]] = []

    async def read(self, start: int, length: int) -> bytes:
        """Bytes [start, start + length) of the object.

        Raises:
            SlideFormatError: The range reaches past the end of the file.
        """
        if start < 0 or length < 0 or start + length > self.size:
            raise self.error(
                f"its headers point to {length} bytes at {start}, past its end at {self.size}: the file is cut off or"
                " damaged; copy it again"
            )
        for window_start, data in self._windows:
            if window_start <= start and start + length <= window_start + len(data):
                return data[start - window_start : start - window_start + length]
        wanted = min(max(length, WINDOW_BYTES), self.size - start)
        (data,) = await self._source.read_ranges([(start, wanted)])
        self.requests += 1
        self.bytes_read += len(data)
        if length <= WINDOW_BYTES:
            self._windows.append((start, data))
        return data[:length]

    async def read_apart(self, ranges: Sequence[ByteRange]) -> list[bytes]:
        """Exactly these bytes, all at once and without keeping them: for what is large, or scattered and read once.

        Raises:
            SlideFormatError: A range reaches past the end of the file.
        """
        for start, length in ranges:
            if start < 0 or length < 0 or start + length > self.size:
                raise self.error(f"its headers point to byte {start + length}, past its end at {self.size}: damaged")
        pieces = await self._source.read_ranges(ranges) if ranges else []
        self.requests += len(ranges)
        self.bytes_read += sum(map(len, pieces))
        return pieces

    def error(self, message: str) -> SlideFormatError:
        """A format error that names the file."""
        return SlideFormatError(f"{self.url}: {message}")
