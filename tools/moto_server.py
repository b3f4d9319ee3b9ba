"""A second, independent S3 server on loopback (moto), so that no test rests on the habits of one.

``with MotoServer() as server: server.upload(folder, "slides")``. It keeps everything in memory, takes any credentials
and forbids nothing: what is refused is tested elsewhere.
"""

from __future__ import annotations

import importlib.util
import sys

from server_process import MissingServerError, S3Process

CREDENTIALS = {"key": "moto-access-key", "secret": "moto-secret-key"}


class MotoServer(S3Process):
    """One moto process; a context manager."""

    name = "moto-server"
    credentials = CREDENTIALS

    def command(self) -> list[str]:
        """The server module of this environment's moto."""
        if importlib.util.find_spec("moto") is None:
            raise MissingServerError("the package moto[server] is missing: `make setup` installs it")
        return [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(self.ports[0])]
