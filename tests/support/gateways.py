"""A real gateway on this machine: uvicorn, TLS, a coordinator's home; and something behind it that notes who came."""

from __future__ import annotations

import hashlib
import os
import socket
import ssl
import threading
import time
from base64 import b64encode
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import uvicorn
from cryptography.hazmat.primitives import serialization
from starlette.requests import Request
from starlette.responses import Response

from not_fed.age import write_header
from not_fed.age.hybrid import wrap
from not_fed.coordinator.gateway import build_gateway
from not_fed.coordinator.nodes import Nodes
from not_fed.envelope.label import write_label
from not_fed.envelope.visit import Visit, sign_visit
from not_fed.processes.tls import loopback_tls
from not_fed.site.bank_client import BankClient
from not_fed.site.connection import Connection
from tests.support.coordinators import Hub
from tests.support.enrolments import Joining
from tests.support.trust import FEDERATION

BEHIND = b"the SuperLink answers"


@contextmanager
def serving(app: Any, certificate: Path, key: Path) -> Iterator[int]:  # noqa: ANN401
    """An ASGI application over TLS on this machine's loopback; its port."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # as `serve` has it
        config = uvicorn.Config(
            app, log_config=None, access_log=False, lifespan="on", ws="none", loop="asyncio",
            ssl_certfile=str(certificate), ssl_keyfile=str(key), timeout_graceful_shutdown=1,
        )  # fmt: skip
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.01)
        try:
            yield listener.getsockname()[1]
        finally:
            server.should_exit = True
            thread.join(10)


@dataclass
class Behind:
    """Stands where the SuperLink does, and notes what reaches it."""

    requests: list[tuple[str, str, Mapping[str, str], bytes]] = field(default_factory=list)
    status: int = 200

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:  # noqa: ANN401
        """ASGI."""
        if scope["type"] == "lifespan":
            while (await receive())["type"] != "lifespan.shutdown":
                await send({"type": "lifespan.startup.complete"})
            await send({"type": "lifespan.shutdown.complete"})
            return
        request = Request(scope, receive)
        body = await request.body()
        self.requests.append((request.method, request.url.path, dict(request.headers), body))
        await Response(BEHIND, self.status)(scope, receive, send)


@dataclass(frozen=True)
class Gate:
    """A gateway that is open."""

    hub: Hub
    port: int
    behind: Behind
    seen: list[str]

    @property
    def home(self) -> Path:
        """The coordinator's."""
        return self.hub.home

    @property
    def tls(self) -> ssl.SSLContext:
        """Trusts this coordinator's own authority only."""
        return ssl.create_default_context(cafile=str(self.home / "tls" / "ca.crt"))

    def client(self, **more: Any) -> httpx.Client:  # noqa: ANN401
        """Whoever can reach the port."""
        return httpx.Client(base_url=f"https://localhost:{self.port}", verify=self.tls, timeout=20, **more)

    def as_node(self, joining: Joining) -> dict[str, str]:
        """The headers of a SuperNode with that connection key, as far as the gateway looks at them."""
        key = serialization.load_ssh_public_key(joining.node_key.encode())
        pem = key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
        return {"flwr-public-key": b64encode(pem).decode(), "content-type": "application/protobuf"}

    def connection(self, *, port: int | None = None) -> Connection:
        """What a site has of it."""
        return Connection(
            address=f"localhost:{port or self.port}", ca=self.home / "tls" / "ca.crt", coordinator="hub",
            federation=FEDERATION, gateway=True,
        )  # fmt: skip

    def bank(self, site: str, *, port: int | None = None, patience_s: float = 20.0) -> BankClient:
        """That site's way to the bank."""
        return BankClient(
            self.connection(port=port), name=site, coordinator="hub", federation=FEDERATION,
            signer=self.hub.sites[site].site.signer, patience_s=patience_s,
        )  # fmt: skip

    def token(self, site: str, *, signer: Joining | None = None, nonce: str | None = None) -> httpx.Response:
        """The answer to a visit in the name of `site`."""
        with self.client() as client:
            nonce = nonce or str(client.post("/v1/bank/visits").json()["nonce"])
            now = datetime.now(UTC).replace(microsecond=0)
            visit = Visit(v=1, federation=FEDERATION, member=site, coordinator="hub", nonce=nonce, issued=now)
            line = sign_visit(visit, signer=(signer or self.hub.sites[site]).site.signer)
            return client.post(f"/v1/bank/visits/{nonce}", content=line)

    def bearer(self, site: str) -> dict[str, str]:
        """Headers of an open session."""
        return {"Authorization": f"Bearer {self.token(site).json()['token']}"}

    def problems(self) -> list[tuple[str, str | None, str]]:
        """What the coordinator's administrator is told: code, site, text."""
        from not_fed.coordinator.state import CoordinatorState

        return [(one.code, one.site, one.text) for one in CoordinatorState(self.home).problems(100)]


@contextmanager
def open_gate(hub: Hub) -> Iterator[Gate]:
    """The gateway of that coordinator, with a witness behind it."""
    behind, seen = Behind(), list[str]()
    inner = loopback_tls(hub.home / "loopback")
    with serving(behind, inner.certificate, inner.key) as superlink:
        app = build_gateway(
            hub.home, superlink_url=f"https://127.0.0.1:{superlink}", superlink_ca=inner.ca, nodes=Nodes(hub.home),
            seen=seen.append,
        )  # fmt: skip
        with serving(app, hub.home / "tls" / "gateway.crt", hub.home / "tls" / "gateway.key") as port:
            yield Gate(hub, port, behind, seen)


@dataclass(frozen=True)
class SealedFile:
    """Something with the outside of a sealed organ, and its label."""

    path: Path
    sha256: str
    label: bytes

    @property
    def size_bytes(self) -> int:
        """Of the file."""
        return self.path.stat().st_size


def seal_bytes(
    hub: Hub, path: Path, *, sender: str, size_bytes: int, to: tuple[str, ...] | None = None, round_number: int = 1
) -> SealedFile:
    """A container whose payload is random, since a relay cannot tell, of about that size."""
    site, others = hub.sites[sender].site, [name for name in hub.sites if name != sender]
    recipients = others if to is None else list(to)
    file_key = os.urandom(16)
    keys = [hub.sites[name].site.opener.recipient for name in others]
    whole = hashlib.sha256()
    with path.open("wb") as file:
        for piece in (
            write_header([wrap(file_key, recipient=key) for key in keys], file_key=file_key),
            *_noise(size_bytes),
        ):
            whole.update(piece)
            file.write(piece)
    now = datetime.now(UTC).replace(microsecond=0)
    label = write_label(
        federation=FEDERATION, round_number=round_number, signer=site.signer, to=recipients, issued=now,
        expires=now + timedelta(days=7), sealed_sha256=whole.hexdigest(), size_bytes=path.stat().st_size,
    )  # fmt: skip
    return SealedFile(path, whole.hexdigest(), label)


def _noise(size_bytes: int) -> Iterator[bytes]:
    block = 1 << 20
    for start in range(0, size_bytes, block):
        yield os.urandom(min(block, size_bytes - start))
