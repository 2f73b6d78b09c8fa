"""Faults of the passport, and of the organ behind it against what it says; what the reader asked for."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

from tests.support.second_reader import WAYBILL
from tests.support.second_writer import LEFT_OUT, Party, organ_file, tensor_file
from tests.support.vector_cases.base import MAIN, SealedCase, case, noise, repacked, swap

MISMATCH = "waybill-mismatch"
ORGAN = organ_file()
DIGEST, SIZE = hashlib.sha256(ORGAN).hexdigest(), len(ORGAN)
SHARED = {"sharing": "federation"}


# Keys that the lab had until five minutes and a second before the vectors' passports.
GONE = {"keys": "clinic-before", "not_before": "2026-01-01T00:00:00Z", "not_after": "2026-11-24T11:54:59Z"}


def recall(by: str | None) -> dict[str, str | None]:
    """By the stewards, or a member."""
    return {"organ_sha256": DIGEST, "reason": "a wrong base", "by": by}


def cases() -> Iterator[SealedCase]:
    """Steps 8, 9 and 12."""
    for name, about, code, parts in PASSPORTS:
        yield case(f"passport-{name}", about, code, **parts)
    for name, about, code, parts in ASKED:
        yield case(name, about, code, **parts)
    for name, about, code, organ in ORGANS:
        yield case(f"organ-{name}", about, code, organ=organ)


# fmt: off
PASSPORTS: list[tuple[str, str, str, dict[str, Any]]] = [
    ("another", "Another passport than the waybill names.", MISMATCH, {"waybill": {"passport_sha256": "00" * 32}}),
    ("newer", "urn:not-fed:passport:v2.", "newer-format", {"statement": {"predicateType": "urn:not-fed:passport:v2"}}),
    ("another-predicate", "Another predicate type.", "signed-malformed",
     {"statement": {"predicateType": "https://slsa.dev/provenance/v1"}}),
    ("type-of-a-waybill", "The payload type of a waybill.", "signed-malformed", {"passport_kind": WAYBILL}),
    ("field-missing", "No sharing.", "signed-malformed", {"predicate": {"sharing": LEFT_OUT}}),
    ("author-unknown", "An author on no roster, sent by a member.", "member-unknown",
     {"author": "mallory", "predicate": SHARED}),
    ("author-revoked", "The author was revoked, the sender was not.", "member-not-active",
     {"author": "lab", "predicate": SHARED, "roster": {"lab": {"status": "revoked"}}}),
    ("author-is-a-relay", "The author may relay and no more.", "member-role",
     {"author": "relay", "predicate": SHARED, "members": MAIN}),
    ("not-by-its-author", "Signed by the sender in the author's name.", "signature-refused",
     {"author": "lab", "predicate": SHARED, "passport_signer": Party("clinic")}),
    ("ed25519-alone", "The ML-DSA-65 signature is noise.", "signature-refused", {"edit_passport": noise(1)}),
    ("ml-dsa-65-alone", "The Ed25519 signature is noise.", "signature-refused", {"edit_passport": noise(0)}),
    ("edited", "A better metric, under the old signatures.", "signature-refused",
     {"edit_passport": repacked(swap('"loss":2.5', '"loss":0.5'))}),
    ("other-federation", "From another federation.", "other-federation", {"predicate": {"federation": "highlands"}}),
    ("another-organ", "Passport and waybill have different digests.", MISMATCH,
     {"waybill": {"organ": {"sha256": "00" * 32, "size_bytes": SIZE}}}),
    ("another-size", "Passport and waybill have different sizes.", MISMATCH,
     {"waybill": {"organ": {"sha256": DIGEST, "size_bytes": SIZE + 1}}}),
    ("former-keys-too-late", "Signed with keys that the author no longer used then.", "keys-retired",
     {"author": "lab", "predicate": SHARED, "passport_signer": Party("clinic-before"),
      "roster": {"lab": {"former": [GONE]}}}),
    ("from-the-future", "Made more than five minutes from now.", "not-current",
     {"predicate": {"created": "2026-11-25T08:05:01Z"}}),
    ("of-a-later-round", "Made in round 4, sent in round 3.", MISMATCH, {"predicate": {"round": 4}}),
    ("passed-on-without-leave", "Sharing with the addressees, sent by one of them.", MISMATCH, {"sender": "lab"}),
]
ASKED: list[tuple[str, str, str, dict[str, Any]]] = [
    ("recalled", "The stewards have withdrawn the organ.", "organ-recalled", {"recalls": [recall(None)]}),
    ("withdrawn-by-its-author", "The author has withdrawn it.", "organ-recalled", {"recalls": [recall("clinic")]}),
    ("asked-for-another-base", "Cut from another base.", "base-not-expected", {"ask": {"base_sha256": "00" * 32}}),
    ("asked-for-another-span", "Another span.", "other-span", {"ask": {"span": [2, 5]}}),
    ("asked-for-another-family", "Another family.", "other-span", {"ask": {"family": "qwen2"}}),
]
# fmt: on
ORGANS = [
    ("no-tensors", "A signed file without a tensor.", "organ-malformed", tensor_file(b"{}", b"")),
    ("not-finite", "A NaN among the weights.", "organ-not-finite", ORGAN[:-4] + b"\x00\x00\xc0\x7f"),
    ("absurd", "2^17 among the weights.", "organ-absurd", ORGAN[:-4] + b"\x00\x00\x00\x48"),
    ("of-another-base", "Not the passport's.", "organ-mismatch", organ_file(manifest={"base_sha256": "00" * 32})),
    ("of-another-span", "Not the passport's.", "organ-mismatch", organ_file(manifest={"span": [3, 5]})),
    (
        "of-another-family",
        "Not the passport's.",
        "organ-mismatch",
        organ_file(manifest={"blood_type": {"family": "a"}}),
    ),
]
