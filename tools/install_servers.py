"""Install the servers that the tests of storage run against and that are no Python packages of the project.

    python tools/install_servers.py

Azurite (Azure blobs) comes from npm into the folder ``.servers`` of this repository, which git ignores; nginx comes
from the system's packages where this program runs as root on a Debian. Whatever cannot be installed is said with its
reason, and the tests that need it are skipped with the same. The S3 servers (SeaweedFS, moto) are in the project's
environment already; SeaweedFS answers for ``gs://`` too, since Google's XML interface speaks the dialect of S3.
"""

from __future__ import annotations

import os
import shutil
import subprocess

from server_process import SERVERS_FOLDER

AZURITE = "azurite@3.37.0"


def main() -> None:
    """Install what is missing and print what was done."""
    SERVERS_FOLDER.mkdir(exist_ok=True)
    (SERVERS_FOLDER / ".gitignore").write_text("*\n")
    for name, install in (("azurite", _azurite), ("nginx", _nginx)):
        try:
            print(f"{name}: {install()}")
        except (OSError, subprocess.CalledProcessError) as error:
            print(f"{name}: not installed ({error}); the tests that need it are skipped")


def _azurite() -> str:
    if (SERVERS_FOLDER / "node_modules" / ".bin" / "azurite-blob").exists():
        return "is installed"
    npm = shutil.which("npm")
    if npm is None or shutil.which("node") is None:
        return "not installed: node and npm are missing (Node.js 20 or newer); the tests that need it are skipped"
    quiet = ["--no-audit", "--no-fund", "--loglevel=error"]
    subprocess.run([npm, "install", "--prefix", str(SERVERS_FOLDER), *quiet, AZURITE], check=True)
    return f"installed {AZURITE} with npm"


def _nginx() -> str:
    if shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin"):
        return "is installed"
    apt = shutil.which("apt-get")
    if apt is None or os.geteuid() != 0:
        return "not installed: that needs root and apt-get; without it the tests that need nginx are skipped"
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    subprocess.run([apt, "update", "-qq"], check=True, env=environment)
    subprocess.run([apt, "install", "-y", "-qq", "--no-install-recommends", "nginx-light"], check=True, env=environment)
    return "installed nginx-light with apt-get"


if __name__ == "__main__":
    main()
