"""The old keys' word for the new ones, so that a steward can enrol a rotated identity without another telephone call.

It moves the trust that the old keys had, and no more: whoever stole them can write one too. After a theft the member is
revoked and compares fingerprints again.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Annotated

from pydantic import BaseModel, ConfigDict, StringConstraints, ValidationError

from not_fed import canonical
from not_fed.errors import TrustError
from not_fed.keys import dsse
from not_fed.keys.identity import NAME, PublicIdentity
from not_fed.keys.signing import Signer, SigningKeys

PAYLOAD_TYPE = "application/vnd.not-fed.succession.v1+json"
MAX_SUCCESSION_BYTES = 16 * 1024
_Fingerprint = Annotated[str, StringConstraints(pattern=r"^[a-z2-7]{4}( [a-z2-7]{4}){12}\z")]


class SuccessionRefused(TrustError):
    """The old keys did not name these new ones as theirs."""

    code = "succession-refused"


@dataclass(frozen=True, slots=True)
class Succession:
    """Old keys naming new ones: `old` and `new` are the fingerprints of two identities of `name`."""

    name: str
    old: str
    new: str
    issued: datetime

    def check(self, *, name: str, old: str, new: PublicIdentity) -> None:
        """Raises SuccessionRefused unless it leads from the member `name` with the fingerprint `old` to `new`.

        Proved by: tests/attacks/test_keys_public.py::test_a_succession_serves_one_name_and_two_identities
        """
        if (self.name, self.old, self.name, self.new) != (name, old, new.name, new.fingerprint):
            raise SuccessionRefused(
                where="succession", expected=f"one from the keys of {name} on record to the new identity",
                got="another name or other keys", hint="nothing was changed; compare the new fingerprint by telephone",
            )  # fmt: skip


class _Payload(BaseModel):
    model_config = ConfigDict(defer_build=True, strict=True, frozen=True, extra="forbid")

    name: Annotated[str, StringConstraints(pattern=rf"^{NAME.pattern}\z")]
    old: _Fingerprint
    new: _Fingerprint
    issued: str


def sign_succession(signer: Signer, *, old: PublicIdentity, new: PublicIdentity, now: datetime) -> bytes:
    """The signed line; `signer` holds the old keys."""
    payload = _Payload(name=old.name, old=old.fingerprint, new=new.fingerprint, issued=canonical.format_time(now))
    return dsse.sign(canonical.dumps(payload.model_dump()), payload_type=PAYLOAD_TYPE, signer=signer)


def read_succession(line: bytes, *, old: SigningKeys) -> Succession:
    """Check its shape and both signatures by the old keys; `check` then says whether it is about this member.

    Raises:
        MalformedSigned, NewerFormat: as dsse.parse. BadSignature: other keys signed it.
    """
    unverified = dsse.parse(line, payload_type=PAYLOAD_TYPE, where="succession", max_bytes=MAX_SUCCESSION_BYTES)
    try:
        payload = _Payload.model_validate(canonical.loads(unverified.payload, where="succession"))
        succession = Succession(payload.name, payload.old, payload.new, canonical.parse_time(payload.issued))
    except (ValidationError, ValueError, canonical.BadJson):
        raise dsse.MalformedSigned.because("other fields or values", where="succession") from None
    unverified.verify(old)
    return succession
