"""Adversary: whoever hands over the roster (a server, a USB stick, a synchronised folder), and outvoted stewards.

Powers: keeps every old version, mixes files, edits them, signs with keys of its own or with some stewards' keys.
Lacks: enough stewards' keys. Always: a typed refusal, and what this machine trusted before is still what it trusts.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from not_fed.errors import TrustError
from not_fed.files import NotAFile, OutputExists
from not_fed.keys import Steward
from not_fed.trust import draft as drafts
from not_fed.trust import memory
from not_fed.trust.ceremony import Proposal, propose, settle
from not_fed.trust.diff import targets_of
from not_fed.trust.members import RecallsFile, RosterFile
from not_fed.trust.roster import (
    ClockSetBack,
    MemberNotActive,
    NotASteward,
    RosterAltered,
    RosterExpired,
    RosterForked,
    RosterNotPinned,
    RosterRollback,
    RosterUnsigned,
    TooFewPeople,
    add_member,
    change_stewards,
    load_roster,
    pin_roster,
    recall_organ,
    renew_roster,
    revoke_member,
    root_sha256,
    update_roster,
)
from not_fed.trust.stewards import exchanging, recalling, revoking, unchanged
from not_fed.trust.takeover import trusted
from tests.support.rosters import Council, assert_refused, newer, resign, signers, state, steward_identity
from tests.support.trust import NOW, Federation, Site, days, listing

LATER = NOW + timedelta(hours=1)


def metadata(folder: Path) -> Path:
    """Where a roster folder hands its metadata on."""
    return folder / "repository" / "metadata"


def test_an_older_roster_is_refused_after_a_newer_one(pinned: Path, own_federation: Federation) -> None:
    """A50. Rollback: version 1 is handed over after version 2, and is put where this site hands its own on.

    Powers: kept every version. Control: version 3 is accepted, also from the folder that was tampered with before.
    """
    assert_refused(pinned, RosterRollback, pinned.parent / "version1")
    shutil.rmtree(pinned / "repository")
    shutil.copytree(pinned.parent / "version1" / "repository", pinned / "repository")
    assert load_roster(pinned, now=NOW).version == 2  # what is handed on decides nothing here
    renew_roster(own_federation.folder, steward=own_federation.steward, now=NOW)
    assert update_roster(pinned, source=own_federation.folder, now=NOW).version == 3  # control
    assert (metadata(pinned) / "3.targets.json").is_file()


def test_a_roster_past_its_date_is_refused(pinned: Path, own_federation: Federation) -> None:
    """A51. Freeze: a newer roster is withheld for 91 days.

    Powers: decides what this site gets to see. Control: on day 89 it is good; renewed by the stewards, after 91 and
    even after 500 days, it counts again, still from the root that was pinned first.
    """
    stewards = own_federation.folder
    assert load_roster(pinned, now=NOW + days(89)).version == 2  # control
    with pytest.raises(RosterExpired):
        load_roster(pinned, now=NOW + days(91))
    assert_refused(pinned, RosterExpired, stewards, now=NOW + days(91))
    for age in (days(91), days(500)):
        renewed = renew_roster(stewards, steward=own_federation.steward, now=NOW + age)
        assert update_roster(pinned, source=stewards, now=NOW + age).version == renewed.version  # control
    assert root_sha256(pinned) == own_federation.root_sha256


def test_an_expired_root_is_not_saved_by_a_fresh_timestamp(tmp_path: Path) -> None:
    """Own. Only the root is past its date; timestamp, snapshot and targets are fresh. Stale rosters are accepted.

    Powers: one set of stewards' keys whose root has run out. Control: a new root with the same keys is good.
    """
    federation, site, late = Federation.make(tmp_path / "r"), tmp_path / "site", NOW + days(366)
    pin_roster(tmp_path / "r", root_sha256=federation.root_sha256, out=site, now=NOW)
    base, dates = trusted(site, now=NOW)[1], drafts.Dates(late + days(90), late + days(90))
    roster, recalls = targets_of(base)
    assert roster is not None and recalls is not None
    draft = drafts.build_draft(base, roster=roster, recalls=recalls, root=None, dates=dates)  # ours renew the root too
    drafts.sign_draft(draft, steward=federation.steward, base=base)
    drafts.write_draft(tmp_path / "draft", draft)
    with pytest.raises(RosterExpired):
        update_roster(site, source=tmp_path / "draft", now=late)
    assert update_roster(site, source=tmp_path / "draft", now=NOW).version == 2
    for accept_stale in (False, True):
        with pytest.raises(RosterExpired):
            load_roster(site, now=late, accept_stale=accept_stale)
    fresh = Federation.make(tmp_path / "other")
    renew_roster(fresh.folder, steward=fresh.steward, now=late)
    assert load_roster(fresh.folder, now=late).version == 2  # control


def test_accepting_a_stale_roster_skips_no_signature(pinned: Path, council: Council) -> None:
    """A83, A67. With `accept_stale`: an edited memory, a stranger's, one signed by too few; and a member out of time.

    Powers: writes what the switch will be used on. Control: a roster that is stale and nothing else loads, and says so.
    """
    late = NOW + days(91)
    stale = load_roster(pinned, now=late, accept_stale=True)
    assert (stale.stale, stale.version) == (True, 2)  # control
    assert not load_roster(pinned, now=NOW, accept_stale=True).stale
    with pytest.raises(MemberNotActive):
        stale.member("clinic", now=NOW + days(366))
    kept = memory.read(pinned)
    stranger = memory.read(Federation.make(pinned.parent / "stranger").folder)
    hub = {"roster.json": kept.material.contents["roster.json"].replace(b"hub", b"bug")}
    changed = (
        replace(kept.material, contents=kept.material.contents | hub),
        replace(kept.material, timestamp=stranger.material.timestamp),
        replace(stranger.material, roots=kept.material.roots),
    )
    for material in changed:
        memory.write(pinned, replace(kept, material=material), lines={})
        for accept_stale in (False, True):
            with pytest.raises(TrustError) as caught:
                load_roster(pinned, now=NOW if not accept_stale else late, accept_stale=accept_stale)
            assert caught.type in (RosterAltered, RosterUnsigned)
    alone = memory.read(council.site)
    newer(council.of("alice") / "repository", signers([council.steward("alice")]))
    timestamp = (metadata(council.of("alice")) / "timestamp.json").read_bytes()
    memory.write(council.site, replace(alone, material=replace(alone.material, timestamp=timestamp)), lines={})
    with pytest.raises(RosterUnsigned):
        load_roster(council.site, now=late, accept_stale=True)


def test_a_clock_that_was_set_back_makes_no_roster_fresh(pinned: Path, own_federation: Federation) -> None:
    """Own. The clock goes back by 80 days, so that an expired roster looks current.

    Powers: sets this machine's clock (NTP is not signed). Control: a clock that is a few hours off does no harm.
    """
    renew_roster(own_federation.folder, steward=own_federation.steward, now=NOW + days(80))
    update_roster(pinned, source=own_federation.folder, now=NOW + days(80))
    with pytest.raises(ClockSetBack):
        load_roster(pinned, now=NOW)
    with pytest.raises(ClockSetBack):
        update_roster(pinned, source=own_federation.folder, now=NOW)
    assert load_roster(pinned, now=NOW + days(80) - timedelta(hours=20)).version == 3  # control


def test_one_steward_of_three_cannot_act_alone(council: Council) -> None:
    """A52. One person signs the next version with both keys, with our commands and by hand.

    Powers: one steward of three. Control: with a second person it is published and arrives.
    """
    before = listing(council.of("alice"))
    with pytest.raises(NotASteward):
        add_member(council.of("alice"), identity=Site.make("x").public, roles=["author"],
                   steward=council.steward("alice"), now=NOW)  # fmt: skip
    assert listing(council.of("alice")) == before
    shutil.copytree(council.of("alice"), council.of("forged"))
    newer(council.of("forged") / "repository", signers([council.steward("alice")]))
    assert_refused(council.site, RosterUnsigned, council.of("forged"))
    assert council.publish(by=("bob", "carol")).version == 2  # control


@pytest.mark.parametrize("algorithm", [0, 1], ids=["Ed25519", "ML-DSA-65"])
def test_one_broken_algorithm_is_not_enough(council: Council, algorithm: int) -> None:
    """A53. All three keys of one algorithm sign.

    Powers: forges one of the two algorithms at will. Control: both keys of two people.
    """
    forged = council.of("forged")
    shutil.copytree(council.of("alice"), forged)
    newer(forged / "repository", signers(council.stewards, algorithms=[algorithm]))
    assert_refused(council.site, RosterUnsigned, forged)
    assert council.publish().version == 2  # control


@pytest.mark.parametrize("algorithm", [0, 1], ids=["Ed25519", "ML-DSA-65"])
@pytest.mark.parametrize("insider", ["alice", "carol"])
def test_one_broken_algorithm_and_one_insider_are_not_enough(council: Council, algorithm: int, insider: str) -> None:
    """Own. Three forged signatures and an insider's own fourth make four of six keys: enough for TUF.

    Powers: forges one algorithm at will and is one of the three stewards. Control: TUF alone says yes to it (all
    signatures hold); two whole people.
    """
    forged = council.of("forged")
    shutil.copytree(council.of("alice"), forged)
    keys = signers(council.stewards, algorithms=[algorithm])
    newer(forged / "repository", [*keys, *signers([council.steward(insider)], algorithms=[1 - algorithm])])
    refused = assert_refused(council.site, TooFewPeople, forged)  # and not RosterUnsigned: TUF was content
    assert insider in refused.got
    assert council.publish().version == 2  # control


def test_every_file_of_a_roster_is_bound_by_signatures(pinned: Path, own_federation: Federation) -> None:
    """A54. Each file that the new version needs, with one byte changed, cut, emptied, replaced or removed.

    Powers: edits every file on the way. Control: untouched, the version arrives.
    """
    stewards = own_federation.folder
    add_member(stewards, identity=Site.make("east").public, roles=["author"], steward=own_federation.steward, now=NOW)
    source = stewards / "repository"
    for path in sorted(source.rglob("*.json")):
        whole = path.read_bytes()
        middle = len(whole) // 2
        flipped = whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :]
        for changed in (flipped, b"", b"{}", b"[" * 5000, whole[:-20], None):
            path.unlink()
            if changed is not None:
                path.write_bytes(changed)
            if path.name == "1.root.json":
                continue  # the site has its own
            assert_refused(pinned, TrustError, source)
        path.unlink(missing_ok=True)
        path.write_bytes(whole)
    assert update_roster(pinned, source=source, now=NOW).version == 3  # control


def test_a_stranger_cannot_make_a_roster(pinned: Path, tmp_path: Path) -> None:
    """A55. The same federation name, the same members' names, a higher version, other stewards.

    Powers: keys of its own. Control: whoever pins the stranger's root by its digest gets the stranger's roster.
    """
    stranger = Federation.make(tmp_path / "stranger")
    for _ in range(3):  # versions 2, 3, 4: newer than what the site has
        renew_roster(stranger.folder, steward=stranger.steward, now=NOW)
    assert_refused(pinned, TrustError, stranger.folder)
    with pytest.raises(NotASteward):
        renew_roster(pinned, steward=stranger.steward, now=NOW)
    with pytest.raises(NotASteward):
        add_member(pinned, identity=Site.make("x").public, roles=["author"], steward=Steward.generate("steward"),
                   now=NOW)  # fmt: skip
    pin_roster(stranger.folder, root_sha256=stranger.root_sha256, out=tmp_path / "own", now=NOW)
    assert load_roster(tmp_path / "own", now=NOW).version == 4  # control


def test_a_root_that_the_old_one_did_not_sign_is_refused(council: Council, tmp_path: Path) -> None:
    """A56. A next root by strangers, by one steward, by the new stewards alone, by the old ones alone.

    Powers: puts a root where the next version would be. Control: signed by enough of the old and of the new.
    """
    stranger = Federation.make(tmp_path / "stranger")
    renew_roster(stranger.folder, steward=stranger.steward, now=NOW)
    source = tmp_path / "forged"
    shutil.copytree(council.of("alice"), source)
    shutil.copyfile(metadata(stranger.folder) / "2.root.json", metadata(source) / "2.root.json")
    assert_refused(council.site, (RosterUnsigned, TooFewPeople), source)
    dave, erin = Steward.generate("dave"), Steward.generate("erin")
    people = {"alice": council.steward("alice"), "bob": council.steward("bob"), "dave": dave, "erin": erin}

    def changed(folder: Path, by: list[str]) -> None:
        change_stewards(folder, steward=[people[name] for name in by], add=[steward_identity(dave),
                        steward_identity(erin)], remove=["bob", "carol"], now=NOW)  # fmt: skip

    for by in (["alice"], ["alice", "bob"], ["dave", "erin"], ["alice", "dave"]):
        with pytest.raises(NotASteward):
            changed(council.of("alice"), by)
    honest = council.of("bob")
    changed(honest, ["alice", "bob", "dave"])
    whole = (metadata(honest) / "2.root.json").read_bytes()
    for by in (["dave", "erin"], ["alice", "dave"], ["alice", "bob"]):
        resign(metadata(honest) / "2.root.json", signers([people[name] for name in by]), lambda signed: None)
        assert_refused(council.site, (RosterUnsigned, TooFewPeople), honest)
    (metadata(honest) / "2.root.json").write_bytes(whole)
    assert update_roster(council.site, source=honest, now=NOW).version == 2  # control


def test_there_is_no_trust_on_first_use(pinned: Path, tmp_path: Path, own_federation: Federation) -> None:
    """A59. The memory is deleted, emptied, damaged or made a link; a root of another digest is offered for pinning.

    Powers: deletes files here, offers any roster. Control: pinned again by the digest that a steward told.
    """
    stewards, digest = own_federation.folder, own_federation.root_sha256
    shutil.move(pinned / "trusted", tmp_path / "kept")

    def nothing_is_trusted() -> None:
        with pytest.raises(RosterNotPinned):
            load_roster(pinned, now=NOW)
        with pytest.raises(RosterNotPinned):
            update_roster(pinned, source=stewards, now=NOW)

    nothing_is_trusted()
    (pinned / "trusted").mkdir()
    nothing_is_trusted()
    for content in (b"", b"{}", b"[" * 100_000, b"\xff", (tmp_path / "kept" / "state.json").read_bytes()[:-1]):
        (pinned / "trusted" / "state.json").write_bytes(content)
        nothing_is_trusted()
    shutil.rmtree(pinned / "trusted")
    (pinned / "trusted").symlink_to(tmp_path / "kept")
    nothing_is_trusted()
    for wrong in ("00" * 32, digest[:-1] + "x", ""):
        with pytest.raises(RosterNotPinned):
            pin_roster(stewards, root_sha256=wrong, out=tmp_path / "new", now=NOW)
        assert not (tmp_path / "new").exists()
    with pytest.raises(NotAFile):
        pin_roster(tmp_path / "nowhere", root_sha256=digest, out=tmp_path / "new", now=NOW)
    pin_roster(stewards, root_sha256=digest, out=tmp_path / "new", now=NOW)
    assert load_roster(tmp_path / "new", now=NOW).version == 2  # control
    with pytest.raises(OutputExists):
        pin_roster(stewards, root_sha256=digest, out=tmp_path / "new", now=NOW)
    assert not [name for name in listing(tmp_path) if name.endswith(".part")]


def test_versions_cannot_be_mixed(pinned: Path, own_federation: Federation) -> None:
    """A60. The timestamp of version 3 over snapshot or targets of version 2, renamed.

    Powers: has every file that the stewards ever signed. Control: unmixed, the revocation arrives.
    """
    stewards, old = own_federation.folder, pinned.parent / "version2"
    shutil.copytree(stewards, old)
    revoke_member(stewards, name="lab", steward=own_federation.steward, now=NOW)
    for name, stand_in in (("3.targets.json", "2.targets.json"), ("3.snapshot.json", "2.snapshot.json")):
        whole = (metadata(stewards) / name).read_bytes()
        shutil.copyfile(metadata(old) / stand_in, metadata(stewards) / name)
        assert_refused(pinned, TrustError, stewards)
        (metadata(stewards) / name).write_bytes(whole)
    assert not update_roster(pinned, source=stewards, now=NOW).members["lab"].active  # control


def test_two_signed_rosters_of_one_version_are_not_mixed_and_not_unseen(council: Council) -> None:
    """Own. Stewards sign two different versions 2. The site is shown one; then parts of the other; then all of it.

    Powers: enough stewards who sign both (by mistake or on purpose). Control: the first of them is a good roster.
    """
    made = []
    for name in ("alice", "bob"):
        add_member(council.of(name), identity=Site.make(f"of-{name}").public, roles=["author"],
                   steward=council.stewards[:2], now=NOW)  # fmt: skip
        made.append(council.of(name))
    mixed = council.of("mixed")
    for part in ("2.targets.json", "2.snapshot.json"):
        shutil.copytree(made[0], mixed)
        shutil.copytree(made[1] / "repository" / "targets", mixed / "repository" / "targets", dirs_exist_ok=True)
        shutil.copyfile(metadata(made[1]) / part, metadata(mixed) / part)
        assert_refused(council.site, RosterAltered, mixed)
        shutil.rmtree(mixed)
    assert update_roster(council.site, source=made[0], now=NOW).version == 2  # control
    assert_refused(council.site, RosterForked, made[1])
    renew_roster(made[1], steward=council.stewards[:2], now=NOW)  # version 3, on top of the other version 2
    assert_refused(council.site, RosterForked, made[1])
    renew_roster(made[0], steward=council.stewards[:2], now=NOW)
    assert update_roster(council.site, source=made[0], now=NOW).version == 3


def test_a_version_number_out_of_reach_is_recovered_from(tmp_path: Path) -> None:
    """Own. Fast forward: a thief signs version 900,000,000, so that no honest version is ever newer; and a recall.

    Powers: had the steward's keys. Control: before the keys are exchanged the honest version is a rollback; after it,
    the site takes it (TUF 5.3.11), and the thief's own next version is refused. The recall stays: it is never undone.
    """
    federation, site = Federation.make(tmp_path / "r"), tmp_path / "site"
    pin_roster(tmp_path / "r", root_sha256=federation.root_sha256, out=site, now=NOW)
    thief = tmp_path / "thief"
    shutil.copytree(tmp_path / "r", thief)
    recall_organ(thief, organ_sha256="ee" * 32, reason="to do harm", steward=federation.steward, now=NOW)
    newer(thief / "repository", signers([federation.steward]), by=900_000_000)
    update_roster(site, source=thief, now=NOW)
    renew_roster(tmp_path / "r", steward=federation.steward, now=NOW)
    with pytest.raises(RosterRollback):
        update_roster(site, source=tmp_path / "r", now=NOW)
    fresh = Steward.generate("again")
    change_stewards(tmp_path / "r", steward=[federation.steward, fresh], add=[steward_identity(fresh)],
                    remove=["steward"], now=NOW)  # fmt: skip
    roster = update_roster(site, source=tmp_path / "r", now=NOW)
    assert (roster.version, roster.recalls) == (3, {"ee" * 32: "to do harm"})  # control
    newer(thief / "repository", signers([federation.steward]))
    assert_refused(site, TrustError, thief)


def test_a_pinned_roster_is_checked_before_it_appears(tmp_path: Path) -> None:
    """A54. The roster in the folder to pin from was edited; its root is the right one.

    Powers: edits the folder from which a newcomer pins. Control: unedited, it is pinned.
    """
    federation = Federation.make(tmp_path / "r")
    (target,) = (tmp_path / "r" / "repository" / "targets").glob("*.roster.json")
    whole = target.read_bytes()
    target.write_bytes(whole.replace(b"hub", b"bug"))
    with pytest.raises(RosterAltered):
        pin_roster(tmp_path / "r", root_sha256=federation.root_sha256, out=tmp_path / "site", now=NOW)
    assert not (tmp_path / "site").exists()
    target.write_bytes(whole)
    pin_roster(tmp_path / "r", root_sha256=federation.root_sha256, out=tmp_path / "site", now=NOW)
    assert load_roster(tmp_path / "site", now=NOW) == federation.roster  # control


def test_links_and_special_files_in_a_roster_folder_are_not_read(pinned: Path, own_federation: Federation) -> None:
    """A75. Symbolic links (to the right content, to /dev/zero, to nothing), a FIFO, a folder, where files should be.

    Powers: makes any file system object in the folder that is handed over. Control: among garbage, the honest files.
    """
    stewards = own_federation.folder
    renew_roster(stewards, steward=own_federation.steward, now=NOW)
    for name in ("timestamp.json", "3.targets.json", "3.snapshot.json"):
        path, kept = metadata(stewards) / name, metadata(stewards) / "kept"
        path.rename(kept)
        for target in (kept, Path("/dev/zero"), Path("nowhere")):
            path.symlink_to(target)
            assert_refused(pinned, TrustError, stewards)
            path.unlink()
        os.mkfifo(path)
        assert_refused(pinned, TrustError, stewards)
        path.unlink()
        path.mkdir()
        assert_refused(pinned, TrustError, stewards)
        path.rmdir()
        kept.rename(path)
    for number, garbage in enumerate((b"", b"\0" * 100, b"{" * 10_000)):
        (metadata(stewards) / f"garbage{number}.json").write_bytes(garbage)
        (metadata(stewards) / f"{number + 500}.root.json").write_bytes(garbage)
    assert update_roster(pinned, source=stewards, now=NOW).version == 3  # control
    assert not list((pinned / "repository").rglob("garbage*"))  # and nothing of that kind travels on


def test_a_steward_who_left_signs_nothing_more(council: Council) -> None:
    """Own. After carol was replaced by dave, carol and alice sign a version; on machines of then and of now.

    Powers: carol kept her keys and finds one steward who signs along. Control: alice and dave.
    """
    dave = Steward.generate("dave")
    change_stewards(council.of("alice"), steward=council.stewards[:2], add=[steward_identity(dave)], remove=["carol"],
                    now=NOW)  # fmt: skip
    update_roster(council.site, source=council.of("alice"), now=NOW)
    with pytest.raises(NotASteward):
        renew_roster(council.of("alice"), steward=[council.steward("alice"), council.steward("carol")], now=NOW)
    stale = council.of("carol")  # has not heard of it: still version 1
    renew_roster(stale, steward=[council.steward("alice"), council.steward("carol")], now=NOW)
    renew_roster(stale, steward=[council.steward("alice"), council.steward("carol")], now=NOW)
    assert_refused(council.site, TrustError, stale)
    renew_roster(council.of("alice"), steward=[council.steward("alice"), dave], now=NOW)
    assert update_roster(council.site, source=council.of("alice"), now=NOW).version == 3  # control


def test_an_old_roster_does_not_come_back_when_a_steward_leaves(council: Council, tmp_path: Path) -> None:
    """A50. Carol and bob revoke a member and recall an organ; then carol leaves. Version 1, which alice and bob signed
    as well, is offered with the new root on top, to a site and to a newcomer.

    Powers: kept version 1, has the public new root. Control: the version that came with the new root.
    """
    old = council.of("old")
    shutil.copytree(council.of("alice"), old)

    def edit(roster: RosterFile, recalls: RecallsFile) -> tuple[RosterFile, RecallsFile]:
        return recalling("ee" * 32, reason="poisoned", now=NOW)(*revoking("clinic")(roster, recalls))

    def published(proposal: Proposal, *by: str) -> None:
        for name in by:
            proposal.sign(council.steward(name), instead=True)
        assert settle(proposal, signed_by=None).roster is not None

    published(propose(council.of("bob"), edit, now=NOW), "bob", "carol")
    for name in ("alice", "site"):
        update_roster(council.of(name), source=council.of("bob"), now=NOW)
    without = propose(council.of("alice"), unchanged, now=NOW, stewards=exchanging(remove=["carol"]))
    published(without, "alice", "bob")
    shutil.copyfile(metadata(council.of("alice")) / "2.root.json", metadata(old) / "2.root.json")
    assert_refused(council.site, RosterRollback, old)
    with pytest.raises(RosterRollback):
        pin_roster(old, root_sha256=council.root_sha256, out=tmp_path / "newcomer", now=NOW)
    roster = update_roster(council.site, source=council.of("alice"), now=NOW)  # control
    assert (roster.version, roster.members["clinic"].active, set(roster.recalls)) == (3, False, {"ee" * 32})


def test_recalls_that_a_newer_roster_lacks_raise_an_alarm(tmp_path: Path) -> None:
    """A66. A newer roster no longer recalls what an older one recalled, properly signed.

    Powers: enough stewards who want an organ back. Control: with the recall still in it, the newer roster is taken.
    """
    federation, site = Federation.make(tmp_path / "r"), tmp_path / "site"
    shutil.copytree(tmp_path / "r", tmp_path / "without")
    recall_organ(tmp_path / "r", organ_sha256="ee" * 32, reason="poisoned", steward=federation.steward, now=NOW)
    pin_roster(tmp_path / "r", root_sha256=federation.root_sha256, out=site, now=NOW)
    for _ in range(2):
        renew_roster(tmp_path / "without", steward=federation.steward, now=NOW)
    refused = assert_refused(site, TrustError, tmp_path / "without")
    assert refused.code == "recall-removed"
    renew_roster(tmp_path / "r", steward=federation.steward, now=NOW)
    assert update_roster(site, source=tmp_path / "r", now=NOW).recalls == {"ee" * 32: "poisoned"}  # control


def test_an_update_that_is_refused_leaves_no_trace(council: Council) -> None:
    """Own. A refused roster brings a withdrawal, a draft and unknown files along.

    Powers: fills the folder that is handed over. Control: the honest folder, afterwards.
    """
    forged = council.of("forged")
    shutil.copytree(council.of("alice"), forged)
    newer(forged / "repository", signers([council.steward("alice")]))
    (forged / "repository" / "recalls").mkdir(exist_ok=True)
    (forged / "repository" / "recalls" / f"{'00' * 32}.recall").write_bytes(b"x")
    before = state(council.site), listing(council.site)
    assert_refused(council.site, RosterUnsigned, forged)
    assert (state(council.site), listing(council.site)) == before
    assert council.publish().version == 2  # control


def test_a_renewal_changes_no_members(council: Council) -> None:
    """Own. A steward hides a new member in what is called a renewal.

    Powers: proposes it, on another machine. Control: the difference names the member; a true renewal names none.
    """
    hidden = council.propose(site="mallory")
    assert [change.subject for change in hidden.changes if change.kind == "member-added"] == ["mallory"]
    honest = propose(council.of("bob"), unchanged, now=NOW, renew_root=True)
    assert {change.kind for change in honest.changes} == {"expires", "roster-holds", "root"}  # control
    for name in ("bob", "carol"):
        honest.sign(council.steward(name))
    assert settle(honest, signed_by=None).roster == load_roster(council.of("bob"), now=NOW)
