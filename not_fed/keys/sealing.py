"""The secret half that opens what was sealed to a site, and the halves that did so before a rotation."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime

from not_fed import canonical
from not_fed.age import Header, HybridIdentity, NotForThisKey, recipient_key
from not_fed.age.hybrid import SEED_BYTES, identity_text
from not_fed.keys.secret import Secret
from not_fed.keys.signing import key_fingerprint

_RETIRED = "# retired: "


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

    def open_own(self, sealed: bytes, *, info: bytes) -> Secret:
        """What was sealed to this site by HPKE alone, now or before a rotation; raises NotForThisKey."""
        *others, last = (self.identity, *self.retired)
        for identity in others:
            with suppress(NotForThisKey):
                return Secret(identity.open(sealed, info=info))
        return Secret(last.open(sealed, info=info))

    def unwrap(self, header: Header, *, first: int = 0) -> bytes:
        """The file key of a container, whose stanza for us is likely number `first`.

        Raises:
            BadContainer, NotForThisKey.
        """
        *others, last = (self.identity, *self.retired)
        for identity in others:
            with suppress(NotForThisKey):
                return identity.unwrap(header, first=first)
        return last.unwrap(header, first=first)


@dataclass(frozen=True, slots=True)
class SealKey:
    """One identity of `seal.key`, when it was retired, and its lines there."""

    identity: HybridIdentity
    retired: datetime | None
    lines: Secret

    @classmethod
    def generate(cls, *, now: datetime) -> SealKey:
        """A new one from the operating system's randomness."""
        seed = os.urandom(SEED_BYTES)
        identity = HybridIdentity(seed)
        created, public = f"# created: {canonical.format_time(now)}", f"# public key: {identity.recipient}"
        return cls(identity, None, Secret(f"{created}\n{public}\n{identity_text(seed)}\n".encode()))

    def retire(self, *, now: datetime) -> SealKey:
        """The same, no longer current."""
        lines = f"{_RETIRED}{canonical.format_time(now)}\n".encode() + self.lines.reveal()
        return replace(self, retired=now, lines=Secret(lines))


def read_seal_keys(plain: bytes) -> list[SealKey]:
    """The identities of `seal.key`, the current one first, at least one; raises ValueError or BadKeyText."""
    keys: list[SealKey] = []
    lines: list[str] = []
    retired: datetime | None = None
    for line in plain.decode().splitlines():
        lines.append(line)
        if line.startswith(_RETIRED):
            retired = canonical.parse_time(line.removeprefix(_RETIRED))
        if not line or line.startswith("#"):
            continue
        if (retired is None) != (not keys):
            raise ValueError("an identity after the first that was not retired, or a first one that was")
        keys.append(SealKey(HybridIdentity.from_text(line), retired, Secret("\n".join([*lines, ""]).encode())))
        lines, retired = [], None
    if not keys:
        raise ValueError("no identity")
    return keys


def recipient_fingerprint(recipient: str) -> str:
    """How waybills name a sealing key; raises BadKeyText."""
    return key_fingerprint(recipient_key(recipient))
