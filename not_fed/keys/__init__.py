"""Keys and who holds them: made, kept under a passphrase, and shown to others as a signed identity.

A site has several secrets, each for one purpose: `seal.key` opens what is sealed to it, `sign.key` signs (Ed25519 and
ML-DSA-65, always both), a steward's `roster.key` signs the roster, and `log.key` the checkpoints of a log. A trainer
needs no key that decrypts, a receiver none that signs.
"""

from __future__ import annotations

from not_fed.keys.create import Rotation, create_keys, rotate_keys
from not_fed.keys.dsse import BadSignature, MalformedSigned, NewerFormat
from not_fed.keys.folder import (
    KeyExposed,
    KeyMismatch,
    load_log_signer,
    load_opener,
    load_signer,
    load_steward,
)
from not_fed.keys.identity import IdentityRefused, PublicIdentity, load_public_identity, read_identity
from not_fed.keys.log_keys import LogKeys, LogSigner
from not_fed.keys.sealing import Opener
from not_fed.keys.secret import Secret
from not_fed.keys.signing import FileSigner, Signer, SigningKeys, Steward, key_fingerprint
from not_fed.keys.steward import StewardIdentity, load_steward_identity, read_steward_identity
from not_fed.keys.succession import Succession, SuccessionRefused, read_succession

__all__ = [
    "BadSignature", "FileSigner", "IdentityRefused", "KeyExposed", "KeyMismatch", "LogKeys", "LogSigner",
    "MalformedSigned", "NewerFormat", "Opener", "PublicIdentity", "Rotation", "Secret", "Signer", "SigningKeys",
    "Steward", "StewardIdentity", "Succession", "SuccessionRefused", "create_keys", "key_fingerprint",
    "load_log_signer", "load_opener", "load_public_identity", "load_signer", "load_steward", "load_steward_identity",
    "read_identity", "read_steward_identity", "read_succession", "rotate_keys",
]  # fmt: skip
