"""Adversary: a member, a former member, and stewards who make a mistake.

Powers: keys that were on the roster once or are on it under another name; a signed roster with an entry that cannot be.
Always: keys count for one member, in their own time, in the roles that the stewards gave.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from not_fed import canonical
from not_fed.errors import NotFedError, TrustError
from not_fed.keys import BadSignature, MalformedSigned, Steward, SuccessionRefused
from not_fed.keys.succession import sign_succession
from not_fed.trust.ceremony import propose
from not_fed.trust.draft import RosterTooLarge
from not_fed.trust.members import KeysRetired, RecallsFile, RosterFile, member_entry, read_roster
from not_fed.trust.roster import (
    MemberExists,
    MemberNotActive,
    RosterMalformed,
    TrustedRoster,
    UnknownMember,
    WrongRole,
    add_member,
    create_roster,
    load_roster,
    renew_roster,
    revoke_member,
    rotate_member,
    update_roster,
)
from not_fed.trust.stewards import adding
from tests.support.rosters import assert_refused
from tests.support.trust import FEDERATION, NOW, Federation, Site, days

LATER = NOW + timedelta(hours=1)


def test_no_key_and_no_name_stands_for_two_members(tmp_path: Path) -> None:
    """A57. One key for two sites: signing, sealing, a log's, one that another site has retired; one name in two cases.

    Powers: brings an identity with somebody else's key to a steward who does not look. Control: keys of its own.
    """
    clinic, hub = Site.make("clinic"), Site.make("hub")
    steward = Steward.generate("steward")
    for pair in ([clinic, clinic], [clinic, Site.make("CLINIC")]):
        with pytest.raises(MemberExists):
            create_roster(tmp_path / "r", federation=FEDERATION, steward=steward, now=NOW,
                          members=[(site.public, ["author"]) for site in pair])  # fmt: skip
    create_roster(
        tmp_path / "r", federation=FEDERATION, steward=steward, members=[(clinic.public, ["author"])], now=NOW
    )
    renewed = Site.make("clinic")
    rotate_member(tmp_path / "r", identity=renewed.public, steward=steward, now=NOW)
    same_seal, retired_seal = Site(hub.signer, renewed.opener), Site(hub.signer, clinic.opener)
    retired = replace(clinic.public, name="hub")
    for identity in (renewed.public, same_seal.public, retired_seal.public, retired):
        with pytest.raises(MemberExists):
            add_member(tmp_path / "r", identity=identity, roles=["author"], steward=steward, now=NOW)
    assert "hub" in add_member(tmp_path / "r", identity=hub.public, roles=["author"], steward=steward, now=NOW).members


def test_members_are_held_to_their_time_role_and_status(federation: Federation) -> None:
    """A58, A87. A member before and after its time, in another role; somebody who is no member.

    Powers: was a member once, or will be, or is one of another kind. Control: in its time and role; a clock may be five
    minutes off.
    """
    roster = federation.roster
    with pytest.raises(UnknownMember):
        roster.member("nobody", now=NOW)
    with pytest.raises(WrongRole):
        roster.member("hub", role="author", now=NOW)
    for moment in (NOW - days(1), NOW + days(366)):
        with pytest.raises(MemberNotActive):
            roster.member("hub", now=moment)
    assert roster.member("hub", role="receiver", now=NOW).name == "hub"  # control
    assert roster.member("hub", role=("author", "aggregator"), now=NOW - timedelta(seconds=299)).name == "hub"


def test_a_revoked_member_comes_back_with_new_keys_only_by_the_stewards(own_federation: Federation) -> None:
    """A58, A87. A revoked member signs again, is named again, or is given new keys as if nothing had happened.

    Powers: still has its keys. Control: the stewards enrol it again, with new keys.
    """
    folder, steward, lab = own_federation.folder, own_federation.steward, own_federation.lab
    roster = revoke_member(folder, name="lab", steward=steward, now=NOW)
    with pytest.raises(MemberNotActive):
        roster.member("lab", now=NOW)
    with pytest.raises(MemberNotActive):
        roster.members["lab"].signing_for(lab.signer.public.key_ids, at=NOW)
    new = Site.make("lab")
    with pytest.raises(MemberNotActive):
        rotate_member(folder, identity=new.public, steward=steward, now=LATER)
    with pytest.raises(UnknownMember):
        revoke_member(folder, name="nobody", steward=steward, now=LATER)
    roster = add_member(folder, identity=new.public, roles=["author"], steward=steward, now=LATER)
    assert roster.member("lab", now=LATER).signing == new.signer.public  # control


def test_a_revoked_member_does_not_come_back_with_its_old_keys(own_federation: Federation) -> None:
    """Own. A member is revoked after a theft and enrolled again with one of the keys that it had, in use or former.

    Powers: has the stolen keys, and a steward who does not look. Control: with new keys it is back, and the difference
    shows their fingerprint; also when another machine restores the old ones.
    """
    folder, steward = own_federation.folder, own_federation.steward
    first, second, third = own_federation.clinic, Site.make("clinic"), Site.make("clinic")
    rotate_member(folder, identity=second.public, steward=steward, now=NOW)
    revoke_member(folder, name="clinic", steward=steward, now=NOW)
    half = Site(third.signer, first.opener)
    for identity in (second.public, first.public, half.public, Site(second.signer, third.opener).public):
        with pytest.raises(MemberExists):
            add_member(folder, identity=identity, roles=["author"], steward=steward, now=NOW)

    def restore(roster: RosterFile, recalls: RecallsFile) -> tuple[RosterFile, RecallsFile]:
        back = [entry.model_copy(update={"status": "active"}) for entry in roster.members]
        return roster.model_copy(update={"members": back}), recalls

    for edit, identity in (
        (restore, second.public), (adding(third.public, roles=["author"], now=NOW), third.public)
    ):  # fmt: skip
        shown = {change.kind: change.text for change in propose(folder, edit, now=NOW).changes}
        assert "member-restored" in shown
        assert shown["fingerprint"] == identity.fingerprint
    back = add_member(folder, identity=third.public, roles=["author"], steward=steward, now=NOW)  # control
    assert back.member("clinic", now=NOW).signing == third.signer.public


def test_a_roster_of_ten_thousand_members_is_refused(own_federation: Federation, pinned: Path) -> None:
    """Own. 10,001 members, 50 MB: by our commands, and signed by hand.

    Powers: a steward alone, to make every site swallow what it cannot hold. Control: a thousand would do.
    """
    entry = member_entry(Site.make("x").public, roles=["author"], now=NOW, valid_for=days(1))

    def many(roster: RosterFile, recalls: Any) -> tuple[RosterFile, Any]:  # noqa: ANN401
        return roster.model_copy(update={"members": [entry] * 10_001}), recalls

    with pytest.raises(RosterTooLarge):
        propose(own_federation.folder, many, now=NOW)
    big = canonical.dumps({"format": "not-fed.roster/1", "federation": FEDERATION,
                           "members": [entry.model_dump()] * 4_000}) + b"\n"  # fmt: skip
    (target,) = (own_federation.folder / "repository" / "targets").glob("*.roster.json")
    target.write_bytes(big)  # 20 MB: more is not even read
    assert_refused(pinned, TrustError, pinned.parent / "version1")
    renew_roster(own_federation.folder, steward=own_federation.steward, now=NOW)
    assert update_roster(pinned, source=own_federation.folder, now=NOW).version == 3  # control


def test_a_roster_that_stewards_signed_by_mistake_is_still_checked() -> None:
    """A57, A34. One key under two names, an unknown role, a key that is none, impossible former keys or log keys.

    Powers: has talked enough stewards into signing it. Control: the same members without the mistake.
    """
    sites = [Site.make(name) for name in ("clinic", "hub", "old")]
    clinic, hub, old = (
        member_entry(site.public, roles=["author"], now=NOW, valid_for=days(1)).model_dump() for site in sites
    )
    recalls = canonical.dumps({"format": "not-fed.recalls/1", "recalls": []})
    keys = ("ed25519", "ml_dsa_65", "seal", "not_before", "not_after")
    former = [{key: old[key] for key in keys}]

    def read(*members: object, **more: object) -> TrustedRoster:
        value = {"format": "not-fed.roster/1", "federation": FEDERATION, "members": list(members)} | more
        return read_roster(canonical.dumps(value), recalls, version=1, expires_at=NOW)

    assert sorted(read(clinic, hub | {"former": former}).members) == ["clinic", "hub"]  # control
    mistakes: tuple[tuple[object, ...], ...] = (
        (clinic, clinic), (clinic, hub | {"seal": clinic["seal"]}), (clinic, hub | {"ed25519": clinic["ed25519"]}),
        (clinic, hub | {"name": "Clinic"}), (clinic | {"roles": ["boss"]},), (clinic | {"status": "perhaps"},),
        (clinic | {"seal": "age1pq1"},), (clinic | {"ed25519": ""},), (clinic | {"not_after": "never"},),
        (clinic | {"extra": 1},), (clinic | {"name": "../x"},), (None,), ([],),
        (clinic, hub | {"former": [{key: clinic[key] for key in keys}]}), (hub | {"former": [{}]},),
        (hub | {"former": former * 2},), (hub | {"former": [former[0] | {"ed25519": "AA=="}]},),
        (hub | {"log": {"ed25519": hub["ed25519"], "ml_dsa_44": ""}},), (hub | {"log": {}},), (hub | {"log": 1},),
    )  # fmt: skip
    for members in mistakes:
        with pytest.raises(RosterMalformed):
            read(*members)
    for more in ({"format": "not-fed.roster/2"}, {"federation": ""}, {"members": None}, {"extra": 1}):
        with pytest.raises(RosterMalformed):
            read(clinic, **more)
    with pytest.raises(RosterMalformed):
        read_roster(b"{", recalls, version=1, expires_at=NOW)


def test_former_keys_serve_their_own_time_only(own_federation: Federation) -> None:
    """Own. Keys that were retired sign something dated after their time, new keys something from before theirs.

    Powers: kept, or found, the retired keys. Control: each pair in its own time; five minutes are forgiven.
    """
    old, new = own_federation.clinic.signer.public, Site.make("clinic")
    identity = replace(new.public, created=NOW + days(29))
    roster = rotate_member(own_federation.folder, identity=identity, steward=own_federation.steward, now=NOW + days(30))
    member = roster.members["clinic"]
    for keys, moment in ((old, NOW + days(31)), (old, NOW - days(1)), (new.signer.public, NOW + days(1)),
                         (new.signer.public, NOW + days(400))):  # fmt: skip
        with pytest.raises(KeysRetired):
            member.signing_for(keys.key_ids, at=moment)
    with pytest.raises(BadSignature):
        member.signing_for(own_federation.hub.signer.public.key_ids, at=NOW)
    with pytest.raises(BadSignature):
        member.signing_for((old.key_ids[0], new.signer.public.key_ids[1]), at=NOW)  # one of each pair
    assert member.signing_for(old.key_ids, at=NOW + days(30) + timedelta(seconds=299)) == old  # control
    assert member.signing_for(new.signer.public.key_ids, at=NOW + days(29)) == new.signer.public
    assert member.recipient == new.opener.recipient  # nothing more is sealed to the old key


def test_a_stolen_key_is_no_former_key(own_federation: Federation) -> None:
    """Own. A thief backdates a passport into the time in which the stolen keys were good.

    Powers: has the old keys, writes any date. Control: after an ordinary rotation that date is believed, which is why a
    theft is told to the stewards (`--stolen`): then nothing counts that those keys ever signed.
    """
    old, steward = own_federation.clinic.signer.public, own_federation.steward
    second, third = (replace(Site.make("clinic").public, created=NOW + days(n)) for n in (10, 20))
    roster = rotate_member(own_federation.folder, identity=second, steward=steward, now=NOW + days(10))
    assert roster.members["clinic"].signing_for(old.key_ids, at=NOW + days(1)) == old  # control
    roster = rotate_member(own_federation.folder, identity=third, steward=steward, stolen=True, now=NOW + days(20))
    for stolen in (old, second.signing):
        with pytest.raises(BadSignature):
            roster.members["clinic"].signing_for(stolen.key_ids, at=NOW + days(1))


def test_a_succession_is_the_word_of_the_keys_in_use(own_federation: Federation) -> None:
    """Own. A steward is handed a new identity with a succession by a stranger, by another member, by retired keys, for
    another name, for other new keys; and garbage.

    Powers: writes and signs anything with other keys. Control: signed by the keys in use, for this identity.
    """
    folder, steward, clinic = own_federation.folder, own_federation.steward, own_federation.clinic
    new, other = Site.make("clinic"), Site.make("clinic")

    def said(by: Site, old: Site, to: Site) -> bytes:
        return sign_succession(by.signer, old=old.public, new=to.public, now=NOW)

    def rotate(line: bytes) -> TrustedRoster:
        return rotate_member(folder, identity=new.public, succession=line, steward=steward, now=NOW)

    attempts: tuple[tuple[bytes, type[NotFedError]], ...] = (
        (said(Site.make("clinic"), clinic, new), BadSignature), (said(own_federation.hub, clinic, new), BadSignature),
        (said(clinic, clinic, other), SuccessionRefused), (said(clinic, own_federation.hub, new), SuccessionRefused),
        (b"", MalformedSigned), (b"{}", MalformedSigned),
    )  # fmt: skip
    for line, kind in attempts:
        with pytest.raises(kind):
            rotate(line)
    assert load_roster(folder, now=NOW).version == 1
    assert rotate(said(clinic, clinic, new)).members["clinic"].signing == new.signer.public  # control
    with pytest.raises(BadSignature):
        rotate_member(folder, identity=other.public, succession=said(clinic, clinic, other), steward=steward, now=NOW)
