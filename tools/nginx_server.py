"""A real web server on loopback (nginx) that serves a folder in the ways that servers on the web do.

``with NginxServer(folder) as server: server.url("open", "a.svs")``. Locations, all over the same folder:

- ``open``: ranges and entity tags; ``no-etag``: ranges and Last-Modified only; ``weak``: a weak entity tag;
  ``bare``: neither
- ``no-ranges``: answers a range request with the whole file; ``moved``: redirects to ``open``
- ``forbidden``: 403; ``private``: basic authentication; ``signed``: only with ``?sig=good`` in the query
- ``elsewhere`` and ``expired``: answer as S3 does for a bucket of another region, and for an expired session token

``tls_url`` serves the same with a certificate that nobody trusts.
"""

from __future__ import annotations

import shutil
import socket
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import quote

from server_process import MissingServerError, ServerProcess

USER, PASSWORD = "reader", "open sesame"

_CONFIG = """
daemon off;
master_process off;
worker_processes 1;
pid {folder}/nginx.pid;
error_log {folder}/error.log warn;
events {{ worker_connections 512; }}
http {{
  access_log {folder}/access.log;
  default_type application/octet-stream;
  client_body_temp_path {folder}/body;
  proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi;
  scgi_temp_path {folder}/scgi;
  sendfile on;
  keepalive_timeout 30;
  server {{
    listen 127.0.0.1:{port};
    listen 127.0.0.1:{tls_port} ssl;
    ssl_certificate {folder}/certificate.pem;
    ssl_certificate_key {folder}/key.pem;
    location /open/ {{ alias {served}/; }}
    location /no-etag/ {{ alias {served}/; etag off; }}
    location /weak/ {{ alias {served}/; etag off; add_header ETag 'W/"weak-tag"'; }}
    location /bare/ {{ alias {served}/; etag off; add_header Last-Modified ""; }}
    location /no-ranges/ {{ alias {served}/; max_ranges 0; }}
    location /moved/ {{ rewrite ^/moved/(.*)$ /open/$1 redirect; }}
    location /forbidden/ {{ return 403; }}
    location /private/ {{ alias {served}/; auth_basic "slides"; auth_basic_user_file {folder}/users; }}
    location /signed/ {{ if ($arg_sig != "good") {{ return 403; }} alias {served}/; }}
    location /elsewhere {{ error_page 418 =301 /answers/moved.xml; return 418; }}
    location /answers/ {{ internal; alias {folder}/answers/; }}
    location /expired {{ default_type application/xml; return 400 '{expired}'; }}
  }}
}}
"""
_MOVED = (
    "<Error><Code>PermanentRedirect</Code><Message>The bucket must be addressed using the specified endpoint.</Message>"
    "<Endpoint>elsewhere.s3-eu-west-1.amazonaws.com</Endpoint><Bucket>elsewhere</Bucket></Error>"
)
_EXPIRED = "<Error><Code>ExpiredToken</Code><Message>The provided token has expired.</Message></Error>"


class NginxServer(ServerProcess):
    """One nginx process that serves a folder; a context manager.

    Attributes:
        served: The folder.
        base_url: Where it listens, on loopback only.
        tls_url: The same with TLS.
    """

    name = "nginx-server"
    port_count = 2

    def __init__(self, served: Path) -> None:
        super().__init__()
        self.served = served
        self.base_url = f"http://127.0.0.1:{self.ports[0]}"
        self.tls_url = f"https://127.0.0.1:{self.ports[1]}"

    def url(self, location: str, name: str) -> str:
        """URL of a file in one of the locations, its name quoted."""
        return f"{self.base_url}/{location}/{quote(name)}"

    def command(self) -> list[str]:
        """Nginx with settings, logs and temporary files in its own folder."""
        program = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")
        if program is None:
            raise MissingServerError("nginx is missing: run `python tools/install_servers.py` as root, or install it")
        folder = self.folder
        (folder / "users").write_text(f"{USER}:{{PLAIN}}{PASSWORD}\n")
        (folder / "answers").mkdir()
        (folder / "answers" / "moved.xml").write_text(_MOVED)
        _write_certificate(folder)
        port, tls_port = self.ports
        settings = _CONFIG.format(folder=folder, served=self.served, port=port, tls_port=tls_port, expired=_EXPIRED)
        (folder / "nginx.conf").write_text(settings)
        return [program, "-e", str(folder / "error.log"), "-p", str(folder), "-c", str(folder / "nginx.conf")]

    def answers(self) -> bool:
        """Whether it takes connections."""
        with socket.create_connection(("127.0.0.1", self.ports[0]), timeout=1):
            return True

    def requests_logged(self) -> list[str]:
        """The lines of the access log so far."""
        return (self.folder / "access.log").read_text().splitlines()


def _write_certificate(folder: Path) -> None:
    """A certificate of 127.0.0.1 that nobody has signed but its own key."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .sign(key, hashes.SHA256())
    )
    (folder / "certificate.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (folder / "key.pem").write_bytes(private)
