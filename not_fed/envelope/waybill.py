"""The waybill: who sends this organ to whom, in which round. Inside the seal, and the last word on all of it.

It names every recipient with their key, so that a recipient cannot pass the organ on as if it had been meant for
somebody else (Davis 2001, "Defective Sign & Encrypt").
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from datetime import datetime
from typing import Annotated

from pydantic import Field, StringConstraints

from not_fed.envelope.claims import Count
from not_fed.envelope.dsse import Moment, Name, Sha256, Statement, sign_statement
from not_fed.envelope.dsse import parse_statement as _parse
from not_fed.envelope.passport import Passport, Round
from not_fed.errors import TrustError
from not_fed.keys import dsse
from not_fed.keys.signing import Signer

PAYLOAD_TYPE = "application/vnd.not-fed.waybill.v1+json"
MAX_WAYBILL_BYTES = 64 * 1024
MAX_RECIPIENTS = 250


class WaybillReplayed(TrustError):
    """This very waybill was opened before."""

    code = "waybill-replayed"

    @classmethod
    def seen(cls, waybill_key: str) -> WaybillReplayed:
        """For a memory of waybills that has this one."""
        return cls(
            where="waybill", expected="one that is new here", got=f"{waybill_key[:80]}, opened before",
            hint="nothing was written; the organ is where it was opened to",
        )  # fmt: skip


class SealedOrgan(Statement):
    """The organ's digest and size."""

    sha256: Sha256
    size_bytes: Count


class Waybill(Statement):
    """`sender` is `from` in the JSON; `to` maps each recipient's name to the fingerprint of its sealing key."""

    id: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{32}\z")]
    federation: Name
    round: Round
    sender: Annotated[Name, Field(alias="from")]
    to: Annotated[dict[Name, Sha256], Field(min_length=1, max_length=MAX_RECIPIENTS)]
    organ: SealedOrgan
    passport_sha256: Sha256
    issued: Moment
    expires: Moment
    pad: Annotated[int, Field(ge=0, le=1 << 40)]

    @property
    def key(self) -> str:
        """How a memory knows it: with its sender, so that nobody uses up the number of somebody else's waybill."""
        return f"{self.sender}/{self.id}"


def write_waybill(
    passport: Passport, *, passport_sha256: str, signer: Signer, to: Mapping[str, str], round_number: int,
    issued: datetime, expires: datetime, pad: int,
) -> tuple[Waybill, bytes]:  # fmt: skip
    """A new waybill with an id of its own, and its signed line."""
    waybill = Waybill(
        id=secrets.token_hex(16), federation=passport.federation, round=round_number, sender=signer.name, to=dict(to),
        organ=SealedOrgan(sha256=passport.organ_sha256, size_bytes=passport.organ_size_bytes),
        passport_sha256=passport_sha256, issued=issued, expires=expires, pad=pad,
    )  # fmt: skip
    return waybill, sign_statement(waybill, payload_type=PAYLOAD_TYPE, signer=signer)


def parse_waybill(line: bytes) -> tuple[dsse.Unverified, Waybill]:
    """The envelope and what it claims, unverified; raises MalformedSigned or NewerFormat."""
    return _parse(line, Waybill, payload_type=PAYLOAD_TYPE, where="waybill", max_bytes=MAX_WAYBILL_BYTES)
