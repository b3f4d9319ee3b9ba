"""How does a server on loopback look from far away, at thousands of requests a second?

``with DelayingProxy(server.base_url, latency_ms=20) as proxy: proxy.take_counts()``. Every byte from a client waits
the same time before it goes on to the server; answers go through at once. The proxy runs in a process of its own, so
that its work is not counted as the client's, and its latency can be changed while connections stay open.

``latency_proxy`` understands HTTP: it counts bodies exactly and can limit the speed of answers, at about a millisecond
of CPU a request. This one moves bytes and understands nothing: some tens of microseconds a request, so that client and
server are what is measured, any TCP protocol, and counts from the outside (heads of requests, all bytes of answers).

As a program it prints its URL and runs until it is interrupted:

    python tools/delaying_proxy.py http://127.0.0.1:8080 --latency-ms 20
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import select
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Collection
from dataclasses import dataclass
from typing import Self
from urllib.parse import urlsplit

MAX_LATENCY_MS = 10_000.0
TIMEOUT_S = 30.0
_BUFFER_BYTES = 256 * 1024
# Ends the head of an HTTP request; what the benchmarks send has no body.
_END_OF_HEAD = b"\r\n\r\n"


@dataclass(frozen=True, slots=True)
class Counts:
    """What passed through the proxy.

    Attributes:
        requests: Heads of HTTP requests.
        bytes_sent: Bytes sent to clients, heads of answers included.
        connections: Connections that were opened.
    """

    requests: int
    bytes_sent: int
    connections: int


class DelayingProxy:
    """One proxy process; a context manager.

    Args:
        upstream_url: The server, of which host and port are used.
        latency_ms: What every request waits; the machine's timer adds up to 1 ms.
        cpus: CPUs that the process may run on; None for all.

    Attributes:
        endpoint_url: Where it listens, on loopback only.
    """

    def __init__(self, upstream_url: str, *, latency_ms: float, cpus: Collection[int] | None = None) -> None:
        self._command = [sys.executable, __file__, upstream_url, "--latency-ms", str(_checked(latency_ms)), "--control"]
        self._cpus = cpus
        self._process: subprocess.Popen[str] | None = None
        self.endpoint_url = ""

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )
        if self._cpus is not None:
            os.sched_setaffinity(self._process.pid, self._cpus)
        self.endpoint_url = self._read_line()
        if not self.endpoint_url:
            self.__exit__()
            raise RuntimeError(f"the delaying proxy did not start: {' '.join(self._command)}")
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None

    def set_latency(self, latency_ms: float) -> None:
        """Let every request from now on wait this long; what waits already keeps its time."""
        self._command_process(f"latency {_checked(latency_ms)}")

    def take_counts(self) -> Counts:
        """What passed since the last call."""
        return Counts(**json.loads(self._command_process("counts")))

    def _command_process(self, line: str) -> str:
        assert self._process is not None, "the proxy is not running"
        assert self._process.stdin is not None, "a pipe was asked for"
        self._process.stdin.write(line + "\n")
        answer = self._read_line()
        if not answer:
            raise RuntimeError("the delaying proxy has ended")
        return answer

    def _read_line(self) -> str:
        assert self._process is not None, "the proxy is not running"
        assert self._process.stdout is not None, "a pipe was asked for"
        # A proxy that hangs must not be waited for.
        alarm = threading.Timer(TIMEOUT_S, self._process.kill)
        alarm.start()
        try:
            return self._process.stdout.readline().strip()
        finally:
            alarm.cancel()


def _checked(latency_ms: float) -> float:
    if not 0 <= latency_ms <= MAX_LATENCY_MS:
        raise ValueError(f"latency_ms: got {latency_ms}, allowed 0 to {MAX_LATENCY_MS:g}")
    return latency_ms


class _End:
    """One socket of a connection: where it leads, and what it has not taken yet."""

    __slots__ = ("backlog", "ended", "faces_client", "number", "peer", "socket", "tail")

    def __init__(self, connected: socket.socket, *, faces_client: bool) -> None:
        connected.setblocking(False)
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket = connected
        self.number = connected.fileno()
        self.faces_client = faces_client
        self.peer = self
        # None marks the end: nothing follows.
        self.backlog: deque[bytes | memoryview | None] = deque()
        # It has said all that it will.
        self.ended = False
        # What may be the beginning of a mark that ends in the next bytes.
        self.tail = b""


class _Forwarder:
    """Moves bytes between clients and one server, by one thread."""

    def __init__(self, host: str, port: int, latency_s: float, listener: socket.socket, *, control: bool) -> None:
        self._upstream = (host, port)
        self._latency_s = latency_s
        self._listener = listener
        self._control = sys.stdin.fileno() if control else -1
        self._ends: dict[int, _End] = {}
        # Due times rise, since all wait equally long. None marks the end of what a client sends.
        self._waiting: deque[tuple[float, _End, bytes | None]] = deque()
        self._view = memoryview(bytearray(_BUFFER_BYTES))
        self._requests = self._bytes_sent = self._connections = 0
        self._epoll = select.epoll()
        for number in (listener.fileno(), self._control):
            if number >= 0:
                self._epoll.register(number, select.EPOLLIN)

    def run(self) -> None:
        """Forward until whoever gives commands is gone."""
        while True:
            wait = max(0.0, self._waiting[0][0] - time.perf_counter()) if self._waiting else None
            for number, events in self._epoll.poll(wait):
                end = self._ends.get(number)
                if end is not None:
                    self._serve(end, events)
                elif number == self._listener.fileno():
                    self._accept()
                elif number == self._control and not self._obey():
                    return
            now = time.perf_counter()
            while self._waiting and self._waiting[0][0] <= now:
                _, upstream, data = self._waiting.popleft()
                self._push(upstream, data)

    def _obey(self) -> bool:
        """Answer the commands that arrived; False at the end of them."""
        lines = os.read(self._control, 4096).decode().splitlines()
        for line in lines:
            command, _, value = line.partition(" ")
            if command == "latency":
                self._latency_s = float(value) / 1000
                print("ok", flush=True)
            elif command == "counts":
                print(json.dumps(self._take_counts()), flush=True)
        return bool(lines)

    def _take_counts(self) -> dict[str, int]:
        counts = {"requests": self._requests, "bytes_sent": self._bytes_sent, "connections": self._connections}
        self._requests = self._bytes_sent = self._connections = 0
        return counts

    def _accept(self) -> None:
        client = _End(self._listener.accept()[0], faces_client=True)
        try:
            upstream = _End(socket.create_connection(self._upstream, timeout=TIMEOUT_S), faces_client=False)
        except OSError:
            client.socket.close()
            return
        self._connections += 1
        client.peer, upstream.peer = upstream, client
        for end in (client, upstream):
            self._ends[end.number] = end
            self._epoll.register(end.number, select.EPOLLIN)

    def _serve(self, end: _End, events: int) -> None:
        if events & select.EPOLLOUT:
            self._flush(end)
        if events & ~select.EPOLLOUT and end.number in self._ends:
            self._receive(end)

    def _receive(self, end: _End) -> None:
        try:
            count = end.socket.recv_into(self._view)
        except BlockingIOError:
            return
        except OSError:
            self._close(end)
            return
        if not count:
            end.ended = True
            self._watch(end)
        if not end.faces_client:
            self._bytes_sent += count
            self._push(end.peer, self._view[:count] if count else None)
            return
        data = bytes(self._view[:count])
        seen = end.tail + data
        self._requests += seen.count(_END_OF_HEAD)
        # Not the whole mark again: it would be counted twice.
        end.tail = b"" if seen.endswith(_END_OF_HEAD) else seen[-3:]
        due = time.perf_counter() + self._latency_s
        if self._waiting:
            # After a change of the latency too, bytes keep their order.
            due = max(due, self._waiting[-1][0])
        self._waiting.append((due, end.peer, data or None))

    def _push(self, end: _End, data: bytes | memoryview | None) -> None:
        """Send to one end, or keep what it does not take now."""
        if self._ends.get(end.number) is not end:
            return
        if data is not None and not end.backlog:
            sent = self._send(end, data)
            if sent == len(data) or end.number not in self._ends:
                return
            data = data[sent:]
        # The buffer is used again: what stays is copied.
        end.backlog.append(None if data is None else bytes(data))
        self._flush(end)

    def _flush(self, end: _End) -> None:
        while end.backlog:
            part = end.backlog[0]
            if part is None:
                self._finish(end)
                return
            sent = self._send(end, part)
            if end.number not in self._ends:
                return
            if sent < len(part):
                end.backlog[0] = memoryview(part)[sent:]
                break
            end.backlog.popleft()
        self._watch(end)
        if end.faces_client:
            self._watch(end.peer)

    def _send(self, end: _End, data: bytes | memoryview) -> int:
        """How many bytes the end took; closes the connection where it is gone."""
        try:
            return end.socket.send(data)
        except BlockingIOError:
            return 0
        except OSError:
            self._close(end)
            return 0

    def _watch(self, end: _End) -> None:
        # A client that does not read holds its server back, instead of filling this process's memory.
        held_back = not end.faces_client and bool(end.peer.backlog)
        read = 0 if end.ended or held_back else select.EPOLLIN
        self._epoll.modify(end.number, read | (select.EPOLLOUT if end.backlog else 0))

    def _finish(self, end: _End) -> None:
        """All that was meant for this end has been sent: pass the end on."""
        end.backlog.clear()
        if end.faces_client or end.ended:
            self._close(end)
            return
        self._watch(end)
        with contextlib.suppress(OSError):
            end.socket.shutdown(socket.SHUT_WR)

    def _close(self, end: _End) -> None:
        for each in (end, end.peer):
            if self._ends.pop(each.number, None) is not None:
                self._epoll.unregister(each.number)
                each.socket.close()


def main() -> None:
    """Forward until interrupted."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("upstream", help="URL of the server, such as http://127.0.0.1:8080")
    parser.add_argument("--latency-ms", type=float, default=20.0)
    parser.add_argument("--port", type=int, default=0, help="default: a free one")
    parser.add_argument("--control", action="store_true", help="take commands on stdin, and end with it")
    arguments = parser.parse_args()
    upstream = urlsplit(arguments.upstream)
    try:
        latency_s = _checked(arguments.latency_ms) / 1000
        if not upstream.hostname or not upstream.port:
            raise ValueError(f"upstream {arguments.upstream}: give host and port, such as http://127.0.0.1:8080")
    except ValueError as error:
        parser.error(str(error))
    with socket.create_server(("127.0.0.1", arguments.port), backlog=1024) as listener:
        print(f"http://127.0.0.1:{listener.getsockname()[1]}", flush=True)
        forwarder = _Forwarder(upstream.hostname, upstream.port, latency_s, listener, control=arguments.control)
        with contextlib.suppress(KeyboardInterrupt):
            forwarder.run()


if __name__ == "__main__":
    main()
