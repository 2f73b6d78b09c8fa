"""Sealed files with no fault at all."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from not_fed.canonical import parse_time
from not_fed.envelope import seal_organ
from not_fed.keys.signing import FileSigner, SigningKeys
from not_fed.trust.members import ROLES, Member, TrustedRoster
from tests.support.second_reader import key_name
from tests.support.second_writer import EXPIRES, ISSUED, LEFT_OUT, Draft, Party, Written, bech32, organ_file, stanza
from tests.support.vector_cases.base import (
    AUDIT,
    CHUNK,
    DP,
    FOUND,
    MECHANISM,
    NOISED,
    PERSON,
    PUBLIC,
    SealedCase,
    case,
    loosely,
)

FIFTY = tuple(f"site-{number:02}" for number in range(1, 51))
OPTIONAL = ("runs", "adjacency", "noise_added_at")
BARE_DP = {**DP, "mechanism": {name: value for name, value in MECHANISM.items() if name not in OPTIONAL}}
ORGAN = organ_file()
BEFORE, HUB_BEFORE = Party("clinic-before"), Party("hub-before")
LEFT = {"keys": "clinic-before", "not_before": "2026-01-01T00:00:00Z", "not_after": "2026-11-24T20:00:00Z"}


# fmt: off
def cases() -> Iterator[SealedCase]:
    """Everything as it should be."""
    yield case("opened-one-recipient", "One recipient, no label.")
    yield case("opened-three-recipients", "The last stanza but one is the reader's.", label={},
               to=("lab", "hub", "clinic"))
    yield case("opened-fifty-recipients", "A header of 78 KB; the reader is one of fifty.", to=FIFTY, reader="site-33",
               members=("clinic",))
    yield case("opened-label-alone", "Without a decryption key, by the label.", label={}, reader=None)
    yield case("opened-label-as-on-disk", "The label's line with its line feed.", label={},
               edit_label=lambda line: line + b"\n")
    yield case("opened-padded", "Padding hides the exact size.", organ=organ_file(filler=3000), pad=136)
    yield case("opened-padding-at-its-limit", "A quarter of the organ and 4 KiB.", pad=len(ORGAN) // 4 + 4096)
    yield case("opened-passed-on", "By a recipient, with the author's leave, in a later round.", sender="lab",
               predicate={"sharing": "federation"}, waybill={"round": 4}, label={"round": 4})
    yield case("opened-by-an-aggregator", "The author is an aggregator.", author="hub", sender="hub",
               to=("clinic", "lab"), reader="lab")
    yield case("opened-outside-of-rounds", "Round 0.", predicate={"round": 0}, waybill={"round": 0})
    yield case("opened-with-a-privacy-claim", "A claim, an audit, parents and metrics.", predicate={
        "dp": DP, "audit": AUDIT, "parents": ["12" * 32], "metrics": {"loss": -1e-300, "n": 7, "acc.top-1": 0.5}})
    yield case("opened-for-people-with-releases", "People, repeated steps, what an audit found, numbers.",
               predicate={"dp": PERSON, "audit": FOUND, "releases": [NOISED, PUBLIC], "ledger_head": "3e" * 32})
    yield case("opened-with-nulls-for-what-is-optional", "null where a field of an audit or of a release is optional.",
               predicate={"dp": PERSON, "audit": AUDIT | dict.fromkeys(set(FOUND) - set(AUDIT)), "ledger_head": None,
                          "releases": [PUBLIC | dict.fromkeys(("noise_multiplier", "sensitivity", "divisor"))]})
    yield case("opened-with-optional-fields-left-out", "What may be missing is missing.", predicate={
        "parents": LEFT_OUT, "audit": LEFT_OUT, "signature_policy": LEFT_OUT, "dp": BARE_DP})
    yield case("opened-unknown-predicate-field", "In-toto wants unknown fields of a predicate ignored.",
               predicate={"future": {"a": [1]}})
    yield case("opened-payloads-spelled-otherwise", "A signed payload may be any JSON text.",
               edit_waybill_payload=loosely, edit_statement=loosely)
    yield case("opened-as-asked", "Federation, round, base, span and family are the ones asked for.", ask={
        "federation": "lowlands", "round": 3, "base_sha256": "ab" * 32, "span": [2, 4], "family": "llama"})
    yield case("opened-at-the-first-moment", "Five minutes before it was issued.", now="2026-11-24T11:55:00Z")
    yield case("opened-at-the-last-moment", "A second less than five minutes after it expired.",
               now="2026-12-08T12:04:59Z")
    yield case("opened-valid-for-92-days", "As long as may be.", waybill={"expires": "2027-02-24T12:00:00Z"},
               label={"expires": "2027-02-24T12:00:00Z"}, now="2027-02-24T11:00:00Z")
    yield case("opened-another-waybill-was-seen", "The memory holds other waybills.", seen=["ff" * 16])
    yield case("opened-signed-with-former-keys", "Author and sender changed their keys afterwards.",
               waybill_signer=BEFORE, passport_signer=BEFORE, label_signer=BEFORE, label={},
               roster={"clinic": {"not_before": "2026-11-24T20:00:00Z", "former": [LEFT]}})
    yield case("opened-with-a-retired-key", "The reader changed its key afterwards.", retired=["hub-before"],
               waybill={"to": {"hub": key_name(HUB_BEFORE.seal)}},
               edit_stanzas=lambda all_, key: [stanza(key, HUB_BEFORE.seal)])
    yield case("opened-withdrawn-by-somebody-else", "A member withdrew an organ that is not its own.",
               recalls=[{"organ_sha256": hashlib.sha256(ORGAN).hexdigest(), "reason": "spite", "by": "lab"}])
    yield case("opened-made-by-the-library", "Sealed by not-fed 0.1.0 for three, padded.", alter=by_the_library,
               organ=organ_file(filler=2000), reader="lab")
    for size in (CHUNK - 1, CHUNK, CHUNK + 1, (1 << 20) - 1, 1 << 20, (1 << 20) + 1):
        yield case(f"opened-payload-of-{size}", f"The frame is {size:,} bytes: an edge of chunks.", **at_size(size))
# fmt: on


def by_the_library(made: Written) -> Written:
    """The same organ and passport, sealed by seal_organ."""
    with TemporaryDirectory() as name:
        organ, out = Path(name) / "organ", Path(name) / "sealed"
        _, _, passport, content = made.plain.split(b"\n", 3)
        organ.write_bytes(content)
        ed25519, ml_dsa_65 = Party("clinic").signing
        done = seal_organ(
            organ, passport=passport, sender=FileSigner("clinic", ed25519=ed25519, ml_dsa_65=ml_dsa_65), round_number=3,
            recipients=("hub", "lab", "clinic"), roster=plain_roster(), federation="lowlands", out=out, pad=True,
            now=parse_time(ISSUED),
        )  # fmt: skip
        return replace(made, sealed=out.read_bytes(), label=done.label)


def plain_roster() -> TrustedRoster:
    """Clinic, hub and lab, each with every role."""
    members = {
        name: Member(
            name=name, roles=frozenset(ROLES), signing=SigningKeys(*Party(name).public), active=True,
            recipient=bech32("age1pq", Party(name).seal), not_before=parse_time(ISSUED), not_after=parse_time(EXPIRES),
        )
        for name in ("clinic", "hub", "lab")
    }  # fmt: skip
    return TrustedRoster(federation="lowlands", version=7, expires_at=parse_time(EXPIRES), members=members)


def at_size(total: int) -> dict[str, Any]:
    """An organ such that the frame has exactly that size."""
    filler = total - 12_000
    for _ in range(20):
        organ = organ_file(filler=filler)
        got = len(Draft(organ=organ).write().plain)
        if got == total:
            return {"organ": organ}
        filler += total - got
    raise AssertionError(total)
