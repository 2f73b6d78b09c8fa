"""Adversary: whoever carries the draft from steward to steward, and one of the stewards.

Powers: writes any file into the draft, signs with its own keys, keeps drafts back, shows different ones to different
people. Lacks: a second person's keys. Always: a steward signs what it was shown, and nothing else.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import Metadata, Root

from not_fed import canonical
from not_fed.errors import NotFedError
from not_fed.files import NotAFile
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
from not_fed.trust.members import RosterFile, RosterMalformed, rotated
from not_fed.trust.recall import RecallRemoved
from not_fed.trust.repository import RosterAltered, RosterNotPinned
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
from tests.support.rosters import Council, assert_refused, forge_draft, signers, state, steward_identity
from tests.support.trust import FEDERATION, NOW, Federation, Site, days, listing

Change = Callable[[dict[str, dict[str, Any]]], None]


@pytest.fixture
def council(tmp_path: Path) -> Council:
    """Three stewards, and a site that trusts them."""
    return Council.make(tmp_path / "council")


def stick(council: Council) -> Path:
    """Alice's draft, as it is carried about."""
    return council.of("alice") / "draft"


def assert_not_signed(council: Council, draft: Path, kind: type[NotFedError] | tuple[type[NotFedError], ...]) -> None:
    """Bob's machine refuses the draft before it shows anything; nothing of bob's changes."""
    before = state(council.of("bob"))
    with pytest.raises(kind):
        open_draft(council.of("bob"), draft=draft, now=NOW)
    assert state(council.of("bob")) == before


def assert_signs(council: Council, draft: Path, *, by: str = "bob") -> None:
    """The honest control: that steward signs it, and it is published and arrives at the site."""
    proposal = open_draft(council.of(by), draft=draft, now=NOW)
    proposal.sign(council.steward(by), instead=True)
    roster = settle(proposal, signed_by=council.steward(by)).roster
    assert roster is not None
    assert update_roster(council.site, source=council.of(by), now=NOW) == roster


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
        root = people.build_root(stewards, version=1, expires=NOW)
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


def _with(root: Root, **changes: Any) -> Root:  # noqa: ANN401
    return Root.from_dict(json.loads(json.dumps(root.to_dict() | changes)))  # from_dict eats what it is given


def _shapes(council: Council) -> dict[str, Root]:
    """Roots that differ from the honest next one in one thing."""
    _, base = trusted(council.site, now=NOW)
    all_of = people.people_of(base.root)
    honest = people.build_root(all_of, version=2, expires=NOW + days(365))
    value = honest.to_dict()
    roles, keys, first = value["roles"], value["keys"], next(iter(value["keys"]))
    stranger = people.tuf_keys(Steward.generate("x").public)[0]

    def with_role(name: str, **changes: Any) -> dict[str, Any]:  # noqa: ANN401
        return roles | {name: roles[name] | changes}

    twin = {**keys, "ab" * 32: keys[first]}
    every = {name: role | {"keyids": [*role["keyids"], "ab" * 32]} for name, role in roles.items()}
    named: dict[str, list[str]] = dict(value[people.FIELD])
    alices = named["alice"][1]
    return {
        "honest": honest,
        "a lower threshold for targets": _with(honest, roles=with_role("targets", threshold=2)),
        "a lower threshold for timestamp": _with(honest, roles=with_role("timestamp", threshold=1)),
        "a higher threshold": _with(honest, roles=with_role("root", threshold=6)),
        "not consistent": _with(honest, consistent_snapshot=False),
        "no people": _with(honest, **{people.FIELD: {}}),
        "people of another type": _with(honest, **{people.FIELD: ["alice"]}),
        "a person too few": _with(honest, **{people.FIELD: {k: v for k, v in named.items() if k != "bob"}}),
        "keys the wrong way round": _with(honest, **{people.FIELD: named | {"bob": named["bob"][::-1]}}),
        "bob with a key of alice": _with(honest, **{people.FIELD: named | {"bob": [named["bob"][0], alices]}}),
        "a name that is none": _with(honest, **{people.FIELD: named | {"../x": named["bob"]}}),
        "a key that nobody owns": _with(honest, keys=keys | {stranger.keyid: stranger.to_dict()}),
        "one key under two ids": _with(honest, keys=twin, roles=every),
        "a key less in one role": _with(honest, roles=with_role("snapshot", keyids=roles["snapshot"]["keyids"][1:])),
        "a field more": _with(honest, extra=1),
        "a field more in a role": _with(honest, roles=with_role("root", extra=1)),
    }  # fmt: skip


SHAPES = ("a lower threshold for targets", "a lower threshold for timestamp", "a higher threshold", "not consistent",
          "no people", "people of another type", "a person too few", "keys the wrong way round",
          "bob with a key of alice", "a name that is none", "a key that nobody owns", "one key under two ids",
          "a key less in one role", "a field more", "a field more in a role")  # fmt: skip


@pytest.mark.parametrize("shape", SHAPES)
def test_a_root_of_another_shape_is_refused(council: Council, tmp_path: Path, shape: str) -> None:
    """Own. The next root lowers a threshold, drops consistent snapshots, lists a key twice, names people wrongly, ...

    Powers: all three stewards sign it, by mistake or not; TUF has nothing against it. Control: the same steps with the
    honest root end in a published roster, and in a draft that bob signs.
    """
    for name in (shape, "honest"):
        root = Metadata(_shapes(council)[name])
        for key in signers(council.stewards):
            root.sign(key, append=True)
        proposal = propose(council.of("alice"), unchanged, now=NOW, renew_root=True)
        for steward in council.stewards:
            proposal.sign(steward)
        write_draft(tmp_path / name, proposal.draft)
        (tmp_path / name / "metadata" / "2.root.json").write_bytes(root.to_bytes())
        if name == "honest":
            assert open_draft(council.of("bob"), draft=tmp_path / name, now=NOW).is_enough
            assert update_roster(council.site, source=tmp_path / name, now=NOW).version == 2  # control
        else:
            assert_not_signed(council, tmp_path / name, (DraftRefused, RosterMalformed))
            kind = RosterAltered if name == "not consistent" else RosterMalformed  # TUF then asks for other names
            assert_refused(council.site, kind, tmp_path / name)


def _set(part: str, **changes: Any) -> Change:  # noqa: ANN401
    def change(values: dict[str, dict[str, Any]]) -> None:
        values[part].update(changes)

    return change


def _extra_target(values: dict[str, dict[str, Any]]) -> None:
    values["targets"]["targets"]["more.json"] = {"length": 1, "hashes": {"sha256": "00" * 32}}


def _extra_in_target(values: dict[str, dict[str, Any]]) -> None:
    values["targets"]["targets"]["roster.json"]["custom"] = {"x": 1}


def _fewer_targets(values: dict[str, dict[str, Any]]) -> None:
    del values["targets"]["targets"]["recalls.json"]


def _delegated(values: dict[str, dict[str, Any]]) -> None:
    values["targets"]["delegations"] = {"keys": {}, "roles": []}


def _meta(values: dict[str, dict[str, Any]]) -> None:
    values["snapshot"]["meta"]["more.json"] = {"version": 1}


FORGERIES: dict[str, Change] = {
    "an extra target": _extra_target, "a target less": _fewer_targets, "something beside a target": _extra_in_target,
    "a delegation": _delegated, "an extra file in the snapshot": _meta,
    "a field more in targets": _set("targets", note="x"), "a field more in snapshot": _set("snapshot", note="x"),
    "a field more in timestamp": _set("timestamp", note="x"),
    "a timestamp of another date": _set("timestamp", expires="2036-01-01T00:00:00Z"),
    "another predecessor": _set("targets", **{"x-not-fed-previous": "11" * 32}),
    "a timestamp that skips": _set("timestamp", version=9),
    "another TUF version": _set("targets", spec_version="1.0.0"),
}  # fmt: skip


@pytest.mark.parametrize("name", FORGERIES)
def test_a_draft_holds_nothing_that_is_not_shown(council: Council, tmp_path: Path, name: str) -> None:
    """Own. A draft with more in its signed parts than members, recalls, stewards and dates: bound together properly.

    Powers: a steward, who signs the altered draft. Control: the same forger changing nothing.
    """
    council.propose()
    keys = signers([council.steward("alice")])
    forge_draft(stick(council), tmp_path / "forged", keys, FORGERIES[name])
    assert_not_signed(council, tmp_path / "forged", (DraftRefused, DraftOutdated, NotAFile))
    forge_draft(stick(council), tmp_path / "same", keys, lambda values: None)
    assert_signs(council, tmp_path / "same")  # control


@pytest.mark.parametrize("name", ["an extra target", "a delegation"])
def test_a_version_that_holds_more_than_a_roster_is_refused(council: Council, tmp_path: Path, name: str) -> None:
    """Own. A complete version, signed by all stewards by hand, with a third target or a delegation to other keys.

    Powers: all three stewards sign it; TUF has nothing against it. Control: the same forger changing nothing.
    """
    council.propose()
    for change, folder in ((FORGERIES[name], tmp_path / "forged"), (lambda values: None, tmp_path / "same")):
        forge_draft(stick(council), folder, signers(council.stewards), change)
    assert "roster and its recalls" in assert_refused(council.site, RosterAltered, tmp_path / "forged").got
    assert update_roster(council.site, source=tmp_path / "same", now=NOW).version == 2  # control


def _content(length: int, digest: str) -> Change:
    def change(values: dict[str, dict[str, Any]]) -> None:
        values["targets"]["targets"]["roster.json"] = {"length": length, "hashes": {"sha256": digest}}

    return change


def test_a_roster_in_another_spelling_is_not_signed(council: Council, tmp_path: Path) -> None:
    """Own. The draft's roster.json has spaces, an extra member field, another federation, keys that are none.

    Powers: a steward, who signs digests of any content. Control: the content as our command writes it.
    """
    council.propose()
    (path,) = (stick(council) / "targets").glob("*.roster.json")
    honest = path.read_bytes()
    value = canonical.loads(honest, where="roster")
    member = value["members"][0]
    attempts = {
        honest + b" ", honest.replace(b",", b", ", 1), canonical.dumps(value | {"federation": "highlands"}) + b"\n",
        canonical.dumps(value | {"members": [member | {"ed25519": ""}]}) + b"\n",
        canonical.dumps(value | {"members": [member | {"note": "x"}]}) + b"\n",
        canonical.dumps(value | {"members": [member, member]}) + b"\n", b"{}", b"",
    }  # fmt: skip
    keys = signers([council.steward("alice")])
    for content in sorted(attempts | {honest}):
        digest = hashlib.sha256(content).hexdigest()
        forge_draft(stick(council), tmp_path / "forged", keys, _content(len(content), digest))
        (tmp_path / "forged" / "targets" / path.name).unlink()
        (tmp_path / "forged" / "targets" / f"{digest}.roster.json").write_bytes(content)
        if content == honest:
            assert open_draft(council.of("bob"), draft=tmp_path / "forged", now=NOW).changes  # control
        else:
            assert_not_signed(council, tmp_path / "forged", (DraftRefused, RosterMalformed))


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


def test_anything_at_all_in_a_draft_folder_is_refused_by_type(council: Council, tmp_path: Path) -> None:
    """Own. Files of a draft missing, empty, cut, flipped, links, FIFOs; two roots; no folder at all.

    Powers: writes to the stick. Control: the draft as it was.
    """
    council.propose()
    draft = tmp_path / "draft"
    for path in sorted(stick(council).rglob("*.json")):
        name, whole = path.relative_to(stick(council)), path.read_bytes()
        middle = whole.index(b"version") if b"version" in whole else 5
        flipped = whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :]
        for content in (None, b"", b"[]", b"{" * 9000, whole[:-9], flipped, whole.replace(b'"', b"'"), "link", "fifo"):
            shutil.copytree(stick(council), draft)
            (draft / name).unlink()
            if isinstance(content, bytes):
                (draft / name).write_bytes(content)
            elif content == "link":
                (draft / name).symlink_to(path)
            elif content == "fifo":
                os.mkfifo(draft / name)
            assert_not_signed(council, draft, NotFedError)
            shutil.rmtree(draft)
    with pytest.raises(NotFedError):
        open_draft(council.of("bob"), draft=tmp_path / "nowhere", now=NOW)
    shutil.copytree(stick(council), draft)
    for number in (2, 3):
        shutil.copyfile(council.of("alice") / "repository/metadata/1.root.json", draft / f"metadata/{number}.root.json")
    assert_not_signed(council, draft, NotFedError)
    assert_signs(council, stick(council))  # control


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
