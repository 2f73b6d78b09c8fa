"""Signed notes (c2sp.org/signed-note) and the two kinds of signature that a log of ours puts on them.

    text LF  LF  1*32( "— " name SP base64(key id(4) || signature) LF )

0x01 is Ed25519 over the text; 0x06 is ML-DSA-44 over c2sp.org/tlog-cosignature's `cosigned_message`, with the time.
Reading is strict and decides nothing about trust: that is `log.verify_checkpoint`.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from dataclasses import dataclass
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA44PublicKey

from not_fed.errors import TrustError

ED25519_TYPE: Final = b"\x01"
ML_DSA_44_TYPE: Final = b"\x06"
TIMESTAMP_BYTES: Final = 8
KEY_ID_BYTES: Final = 4
MAX_NOTE_BYTES: Final = 256 * 1024
MAX_SIGNATURES: Final = 32  # C2SP asks verifiers to take at least 16
_DASH: Final = "\N{EM DASH} "
_CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f]")
_DECIMAL = re.compile(r"0|[1-9][0-9]{0,18}")


class NoteMalformed(TrustError):
    """A text of the log does not have the shape that such texts have."""

    code = "log-note-malformed"

    @classmethod
    def because(cls, got: str, *, where: str, expected: str = "a text as docs/format.md has it") -> NoteMalformed:
        """The error for one observation."""
        return cls(where=where, expected=expected, got=got, hint="nothing of it was used; ask for another copy")


@dataclass(frozen=True, slots=True)
class NoteSignature:
    """One signature line, of a key that may be unknown."""

    name: str
    key_id: bytes
    value: bytes


@dataclass(frozen=True, slots=True)
class Note:
    """A parsed note. Its text is a claim until its signatures are checked."""

    text: bytes
    signatures: tuple[NoteSignature, ...]

    def by(self, name: str, key_id: bytes) -> tuple[bytes, ...]:
        """The signatures of one key; all others are ignored, as the specification asks."""
        return tuple(line.value for line in self.signatures if (line.name, line.key_id) == (name, key_id))


def key_id(name: str, kind: bytes, public: bytes) -> bytes:
    """How a note names a key: four bytes, an identifier and no commitment."""
    return hashlib.sha256(name.encode() + b"\n" + kind + public).digest()[:KEY_ID_BYTES]


def verifier_key(name: str, kind: bytes, public: bytes) -> str:
    """A key as other implementations are configured with it: C2SP's `vkey`."""
    return f"{name}+{key_id(name, kind, public).hex()}+{encode(kind + public)}"


def write_note(text: bytes, signatures: tuple[NoteSignature, ...]) -> bytes:
    """The note; `text` ends with a line feed."""
    lines = "".join(f"{_DASH}{line.name} {encode(line.key_id + line.value)}\n" for line in signatures)
    return text + b"\n" + lines.encode()


def read_note(data: bytes, *, where: str) -> Note:
    """Read a signed note, strictly.

    Raises:
        NoteMalformed: too long, not UTF-8, control characters, no or too many signatures, or another spelling.
    """
    if len(data) > MAX_NOTE_BYTES:
        raise NoteMalformed.because(f"more than {MAX_NOTE_BYTES:,} bytes", where=where)
    text, blank, rest = read_text(data, where=where).rpartition("\n\n")
    lines = rest.split("\n")
    if not blank or not text or lines.pop() or not lines:
        raise NoteMalformed.because("no text, blank line and signature lines", where=where)
    if len(lines) > MAX_SIGNATURES:
        raise NoteMalformed.because(f"more than {MAX_SIGNATURES} signatures", where=where)
    return Note(text.encode() + b"\n", tuple(_read_signature(line, where) for line in lines))


def read_text(data: bytes, *, where: str) -> str:
    """UTF-8 without control characters other than line feed; raises NoteMalformed."""
    try:
        text = data.decode("utf-8", "strict")
    except UnicodeDecodeError:
        raise NoteMalformed.because("bytes that are not UTF-8", where=where) from None
    if _CONTROL.search(text):
        raise NoteMalformed.because("control characters", where=where)
    return text


def encode(raw: bytes) -> str:
    """Standard base64 with padding."""
    return base64.b64encode(raw).decode()


def decode(text: str, *, where: str) -> bytes:
    """The bytes behind canonical base64; raises NoteMalformed for any other spelling."""
    try:
        raw = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise NoteMalformed.because("malformed base64", where=where) from None
    if encode(raw) != text:
        raise NoteMalformed.because("base64 in another spelling than the canonical one", where=where)
    return raw


def read_number(text: str, *, where: str) -> int:
    """A decimal below 2**63 without leading zeroes; raises NoteMalformed."""
    number = int(text) if _DECIMAL.fullmatch(text) else -1
    if not 0 <= number < 1 << 63:
        raise NoteMalformed.because("no decimal number below 2^63", where=where)
    return number


def ed25519_signed(text: bytes, signature: bytes, *, public: bytes) -> bool:
    """Whether a 0x01 signature is over the note's text; false for keys and signatures of any other shape."""
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(signature, text)
    except (InvalidSignature, ValueError):
        return False
    return True


def ml_dsa_44_signed(message: bytes, signature: bytes, *, public: bytes) -> bool:
    """Whether an ML-DSA-44 signature, without its timestamp, is over `message`."""
    try:
        MLDSA44PublicKey.from_public_bytes(public).verify(signature, message)
    except (InvalidSignature, ValueError):
        return False
    return True


def cosigned_message(cosigner: str, *, timestamp: int, origin: str, size: int, root: bytes) -> bytes:
    """What a 0x06 cosignature of a whole tree signs (c2sp.org/tlog-cosignature, "ML-DSA-44 signed message")."""
    start = 0
    return b"".join((
        b"subtree/v1\n\0", _short(cosigner), timestamp.to_bytes(8, "big"), _short(origin), start.to_bytes(8, "big"),
        size.to_bytes(8, "big"), root,
    ))  # fmt: skip


def _short(text: str) -> bytes:
    """opaque text<1..2^8-1> of RFC 8446, section 3.4; raises ValueError or OverflowError beyond."""
    raw = text.encode()
    if not raw:
        raise ValueError("an empty name")
    return len(raw).to_bytes(1, "big") + raw


def _read_signature(line: str, where: str) -> NoteSignature:
    name, space, value = line.removeprefix(_DASH).partition(" ")
    if not line.startswith(_DASH) or not space or not name or "+" in name or any(char.isspace() for char in name):
        raise NoteMalformed.because("a signature line of another form", where=where)
    raw = decode(value, where=where)
    if len(raw) <= KEY_ID_BYTES:
        raise NoteMalformed.because("a signature without a key id or without a value", where=where)
    return NoteSignature(name, raw[:KEY_ID_BYTES], raw[KEY_ID_BYTES:])
