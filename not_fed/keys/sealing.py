"""The secret half that opens what was sealed to a site."""

from __future__ import annotations

from dataclasses import dataclass

from not_fed.age import Header, HybridIdentity, recipient_key
from not_fed.keys.signing import key_fingerprint


@dataclass(frozen=True, slots=True)
class Opener:
    """A site's decryption identity; `recipient` is what others seal to."""

    name: str
    identity: HybridIdentity

    @property
    def recipient(self) -> str:
        """The public half, `age1pq1...`."""
        return self.identity.recipient

    def unwrap(self, header: Header) -> bytes:
        """The file key of a container; raises BadContainer or NotForThisKey."""
        return self.identity.unwrap(header)


def recipient_fingerprint(recipient: str) -> str:
    """How waybills name a sealing key; raises BadKeyText."""
    return key_fingerprint(recipient_key(recipient))
