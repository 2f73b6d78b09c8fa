"""Faults of the waybill: of its signatures, and of what it says against what is there."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tests.support.second_reader import LABEL, WAYBILL, key_name
from tests.support.second_writer import LEFT_OUT, Party, stanza
from tests.support.vector_cases.base import SealedCase, case, fields, mixed, noise, payload_of, repacked, shorter, swap

UNSIGNED, MALFORMED, MISMATCH = "signature-refused", "signed-malformed", "waybill-mismatch"
HUB, LAB, MALLORY = (Party(word) for word in ("hub", "lab", "mallory"))
BEFORE = Party("clinic-before")
LEFT = {"keys": "clinic-before", "not_before": "2026-01-01T00:00:00Z", "not_after": "2026-11-24T12:00:00Z"}
OLD = {"not_before": "2026-01-01T00:00:00Z"}


def cases() -> Iterator[SealedCase]:
    """Step 7."""
    for name, about, code, parts in WAYBILLS:
        yield case(f"waybill-{name}", about, code, **parts)


# fmt: off
WAYBILLS: list[tuple[str, str, str, dict[str, Any]]] = [
    ("newer", "waybill.v2.", "newer-format", {"waybill_kind": WAYBILL.replace(".v1", ".v2")}),
    ("type-of-a-label", "The payload type of a label.", MALFORMED, {"waybill_kind": LABEL}),
    ("one-signature", "Ed25519 alone.", MALFORMED,
     {"edit_waybill": fields(lambda v: v | {"signatures": v["signatures"][:1]})}),
    ("three-signatures", "A third signature.", MALFORMED,
     {"edit_waybill": fields(lambda v: v | {"signatures": [*v["signatures"], v["signatures"][0]]})}),
    ("extra-field", "A field more, signed.", MALFORMED, {"waybill": {"more": 1}}),
    ("missing-field", "No pad.", MALFORMED, {"waybill": {"pad": LEFT_OUT}}),
    ("keys-swapped", "ML-DSA-65 first.", UNSIGNED, {"edit_waybill": fields(lambda v: v["signatures"].reverse())}),
    ("same-signature-twice", "Ed25519 in both places.", UNSIGNED,
     {"edit_waybill": fields(lambda v: v | {"signatures": [v["signatures"][0]] * 2})}),
    ("signature-cut", "An ML-DSA-65 signature of 3,308 bytes.", UNSIGNED,
     {"edit_waybill": fields(lambda v: v["signatures"][1].update(sig=shorter(v["signatures"][1]["sig"])))}),
    ("ed25519-alone", "The ML-DSA-65 signature is noise.", UNSIGNED, {"edit_waybill": noise(1)}),
    ("ml-dsa-65-alone", "The Ed25519 signature is noise.", UNSIGNED, {"edit_waybill": noise(0)}),
    ("edited", "Another round, under the old signatures.", UNSIGNED,
     {"edit_waybill": repacked(swap('"round":3', '"round":4'))}),
    ("another-member", "Signed by another member of the roster.", UNSIGNED, {"waybill_signer": LAB}),
    ("half-another-member", "Ed25519 by the sender, ML-DSA-65 by another member.", UNSIGNED,
     {"edit_waybill": mixed(Party("clinic"), LAB)}),
    ("signed-as-a-label", "Both signatures are over the type of a label.", UNSIGNED,
     {"edit_waybill": lambda line: Party("clinic").sign(payload_of(line), WAYBILL, signed_as=LABEL)}),
    ("stranger-with-a-members-name", "Somebody else's keys under the sender's name.", UNSIGNED,
     {"waybill_signer": MALLORY}),
    ("former-keys-too-late", "Signed with keys that the sender no longer used then.", "keys-retired",
     {"waybill_signer": BEFORE, "roster": {"clinic": {"former": [LEFT | {"not_after": "2026-11-24T11:54:59Z"}]}}}),
    ("keys-too-early", "Signed with keys that the sender did not use yet.", "keys-retired",
     {"roster": {"clinic": {"not_before": "2026-11-24T12:05:01Z"}}}),
    ("former-and-present-keys", "Ed25519 by former keys, ML-DSA-65 by those in use.", UNSIGNED,
     {"edit_waybill": mixed(BEFORE, Party("clinic")), "roster": {"clinic": {"former": [LEFT]}}}),
    ("stranger", "The sender is on no roster.", "member-unknown", {"sender": "mallory", "author": "mallory"}),
    ("other-federation", "Another federation, by a member of both.", "other-federation",
     {"waybill": {"federation": "highlands"}}),
    ("passport-and-all-of-another-federation", "Everything from another federation, by a member of both.",
     "other-federation", {"waybill": {"federation": "highlands"}, "predicate": {"federation": "highlands"}}),
    ("sender-revoked", "The stewards have revoked the sender.", "member-not-active",
     {"roster": {"clinic": {"status": "revoked"}}}),
    ("sender-over", "The sender's time on the roster is over.", "member-not-active",
     {"roster": {"clinic": {"not_after": "2026-11-25T07:54:59Z"}}}),
    ("sender-not-yet", "The sender's time has not begun.", "member-not-active",
     {"roster": {"clinic": {"not_before": "2026-11-25T08:05:01Z"}}}),
    ("expired", "Exactly five minutes after it expired.", "not-current", {"now": "2026-12-08T12:05:00Z"}),
    ("from-the-future", "More than five minutes before it was issued.", "not-current",
     {"now": "2026-11-24T11:54:59Z", "roster": {"clinic": OLD}}),
    ("valid-for-too-long", "92 days and a second.", "not-current", {"waybill": {"expires": "2027-02-24T12:00:01Z"}}),
    ("never-valid", "It ends when it begins.", "not-current",
     {"waybill": {"issued": "2026-11-25T08:00:00Z", "expires": "2026-11-25T08:00:00Z"}}),
    ("forwarded", "A recipient has sealed it again to somebody whom it does not name.", "not-addressed",
     {"reader": "lab", "edit_stanzas": lambda all_, key: [stanza(key, LAB.seal)]}),
    ("another-key", "The reader's name with another key.", "not-addressed",
     {"waybill": {"to": {"hub": key_name(MALLORY.seal)}}}),
    ("another-name", "The reader's key under another name.", "not-addressed",
     {"waybill": {"to": {"lab": key_name(HUB.seal)}}}),
    ("extra-stanza", "A recipient more than it names.", MISMATCH,
     {"edit_stanzas": lambda all_, key: [*all_, stanza(key, MALLORY.seal)]}),
    ("stanza-missing", "A recipient fewer than it names.", MISMATCH,
     {"to": ("hub", "lab"), "edit_stanzas": lambda all_, key: all_[:1]}),
    ("asked-for-another-federation", "The reader asked for another.", "other-federation",
     {"ask": {"federation": "highlands"}}),
    ("asked-for-another-round", "The reader asked for round 4.", "other-round", {"ask": {"round": 4}}),
    ("replayed", "It was opened before.", "waybill-replayed",
     {"waybill": {"id": "5e" * 16}, "seen": ["00" * 16, "5e" * 16]}),
]
# fmt: on
