"""Faults of the label. Without a decryption key only size and digest of the file count, so it is a short one."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from tests.support.second_reader import LABEL, WAYBILL
from tests.support.second_writer import Party
from tests.support.vector_cases.base import MAIN, SealedCase, case, noise

MISMATCH = "label-mismatch"

GONE = {"keys": "clinic-before", "not_before": "2026-01-01T00:00:00Z", "not_after": "2026-11-24T11:54:59Z"}


def another_digest(body: bytes) -> bytes:
    """Four digits of it."""
    return re.sub(rb'"sha256":"[0-9a-f]{4}', b'"sha256":"beef', body)


def cases() -> Iterator[SealedCase]:
    """Step L; and what the waybill then says to the label."""
    for name, about, code, parts in OUTSIDE:
        yield case(
            f"label-{name}", about, code, reader=None, edit_sealed=lambda sealed: sealed[:99], **{"label": {}} | parts
        )
    for name, about, label in INSIDE:
        signer = Party("lab") if "from" in label else None
        yield case(f"label-{name}", about, MISMATCH, label=label, label_signer=signer)
    yield case("label-digest-with-a-key", "Another digest, and a reader who decrypts.", MISMATCH, label={},
               edit_label_payload=another_digest)  # fmt: skip


# fmt: off
OUTSIDE: list[tuple[str, str, str, dict[str, Any]]] = [
    ("newer", "label.v2.", "newer-format", {"label_kind": LABEL.replace(".v1", ".v2")}),
    ("type-of-a-waybill", "The payload type of a waybill.", "signed-malformed", {"label_kind": WAYBILL}),
    ("too-long", "A line of more than 64 KiB.", "signed-malformed", {"edit_label": lambda line: line + b" " * 65_536}),
    ("not-sorted", "Recipients in another order.", "signed-malformed", {"label": {"to": ["lab", "hub"]}}),
    ("other-federation", "Another federation.", MISMATCH, {"label": {"federation": "highlands"}}),
    ("former-keys-too-late", "Signed with keys that the sender no longer used then.", "keys-retired",
     {"label_signer": Party("clinic-before"), "roster": {"clinic": {"former": [GONE]}}}),
    ("stranger", "By somebody who is on no roster.", "member-unknown",
     {"label": {"from": "mallory"}, "label_signer": Party("mallory")}),
    ("sender-revoked", "By a member who was revoked.", "member-not-active",
     {"roster": {"clinic": {"status": "revoked"}}}),
    ("not-by-its-sender", "Signed by another member.", "signature-refused", {"label_signer": Party("lab")}),
    ("ed25519-alone", "The ML-DSA-65 signature is noise.", "signature-refused", {"edit_label": noise(1)}),
    ("ml-dsa-65-alone", "The Ed25519 signature is noise.", "signature-refused", {"edit_label": noise(0)}),
    ("expired", "Five minutes after it expired.", "not-current", {"now": "2026-12-08T12:05:00Z"}),
    ("valid-for-too-long", "92 days and a second.", "not-current", {"label": {"expires": "2027-02-24T12:00:01Z"}}),
    ("size", "Another size.", MISMATCH, {"label": {"sealed": {"sha256": "00" * 32, "size_bytes": 5}}}),
    ("digest", "The right size, another digest.", MISMATCH,
     {"edit_label_payload": another_digest}),
    ("recipient-unknown", "To somebody who is on no roster.", "member-unknown", {"label": {"to": ["hub", "mallory"]}}),
    ("recipient-revoked", "To somebody who was revoked.", "member-not-active",
     {"roster": {"hub": {"status": "revoked"}}}),
    ("recipient-is-a-relay", "To somebody who may not receive.", "member-role",
     {"label": {"to": ["hub", "relay"]}, "members": MAIN}),
    ("asked-for-another-federation", "The reader asked for another.", "other-federation",
     {"ask": {"federation": "highlands"}}),
    ("asked-for-another-round", "The reader asked for round 4.", "other-round", {"ask": {"round": 4}}),
]
INSIDE: list[tuple[str, str, dict[str, Any]]] = [
    ("of-another-sender", "Somebody has put a label of their own on it.", {"from": "lab"}),
    ("of-another-round", "Another round than the waybill.", {"round": 2}),
    ("of-another-audience", "A recipient more than in the waybill.", {"to": ["hub", "lab"]}),
]
# fmt: on
