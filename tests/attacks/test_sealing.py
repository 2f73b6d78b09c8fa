"""Adversary: a careless or deceived sender: to whom is sealed, by whom, and under which passport.

Powers: names recipients, roster and passport; an outsider's or former member's keys. Always: what a recipient would
refuse is not sealed in the first place, and nothing is written.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest

from not_fed.envelope import new_passport
from not_fed.envelope.passport import BadClaim
from not_fed.envelope.seal import BadRecipients, CannotDispatch
from not_fed.errors import NotFedError
from not_fed.keys.dsse import BadSignature, MalformedSigned
from not_fed.trust.members import MemberNotActive, UnknownMember, WrongRole
from not_fed.trust.roster import revoke_member
from tests.support.attacks import assert_not_sealed, assert_opens, assert_seals, seal_again
from tests.support.trust import FEDERATION, NOW, Forger, Parcel, Site, days, edited


@pytest.mark.parametrize(
    ("recipients", "kind"),
    [([], BadRecipients), (["clinic"], BadRecipients), (["hub", "hub"], BadRecipients), (["nobody"], UnknownMember),
     (["hub", "HUB"], UnknownMember), ("hub", BadRecipients), ([""], UnknownMember), (["hub\n"], UnknownMember),
     (["*"], UnknownMember), (["hub", "lab", "hub"], BadRecipients)],
    ids=["nobody", "oneself", "twice", "unknown", "other-case", "a-bare-text", "empty", "line-feed", "star", "thrice"],
)  # fmt: skip
def test_only_members_named_once_can_be_sealed_to(parcel: Parcel, recipients: object, kind: type[NotFedError]) -> None:
    """A87. The list of recipients is empty, the sender alone, has one twice, a stranger, or another spelling.

    Powers: writes the list of recipients, as a careless script would. Control: members, each once, are sealed to.
    """
    assert_not_sealed(parcel, kind, recipients=recipients)
    assert_seals(parcel)


def test_a_revoked_member_is_not_sealed_to_and_does_not_seal(own_parcel: Parcel) -> None:
    """A87. A revoked member is named as a recipient, or seals with the keys that it still has.

    Powers: a revoked member's keys; a sender who was not told. Control: before the revocation both work.
    """
    federation = own_parcel.federation
    assert_seals(own_parcel)
    revoked = revoke_member(federation.folder, name="lab", steward=federation.steward, now=NOW)
    assert_not_sealed(own_parcel, MemberNotActive, roster=revoked)
    assert_not_sealed(own_parcel, MemberNotActive, roster=revoked, sender=federation.lab.signer, recipients=["hub"])


def test_nobody_seals_who_is_not_on_the_roster(parcel: Parcel) -> None:
    """Own. A stranger seals, or somebody who calls itself clinic with keys of its own.

    Powers: any keys and any name, the organ and its passport. Control: the clinic itself seals.
    """
    assert_not_sealed(parcel, UnknownMember, sender=Site.make("mallory").signer)
    assert_not_sealed(parcel, BadSignature, sender=Site.make("clinic").signer)
    assert_seals(parcel)


def test_what_a_recipient_would_refuse_is_not_sealed(parcel: Parcel) -> None:
    """Own. Another's organ without the author's leave, for another federation, for a round before it was made.

    Powers: a member with both of its own keys. Control: the author itself, in its federation and round, seals.
    """
    assert_not_sealed(parcel, CannotDispatch, sender=parcel.federation.lab.signer, recipients=["hub"])
    assert_not_sealed(parcel, CannotDispatch, federation="highlands")
    assert_not_sealed(parcel, CannotDispatch, round_number=2)
    assert seal_again(parcel).recipients == ("hub", "lab")  # control


def test_a_relay_is_not_sealed_to(parcel: Parcel) -> None:
    """Own. Somebody on the roster who only relays is named as a recipient.

    Powers: a relay that asks to be put on the list. Control: with the receiver's role it is sealed to.
    """
    federation = parcel.federation
    relay = replace(federation.roster.members["lab"], roles=frozenset({"relay"}))
    weaker = replace(federation.roster, members={**federation.roster.members, "lab": relay})
    assert_not_sealed(parcel, WrongRole, roster=weaker)
    assert_seals(parcel)


def test_a_passport_that_was_edited_or_swapped_is_not_sealed(forger: Forger, parcel: Parcel) -> None:
    """Own. The passport beside the organ was edited, stripped, replaced by a waybill, or signed by another member.

    Powers: writes to the passport's file. Control: the passport as it was signed is sealed.
    """
    line = parcel.passport_line
    better = forger.passport_with(signer=parcel.federation.lab.signer, metrics={"perplexity": 1.0})
    for passport in (b"", b"{}", line[:-1], line + b"\n", edited(line, signatures=[]), forger.waybill_line, better):
        assert_not_sealed(parcel, (MalformedSigned, BadSignature), passport=passport)
    assert_seals(parcel)


def test_padding_and_a_later_round_still_open(parcel: Parcel) -> None:
    """Own. The relay learns the organ's exact size from the sealed file's, and from it the span and the base.

    Powers: a relay that knows every span's size. Control: padded, and in a later round, the organ opens as it was.
    """
    plain = assert_seals(parcel, round_number=5)
    padded = seal_again(parcel, round_number=5, pad=True)
    assert padded.recipients == ("hub", "lab")
    assert padded.size_bytes >= plain.size_bytes
    parcel.path = parcel.folder / "again.sealed"
    assert_opens(parcel)


@pytest.mark.parametrize("ttl", [timedelta(0), days(-1), timedelta(microseconds=1), days(365 * 9000), timedelta.max])
def test_a_validity_that_cannot_be_is_not_sealed(parcel: Parcel, ttl: timedelta) -> None:
    """Own. The sealed file would be valid for no time at all, or until after the end of the calendar.

    Powers: a careless script that computes days. Control: a validity of a day seals.
    """
    assert_not_sealed(parcel, NotFedError, ttl=ttl)
    assert_seals(parcel, ttl=days(1))


@pytest.mark.parametrize("number", [-1, 1 << 32, 1 << 64])
def test_a_round_that_cannot_be_is_not_sealed(parcel: Parcel, number: int) -> None:
    """Own. The round is negative, or larger than any that a recipient's format holds.

    Powers: a careless script that counts rounds. Control: a round within bounds seals.
    """
    assert_not_sealed(parcel, NotFedError, round_number=number)
    assert_seals(parcel, round_number=1 << 31)


@pytest.mark.parametrize(
    "said",
    [{"round_number": -1}, {"round_number": 1 << 32}, {"federation": "low lands"}, {"author": "../clinic"},
     {"metrics": {"loss": float("nan")}}, {"metrics": {"a\x1b[2J": 1.0}}, {"sharing": "everybody"}],
    ids=str,
)  # fmt: skip
def test_a_passport_that_nobody_could_read_is_not_made(parcel: Parcel, said: dict[str, object]) -> None:
    """Own. A passport with an impossible round, name, metric or leave is asked for; every reader would refuse it.

    Powers: the arguments of a command or a script. Control: a possible one is made.
    """
    honest: dict[str, object] = {"author": "clinic", "federation": FEDERATION, "round_number": 3, "now": NOW}
    with pytest.raises(BadClaim):
        new_passport(parcel.organ_path, **(honest | said))  # type: ignore[arg-type]
    assert new_passport(parcel.organ_path, **honest).round == 3  # type: ignore[arg-type]
