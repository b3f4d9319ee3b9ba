"""A web server on loopback whose answers to range requests go wrong in one chosen way; real sockets, own thread.

``with HostileServer(content) as server: server.misbehave("stall_head", times=1)``. The first ``times`` requests are
answered in that way (all of them without ``times``), further ones as they should be. ``MISDEEDS`` names the ways.
"""

from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import Awaitable, Callable
from typing import Self

ETAG = '"one"'
LAST_MODIFIED = "Sat, 01 Jan 2000 00:00:00 GMT"


class HostileServer:
    """One server; a context manager.

    Args:
        content: What every path holds.

    Attributes:
        url: ``http://127.0.0.1:<port>``.
        requests: Requests answered so far.
        connections: Connections open now.
    """

    def __init__(self, content: bytes) -> None:
        self.content = content
        self.requests = 0
        self.connections = 0
        self._misdeed = ""
        self._left = 0
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self.url = ""

    def __enter__(self) -> Self:
        self._thread.start()
        self._server = asyncio.run_coroutine_threadsafe(
            asyncio.start_server(self._serve, "127.0.0.1", 0, backlog=512), self._loop
        ).result()
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def misbehave(self, misdeed: str, *, times: int | None = None) -> None:
        """Answer the next requests (all of them where ``times`` is None) in one of ``MISDEEDS``; ``""`` in none."""
        assert misdeed in ("", *MISDEEDS), misdeed
        self._misdeed, self._left, self.requests = misdeed, 10**9 if times is None else times, 0

    async def _end(self) -> None:
        self._server.close()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while head := await _head(reader):
                self.requests += 1
                if not await self._answer(head, reader, writer):
                    break
        except (ConnectionError, asyncio.CancelledError):
            pass
        finally:
            self.connections -= 1
            writer.close()

    async def _answer(self, head: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Whether the connection goes on."""
        ranged = re.search(r"^range: bytes=(\d+)-(\d+)\r$", head, re.IGNORECASE | re.MULTILINE)
        size = len(self.content)
        start, end = (int(ranged[1]), min(int(ranged[2]) + 1, size)) if ranged else (0, size)
        answer = _Answer(reader, writer, head.startswith("HEAD "), start, end, size, self.content[start:end])
        self._left -= 1
        if self._misdeed and self._left >= 0:
            return bool(await MISDEEDS[self._misdeed](answer))
        await answer.whole_range()
        return True


class _Answer:
    """One answer as it should be, in parts that misdeeds put together wrongly."""

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        is_head: bool,
        start: int,
        end: int,
        size: int,
        body: bytes,
    ) -> None:
        self.reader, self.writer, self.is_head = reader, writer, is_head
        self.start, self.end, self.size, self.body = start, end, size, body

    async def head(self, status: str = "206 Partial Content", *, length: int | None = None, told: str = "") -> None:
        told = told or f"bytes {self.start}-{self.end - 1}/{self.size}"
        lines = [
            f"HTTP/1.1 {'200 OK' if self.is_head and status.startswith('206') else status}",
            f"Content-Length: {len(self.body) if length is None else length}",
            f"ETag: {ETAG}",
            f"Last-Modified: {LAST_MODIFIED}",
            *([f"Content-Range: {told}"] if status.startswith("206") and not self.is_head else []),
        ]
        self.writer.write(("\r\n".join(lines) + "\r\n\r\n").encode())
        await self.writer.drain()

    async def send(self, body: bytes) -> None:
        if not self.is_head:
            self.writer.write(body)
            await self.writer.drain()

    async def until_hung_up(self) -> None:
        await self.reader.read()

    async def whole_range(self) -> None:
        await self.head()
        await self.send(self.body)


async def _head(reader: asyncio.StreamReader) -> str:
    try:
        return (await reader.readuntil(b"\r\n\r\n")).decode()
    except asyncio.IncompleteReadError:
        return ""


def _status(line: str) -> Callable[[_Answer], Awaitable[bool]]:
    async def answer(given: _Answer) -> bool:
        await given.head(line, length=0)
        return True

    return answer


async def _stall_head(given: _Answer) -> bool:
    await given.until_hung_up()
    return False


async def _stall_body(given: _Answer) -> bool:
    await given.head()
    await given.send(given.body[:7])
    await given.until_hung_up()
    return False


async def _truncate(given: _Answer) -> bool:
    await given.head()
    await given.send(given.body[:7])
    return False


async def _short(given: _Answer) -> bool:
    body = given.body[:7]
    await given.head(length=len(body), told=f"bytes {given.start}-{given.start + len(body) - 1}/{given.size}")
    await given.send(body)
    return True


async def _short_untold(given: _Answer) -> bool:
    body = given.body[:7]
    await given.head(length=len(body))
    await given.send(body)
    return True


async def _whole_file(given: _Answer) -> bool:
    await given.head("200 OK", length=given.size)
    await given.send(bytes(given.size))
    return True


async def _whole_file_of_that_length(given: _Answer) -> bool:
    """A 200 whose body is as long as the range asked for: only the status tells that it is not the range."""
    await given.head("200 OK")
    await given.send(bytes(len(given.body)))
    return True


async def _other_range(given: _Answer) -> bool:
    n = len(given.body)
    await given.head(told=f"bytes {given.start + 3}-{given.start + n + 2}/{given.size}")
    await given.send(bytes(n))
    return True


async def _reset(given: _Answer) -> bool:
    # Data that nobody will read makes the kernel send a reset at closing.
    given.writer.transport.abort()
    return False


async def _hang_up_after(given: _Answer) -> bool:
    await given.whole_range()
    return False


async def _drip(given: _Answer) -> bool:
    await given.head()
    for k in range(len(given.body)):
        await given.send(given.body[k : k + 1])
        await asyncio.sleep(0.1)
    return True


async def _changed(given: _Answer) -> bool:
    given.writer.write(
        f'HTTP/1.1 206 Partial Content\r\nContent-Length: {len(given.body)}\r\nETag: "two"\r\n'
        f"Last-Modified: {LAST_MODIFIED}\r\n"
        f"Content-Range: bytes {given.start}-{given.end - 1}/{given.size}\r\n\r\n".encode()
    )
    await given.send(bytes(len(given.body)))
    return True


MISDEEDS: dict[str, Callable[[_Answer], Awaitable[bool]]] = {
    "stall_head": _stall_head,
    "stall_body": _stall_body,
    "truncate": _truncate,
    "short": _short,
    "short_untold": _short_untold,
    "whole_file": _whole_file,
    "whole_file_of_that_length": _whole_file_of_that_length,
    "other_range": _other_range,
    "reset": _reset,
    "hang_up_after": _hang_up_after,
    "drip": _drip,
    "changed": _changed,
    "403": _status("403 Forbidden"),
    "404": _status("404 Not Found"),
    "412": _status("412 Precondition Failed"),
    "416": _status("416 Range Not Satisfiable"),
    "429": _status("429 Too Many Requests"),
    "500": _status("500 Internal Server Error"),
    "503": _status("503 Service Unavailable"),
}
