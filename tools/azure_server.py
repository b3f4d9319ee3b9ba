"""A real Azure blob server on loopback (Azurite), for the tests.

``with AzureServer() as server: server.upload(folder, "slides")``. ``tools/install_servers.py`` installs it.
"""

from __future__ import annotations

import base64
import os
import shutil
import socket
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from server_process import SERVERS_FOLDER, MissingServerError, ServerProcess, files_below

ACCOUNT = "demoaccount"
KEY = base64.b64encode(b"the key of an account on loopback").decode()


class AzureServer(ServerProcess):
    """One Azurite process; a context manager.

    Attributes:
        endpoint_url: URL of the account's blob service, on loopback only.
    """

    name = "azure-server"

    def __init__(self) -> None:
        super().__init__()
        self.endpoint_url = f"http://127.0.0.1:{self.ports[0]}/{ACCOUNT}"

    @property
    def connection_string(self) -> str:
        """How Azure's own clients are told where to go and who they are."""
        return self.connection_string_of(f"AccountKey={KEY}")

    def connection_string_of(self, credential: str) -> str:
        """A connection string with another credential, such as ``SharedAccessSignature=...``."""
        return f"DefaultEndpointsProtocol=http;AccountName={ACCOUNT};{credential};BlobEndpoint={self.endpoint_url};"

    @property
    def storage_options(self) -> dict[str, Any]:
        """Options for a client of this server, in fsspec's dialect."""
        return {"connection_string": self.connection_string}

    def process_environment(self) -> dict[str, str]:
        """Names the account that the server knows."""
        return {**os.environ, "AZURITE_ACCOUNTS": f"{ACCOUNT}:{KEY}"}

    def command(self) -> list[str]:
        """The blob service alone; its data ends with the process."""
        program = SERVERS_FOLDER / "node_modules" / ".bin" / "azurite-blob"
        if not program.exists() or shutil.which("node") is None:
            raise MissingServerError("Azurite or node is missing: run `python tools/install_servers.py`")
        port = str(self.ports[0])
        quiet = ["--silent", "--disableTelemetry", "--skipApiVersionCheck", "--inMemoryPersistence"]
        return [str(program), "--blobHost", "127.0.0.1", "--blobPort", port, *quiet]

    def answers(self) -> bool:
        """Whether it takes connections."""
        with socket.create_connection(("127.0.0.1", self.ports[0]), timeout=1):
            return True

    def client(self) -> Any:
        """An Azure SDK client of this server."""
        from azure.storage.blob import BlobServiceClient

        return BlobServiceClient.from_connection_string(self.connection_string)

    def upload(self, folder: Path, container: str, *, public: bool = False) -> str:
        """Put every file below a folder into a container, and return its URL; anyone may read a public one."""
        with self.client() as client:
            target = client.create_container(container, public_access="container" if public else None)
            for path, name in files_below(folder):
                target.upload_blob(name, path.read_bytes())
        return f"az://{container}"

    def sas_token(self, container: str, *, minutes: float = 60) -> str:
        """A token that reads and lists one container; with negative minutes an expired one."""
        from azure.storage.blob import ContainerSasPermissions, generate_container_sas

        now = datetime.now(UTC)
        return str(
            generate_container_sas(
                ACCOUNT,
                container,
                account_key=KEY,
                permission=ContainerSasPermissions(read=True, list=True),
                start=now - timedelta(days=1),
                expiry=now + timedelta(minutes=minutes),
            )
        )
