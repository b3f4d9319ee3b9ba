"""A Google Cloud Storage server on loopback (gcp-storage-emulator), for the tests.

``with GcsServer() as server: server.upload(folder, "slides")``. ``tools/install_servers.py`` installs it. It takes any
credentials and forbids nothing.
"""

from __future__ import annotations

import socket
import urllib.parse
import urllib.request
from pathlib import Path

from server_process import SERVERS_FOLDER, MissingServerError, ServerProcess, files_below


class GcsServer(ServerProcess):
    """One emulator process; a context manager.

    Attributes:
        endpoint_url: Where it listens, on loopback only.
    """

    name = "gcs-server"

    def __init__(self) -> None:
        super().__init__()
        self.endpoint_url = f"http://127.0.0.1:{self.ports[0]}"

    def command(self) -> list[str]:
        """The emulator, keeping everything in memory."""
        program = SERVERS_FOLDER / "gcs" / "bin" / "gcp-storage-emulator"
        if not program.exists():
            raise MissingServerError("gcp-storage-emulator is missing: run `python tools/install_servers.py`")
        return [str(program), "start", "--host", "127.0.0.1", "--port", str(self.ports[0]), "--in-memory"]

    def answers(self) -> bool:
        """Whether it takes connections."""
        with socket.create_connection(("127.0.0.1", self.ports[0]), timeout=1):
            return True

    def upload(self, folder: Path, bucket: str) -> str:
        """Put every file below a folder into a bucket, and return the bucket's URL."""
        self._post("/storage/v1/b?project=demo", f'{{"name": "{bucket}"}}'.encode(), "application/json")
        for path, name in files_below(folder):
            query = urllib.parse.urlencode({"uploadType": "media", "name": name})
            self._post(f"/upload/storage/v1/b/{bucket}/o?{query}", path.read_bytes(), "application/octet-stream")
        return f"gs://{bucket}"

    def _post(self, path: str, body: bytes, content_type: str) -> None:
        request = urllib.request.Request(self.endpoint_url + path, data=body, headers={"Content-Type": content_type})
        with urllib.request.urlopen(request, timeout=10):
            pass
