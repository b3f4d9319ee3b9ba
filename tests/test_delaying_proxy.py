"""The proxy between plain sockets and a real server: what passes is unchanged, late and counted."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import obstore
import pytest
from delaying_proxy import Counts, DelayingProxy
from nginx_server import NginxServer
from obstore.store import HTTPStore
from server_process import MissingServerError

LATENCY_MS = 50
ANSWER_BYTES = 15_000
CYCLE = bytes(range(251))
REQUEST = b"GET /a HTTP/1.1\r\n\r\n"


class LineServer:
    """Answers each request head with ``ANSWER_BYTES`` numbered bytes, on kept-alive connections."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.ended = threading.Event()
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        number, pending = 0, b""
        with connection:
            while part := connection.recv(65536):
                pending += part
                if b"HANG UP" in pending:
                    return
                while b"\r\n\r\n" in pending:
                    _, _, pending = pending.partition(b"\r\n\r\n")
                    connection.sendall(answer(number))
                    number += 1
            self.ended.set()

    def close(self) -> None:
        self._listener.close()


def answer(number: int) -> bytes:
    return (CYCLE * (ANSWER_BYTES // 251 + 2))[number % 251 :][:ANSWER_BYTES]


@pytest.fixture
def server() -> Iterator[LineServer]:
    with closing(LineServer()) as running:
        yield running


@contextmanager
def connected(proxy: DelayingProxy) -> Iterator[socket.socket]:
    parts = urlsplit(proxy.endpoint_url)
    with socket.create_connection((parts.hostname, parts.port), timeout=10) as connection:
        yield connection


def receive(connection: socket.socket, count: int) -> bytes:
    found = b""
    while len(found) < count:
        part = connection.recv(count - len(found))
        assert part, f"the connection ended after {len(found)} of {count} bytes"
        found += part
    return found


def test_each_request_of_a_kept_alive_connection_waits(server: LineServer) -> None:
    with DelayingProxy(server.url, latency_ms=LATENCY_MS) as proxy, connected(proxy) as client:
        seconds = []
        for number in range(4):
            started = time.perf_counter()
            client.sendall(REQUEST)
            assert receive(client, ANSWER_BYTES) == answer(number)
            seconds.append(time.perf_counter() - started)
        assert min(seconds) >= LATENCY_MS / 1000
        assert min(seconds) < 2 * LATENCY_MS / 1000, "an answer waits as well"
        assert proxy.take_counts() == Counts(requests=4, bytes_sent=4 * ANSWER_BYTES, connections=1)
        assert proxy.take_counts() == Counts(requests=0, bytes_sent=0, connections=0)


def test_pipelined_requests_wait_side_by_side_and_keep_their_order(server: LineServer) -> None:
    with DelayingProxy(server.url, latency_ms=LATENCY_MS) as proxy, connected(proxy) as client:
        started = time.perf_counter()
        for piece in (REQUEST * 7, REQUEST[:-2], REQUEST[-2:], REQUEST[:-3], REQUEST[-3:] + REQUEST):
            client.sendall(piece)
            time.sleep(0.002)
        assert receive(client, 10 * ANSWER_BYTES) == b"".join(map(answer, range(10)))
        assert time.perf_counter() - started < 8 * LATENCY_MS / 1000, "one after the other"
        assert proxy.take_counts().requests == 10


def test_the_latency_changes_while_a_connection_stays_open(server: LineServer) -> None:
    with DelayingProxy(server.url, latency_ms=3000) as proxy, connected(proxy) as client:
        proxy.set_latency(0)
        started = time.perf_counter()
        client.sendall(REQUEST)
        receive(client, ANSWER_BYTES)
        assert time.perf_counter() - started < 2.5
        proxy.set_latency(100)
        started = time.perf_counter()
        client.sendall(REQUEST)
        assert receive(client, ANSWER_BYTES) == answer(1)
        assert time.perf_counter() - started >= 0.1


def test_a_slow_reader_gets_every_byte(server: LineServer) -> None:
    with DelayingProxy(server.url, latency_ms=0) as proxy, connected(proxy) as client:
        client.sendall(REQUEST * 1000)
        time.sleep(0.3)
        received = receive(client, 1000 * ANSWER_BYTES)
    assert received == b"".join(map(answer, range(1000)))


def test_the_end_passes_from_either_side(server: LineServer) -> None:
    with DelayingProxy(server.url, latency_ms=LATENCY_MS) as proxy:
        with connected(proxy) as client:
            client.sendall(REQUEST)
            client.shutdown(socket.SHUT_WR)
            assert receive(client, ANSWER_BYTES) == answer(0)
            assert client.recv(1) == b"", "the server ended when the client had said all"
        assert server.ended.wait(5)
        with connected(proxy) as client:
            client.sendall(b"HANG UP")
            assert client.recv(1) == b""


def test_a_server_that_is_gone_ends_the_connection() -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as probe:
        port = probe.getsockname()[1]
    with DelayingProxy(f"http://127.0.0.1:{port}", latency_ms=0) as proxy, connected(proxy) as client:
        assert client.recv(1) == b""


def test_it_listens_on_loopback_only_and_ends_with_whoever_started_it(server: LineServer) -> None:
    program = str(Path(sys.modules["delaying_proxy"].__file__ or ""))
    command = [sys.executable, program, server.url, "--control"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        assert process.stdout.readline().startswith("http://127.0.0.1:")
        process.stdin.close()
        assert process.wait(10) == 0


def test_ranges_of_a_real_server_are_exact_at_many_connections(tmp_path: Path) -> None:
    content = bytes(range(256)) * 4000
    (tmp_path / "a.bin").write_bytes(content)
    try:
        nginx = NginxServer(tmp_path).__enter__()
    except MissingServerError as error:
        pytest.skip(str(error))
    try:
        with DelayingProxy(nginx.base_url, latency_ms=20) as proxy:
            store = HTTPStore(f"{proxy.endpoint_url}/open", client_options={"allow_http": True})
            starts = list(range(0, 900_000, 4_500))
            found = obstore.get_ranges(store, "a.bin", starts=starts, lengths=[15_000] * len(starts), coalesce=0)
            assert [bytes(each) for each in found] == [content[start : start + 15_000] for start in starts]
    finally:
        nginx.__exit__()


def test_settings_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match="latency_ms: got -1"):
        DelayingProxy("http://127.0.0.1:9", latency_ms=-1)
    program = str(Path(sys.modules["delaying_proxy"].__file__ or ""))
    done = subprocess.run([sys.executable, program, "nonsense"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "give host and port" in done.stderr
