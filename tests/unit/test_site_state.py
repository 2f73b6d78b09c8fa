"""What a site remembers across crashes, and the cache that only it can read."""

from __future__ import annotations

import os
import sqlite3
import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import torch

from not_fed.age import HybridIdentity
from not_fed.envelope.task import ProposedPrivacy, Task, Training
from not_fed.envelope.waybill import WaybillReplayed
from not_fed.keys import Opener
from not_fed.site import log_file
from not_fed.site.prefix_cache import PrefixCache, forget_prefixes
from not_fed.site.state import KeptOrgan, RoundTaken, RunChanged, RunEnded, SiteState, TaskChanged


def clock() -> datetime:
    """Now: not when this file was read, which under pytest-xdist is minutes before its tests run."""
    return datetime.now(UTC)


LATER = clock() + timedelta(days=14)
FIELDS: dict[str, Any] = {
    "v": 1,
    "id": "0" * 32,
    "federation": "lowlands",
    "run": "first",
    "round": 1,
    "rounds": 2,
    "mode": "bank",
    "kind": "train",
    "base_sha256": "ab" * 32,
    "span": (1, 3),
    "spans": ((1, 3),),
    "training": Training(lr=1e-3, epochs=2, batch_tokens=64, max_tokens=32),
    "privacy": ProposedPrivacy(epsilon=4.0, delta=1e-5),
    "sites": ("clinic", "ward"),
    "recipients": ("clinic", "ward"),
    "parcels": (),
    "coordinator": "hub",
    "issued": clock(),
    "expires": LATER,
    "roster_version": 1,
}
REF = {"round": 1, "sealed_sha256": "aa" * 32, "size_bytes": 1, "weight": 1.0}


def task(number: int = 0, **changes: object) -> Task:
    return Task(**{**FIELDS, "id": f"{number:032x}", **changes})


def last_task(number: int) -> Task:
    parcels = ({"sender": "ward", **REF, "round": 2},)
    return task(number, round=2, kind="receive", parcels=parcels)


def start(state: SiteState, order: Task) -> None:
    state.start(order, sha256=order.id * 2, now=clock())


def finish(state: SiteState, order: Task, answer: dict[str, Any] | None = None) -> None:
    start(state, order)
    state.finish(order, answer=answer or {"received": 0}, result={}, now=clock())


def test_a_waybill_is_remembered_after_a_restart(tmp_path: Path) -> None:
    SiteState(tmp_path).check("w1")
    SiteState(tmp_path).record("w1", LATER)
    with pytest.raises(WaybillReplayed):
        SiteState(tmp_path).check("w1")
    SiteState(tmp_path).check("w2")


def test_a_waybill_is_forgotten_only_long_after_nobody_can_open_it(tmp_path: Path) -> None:
    state = SiteState(tmp_path)
    state.record("just expired", clock() - timedelta(hours=1))
    state.record("long ago", clock() - timedelta(days=2))
    state.record("new", LATER)
    state.check("long ago")
    with pytest.raises(WaybillReplayed):
        state.check("just expired")


def test_an_organ_and_its_waybill_are_kept_in_one_moment(tmp_path: Path) -> None:
    state = SiteState(tmp_path)
    organ = KeptOrgan(
        sealed_sha256="aa" * 32, run="first", round=1, sender="ward", file="f", organ_sha256="bb", seconds=0.1
    )
    state.keep(organ, waybill=("w1", LATER))
    assert state.kept("aa" * 32) == organ
    assert state.organs("first") == [organ]
    with pytest.raises(WaybillReplayed):
        state.check("w1")


def test_the_same_task_gets_the_same_answer_and_another_under_its_id_is_refused(tmp_path: Path) -> None:
    state = SiteState(tmp_path)
    assert state.answer_to(task(), sha256=task().id * 2) is None
    finish(state, task(), {"sealed": "outbox/0.sealed"})
    assert SiteState(tmp_path).answer_to(task(), sha256=task().id * 2) == {"sealed": "outbox/0.sealed"}
    with pytest.raises(TaskChanged):
        state.answer_to(task(), sha256="f" * 64)


def test_a_round_is_answered_once_whatever_the_tasks_id(tmp_path: Path) -> None:
    state = SiteState(tmp_path)
    start(state, task(1))
    start(state, task(2))  # nothing left under the first id: the site crashed, the task expired
    with pytest.raises(RoundTaken):
        state.finish(task(1), answer={}, result={}, now=clock())  # and the slower attempt may not answer any more
    state.finish(task(2), answer={}, result={}, now=clock())
    with pytest.raises(RoundTaken):
        start(state, task(3))


def test_an_answered_round_is_asked_for_again_under_a_newer_roster_only(tmp_path: Path) -> None:
    state = SiteState(tmp_path)
    finish(state, task(1, roster_version=4))
    for version in (3, 4):
        with pytest.raises(RoundTaken):
            start(state, task(2, roster_version=version))
    with pytest.raises(RunChanged):
        start(state, task(3, roster_version=5, sites=("clinic", "ward", "lab"), recipients=("clinic", "ward", "lab")))
    finish(state, task(4, roster_version=5))
    for version in (4, 5):
        with pytest.raises(RoundTaken):
            start(state, task(5, roster_version=version))
    with pytest.raises(RoundTaken):
        state.finish(task(1, roster_version=4), answer={}, result={}, now=clock())
    assert [one.round for one in SiteState(tmp_path).tasks()] == [1]


def test_a_run_that_ended_here_stays_ended_under_a_newer_roster(tmp_path: Path) -> None:
    state = SiteState(tmp_path)
    finish(state, task(1))
    finish(state, last_task(2))
    with pytest.raises(RunEnded):
        start(state, task(3, roster_version=2))


@pytest.mark.parametrize(
    "changes",
    [
        {"rounds": 9},
        {"span": (0, 2), "spans": ((0, 2),)},
        {"span": (0, 1), "spans": ((1, 3), (0, 1))},
        {"privacy": None},
        {"privacy": ProposedPrivacy(epsilon=1.0, delta=1e-5)},
        {"sites": ("clinic", "ward", "lab"), "recipients": ("clinic", "ward", "lab")},
        {"training": Training(lr=1e-3, epochs=1, batch_tokens=64, max_tokens=32)},
    ],
)
def test_a_run_keeps_to_what_its_first_task_announced(tmp_path: Path, changes: dict[str, Any]) -> None:
    state = SiteState(tmp_path)
    finish(state, task(1))
    with pytest.raises(RunChanged):
        start(state, task(2, round=2, parcels=({"sender": "ward", **REF},), **changes))


def test_a_run_that_ended_here_stays_ended(tmp_path: Path) -> None:
    state = SiteState(tmp_path)
    finish(state, task(1))
    finish(state, last_task(2))
    assert state.open_runs() == []
    with pytest.raises(RunEnded):
        start(state, task(3, round=2, parcels=({"sender": "ward", **REF},)))


def test_a_privacy_plan_is_fixed_once(tmp_path: Path) -> None:
    state = SiteState(tmp_path)
    start(state, task())
    assert state.plan("first") is None
    state.fix_plan("first", {"steps": 4})
    state.fix_plan("first", {"steps": 400})
    assert SiteState(tmp_path).plan("first") == {"steps": 4}


def test_the_memory_is_private_and_durable(tmp_path: Path) -> None:
    previous = os.umask(0o000)
    try:
        SiteState(tmp_path).record("w1", LATER)
    finally:
        os.umask(previous)
    for path in tmp_path.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with sqlite3.connect(tmp_path / "state.db") as database:
        assert database.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    database.close()


def test_the_prefix_cache_is_ciphertext_and_private(tmp_path: Path) -> None:
    opener = Opener(name="clinic", identity=HybridIdentity(os.urandom(32)))
    hidden = torch.randn(100, 32, generator=torch.Generator().manual_seed(0))
    cache = PrefixCache(tmp_path / "prefix" / "first", opener=opener)
    assert cache.load("k") is None
    cache.save("k", {"hidden": hidden})
    cache.save("k", {"hidden": hidden})
    stored = cache.load("k")
    assert stored is not None
    assert torch.equal(stored["hidden"], hidden)
    (path,) = (tmp_path / "prefix" / "first").iterdir()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    data = path.read_bytes()
    assert all(row.numpy().tobytes()[:16] not in data for row in hidden)
    thief = Opener(name="clinic", identity=HybridIdentity(os.urandom(32)))
    assert PrefixCache(path.parent, opener=thief).load("k") is None
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    assert cache.load("k") is None


def test_the_prefix_cache_keeps_one_prefix_a_place(tmp_path: Path) -> None:
    """Where a layer below has changed, the prefix that was there before is of no use to anybody."""
    cache = PrefixCache(tmp_path, opener=Opener(name="clinic", identity=HybridIdentity(os.urandom(32))))
    for key in ("20-aa", "26-bb", "20-cc"):
        cache.save(key, {"hidden": torch.ones(1)})
    assert [key for key in ("20-aa", "26-bb", "20-cc") if cache.load(key) is not None] == ["26-bb", "20-cc"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["20-cc.age", "26-bb.age"]


def test_prefixes_of_other_runs_are_forgotten(tmp_path: Path) -> None:
    opener = Opener(name="clinic", identity=HybridIdentity(os.urandom(32)))
    for run in ("first", "second"):
        PrefixCache(tmp_path / "prefix" / run, opener=opener).save("k", {"hidden": torch.ones(1)})
    forget_prefixes(tmp_path, keep_run="second")
    assert [path.name for path in (tmp_path / "prefix").iterdir()] == ["second"]
    forget_prefixes(tmp_path)
    assert list((tmp_path / "prefix").iterdir()) == []


def test_a_full_log_makes_room_and_says_the_newest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_file, "MAX_LOG_BYTES", 1000)
    for number in range(100):
        log_file.note(tmp_path, f"refused: number {number}")
    assert (tmp_path / "log").read_text().splitlines()[-1].endswith("number 99")
    assert sum(path.stat().st_size for path in tmp_path.glob("log*")) < 2100
    assert {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.glob("log*")} == {0o600}
