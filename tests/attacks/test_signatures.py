"""Adversary: insiders and outsiders who sign, strip, add and exchange signatures on waybill, passport and label.

Powers: any number of keys of their own; an insider is on the roster and decrypts what is sealed to it; each can build
any frame and seal it to anybody. Lacks: the private keys of whomever it pretends to be.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from dataclasses import replace

import pytest

from not_fed.envelope import verify_sealed
from not_fed.envelope.dsse import BadSignature, MalformedSigned
from not_fed.envelope.label import PAYLOAD_TYPE as LABEL_TYPE
from not_fed.envelope.passport import PAYLOAD_TYPE as PASSPORT_TYPE
from not_fed.envelope.waybill import PAYLOAD_TYPE as WAYBILL_TYPE
from not_fed.errors import TrustError
from not_fed.keys.dsse import pae
from not_fed.trust.members import MemberNotActive, UnknownMember, WrongRole
from not_fed.trust.roster import revoke_member
from tests.support.attacks import (
    PLACES,
    TYPES,
    Place,
    assert_line_holds,
    assert_line_refused,
    assert_opens,
    check_outside,
    honest_line,
    honest_payload,
    signatures_of,
)
from tests.support.trust import NOW, Forger, Parcel, Site, assert_refused, edited

everywhere = pytest.mark.parametrize("place", PLACES)
REFUSED = (BadSignature, MalformedSigned)
Strip = Callable[[dict[str, str], dict[str, str]], list[dict[str, str]]]


def _assert_signatures_refused(forger: Forger, place: Place, *attempts: Strip) -> None:
    """Each list of signatures is refused in that place; the two right ones are accepted."""
    line = honest_line(forger, place)
    ed25519, ml_dsa = signatures_of(line)
    for attempt in attempts:
        assert_line_refused(forger, place, edited(line, signatures=attempt(ed25519, ml_dsa)), REFUSED)
    assert_line_holds(forger, place)


def _by_lab(forger: Forger, place: Place) -> list[dict[str, str]]:
    """The lab's two true signatures over the same payload."""
    payload = honest_payload(forger, place)
    return signatures_of(forger.sign(payload, TYPES[place], forger.parcel.federation.lab.signer))


@everywhere
def test_ed25519_alone_is_no_signature(forger: Forger, place: Place) -> None:
    """A16. The ML-DSA-65 signature is stripped, zeroed or emptied, so that Ed25519 alone would decide.

    Powers: a recipient or relay who edits signed lines; a quantum computer against Ed25519.
    Control: with both signatures the line is accepted.
    """
    _assert_signatures_refused(
        forger, place,
        lambda ed25519, ml_dsa: [ed25519],
        lambda ed25519, ml_dsa: [ed25519, ml_dsa | {"sig": ""}],
        lambda ed25519, ml_dsa: [ed25519, ml_dsa | {"sig": base64.b64encode(bytes(3309)).decode()}],
        lambda ed25519, ml_dsa: [ed25519, ml_dsa | {"sig": ed25519["sig"]}],
    )  # fmt: skip


@everywhere
def test_ml_dsa_alone_is_no_signature(forger: Forger, place: Place) -> None:
    """A17. The Ed25519 signature is stripped, zeroed or emptied, so that ML-DSA-65 alone would decide.

    Powers: a recipient or relay who edits signed lines; a break of ML-DSA-65.
    Control: with both signatures the line is accepted.
    """
    zero = base64.b64encode(bytes(64)).decode()
    _assert_signatures_refused(
        forger, place,
        lambda ed25519, ml_dsa: [ml_dsa],
        lambda ed25519, ml_dsa: [ed25519 | {"sig": zero}, ml_dsa],
        lambda ed25519, ml_dsa: [ed25519 | {"sig": ""}, ml_dsa],
        lambda ed25519, ml_dsa: [],
    )  # fmt: skip


@everywhere
def test_one_signature_twice_is_not_two(forger: Forger, place: Place) -> None:
    """A18. The same signature stands twice, once under each key's name.

    Powers: a recipient or relay who edits signed lines. Control: two different signatures are accepted.
    """
    _assert_signatures_refused(
        forger, place,
        lambda ed25519, ml_dsa: [ed25519, ed25519],
        lambda ed25519, ml_dsa: [ml_dsa, ml_dsa],
        lambda ed25519, ml_dsa: [ed25519, ed25519 | {"keyid": ml_dsa["keyid"]}],
        lambda ed25519, ml_dsa: [ml_dsa | {"keyid": ed25519["keyid"]}, ml_dsa],
    )  # fmt: skip


@everywhere
def test_a_third_signature_is_refused(forger: Forger, place: Place) -> None:
    """A19. An insider adds a true signature of its own to the two right ones, to appear as a co-signer.

    Powers: a member with signing keys who edits signed lines. Control: exactly two are accepted.
    """
    foreign = _by_lab(forger, place)
    _assert_signatures_refused(
        forger, place,
        lambda ed25519, ml_dsa: [ed25519, ml_dsa, foreign[0]],
        lambda ed25519, ml_dsa: [foreign[0], ed25519, ml_dsa],
        lambda ed25519, ml_dsa: [ed25519, ml_dsa, *foreign],
        lambda ed25519, ml_dsa: [ed25519, ml_dsa, ml_dsa],
    )  # fmt: skip


@everywhere
def test_each_signature_stands_under_its_own_key(forger: Forger, place: Place) -> None:
    """A20. The two signatures, or the names of their keys, trade places; or a key is named by something else.

    Powers: a recipient or relay who edits signed lines. Control: Ed25519 first, each under its key's name.
    """
    _assert_signatures_refused(
        forger, place,
        lambda ed25519, ml_dsa: [ml_dsa, ed25519],
        lambda ed25519, ml_dsa: [{"keyid": ml_dsa["keyid"], "sig": ed25519["sig"]},
                                 {"keyid": ed25519["keyid"], "sig": ml_dsa["sig"]}],
        lambda ed25519, ml_dsa: [ed25519 | {"keyid": ""}, ml_dsa],
        lambda ed25519, ml_dsa: [ed25519 | {"keyid": ed25519["keyid"].upper()}, ml_dsa],
        lambda ed25519, ml_dsa: [ed25519, ml_dsa | {"keyid": ml_dsa["keyid"][:32]}],
    )  # fmt: skip


@everywhere
def test_an_insiders_signature_does_not_fill_in_for_one_of_two(forger: Forger, place: Place) -> None:
    """A21. One of the two signatures is an insider's, under its own name or under that of the missing key.

    Powers: a member with both of its own keys, who edits signed lines. Control: both of the sender's are accepted.
    """
    foreign = _by_lab(forger, place)
    _assert_signatures_refused(
        forger, place,
        lambda ed25519, ml_dsa: [foreign[0], ml_dsa],
        lambda ed25519, ml_dsa: [ed25519, foreign[1]],
        lambda ed25519, ml_dsa: [foreign[0] | {"keyid": ed25519["keyid"]}, ml_dsa],
        lambda ed25519, ml_dsa: [ed25519, foreign[1] | {"keyid": ml_dsa["keyid"]}],
        lambda ed25519, ml_dsa: foreign,
    )  # fmt: skip


@everywhere
def test_no_signature_covers_an_edited_payload(forger: Forger, place: Place) -> None:
    """A22. What was signed is edited (round, names, metrics, a single space), the signatures are kept.

    Powers: a recipient or relay who edits signed lines. Control: the payload as it was signed is accepted.
    """
    line, honest = honest_line(forger, place), honest_payload(forger, place)
    if place == "passport":
        predicate = honest["predicate"] | {"metrics": {"perplexity": 1.0}}
        changed = [honest | {"predicate": predicate}, honest | {"predicate": honest["predicate"] | {"round": 2}}]
    else:
        changed = [honest | {"round": 2}, honest | {"expires": "2026-12-09T12:00:00Z"}]
    payload = base64.b64decode(json.loads(line)["payload"])
    texts = [*(json.dumps(value, sort_keys=True, separators=(",", ":")).encode() for value in changed), payload + b" "]
    for text in texts:
        edited_line = edited(line, payload=base64.b64encode(text).decode())
        assert_line_refused(forger, place, edited_line, (*REFUSED,))
    assert_line_holds(forger, place)


def test_a_signed_object_is_never_taken_for_one_of_another_type(forger: Forger, parcel: Parcel) -> None:
    """A23. Each signed line is put into each other place, with its own type and with the type that place expects.

    Powers: collects every line that a member ever signed. Control: each line in its own place is accepted.
    """
    label = parcel.sealed.label
    for line in (
        label,
        forger.passport_line,
        edited(label, payloadType=WAYBILL_TYPE),
        edited(forger.passport_line, payloadType=WAYBILL_TYPE),
    ):
        forger.write(waybill=line)
        assert_refused(parcel, TrustError)
    for line in (label, forger.waybill_line, edited(forger.waybill_line, payloadType=PASSPORT_TYPE)):
        forger.rewrite(passport=line)
        assert_refused(parcel, TrustError)
    for line in (forger.waybill_line, forger.passport_line, edited(forger.waybill_line, payloadType=LABEL_TYPE)):
        with pytest.raises(TrustError):
            check_outside(parcel, line)
    for place in PLACES:
        assert_line_holds(forger, place)


@everywhere
def test_the_type_is_part_of_what_is_signed(forger: Forger, place: Place) -> None:
    """A23. An insider gets the sender's signature over the same bytes under another type, and changes the type back.

    Powers: a true signature over the right payload, of a type that is signed elsewhere.
    Control: the signature over the right type is accepted.
    """
    payload = honest_payload(forger, place)
    for other in {*TYPES.values(), "application/json", TYPES[place] + " ", ""} - {TYPES[place]}:
        line = edited(forger.sign(payload, other), payloadType=TYPES[place])
        assert_line_refused(forger, place, line, BadSignature)
    assert_line_holds(forger, place)


@everywhere
def test_an_insider_cannot_sign_as_somebody_else(forger: Forger, place: Place) -> None:
    """A24. The lab signs as the clinic what the clinic said, or something like it.

    Powers: a member with both of its own keys. Control: the clinic's own signature is accepted.
    """
    line = forger.sign(honest_payload(forger, place), TYPES[place], forger.parcel.federation.lab.signer)
    assert_line_refused(forger, place, line, BadSignature)
    assert_line_holds(forger, place)


def test_an_outsider_cannot_sign(forger: Forger, parcel: Parcel) -> None:
    """A25. Author or sender is nobody on the roster, under a name of its own or under that of a member.

    Powers: any keys and any name, and what is sealed to the members. Control: the member's own lines are accepted.
    """
    mallory, twin = Site.make("mallory"), Site.make("clinic")
    forger.write(waybill=forger.waybill_with(signer=mallory.signer, sender="mallory"))
    assert_refused(parcel, UnknownMember)
    forger.write(waybill=forger.waybill_with(signer=twin.signer))
    assert_refused(parcel, BadSignature)
    forger.rewrite(passport=forger.passport_with(signer=mallory.signer, author="mallory"))
    assert_refused(parcel, UnknownMember)
    forger.rewrite(passport=forger.passport_with(signer=twin.signer))
    assert_refused(parcel, BadSignature)
    forger.write()
    assert_opens(parcel)


def test_names_that_look_alike_are_different_names(forger: Forger, parcel: Parcel) -> None:
    """Own. The sender calls itself by a name that looks like a member's: upper case, Cyrillic, a space, zero width.

    Powers: keys of its own and any name in any script. Control: the member's own name is accepted.
    """
    twin = Site.make("clinic").signer
    for name in ("Clinic", "CLINIC", "\u0441linic", "clinic ", " clinic", "clin\u200bic", "clinic\u202e", "\uff43linic",
                 "clinic\n", "clínic", "cli\0nic", "clinic.", "-clinic", "../clinic", ""):  # fmt: skip
        forger.write(waybill=forger.waybill_with(signer=twin, sender=name))
        assert_refused(parcel, (UnknownMember, MalformedSigned))
        forger.rewrite(passport=forger.passport_with(signer=twin, author=name))
        assert_refused(parcel, (UnknownMember, MalformedSigned))
    forger.write()
    assert_opens(parcel)


def test_only_authors_and_aggregators_may_author(forger: Forger, parcel: Parcel) -> None:
    """Own. A receiver without the author role signs an organ of its own and sends it.

    Powers: a member with both of its own keys. Control: with the role, the same organ is accepted.
    """
    federation = parcel.federation
    weaker = replace(federation.roster.members["lab"], roles=frozenset({"receiver"}))
    roster = replace(federation.roster, members={**federation.roster.members, "lab": weaker})
    lab = federation.lab.signer
    forger.rewrite(passport=forger.passport_with(signer=lab, author="lab"), signer=lab, sender="lab")
    assert assert_opens(parcel).author == "lab"  # control: with the role it may
    parcel.federation = replace(federation, roster=roster)
    assert_refused(parcel, WrongRole)


def test_a_revoked_member_is_refused_at_once(own_parcel: Parcel) -> None:
    """A58. A member is revoked after it sealed an organ, and before that organ is opened or its label checked.

    Powers: a member's keys, stolen before they were revoked. Control: until the revocation the organ opens.
    """
    federation = own_parcel.federation
    assert assert_opens(own_parcel).sender == "clinic"
    roster = revoke_member(federation.folder, name="clinic", steward=federation.steward, now=NOW)
    own_parcel.federation = replace(federation, roster=roster)
    assert_refused(own_parcel, MemberNotActive)
    with pytest.raises(MemberNotActive):
        verify_sealed(own_parcel.path, roster=roster, now=NOW, label=own_parcel.sealed.label)


@everywhere
def test_a_signature_over_the_bare_payload_is_none(forger: Forger, place: Place) -> None:
    """Own. The sender once signed the same bytes outside of DSSE, or under a header with other lengths.

    Powers: true signatures by both of the sender's keys over nearly the same bytes. Control: over DSSE's they count.
    """
    line = honest_line(forger, place)
    payload, kind = base64.b64decode(json.loads(line)["payload"]), TYPES[place]
    signer = forger.parcel.federation.clinic.signer
    right = pae(kind, payload)
    for message in (payload, right + b"\n", right[1:], right.replace(b"DSSEv1", b"DSSEv2"), b"TUF" + right,
                    b"DSSEv1 %d %b %d %b" % (len(payload), payload, len(kind), kind.encode())):  # fmt: skip
        entries = [
            entry | {"sig": base64.b64encode(signature).decode()}
            for entry, signature in zip(signatures_of(line), signer.sign(message), strict=True)
        ]
        assert_line_refused(forger, place, edited(line, signatures=entries), BadSignature)
    again = [
        entry | {"sig": base64.b64encode(signature).decode()}
        for entry, signature in zip(signatures_of(line), signer.sign(right), strict=True)
    ]
    if place == "label":
        assert check_outside(forger.parcel, edited(line, signatures=again))
    elif place == "waybill":
        forger.write(waybill=edited(line, signatures=again))
        assert_opens(forger.parcel)
    else:
        forger.rewrite(passport=edited(line, signatures=again))
        assert_opens(forger.parcel)


@everywhere
def test_ed25519_signatures_cannot_be_bent(forger: Forger, place: Place) -> None:
    """Own. A second valid-looking Ed25519 signature is made from a true one: S plus the group's order; other R bits.

    Powers: a recipient or relay who edits signed lines, no key. Control: the signature as it was made is accepted.
    """
    order = 2**252 + 27742317777372353535851937790883648493

    def bent(entry: dict[str, str], change: Callable[[bytes], bytes]) -> dict[str, str]:
        return entry | {"sig": base64.b64encode(change(base64.b64decode(entry["sig"]))).decode()}

    def plus_order(signature: bytes) -> bytes:
        return signature[:32] + (int.from_bytes(signature[32:], "little") + order).to_bytes(32, "little")

    _assert_signatures_refused(
        forger, place,
        lambda ed25519, ml_dsa: [bent(ed25519, plus_order), ml_dsa],
        lambda ed25519, ml_dsa: [bent(ed25519, lambda sig: sig[:31] + bytes([sig[31] ^ 0x80]) + sig[32:]), ml_dsa],
        lambda ed25519, ml_dsa: [bent(ed25519, lambda sig: sig + b"\0"), ml_dsa],
        lambda ed25519, ml_dsa: [ed25519, bent(ml_dsa, lambda sig: sig + b"\0")],
        lambda ed25519, ml_dsa: [ed25519, bent(ml_dsa, lambda sig: sig[:-1] + bytes([sig[-1] ^ 1]))],
    )  # fmt: skip
