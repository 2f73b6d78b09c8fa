"""Adversary: whoever carries the draft from steward to steward, and one of the stewards.

Powers: writes any file into the draft, signs with its own keys, keeps drafts back, shows different ones to different
people. Lacks: a second person's keys. Always: a steward signs what it was shown, and nothing else.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from securesystemslib.signer import CryptoSigner

from not_fed import canonical
from not_fed.errors import NotFedError
from not_fed.keys import LogSigner, Steward
from not_fed.keys.identity import encode
from not_fed.trust import draft as drafts
from not_fed.trust import people
from not_fed.trust.ceremony import (
    BadStewards,
    DraftExists,
    NotASteward,
    SignedAnother,
    open_draft,
    propose,
    settle,
)
from not_fed.trust.diff import changes_of
from not_fed.trust.draft import DraftAhead, DraftOutdated, DraftRefused, write_draft
from not_fed.trust.members import RecallEntry, RecallsFile, RosterFile, RosterMalformed, rotated
from not_fed.trust.recall import RecallRemoved
from not_fed.trust.repository import RosterNotPinned
from not_fed.trust.roster import (
    add_member,
    create_roster,
    load_roster,
    recall_organ,
    renew_roster,
    root_sha256,
    update_roster,
)
from not_fed.trust.stewards import adding, exchanging, first_proposal, unchanged
from not_fed.trust.takeover import trusted
from tests.support.rosters import (
    Council,
    assert_not_signed,
    assert_refused,
    assert_signs,
    signers,
    steward_identity,
    stick,
)
from tests.support.trust import FEDERATION, NOW, Federation, Site, days, listing

Change = Callable[[dict[str, dict[str, Any]]], None]


def test_one_person_under_two_names_is_one(tmp_path: Path, council: Council) -> None:
    """Own. A steward is listed twice: the same keys under two names, one of the keys under two names, one name twice.

    Powers: prepares the first roster, or the next stewards. Control: two people with keys of their own.
    """
    alice = Steward.generate("alice")
    twice = {"alice": alice.public, "alicia": alice.public}
    half = {
        "alice": alice.public,
        "bob": type(alice.public)(Steward.generate("x").public.ed25519, alice.public.ml_dsa_65),
    }
    alike = {"alice": alice.public, "Alice": Steward.generate("y").public}
    for stewards in (twice, half, alike):
        with pytest.raises(BadStewards):
            first_proposal(tmp_path / "r", federation=FEDERATION, stewards=stewards, members=[], now=NOW)
        root = people.build_root(stewards, version=1, since=1, expires=NOW)
        with pytest.raises(RosterMalformed):
            people.people_of(root)
    with pytest.raises(BadStewards):
        create_roster(tmp_path / "r", federation=FEDERATION, steward=[alice, alice], members=[], now=NOW)
    again = steward_identity(council.steward("alice"))
    for name in ("alice", "other"):
        with pytest.raises(BadStewards):
            exchange = exchanging(add=[type(again)(name, again.keys, NOW)])
            propose(council.of("alice"), unchanged, now=NOW, stewards=exchange)
    council.propose()
    proposal = open_draft(council.of("alice"), draft=stick(council), now=NOW)
    proposal.sign(council.steward("alice"))  # a second time
    assert [group.signed for group in proposal.progress] == [("alice",)]
    with pytest.raises(NotASteward):
        settle(proposal, signed_by=None) if proposal.is_enough else proposal.sign(Steward.generate("alice"))
    assert_signs(council, stick(council))  # control


def test_a_draft_that_changes_after_it_was_shown_is_signed_as_it_was_shown(council: Council, tmp_path: Path) -> None:
    """Own. Between the question and the signature the draft folder is replaced by another draft of the same version.

    Powers: writes to the stick while bob reads. Control: what bob was shown is published, in R and on the stick.
    """
    shown = council.propose(site="north")
    proposal = open_draft(council.of("bob"), draft=stick(council), now=NOW)
    assert [change.subject for change in proposal.changes if change.kind == "member-added"] == ["north"]
    other = propose(council.of("alice"), adding(Site.make("mallory").public, roles=["author"], now=NOW), now=NOW)
    other.sign(council.steward("alice"), instead=True)
    write_draft(stick(council), other.draft)
    proposal.sign(council.steward("bob"))
    roster = settle(proposal, signed_by=council.steward("bob")).roster
    assert roster is not None
    assert "north" in roster.members  # control
    assert "mallory" not in roster.members
    assert open_draft(council.of("carol"), draft=stick(council), now=NOW).draft.fingerprint == shown.draft.fingerprint


def test_every_field_that_differs_is_shown(council: Council) -> None:
    """Own. A draft changes one field of one member, or one recall, that a difference could overlook.

    Powers: proposes any change in the middle of a long roster. Control: a draft that changes nothing shows only dates.
    """
    _, base = trusted(council.of("alice"), now=NOW)
    other, log = Site.make("other").public, LogSigner.generate("clinic").public
    former = rotated(RosterFile.model_validate(_roster(base)).members[0], other, now=NOW).model_dump()["former"]

    def shown(**changes: Any) -> set[str]:  # noqa: ANN401
        def edit(roster: RosterFile, recalls: Any) -> tuple[RosterFile, Any]:  # noqa: ANN401
            entry = type(roster.members[0]).model_validate(roster.members[0].model_dump() | changes)
            return roster.model_copy(update={"members": [entry]}), recalls

        draft = propose(council.of("alice"), edit, now=NOW).draft
        return {change.kind for change in changes_of(draft, base)} - {"expires", "roster-holds"}

    assert shown() == set()  # control
    assert shown(roles=["author", "relay"]) == {"member-roles"}
    assert shown(status="revoked") == {"member-revoked"}
    assert shown(not_after="2030-01-01T00:00:00Z") == shown(not_before="2020-01-01T00:00:00Z") == {"member-validity"}
    assert shown(name="clinic2") == {"member-added", "fingerprint", "member-removed"}
    assert shown(ed25519=_entry(other)["ed25519"]) == shown(ml_dsa_65=_entry(other)["ml_dsa_65"]) == {"fingerprint"}
    assert shown(seal=other.seal) == {"fingerprint"}
    assert shown(former=[former[0] | _entry(other)]) == {"fingerprint", "former-keys"}
    keeps = {"ed25519": encode(log.ed25519), "ml_dsa_44": encode(log.ml_dsa_44)}
    assert shown(log=keeps) == {"fingerprint", "keeps-log"}


def _roster(base: Any) -> Any:  # noqa: ANN401
    return canonical.loads(base.material.contents["roster.json"], where="roster")


def _entry(identity: Any) -> dict[str, str]:  # noqa: ANN401
    return {"ed25519": encode(identity.ed25519), "ml_dsa_65": encode(identity.ml_dsa_65), "seal": identity.seal}


def test_the_difference_of_many_recalls_is_found_at_once(monkeypatch: pytest.MonkeyPatch, council: Council) -> None:
    """Own. A draft with thousands of recalls, whose difference to the version before takes minutes to compute.

    Powers: proposes it. Control: each recall that differs is shown, and no other.
    """
    base = trusted(council.site, now=NOW)[1]
    roster = drafts.RosterFile.model_validate(canonical.loads(base.material.contents["roster.json"], where="roster"))
    compared = 0

    def equal(self: RecallEntry, other: object) -> bool:
        nonlocal compared
        compared += 1
        return isinstance(other, RecallEntry) and self.model_dump() == other.model_dump()

    monkeypatch.setattr(RecallEntry, "__eq__", equal)
    one = RecallEntry(organ_sha256="00" * 32, reason="poisoned", time=canonical.format_time(NOW))
    many = [one.model_copy(update={"organ_sha256": f"{number:064x}"}) for number in range(500)]
    recalls = RecallsFile(format="not-fed.recalls/1", recalls=many)
    draft = drafts.build_draft(base, roster=roster, recalls=recalls, root=None, dates=drafts.Dates(NOW, NOW))
    again = drafts.build_draft(
        base, roster=roster, recalls=RecallsFile(format="not-fed.recalls/1", recalls=many[1:]), root=None,
        dates=drafts.Dates(NOW, NOW),
    )  # fmt: skip
    after = replace(base, material=replace(base.material, contents=draft.contents))
    added = [change.subject for change in changes_of(draft, base) if change.kind == "recall-added"]
    removed = [change.subject for change in changes_of(again, after) if change.kind == "recall-removed"]
    assert (added, removed) == ([each.organ_sha256 for each in many], ["00" * 32])  # control
    assert compared <= 4 * len(many)


def test_a_draft_on_an_older_version_is_refused(council: Council, tmp_path: Path) -> None:
    """Own. A draft is kept back until another version is published; one is made for a version that is not next yet.

    Powers: a steward who carries drafts about late or early. Control: made again on the newest version, it is signed.
    """
    council.propose()
    shutil.copytree(stick(council), tmp_path / "late")
    renew_roster(council.of("bob"), steward=council.stewards[1:], now=NOW)
    assert_not_signed(council, tmp_path / "late", DraftOutdated)
    renew_roster(council.of("bob"), steward=council.stewards[1:], now=NOW)
    ahead = propose(council.of("bob"), unchanged, now=NOW)
    ahead.sign(council.steward("bob"))
    write_draft(tmp_path / "ahead", ahead.draft)
    with pytest.raises(DraftAhead):
        open_draft(council.of("carol"), draft=tmp_path / "ahead", now=NOW)
    update_roster(council.of("alice"), source=council.of("bob"), now=NOW)
    assert not stick(council).exists()  # it had become outdated
    council.propose()
    assert_signs(council, stick(council))  # control


def test_of_two_competing_drafts_one_is_published(council: Council, tmp_path: Path) -> None:
    """Own. Two drafts of version 2; the second gets enough signatures after the first was published.

    Powers: two stewards, each with a change of its own, and a third who signs both. Control: the first.
    """
    council.propose(by="alice")
    council.propose(by="carol", site="south")
    shutil.copytree(council.of("carol") / "draft", tmp_path / "second")
    second = open_draft(council.of("bob"), draft=tmp_path / "second", now=NOW)
    second.sign(council.steward("bob"))
    assert_signs(council, stick(council))  # control: published on bob's machine
    with pytest.raises(NotFedError) as caught:
        settle(second, signed_by=council.steward("bob"))
    assert caught.value.code == "roster-forked"
    assert_not_signed(council, tmp_path / "second", DraftOutdated)
    write_draft(tmp_path / "complete", second.draft)
    assert_refused(council.site, NotFedError, tmp_path / "complete")


def test_a_steward_signs_one_draft_of_a_version(council: Council) -> None:
    """Own. Bob signs alice's draft of version 2, which stays incomplete, and is then handed carol's.

    Powers: shows each steward another draft, to have two complete ones in the end. Control: the same draft again, and
    with `--instead`, after the stewards have agreed.
    """
    stewards = [*council.stewards, Steward.generate("dave"), Steward.generate("erin")]
    folder = council.folder / "five"
    create_roster(folder, federation=FEDERATION, steward=stewards, members=[], now=NOW)
    shutil.copytree(folder, council.folder / "carols")
    first = propose(folder, adding(Site.make("north").public, roles=["author"], now=NOW), now=NOW)
    first.sign(stewards[1])
    assert settle(first, signed_by=stewards[1]).roster is None
    second = propose(council.folder / "carols", adding(Site.make("south").public, roles=["author"], now=NOW), now=NOW)
    second.sign(stewards[2])
    settled = settle(second, signed_by=stewards[2])
    assert settled.draft is not None
    shown = open_draft(folder, draft=settled.draft, now=NOW)
    with pytest.raises(SignedAnother):
        shown.sign(stewards[1])
    with pytest.raises(DraftExists):
        settle(propose(folder, unchanged, now=NOW), signed_by=stewards[1])
    open_draft(folder, draft=folder / "draft", now=NOW).sign(stewards[1])  # control
    shown.sign(stewards[1], instead=True)
    assert shown.progress[0].signed == ("bob", "carol")


def test_signatures_of_others_do_not_count(council: Council, tmp_path: Path) -> None:
    """Own. A draft carries signatures by a stranger, by bob with one of his two keys, by bob over another draft.

    Powers: has signatures that bob really made elsewhere; forges one algorithm. Control: both of bob's keys, over this.
    """
    other = council.propose(by="bob", site="south")
    council.propose(by="alice")
    alices = drafts.read_draft(stick(council), base=trusted(council.of("alice"), now=NOW)[1])
    for part, foreign in zip(alices.parts, other.draft.parts, strict=True):
        part.signatures.update({key: sig for key, sig in foreign.signatures.items() if key not in part.signatures})
        part.sign(CryptoSigner(Steward.generate("bob").private_keys()[0]), append=True)
    write_draft(tmp_path / "forged", alices)
    shown = open_draft(council.of("carol"), draft=tmp_path / "forged", now=NOW)
    assert shown.progress[0].signed == ("alice",)
    assert {len(part.signatures) for part in shown.draft.parts} == {2}  # and the others travel no further
    for part in alices.parts:
        part.sign(CryptoSigner(council.steward("bob").private_keys()[0]), append=True)
    write_draft(tmp_path / "half", alices)
    half = open_draft(council.of("carol"), draft=tmp_path / "half", now=NOW)
    assert (half.progress[0].signed, half.is_enough) == (("alice",), False)
    with pytest.raises(NotASteward):
        half.sign(Steward.generate("carol"))
    half.sign(council.steward("carol"))  # control
    assert half.progress[0].signed == ("alice", "carol")


def test_a_draft_cannot_take_a_recall_back(council: Council, tmp_path: Path) -> None:
    """A66. A draft for the next version lacks a recall, and is otherwise honest.

    Powers: a steward whose machine leaves the recall out. Control: the same draft with the recall still in it.
    """
    recall_organ(council.of("alice"), organ_sha256="ee" * 32, reason="poisoned", steward=council.stewards[:2], now=NOW)
    for name in ("bob", "site"):
        update_roster(council.of(name), source=council.of("alice"), now=NOW)
    _, base = trusted(council.of("alice"), now=NOW)
    honest = propose(council.of("alice"), unchanged, now=NOW).draft
    recalls = honest.recalls()
    dates = drafts.Dates(honest.snapshot.signed.expires, honest.targets.signed.expires)
    forged = drafts.build_draft(
        base, roster=honest.roster(), recalls=recalls.model_copy(update={"recalls": []}), root=None, dates=dates
    )
    for draft, name in ((forged, "forged"), (honest, "honest")):
        drafts.sign_draft(draft, steward=council.steward("alice"), base=base)
        write_draft(tmp_path / name, draft)
    assert_not_signed(council, tmp_path / "forged", RecallRemoved)
    with pytest.raises(RecallRemoved):
        propose(council.of("alice"), lambda roster, recalls: (roster, recalls.model_copy(update={"recalls": []})),
                now=NOW)  # fmt: skip
    assert_signs(council, tmp_path / "honest")  # control


def test_the_first_root_cannot_be_exchanged_on_the_way(tmp_path: Path) -> None:
    """Own. The stick that comes back to the founder holds a complete first version with other stewards.

    Powers: has the stick, and three keys folders of its own under the same names. Control: the roster whose root the
    founder has signed.
    """
    stewards = {name: Steward.generate(name) for name in ("alice", "bob", "carol")}
    proposal = first_proposal(tmp_path / "alice", federation=FEDERATION, members=[], now=NOW,
                              stewards={name: each.public for name, each in stewards.items()})  # fmt: skip
    proposal.sign(stewards["alice"])
    settled = settle(proposal, signed_by=stewards["alice"])
    assert settled.draft is not None
    with pytest.raises(RosterNotPinned):
        load_roster(tmp_path / "alice", now=NOW)
    others = [Steward.generate(name) for name in stewards]
    create_roster(tmp_path / "forged", federation=FEDERATION, steward=others, members=[], now=NOW)
    with pytest.raises(RosterNotPinned):
        update_roster(tmp_path / "alice", source=tmp_path / "forged", now=NOW)
    bobs = open_draft(tmp_path / "bob", draft=settled.draft, now=NOW)
    assert bobs.root_sha256 == proposal.root_sha256
    bobs.sign(stewards["bob"])
    assert settle(bobs, signed_by=stewards["bob"]).roster is not None
    update_roster(tmp_path / "alice", source=tmp_path / "bob", now=NOW)
    assert root_sha256(tmp_path / "alice") == proposal.root_sha256  # control
    assert not (tmp_path / "alice" / "draft").exists()


def test_a_new_steward_alone_cannot_change_the_stewards(council: Council, tmp_path: Path) -> None:
    """A56. A change of stewards is signed by enough of the new ones only, or of the old ones only.

    Powers: two of the incoming stewards, or two of the outgoing. Control: both groups.
    """
    dave, erin = Steward.generate("dave"), Steward.generate("erin")
    exchange = exchanging(add=[steward_identity(dave), steward_identity(erin)], remove=["bob", "carol"])

    def signed_by(*stewards: Steward) -> bool:
        proposal = propose(council.of("alice"), unchanged, now=NOW, stewards=exchange)
        for steward in stewards:
            proposal.sign(steward)
        write_draft(tmp_path / "draft", proposal.draft)
        signed_roster = {key.public_key.keyid for key in signers(stewards)} & set(proposal.draft.targets.signatures)
        assert len(signed_roster) == 2 * len({steward.name for steward in stewards} - {"bob", "carol"})
        return proposal.is_enough

    alice, bob, carol = council.stewards
    for group in ((dave, erin), (bob, carol), (alice, dave), (alice, bob)):
        assert not signed_by(*group)
        assert_refused(council.site, NotFedError, tmp_path / "draft")
    assert signed_by(alice, bob, erin)
    assert update_roster(council.site, source=tmp_path / "draft", now=NOW).version == 2  # control


def test_keys_of_another_purpose_sign_no_roster(council: Council) -> None:
    """A72. A draft is signed with a site's identity keys, wrapped as if they were a steward's.

    Powers: is a member, with both of its signing keys. Control: a steward's keys.
    """
    proposal = council.propose(sign=False)
    signer: Any = council.clinic.signer
    wrapped = Steward("alice", ed25519=signer._ed25519, ml_dsa_65=signer._ml_dsa_65)
    with pytest.raises(NotASteward):
        proposal.sign(wrapped)
    proposal.sign(council.steward("alice"))  # control
    assert proposal.progress[0].signed == ("alice",)


def test_nothing_is_signed_for_a_roster_that_is_not_trusted_here(council: Council, tmp_path: Path) -> None:
    """Own. A steward of two federations is handed a draft of one in the folder of the other, or of a stranger's.

    Powers: another federation with the same steward in it. Control: the draft of this federation.
    """
    other = Federation.make(tmp_path / "other", name="highlands")
    proposal = propose(other.folder, unchanged, now=NOW)
    proposal.sign(other.steward)
    write_draft(tmp_path / "draft", proposal.draft)
    assert_not_signed(council, tmp_path / "draft", (DraftOutdated, DraftRefused))
    council.propose()
    assert_signs(council, stick(council))  # control


def test_a_draft_past_its_date_is_not_published(council: Council) -> None:
    """A51. A draft is kept back for 91 days, and then completed.

    Powers: carries the draft, slowly. Control: on day 80 it is still good.
    """
    council.propose()
    before = listing(council.of("bob"))
    for age, good in ((91, False), (80, True)):
        proposal = open_draft(council.of("bob"), draft=stick(council), now=NOW + days(age))
        proposal.sign(council.steward("bob"))
        if good:
            assert settle(proposal, signed_by=None).roster is not None  # control
        else:
            with pytest.raises(NotFedError) as caught:
                settle(proposal, signed_by=None)
            assert caught.value.code == "roster-expired"
            assert listing(council.of("bob")) == before


def test_a_roster_that_would_expire_at_once_is_not_made(council: Council) -> None:
    """Own. A steward proposes a version that sites cannot rely on for a second, to lock everybody out.

    Powers: a steward, with our commands. Control: one day is a possible date.
    """
    for more in ({"expires_in": timedelta(0)}, {"valid_for": timedelta(days=-1)}):
        with pytest.raises(NotFedError):
            propose(council.of("alice"), unchanged, now=NOW, **more)
    add_member(council.of("alice"), identity=Site.make("x").public, roles=["author"], steward=council.stewards, now=NOW)
    assert propose(council.of("alice"), unchanged, now=NOW, expires_in=days(1)).draft.version == 3  # control
