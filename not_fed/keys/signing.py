"""Two signatures over the same bytes, Ed25519 and ML-DSA-65, and never one alone.

Whoever breaks one of the two algorithms has forged nothing. The keys serve this purpose only (every message begins with
"DSSEv1"), so that a signature cannot be borrowed from another protocol.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Final, NoReturn, Self

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA65PrivateKey, MLDSA65PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

ED25519_BYTES, ML_DSA_65_BYTES = 32, 1952
POLICY: Final = "ed25519+ml-dsa-65"
_PEM_END = b"-----END PRIVATE KEY-----\n"


def key_fingerprint(raw: bytes) -> str:
    """How a public key is named in signed objects: hex SHA-256 under a domain of our own."""
    return hashlib.sha256(b"not-fed/key/v1\0" + raw).hexdigest()


@dataclass(frozen=True, slots=True)
class SigningKeys:
    """The public half: both raw keys."""

    ed25519: bytes
    ml_dsa_65: bytes

    def __post_init__(self) -> None:
        if len(self.ed25519) != ED25519_BYTES or len(self.ml_dsa_65) != ML_DSA_65_BYTES:
            raise ValueError("public keys of another length")

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
        """From two PKCS#8 PEM blocks, Ed25519 first; raises ValueError."""
        first, end, second = pem.partition(_PEM_END)
        ed25519, ml_dsa_65 = load_pem_private_key(first + end, None), load_pem_private_key(second, None)
        if not isinstance(ed25519, Ed25519PrivateKey) or not isinstance(ml_dsa_65, MLDSA65PrivateKey):
            raise ValueError("not an Ed25519 key followed by an ML-DSA-65 key")
        return cls(name, ed25519=ed25519, ml_dsa_65=ml_dsa_65)

    def pem(self) -> bytes:
        """Both private keys in the clear, for the key file's ciphertext and nothing else."""
        return b"".join(
            key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
            for key in (self._ed25519, self._ml_dsa_65)
        )

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r}, hidden)"

    def __reduce__(self) -> NoReturn:
        raise TypeError("private keys stay in this process")


class Signer(_KeyPair):
    """Signs what a site says: identities, passports, waybills, labels."""

    __slots__ = ()

    def sign(self, message: bytes) -> tuple[bytes, bytes]:
        """Ed25519's and ML-DSA-65's signature over the same bytes."""
        return self._ed25519.sign(message), self._ml_dsa_65.sign(message)


class Steward(_KeyPair):
    """Signs the roster and nothing else; another type than Signer, so that neither can stand in for the other."""

    __slots__ = ()

    def private_keys(self) -> tuple[Ed25519PrivateKey, MLDSA65PrivateKey]:
        """For TUF, which signs in its own way."""
        return self._ed25519, self._ml_dsa_65
