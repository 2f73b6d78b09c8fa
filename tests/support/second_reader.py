"""A second reader of sealed organs, written from docs/format.md alone; it shares no code with not_fed.

Everything is here and in second_age.py and second_json.py: base64, JSON, bech32, age, DSSE, safetensors, the order of
checks. From `cryptography` come the primitives (HPKE, HKDF, ChaCha20-Poly1305, Ed25519, ML-DSA) and nothing else. The
whole file lies in memory: this is an oracle, not a tool.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA65PublicKey

from tests.support.second_age import (
    check_stanza,
    chunks,
    header_mac,
    hybrid_key,
    possible,
    public_of,
    read_header,
    unwrap,
)
from tests.support.second_json import (
    IS_LABEL,
    IS_MANIFEST,
    IS_PREDICATE,
    IS_STATEMENT,
    IS_WAYBILL,
    Check,
    Json,
    listed,
    mapped,
    need,
    padded,
    read_time,
    refuse,
    shaped,
    spell,
    text,
    whole,
)

SKEW = timedelta(seconds=300)
MAGIC = b"not-fed.sealed/v1"
WAYBILL, LABEL = "application/vnd.not-fed.waybill.v1+json", "application/vnd.not-fed.label.v1+json"
PASSPORT = "application/vnd.in-toto+json"


@dataclass(frozen=True)
class Reader:
    """Who reads: name and identity lines (the one in use first), and what is known beforehand, as plain data."""

    name: str
    identities: tuple[str, ...]
    roster: Mapping[str, Any]
    now: datetime
    ask: Mapping[str, Any]
    seen: frozenset[str] = frozenset()

    def member(self, name: str, roles: Sequence[str] = ()) -> Mapping[str, Any]:
        """On the roster, current, and in one of the roles if any are named."""
        found = [entry for entry in self.roster["members"] if entry["name"] == name]
        need(found, "member-unknown")
        begin, end = read_time(found[0]["not_before"]), read_time(found[0]["not_after"])
        need(found[0]["status"] == "active" and within(self.now, begin, end), "member-not-active")
        need(not roles or set(roles) & set(found[0]["roles"]), "member-role")
        entry: Mapping[str, Any] = found[0]
        return entry


@dataclass(frozen=True)
class Read:
    """What was opened."""

    organ: bytes
    sender: str
    author: str
    recipients: tuple[str, ...]


def open_sealed(sealed: bytes, reader: Reader, label: bytes | None = None) -> Read:
    """The organ, after every check of the page; raises Refused."""
    outside = None if label is None else check_label(label, sealed, reader)
    stanzas, mac, signed, rest = read_header(sealed)
    for stanza in stanzas:
        check_stanza(stanza)
    secrets = [hybrid_key(identity) for identity in reader.identities]
    keys = [key for secret in secrets for stanza in stanzas if (key := unwrap(stanza, secret)) is not None]
    need(keys, "not-for-this-key")
    need(hmac.compare_digest(header_mac(keys[0], signed), mac), "container-damaged")
    need(len(rest) >= 16 and possible(len(rest) - 16), "container-damaged")
    plain = b"".join(chunks(keys[0], rest))
    waybill_line, passport_line, body = read_frame(plain)
    waybill = check_waybill(waybill_line, reader, recipients=len(stanzas), label=outside)
    passport = check_passport(passport_line, waybill, reader)
    size, pad = waybill["organ"]["size_bytes"], waybill["pad"]
    need(pad <= size // 4 + 4096 and len(body) == size + pad, "waybill-mismatch")
    check_asked(passport, reader)
    organ = body[:size]
    need(hashlib.sha256(organ).hexdigest() == passport["organ_sha256"], "organ-mismatch")
    need(not any(body[size:]), "container-damaged")
    need(outside is None or outside["sealed"]["sha256"] == hashlib.sha256(sealed).hexdigest(), "label-mismatch")
    check_organ(organ, passport)
    return Read(organ, waybill["from"], passport["author"], tuple(sorted(waybill["to"])))


# -- frame and signed lines -------------------------------------------------------------------------------------------


def read_frame(plain: bytes) -> tuple[bytes, bytes, bytes]:
    """Waybill, passport, and what follows."""
    first, end, rest = plain.partition(b"\n")
    if first != MAGIC or not end:
        newer = end and len(first) <= 25 and first.startswith(b"not-fed.sealed/v")
        refuse("newer-format" if newer else "container-damaged")
    waybill, end, rest = rest.partition(b"\n")
    need(end and len(waybill) <= 65_536, "container-damaged")
    passport, end, rest = rest.partition(b"\n")
    need(end and len(passport) <= 1_048_576, "container-damaged")
    return waybill, passport, rest


@dataclass(frozen=True)
class Line:
    """A signed line that has been read and not yet believed."""

    kind: str
    payload: bytes
    signatures: tuple[tuple[str, bytes], ...]

    def check(self, member: Mapping[str, Any], at: str) -> None:
        """Both signatures, by a pair of the member's keys that was in use at that time."""
        named = [key for key, _ in self.signatures]
        pairs = [
            (keys, *(base64.b64decode(keys[kind]) for kind in ("ed25519", "ml_dsa_65"))) for keys in pairs_of(member)
        ]
        found = [pair for pair in pairs if named == [key_name(pair[1]), key_name(pair[2])]]
        need(found, "signature-refused")
        keys, ed25519, ml_dsa = found[0]
        need(within(read_time(at), read_time(keys["not_before"]), read_time(keys["not_after"])), "keys-retired")
        signed = pae(self.kind, self.payload)
        try:
            Ed25519PublicKey.from_public_bytes(ed25519).verify(self.signatures[0][1], signed)
            MLDSA65PublicKey.from_public_bytes(ml_dsa).verify(self.signatures[1][1], signed)
        except (InvalidSignature, ValueError):
            refuse("signature-refused")


def pairs_of(member: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The keys in use, and those before."""
    return [member, *member.get("former", [])]


def within(moment: datetime, start: datetime, end: datetime) -> bool:
    """With 300 seconds on both sides; no sum, since the calendar ends."""
    return start - moment <= SKEW and moment - end <= SKEW


def key_name(raw: bytes) -> str:
    """How signed objects name a public key."""
    return hashlib.sha256(b"not-fed/key/v1\0" + raw).hexdigest()


def pae(kind: str, payload: bytes) -> bytes:
    """What is signed."""
    return f"DSSEv1 {len(kind.encode())} {kind} {len(payload)} ".encode() + payload


def read_line(line: bytes, kind: str) -> Line:
    """A signed line of one type."""
    bad = "signed-malformed"
    value = Json(line, bad).document()
    need(isinstance(value, dict) and set(value) == {"payload", "payloadType", "signatures"}, bad)
    entries = value["signatures"]
    need(isinstance(entries, list) and len(entries) == 2, bad)
    need(all(isinstance(entry, dict) and set(entry) == {"keyid", "sig"} for entry in entries), bad)
    texts = [value["payload"], value["payloadType"], *(entry[key] for entry in entries for key in ("keyid", "sig"))]
    need(all(isinstance(text, str) for text in texts), bad)
    payload, *signatures = (padded(text, bad) for text in (value["payload"], entries[0]["sig"], entries[1]["sig"]))
    if value["payloadType"] != kind:
        stem = kind.removesuffix("+json").removesuffix(".v1")
        refuse("newer-format" if re.fullmatch(re.escape(stem) + r"\.v.*\+json", value["payloadType"]) else bad)
    keys = [entry["keyid"] for entry in entries]
    row = ",".join(f'{{"keyid":{spell(key)},"sig":"{entry["sig"]}"}}' for key, entry in zip(keys, entries, strict=True))
    again = f'{{"payload":"{value["payload"]}","payloadType":"{kind}","signatures":[{row}]}}'
    need(again.encode() == line, bad)
    return Line(kind, payload, tuple(zip(keys, signatures, strict=True)))


def signed_object(line: bytes, kind: str, is_right: Check) -> tuple[Line, Any]:
    """Line and payload, neither believed yet."""
    envelope = read_line(line, kind)
    value = Json(envelope.payload, "signed-malformed").document()
    need(is_right(value), "signed-malformed")
    return envelope, value


# -- the order of checks ----------------------------------------------------------------------------------------------


def check_label(line: bytes, sealed: bytes, reader: Reader) -> dict[str, Any]:
    """Step L."""
    line = line.removesuffix(b"\n")
    need(len(line) <= 65_536, "signed-malformed")
    envelope, label = signed_object(line, LABEL, IS_LABEL)
    need(label["federation"] == reader.roster["federation"], "label-mismatch")
    envelope.check(reader.member(label["from"]), label["issued"])
    check_dates(label, reader.now)
    need(label["sealed"]["size_bytes"] == len(sealed), "label-mismatch")
    for name in label["to"]:
        reader.member(name, ("receiver", "aggregator"))
    return dict(label)


def verify_label(line: bytes, sealed: bytes, reader: Reader) -> dict[str, Any]:
    """All that can be known without a decryption key."""
    label = check_label(line, sealed, reader)
    need(label["sealed"]["sha256"] == hashlib.sha256(sealed).hexdigest(), "label-mismatch")
    check_where(label, reader)
    return label


def check_dates(value: Mapping[str, Any], now: datetime) -> None:
    issued, expires = read_time(value["issued"]), read_time(value["expires"])
    need(issued < expires and expires - issued <= timedelta(days=92), "not-current")
    need(issued - now <= SKEW and now - expires < SKEW, "not-current")


def check_where(value: Mapping[str, Any], reader: Reader) -> None:
    need(reader.ask.get("federation") in (None, value["federation"]), "other-federation")
    need(reader.ask.get("round") in (None, value["round"]), "other-round")


def check_waybill(line: bytes, reader: Reader, *, recipients: int, label: Mapping[str, Any] | None) -> dict[str, Any]:
    """Step 7."""
    envelope, waybill = signed_object(line, WAYBILL, IS_WAYBILL)
    need(waybill["federation"] == reader.roster["federation"], "other-federation")
    envelope.check(reader.member(waybill["from"]), waybill["issued"])
    check_dates(waybill, reader.now)
    own = [key_name(public_of(identity)) for identity in reader.identities]
    need(waybill["to"].get(reader.name) in own, "not-addressed")
    need(recipients == len(waybill["to"]), "waybill-mismatch")
    if label is not None:
        same = all(label[field] == waybill[field] for field in ("federation", "round", "from"))
        need(same and label["to"] == sorted(waybill["to"]), "label-mismatch")
    check_where(waybill, reader)
    need(waybill["id"] not in reader.seen, "waybill-replayed")
    return dict(waybill)


def check_passport(line: bytes, waybill: Mapping[str, Any], reader: Reader) -> dict[str, Any]:
    """Step 8."""
    need(hashlib.sha256(line).hexdigest() == waybill["passport_sha256"], "waybill-mismatch")
    envelope, statement = signed_object(line, PASSPORT, IS_STATEMENT)
    kind = statement["predicateType"]
    if kind != "urn:not-fed:passport:v1":
        refuse("newer-format" if kind.startswith("urn:not-fed:passport:v") else "signed-malformed")
    need(IS_PREDICATE(statement["predicate"]), "signed-malformed")
    passport = {**statement["predicate"], "organ_sha256": statement["subject"][0]["digest"]["sha256"]}
    envelope.check(reader.member(passport["author"], ("author", "aggregator")), passport["created"])
    need(read_time(passport["created"]) - reader.now <= SKEW, "not-current")
    need(passport["federation"] == waybill["federation"], "other-federation")
    organ = {"sha256": passport["organ_sha256"], "size_bytes": passport["organ_size_bytes"]}
    need(organ == waybill["organ"] and passport["round"] <= waybill["round"], "waybill-mismatch")
    need(passport["author"] == waybill["from"] or passport["sharing"] == "federation", "waybill-mismatch")
    return passport


def check_asked(passport: Mapping[str, Any], reader: Reader) -> None:
    """Step 9."""
    ask = reader.ask
    for recall in reader.roster["recalls"]:
        counts = recall["by"] in (None, passport["author"]) and recall["organ_sha256"] == passport["organ_sha256"]
        need(not counts, "organ-recalled")
    need(ask.get("base_sha256") in (None, passport["base_sha256"]), "base-not-expected")
    need(ask.get("span") in (None, passport["span"]), "other-span")
    need(ask.get("family") in (None, passport["family"]), "other-span")


# -- the organ file ---------------------------------------------------------------------------------------------------

SIZES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1, "I64": 8, "I32": 4,
         "I16": 2, "I8": 1, "U64": 8, "U32": 4, "U16": 2, "U8": 1, "BOOL": 1}  # fmt: skip
EXPONENTS = {"F64": 0x7FF0 << 48, "F32": 0x7F80 << 16, "F16": 0x7C00, "BF16": 0x7F80, "F8_E5M2": 0x7C,
             "F8_E4M3": 0x7F, "F8_E8M0": 0xFF}  # fmt: skip
ABSURD = {"F64": 0x4100 << 48, "F32": 0x4800 << 16, "BF16": 0x4800}  # 2^17
FORMATS = {8: "Q", 4: "I", 2: "H", 1: "B"}
IS_TENSOR = shaped({
    "dtype": lambda value: isinstance(value, str) and value in SIZES, "shape": listed(whole(1, 1 << 48), 0, 8),
    "data_offsets": listed(whole(0, 1 << 48), 2, 2),
})  # fmt: skip


def check_organ(organ: bytes, passport: Mapping[str, Any]) -> None:
    """Step 12."""
    bad = "organ-malformed"
    length = int.from_bytes(organ[:8], "little")
    need(len(organ) >= 8 and 2 <= length <= min(16 << 20, len(organ) - 8) and organ[8:9] == b"{", bad)
    tensors, data = Json(organ[8 : 8 + length], bad).document(), organ[8 + length :]
    metadata = tensors.pop("__metadata__", {})
    short: Check = lambda value: isinstance(value, str) and len(value.encode()) <= 4096  # noqa: E731
    need(mapped(short, short, 0, 64)(metadata), bad)
    need(mapped(text(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,254}"), IS_TENSOR, 1, 65_536)(tensors), bad)
    at = 0
    for entry in sorted(tensors.values(), key=lambda entry: entry["data_offsets"]):
        begin, end = entry["data_offsets"]
        count = 1
        for dimension in entry["shape"]:
            count *= dimension
        need(begin == at and end - begin == count * SIZES[entry["dtype"]], bad)
        at = end
    need(at == len(data), bad)
    check_manifest(metadata, tensors, passport)
    for entry in sorted(tensors.values(), key=lambda entry: entry["data_offsets"]):
        check_numbers(entry, data)


def check_manifest(metadata: Mapping[str, str], tensors: Mapping[str, Any], passport: Mapping[str, Any]) -> None:
    bad = "organ-malformed"
    need(set(metadata) == {"not-fed"}, bad)
    manifest = Json(metadata["not-fed"].encode(), bad).document()
    need(IS_MANIFEST(manifest), bad)
    layers = [re.search(r"(?:^|\.)([0-9]{1,5})\.", name) for name in tensors]
    numbers = {int(found[1]) for found in layers if found}
    need(all(layers) and numbers == set(range(manifest["span"][1] - manifest["span"][0])), bad)
    said = (manifest["base_sha256"], manifest["span"], manifest["blood_type"]["family"])
    need(said == (passport["base_sha256"], passport["span"], passport["family"]), "organ-mismatch")


def check_numbers(entry: Mapping[str, Any], data: bytes) -> None:
    dtype, (begin, end) = entry["dtype"], entry["data_offsets"]
    mask, absurd = EXPONENTS.get(dtype), ABSURD.get(dtype)
    values = [value for (value,) in struct.iter_unpack("<" + FORMATS[SIZES[dtype]], data[begin:end])]
    need(mask is None or all(value & mask != mask for value in values), "organ-not-finite")
    sign = 1 << 8 * SIZES[dtype] - 1
    need(absurd is None or all(value & ~sign < absurd for value in values), "organ-absurd")
