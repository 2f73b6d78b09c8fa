"""The keys of whoever keeps a log: they sign its checkpoints, in the C2SP way, and nothing else.

A checkpoint needs both signatures, Ed25519 (type 0x01 of a signed note) and an ML-DSA-44 cosignature (0x06); the two
are over different bytes, which is why this is no `Signer`. What exactly is signed, the log decides.
Source: c2sp.org/signed-note, c2sp.org/tlog-cosignature
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NoReturn, Self

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA44PrivateKey, MLDSA44PublicKey

from not_fed.keys.signing import ML_DSA_44_BYTES, check_ed25519, key_fingerprint, read_two_keys, to_pem


@dataclass(frozen=True, slots=True)
class LogKeys:
    """The public half: both raw keys; ValueError for what cannot be a key."""

    ed25519: bytes
    ml_dsa_44: bytes

    def __post_init__(self) -> None:
        check_ed25519(self.ed25519)
        if len(self.ml_dsa_44) != ML_DSA_44_BYTES:
            raise ValueError("an ML-DSA-44 key of another length")

    @property
    def key_ids(self) -> tuple[str, str]:
        """The names of both keys, Ed25519 first."""
        return key_fingerprint(self.ed25519), key_fingerprint(self.ml_dsa_44)

    def both_signed(self, message: bytes, signatures: tuple[bytes, bytes]) -> bool:
        """Whether the first signature is Ed25519's, the second ML-DSA-44's, and both are over `message`."""
        try:
            Ed25519PublicKey.from_public_bytes(self.ed25519).verify(signatures[0], message)
            MLDSA44PublicKey.from_public_bytes(self.ml_dsa_44).verify(signatures[1], message)
        except (InvalidSignature, ValueError):
            return False
        return True


class LogSigner:
    """The private half, from `log.key`. Cannot be printed or pickled."""

    __slots__ = ("_ed25519", "_ml_dsa_44", "name", "public")

    def __init__(self, name: str, *, ed25519: Ed25519PrivateKey, ml_dsa_44: MLDSA44PrivateKey) -> None:
        self.name, self._ed25519, self._ml_dsa_44 = name, ed25519, ml_dsa_44
        self.public = LogKeys(ed25519.public_key().public_bytes_raw(), ml_dsa_44.public_key().public_bytes_raw())

    @classmethod
    def generate(cls, name: str) -> Self:
        """New keys from the operating system's randomness."""
        return cls(name, ed25519=Ed25519PrivateKey.generate(), ml_dsa_44=MLDSA44PrivateKey.generate())

    @classmethod
    def from_pem(cls, name: str, pem: bytes) -> Self:
        """From two PKCS#8 PEM blocks, Ed25519 first, and nothing else; raises ValueError or TypeError."""
        ed25519, ml_dsa_44 = read_two_keys(pem)
        if not isinstance(ed25519, Ed25519PrivateKey) or not isinstance(ml_dsa_44, MLDSA44PrivateKey):
            raise ValueError("not an Ed25519 key followed by an ML-DSA-44 key")
        return cls(name, ed25519=ed25519, ml_dsa_44=ml_dsa_44)

    def sign_ed25519(self, message: bytes) -> bytes:
        """Pure Ed25519, 64 bytes."""
        return self._ed25519.sign(message)

    def sign_ml_dsa_44(self, message: bytes) -> bytes:
        """Pure ML-DSA-44 with an empty context, 2,420 bytes."""
        return self._ml_dsa_44.sign(message)

    def pem(self) -> bytes:
        """Both private keys in the clear, for the key file's ciphertext and nothing else."""
        return to_pem(self._ed25519) + to_pem(self._ml_dsa_44)

    def __repr__(self) -> str:
        return f"LogSigner({self.name!r}, hidden)"

    def __reduce__(self) -> NoReturn:
        raise TypeError("private keys stay in this process")
