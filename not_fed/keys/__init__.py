"""Keys and who holds them: made, kept under a passphrase, and shown to others as a signed identity.

A site has three secrets, each for one purpose: `seal.key` opens what is sealed to it, `sign.key` signs (Ed25519 and
ML-DSA-65, always both), and a steward's `roster.key` signs the roster. A trainer needs no key that decrypts, a receiver
none that signs.
"""

from __future__ import annotations

from not_fed.keys.dsse import BadSignature, MalformedSigned, NewerFormat
from not_fed.keys.folder import KeyExposed, KeyMismatch, create_keys, load_opener, load_signer, load_steward
from not_fed.keys.identity import IdentityRefused, PublicIdentity, load_public_identity, read_identity
from not_fed.keys.sealing import Opener
from not_fed.keys.secret import Secret
from not_fed.keys.signing import Signer, SigningKeys, Steward, key_fingerprint

__all__ = [
    "BadSignature", "IdentityRefused", "KeyExposed", "KeyMismatch", "MalformedSigned", "NewerFormat", "Opener",
    "PublicIdentity", "Secret", "Signer", "SigningKeys", "Steward", "create_keys", "key_fingerprint",
    "load_opener", "load_public_identity", "load_signer", "load_steward", "read_identity",
]  # fmt: skip
