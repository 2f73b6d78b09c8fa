"""Adversary: whoever writes the draft that others are to sign.

Powers: any file, any field, any number in it; signs with its own keys. Lacks: a second person's keys. Always: what is
signed holds exactly what the difference shows, and nothing beside it.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tuf.api.metadata import Metadata, Root

from not_fed import canonical
from not_fed.errors import NotFedError
from not_fed.files import NotAFile
from not_fed.keys import Steward
from not_fed.trust import people
from not_fed.trust.ceremony import (
    open_draft,
    propose,
)
from not_fed.trust.draft import DraftOutdated, DraftRefused, write_draft
from not_fed.trust.members import RosterMalformed
from not_fed.trust.repository import RosterAltered
from not_fed.trust.roster import (
    update_roster,
)
from not_fed.trust.stewards import unchanged
from not_fed.trust.takeover import trusted
from tests.support.rosters import (
    Council,
    assert_not_signed,
    assert_refused,
    assert_signs,
    forge_draft,
    signers,
    stick,
)
from tests.support.trust import NOW, days

Change = Callable[[dict[str, dict[str, Any]]], None]


def _with(root: Root, **changes: Any) -> Root:  # noqa: ANN401
    return Root.from_dict(json.loads(json.dumps(root.to_dict() | changes)))  # from_dict eats what it is given


def _shapes(council: Council) -> dict[str, Root]:
    """Roots that differ from the honest next one in one thing."""
    _, base = trusted(council.site, now=NOW)
    all_of = people.people_of(base.root)
    honest = people.build_root(all_of, version=2, since=2, expires=NOW + days(365))
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
        "a roster version that is none": _with(honest, **{people.SINCE: 0}),
        "a roster version of another type": _with(honest, **{people.SINCE: True}),
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
          "no people", "people of another type", "a roster version that is none", "a roster version of another type",
          "a person too few", "keys the wrong way round",
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
