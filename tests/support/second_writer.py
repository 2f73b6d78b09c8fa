"""A second writer of sealed organs beside the second reader; it shares no code with not_fed, and it can make mistakes.

Every step can be replaced or its result edited, which is how the frozen vectors get exactly one fault each.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA65PrivateKey
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.hpke import MLKEM768X25519PublicKey

from tests.support.second_age import CHUNK, INFO, header_mac, hkdf, public_of, suite
from tests.support.second_reader import LABEL, MAGIC, PASSPORT, WAYBILL, key_name, pae

ISSUED, EXPIRES, NOW = "2026-11-24T12:00:00Z", "2026-12-08T12:00:00Z", "2026-11-25T08:00:00Z"
BASE = "ab" * 32
Edit = Callable[[bytes], bytes]


@dataclass(frozen=True)
class Party:
    """Somebody with keys that follow from a word, so that anybody can make them again."""

    word: str

    def seed(self, purpose: str) -> bytes:
        """32 bytes."""
        return hashlib.sha256(f"not-fed vectors/{purpose}/{self.word}".encode()).digest()

    @property
    def signing(self) -> tuple[Ed25519PrivateKey, MLDSA65PrivateKey]:
        """Both private keys."""
        return (
            Ed25519PrivateKey.from_private_bytes(self.seed("ed25519")),
            MLDSA65PrivateKey.from_seed_bytes(self.seed("ml-dsa-65")),
        )

    @property
    def public(self) -> tuple[bytes, bytes]:
        """Both raw public keys."""
        ed25519, ml_dsa = self.signing
        return ed25519.public_key().public_bytes_raw(), ml_dsa.public_key().public_bytes_raw()

    @property
    def identity(self) -> str:
        """The age identity line."""
        return bech32("age-secret-key-pq-", self.seed("seal")).upper()

    @property
    def seal(self) -> bytes:
        """The raw sealing key."""
        return public_of(self.identity)

    def sign(self, payload: bytes, kind: str, *, signed_as: str | None = None) -> bytes:
        """A signed line."""
        message = pae(signed_as or kind, payload)
        ed25519, ml_dsa = self.signing
        return line_of(payload, kind, self.public, (ed25519.sign(message), ml_dsa.sign(message)))


def line_of(payload: bytes, kind: str, keys: Sequence[bytes], signatures: Sequence[bytes]) -> bytes:
    """A signed line from its parts, right or wrong."""
    entries = [
        {"keyid": key_name(key), "sig": base64.b64encode(signature).decode()}
        for key, signature in zip(keys, signatures, strict=True)
    ]
    return canonical({"payload": base64.b64encode(payload).decode(), "payloadType": kind, "signatures": entries})


def canonical(value: object) -> bytes:
    """Keys sorted, no white space."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def bech32(prefix: str, data: bytes) -> str:
    """BIP 173, of any length."""
    bits = "".join(f"{byte:08b}" for byte in data)
    bits += "0" * (-len(bits) % 5)
    return bech32_of([int(bits[at : at + 5], 2) for at in range(0, len(bits), 5)], prefix)


def bech32_of(values: Sequence[int], prefix: str) -> str:
    """With any groups of five bits."""
    alphabet, check = "qpzry9x8gf2tvdw0s3jn54khce6mua7l", 1
    for value in [*(ord(mark) >> 5 for mark in prefix), 0, *(ord(mark) & 31 for mark in prefix), *values, *[0] * 6]:
        top, check = check >> 25, (check & 0x1FFFFFF) << 5 ^ value
        for bit, term in enumerate((0x3B6A57B2, 0x26508E6D, 0x1EA119FA, 0x3D4233DD, 0x2A1462B3)):
            check ^= term if top >> bit & 1 else 0
    tail = [(check ^ 1) >> 5 * (5 - place) & 31 for place in range(6)]
    return prefix + "1" + "".join(alphabet[value] for value in [*values, *tail])


# -- container --------------------------------------------------------------------------------------------------------


def b64(data: bytes) -> bytes:
    """Without padding."""
    return base64.b64encode(data).rstrip(b"=")


def stanza(file_key: bytes, raw: bytes) -> bytes:
    """One recipient's lines."""
    key = MLKEM768X25519PublicKey(
        MLKEM768PublicKey.from_public_bytes(raw[:1184]), X25519PublicKey.from_public_bytes(raw[1184:])
    )
    sealed = suite().encrypt(file_key, key, info=INFO)
    return b"-> mlkem768x25519 " + b64(sealed[:1120]) + b"\n" + b64(sealed[1120:]) + b"\n"


def header(stanzas: Sequence[bytes], file_key: bytes) -> bytes:
    """Version, stanzas, MAC."""
    signed = b"age-encryption.org/v1\n" + b"".join(stanzas) + b"---"
    return signed + b" " + b64(header_mac(file_key, signed)) + b"\n"


def payload(file_key: bytes, nonce: bytes, plain: bytes) -> bytes:
    """The chunks, without the nonce."""
    cipher = ChaCha20Poly1305(hkdf(file_key, nonce, b"payload"))
    starts = range(0, max(len(plain), 1), CHUNK)
    return b"".join(
        cipher.encrypt(number.to_bytes(11, "big") + bytes([number == len(starts) - 1]), plain[at : at + CHUNK], None)
        for number, at in enumerate(starts)
    )


# -- organ ------------------------------------------------------------------------------------------------------------


def organ_file(
    *, span: tuple[int, int] = (2, 4), filler: int = 0, manifest: Mapping[str, Any] | None = None,
    tensors: Mapping[str, Any] | None = None, data: bytes | None = None, metadata: object = None,
) -> bytes:  # fmt: skip
    """A small organ: four F32 in each layer, and `filler` bytes of U8 in the first."""
    said = {
        "format": "not-fed.organ/1", "blood_type": {"family": "llama", "hidden_size": 2}, "span": list(span),
        "base_sha256": BASE, "span_sha256": "cd" * 32, "training": {"mode": "in-place", "dp": None}, "parents": [],
    } | dict(manifest or {})  # fmt: skip
    layers = span[1] - span[0]
    entries: dict[str, Any] = {
        f"layers.{layer}.mlp.up_proj.weight": {
            "dtype": "F32", "shape": [2, 2], "data_offsets": [16 * layer, 16 * layer + 16],
        }
        for layer in range(layers)
    }  # fmt: skip
    body = b"".join(struct.pack("<4f", layer + 0.5, -1.0, 0.0, 3.25) for layer in range(layers))
    if filler:
        entries["layers.0.filler"] = {"dtype": "U8", "shape": [filler], "data_offsets": [len(body), len(body) + filler]}
        body += bytes(filler)
    entries |= tensors or {}
    entries["__metadata__"] = {"not-fed": canonical(said).decode()} if metadata is None else metadata
    return tensor_file(canonical(entries), body if data is None else data)


def tensor_file(head: bytes, data: bytes) -> bytes:
    """A safetensors file from header and data, right or wrong."""
    return len(head).to_bytes(8, "little") + head + data


# -- the whole --------------------------------------------------------------------------------------------------------


def same(data: bytes) -> bytes:
    """No edit."""
    return data


@dataclass(kw_only=True)
class Draft:
    """A sealed organ in the making. Fields with `edit_` change what the step before made."""

    organ: bytes = field(default_factory=organ_file)
    author: str = "clinic"
    sender: str = "clinic"
    to: Sequence[str] = ("hub",)
    pad: int = 0
    predicate: Mapping[str, Any] = field(default_factory=dict)
    statement: Mapping[str, Any] = field(default_factory=dict)
    waybill: Mapping[str, Any] = field(default_factory=dict)
    label: Mapping[str, Any] | None = None
    passport_kind: str = PASSPORT
    waybill_kind: str = WAYBILL
    label_kind: str = LABEL
    passport_signer: Party | None = None
    waybill_signer: Party | None = None
    label_signer: Party | None = None
    edit_statement: Edit = same
    edit_passport: Edit = same
    edit_waybill_payload: Edit = same
    edit_waybill: Edit = same
    edit_label_payload: Edit = same
    edit_label: Edit = same
    edit_plain: Edit = same
    edit_stanzas: Callable[[list[bytes], bytes], list[bytes]] = lambda stanzas, file_key: stanzas
    edit_header: Edit = same
    edit_payload: Edit = same
    edit_sealed: Edit = same
    file_key: bytes = field(default_factory=lambda: os.urandom(16))
    nonce: bytes = field(default_factory=lambda: os.urandom(16))

    def passport_line(self) -> bytes:
        """The author's line."""
        predicate = {
            "author": self.author, "federation": "lowlands", "round": 3, "organ_size_bytes": len(self.organ),
            "base_sha256": BASE, "span": [2, 4], "family": "llama", "parents": [], "dp": None, "audit": None,
            "metrics": {"loss": 2.5}, "created": ISSUED, "sharing": "addressees", "salt": "5a" * 16,
            "signature_policy": "ed25519+ml-dsa-65",
        }  # fmt: skip
        digest = hashlib.sha256(self.organ).hexdigest()
        statement = {
            "_type": "https://in-toto.io/Statement/v1", "predicateType": "urn:not-fed:passport:v1",
            "subject": [{"name": "organ", "digest": {"sha256": digest}}],
            "predicate": without(predicate | dict(self.predicate)),
        } | dict(self.statement)  # fmt: skip
        signer = self.passport_signer or Party(self.author)
        return self.edit_passport(signer.sign(self.edit_statement(canonical(without(statement))), self.passport_kind))

    def waybill_line(self, passport: bytes) -> bytes:
        """The sender's line."""
        content = {
            "id": hashlib.sha256(passport).hexdigest()[:32], "federation": "lowlands", "round": 3, "from": self.sender,
            "to": {name: key_name(Party(name).seal) for name in self.to},
            "organ": {"sha256": hashlib.sha256(self.organ).hexdigest(), "size_bytes": len(self.organ)},
            "passport_sha256": hashlib.sha256(passport).hexdigest(), "issued": ISSUED, "expires": EXPIRES,
            "pad": self.pad,
        } | dict(self.waybill)  # fmt: skip
        signer = self.waybill_signer or Party(self.sender)
        return self.edit_waybill(signer.sign(self.edit_waybill_payload(canonical(without(content))), self.waybill_kind))

    def label_line(self, sealed: bytes) -> bytes | None:
        """The sender's line outside, if there is to be one."""
        if self.label is None:
            return None
        content = {
            "federation": "lowlands", "round": 3, "from": self.sender, "to": sorted(self.to), "issued": ISSUED,
            "expires": EXPIRES, "sealed": {"sha256": hashlib.sha256(sealed).hexdigest(), "size_bytes": len(sealed)},
        } | dict(self.label)  # fmt: skip
        signer = self.label_signer or Party(self.sender)
        return self.edit_label(signer.sign(self.edit_label_payload(canonical(without(content))), self.label_kind))

    def write(self) -> Written:
        """All of it."""
        passport = self.passport_line()
        frame = b"".join(line + b"\n" for line in (MAGIC, self.waybill_line(passport), passport))
        plain = self.edit_plain(frame + self.organ + bytes(self.pad))
        stanzas = self.edit_stanzas([stanza(self.file_key, Party(name).seal) for name in self.to], self.file_key)
        head = self.edit_header(header(stanzas, self.file_key))
        body = self.edit_payload(self.nonce + payload(self.file_key, self.nonce, plain))
        sealed = self.edit_sealed(head + body)
        return Written(sealed, self.label_line(sealed), head, self.nonce, self.file_key, plain)


@dataclass(frozen=True)
class Written:
    """A sealed file, its label, and what it was made from."""

    sealed: bytes
    label: bytes | None
    header: bytes
    nonce: bytes
    file_key: bytes
    plain: bytes


LEFT_OUT = "left out"


def without(content: Mapping[str, Any]) -> dict[str, Any]:
    """Without the fields that a case leaves out."""
    return {name: value for name, value in content.items() if value != LEFT_OUT}
