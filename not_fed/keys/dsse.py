"""DSSE 1.0.2 envelopes with exactly two signatures, in one spelling.

    {"payload":base64,"payloadType":T,"signatures":[{"keyid":fp,"sig":base64},{"keyid":fp,"sig":base64}]}

One line, these keys, sorted, no spaces, padded base64, Ed25519 first. DSSE leaves open what several signatures mean;
here both are required, from the two keys that the verifier expects, and a third is refused.
Source: https://github.com/secure-systems-lab/dsse/blob/master/protocol.md
"""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass
from typing import Any

from not_fed import canonical
from not_fed.errors import TrustError
from not_fed.keys.signing import Signer, SigningKeys

MAX_LINE_BYTES = 1 << 20


class MalformedSigned(TrustError):
    """A signed object does not have the shape that such objects have."""

    code = "signed-malformed"

    @classmethod
    def because(
        cls, got: str, *, where: str, expected: str = "a signed object as docs/format.md has it"
    ) -> MalformedSigned:
        """The error for one observation."""
        return cls(where=where, expected=expected, got=got, hint="nothing of it was used; ask its sender")


class BadSignature(TrustError):
    """Not signed by whom it should be, or changed after signing."""

    code = "signature-refused"


class NewerFormat(TrustError):
    """Made by a newer not-fed, in a format that this one does not know."""

    code = "newer-format"


@dataclass(frozen=True, slots=True)
class Unverified:
    """A parsed envelope. Its payload is a claim until `verify` returned."""

    line: bytes
    payload: bytes
    payload_type: str
    key_ids: tuple[str, str]
    signatures: tuple[bytes, bytes]
    where: str

    def verify(self, keys: SigningKeys) -> bytes:
        """The payload, now known to be signed by both `keys`; raises BadSignature."""
        message = pae(self.payload_type, self.payload)
        if self.key_ids != keys.key_ids or not keys.both_signed(message, self.signatures):
            raise BadSignature(
                where=self.where, expected="Ed25519 and ML-DSA-65 signatures by the key on record",
                got=f"keys {self.key_ids[0][:12]} and {self.key_ids[1][:12]}",
                hint="fetch the newest roster; if it is still refused, tell whoever sent it",
            )  # fmt: skip
        return self.payload


def pae(payload_type: str, payload: bytes) -> bytes:
    """DSSE's pre-authentication encoding: what is really signed."""
    kind = payload_type.encode()
    return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)


def sign(payload: bytes, *, payload_type: str, signer: Signer) -> bytes:
    """The signed line, without a line feed."""
    signatures = signer.sign(pae(payload_type, payload))
    return _line(payload, payload_type, signer.public.key_ids, signatures)


def parse(line: bytes, *, payload_type: str, where: str, max_bytes: int = MAX_LINE_BYTES) -> Unverified:
    """Read an envelope of one type, strictly.

    Raises:
        MalformedSigned: any other shape or spelling. NewerFormat: the same type in a later version.
    """
    if len(line) > max_bytes:
        raise MalformedSigned.because(f"more than {max_bytes:,} bytes", where=where)
    try:
        value = canonical.loads(line, where=where)
        payload, got_type, entries = _fields(value)
        key_ids = (entries[0]["keyid"], entries[1]["keyid"])
        signatures = (_decode(entries[0]["sig"]), _decode(entries[1]["sig"]))
    except (canonical.BadJson, binascii.Error, ValueError, TypeError, KeyError) as error:
        raise MalformedSigned.because(_reason(error), where=where) from None
    if got_type != payload_type:
        raise _other_type(got_type, payload_type, where)
    if _line(payload, got_type, key_ids, signatures) != line:
        raise MalformedSigned.because("another spelling than the canonical one", where=where)
    return Unverified(line, payload, got_type, key_ids, signatures, where)


def _fields(value: Any) -> tuple[bytes, str, list[dict[str, str]]]:  # noqa: ANN401  JSON that nobody has checked
    if not isinstance(value, dict) or set(value) != {"payload", "payloadType", "signatures"}:
        raise ValueError("other fields than payload, payloadType and signatures")
    entries = value["signatures"]
    if not isinstance(entries, list) or len(entries) != 2:
        raise ValueError("another number of signatures than two")
    for entry in entries:
        if not isinstance(entry, dict) or set(entry) != {"keyid", "sig"}:
            raise ValueError("a signature with other fields than keyid and sig")
        if not isinstance(entry["keyid"], str) or not isinstance(entry["sig"], str):
            raise ValueError("a signature whose fields are not text")
    if not isinstance(value["payload"], str) or not isinstance(value["payloadType"], str):
        raise ValueError("fields that are not text")
    return _decode(value["payload"]), value["payloadType"], entries


def _decode(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise ValueError("malformed base64") from None


def _line(payload: bytes, payload_type: str, key_ids: tuple[str, str], signatures: tuple[bytes, bytes]) -> bytes:
    entries = [
        {"keyid": key_id, "sig": base64.b64encode(signature).decode()}
        for key_id, signature in zip(key_ids, signatures, strict=True)
    ]
    return canonical.dumps(
        {"payload": base64.b64encode(payload).decode(), "payloadType": payload_type, "signatures": entries}
    )


def _reason(error: Exception) -> str:
    return error.got if isinstance(error, canonical.BadJson) else str(error)


def _other_type(got: str, expected: str, where: str) -> TrustError:
    family = expected.partition(".v1+json")[0]
    if got.startswith(f"{family}.v") and got.endswith("+json"):
        return NewerFormat(where=where, expected=expected, got="another version", hint="update not-fed")
    return MalformedSigned.because("another type of signed object", where=where, expected=expected)
