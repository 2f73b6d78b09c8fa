"""What a site's administrator sees."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from not_fed.site.status import status_of
from tests.support.commands import Outcome, runner
from tests.support.federation import PRIVACY, a_task, ask, signed, tiny_prepared


@pytest.fixture
def not_fed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    return runner(monkeypatch, capsys)


def test_the_status_says_what_a_site_did_and_what_waits(tmp_path: Path, not_fed: Callable[..., Outcome]) -> None:
    prepared = tiny_prepared(tmp_path, epsilon=8.0)
    home = prepared.sites["clinic"]
    before = status_of(home, now=datetime.now(UTC))
    assert (before["joined"], before["tasks"], before["budget"], before["at_work"]) == (None, [], [], False)
    ask(prepared, "clinic", signed(prepared, a_task(prepared, privacy=PRIVACY)))
    ask(prepared, "clinic", signed(prepared, a_task(prepared, privacy=PRIVACY, span=(0, 1))))
    status = not_fed("site", "status", str(home), "--json").result
    assert status["schema"] == "not-fed/site-status/1"
    (task,) = status["tasks"]
    assert (task["run"], task["round"], task["answered"] is not None) == (prepared.run, 1, True)
    (budget,) = status["budget"]
    assert 0 < budget["spent"] <= budget["allowed"]
    assert status["roster"]["version"] == 1
    assert "policy-span" in status["log"][-1]
    shown = not_fed("site", "status", str(home)).out
    assert "of 8 spent" in shown
    assert "connected" in shown


def test_a_home_without_a_roster_still_has_a_status(tmp_path: Path) -> None:
    prepared = tiny_prepared(tmp_path)
    (prepared.sites["clinic"] / "roster").rename(tmp_path / "away")
    assert status_of(prepared.sites["clinic"], now=datetime.now(UTC))["roster"] == {"problem": "roster-not-pinned"}
