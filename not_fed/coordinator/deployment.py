"""How a coordinator is reached and where it keeps what it relays: `coordinator.toml` in its home.

A home without this file belongs to a simulation: nothing listens, and every parcel travels inside its message.
"""

from __future__ import annotations

import os
from pathlib import Path

from pydantic import Field

from not_fed import settings
from not_fed.envelope.invitation import Address
from not_fed.settings import Settings

DEPLOYMENT_FILE = "coordinator.toml"


class TlsTable(Settings):
    """The certificate that sites see; paths are relative to the home.

    Attributes:
        ca: the authority that sites check it against, for the invitation; None: one that every machine knows.
        ca_key: that authority's private key, when it is this coordinator's own: `serve` then renews the certificate.
    """

    certificate: str = "tls/gateway.crt"
    key: str = "tls/gateway.key"
    ca: str | None = None
    ca_key: str | None = None


class BankTable(Settings):
    """Where sealed organs are kept, and for how long.

    Attributes:
        storage: a folder (relative to the home), or "s3://bucket/prefix".
        inline_bytes: sealed organs up to this size travel inside Flower's messages; larger ones through the bank.
        chunk_bytes: what is sent, checked and resumed at once.
        keep_days: how long a sealed organ is kept that no open run needs.
        max_bytes: the bank takes no more than this.
        free_bytes: a local folder takes nothing more when its disk has less than this left.
    """

    storage: str = "bank"
    inline_bytes: int = Field(default=4 << 20, ge=0, le=256 << 20)
    chunk_bytes: int = Field(default=4 << 20, ge=64 << 10, le=64 << 20)
    keep_days: int = Field(default=30, ge=0, le=36_500)
    max_bytes: int = Field(default=1 << 40, ge=1)
    free_bytes: int = Field(default=1 << 30, ge=0)


class GatewayTable(Settings):
    """What the gateway lets one machine ask of this one.

    Attributes:
        max_message_bytes: of one request of Flower's; its own chunks are 5 MiB.
        concurrent_chunks: how many chunks of the bank are on their way at once; more are told to come back.
        slow_client_s: who is silent for this long in the middle of a request is cut off.
        upstream_timeout_s: how long the SuperLink may take for one answer.
    """

    max_message_bytes: int = Field(default=64 << 20, ge=8 << 20)
    concurrent_chunks: int = Field(default=8, ge=1, le=1024)
    slow_client_s: float = Field(default=30.0, gt=0)
    upstream_timeout_s: float = Field(default=60.0, gt=0)


class Deployment(Settings):
    """The whole file.

    Attributes:
        address: host:port that sites connect to, as the invitation says.
        listen: host:port on this machine; a firewall or a router in front may lead there from `address`.
        base: the base model's name as sites find it, for invitations.
    """

    address: Address
    listen: Address
    base: str = Field(min_length=1)
    tls: TlsTable = TlsTable()
    bank: BankTable = BankTable()
    gateway: GatewayTable = GatewayTable()


def load_deployment(home: Path) -> Deployment | None:
    """The deployment of the coordinator at `home`; None for a simulation, which has no such file.

    Raises:
        BadSettings: naming file and field. NotAFile: it is there and cannot be read.
    """
    path = home / DEPLOYMENT_FILE
    return settings.load(Deployment, path) if os.path.lexists(path) else None
