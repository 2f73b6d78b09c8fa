"""A site gets the roster from its coordinator, and trusts the stewards only."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from not_fed.home import Home
from not_fed.processes.ports import free_port
from not_fed.site.bank_client import BankUnreachable
from not_fed.site.clientapp import Guard
from not_fed.site.connection import write_connection
from not_fed.site.roster_watch import OtherRoot, pin_from, require_root, update_from
from not_fed.trust.members import MemberNotActive
from not_fed.trust.roster import RosterNotPinned, RosterRollback, UnknownMember, revoke_member, root_sha256
from tests.support.coordinators import Hub
from tests.support.gateways import Gate, open_gate
from tests.support.trust import FEDERATION


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Gate]:
    with open_gate(Hub.make(tmp_path)) as opened:
        yield opened


def now() -> datetime:
    return datetime.now(UTC)


def test_a_roster_is_pinned_only_when_its_root_is_the_one_that_was_told(gate: Gate, tmp_path: Path) -> None:
    home = tmp_path / "site"
    home.mkdir()
    with pytest.raises(RosterNotPinned):
        require_root(home, None)
    with pytest.raises(RosterNotPinned):
        pin_from(gate.connection(), home, root="ab" * 32, now=now())
    assert list(home.iterdir()) == []
    root = root_sha256(gate.home / "roster")
    assert pin_from(gate.connection(), home, root=root.upper(), now=now()).version == 1
    require_root(home, None)
    require_root(home, root)
    with pytest.raises(OtherRoot):
        require_root(home, "ab" * 32)
    assert [path.name for path in home.iterdir()] == ["roster"]


def test_a_revocation_reaches_a_site_without_hands(gate: Gate, tmp_path: Path) -> None:
    home = tmp_path / "site"
    home.mkdir()
    pin_from(gate.connection(), home, root=root_sha256(gate.home / "roster"), now=now())
    before = update_from(gate.connection(), home, now=now())
    assert before.member("ward", role="author", now=now()).name == "ward"
    revoke_member(gate.hub.stewards_roster, steward=gate.hub.steward, name="ward")
    gate.hub.take_over_roster()
    after = update_from(gate.connection(), home, now=now())
    assert after.version == 2
    with pytest.raises((MemberNotActive, UnknownMember)):
        after.member("ward", role="author", now=now())


def test_a_coordinator_that_offers_an_older_roster_is_refused(gate: Gate, tmp_path: Path) -> None:
    home, old = tmp_path / "site", tmp_path / "old"
    home.mkdir()
    shutil.copytree(gate.home / "roster" / "repository", old)
    revoke_member(gate.hub.stewards_roster, steward=gate.hub.steward, name="ward")
    gate.hub.take_over_roster()
    pin_from(gate.connection(), home, root=root_sha256(gate.home / "roster"), now=now())
    shutil.rmtree(gate.home / "roster" / "repository")
    shutil.copytree(old, gate.home / "roster" / "repository")
    with pytest.raises(RosterRollback):
        update_from(gate.connection(), home, now=now())


def test_a_coordinator_that_is_away_changes_nothing(
    gate: Gate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "site"
    home.mkdir()
    pin_from(gate.connection(), home, root=root_sha256(gate.home / "roster"), now=now())
    monkeypatch.setattr("not_fed.site.roster_watch.PATIENCE_S", 0.2)
    with pytest.raises(BankUnreachable):
        update_from(gate.connection(port=free_port()), home, now=now())
    assert [path.name for path in home.iterdir()] == ["roster"]


def test_an_order_under_a_newer_roster_is_answered_when_it_came(gate: Gate, tmp_path: Path) -> None:
    """The client app asks the coordinator for the roster, and the installed app again: once, and only when newer."""
    home = tmp_path / "site"
    home.mkdir()
    pin_from(gate.connection(), home, root=root_sha256(gate.home / "roster"), now=now())
    write_connection(
        home, address=f"localhost:{gate.port}", ca=str(gate.home / "tls" / "ca.crt"), coordinator="hub",
        federation=FEDERATION,
    )  # fmt: skip
    asked: list[int] = []

    def app(message: Message, _: Context) -> Message:
        asked.append(Home(home).roster(now()).version)
        said = {"refused": "other-roster"} if asked[-1] < 2 else {"received": 0}
        return Message(RecordDict({"answer": ConfigRecord(said)}), reply_to=message)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("not_fed.site.clientapp.bundle.load_app", lambda _: app)
        guard, message, context = Guard(home), order(), Context(1, 1, {}, RecordDict(), {}, 1)
        guard._refused = None
        assert dict(guard.answer(message, context).content["answer"]) == {"refused": "other-roster"}
        assert asked == [1], "the coordinator has none that is newer: it is not asked twice"
        revoke_member(gate.hub.stewards_roster, steward=gate.hub.steward, name="ward")
        gate.hub.take_over_roster()
        assert dict(guard.answer(message, context).content["answer"]) == {"received": 0}
        assert asked == [1, 1, 2]


def order() -> Message:
    TaskIdentity.run_id = TaskIdentity.node_id = TaskIdentity.task_id = 1
    message = Message(RecordDict(), 1, "train")
    message.metadata.__dict__["_message_id"] = "1"
    return message
