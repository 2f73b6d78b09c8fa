"""What a site shows the world: its name and public keys, signed by those very keys.

The two signatures prove possession: nobody can hand in somebody else's signing key as theirs; a log's keys sign too.
(A sealing key cannot sign. Whoever names another's cannot open what is then sealed to it.) They do not prove the name;
for that, people compare `fingerprint` over another channel before a steward puts the site on the roster.
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

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from not_fed import canonical, files
from not_fed.age import BadKeyText, check_recipient, recipient_key
from not_fed.errors import InputError, TrustError
from not_fed.keys import dsse
from not_fed.keys.log_keys import LogKeys, LogSigner
from not_fed.keys.signing import POLICY, Signer, SigningKeys

PAYLOAD_TYPE = "application/vnd.not-fed.identity.v1+json"
LOG_KEYS_TYPE = "application/vnd.not-fed.log-keys.v1+json"
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
    log: LogKeys | None = None

    @property
    def signing(self) -> SigningKeys:
        """The two keys that sign."""
        return SigningKeys(self.ed25519, self.ml_dsa_65)

    @property
    def fingerprint(self) -> str:
        """All keys in 13 groups of 4 letters and digits, to be read out over the telephone."""
        return fingerprint(self.ed25519, self.ml_dsa_65, self.seal, self.log)


class _Strict(BaseModel):
    model_config = ConfigDict(defer_build=True, strict=True, frozen=True, extra="forbid")


class _Log(_Strict):
    ed25519: str
    ml_dsa_44: str
    proof: Annotated[list[str], Field(min_length=2, max_length=2)]


class _Payload(_Strict):
    name: Annotated[str, StringConstraints(pattern=rf"^{NAME.pattern}\z")]
    ed25519: str
    ml_dsa_65: str
    seal: str
    log: _Log | None
    created: str
    signature_policy: Literal["ed25519+ml-dsa-65"]


def fingerprint(ed25519: bytes, ml_dsa_65: bytes, seal: str, log: LogKeys | None = None) -> str:
    """SHA-256 over a member's keys, in groups of four: the three, and the log's two where it keeps one."""
    return spoken(ed25519, ml_dsa_65, recipient_key(seal), *((log.ed25519, log.ml_dsa_44) if log else ()))


def spoken(*keys: bytes) -> str:
    """SHA-256 over raw keys, each after its length, as base32 in 13 groups of four.

    Lower-case letters and the digits 2 to 7: nobody on the telephone confuses o with 0, or l with 1.
    """
    digest = hashlib.sha256()
    for raw in keys:
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


def sign_identity(signer: Signer, *, seal: str, now: datetime, log: LogSigner | None = None) -> bytes:
    """The signed line that `read_identity` accepts."""
    payload = _Payload(
        name=check_name(signer.name), ed25519=encode(signer.public.ed25519), ml_dsa_65=encode(signer.public.ml_dsa_65),
        seal=seal, log=_prove_log(signer, log) if log else None, created=canonical.format_time(now),
        signature_policy=POLICY,
    )  # fmt: skip
    return dsse.sign(canonical.dumps(payload.model_dump()), payload_type=PAYLOAD_TYPE, signer=signer)


def _prove_log(signer: Signer, log: LogSigner) -> _Log:
    message = _log_message(signer.name, signer.public, log.public)
    proof = [encode(log.sign_ed25519(message)), encode(log.sign_ml_dsa_44(message))]
    return _Log(ed25519=encode(log.public.ed25519), ml_dsa_44=encode(log.public.ml_dsa_44), proof=proof)


def _log_message(name: str, signing: SigningKeys, log: LogKeys) -> bytes:
    """What a log's keys sign to belong to these signing keys; begins with "DSSEv1", as no checkpoint does."""
    return dsse.pae(LOG_KEYS_TYPE, canonical.dumps({"name": name, "signing": signing.key_ids, "log": log.key_ids}))


def read_identity(line: bytes, *, where: str) -> PublicIdentity:
    """Check an identity's shape and both signatures by the keys it names.

    Raises:
        MalformedSigned, NewerFormat: as dsse.parse. IdentityRefused: a key is malformed, or did not sign.
    """
    unverified = dsse.parse(line, payload_type=PAYLOAD_TYPE, where=where, max_bytes=MAX_IDENTITY_BYTES)
    try:
        payload = _Payload.model_validate(canonical.loads(unverified.payload, where=where))
        signing = SigningKeys(decode(payload.ed25519), decode(payload.ml_dsa_65))
        log = _read_log(payload.log, payload.name, signing)
        identity = PublicIdentity(
            name=payload.name, ed25519=signing.ed25519, ml_dsa_65=signing.ml_dsa_65,
            seal=check_recipient(payload.seal), created=canonical.parse_time(payload.created), log=log,
        )  # fmt: skip
        unverified.verify(signing)
    except (ValidationError, ValueError, canonical.BadJson, BadKeyText) as error:
        raise _refused(where, "a malformed key or field") from error
    except dsse.BadSignature as error:
        raise _refused(where, "keys that did not sign it") from error
    return identity


def _read_log(payload: _Log | None, name: str, signing: SigningKeys) -> LogKeys | None:
    if payload is None:
        return None
    keys = LogKeys(decode(payload.ed25519), decode(payload.ml_dsa_44))
    first, second = (decode(text) for text in payload.proof)
    if not keys.both_signed(_log_message(name, signing, keys), (first, second)):
        raise ValueError("log keys that did not sign")
    return keys


def encode(raw: bytes) -> str:
    """Padded base64, as keys stand in signed objects."""
    return base64.b64encode(raw).decode()


def decode(text: str) -> bytes:
    """Its inverse; raises ValueError."""
    return base64.b64decode(text, validate=True)


def load_public_identity(path: Path) -> PublicIdentity:
    """The identity in a file, checked; or of a key folder, when `path` is one. Errors as `read_identity`."""
    files.recover_folder(path)
    file = path / "identity.json" if os.path.isdir(path) else path  # noqa: PTH112  Path.is_dir raises on odd names
    line = files.read_regular(file, max_bytes=MAX_IDENTITY_BYTES)
    return read_identity(line.removesuffix(b"\n"), where=str(path.name))


def _refused(where: str, got: str) -> IdentityRefused:
    return IdentityRefused(
        where=where,
        expected="an identity signed by its own keys",
        got=got,
        hint="ask the site for another copy",
    )
