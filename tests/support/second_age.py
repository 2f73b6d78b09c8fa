"""The second reader's age and bech32, from docs/format.md alone. Primitives come from `cryptography`."""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Iterator

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, MLKEM768X25519PrivateKey, Suite
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from tests.support.second_json import b64, need, refuse

CHUNK, TAG = 65_536, 16
INFO = b"age-encryption.org/mlkem768x25519"

Stanza = tuple[tuple[bytes, ...], bytes]


def read_header(sealed: bytes) -> tuple[list[Stanza], bytes, bytes, bytes]:
    """Stanzas, MAC, what the MAC is over, and what follows the header."""
    at, head = 0, sealed[:524_288]

    def line() -> bytes:
        nonlocal at
        end = head.find(b"\n", at)
        need(0 <= end < at + 8192, "container-damaged")
        row, at = head[at:end], end + 1
        return row

    need(line() == b"age-encryption.org/v1", "container-damaged")
    stanzas: list[Stanza] = []
    while not (row := line()).startswith(b"---"):
        need(len(stanzas) < 256 and re.fullmatch(rb"->( [\x21-\x7e]+)+", row), "container-damaged")
        body = [line()]
        while len(body[-1]) == 64:
            body.append(line())
        need(len(body[-1]) < 64, "container-damaged")
        stanzas.append((tuple(row.split(b" ")[1:]), b64(b"".join(body))))
    need(stanzas and len(row) == 47 and row[3:4] == b" ", "container-damaged")
    return stanzas, b64(row[4:]), sealed[: at - 45], sealed[at:]


def check_stanza(stanza: Stanza) -> None:
    """Of the one type that there is."""
    arguments, body = stanza
    need(len(arguments) == 2 and arguments[0] == b"mlkem768x25519", "container-damaged")
    need(len(b64(arguments[1])) == 1120 and len(body) == 32, "container-damaged")


def hkdf(key: bytes, salt: bytes, info: bytes) -> bytes:
    """32 bytes of HKDF-SHA256."""
    return HKDF(algorithm=SHA256(), length=32, salt=salt, info=info).derive(key)


def header_mac(file_key: bytes, signed: bytes) -> bytes:
    """Over the header up to and including its three dashes."""
    return hmac.digest(hkdf(file_key, b"", b"header"), signed, "sha256")


def suite() -> Suite:
    """The one HPKE suite."""
    return Suite(KEM.MLKEM768_X25519, KDF.HKDF_SHA256, AEAD.CHACHA20_POLY1305)


def hybrid_key(identity: str) -> MLKEM768X25519PrivateKey:
    """The key behind an identity line."""
    seed = bech32(identity.lower(), "age-secret-key-pq-")
    need(identity == identity.upper() and len(seed) == 32 and any(seed), "bad-key-text")
    secret = hashlib.shake_256(seed).digest(96)
    return MLKEM768X25519PrivateKey(
        MLKEM768PrivateKey.from_seed_bytes(secret[:64]), X25519PrivateKey.from_private_bytes(secret[64:])
    )


def unwrap(stanza: Stanza, secret: MLKEM768X25519PrivateKey) -> bytes | None:
    """The file key, if the stanza is for this key."""
    try:
        key = suite().decrypt(b64(stanza[0][1]) + stanza[1], secret, info=INFO)
    except (InvalidTag, ValueError):
        return None
    return key if len(key) == 16 else None


def possible(size: int) -> bool:
    """Whether chunks can add up to that many bytes."""
    last = size % (CHUNK + TAG)
    return size >= TAG and (last > TAG or last == 0 or size == TAG)


def chunks(file_key: bytes, payload: bytes) -> Iterator[bytes]:
    """The plaintext, chunk by chunk; each one has been authenticated. `payload` begins with the nonce."""
    cipher = ChaCha20Poly1305(hkdf(file_key, payload[:16], b"payload"))
    ends = range(16, len(payload), CHUNK + TAG)
    for number, at in enumerate(ends):
        chunk = payload[at : at + CHUNK + TAG]
        last = number == len(ends) - 1
        try:
            plain = cipher.decrypt(number.to_bytes(11, "big") + bytes([last]), chunk, None)
        except InvalidTag:
            refuse("container-damaged")
        need(plain or number == 0, "container-damaged")
        yield plain


def bech32(text: str, prefix: str) -> bytes:
    """BIP 173 without a limit on the length, lower case."""
    alphabet = "qpzry9x8gf2tvdw0s3jn54khce6mua7l"
    head, _, tail = text.rpartition("1")
    need(head == prefix and len(tail) >= 6 and all(mark in alphabet for mark in tail), "bad-key-text")
    values = [alphabet.index(mark) for mark in tail]
    check = 1
    for value in [*(ord(mark) >> 5 for mark in head), 0, *(ord(mark) & 31 for mark in head), *values]:
        top, check = check >> 25, (check & 0x1FFFFFF) << 5 ^ value
        for bit, term in enumerate((0x3B6A57B2, 0x26508E6D, 0x1EA119FA, 0x3D4233DD, 0x2A1462B3)):
            check ^= term if top >> bit & 1 else 0
    need(check == 1, "bad-key-text")
    bits = "".join(f"{value:05b}" for value in values[:-6])
    whole = len(bits) // 8 * 8
    need(len(bits) - whole < 5 and "1" not in bits[whole:], "bad-key-text")
    return bytes(int(bits[at : at + 8], 2) for at in range(0, whole, 8))


def public_of(identity: str) -> bytes:
    """The raw public key of an identity line."""
    secret = hashlib.shake_256(bech32(identity.lower(), "age-secret-key-pq-")).digest(96)
    x25519 = X25519PrivateKey.from_private_bytes(secret[64:]).public_key().public_bytes_raw()
    return MLKEM768PrivateKey.from_seed_bytes(secret[:64]).public_key().public_bytes_raw() + x25519
