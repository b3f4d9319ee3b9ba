"""A store on loopback as it looks from far away: every request waits a fixed time before it is forwarded.

``with LatencyProxy(server.endpoint_url, latency_ms=20) as proxy: proxy.take_counts()``. The proxy runs in a process of
its own, so that its work is not counted as the client's. It forwards paths, queries and headers as they come, the Host
header too, since S3 requests are signed over it, and counts requests and bytes of bodies. As a program it prints its
URL and runs until it is interrupted:

    python tools/latency_proxy.py http://127.0.0.1:8333 --latency-ms 20
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import subprocess
import sys
import threading
import urllib.request
from dataclasses import dataclass
from typing import Self

import aiohttp
from aiohttp import web
from yarl import URL

# No bucket's name starts with an underscore.
COUNTS_PATH = "/_counts"
MAX_IN_FLIGHT = 256
TIMEOUT_S = 60.0
# What concerns one connection only (RFC 9110, section 7.6.1); all else is forwarded.
_HOP_BY_HOP = {"connection", "keep-alive", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade"}


@dataclass(frozen=True, slots=True)
class Counts:
    """What passed through the proxy.

    Attributes:
        requests: Requests of any method.
        bytes_sent: Bytes of bodies sent to clients.
    """

    requests: int
    bytes_sent: int


class LatencyProxy:
    """One proxy process; a context manager.

    Args:
        upstream_url: The store.
        latency_ms: What every request waits.
        mb_per_second: What the body of every answer is slowed down to, in 10^6 bytes; None for as fast as it comes.

    Attributes:
        endpoint_url: Where it listens, on loopback only.
    """

    def __init__(self, upstream_url: str, *, latency_ms: float, mb_per_second: float | None = None) -> None:
        if not 0 <= latency_ms <= 10_000:
            raise ValueError(f"latency_ms: got {latency_ms}, allowed 0 to 10000")
        if mb_per_second is not None and not mb_per_second > 0:
            raise ValueError(f"mb_per_second: got {mb_per_second}, allowed above 0")
        self._command = [sys.executable, __file__, upstream_url, "--latency-ms", str(latency_ms)]
        if mb_per_second is not None:
            self._command += ["--mb-per-second", str(mb_per_second)]
        self._process: subprocess.Popen[str] | None = None
        self.endpoint_url = ""

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(self._command, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None, "a pipe was asked for"
        # A proxy that cannot start must not be waited for.
        alarm = threading.Timer(TIMEOUT_S, self._process.kill)
        alarm.start()
        self.endpoint_url = self._process.stdout.readline().strip()
        alarm.cancel()
        if not self.endpoint_url:
            self.__exit__()
            raise RuntimeError(f"the latency proxy did not start: {' '.join(self._command)}")
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None

    def take_counts(self) -> Counts:
        """What passed since the last call."""
        with urllib.request.urlopen(self.endpoint_url + COUNTS_PATH, timeout=TIMEOUT_S) as answer:
            return Counts(**json.load(answer))


class _Forwarder:
    """Serves one upstream; at most ``MAX_IN_FLIGHT`` requests are with it at a time."""

    def __init__(self, upstream_url: str, latency_s: float, seconds_per_byte: float) -> None:
        self._upstream_url = upstream_url.rstrip("/")
        self._latency_s = latency_s
        self._seconds_per_byte = seconds_per_byte
        self._requests = 0
        self._bytes_sent = 0
        self._session: aiohttp.ClientSession | None = None

    async def open(self) -> None:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=MAX_IN_FLIGHT),
            timeout=aiohttp.ClientTimeout(total=TIMEOUT_S),
            auto_decompress=False,
            skip_auto_headers=("User-Agent", "Accept", "Accept-Encoding", "Content-Type"),
        )

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()

    async def counts(self, _: web.Request) -> web.Response:
        counts = {"requests": self._requests, "bytes_sent": self._bytes_sent}
        self._requests = self._bytes_sent = 0
        return web.json_response(counts)

    async def forward(self, request: web.Request) -> web.StreamResponse:
        assert self._session is not None, "open comes first"
        self._requests += 1
        await asyncio.sleep(self._latency_s)
        headers = [(name, value) for name, value in request.headers.items() if name.lower() not in _HOP_BY_HOP]
        # The path as it came: a signature covers its escapes.
        target = URL(self._upstream_url + request.raw_path, encoded=True)
        body = request.content if request.body_exists else None
        try:
            async with self._session.request(
                request.method, target, headers=headers, data=body, allow_redirects=False
            ) as answer:
                return await self._answer(request, answer)
        except aiohttp.ClientError as error:
            return web.Response(status=502, text=f"{target.host}: {error}")

    async def _answer(self, request: web.Request, answer: aiohttp.ClientResponse) -> web.StreamResponse:
        response = web.StreamResponse(status=answer.status, reason=answer.reason)
        for name, value in answer.headers.items():
            if name.lower() not in _HOP_BY_HOP:
                response.headers.add(name, value)
        await response.prepare(request)
        # A client that has what it wants may hang up; what it got counts.
        with contextlib.suppress(ConnectionResetError):
            async for part in answer.content.iter_any():
                if self._seconds_per_byte:
                    await asyncio.sleep(len(part) * self._seconds_per_byte)
                await response.write(part)
                self._bytes_sent += len(part)
            await response.write_eof()
        return response


async def _serve(forwarder: _Forwarder, port: int) -> None:
    application = web.Application()
    application.router.add_get(COUNTS_PATH, forwarder.counts)
    application.router.add_route("*", "/{path:.*}", forwarder.forward)
    await forwarder.open()
    runner = web.AppRunner(application, access_log=None)
    try:
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", port)
        await site.start()
        (address,) = runner.addresses
        print(f"http://127.0.0.1:{address[1]}", flush=True)
        await asyncio.Event().wait()
    finally:
        await runner.cleanup()
        await forwarder.close()


def main() -> None:
    """Forward until interrupted."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("upstream", help="URL of the store, such as http://127.0.0.1:8333")
    parser.add_argument("--latency-ms", type=float, default=20.0)
    parser.add_argument("--mb-per-second", type=float, help="limit of each answer (default: none)")
    parser.add_argument("--port", type=int, default=0, help="default: a free one")
    arguments = parser.parse_args()
    seconds_per_byte = 1e-6 / arguments.mb_per_second if arguments.mb_per_second else 0.0
    forwarder = _Forwarder(arguments.upstream, arguments.latency_ms / 1000, seconds_per_byte)
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(_serve(forwarder, arguments.port))


if __name__ == "__main__":
    main()
