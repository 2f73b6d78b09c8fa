"""The gateway of `bench scale --relay` as a process: `python -m not_fed.bench.relay_gateway HOME PORT-FILE`."""

from __future__ import annotations

import socket
import sys
from pathlib import Path

import uvicorn

from not_fed.coordinator.gateway import build_gateway
from not_fed.coordinator.nodes import Nodes


def main(home: Path, told: Path) -> None:
    """Serve until killed; nothing is behind it, since the bank needs no SuperLink."""
    app = build_gateway(
        home, superlink_url="https://127.0.0.1:9", superlink_ca=home / "tls" / "ca.crt", nodes=Nodes(home),
        seen=lambda _: None,
    )  # fmt: skip
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # as `serve` has it
        told.write_text(str(listener.getsockname()[1]))
        config = uvicorn.Config(
            app, log_config=None, access_log=False, ws="none", ssl_certfile=str(home / "tls" / "gateway.crt"),
            ssl_keyfile=str(home / "tls" / "gateway.key"),
        )  # fmt: skip
        uvicorn.Server(config).run(sockets=[listener])


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
