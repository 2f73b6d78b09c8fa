"""What a steward shows the others: the public half of `roster.key`, signed by it.

The same proof of possession as in a site's identity, with other keys and another type, so that neither passes for the
other. The roster keys themselves sign only this and, through TUF, rosters.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, StringConstraints, ValidationError

from not_fed import canonical, files
from not_fed.keys import dsse
from not_fed.keys.identity import MAX_IDENTITY_BYTES, NAME, IdentityRefused, check_name, decode, encode, spoken
from not_fed.keys.signing import POLICY, FileSigner, SigningKeys, Steward

PAYLOAD_TYPE = "application/vnd.not-fed.steward.v1+json"


@dataclass(frozen=True, slots=True)
class StewardIdentity:
    """A steward's name with the public keys; `read_steward_identity` has checked that both signed."""

    name: str
    keys: SigningKeys
    created: datetime

    @property
    def fingerprint(self) -> str:
        """Both keys in 13 groups of 4 letters and digits."""
        return spoken(self.keys.ed25519, self.keys.ml_dsa_65)


class _Payload(BaseModel):
    model_config = ConfigDict(defer_build=True, strict=True, frozen=True, extra="forbid")

    name: Annotated[str, StringConstraints(pattern=rf"^{NAME.pattern}\z")]
    ed25519: str
    ml_dsa_65: str
    created: str
    signature_policy: Literal["ed25519+ml-dsa-65"]


def sign_steward_identity(steward: Steward, *, now: datetime) -> bytes:
    """The signed line that `read_steward_identity` accepts."""
    payload = _Payload(
        name=check_name(steward.name), ed25519=encode(steward.public.ed25519),
        ml_dsa_65=encode(steward.public.ml_dsa_65), created=canonical.format_time(now), signature_policy=POLICY,
    )  # fmt: skip
    ed25519, ml_dsa_65 = steward.private_keys()
    signer = FileSigner(steward.name, ed25519=ed25519, ml_dsa_65=ml_dsa_65)  # leaves this function in no way
    return dsse.sign(canonical.dumps(payload.model_dump()), payload_type=PAYLOAD_TYPE, signer=signer)


def read_steward_identity(line: bytes, *, where: str) -> StewardIdentity:
    """Check its shape and both signatures by the keys it names.

    Raises:
        MalformedSigned, NewerFormat: as dsse.parse; a site's identity is none. IdentityRefused: a key is malformed, or
        did not sign.
    """
    unverified = dsse.parse(line, payload_type=PAYLOAD_TYPE, where=where, max_bytes=MAX_IDENTITY_BYTES)
    try:
        payload = _Payload.model_validate(canonical.loads(unverified.payload, where=where))
        keys = SigningKeys(decode(payload.ed25519), decode(payload.ml_dsa_65))
        identity = StewardIdentity(payload.name, keys, canonical.parse_time(payload.created))
        unverified.verify(keys)
    except (ValidationError, ValueError, canonical.BadJson) as error:
        raise _refused(where, "a malformed key or field") from error
    except dsse.BadSignature as error:
        raise _refused(where, "keys that did not sign it") from error
    return identity


def load_steward_identity(path: Path) -> StewardIdentity:
    """The identity in a file, checked; or of a steward's key folder. Errors as `read_steward_identity`."""
    files.recover_folder(path)
    file = path / "steward.json" if os.path.isdir(path) else path  # noqa: PTH112  Path.is_dir raises on odd names
    line = files.read_regular(file, max_bytes=MAX_IDENTITY_BYTES)
    return read_steward_identity(line.removesuffix(b"\n"), where=str(path.name))


def _refused(where: str, got: str) -> IdentityRefused:
    return IdentityRefused(
        where=where, expected="a steward's identity signed by its own two keys", got=got,
        hint="ask the steward for another copy of steward.json",
    )  # fmt: skip
