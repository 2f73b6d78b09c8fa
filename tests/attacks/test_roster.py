"""Adversary: whoever hands over the roster (a server, a USB stick, a synchronised folder), and outvoted stewards.

Powers: keeps every old version, mixes files, edits them, signs with keys of its own or with some stewards' keys.
Lacks: enough stewards' keys. Always: a typed refusal, and what this machine trusted before is still what it trusts.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import Metadata

from not_fed import canonical
from not_fed.errors import TrustError
from not_fed.files import NotAFile, OutputExists
from not_fed.keys import Steward
from not_fed.trust.members import member_entry, read_roster
from not_fed.trust.roster import (
    MemberExists,
    MemberNotActive,
    NotASteward,
    RosterAltered,
    RosterExpired,
    RosterMalformed,
    RosterNotPinned,
    RosterRollback,
    RosterUnsigned,
    TrustedRoster,
    UnknownMember,
    WrongRole,
    add_member,
    create_roster,
    load_roster,
    pin_roster,
    renew_roster,
    revoke_member,
    root_sha256,
    update_roster,
)
from tests.support.trust import FEDERATION, NOW, Federation, Site, days, listing

LATER = NOW + timedelta(hours=1)


@pytest.fixture
def pinned(tmp_path: Path, federation: Federation) -> Path:
    """A roster as a site keeps it: pinned once, versions 1 and 2 seen."""
    shutil.copytree(federation.folder, tmp_path / "stewards", symlinks=True)
    site = tmp_path / "site"
    pin_roster(tmp_path / "stewards", root_sha256=federation.root_sha256, out=site, now=NOW)
    shutil.copytree(tmp_path / "stewards", tmp_path / "version1", symlinks=True)
    identity = Site.make("north").public
    add_member(tmp_path / "stewards", identity=identity, roles=["author"], steward=federation.steward, now=NOW)
    assert update_roster(site, source=tmp_path / "stewards", now=NOW).version == 2
    return site


def trusted(folder: Path) -> dict[str, bytes]:
    """All that this machine remembers."""
    return {str(path): path.read_bytes() for path in sorted((folder / "trusted").rglob("*.json"))}


def assert_roster_refused(site: Path, kind: type[TrustError], source: Path, **more: object) -> None:
    before = trusted(site)
    with pytest.raises(kind) as caught:
        update_roster(site, source=source, now=more.get("now", NOW))  # type: ignore[arg-type]
    assert caught.value.exit_code == 6
    assert trusted(site) == before
    assert load_roster(site, now=NOW).version == 2


def test_an_older_roster_is_refused_after_a_newer_one(pinned: Path) -> None:
    """Rollback, from another folder and in the site's own repository folder."""
    assert_roster_refused(pinned, RosterRollback, pinned.parent / "version1")
    shutil.rmtree(pinned / "repository")
    shutil.copytree(pinned.parent / "version1" / "repository", pinned / "repository")
    with pytest.raises(RosterRollback):
        load_roster(pinned, now=NOW)


def test_a_roster_past_its_date_is_refused(pinned: Path, federation: Federation) -> None:
    """Freeze: a newer roster is withheld. The stewards can still renew it, and then it counts again."""
    assert load_roster(pinned, now=NOW + days(89)).version == 2  # control
    with pytest.raises(RosterExpired):
        load_roster(pinned, now=NOW + days(91))
    assert_roster_refused(pinned, RosterExpired, pinned.parent / "stewards", now=NOW + days(91))
    for age in (days(91), days(500)):
        renewed = renew_roster(pinned.parent / "stewards", steward=federation.steward, now=NOW + age)
        assert update_roster(pinned, source=pinned.parent / "stewards", now=NOW + age).version == renewed.version
    assert root_sha256(pinned) == federation.root_sha256  # still from the root that was pinned first


def test_every_file_of_a_roster_is_bound_by_signatures(pinned: Path, federation: Federation) -> None:
    """Each file that the new version needs, with one byte changed, cut, emptied, replaced or removed."""
    add_member(
        pinned.parent / "stewards",
        identity=Site.make("east").public,
        roles=["author"],
        steward=federation.steward,
        now=NOW,
    )
    source = pinned.parent / "stewards" / "repository"
    needed = {"timestamp.json", "3.snapshot.json", "3.targets.json"}
    for path in sorted(source.rglob("*.json")):
        whole = path.read_bytes()
        middle = len(whole) // 2
        for changed in (
            whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :],
            b"",
            b"{}",
            whole[:-20],
            None,
        ):
            path.unlink()
            if changed is not None:
                path.write_bytes(changed)
            is_new_target = path.parent.name == "targets" and b"east" in whole
            if path.name in needed or is_new_target:
                assert_roster_refused(pinned, TrustError, source)
        path.unlink(missing_ok=True)
        path.write_bytes(whole)
    assert update_roster(pinned, source=source, now=NOW).version == 3  # control


def test_versions_cannot_be_mixed(pinned: Path, federation: Federation) -> None:
    """The timestamp of version 3 over snapshot and targets of version 2; and every other mixture."""
    stewards = pinned.parent / "stewards"
    old = stewards / "repository" / "metadata"
    shutil.copytree(stewards, pinned.parent / "version2", symlinks=True)
    revoke_member(stewards, name="lab", steward=federation.steward, now=NOW)
    for name, stand_in in (("3.targets.json", "2.targets.json"), ("3.snapshot.json", "2.snapshot.json")):
        whole = (old / name).read_bytes()
        shutil.copyfile(pinned.parent / "version2" / "repository" / "metadata" / stand_in, old / name)
        assert_roster_refused(pinned, TrustError, stewards)
        (old / name).write_bytes(whole)
    roster = update_roster(pinned, source=stewards, now=NOW)
    assert not roster.members["lab"].active  # control: unmixed, the revocation arrives


def test_a_stranger_cannot_make_a_roster(pinned: Path, tmp_path: Path) -> None:
    """The same federation name, the same members, other stewards."""
    stranger = Federation.make(tmp_path / "stranger")
    for _ in range(3):  # versions 2, 3, 4: newer than what the site has
        renew_roster(tmp_path / "stranger", steward=stranger.steward, now=NOW)
    assert_roster_refused(pinned, TrustError, tmp_path / "stranger")
    with pytest.raises(NotASteward):
        renew_roster(pinned, steward=stranger.steward, now=NOW)
    with pytest.raises(NotASteward):
        add_member(
            pinned, identity=Site.make("x").public, roles=["author"], steward=Steward.generate("steward"), now=NOW
        )


def _resign(path: Path, signers: list[CryptoSigner], change: Callable[[dict[str, object]], None]) -> None:
    """Edit a metadata file and sign it again with some keys only."""
    value = json.loads(path.read_bytes())
    change(value["signed"])
    metadata = Metadata.from_dict(value)
    metadata.signatures.clear()
    for signer in signers:
        metadata.sign(signer, append=True)
    path.write_bytes(metadata.to_bytes())


@pytest.mark.parametrize("algorithm", [0, 1], ids=["Ed25519", "ML-DSA-65"])
def test_one_broken_algorithm_is_not_enough(tmp_path: Path, algorithm: int) -> None:
    """Three stewards, four of six keys: all three keys of one algorithm sign, and it is still refused."""
    stewards = [Steward.generate(name) for name in ("one", "two", "three")]
    members = [(Site.make("clinic").public, ["author"])]
    digest = create_roster(tmp_path / "r", federation=FEDERATION, steward=stewards, members=members, now=NOW)
    pin_roster(tmp_path / "r", root_sha256=digest, out=tmp_path / "site", now=NOW)
    assert load_roster(tmp_path / "site", now=NOW).federation == FEDERATION  # control
    keys = [CryptoSigner(steward.private_keys()[algorithm]) for steward in stewards]
    timestamp = tmp_path / "r" / "repository" / "metadata" / "timestamp.json"

    def newer(signed: dict[str, object]) -> None:
        signed["version"] = 2

    whole = timestamp.read_bytes()
    _resign(timestamp, keys, newer)
    with pytest.raises(RosterUnsigned):
        update_roster(tmp_path / "site", source=tmp_path / "r", now=NOW)
    timestamp.write_bytes(whole)
    two = [CryptoSigner(key) for steward in stewards[:2] for key in steward.private_keys()]
    _resign(timestamp, two, newer)
    assert update_roster(tmp_path / "site", source=tmp_path / "r", now=NOW).version == 1  # control: two people do


def test_one_steward_of_three_cannot_act_alone(tmp_path: Path) -> None:
    stewards = [Steward.generate(name) for name in ("one", "two", "three")]
    create_roster(tmp_path / "r", federation=FEDERATION, steward=stewards, members=[], now=NOW)
    before = listing(tmp_path / "r")
    with pytest.raises(NotASteward):
        add_member(tmp_path / "r", identity=Site.make("x").public, roles=["author"], steward=stewards[0], now=NOW)
    assert listing(tmp_path / "r") == before
    two = add_member(tmp_path / "r", identity=Site.make("x").public, roles=["author"], steward=stewards[1:], now=NOW)
    assert "x" in two.members  # control


def test_a_root_that_the_old_one_did_not_sign_is_refused(pinned: Path, tmp_path: Path, federation: Federation) -> None:
    """A second root by other stewards, put where the next version would be."""
    stranger = Federation.make(tmp_path / "stranger")
    renew_roster(tmp_path / "stranger", steward=stranger.steward, now=NOW)
    source = pinned.parent / "stewards"
    shutil.copyfile(
        tmp_path / "stranger" / "repository" / "metadata" / "2.root.json",
        source / "repository" / "metadata" / "2.root.json",
    )
    assert_roster_refused(pinned, TrustError, source)


def test_there_is_no_trust_on_first_use(pinned: Path, tmp_path: Path, federation: Federation) -> None:
    """The memory deleted, emptied or made a link: pinned again or refused. Another digest is not pinned."""
    shutil.move(pinned / "trusted", tmp_path / "kept")
    with pytest.raises(RosterNotPinned):
        load_roster(pinned, now=NOW)
    (pinned / "trusted").mkdir()
    with pytest.raises(RosterNotPinned):
        load_roster(pinned, now=NOW)
    (pinned / "trusted").rmdir()
    (pinned / "trusted").symlink_to(tmp_path / "kept")
    with pytest.raises(RosterNotPinned):
        load_roster(pinned, now=NOW)
    for wrong in ("00" * 32, federation.root_sha256[:-1] + "x", ""):
        with pytest.raises(RosterNotPinned):
            pin_roster(pinned.parent / "stewards", root_sha256=wrong, out=tmp_path / "new", now=NOW)
        assert not (tmp_path / "new").exists()
    with pytest.raises(NotAFile):
        pin_roster(tmp_path / "nowhere", root_sha256=federation.root_sha256, out=tmp_path / "new", now=NOW)
    pin_roster(pinned.parent / "stewards", root_sha256=federation.root_sha256, out=tmp_path / "new", now=NOW)
    with pytest.raises(OutputExists):
        pin_roster(pinned.parent / "stewards", root_sha256=federation.root_sha256, out=tmp_path / "new", now=NOW)
    assert not [name for name in listing(tmp_path) if name.endswith(".part")]


def test_a_pinned_roster_is_checked_before_it_appears(tmp_path: Path) -> None:
    federation = Federation.make(tmp_path / "r")
    (target,) = (tmp_path / "r" / "repository" / "targets").glob("*.roster.json")
    target.write_bytes(target.read_bytes().replace(b"hub", b"bug"))
    with pytest.raises(RosterAltered):
        pin_roster(tmp_path / "r", root_sha256=federation.root_sha256, out=tmp_path / "site", now=NOW)
    assert not (tmp_path / "site").exists()


def test_no_key_and_no_name_stands_for_two_members(tmp_path: Path) -> None:
    clinic, hub = Site.make("clinic"), Site.make("hub")
    steward = Steward.generate("steward")
    twin = Site.make("CLINIC")
    for pair in ([clinic, clinic], [clinic, twin]):
        with pytest.raises(MemberExists):
            create_roster(tmp_path / "r", federation=FEDERATION, steward=steward, now=NOW,
                          members=[(site.public, ["author"]) for site in pair])  # fmt: skip
    create_roster(
        tmp_path / "r", federation=FEDERATION, steward=steward, members=[(clinic.public, ["author"])], now=NOW
    )
    same_seal = Site(hub.signer, clinic.opener)
    for identity in (clinic.public, same_seal.public):
        with pytest.raises(MemberExists):
            add_member(tmp_path / "r", identity=identity, roles=["author"], steward=steward, now=NOW)
    assert "hub" in add_member(tmp_path / "r", identity=hub.public, roles=["author"], steward=steward, now=NOW).members


def test_members_are_held_to_their_time_role_and_status(federation: Federation) -> None:
    roster = federation.roster
    assert roster.member("hub", role="receiver", now=NOW).name == "hub"
    assert roster.member("hub", role=("author", "aggregator"), now=NOW).name == "hub"
    with pytest.raises(UnknownMember):
        roster.member("nobody", now=NOW)
    with pytest.raises(WrongRole):
        roster.member("hub", role="author", now=NOW)
    for moment in (NOW - days(1), NOW + days(366)):
        with pytest.raises(MemberNotActive):
            roster.member("hub", now=moment)
    assert roster.member("hub", now=NOW - timedelta(seconds=299)).name == "hub"  # a clock may be five minutes off


def test_a_revoked_member_can_come_back_with_new_keys_only_by_the_stewards(tmp_path: Path) -> None:
    federation = Federation.make(tmp_path / "r")
    revoke_member(tmp_path / "r", name="lab", steward=federation.steward, now=NOW)
    new = Site.make("lab")
    roster = add_member(tmp_path / "r", identity=new.public, roles=["author"], steward=federation.steward, now=LATER)
    assert roster.member("lab", now=LATER).signing == new.signer.public
    with pytest.raises(UnknownMember):
        revoke_member(tmp_path / "r", name="nobody", steward=federation.steward, now=LATER)


def test_a_roster_that_stewards_signed_by_mistake_is_still_checked() -> None:
    """One key under two names, an unknown role, a key that is none: signed by enough stewards, and refused."""
    clinic, hub = (
        member_entry(Site.make(name).public, roles=["author"], now=NOW, valid_for=days(1)).model_dump()
        for name in ("clinic", "hub")
    )
    recalls = canonical.dumps({"format": "not-fed.recalls/1", "recalls": []})

    def read(*members: object, **more: object) -> TrustedRoster:
        value = {"format": "not-fed.roster/1", "federation": FEDERATION, "members": list(members)} | more
        return read_roster(canonical.dumps(value), recalls, version=1, expires_at=NOW)

    assert sorted(read(clinic, hub).members) == ["clinic", "hub"]  # control
    mistakes: tuple[tuple[object, ...], ...] = (
        (clinic, clinic), (clinic, hub | {"seal": clinic["seal"]}), (clinic, hub | {"ed25519": clinic["ed25519"]}),
        (clinic, hub | {"name": "Clinic"}), (clinic | {"roles": ["boss"]},), (clinic | {"status": "perhaps"},),
        (clinic | {"seal": "age1pq1"},), (clinic | {"ed25519": ""},), (clinic | {"not_after": "never"},),
        (clinic | {"extra": 1},), (clinic | {"name": "../x"},), (None,), ([],),
    )  # fmt: skip
    for members in mistakes:
        with pytest.raises(RosterMalformed):
            read(*members)
    for more in ({"format": "not-fed.roster/2"}, {"federation": ""}, {"members": None}, {"extra": 1}):
        with pytest.raises(RosterMalformed):
            read(clinic, **more)
    with pytest.raises(RosterMalformed):
        read_roster(b"{", recalls, version=1, expires_at=NOW)
