"""A real nginx as a child: the shipped deploy/nginx.conf before a server of ours, or a site of its own.

nginx = Nginx(folder, shipped_site(folder, server=8421, port=port, blobs=blobs))
await nginx.start(port)
...
nginx.close()
"""

from __future__ import annotations

import datetime
import os
import shutil
import socket
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from regtest.node import wait_until
from regtest.processes import GuardedProcess

SHIPPED = Path(__file__).parent.parent / "deploy" / "nginx.conf"
HOW_TO_INSTALL = "nginx is not installed (Debian: apt-get install nginx-light)"
MAIN = """\
{user}
worker_processes 1;
daemon off;
pid {folder}/nginx.pid;
error_log {folder}/main.error.log;
events {{ worker_connections 1024; }}
http {{
    client_body_temp_path {folder}/bodies;
    proxy_temp_path {folder}/proxied;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    include {folder}/site.conf;
}}
"""


def find_nginx() -> str | None:
    """Its path; Debian keeps it from ordinary users' PATH."""
    return shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")


class Nginx:
    """One nginx with the configuration `site`, all its files in `folder`, which belongs to it."""

    def __init__(self, folder: Path, site: str) -> None:
        self.folder = folder
        # Started by root it would read our files as another user.
        user = "user root;" if os.geteuid() == 0 else ""
        (folder / "main.conf").write_text(MAIN.format(folder=folder, user=user))
        (folder / "site.conf").write_text(site)
        self._process: GuardedProcess | None = None

    @property
    def pid(self) -> int:
        """Of the master; its worker is below it."""
        assert self._process is not None
        return self._process.pid

    async def start(self, port: int) -> None:
        """Returns once it listens on `port`."""
        nginx = find_nginx()
        assert nginx is not None, HOW_TO_INSTALL
        process = self._process = GuardedProcess(
            [nginx, "-p", self.folder, "-c", self.folder / "main.conf"], log=self.folder / "output.log"
        )

        async def listening() -> bool:
            assert process.running, process.log_tail()
            with socket.socket() as probe:
                return probe.connect_ex(("127.0.0.1", port)) == 0

        await wait_until(listening, "nginx to listen")

    def logs(self) -> str:
        """All that it wrote down."""
        return "".join(path.read_text(errors="replace") for path in sorted(self.folder.glob("*.log")))

    def close(self) -> None:
        if self._process is not None:
            self._process.terminate()


def shipped_site(
    folder: Path, *, server: int, port: int, blobs: Path, plain_port: int | None = None, tls: bool = True
) -> str:
    """deploy/nginx.conf with our ports and paths in place of an operator's, and nothing else changed.

    `server` is the port of Bitcache. Without `tls` the site itself speaks plain HTTP: to be measured.
    """
    certificate, key = folder / "certificate.pem", folder / "key.pem"
    if tls:
        write_certificate(certificate, key)
    changes = {
        "server 127.0.0.1:8421;": f"server 127.0.0.1:{server};",
        "listen 80;": f"listen 127.0.0.1:{plain_port};" if plain_port else "listen unix:plain.sock;",
        "listen [::]:80;": "",
        "listen 443 ssl;": f"listen 127.0.0.1:{port}{' ssl' if tls else ''};",
        "listen [::]:443 ssl;": "",
        "/var/log/nginx/": f"{folder}/",
        "alias /srv/bitcache/blobs/;": f"alias {blobs}/;",
        "ssl_certificate /etc/letsencrypt/live/files.example.org/fullchain.pem;": (
            f"ssl_certificate {certificate};" if tls else ""
        ),
        "ssl_certificate_key /etc/letsencrypt/live/files.example.org/privkey.pem;": (
            f"ssl_certificate_key {key};" if tls else ""
        ),
    }
    site = SHIPPED.read_text()
    for shipped, ours in changes.items():
        assert shipped in site, f"deploy/nginx.conf has no {shipped!r}"
        site = site.replace(shipped, ours)
    return site


def write_certificate(certificate: Path, key: Path) -> None:
    """Signed by itself, for localhost, for a day."""
    secret = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    signed = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(secret.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .sign(secret, hashes.SHA256())
    )
    certificate.write_bytes(signed.public_bytes(serialization.Encoding.PEM))
    key.write_bytes(
        secret.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
