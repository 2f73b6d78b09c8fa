"""Adversary: recipients who pass on, relays who play back, senders who address otherwise than they seal.

Powers: an insider has its own keys, the whole plaintext of what it received, and can seal any frame to anybody.
Lacks: the sender's signature over another waybill.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from not_fed.envelope import Expectation, MemorySeen
from not_fed.envelope.checks import NotAddressed, OtherFederation, OtherRound, WaybillMismatch
from not_fed.envelope.dsse import MalformedSigned, NewerFormat, Stale
from not_fed.envelope.waybill import PAYLOAD_TYPE as WAYBILL_TYPE
from not_fed.envelope.waybill import WaybillReplayed
from not_fed.errors import NotFedError, TrustError
from not_fed.keys.sealing import recipient_fingerprint
from not_fed.trust.members import MemberNotActive
from tests.support.attacks import assert_opens, seal_again
from tests.support.trust import FEDERATION, NOW, Federation, Forger, Parcel, Site, assert_refused, days, organ_bytes


def test_a_recipient_cannot_pass_an_organ_on_as_meant_for_another(forger: Forger, parcel: Parcel) -> None:
    """A26. Surreptitious forwarding: the lab seals the clinic's frame, whole as it is, to somebody else.

    Powers: a recipient with the plaintext of what it was sent. Control: sealed to those it names, the frame opens.
    """
    third = Site.make("third")
    forger.write(to=[third.opener.recipient, parcel.federation.hub.opener.recipient])
    assert_refused(parcel, NotAddressed, by=third)
    forger.write()
    assert_opens(parcel)


def test_a_member_who_was_not_addressed_refuses_what_is_passed_on(tmp_path: Path, federation: Federation) -> None:
    """A26. An organ for the hub alone is sealed again, by the hub, to the lab: a member, but not on this waybill.

    Powers: a recipient with the plaintext of what it was sent. Control: the hub, whom it names, opens it.
    """
    parcel = Parcel(tmp_path, federation, to=("hub",))
    forger = Forger(parcel)
    forger.write(to=[federation.lab.opener.recipient])
    assert_refused(parcel, NotAddressed, by=federation.lab)
    forger.write(to=[federation.hub.opener.recipient])
    assert_opens(parcel)


def test_there_are_as_many_recipients_as_the_waybill_names(forger: Forger, parcel: Parcel) -> None:
    """A27. A stanza is added for a silent reader whom the waybill does not name, or one named reader is left out.

    Powers: a recipient or the sender itself, sealing by hand. Control: as many stanzas as names open.
    """
    third, hub = Site.make("third"), parcel.federation.hub.opener.recipient
    forger.write(to=[*forger.to, third.opener.recipient])  # one stanza more than the waybill names
    assert_refused(parcel, WaybillMismatch)
    assert_refused(parcel, NotAddressed, by=third)
    for to in ([hub], [hub, hub, hub]):
        forger.write(to=to)
        assert_refused(parcel, WaybillMismatch)
    forger.write()
    assert_opens(parcel)


def test_the_waybill_must_name_the_recipient_with_its_own_key(forger: Forger, parcel: Parcel) -> None:
    """A28. The waybill names me with another key, or my key under another name.

    Powers: a sender who addresses carelessly, or whose roster was another. Control: name and key together are accepted.
    """
    hub, lab = parcel.federation.hub, parcel.federation.lab
    hubs, labs = (recipient_fingerprint(site.opener.recipient) for site in (hub, lab))
    for wrong in (
        {"hub": labs, "lab": hubs}, {"hub": "00" * 32, "lab": labs}, {"lab": hubs, "clinic": labs},
        {"hub2": hubs, "lab": labs}, {"HUB": hubs, "lab": labs},
    ):  # fmt: skip
        forger.write(waybill=forger.waybill_with(to=wrong))
        assert_refused(parcel, NotAddressed)
    forger.write(waybill=forger.waybill_with(to={"hub": hubs, "lab": labs}))
    assert_opens(parcel)


def test_redistribution_needs_the_authors_leave(tmp_path: Path, federation: Federation) -> None:
    """Own. A recipient sends the clinic's organ on under a waybill of its own, though the author said addressees only.

    Powers: a member with both of its own keys and the organ. Control: with the author's leave it opens, as the lab's.
    """
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


@pytest.mark.parametrize("named", ["configuration", "waybill", "passport", "both"])
def test_another_federation_is_refused_wherever_it_is_named(forger: Forger, parcel: Parcel, named: str) -> None:
    """A31. The federation differs: in what the site expects, in the waybill, in the passport, or in both alike.

    Powers: a member of two federations, or a sender who mixes them up. Control: the same federation everywhere opens.
    """
    if named == "waybill":
        forger.write(waybill=forger.waybill_with(federation="highlands"))
    elif named == "passport":
        forger.rewrite(passport=forger.passport_with(federation="highlands"))
    elif named == "both":  # whole and consistent
        forger.rewrite(passport=forger.passport_with(federation="highlands"), federation="highlands")
    expected = Expectation(federation="highlands" if named == "configuration" else FEDERATION)
    assert_refused(parcel, OtherFederation, expect=expected)
    forger.write()
    assert_opens(parcel, expect=Expectation(federation=FEDERATION))


def test_a_federation_that_looks_alike_is_another(forger: Forger, parcel: Parcel) -> None:
    """Own. The federation is spelled in upper case, with a Cyrillic letter, a space, a zero-width joiner, or longer.

    Powers: a member with both keys, inviting to a federation of its own. Control: the right spelling opens.
    """
    for name in ("Lowlands", "LOWLANDS", "l\u043ewlands", "lowlands ", "lowlands\u200d", "\uff4cowlands", ""):
        forger.rewrite(passport=forger.passport_with(federation=name), federation=name)
        assert_refused(parcel, (OtherFederation, MalformedSigned))
    forger.write()
    assert_opens(parcel)


def test_old_and_future_waybills_are_refused(forger: Forger, parcel: Parcel) -> None:
    """A32. The waybill is expired, not yet issued, or ends before it begins.

    Powers: keeps sealed files for as long as it likes; a sender with a wrong clock. Control: within its time it opens.
    """
    for moment in (days(-1), days(15), days(400)):
        assert_refused(parcel, (Stale, MemberNotActive), now=NOW + moment)
    forger.write(waybill=forger.waybill_with(issued="2026-12-01T00:00:00Z", expires="2026-11-01T00:00:00Z"))
    assert_refused(parcel, Stale)
    forger.write()
    assert parcel.open(now=NOW + days(13.9)).sender == "clinic"  # control


def test_validity_ends_to_the_second(forger: Forger, parcel: Parcel) -> None:
    """Own. A file arrives a second outside of the five minutes that clocks may differ; or ends as it is issued.

    Powers: chooses the second at which a file arrives. Control: a second on the inner side of each border it opens.
    """
    skew, second = timedelta(seconds=300), timedelta(seconds=1)
    issued, expires = NOW, NOW + days(14)
    for moment in (issued - skew - second, expires + skew, expires + skew + second):
        assert_refused(parcel, (Stale, MemberNotActive), now=moment)
    for moment in (issued - skew, issued, expires, expires + skew - second):
        assert_opens(parcel, now=moment)
    same = "2026-11-24T12:00:00Z"
    forger.write(waybill=forger.waybill_with(issued=same, expires=same))
    assert_refused(parcel, Stale)


def test_a_waybill_of_a_later_version_is_named_as_such(forger: Forger, parcel: Parcel) -> None:
    """A32, A89. The waybill is of version 2, or of a type that only looks like ours.

    Powers: an honest sender with a newer not-fed, or a member who hopes for best effort. Control: version 1 opens.
    """
    forger.write(waybill=forger.sign(forger.waybill, WAYBILL_TYPE.replace("v1", "v2")))
    assert_refused(parcel, NewerFormat)
    for kind in (WAYBILL_TYPE.replace("v1", "V1"), WAYBILL_TYPE.replace("waybill", "waybil"), WAYBILL_TYPE + "; v=2"):
        forger.write(waybill=forger.sign(forger.waybill, kind))
        assert_refused(parcel, (MalformedSigned, NewerFormat))
    forger.write()
    assert_opens(parcel)


def test_a_waybill_cannot_be_replayed(parcel: Parcel) -> None:
    """A33. The very same file is delivered again, under another name, or in another round.

    Powers: a relay that keeps every sealed file. Control: a memory that does not know it lets it in.
    """
    seen = MemorySeen()
    assert parcel.open(seen=seen).sender == "clinic"
    assert_refused(parcel, WaybillReplayed, seen=seen, out=parcel.folder / "again.organ")
    assert_refused(parcel, OtherRound, expect=Expectation(round_number=4), out=parcel.folder / "again.organ")
    opened = parcel.open(expect=Expectation(round_number=3), out=parcel.folder / "again.organ", seen=MemorySeen())
    assert opened.sender == "clinic"  # control: a memory that does not know it


def test_a_known_waybill_is_refused_before_anything_is_written(parcel: Parcel) -> None:
    """A33. A site keeps the memory itself, and records later: looking is enough to refuse.

    Powers: a relay that delivers a file again while the first is still being handled. Control: the first one opens.
    """

    class Looking(MemorySeen):
        def record(self, waybill_id: str, expires: datetime, /) -> None:
            """The caller's business."""

    seen = Looking()
    assert parcel.open(seen=seen).sender == "clinic"
    MemorySeen.record(seen, f"clinic/{parcel.sealed.waybill_id}", NOW)
    assert_refused(parcel, WaybillReplayed, seen=seen, out=parcel.folder / "again.organ")


def test_two_opens_at_once_write_one_organ(parcel: Parcel) -> None:
    """A88. Both passed the first look into the memory; the second to record takes its output back.

    Powers: a relay that delivers one file twice at the same moment. Control: the first to record keeps its organ.
    """

    class Racing(MemorySeen):
        def check(self, waybill_id: str, /) -> None:
            """Both look before either records."""

    seen = Racing()
    assert parcel.open(seen=seen).sender == "clinic"
    assert_refused(parcel, WaybillReplayed, seen=seen, out=parcel.folder / "second.organ")


def test_a_replay_in_other_wrapping_is_still_a_replay(forger: Forger, parcel: Parcel) -> None:
    """Own. The lab seals the same frame anew: other ciphertext, other file name, other digest, the same waybill.

    Powers: a recipient with the plaintext of what it was sent. Control: the first delivery opens.
    """
    seen = MemorySeen()
    assert_opens(parcel, seen=seen)
    first = parcel.path.read_bytes()
    forger.write()
    assert parcel.path.read_bytes() != first
    parcel.path = parcel.path.rename(parcel.folder / "innocent.sealed")
    assert_refused(parcel, WaybillReplayed, seen=seen)
    parcel.path.write_bytes(first)
    assert_refused(parcel, WaybillReplayed, seen=seen)


def test_a_refused_file_does_not_use_up_its_waybill(forger: Forger, parcel: Parcel) -> None:
    """Own. Denial: a damaged copy or one with another organ is delivered first, so that the real one would be a replay.

    Powers: a relay or recipient who is faster than the sender. Control: the real file opens afterwards, once.
    """
    seen, whole = MemorySeen(), parcel.path.read_bytes()
    forger.write(organ=forger.organ[:-1] + bytes([forger.organ[-1] ^ 1]))
    assert_refused(parcel, NotFedError, seen=seen)
    parcel.path.write_bytes(whole[:-1])
    assert_refused(parcel, NotFedError, seen=seen)
    parcel.path.write_bytes(whole)
    assert_opens(parcel, seen=seen)
    assert_refused(parcel, WaybillReplayed, seen=seen)


def test_an_organ_sent_again_honestly_is_no_replay(parcel: Parcel) -> None:
    """Own. The sender's second parcel is withheld, on the pretext that its organ was seen before.

    Powers: a relay that knows both files. Control, which is the point: another waybill for the same organ opens.
    """
    seen = MemorySeen()
    assert_opens(parcel, seen=seen)
    again = seal_again(parcel)
    assert (again.waybill_id, again.organ_sha256) != (parcel.sealed.waybill_id, parcel.sealed.organ_sha256)
    parcel.path = again.path
    assert_opens(parcel, seen=seen, label=again.label)
    assert_refused(parcel, WaybillReplayed, seen=seen)


def test_parcels_of_one_sender_cannot_trade_waybills(tmp_path: Path, federation: Federation) -> None:
    """Own. Two parcels of one sender and round trade their waybills, their passports, or both, sealed anew.

    Powers: a recipient with the plaintext of both. Control: each with its own lines opens.
    """
    parcels = []
    for name, layers in (("a", (2, 4)), ("b", (4, 6))):
        (tmp_path / name).mkdir()
        parcels.append(Parcel(tmp_path / name, federation, organ=organ_bytes(span=layers)))
    first, second = (Forger(parcel) for parcel in parcels)
    first.write(waybill=second.waybill_line)
    assert_refused(parcels[0], WaybillMismatch)
    first.write(passport=second.passport_line)
    assert_refused(parcels[0], WaybillMismatch)
    first.write(waybill=second.waybill_line, passport=second.passport_line)
    assert_refused(parcels[0], TrustError)
    first.write()
    assert_opens(parcels[0])


def test_an_earlier_round_can_be_refused_and_a_later_one_not_claimed(forger: Forger, parcel: Parcel) -> None:
    """Own. The waybill claims a later round than the site has open, an earlier one, a negative or a huge one.

    Powers: a member with both of its own keys. Control: the round that is open is accepted.
    """
    open_round = Expectation(round_number=3)
    for number, kind in ((4, OtherRound), (1 << 31, OtherRound)):
        forger.write(waybill=forger.waybill_with(round=number))
        assert_refused(parcel, kind, expect=open_round)
    for number in (-1, (1 << 31) + 1, 1 << 63):
        forger.write(waybill=forger.waybill_with(round=number))
        assert_refused(parcel, MalformedSigned, expect=open_round)
    forger.write(waybill=forger.waybill_with(round=2))
    assert_refused(parcel, OtherRound, expect=open_round)
    forger.write()
    assert_opens(parcel, expect=open_round)


def test_a_sender_outside_its_time_on_the_roster_is_refused(parcel: Parcel) -> None:
    """Own. The sender's time on the roster is over or has not begun, while its waybill is still good.

    Powers: a former member's keys. Control: within the sender's time the same file opens.
    """
    federation = parcel.federation
    clinic = federation.roster.members["clinic"]
    for begin, end in ((NOW - days(30), NOW - days(1)), (NOW + days(1), NOW + days(30))):
        other = replace(clinic, not_before=begin, not_after=end)
        roster = replace(federation.roster, members={**federation.roster.members, "clinic": other})
        parcel.federation = replace(federation, roster=roster)
        assert_refused(parcel, MemberNotActive)
    ever = replace(clinic, not_before=datetime.min.replace(tzinfo=UTC), not_after=datetime.max.replace(tzinfo=UTC))
    for member in (clinic, ever):
        roster = replace(federation.roster, members={**federation.roster.members, "clinic": member})
        parcel.federation = replace(federation, roster=roster)
        assert_opens(parcel)
