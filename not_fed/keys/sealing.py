"""The secret half that opens what was sealed to a site, and the halves that did so before a rotation."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass

from not_fed.age import Header, HybridIdentity, NotForThisKey, recipient_key
from not_fed.keys.signing import key_fingerprint


@dataclass(frozen=True, slots=True)
class Opener:
    """A site's decryption identities; `recipient` is what others seal to.

    `retired` holds identities that a rotation replaced, newest first: organs sealed to them before then still open.
    """

    name: str
    identity: HybridIdentity
    retired: tuple[HybridIdentity, ...] = ()

    @property
    def recipient(self) -> str:
        """The public half, `age1pq1...`, of the current identity."""
        return self.identity.recipient

    @property
    def fingerprints(self) -> frozenset[str]:
        """How waybills name this site's sealing keys, the current one and the retired ones."""
        return frozenset(recipient_fingerprint(one.recipient) for one in (self.identity, *self.retired))

    def unwrap(self, header: Header) -> bytes:
        """The file key of a container; raises BadContainer or NotForThisKey."""
        *others, last = (self.identity, *self.retired)
        for identity in others:
            with suppress(NotForThisKey):
                return identity.unwrap(header)
        return last.unwrap(header)


def recipient_fingerprint(recipient: str) -> str:
    """How waybills name a sealing key; raises BadKeyText."""
    return key_fingerprint(recipient_key(recipient))
