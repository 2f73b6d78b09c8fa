"""The age v1 file format (c2sp.org/age), as much of it as not-fed uses, on `cryptography` alone.

Two kinds of file: sealed to hybrid recipients (`mlkem768x25519` stanzas and nothing else), and key files under a
passphrase (one `scrypt` stanza and nothing else). Both can be opened by the `age` tool, version 1.3 or later.
Nothing here knows what a file is about or who wrote it: age has no sender. Signatures come from the layers above.
"""

from __future__ import annotations

from not_fed.age.bech32 import BadKeyText
from not_fed.age.header import BadContainer, Header, Stanza, read_header, write_header
from not_fed.age.hybrid import HybridIdentity, NotForThisKey, check_recipient, recipient_key
from not_fed.age.scrypt import PassphraseRefused, decrypt_with_passphrase, encrypt_with_passphrase
from not_fed.age.stream import CHUNK_BYTES, StreamReader, StreamWriter, plaintext_size
from not_fed.age.whole import decrypt, encrypt

__all__ = [
    "CHUNK_BYTES", "BadContainer", "BadKeyText", "Header", "HybridIdentity", "NotForThisKey", "PassphraseRefused",
    "Stanza", "StreamReader", "StreamWriter", "check_recipient", "decrypt", "decrypt_with_passphrase", "encrypt",
    "encrypt_with_passphrase", "plaintext_size", "read_header", "recipient_key", "write_header",
]  # fmt: skip
