"""What a site shows the world: its name and public keys, signed by those very keys.

The two signatures prove possession: nobody can hand in somebody else's signing key as theirs. They do not prove the
name; for that, people compare `fingerprint` over another channel before a steward puts the site on the roster.
"""

from __future__ import annotations

import base64
import hashlib
import os
import re
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, StringConstraints, ValidationError

from not_fed import canonical, files
from not_fed.age import BadKeyText, check_recipient, recipient_key
from not_fed.errors import InputError, TrustError
from not_fed.keys import dsse
from not_fed.keys.signing import POLICY, Signer, SigningKeys

PAYLOAD_TYPE = "application/vnd.not-fed.identity.v1+json"
MAX_IDENTITY_BYTES = 64 * 1024
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


class IdentityRefused(TrustError):
    """This identity does not prove that its keys are its own."""

    code = "identity-refused"


class BadName(InputError):
    """This cannot be the name of a site or a federation."""

    code = "bad-name"


@dataclass(frozen=True, slots=True)
class PublicIdentity:
    """A name with its public keys; `read_identity` has checked that the holder signed it with both."""

    name: str
    ed25519: bytes
    ml_dsa_65: bytes
    seal: str
    created: datetime

    @property
    def signing(self) -> SigningKeys:
        """The two keys that sign."""
        return SigningKeys(self.ed25519, self.ml_dsa_65)

    @property
    def fingerprint(self) -> str:
        """All three keys in 13 groups of 4 letters and digits, to be read out over the telephone."""
        return fingerprint(self.ed25519, self.ml_dsa_65, self.seal)


class _Payload(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")

    name: Annotated[str, StringConstraints(pattern=rf"^{NAME.pattern}\z")]
    ed25519: str
    ml_dsa_65: str
    seal: str
    created: str
    signature_policy: Literal["ed25519+ml-dsa-65"]


def fingerprint(ed25519: bytes, ml_dsa_65: bytes, seal: str) -> str:
    """SHA-256 over the three keys, each after its length, as base32 in groups of four."""
    digest = hashlib.sha256()
    for raw in (ed25519, ml_dsa_65, recipient_key(seal)):
        digest.update(len(raw).to_bytes(4, "big") + raw)
    text = base64.b32encode(digest.digest()).decode().rstrip("=").lower()
    return " ".join(text[at : at + 4] for at in range(0, len(text), 4))


def check_name(name: str) -> str:
    """`name` itself when a site or a federation may be called that; raises BadName."""
    if not NAME.fullmatch(name):
        raise BadName(
            where="name", expected="letters, digits, dots, dashes and underscores, at most 64",
            got=f"{len(name)} characters", hint="for example clinic-north",
        )  # fmt: skip
    return name


def sign_identity(signer: Signer, *, seal: str, now: datetime) -> bytes:
    """The signed line that `read_identity` accepts."""
    payload = _Payload(
        name=check_name(signer.name), ed25519=base64.b64encode(signer.public.ed25519).decode(),
        ml_dsa_65=base64.b64encode(signer.public.ml_dsa_65).decode(), seal=seal,
        created=canonical.format_time(now), signature_policy=POLICY,
    )  # fmt: skip
    return dsse.sign(canonical.dumps(payload.model_dump()), payload_type=PAYLOAD_TYPE, signer=signer)


def read_identity(line: bytes, *, where: str) -> PublicIdentity:
    """Check an identity's shape and both signatures by the keys it names.

    Raises:
        MalformedSigned, NewerFormat: as dsse.parse. IdentityRefused: a key is malformed, or did not sign.
    """
    unverified = dsse.parse(line, payload_type=PAYLOAD_TYPE, where=where, max_bytes=MAX_IDENTITY_BYTES)
    try:
        payload = _Payload.model_validate(canonical.loads(unverified.payload, where=where))
        identity = PublicIdentity(
            name=payload.name, ed25519=base64.b64decode(payload.ed25519, validate=True),
            ml_dsa_65=base64.b64decode(payload.ml_dsa_65, validate=True), seal=check_recipient(payload.seal),
            created=canonical.parse_time(payload.created),
        )  # fmt: skip
        unverified.verify(identity.signing)
    except (ValidationError, ValueError, canonical.BadJson, BadKeyText) as error:
        raise _refused(where, "a malformed key or field") from error
    except dsse.BadSignature as error:
        raise _refused(where, "keys that did not sign it") from error
    return identity


def load_public_identity(path: Path) -> PublicIdentity:
    """The identity in a file, checked; or of a key folder, when `path` is one. Errors as `read_identity`."""
    file = path / "identity.json" if os.path.isdir(path) else path  # noqa: PTH112  Path.is_dir raises on odd names
    line = files.read_regular(file, max_bytes=MAX_IDENTITY_BYTES)
    return read_identity(line.removesuffix(b"\n"), where=str(path.name))


def _refused(where: str, got: str) -> IdentityRefused:
    return IdentityRefused(
        where=where,
        expected="an identity signed by its own two keys",
        got=got,
        hint="ask the site for another copy",
    )
