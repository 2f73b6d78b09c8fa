"""Adversary: insiders and outsiders who sign, and a relay that labels.

Powers: any number of keys of their own; an insider is on the roster and decrypts what is sealed to it; each can build
any frame and seal it to anybody. Lacks: the private keys of whomever it pretends to be.
"""

from __future__ import annotations

import base64
import json
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from not_fed.envelope import Expectation, check_label, verify_sealed
from not_fed.envelope.checks import NotAddressed, OtherFederation, OtherRound, WaybillMismatch
from not_fed.envelope.dsse import Stale
from not_fed.envelope.label import PAYLOAD_TYPE as LABEL_TYPE
from not_fed.envelope.label import LabelMismatch
from not_fed.envelope.open import NothingToVerify
from not_fed.envelope.seen import MemorySeen
from not_fed.envelope.passport import PAYLOAD_TYPE as PASSPORT_TYPE
from not_fed.envelope.waybill import PAYLOAD_TYPE as WAYBILL_TYPE
from not_fed.envelope.waybill import WaybillReplayed
from not_fed.errors import TrustError
from not_fed.keys import dsse
from not_fed.keys.dsse import BadSignature, MalformedSigned, NewerFormat
from not_fed.keys.sealing import recipient_fingerprint
from not_fed.trust.members import MemberNotActive, UnknownMember, WrongRole
from not_fed.trust.roster import revoke_member
from tests.support.trust import NOW, Federation, Forger, Parcel, Site, assert_refused, days, edited, payload_of


def _signatures(line: bytes) -> list[dict[str, str]]:
    value: list[dict[str, str]] = json.loads(line)["signatures"]
    return value


def _strip(line: bytes, other: bytes) -> dict[str, bytes]:
    """Every way to show other than exactly the two right signatures; `other` is a line signed by somebody else."""
    ed25519, ml_dsa = _signatures(line)
    foreign = _signatures(other)
    zero = base64.b64encode(bytes(64)).decode()
    return {
        "none": edited(line, signatures=[]),
        "Ed25519 alone": edited(line, signatures=[ed25519]),
        "ML-DSA alone": edited(line, signatures=[ml_dsa]),
        "Ed25519 twice": edited(line, signatures=[ed25519, ed25519]),
        "ML-DSA twice": edited(line, signatures=[ml_dsa, ml_dsa]),
        "a third one": edited(line, signatures=[ed25519, ml_dsa, foreign[0]]),
        "the other order": edited(line, signatures=[ml_dsa, ed25519]),
        "key ids swapped": edited(line, signatures=[
            {"keyid": ml_dsa["keyid"], "sig": ed25519["sig"]}, {"keyid": ed25519["keyid"], "sig": ml_dsa["sig"]}]),
        "a foreign Ed25519": edited(line, signatures=[foreign[0], ml_dsa]),
        "a foreign ML-DSA": edited(line, signatures=[ed25519, foreign[1]]),
        "a foreign one, renamed": edited(line, signatures=[ed25519, foreign[1] | {"keyid": ml_dsa["keyid"]}]),
        "a zero signature": edited(line, signatures=[ed25519 | {"sig": zero}, ml_dsa]),
        "an empty signature": edited(line, signatures=[ed25519, ml_dsa | {"sig": ""}]),
    }  # fmt: skip


@pytest.mark.parametrize("which", ["waybill", "passport"])
def test_both_signatures_are_needed_and_no_others(parcel: Parcel, which: str) -> None:
    """Whoever breaks one of the two algorithms, or strips one signature, has nothing."""
    forger = Forger(parcel)
    if which == "waybill":
        other = forger.sign(forger.waybill, WAYBILL_TYPE, parcel.federation.lab.signer)
        for line in _strip(forger.waybill_line, other).values():
            forger.write(waybill=line)
            assert_refused(parcel, (BadSignature, MalformedSigned))
    else:
        other = forger.sign(forger.passport, PASSPORT_TYPE, parcel.federation.lab.signer)
        for line in _strip(forger.passport_line, other).values():
            forger.rewrite(passport=line)
            assert_refused(parcel, (BadSignature, MalformedSigned))
    forger.write()
    assert parcel.open().sender == "clinic"  # control: the same workbench, nothing changed


def test_an_outsider_cannot_sign(parcel: Parcel) -> None:
    """It takes any name it likes, not the keys."""
    forger, mallory, twin = Forger(parcel), Site.make("mallory"), Site.make("clinic")
    forger.write(waybill=forger.waybill_with(signer=mallory.signer, sender="mallory"))
    assert_refused(parcel, UnknownMember)
    forger.write(waybill=forger.waybill_with(signer=twin.signer))
    assert_refused(parcel, BadSignature)
    forger.rewrite(passport=forger.passport_with(signer=mallory.signer, author="mallory"))
    assert_refused(parcel, UnknownMember)
    forger.rewrite(passport=forger.passport_with(signer=twin.signer))
    assert_refused(parcel, BadSignature)


def test_an_insider_cannot_sign_as_somebody_else(parcel: Parcel) -> None:
    forger, lab = Forger(parcel), parcel.federation.lab
    forger.write(waybill=forger.waybill_with(signer=lab.signer))
    assert_refused(parcel, BadSignature)
    forger.rewrite(passport=forger.passport_with(signer=lab.signer))
    assert_refused(parcel, BadSignature)


def test_only_authors_and_aggregators_may_author(parcel: Parcel) -> None:
    """A receiver without the author role signs an organ of its own."""
    forger, federation = Forger(parcel), parcel.federation
    weaker = replace(federation.roster.members["lab"], roles=frozenset({"receiver"}))
    roster = replace(federation.roster, members={**federation.roster.members, "lab": weaker})
    lab = federation.lab.signer
    forger.rewrite(passport=forger.passport_with(signer=lab, author="lab"), signer=lab, sender="lab")
    assert parcel.open().author == "lab"  # control: with the role it may
    (parcel.folder / "opened.organ").unlink()
    (parcel.folder / "opened.organ.passport").unlink()
    parcel.federation = replace(federation, roster=roster)
    assert_refused(parcel, WrongRole)


def test_a_revoked_member_is_refused_at_once(tmp_path: Path) -> None:
    federation = Federation.make(tmp_path / "roster")
    (tmp_path / "work").mkdir()
    parcel = Parcel(tmp_path / "work", federation)
    assert parcel.open().sender == "clinic"
    for name in ("opened.organ", "opened.organ.passport"):
        (tmp_path / "work" / name).unlink()
    roster = revoke_member(federation.folder, name="clinic", steward=federation.steward, now=NOW)
    parcel.federation = Federation(**{**vars(federation), "roster": roster})
    assert_refused(parcel, MemberNotActive)
    with pytest.raises(MemberNotActive):
        verify_sealed(parcel.path, roster=roster, now=NOW, label=parcel.sealed.label)


def test_a_recipient_cannot_pass_an_organ_on_as_meant_for_another(parcel: Parcel, federation: Federation) -> None:
    """Surreptitious forwarding: the lab re-seals the clinic's frame to others, whole as it is."""
    forger = Forger(parcel)
    third = Site.make("third")
    forger.write(to=[third.opener.recipient, federation.hub.opener.recipient])
    assert_refused(parcel, NotAddressed, by=third)
    forger.write(to=[*forger.to, third.opener.recipient])  # one stanza more than the waybill names
    assert_refused(parcel, WaybillMismatch)
    assert_refused(parcel, NotAddressed, by=third)


def test_the_waybill_must_name_the_recipient_with_its_own_key(parcel: Parcel) -> None:
    forger, hub, lab = Forger(parcel), parcel.federation.hub, parcel.federation.lab
    wrong = {"hub": recipient_fingerprint(lab.opener.recipient), "lab": recipient_fingerprint(hub.opener.recipient)}
    forger.write(waybill=forger.waybill_with(to=wrong))
    assert_refused(parcel, NotAddressed)


def test_redistribution_needs_the_authors_leave(tmp_path: Path, federation: Federation) -> None:
    """The lab sends the clinic's organ on under its own waybill: visible as such, and only when sharing allows it."""
    for sharing, folder in (("addressees", tmp_path / "a"), ("federation", tmp_path / "f")):
        folder.mkdir()
        parcel = Parcel(folder, federation, changes={"sharing": sharing})
        forger = Forger(parcel)
        forger.write(waybill=forger.waybill_with(signer=federation.lab.signer, sender="lab"))
        if sharing == "addressees":
            assert_refused(parcel, WaybillMismatch)
        else:
            opened = parcel.open()
            assert (opened.sender, opened.author) == ("lab", "clinic")


def test_waybill_and_passport_cannot_be_mixed(parcel: Parcel) -> None:
    """A true waybill beside another true passport; and one that names the passport of another organ."""
    forger = Forger(parcel)
    another = forger.passport_with(metrics={"loss": 1.0})
    forger.write(passport=another)
    assert_refused(parcel, WaybillMismatch)
    digest = {"subject": [{"name": "organ", "digest": {"sha256": "00" * 32}}]}
    forger.rewrite(passport=forger.sign(forger.passport | digest, PASSPORT_TYPE))
    assert_refused(parcel, WaybillMismatch)
    forger.rewrite(passport=forger.passport_with(organ_size_bytes=len(forger.organ) + 1))
    assert_refused(parcel, WaybillMismatch)
    forger.rewrite(passport=forger.passport_with(round=4))  # made in a round that has not been
    assert_refused(parcel, WaybillMismatch)


def test_another_federation_is_refused_wherever_it_is_named(parcel: Parcel) -> None:
    forger = Forger(parcel)
    forger.write(waybill=forger.waybill_with(federation="highlands"))
    assert_refused(parcel, OtherFederation)
    forger.rewrite(passport=forger.passport_with(federation="highlands"))
    assert_refused(parcel, OtherFederation)
    forger.rewrite(
        passport=forger.passport_with(federation="highlands"), federation="highlands"
    )  # whole and consistent
    assert_refused(parcel, OtherFederation)
    forger.write()
    assert_refused(parcel, OtherFederation, expect=Expectation(federation="highlands"))


def test_old_and_future_waybills_are_refused(parcel: Parcel) -> None:
    for moment in (days(-1), days(15), days(400)):
        assert_refused(parcel, (Stale, MemberNotActive), now=NOW + moment)
    forger = Forger(parcel)
    forger.write(waybill=forger.waybill_with(issued="2026-12-01T00:00:00Z", expires="2026-11-01T00:00:00Z"))
    assert_refused(parcel, Stale)
    forger.write()
    assert parcel.open(now=NOW + days(13.9)).sender == "clinic"  # control


def test_a_waybill_cannot_be_replayed(parcel: Parcel) -> None:
    """The relay sends the very same file again, under another name, and in another round."""
    seen = MemorySeen()
    assert parcel.open(seen=seen).sender == "clinic"
    assert_refused(parcel, WaybillReplayed, seen=seen, out=parcel.folder / "again.organ")
    assert_refused(parcel, OtherRound, expect=Expectation(round_number=4), out=parcel.folder / "again.organ")
    opened = parcel.open(expect=Expectation(round_number=3), out=parcel.folder / "again.organ", seen=MemorySeen())
    assert opened.sender == "clinic"  # control: a memory that does not know it


def test_a_known_waybill_is_refused_before_anything_is_written(parcel: Parcel) -> None:
    """A site that keeps the memory itself, and records later: looking is enough to refuse."""

    class Looking(MemorySeen):
        def record(self, waybill_id: str, expires: datetime, /) -> None:
            """The caller's business."""

    seen = Looking()
    assert parcel.open(seen=seen).sender == "clinic"
    MemorySeen.record(seen, parcel.sealed.waybill_id, NOW)
    assert_refused(parcel, WaybillReplayed, seen=seen, out=parcel.folder / "again.organ")


def test_two_opens_at_once_write_one_organ(parcel: Parcel) -> None:
    """Both passed the first look into the memory; the second to record takes its output back."""

    class Racing(MemorySeen):
        def check(self, waybill_id: str, /) -> None:
            """Both look before either records."""

    seen = Racing()
    assert parcel.open(seen=seen).sender == "clinic"
    assert_refused(parcel, WaybillReplayed, seen=seen, out=parcel.folder / "second.organ")


HOSTILE_PAYLOADS: list[object] = [
    [], None, 3, "text", True, {}, b"{", b"\xff\xfe", b'{"a":1,"a":2}', b'{"a":NaN}', b'{"a":1e999}',
    b"[" * 200 + b"]" * 200, b'{"id":' + b"9" * 5000 + b"}", b"",
]  # fmt: skip


@pytest.mark.parametrize("kind", [WAYBILL_TYPE, PASSPORT_TYPE, LABEL_TYPE])
def test_payloads_of_another_shape_are_refused_before_use(parcel: Parcel, kind: str) -> None:
    """Properly signed by a member, so that shape alone decides; nothing but a typed refusal may come out."""
    forger = Forger(parcel)
    honest: Any = {
        WAYBILL_TYPE: forger.waybill,
        PASSPORT_TYPE: forger.passport,
        LABEL_TYPE: payload_of(parcel.sealed.label),
    }[kind]
    attempts = [*HOSTILE_PAYLOADS, *_misshapen(honest)]
    for payload in attempts:
        line = forger.sign(payload, kind)
        if kind == LABEL_TYPE:
            with pytest.raises(TrustError):
                check_label(line, sealed_sha256=parcel.sealed.sha256, size_bytes=parcel.sealed.size_bytes,
                            roster=parcel.federation.roster, now=NOW)  # fmt: skip
        elif kind == WAYBILL_TYPE:
            forger.write(waybill=line)
            assert_refused(parcel, TrustError)
        else:
            forger.rewrite(passport=line)
            assert_refused(parcel, TrustError)


def _misshapen(honest: dict[str, Any]) -> list[dict[str, Any]]:
    """Each field missing, and of every other JSON type; and one field too many at the top."""
    attempts: list[dict[str, Any]] = [honest | {"extra": 1}]
    for field in honest:
        attempts.append({key: value for key, value in honest.items() if key != field})
        others: tuple[Any, ...] = (None, True, -1, 1.5, "", "x" * 5000, [], {}, ["a"], {"a": 1}, [[]], "\x1b[2J")
        for value in others:
            if value != honest[field]:
                attempts.append(honest | {field: value})
    return attempts


def test_every_field_of_the_predicate_is_checked(parcel: Parcel) -> None:
    forger = Forger(parcel)
    honest = forger.passport["predicate"]
    optional = ({"parents"}, {"signature_policy"}, {"audit"})  # these have a default
    attempts = [attempt for attempt in _misshapen(honest)[1:] if set(honest) - set(attempt) not in optional]
    for attempt in attempts:
        forger.rewrite(passport=forger.sign(forger.passport | {"predicate": attempt}, PASSPORT_TYPE))
        if attempt.get("metrics") == {"a": 1}:
            continue  # a metric like any other
        assert_refused(parcel, TrustError)
    forger.rewrite(passport=forger.passport_with(something_new={"that": "in-toto tells us to ignore"}))
    assert parcel.open().author == "clinic"  # control, and the one place where unknown fields may be


@pytest.mark.parametrize(
    "claim",
    [
        {"epsilon": -1.0}, {"epsilon": 0}, {"epsilon": True}, {"epsilon": "1"}, {"delta": 0}, {"delta": 1},
        {"unit": "site"}, {"accountant": ""}, {"extra": 1}, {"mechanism": {}}, {"epsilon": 1e13},
    ],
    ids=str,
)  # fmt: skip
def test_privacy_claims_that_mean_nothing_are_refused(parcel: Parcel, claim: dict[str, object]) -> None:
    mechanism = {"sample_rate": 0.1, "steps": 10, "noise_multiplier": 1.0, "max_grad_norm": 1.0, "divisor": 10.0}
    good = {"epsilon": 1.0, "delta": 1e-5, "unit": "record", "accountant": "PLD", "mechanism": mechanism}
    forger = Forger(parcel)
    forger.rewrite(passport=forger.passport_with(dp=good | claim))
    assert_refused(parcel, MalformedSigned)
    forger.rewrite(passport=forger.passport_with(dp=good))
    opened = parcel.open()
    assert opened.passport.dp is not None  # control
    assert opened.passport.dp.epsilon == 1.0


def test_a_signed_object_is_never_taken_for_one_of_another_type(parcel: Parcel) -> None:
    """Each line in each other place, with its own type and with the type that the place expects."""
    forger = Forger(parcel)
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
            check_label(line, sealed_sha256=parcel.sealed.sha256, size_bytes=parcel.sealed.size_bytes,
                        roster=parcel.federation.roster, now=NOW)  # fmt: skip


def test_a_later_version_is_refused_as_such(parcel: Parcel) -> None:
    forger = Forger(parcel)
    forger.write(waybill=forger.sign(forger.waybill, WAYBILL_TYPE.replace("v1", "v2")))
    assert_refused(parcel, NewerFormat)
    forger.rewrite(passport=forger.sign(forger.passport | {"predicateType": "urn:not-fed:passport:v2"}, PASSPORT_TYPE))
    assert_refused(parcel, NewerFormat)


def test_a_signed_line_has_one_spelling(parcel: Parcel) -> None:
    """The same JSON written otherwise is refused, so that two files with one meaning cannot have two digests."""
    forger = Forger(parcel)
    value = json.loads(forger.waybill_line)
    for other in (
        json.dumps(value).encode(),
        forger.waybill_line + b" ",
        b" " + forger.waybill_line,
        forger.waybill_line.replace(b"waybill.v1", b"waybill\\u002ev1"),
        edited(forger.waybill_line, payload=value["payload"].rstrip("=") + "===="),
        edited(forger.waybill_line, extra=1),
    ):
        forger.write(waybill=other)
        assert_refused(parcel, TrustError)
    with pytest.raises(MalformedSigned):
        dsse.parse(b"[]", payload_type=WAYBILL_TYPE, where="test")


def _check(parcel: Parcel, label: bytes, **more: Any) -> object:  # noqa: ANN401
    arguments: dict[str, Any] = {
        "sealed_sha256": parcel.sealed.sha256, "size_bytes": parcel.sealed.size_bytes, "now": NOW,
        "roster": parcel.federation.roster,
    } | more  # fmt: skip
    return check_label(label, **arguments)


def test_a_relay_forwards_only_what_a_member_labelled(parcel: Parcel) -> None:
    """Powers of a sender without keys on the roster, and of one who attaches a label to another file."""
    forger, said = Forger(parcel), payload_of(parcel.sealed.label)
    assert _check(parcel, parcel.sealed.label)  # control
    mallory = Site.make("mallory").signer
    refusals: list[tuple[bytes, type[TrustError]]] = [
        (forger.sign(said | {"from": "mallory"}, LABEL_TYPE, mallory), UnknownMember),
        (forger.sign(said, LABEL_TYPE, mallory), BadSignature),
        (forger.sign(said, LABEL_TYPE, parcel.federation.lab.signer), BadSignature),
        (forger.sign(said | {"to": ["hub", "nobody"]}, LABEL_TYPE), UnknownMember),
        (forger.sign(said | {"to": ["lab", "hub"]}, LABEL_TYPE), MalformedSigned),
        (forger.sign(said | {"federation": "highlands"}, LABEL_TYPE), LabelMismatch),
        (forger.sign(said | {"expires": "2026-11-24T11:00:00Z", "issued": "2026-11-01T00:00:00Z"}, LABEL_TYPE), Stale),
    ]
    for line, kind in refusals:
        with pytest.raises(kind):
            _check(parcel, line)
    with pytest.raises(LabelMismatch):
        _check(parcel, parcel.sealed.label, sealed_sha256="00" * 32)
    with pytest.raises(LabelMismatch):
        _check(parcel, parcel.sealed.label, size_bytes=1)


def test_an_insider_cannot_claim_anothers_parcel_with_a_label(parcel: Parcel) -> None:
    """The lab signs a label of its own over the clinic's ciphertext: label and waybill disagree."""
    forger, said = Forger(parcel), payload_of(parcel.sealed.label)
    lab = parcel.federation.lab.signer
    for label in (
        forger.sign(said | {"from": "lab"}, LABEL_TYPE, lab),
        forger.sign(said | {"round": 4}, LABEL_TYPE),
        forger.sign(said | {"to": ["hub"]}, LABEL_TYPE),
    ):
        assert _check(parcel, label)  # the relay cannot tell
        assert_refused(parcel, LabelMismatch, label=label)
    assert parcel.open(label=parcel.sealed.label).sender == "clinic"


def test_without_label_and_key_nothing_is_called_trusted(parcel: Parcel) -> None:
    with pytest.raises(NothingToVerify):
        verify_sealed(parcel.path, roster=parcel.federation.roster, now=NOW, label=None)
