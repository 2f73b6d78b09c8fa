"""Two signatures over the same bytes, Ed25519 and ML-DSA-65, and never one alone.

Whoever breaks one of the two algorithms has forged nothing. The keys serve this purpose only (every message begins with
"DSSEv1"), so that a signature cannot be borrowed from another protocol. `Signer` is all that the rest of not-fed knows
of a private key; `FileSigner` holds both in memory, `pkcs11.Pkcs11Signer` leaves Ed25519 in a token.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Final, NoReturn, Protocol, Self, TypeAlias

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA44PrivateKey, MLDSA65PrivateKey, MLDSA65PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

ED25519_BYTES, ML_DSA_44_BYTES, ML_DSA_65_BYTES = 32, 1312, 1952
PrivateKey: TypeAlias = Ed25519PrivateKey | MLDSA44PrivateKey | MLDSA65PrivateKey
POLICY: Final = "ed25519+ml-dsa-65"
_PEM_END = b"-----END PRIVATE KEY-----\n"
_SIGN_BIT = 0x7F
# The encodings of the eight points of small order, sign bit aside (libsodium's ge25519_has_small_order; RFC 8032, 5.1).
# Under such a "key" anybody's constant signature holds for one message in eight, or for all; OpenSSL takes it.
_SMALL_ORDER = frozenset(
    bytes.fromhex(text)
    for text in (
        "00" * 32, "01" + "00" * 31, "ec" + "ff" * 30 + "7f", "ed" + "ff" * 30 + "7f", "ee" + "ff" * 30 + "7f",
        "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
        "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
    )
)  # fmt: skip


def key_fingerprint(raw: bytes) -> str:
    """How a public key is named in signed objects: hex SHA-256 under a domain of our own."""
    return hashlib.sha256(b"not-fed/key/v1\0" + raw).hexdigest()


def check_ed25519(raw: bytes) -> bytes:
    """`raw` itself when it can be somebody's public key; raises ValueError."""
    if len(raw) != ED25519_BYTES or raw[:-1] + bytes([raw[-1] & _SIGN_BIT]) in _SMALL_ORDER:
        raise ValueError("an Ed25519 key of another length or of small order")
    return raw


@dataclass(frozen=True, slots=True)
class SigningKeys:
    """The public half: both raw keys; ValueError for what cannot be a key.

    Proved by: tests/attacks/test_keys_public.py::test_a_public_key_under_which_anybody_can_sign_is_refused
    """

    ed25519: bytes
    ml_dsa_65: bytes

    def __post_init__(self) -> None:
        check_ed25519(self.ed25519)
        if len(self.ml_dsa_65) != ML_DSA_65_BYTES:
            raise ValueError("an ML-DSA-65 key of another length")

    @property
    def key_ids(self) -> tuple[str, str]:
        """The names of both keys, Ed25519 first."""
        return key_fingerprint(self.ed25519), key_fingerprint(self.ml_dsa_65)

    def both_signed(self, message: bytes, signatures: tuple[bytes, bytes]) -> bool:
        """Whether the first signature is Ed25519's, the second ML-DSA-65's, and both are over `message`."""
        try:
            Ed25519PublicKey.from_public_bytes(self.ed25519).verify(signatures[0], message)
            MLDSA65PublicKey.from_public_bytes(self.ml_dsa_65).verify(signatures[1], message)
        except (InvalidSignature, ValueError):
            return False
        return True


class Signer(Protocol):
    """Signs what a site says: identities, passports, waybills, labels, successions."""

    @property
    def name(self) -> str:
        """The site's."""

    @property
    def public(self) -> SigningKeys:
        """What others verify with."""

    def sign(self, message: bytes) -> tuple[bytes, bytes]:
        """Ed25519's and ML-DSA-65's signature over the same bytes."""


class _KeyPair:
    """Both private keys. Cannot be printed or pickled."""

    __slots__ = ("_ed25519", "_ml_dsa_65", "name", "public")

    def __init__(self, name: str, *, ed25519: Ed25519PrivateKey, ml_dsa_65: MLDSA65PrivateKey) -> None:
        self.name, self._ed25519, self._ml_dsa_65 = name, ed25519, ml_dsa_65
        self.public = SigningKeys(ed25519.public_key().public_bytes_raw(), ml_dsa_65.public_key().public_bytes_raw())

    @classmethod
    def generate(cls, name: str) -> Self:
        """New keys from the operating system's randomness."""
        return cls(name, ed25519=Ed25519PrivateKey.generate(), ml_dsa_65=MLDSA65PrivateKey.generate())

    @classmethod
    def from_pem(cls, name: str, pem: bytes) -> Self:
        """From two PKCS#8 PEM blocks, Ed25519 first, and nothing else; raises ValueError or TypeError."""
        ed25519, ml_dsa_65 = read_two_keys(pem)
        if not isinstance(ed25519, Ed25519PrivateKey) or not isinstance(ml_dsa_65, MLDSA65PrivateKey):
            raise ValueError("not an Ed25519 key followed by an ML-DSA-65 key")
        return cls(name, ed25519=ed25519, ml_dsa_65=ml_dsa_65)

    def pem(self) -> bytes:
        """Both private keys in the clear, for the key file's ciphertext and nothing else."""
        return to_pem(self._ed25519) + to_pem(self._ml_dsa_65)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r}, hidden)"

    def __reduce__(self) -> NoReturn:
        raise TypeError("private keys stay in this process")


class FileSigner(_KeyPair):
    """The Signer whose two keys come from `sign.key`."""

    __slots__ = ()

    def sign(self, message: bytes) -> tuple[bytes, bytes]:
        """Ed25519's and ML-DSA-65's signature over the same bytes."""
        return self._ed25519.sign(message), self._ml_dsa_65.sign(message)

    def key_file(self) -> bytes:
        """What `sign.key` holds under the passphrase."""
        return self.pem()


class Steward(_KeyPair):
    """Signs the roster and nothing else; another type than Signer, so that neither can stand in for the other."""

    __slots__ = ()

    def private_keys(self) -> tuple[Ed25519PrivateKey, MLDSA65PrivateKey]:
        """For TUF, which signs in its own way."""
        return self._ed25519, self._ml_dsa_65


def read_two_keys(pem: bytes) -> tuple[PrivateKey, PrivateKey]:
    """Two PKCS#8 PEM blocks in the one spelling that `to_pem` writes; raises ValueError or TypeError."""
    first, end, second = pem.partition(_PEM_END)
    return read_key(first + end), read_key(second)


def read_key(pem: bytes) -> PrivateKey:
    """One key; raises ValueError or TypeError, also for all-zero seeds and for anything before or after it."""
    key = load_pem_private_key(pem, None)
    if not isinstance(key, Ed25519PrivateKey | MLDSA44PrivateKey | MLDSA65PrivateKey):
        raise ValueError("a key of another kind")
    if not any(key.private_bytes_raw()) or to_pem(key) != pem:
        raise ValueError("an all-zero key, or more than a key")
    return key


def to_pem(key: PrivateKey) -> bytes:
    """PKCS#8 in the clear, for a key file's ciphertext and nothing else."""
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
