"""How is a server started on loopback for tests and demos, and surely ended again?

``ServerProcess`` is the frame that every server here shares: free ports, a temporary folder, a process whose output
goes to a file, a wait until it answers, and an end that leaves nothing behind, whatever was raised in between.
"""

from __future__ import annotations

import ctypes
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar, Self

REPOSITORY = Path(__file__).parent.parent
# What install_servers.py installs; a folder that git ignores.
SERVERS_FOLDER = REPOSITORY / ".servers"
START_SECONDS = 60.0
_PR_SET_PDEATHSIG = 1


class MissingServerError(RuntimeError):
    """The server's program is not installed on this machine; the message says how to install it."""


class ServerProcess(ABC):
    """One server process; a context manager.

    Attributes:
        ports: The free ports it may listen on, all on loopback.
    """

    name = "server"
    port_count = 1

    def __init__(self) -> None:
        self.ports = free_ports(self.port_count)
        self._process: subprocess.Popen[bytes] | None = None
        self._folder: Path | None = None

    @property
    def folder(self) -> Path:
        """Temporary folder of the running server."""
        assert self._folder is not None, "the server is not running"
        return self._folder

    @abstractmethod
    def command(self) -> list[str]:
        """The command line; may write settings into ``folder`` first.

        Raises:
            MissingServerError: The program is not installed.
        """

    @abstractmethod
    def answers(self) -> bool:
        """Whether the server takes requests; may raise while it does not."""

    def process_environment(self) -> dict[str, str] | None:
        """Environment of the process, or None for that of this one."""
        return None

    def __enter__(self) -> Self:
        self._folder = Path(tempfile.mkdtemp(prefix=f"{self.name}-"))
        try:
            command = self.command()
            with (self._folder / "log.txt").open("wb") as log:
                self._process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    env=self.process_environment(),
                    preexec_fn=_die_with_parent if sys.platform == "linux" else None,
                )
            self._wait()
        except BaseException:
            self.__exit__()
            raise
        return self

    def _wait(self) -> None:
        assert self._process is not None, "the process was just started"
        deadline = time.monotonic() + START_SECONDS
        while not self._try_answer():
            if self._process.poll() is not None or time.monotonic() > deadline:
                tail = (self.folder / "log.txt").read_text(errors="replace")[-500:]
                raise RuntimeError(f"{self.name} did not start within {START_SECONDS:.0f} s: {tail}")
            time.sleep(0.05)

    def _try_answer(self) -> bool:
        try:
            return self.answers()
        except Exception:
            return False

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            # Its data is thrown away: nothing is worth the seconds of a graceful end.
            self._process.kill()
            self._process.wait()
            self._process = None
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None


def _die_with_parent() -> None:
    """Let the kernel end the server when this process dies without having ended it."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on now; held together while they are chosen, so that they differ."""
    probes = [socket.socket() for _ in range(count)]
    try:
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in probes]
    finally:
        for probe in probes:
            probe.close()


def files_below(folder: Path) -> Iterator[tuple[Path, str]]:
    """Every file below a folder with its name in a store, in order."""
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        yield path, path.relative_to(folder).as_posix()


def s3_client(endpoint_url: str, key: str, secret: str) -> Any:
    """A boto3 client of a server on loopback, which gives up soon."""
    import boto3
    import botocore.config

    return boto3.client(
        "s3",
        endpoint_url=endpoint_url,
        region_name="us-east-1",
        aws_access_key_id=key,
        aws_secret_access_key=secret,
        config=botocore.config.Config(retries={"total_max_attempts": 2}, connect_timeout=5),
    )


class S3Process(ServerProcess):
    """A server with an S3 interface.

    Attributes:
        credentials: Those that it knows, as ``key`` and ``secret``.
        endpoint_url: Where it listens, on loopback only.
    """

    credentials: ClassVar[dict[str, str]]

    def __init__(self) -> None:
        super().__init__()
        self.endpoint_url = f"http://127.0.0.1:{self.ports[0]}"

    @property
    def storage_options(self) -> dict[str, Any]:
        """Options for a client of this server, in fsspec's dialect."""
        return {**self.credentials, "client_kwargs": {"endpoint_url": self.endpoint_url, "region_name": "us-east-1"}}

    def answers(self) -> bool:
        """Whether buckets can be listed."""
        self.client().list_buckets()
        return True

    def client(self) -> Any:
        """A boto3 client of this server."""
        return s3_client(self.endpoint_url, **self.credentials)

    def upload(self, folder: Path, bucket: str, *, on_file: Callable[[Path], None] | None = None) -> str:
        """Put every file below a folder into a bucket, and return the bucket's URL."""
        client = self.client()
        client.create_bucket(Bucket=bucket)
        for path, name in files_below(folder):
            client.upload_file(str(path), bucket, name)
            if on_file is not None:
                on_file(path)
        return f"s3://{bucket}"
