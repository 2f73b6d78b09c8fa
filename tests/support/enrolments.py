"""Sites that want to join, with real keys for themselves and for their connection."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from not_fed.envelope.enrolment import new_enrolment
from not_fed.keys.identity import sign_identity
from not_fed.keys.node_key import create_node_key, node_key_id
from tests.support.trust import FEDERATION, NOW, Site


@dataclass(frozen=True)
class Joining:
    """A site, its connection's public key, and where the private one lies."""

    site: Site
    node_key: str
    private: Path

    @classmethod
    def make(cls, name: str, *, folder: Path) -> Joining:
        """New keys; the connection's private one in `folder`."""
        folder.mkdir(exist_ok=True)
        private = folder / "node.key"
        return cls(Site.make(name), create_node_key(private), private)

    @property
    def key_id(self) -> str:
        """As Flower's header names the connection's key."""
        return node_key_id(self.node_key)

    @property
    def identity(self) -> bytes:
        """The line of its identity.json."""
        return sign_identity(self.site.signer, seal=self.site.opener.recipient, now=NOW)

    def enrolment(self, *, federation: str = FEDERATION, node_key: str | None = None, now: datetime = NOW) -> bytes:
        """What it hands to a coordinator."""
        return new_enrolment(
            federation=federation, identity=self.identity, node_key=node_key or self.node_key, not_fed="0.1.0",
            signer=self.site.signer, now=now,
        )  # fmt: skip
