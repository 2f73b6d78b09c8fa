"""Recipients and identities that hold against today's and a quantum adversary: ML-KEM-768 and X25519 together.

The stanza is HPKE (base mode) with KEM MLKEM768-X25519, HKDF-SHA256 and ChaCha20-Poly1305, all from `cryptography`.
Source: c2sp.org/age, "the mlkem768x25519 recipient type"; draft-ietf-hpke-pq.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache
from typing import NoReturn

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey, MLKEM768PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hpke import (
    AEAD,
    KDF,
    KEM,
    MLKEM768X25519PrivateKey,
    MLKEM768X25519PublicKey,
    Suite,
)

from not_fed.age import bech32
from not_fed.age.header import FILE_KEY_BYTES, BadContainer, Header, Stanza, decode64, encode64
from not_fed.errors import TrustError

KIND = "mlkem768x25519"
SEED_BYTES = 32
_RECIPIENT, _IDENTITY = "age1pq", "AGE-SECRET-KEY-PQ-"
_INFO = b"age-encryption.org/mlkem768x25519"
_ENCAPSULATED_BYTES = 1120
_MLKEM_PUBLIC_BYTES, _X25519_BYTES = 1184, 32
_WRAPPED_BYTES = FILE_KEY_BYTES + 16
_ANY_SCALAR = X25519PrivateKey.from_private_bytes(bytes(_X25519_BYTES))  # a multiple of 8: zero for each small order


class NotForThisKey(TrustError):
    """This is not sealed to this key."""

    code = "not-for-this-key"


class HybridIdentity:
    """The secret half of a sealing key: it opens what was sealed to `recipient`. Cannot be printed or pickled."""

    __slots__ = ("_key", "public")

    def __init__(self, seed: bytes) -> None:
        """`seed` is 32 random bytes; everything else follows from them."""
        self._key, self.public = _key_pair(seed)

    @property
    def recipient(self) -> str:
        """The public half as text, `age1pq1...`; `public` has its 1,216 bytes."""
        return _recipient_text(self.public)

    @classmethod
    def from_text(cls, text: str) -> HybridIdentity:
        """From a line `AGE-SECRET-KEY-PQ-1...`."""
        return cls(bech32.decode(text, prefix=_IDENTITY))

    def __repr__(self) -> str:
        return "HybridIdentity(hidden)"

    def __reduce__(self) -> NoReturn:
        raise TypeError("an identity stays in this process")

    def unwrap(self, header: Header, *, first: int = 0) -> bytes:
        """The file key, once the whole header is known to be well-formed and written under that key.

        Args:
            first: the stanza to begin with, where its place is known: each one that is tried costs a decapsulation.
        Raises:
            BadContainer: a stanza of another type or shape (a downgrade), or a header under another file key.
            NotForThisKey: no stanza is for this key; nothing more is said.
        """
        for stanza in header.stanzas:
            _check_stanza(stanza)
        in_turn = (*header.stanzas[first:], *header.stanzas[:first])
        found = next((file_key for stanza in in_turn if (file_key := self._try(stanza)) is not None), None)
        if found is None:
            raise NotForThisKey(
                where="sealed file", expected="a copy of its key for this identity", got="none",
                hint="ask the sender to seal it to this site",
            )  # fmt: skip
        header.check(found)
        return found

    def open(self, sealed: bytes, *, info: bytes) -> bytes:
        """What `hpke.seal` sealed to this identity's key under this info; raises NotForThisKey."""
        try:
            return suite().decrypt(sealed, self._key, info=info)
        except (InvalidTag, ValueError):
            raise NotForThisKey(
                where="sealed secret", expected="one for this key and this purpose", got="another, or a damaged one",
                hint="nothing was opened",
            ) from None  # fmt: skip

    def _try(self, stanza: Stanza) -> bytes | None:
        try:
            file_key = suite().decrypt(decode64(stanza.arguments[0]) + stanza.body, self._key, info=_INFO)
        except (InvalidTag, ValueError):
            return None
        return file_key if len(file_key) == FILE_KEY_BYTES else None


def _key_pair(seed: bytes) -> tuple[MLKEM768X25519PrivateKey, bytes]:
    """The hybrid secret key behind a seed, and its raw public half (1,216 bytes); raises BadKeyText."""
    if len(seed) != SEED_BYTES or not any(seed):
        raise bech32.BadKeyText(
            where="sealing key", expected=f"{SEED_BYTES} random bytes", got="something else",
            hint="restore the key file",
        )  # fmt: skip
    expanded = hashlib.shake_256(seed).digest(64 + _X25519_BYTES)
    mlkem = MLKEM768PrivateKey.from_seed_bytes(expanded[:64])
    x25519 = X25519PrivateKey.from_private_bytes(expanded[64:])
    public = mlkem.public_key().public_bytes_raw() + x25519.public_key().public_bytes_raw()
    return MLKEM768X25519PrivateKey(mlkem, x25519), public


def identity_text(seed: bytes) -> str:
    """The line `AGE-SECRET-KEY-PQ-1...` for an identity file."""
    return bech32.encode(_IDENTITY.lower(), seed).upper()


@lru_cache(maxsize=256)
def _recipient_text(public: bytes) -> str:
    return bech32.encode(_RECIPIENT, public)


@lru_cache(maxsize=256)  # public keys; the checksum in pure Python costs more than the key encapsulation
def recipient_key(text: str) -> bytes:
    """The raw public key (1,216 bytes) behind `age1pq1...`; raises BadKeyText."""
    raw = bech32.decode(text, prefix=_RECIPIENT)
    if len(raw) != _MLKEM_PUBLIC_BYTES + _X25519_BYTES:
        raise bech32.BadKeyText(where="recipient", expected="1,216 bytes", got=f"{len(raw):,}", hint="copy it again")
    return raw


def check_recipient(text: str) -> str:
    """`text` itself when something can be sealed to it; raises BadKeyText otherwise."""
    public_key(recipient_key(text))
    return text


def wrap(file_key: bytes, *, recipient: str) -> Stanza:
    """The stanza that lets `recipient` (`age1pq1...`) open the file."""
    sealed = suite().encrypt(file_key, public_key(recipient_key(recipient)), info=_INFO)
    return Stanza(kind=KIND, arguments=(encode64(sealed[:_ENCAPSULATED_BYTES]),), body=sealed[_ENCAPSULATED_BYTES:])


def public_key(raw: bytes) -> MLKEM768X25519PublicKey:
    """The hybrid public key behind its 1,216 bytes, when something can be sealed to it; raises BadKeyText."""
    if len(raw) != _MLKEM_PUBLIC_BYTES + _X25519_BYTES:
        raise bech32.BadKeyText(where="recipient", expected="1,216 bytes", got=f"{len(raw):,}", hint="copy it again")
    x25519 = X25519PublicKey.from_public_bytes(raw[_MLKEM_PUBLIC_BYTES:])
    try:
        mlkem = MLKEM768PublicKey.from_public_bytes(raw[:_MLKEM_PUBLIC_BYTES])
        _ANY_SCALAR.exchange(x25519)
    except ValueError:  # coefficients out of range; a point of small order, whose secret is known (RFC 7748, 6.1)
        raise bech32.BadKeyText(
            where="recipient", expected="an ML-KEM-768 key and an X25519 key", got="something else",
            hint="ask for it again",
        ) from None  # fmt: skip
    return MLKEM768X25519PublicKey(mlkem, x25519)


def suite() -> Suite:
    """The one HPKE suite of this project."""
    return Suite(KEM.MLKEM768_X25519, KDF.HKDF_SHA256, AEAD.CHACHA20_POLY1305)


def _check_stanza(stanza: Stanza) -> None:
    if stanza.kind != KIND or len(stanza.arguments) != 1:
        raise BadContainer.because("a recipient of another type than mlkem768x25519")
    if len(decode64(stanza.arguments[0])) != _ENCAPSULATED_BYTES or len(stanza.body) != _WRAPPED_BYTES:
        raise BadContainer.because("a recipient of another length")
