"""The label: what the relay may know. Outside the seal, signed by the sender, checked without any decryption key."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, model_validator

from not_fed.envelope.claims import Count
from not_fed.envelope.dsse import Moment, Name, Sha256, Statement, check_validity, parse_statement, sign_statement
from not_fed.envelope.passport import Round
from not_fed.envelope.waybill import MAX_RECIPIENTS
from not_fed.errors import TrustError
from not_fed.keys import dsse
from not_fed.keys.signing import Signer
from not_fed.trust.members import TrustedRoster

PAYLOAD_TYPE = "application/vnd.not-fed.label.v1+json"
MAX_LABEL_BYTES = 64 * 1024
RECIPIENT_ROLES = ("receiver", "aggregator")


class LabelMismatch(TrustError):
    """The label belongs to another sealed organ."""

    code = "label-mismatch"


class SealedFile(Statement):
    """Digest and size of the ciphertext."""

    sha256: Sha256
    size_bytes: Count


class Label(Statement):
    """`sender` is `from` in the JSON."""

    federation: Name
    round: Round
    sender: Annotated[Name, Field(alias="from")]
    to: Annotated[tuple[Name, ...], Field(min_length=1, max_length=MAX_RECIPIENTS)]
    issued: Moment
    expires: Moment
    sealed: SealedFile

    @model_validator(mode="after")
    def _sorted_and_distinct(self) -> Self:
        if list(self.to) != sorted(set(self.to)):
            raise ValueError("recipients, sorted, each once")
        return self

    def check_digest(self, sealed_sha256: str) -> None:
        """Raises LabelMismatch unless it was made for the sealed file of that digest."""
        if self.sealed.sha256 != sealed_sha256:
            raise _mismatch(f"SHA-256 {self.sealed.sha256[:16]}...", f"{sealed_sha256[:16]}...")


def write_label(
    *, federation: str, round_number: int, signer: Signer, to: Sequence[str], issued: datetime, expires: datetime,
    sealed_sha256: str, size_bytes: int,
) -> bytes:  # fmt: skip
    """The signed line, without a line feed."""
    label = Label(
        federation=federation, round=round_number, sender=signer.name, to=tuple(sorted(to)), issued=issued,
        expires=expires, sealed=SealedFile(sha256=sealed_sha256, size_bytes=size_bytes),
    )  # fmt: skip
    return sign_statement(label, payload_type=PAYLOAD_TYPE, signer=signer)


def label_path(sealed: Path) -> Path:
    """Where a sealed organ's label lies: beside it, `<name>.label`."""
    return sealed.parent / f"{sealed.name}.label"  # of "." too, which has no name and is refused later


def parse_label(line: bytes) -> tuple[dsse.Unverified, Label]:
    """The envelope and what it claims, unverified, with or without the file's line feed; raises MalformedSigned."""
    return parse_statement(
        line.removesuffix(b"\n"), Label, payload_type=PAYLOAD_TYPE, where="label", max_bytes=MAX_LABEL_BYTES
    )


def is_own_label(line: bytes, *, signer: Signer) -> bool:
    """Whether this is a label that `signer` signed, for whatever sealed file."""
    try:
        unverified, claimed = parse_label(line)
        unverified.verify(signer.public)
    except TrustError:
        return False
    return claimed.sender == signer.name


def check_label(label: bytes, *, sealed_sha256: str, size_bytes: int, roster: TrustedRoster, now: datetime) -> Label:
    """What a relay checks before it stores or forwards a sealed organ: no key needed, nothing decrypted.

    Raises:
        MalformedSigned, NewerFormat, BadSignature, KeysRetired, Stale, LabelMismatch; UnknownMember, MemberNotActive,
        WrongRole.
    Guarantees: who sent it, to whom, in which federation and round; not what is inside.
    Proved by: tests/attacks/test_signatures.py
    """
    claimed = read_label(label, size_bytes=size_bytes, roster=roster, now=now)
    claimed.check_digest(sealed_sha256)
    return claimed


def read_label(label: bytes, *, size_bytes: int, roster: TrustedRoster, now: datetime) -> Label:
    """All of `check_label` but the digest, which whoever decrypts computes on the way: `Label.check_digest`."""
    unverified, claimed = parse_label(label)
    if claimed.federation != roster.federation:
        raise _mismatch(f"federation {roster.federation}", claimed.federation)
    sender = roster.member(claimed.sender, now=now)
    unverified.verify(sender.signing_for(unverified.key_ids, at=claimed.issued))
    check_validity(issued=claimed.issued, expires=claimed.expires, now=now, where="label")
    if claimed.sealed.size_bytes != size_bytes:
        raise _mismatch(f"{claimed.sealed.size_bytes:,} bytes", f"{size_bytes:,}")
    for name in claimed.to:
        roster.member(name, role=RECIPIENT_ROLES, now=now)
    return claimed


def _mismatch(expected: str, got: str) -> LabelMismatch:
    return LabelMismatch(where="label", expected=expected, got=got, hint="ask the sender for both files again")
