"""A real S3-compatible server on loopback, filled with the files of a folder.

Used by the demo and by the tests: ``with S3Server() as server: server.upload(folder, "slides")``. The server runs in a
process of its own, on a free port, and ends with the block. As a program it serves a folder until it is interrupted:

    python tools/s3_server.py FOLDER --bucket slides
"""

from __future__ import annotations

import argparse
import contextlib
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

START_SECONDS = 60.0
# Any pair is accepted by the server; the point is that requests are signed as they are against a real store.
CREDENTIALS = {"key": "demo-access-key", "secret": "demo-secret-key"}


class S3Server:
    """One server process; a context manager.

    Attributes:
        endpoint_url: Where it listens, on loopback only.
    """

    def __init__(self) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.endpoint_url = f"http://127.0.0.1:{port}"
        self._command = [sys.executable, "-m", "moto.server", "--host", "127.0.0.1", "--port", str(port)]
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def storage_options(self) -> dict[str, Any]:
        """Options for a client of this server, in fsspec's dialect."""
        return {**CREDENTIALS, "client_kwargs": {"endpoint_url": self.endpoint_url, "region_name": "us-east-1"}}

    @property
    def environment(self) -> dict[str, str]:
        """The same for clients that read the environment, so that no credential is written into a file."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint_url,
            "AWS_ACCESS_KEY_ID": CREDENTIALS["key"],
            "AWS_SECRET_ACCESS_KEY": CREDENTIALS["secret"],
            "AWS_DEFAULT_REGION": "us-east-1",
        }

    def __enter__(self) -> Self:
        # Its log tells every request; a demo's reader does not want it.
        self._process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                break
            with contextlib.suppress(OSError), urllib.request.urlopen(self.endpoint_url, timeout=2):
                return self
            time.sleep(0.1)
        self.__exit__()
        raise RuntimeError(f"the S3 server did not start within {START_SECONDS:.0f} s ({' '.join(self._command)})")

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process = None

    def client(self) -> Any:
        """A boto3 client of this server."""
        import boto3

        return boto3.client(
            "s3",
            endpoint_url=self.endpoint_url,
            region_name="us-east-1",
            aws_access_key_id=CREDENTIALS["key"],
            aws_secret_access_key=CREDENTIALS["secret"],
        )

    def upload(self, folder: Path, bucket: str, *, on_file: Callable[[Path], None] | None = None) -> str:
        """Put every file below a folder into a bucket, and return the bucket's URL."""
        client = self.client()
        client.create_bucket(Bucket=bucket)
        for path in sorted(p for p in folder.rglob("*") if p.is_file()):
            client.upload_file(str(path), bucket, path.relative_to(folder).as_posix())
            if on_file is not None:
                on_file(path)
        return f"s3://{bucket}"


def main() -> None:
    """Serve a folder until interrupted."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--bucket", default="slides")
    arguments = parser.parse_args()
    if not arguments.folder.is_dir():
        sys.exit(f"{arguments.folder}: no such folder")
    with S3Server() as server:
        url = server.upload(arguments.folder, arguments.bucket)
        print(f"serving {url} at {server.endpoint_url}; in another shell:")
        for name, value in server.environment.items():
            print(f"  export {name}={value}")
        with contextlib.suppress(KeyboardInterrupt):
            while True:
                time.sleep(3600)


if __name__ == "__main__":
    main()
