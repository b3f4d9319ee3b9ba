"""A second, independent S3 server on loopback (moto), so that no test rests on the habits of one.

``with MotoServer() as server: server.upload(folder, "slides")``. It keeps everything in memory, takes any credentials
and forbids nothing: what is refused is tested elsewhere.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

from server_process import MissingServerError, ServerProcess, files_below, s3_client

CREDENTIALS = {"key": "moto-access-key", "secret": "moto-secret-key"}


class MotoServer(ServerProcess):
    """One moto process; a context manager.

    Attributes:
        endpoint_url: Where it listens, on loopback only.
    """

    name = "moto-server"

    def __init__(self) -> None:
        super().__init__()
        self.endpoint_url = f"http://127.0.0.1:{self.ports[0]}"

    @property
    def storage_options(self) -> dict[str, Any]:
        """Options for a client of this server, in fsspec's dialect."""
        return {**CREDENTIALS, "client_kwargs": {"endpoint_url": self.endpoint_url, "region_name": "us-east-1"}}

    def command(self) -> list[str]:
        """The server module of this environment's moto."""
        if importlib.util.find_spec("moto") is None:
            raise MissingServerError("the package moto[server] is missing: `make setup` installs it")
        return [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(self.ports[0])]

    def answers(self) -> bool:
        """Whether buckets can be listed."""
        self.client().list_buckets()
        return True

    def client(self) -> Any:
        """A boto3 client of this server."""
        return s3_client(self.endpoint_url, **CREDENTIALS)

    def upload(self, folder: Path, bucket: str) -> str:
        """Put every file below a folder into a bucket, and return the bucket's URL."""
        client = self.client()
        client.create_bucket(Bucket=bucket)
        for path, name in files_below(folder):
            client.upload_file(str(path), bucket, name)
        return f"s3://{bucket}"
