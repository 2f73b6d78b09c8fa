"""What keeps a run going. Flower is stood in for by an object with the keeper's own interface; all else is real."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import pytest

from not_fed.coordinator.keeper import (
    ASK_FLOWER_S,
    FIRST_PAUSE_S,
    FIRST_REGISTERED,
    LONGEST_PAUSE_S,
    MORE_REGISTERED,
    START_PATIENCE_S,
    Keeper,
    Pause,
)
from not_fed.coordinator.nodes import Nodes
from not_fed.coordinator.state import CoordinatorState, Step, run_lock
from not_fed.errors import PeerError
from not_fed.keys.node_key import node_key_id
from not_fed.store import StoreDamaged
from not_fed.trust.roster import add_member, revoke_member
from tests.support.coordinators import Hub

RUN = "run-1"


class Away(PeerError):
    """The SuperLink does not answer."""

    code = "test-superlink-away"


@dataclass
class InMemoryFlower:
    """What a SuperLink answers, without one."""

    keys: dict[str, str] = field(default_factory=dict)
    runs: dict[int, str | None] = field(default_factory=dict)
    away: bool = False

    def registered(self) -> set[str]:
        self._answer()
        return set(self.keys)

    def register(self, site: str, node_key: str) -> None:
        self._answer()
        assert node_key_id(node_key) not in self.keys
        self.keys[node_key_id(node_key)] = site

    def submit(self) -> int:
        self._answer()
        number = len(self.runs) + 1
        self.runs[number] = None
        return number

    def unfinished(self) -> list[int]:
        self._answer()
        return [run for run, end in self.runs.items() if end is None]

    def stop(self, run: int) -> None:
        self._answer()
        self.runs[run] = "stopped"

    def end_of(self, run: int) -> str | None:
        self._answer()
        return self.runs[run]

    def _answer(self) -> None:
        if self.away:
            raise Away(where="SuperLink", expected="an answer", got="none", hint="wait")


class Watched:
    """A keeper with a clock of its own and ears."""

    def __init__(self, hub: Hub) -> None:
        self.now_s, self.said, self.flower = 1000.0, list[str](), InMemoryFlower()
        self.keeper = Keeper(
            hub.home, flower=self.flower, nodes=Nodes(hub.home), say=self.said.append, clock=lambda: self.now_s
        )
        self.home, self.state = hub.home, CoordinatorState(hub.home)

    def step(self, *, after_s: float = 0.0) -> None:
        self.now_s += after_s
        self.keeper.step()

    def heard(self, words: str) -> bool:
        return any(words in line for line in self.said)


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Hub:
    return Hub.make(tmp_path_factory.mktemp("keeper"))


@pytest.fixture
def watched(hub: Hub, tmp_path: Path) -> Watched:
    return Watched(hub.copy(tmp_path))


@pytest.fixture
def server_app(watched: Watched) -> Iterator[Callable[[], ExitStack]]:
    """Plays the server app: holds the lock until its stack is closed."""
    stacks: list[ExitStack] = []

    def begin() -> ExitStack:
        stack = ExitStack()
        stack.enter_context(run_lock(watched.home))
        watched.state.start_run(RUN, plan_sha256="ab" * 32)
        stacks.append(stack)
        return stack

    yield begin
    for stack in stacks:
        stack.close()


def test_sites_are_registered_once_and_then_the_server_app_is_started_once(watched: Watched) -> None:
    for _ in range(3):
        watched.step(after_s=1)
    assert sorted(watched.flower.keys.values()) == ["clinic", "ward"]
    assert watched.flower.runs == {1: None}


def test_no_second_server_app_is_started_while_one_works(watched: Watched, server_app: Callable[[], ExitStack]) -> None:
    watched.step()
    with server_app():
        for _ in range(5):
            watched.step(after_s=2 * START_PATIENCE_S)
    assert watched.flower.runs == {1: None}


def test_after_a_death_the_old_flower_run_is_stopped_and_another_goes_on(
    watched: Watched, server_app: Callable[[], ExitStack]
) -> None:
    watched.step()
    with server_app():
        watched.step(after_s=5)
    watched.step(after_s=1)
    assert watched.heard("the server app died")
    watched.step(after_s=FIRST_PAUSE_S)
    assert watched.flower.runs == {1: "stopped", 2: None}


def test_a_server_app_that_never_comes_is_given_up(watched: Watched) -> None:
    watched.step()
    watched.flower.runs[1] = "finished: failed, no module"
    watched.step(after_s=ASK_FLOWER_S)
    assert watched.heard("did not start: finished: failed, no module")
    watched.step(after_s=FIRST_PAUSE_S)
    assert watched.flower.unfinished() == [2]
    watched.step(after_s=START_PATIENCE_S + 1)  # this one is not even heard of
    watched.step(after_s=LONGEST_PAUSE_S)
    assert watched.flower.unfinished() == [3]


def test_pauses_grow_until_one_has_worked_for_a_while() -> None:
    pause = Pause(first_s=1, longest_s=60)
    assert [pause.after(0) for _ in range(8)] == [1, 2, 4, 8, 16, 32, 60, 60]
    assert pause.after(61) == 1


def test_a_complete_run_starts_nothing(watched: Watched, server_app: Callable[[], ExitStack]) -> None:
    with server_app():
        watched.state.end_run(RUN)
    for _ in range(3):
        watched.step(after_s=100)
    assert watched.keeper.complete
    assert watched.flower.runs == {}


def test_after_a_complete_run_another_begins_when_the_plan_names_one(
    watched: Watched, server_app: Callable[[], ExitStack]
) -> None:
    with server_app():
        watched.state.end_run(RUN)
    watched.step()
    path = watched.home / "federation.toml"
    path.write_text(path.read_text().replace(f'"{RUN}"', '"run-2"'))
    watched.step(after_s=1)
    assert not watched.keeper.complete
    assert watched.flower.runs == {1: None}


def test_a_run_that_stopped_for_lack_of_sites_is_told_with_their_names_and_tried_again(
    watched: Watched, server_app: Callable[[], ExitStack]
) -> None:
    watched.step()
    with server_app():
        watched.step(after_s=5)
        step = Step(run=RUN, round=1, kind="train")
        watched.state.open_attempt(step)
        watched.state.close_attempt(step, outcome="too-few", missing={"ward": "silent"})
        watched.state.stop_run(RUN, code="too-few-answers")
    watched.step(after_s=1)
    assert watched.keeper.stopped is not None
    assert watched.heard("missing: ward (silent)")
    assert any(one.code == "run-stopped" for one in watched.state.problems(10))
    watched.step(after_s=600)
    assert watched.flower.unfinished() == [2]


def test_nothing_is_started_before_enough_sites_are_on_the_roster_and_it_says_who_is_awaited(tmp_path: Path) -> None:
    hub = Hub.make(tmp_path, on_roster=["clinic"])
    watched = Watched(hub)
    watched.step()
    assert watched.flower.runs == {}
    assert watched.heard("ward: not in roster version 1")
    add_member(
        hub.stewards_roster, identity=hub.sites["ward"].site.public, roles=["author", "receiver"], steward=hub.steward
    )  # fmt: skip
    hub.take_over_roster()
    watched.step(after_s=2)
    assert watched.flower.runs == {1: None}
    assert sorted(watched.flower.keys.values()) == ["clinic", "ward"]


def test_a_revoked_site_is_not_registered(tmp_path: Path) -> None:
    hub = Hub.make(tmp_path, sites=("clinic", "ward", "lab"))
    revoke_member(hub.stewards_roster, name="lab", steward=hub.steward)
    hub.take_over_roster()
    watched = Watched(hub)
    watched.step()
    assert sorted(watched.flower.keys.values()) == ["clinic", "ward"]
    assert watched.flower.runs == {1: None}  # two are enough


def test_registrations_that_flower_forgot_are_made_again(watched: Watched) -> None:
    watched.step()
    watched.flower.keys.clear()
    watched.keeper.forget_registrations()
    watched.step(after_s=1)
    assert sorted(watched.flower.keys.values()) == ["clinic", "ward"]


def test_a_superlink_that_does_not_answer_is_told_once_and_waited_for(watched: Watched) -> None:
    watched.flower.away = True
    for _ in range(5):
        watched.step(after_s=2)
    assert len([line for line in watched.said if "does not answer" in line]) == 1
    noted = [one for one in watched.state.problems(10) if one.code == Away.code]
    assert noted[0].count == 5
    watched.flower.away = False
    watched.step(after_s=2)
    assert watched.flower.runs == {1: None}


def test_a_plan_that_cannot_be_read_is_told_and_waited_for(watched: Watched) -> None:
    path = watched.home / "federation.toml"
    good = path.read_text()
    path.write_text(good.replace("rounds = 2", "rounds = 0"))
    watched.step()
    assert watched.heard("field rounds")
    path.write_text(good)
    watched.step(after_s=2)
    assert watched.flower.runs == {1: None}


def test_the_clock_of_a_test_is_no_clock_of_the_state(watched: Watched) -> None:
    watched.keeper.trouble("disk-full", "no room", site="ward")
    noted = watched.state.problems(1)[0]
    assert (noted.code, noted.site, noted.text) == ("disk-full", "ward", "no room")
    assert abs((datetime.now(UTC) - noted.last).total_seconds()) < 3600


def test_a_disk_that_takes_no_note_and_a_machine_that_refuses_end_no_keeper(
    watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The two errors are made here: a disk cannot be filled in a test of milliseconds."""

    def full() -> set[str]:
        raise OSError(errno.ENOSPC, "No space left on device")

    def damaged(*_: object, **__: object) -> None:
        raise StoreDamaged(where="state.db", expected="room", got="none", hint="free some space")

    with monkeypatch.context() as while_full:
        while_full.setattr(watched.flower, "registered", full)
        while_full.setattr(watched.keeper.state, "problem", damaged)
        watched.step()
        watched.step(after_s=2)
    assert watched.heard("No space left on device")
    watched.step(after_s=2)
    assert watched.flower.runs == {1: None}


def test_a_run_does_not_wait_until_the_last_of_many_sites_is_registered(tmp_path: Path) -> None:
    many = FIRST_REGISTERED + MORE_REGISTERED + 1
    watched = Watched(Hub.make(tmp_path, sites=[f"site-{number}" for number in range(many)]))
    watched.step()
    assert (len(watched.flower.keys), watched.flower.runs) == (FIRST_REGISTERED, {1: None})
    with run_lock(watched.home):
        watched.state.start_run(RUN, plan_sha256="ab" * 32)
        for _ in range(2):
            watched.step(after_s=ASK_FLOWER_S)
    assert len(watched.flower.keys) == many
