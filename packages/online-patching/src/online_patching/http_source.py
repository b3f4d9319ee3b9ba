"""How are ranges read from a web server when obstore does not serve the URL?

Signed URLs (their query must arrive as it was signed), passwords in the URL, and any option of fsspec's HTTP client
(headers, authentication, cookies). The client's session is used directly: every answer is checked before its body is
read, so that a server which answers a range request with the whole file is an error, never a download of gigabytes.
Size and version come from a range request too, because a signed URL is often signed for GET alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from online_patching.bytesource import (
    ByteRange,
    ObjectInfo,
    answered_size,
    check_length,
    check_unchanged,
    entity_tag,
    gathered,
    host_of,
    read_whole_by_info,
    shown_url,
    version_of,
)
from online_patching.errors import StorageError
from online_patching.obstore_store import CONNECT_SECONDS
from online_patching.retry import count_received, with_retries
from online_patching.store_errors import no_ranges_error

if TYPE_CHECKING:
    import fsspec


class HttpSource:
    """One object of a web server, read through the session of fsspec's HTTP file system."""

    def __init__(self, url: str, filesystem: fsspec.AbstractFileSystem) -> None:
        self.url = url
        self._host = host_of(url, {})
        self._filesystem = filesystem
        # What is escaped stays as it is; what a URL may not hold (spaces, letters beyond ASCII) is escaped.
        self._address = quote(url.partition("#")[0], safe="%/:?&=@+$,;!*'()[]~")

    async def info(self) -> ObjectInfo:
        """Size and version, from the answer to a request for the first byte."""
        _, info = await self._answer(0, 1, None)
        return info

    async def read_ranges(self, ranges: Sequence[ByteRange], *, expected: ObjectInfo | None = None) -> list[bytes]:
        """The ranges, in parallel."""

        async def read_one(byte_range: ByteRange) -> bytes:
            if byte_range[1] == 0:
                return b""
            data, info = await self._answer(*byte_range, expected)
            return check_length(data, byte_range, self.url, info)

        return await gathered([read_one(each) for each in ranges])

    async def read_start(self, length: int) -> tuple[bytes, ObjectInfo]:
        """The first bytes, by one request: its answer tells size and version too."""
        data, info = await self._answer(0, length, None)
        return check_length(data, (0, min(length, info.size)), self.url), info

    async def read_whole(self, *, max_bytes: int) -> tuple[bytes, ObjectInfo]:
        """The object; its size and version cost a request of their own here."""
        return await read_whole_by_info(self, max_bytes)

    async def _answer(self, start: int, length: int, expected: ObjectInfo | None) -> tuple[bytes, ObjectInfo]:
        headers = {"Range": f"bytes={start}-{start + length - 1}", "Accept-Encoding": "identity"}
        tag = entity_tag(expected)
        if tag is not None:
            headers["If-Match"] = tag
        return await with_retries(
            self.url, self._host, lambda: self._try(start, length, headers, expected), length=length
        )

    async def _try(
        self, start: int, length: int, headers: Mapping[str, str], expected: ObjectInfo | None
    ) -> tuple[bytes, ObjectInfo]:
        import aiohttp
        import yarl

        session = await self._filesystem.set_session()
        options: dict[str, Any] = dict(self._filesystem.kwargs)
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS)
        options = {"timeout": timeout, **options, "headers": {**options.get("headers", {}), **headers}}
        async with session.get(yarl.URL(self._address, encoded=True), **options) as answer:
            # An empty object has no range: servers refuse the request, or answer with the whole.
            told = answer.status, answer.headers.get("Content-Range"), answer.headers.get("Content-Length")
            if told[:2] == (416, "bytes */0") or told == (200, None, "0"):
                return b"", self._info_of(answer.headers, 0)
            answer.raise_for_status()
            if answer.status != 206:
                raise no_ranges_error(self.url)
            size = answered_size(self.url, answer.headers.get("Content-Range"), start, length)
            info = self._info_of(answer.headers, size)
            check_unchanged(info, expected, self.url)
            data = check_length(await answer.read(), (start, min(length, size - start)), self.url, info)
            count_received(len(data))
            return data, info

    def _info_of(self, headers: Mapping[str, str], size: int) -> ObjectInfo:
        modified = headers.get("Last-Modified")
        try:
            parsed = parsedate_to_datetime(modified) if modified else None
        except ValueError as error:
            raise StorageError(
                f"{shown_url(self.url)}: the server's Last-Modified is no date ({modified!r:.60})"
            ) from error
        return ObjectInfo(size, version_of(headers.get("ETag"), parsed))
