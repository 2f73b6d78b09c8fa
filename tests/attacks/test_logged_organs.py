"""Adversary: a relay, or the log's keeper, that sends an organ with a proof that is not about it.

Powers: every proof that the log ever gave out, logs of its own, any text as a proof. Lacks: the keys of the log on the
roster. Always: an organ with a proof that does not hold is refused, even where no proof was asked for.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from not_fed import canonical
from not_fed.envelope import Expectation, ImportPolicy, verify_sealed
from not_fed.envelope.dsse import Stale
from not_fed.envelope.logged import label_entry
from not_fed.envelope.policy import LogProofMissing
from not_fed.errors import TrustError
from not_fed.keys import LogSigner
from not_fed.trust.log import CheckpointRefused, LogProofRefused, NoteMalformed
from not_fed.trust.log_folder import LogFolder
from not_fed.trust.members import FormerKeys, KeysRetired, MemberNotActive, WrongRole
from tests.support.logs import Keeper, leaves
from tests.support.trust import NOW, Forger, Parcel, Site, assert_refused, organ_bytes

LOGGED = Expectation(demands=ImportPolicy(log_proof="required"))


@pytest.fixture
def logged(parcel: Parcel, keeper: Keeper) -> Parcel:
    """The clinic's organ, for a federation whose hub keeps a log that has its label among many."""
    keeper.add(*leaves(900, 903), label_entry(parcel.sealed.label), *leaves(903, 908))
    hub = replace(parcel.federation.roster.members["hub"], log=keeper.keys)
    roster = replace(parcel.federation.roster, members=parcel.federation.roster.members | {"hub": hub})
    parcel.federation = replace(parcel.federation, roster=roster)
    return parcel


def proof(parcel: Parcel, keeper: Keeper) -> bytes:
    """What the log gives out for the parcel's label."""
    return LogFolder(keeper.folder).proof(label_entry(parcel.sealed.label))


def test_an_organ_with_its_proof_opens_and_says_where_it_is(logged: Parcel, keeper: Keeper) -> None:
    """Own. Nothing wrong, the control of this page. Powers: none. Control: index, size and time are the log's."""
    opened = logged.open(label=logged.sealed.label, proof=proof(logged, keeper), expect=LOGGED)
    assert opened.logged is not None
    size = LogFolder(keeper.folder).checkpoint.size
    assert (opened.logged.index, opened.logged.tree_size, opened.logged.time) == (size - 6, size, NOW)
    seen = verify_sealed(
        logged.path, roster=logged.federation.roster, now=NOW, label=logged.sealed.label, proof=proof(logged, keeper)
    )
    assert seen.logged == opened.logged  # without a key too


def test_a_proof_of_another_organ_is_refused(logged: Parcel, keeper: Keeper, tmp_path: Path) -> None:
    """A61. The proof of another label in the same log. Powers: both proofs are honest. Control: each with its own."""
    (tmp_path / "other").mkdir()
    other = Parcel(tmp_path / "other", logged.federation, organ=organ_bytes(floats=26))
    keeper.add(label_entry(other.sealed.label))
    assert_refused(other, LogProofRefused, label=other.sealed.label, proof=proof(logged, keeper))
    assert_refused(logged, LogProofRefused, label=logged.sealed.label, proof=proof(other, keeper))
    assert other.open(label=other.sealed.label, proof=proof(other, keeper)).logged
    assert logged.open(label=logged.sealed.label, proof=proof(logged, keeper)).logged


def test_a_bad_proof_is_refused_even_where_none_was_asked_for(logged: Parcel, keeper: Keeper) -> None:
    """Own. Hopes that an optional proof is not looked at. Powers: any text. Control: no proof at all is no error."""
    honest = proof(logged, keeper)
    for text in (b"", b"nothing", honest[:-1], honest + b"\n", honest.replace(b"index ", b"index 1"), honest * 2):
        assert_refused(logged, (NoteMalformed, LogProofRefused), label=logged.sealed.label, proof=text)
    assert logged.open(label=logged.sealed.label).logged is None


def test_where_a_proof_is_demanded_its_absence_refuses(logged: Parcel, keeper: Keeper) -> None:
    """A37. The relay keeps the proof back, or the label that it is about. Powers: withholds. Control: with both."""
    assert_refused(logged, LogProofMissing, label=logged.sealed.label, expect=LOGGED)
    assert_refused(logged, LogProofMissing, proof=proof(logged, keeper), expect=LOGGED)
    assert logged.open(label=logged.sealed.label, proof=proof(logged, keeper), expect=LOGGED).logged


def test_a_log_of_ones_own_proves_nothing(logged: Parcel, keeper: Keeper, tmp_path: Path) -> None:
    """Own. A log with the label, under other keys or names. Powers: keeps logs. Control: the log on the roster."""
    entry = label_entry(logged.sealed.label)
    for number, pretender in enumerate((
        Keeper(tmp_path / "a"), Keeper(tmp_path / "b", signer=LogSigner.generate("lab")),
        Keeper(tmp_path / "c", federation="highlands"),
    )):  # fmt: skip
        pretender.add(entry)
        kinds = (CheckpointRefused, WrongRole, CheckpointRefused)
        assert_refused(logged, kinds[number], label=logged.sealed.label, proof=LogFolder(pretender.folder).proof(entry))
    assert logged.open(label=logged.sealed.label, proof=proof(logged, keeper)).logged


def test_a_proof_by_a_member_that_was_revoked_is_refused(logged: Parcel, keeper: Keeper) -> None:
    """Own. The keeper was thrown out and goes on. Powers: its old keys. Control: while it was a member."""
    honest, members = proof(logged, keeper), logged.federation.roster.members
    gone = members | {"hub": replace(members["hub"], active=False)}
    lab = logged.federation.lab
    before = logged.federation
    logged.federation = replace(before, roster=replace(before.roster, members=gone))
    assert_refused(logged, MemberNotActive, by=lab, label=logged.sealed.label, proof=honest)
    logged.federation = before
    assert logged.open(lab, label=logged.sealed.label, proof=honest).logged


def test_an_authors_own_log_meets_no_demand(logged: Parcel, keeper: Keeper, tmp_path: Path) -> None:
    """Own. The clinic proves its organs by a log of its own. Powers: log keys on the roster. Control: the hub's log."""
    own = Keeper(tmp_path / "own", signer=LogSigner.generate("clinic"))
    own.add(label_entry(logged.sealed.label))
    members, before = logged.federation.roster.members, logged.federation
    clinic = replace(members["clinic"], log=own.keys)
    logged.federation = replace(before, roster=replace(before.roster, members=members | {"clinic": clinic}))
    assert_refused(logged, WrongRole, label=logged.sealed.label, proof=proof(logged, own), expect=LOGGED)
    assert logged.open(label=logged.sealed.label, proof=proof(logged, keeper), expect=LOGGED).logged


def test_a_checkpoint_from_before_the_label_is_no_proof_of_it(logged: Parcel, keeper: Keeper, tmp_path: Path) -> None:
    """Own. A false early date, to revive an author who left. Powers: the log's keys. Control: a later date."""
    early = Keeper(tmp_path / "early", signer=keeper.signer, now=NOW - timedelta(days=300))
    early.add(label_entry(logged.sealed.label))
    assert_refused(logged, LogProofRefused, label=logged.sealed.label, proof=proof(logged, early))
    assert logged.open(label=logged.sealed.label, proof=proof(logged, keeper)).logged


def test_a_checkpoint_of_tomorrow_is_no_proof_today(logged: Parcel, keeper: Keeper, tmp_path: Path) -> None:
    """Own. A date ahead. Powers: the log's keys. Control: the same entry under a checkpoint of today."""
    later = Keeper(tmp_path / "later", signer=keeper.signer, now=NOW + timedelta(hours=1))
    later.add(label_entry(logged.sealed.label))
    assert_refused(logged, CheckpointRefused, label=logged.sealed.label, proof=proof(logged, later))
    assert logged.open(label=logged.sealed.label, proof=proof(logged, keeper)).logged


def test_an_organ_from_before_a_change_of_keys_still_opens_with_its_proof(logged: Parcel, keeper: Keeper) -> None:
    """Own. A rotation makes old organs worthless, or lets old keys go on. Powers: old keys. Control: the old organ."""
    before, members = logged.federation, logged.federation.roster.members
    clinic, new, changed = members["clinic"], Site.make("clinic"), NOW + timedelta(hours=2)
    former = FormerKeys(
        signing=clinic.signing, recipient=clinic.recipient, not_before=clinic.not_before, not_after=changed
    )
    rotated = replace(
        clinic, signing=new.signer.public, recipient=new.opener.recipient, not_before=changed, former=(former,)
    )
    logged.federation = replace(before, roster=replace(before.roster, members=members | {"clinic": rotated}))
    later, label = changed + timedelta(hours=1), logged.sealed.label
    opened = logged.open(now=later, label=label, proof=proof(logged, keeper))
    assert opened.author == "clinic"
    assert logged.open(now=later, label=label, out=logged.folder / "b").author == "clinic"  # and without the log
    forger = Forger(logged)
    forger.rewrite(passport=forger.passport_with(created=canonical.format_time(later)))
    assert_refused(logged, KeysRetired, now=later)


def test_whoever_stole_retired_keys_cannot_send_for_longer_than_a_quarter(logged: Parcel) -> None:
    """Own. A waybill dated before the change of keys, valid for years. Powers: the old keys. Control: in their time."""
    before, members = logged.federation, logged.federation.roster.members
    clinic, new, changed = members["clinic"], Site.make("clinic"), NOW + timedelta(hours=2)
    former = FormerKeys(
        signing=clinic.signing, recipient=clinic.recipient, not_before=clinic.not_before, not_after=changed
    )
    rotated = replace(clinic, signing=new.signer.public, not_before=changed, former=(former,))
    logged.federation = replace(before, roster=replace(before.roster, members=members | {"clinic": rotated}))
    forger, expires = Forger(logged), changed + timedelta(days=300)
    forger.write(waybill=forger.waybill_with(expires=canonical.format_time(expires)))
    for moment in (NOW, changed + timedelta(days=200)):
        assert_refused(logged, Stale, now=moment)
    forger.write(waybill=forger.waybill_with(expires=canonical.format_time(NOW + timedelta(days=92))))
    assert_refused(logged, Stale, now=NOW + timedelta(days=93))
    assert logged.open(now=changed + timedelta(hours=1)).sender == "clinic"


def test_an_author_whose_time_is_over_still_made_what_was_logged_before(logged: Parcel, keeper: Keeper) -> None:
    """Own. Passes off new work as old, or loses old work. Powers: a former author's. Control: what the log shows."""
    members, lab = logged.federation.roster.members, logged.federation.lab
    over = replace(members["clinic"], not_after=NOW + timedelta(days=1))
    before = logged.federation
    logged.federation = replace(before, roster=replace(before.roster, members=members | {"clinic": over}))
    late = NOW + timedelta(days=2)
    with pytest.raises(TrustError):  # the clinic is the sender too, and a sender must be a member today
        logged.open(lab, now=late, label=logged.sealed.label, proof=proof(logged, keeper))
    assert logged.open(lab, label=logged.sealed.label, proof=proof(logged, keeper)).author == "clinic"
