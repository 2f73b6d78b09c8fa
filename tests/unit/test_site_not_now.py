"""Refusals that pass: a site that is busy, full, out of hours, rehearsing or not agreed to yet."""

from __future__ import annotations

import errno
import fcntl
import os
import sqlite3
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from not_fed.envelope.waiting import COME_BACK
from not_fed.errors import NotFedError
from not_fed.files import NoSpace
from not_fed.settings import load
from not_fed.simulation import Prepared
from not_fed.simulation.prepare import to_toml
from not_fed.site import not_now
from not_fed.site.not_now import (
    ApprovalAwaited,
    DiskFull,
    OutsideHours,
    Rehearsing,
    SiteBusy,
    at_work,
    is_at_work,
    room_by_type,
)
from not_fed.site.policy import POLICY_FILE, SitePolicy
from not_fed.site.state import SiteState
from not_fed.site.work import REHEARSE
from not_fed.store import Store, StoreDamaged
from tests.support.federation import PRIVACY, a_task, ask, parcel_in, refusal, signed, state_of, tiny_prepared


def change_policy(prepared: Prepared, site: str, **fields: object) -> None:
    """Write the site's policy anew with other fields."""
    path = prepared.sites[site] / POLICY_FILE
    policy = load(SitePolicy, path).model_dump() | fields
    path.write_text(to_toml(policy))


def test_every_refusal_that_passes_is_one_that_the_coordinator_asks_again_for() -> None:
    for kind in (SiteBusy, OutsideHours, ApprovalAwaited, Rehearsing, DiskFull):
        assert kind.code in COME_BACK


def test_a_second_process_does_not_work_on_a_task_of_the_same_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(not_now, "PATIENCE_S", 0.1)
    prepared = tiny_prepared(tmp_path)
    line, home = signed(prepared, a_task(prepared)), prepared.sites["clinic"]
    other = os.open(home / not_now.LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o600)  # as another process has it
    fcntl.flock(other, fcntl.LOCK_EX)
    assert is_at_work(home)
    before = state_of(home)
    assert refusal(ask(prepared, "clinic", line)) == "site-busy"
    assert state_of(home) == before
    os.close(other)  # it ended, however
    assert not is_at_work(home)
    assert refusal(ask(prepared, "clinic", line)) is None


def test_the_lock_is_free_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="inside"), at_work(tmp_path):
        raise ValueError("inside")
    with at_work(tmp_path):
        assert is_at_work(tmp_path)


@pytest.mark.parametrize(
    "noticed",
    [
        OSError(errno.ENOSPC, "no space"),
        OSError(errno.EDQUOT, "quota"),
        OSError(errno.EFBIG, "too large"),
        NoSpace(where="x", expected="room", got="none", hint="free some"),
        sqlite3.OperationalError("database or disk is full"),
        StoreDamaged(where="x", expected="a database", got="database or disk is full", hint="-"),
    ],
)
def test_a_full_disk_is_one_refusal_whoever_notices_it(tmp_path: Path, noticed: Exception) -> None:
    with pytest.raises(DiskFull), room_by_type(tmp_path):
        raise noticed


def test_other_errors_stay_what_they_are(tmp_path: Path) -> None:
    for other in (OSError(errno.EACCES, "no access"), sqlite3.OperationalError("malformed"), KeyError("x")):
        with pytest.raises(type(other)), room_by_type(tmp_path):
            raise other


def test_a_locked_database_is_waited_for_and_then_the_site_is_busy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("not_fed.store.BUSY_TIMEOUT_S", 0.2)
    prepared = tiny_prepared(tmp_path)
    line, home = signed(prepared, a_task(prepared)), prepared.sites["clinic"]
    SiteState(home).open_runs()
    with sqlite3.connect(home / "state.db", isolation_level=None) as other:
        other.execute("BEGIN EXCLUSIVE")
        assert refusal(ask(prepared, "clinic", line)) == "site-busy"
        other.execute("ROLLBACK")
    other.close()
    assert refusal(ask(prepared, "clinic", line)) is None


def test_a_rehearsal_checks_everything_and_trains_and_sends_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared = tiny_prepared(tmp_path, epsilon=8.0)
    line, home = signed(prepared, a_task(prepared, privacy=PRIVACY)), prepared.sites["clinic"]
    monkeypatch.setenv(REHEARSE, "1")
    assert refusal(ask(prepared, "clinic", line)) == "rehearsal"
    assert "private steps" in (home / "log").read_text()
    assert not (home / "ledger").exists()
    assert list((home / "organs").rglob("*")) in ([], [home / "organs" / prepared.run])
    assert SiteState(home).tasks() == []
    other = signed(prepared, a_task(prepared, span=(0, 1)))
    assert refusal(ask(prepared, "clinic", other)) == "policy-span"  # a refusal is rehearsed as what it is
    monkeypatch.delenv(REHEARSE)
    assert parcel_in(ask(prepared, "clinic", line)).sealed  # control: the same task is done without
    monkeypatch.setenv(REHEARSE, "1")
    assert refusal(ask(prepared, "clinic", line)) == "rehearsal"  # nor is an answer sent that was given before


def test_outside_its_hours_a_site_trains_nothing_and_is_asked_again(tmp_path: Path) -> None:
    prepared = tiny_prepared(tmp_path)
    line, now = signed(prepared, a_task(prepared)), datetime.now(UTC).astimezone()
    soon, later = now + timedelta(hours=2), now + timedelta(hours=3)
    change_policy(prepared, "clinic", hours=[f"{soon:%H:%M}-{later:%H:%M}"])
    assert refusal(ask(prepared, "clinic", line)) == "outside-hours"
    assert not (prepared.sites["clinic"] / "organs").exists()
    change_policy(prepared, "clinic", hours=["00:00-24:00"])
    assert refusal(ask(prepared, "clinic", line)) is None


def test_a_wrong_span_of_hours_is_named_when_the_file_is_read(tmp_path: Path) -> None:
    prepared = tiny_prepared(tmp_path)
    path = prepared.sites["clinic"] / POLICY_FILE
    path.write_text('hours = ["at night"]\n' + path.read_text())
    with pytest.raises(NotFedError, match="hours such as"):
        load(SitePolicy, path)


def test_a_database_that_is_locked_for_a_moment_is_waited_for(tmp_path: Path) -> None:
    store = Store(tmp_path / "x.db", schema="CREATE TABLE IF NOT EXISTS t (n INTEGER) STRICT;")
    with store.transaction() as database:
        database.execute("INSERT INTO t VALUES (1)")
    other = sqlite3.connect(tmp_path / "x.db", isolation_level=None, check_same_thread=False)
    other.execute("BEGIN EXCLUSIVE")
    release = threading.Timer(0.3, lambda: (other.execute("ROLLBACK"), other.close()))
    release.start()
    with store.transaction() as database:
        assert database.execute("SELECT count(*) AS n FROM t").fetchone()["n"] == 1
    release.join()
