"""A person at the site agrees before anything is trained."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from not_fed.settings import load
from not_fed.simulation import Prepared
from not_fed.simulation.prepare import to_toml
from not_fed.site.approval import NothingToApprove, approve, waiting
from not_fed.site.policy import POLICY_FILE, SitePolicy
from not_fed.site.status import status_of
from tests.support.commands import Outcome, runner
from tests.support.federation import a_task, ask, refusal, signed, tiny_prepared


@pytest.fixture
def not_fed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    return runner(monkeypatch, capsys)


@pytest.fixture
def prepared(tmp_path: Path) -> Prepared:
    prepared = tiny_prepared(tmp_path)
    require(prepared, "run")
    return prepared


def require(prepared: Prepared, approval: str) -> None:
    path = prepared.sites["clinic"] / POLICY_FILE
    path.write_text(to_toml(load(SitePolicy, path).model_dump() | {"approval": approval}))


def now() -> datetime:
    return datetime.now(UTC)


def test_a_run_waits_until_a_person_agrees_to_its_terms(prepared: Prepared) -> None:
    home, line = prepared.sites["clinic"], signed(prepared, a_task(prepared))
    for _ in range(2):
        assert refusal(ask(prepared, "clinic", line)) == "approval-awaited"
    assert not (home / "organs").exists()
    (asked,) = waiting(home)
    assert (asked.run, asked.round, asked.terms["spans"]) == (prepared.run, 0, [[1, 3]])
    approve(home, asked, now=now())
    assert waiting(home) == []
    assert refusal(ask(prepared, "clinic", line)) is None


def test_an_agreement_to_a_run_is_none_to_other_terms(prepared: Prepared) -> None:
    home = prepared.sites["clinic"]
    ask(prepared, "clinic", signed(prepared, a_task(prepared)))
    approve(home, waiting(home)[0], now=now())
    more = {**a_task(prepared).training.model_dump(), "epochs": 2}
    other = signed(prepared, a_task(prepared, training=more))
    assert refusal(ask(prepared, "clinic", other)) in ("approval-awaited", "policy-epochs")
    other = signed(prepared, a_task(prepared, training={**a_task(prepared).training.model_dump(), "lr": 0.5}))
    assert refusal(ask(prepared, "clinic", other)) == "approval-awaited"
    assert waiting(home)[0].terms["training"]["lr"] == 0.5


def test_what_was_shown_is_what_is_agreed_to(prepared: Prepared) -> None:
    """The coordinator changes the terms while a person reads them."""
    home = prepared.sites["clinic"]
    ask(prepared, "clinic", signed(prepared, a_task(prepared)))
    (shown,) = waiting(home)
    changed = signed(prepared, a_task(prepared, training={**a_task(prepared).training.model_dump(), "lr": 0.5}))
    ask(prepared, "clinic", changed)
    with pytest.raises(NothingToApprove):
        approve(home, shown, now=now())
    assert refusal(ask(prepared, "clinic", changed)) == "approval-awaited"


def test_each_round_waits_where_the_policy_says_so(prepared: Prepared) -> None:
    require(prepared, "round")
    home, line = prepared.sites["clinic"], signed(prepared, a_task(prepared))
    assert refusal(ask(prepared, "clinic", line)) == "approval-awaited"
    assert waiting(home)[0].round == 1
    approve(home, waiting(home)[0], now=now())
    assert refusal(ask(prepared, "clinic", line)) is None


def test_the_command_lists_asks_and_agrees(prepared: Prepared, not_fed: Callable[..., Outcome]) -> None:
    home, line = str(prepared.sites["clinic"]), signed(prepared, a_task(prepared))
    assert not_fed("site", "approve", home, "--json").result["waiting"] == []
    ask(prepared, "clinic", line)
    (listed,) = not_fed("site", "approve", home, "--json").result["waiting"]
    assert (listed["run"], listed["round"], listed["terms"]["coordinator"]) == (prepared.run, None, "coordinator")
    assert not_fed("site", "approve", home, "nothing-of-the-kind", "--yes").code == 4
    assert not_fed("site", "approve", home, prepared.run).code == 2  # nobody to ask
    done = not_fed("site", "approve", home, prepared.run, "--yes")
    assert done.code == 0
    assert "without differential privacy" in done.err
    assert refusal(ask(prepared, "clinic", line)) is None


def test_a_person_sees_what_waits_in_the_status(prepared: Prepared) -> None:
    ask(prepared, "clinic", signed(prepared, a_task(prepared)))
    assert [one["run"] for one in status_of(prepared.sites["clinic"], now=now())["waiting"]] == [prepared.run]
