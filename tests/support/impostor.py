"""Somebody on the way who answers for the coordinator: a certificate of another authority, or one that is over."""

from __future__ import annotations

import json
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Final

from not_fed.processes.tls import create_ca, issue_server_certificate

HOSTS: Final = ("localhost", "127.0.0.1")


class Impostor(ThreadingHTTPServer):
    """Says yes to everything.

    Attributes:
        heard: the requests whose TLS handshake was completed: method and path.
        refused: handshakes that the other side broke off.
    """

    daemon_threads = True

    def __init__(self, certificate: Path, key: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Answer)
        self.heard: list[str] = []
        self.refused = 0
        self._tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._tls.load_cert_chain(certificate, key)

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self.server_address[1])

    def finish_request(self, request: object, client_address: object) -> None:
        """Shake hands in the connection's own thread."""
        try:
            secured = self._tls.wrap_socket(request, server_side=True)  # type: ignore[arg-type]
        except OSError:
            self.refused += 1
            return
        with secured:
            super().finish_request(secured, client_address)

    def handle_error(self, request: object, client_address: object) -> None:
        """Whoever leaves in the midst is nothing to print."""


class _Answer(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Impostor

    def _yes(self) -> None:
        self.server.heard.append(f"{self.command} {self.path}")
        self.rfile.read(int(self.headers.get("content-length") or 0))
        body = json.dumps({"status": "ok"}).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_POST = do_PUT = _yes  # noqa: N815  names of http.server

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Quiet."""


@contextmanager
def impostor(folder: Path, *, authority: Path | None = None, days: int = 30) -> Iterator[Impostor]:
    """One that listens for the block.

    Args:
        authority: the folder of another authority's ca.crt and ca.key; its own otherwise.
        days: how long its certificate holds; 0 is over already.
    """
    folder.mkdir()
    if authority is None:
        create_ca(folder)
    certificate = issue_server_certificate(folder, ca=authority or folder, hosts=HOSTS, days=days)
    with Impostor(certificate, certificate.with_suffix(".key")) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join(10)
