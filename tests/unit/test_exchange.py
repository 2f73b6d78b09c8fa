"""Messages that are lost, late, double or wrong, sites that vanish and return, a SuperLink that is away: what then."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from flwr.app import ConfigRecord, RecordDict

from not_fed import files
from not_fed.coordinator import flower
from not_fed.coordinator.flower import NobodyThere, SuperLinkGone, run_federation
from not_fed.coordinator.rounds import Rounds, TooFewAnswers
from not_fed.coordinator.state import CoordinatorState, RunLocked, Step, is_run_locked, run_lock
from not_fed.envelope.label import parse_label
from not_fed.envelope.task import Task, sign_greeting, verify_greeting
from not_fed.envelope.waiting import COME_BACK
from not_fed.errors import PeerError
from not_fed.home import Home
from not_fed.simulation import Prepared, run
from not_fed.site.bank_access import BankAccess
from tests.support.exchanges import Network, Site, Stewards, fails, refuses, says_nothing
from tests.support.federation import SITES, Messages, tiny_prepared

CLINIC, HOSPICE, WARD = SITES
FAST: dict[str, Any] = {
    "round_timeout_s": 20.0, "join_timeout_s": 20.0, "retry_s": 0.05, "retry_after_s": 0.05, "max_attempts": 2,
}  # fmt: skip
SHORT = FAST | {"round_timeout_s": 0.5, "join_timeout_s": 0.2}


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test waits for seconds: the pauses between two looks, and doubts, are short."""
    for name, value in {"FIRST_POLL_S": 0.005, "LONGEST_POLL_S": 0.02, "DOUBT_S": 0.05}.items():
        monkeypatch.setattr(flower, name, value)


class Case:
    """A prepared federation whose sites answer by script."""

    def __init__(self, folder: Path, *, plan: dict[str, Any], **options: object) -> None:
        self.prepared: Prepared = tiny_prepared(folder, plan=plan, **options)
        self.sites = {name: Site(self.prepared, name) for name in SITES}
        self.network = Network(self.sites.values())
        self.state = CoordinatorState(self.prepared.coordinator)

    def run(self) -> None:
        """The server app, from where it stopped."""
        run_federation(self.network, home=self.prepared.coordinator)

    def sites_answer(self, name: str) -> Callable[[Task, RecordDict], RecordDict]:
        """One order that is answered as usual."""
        return lambda task, content: self.sites[name].answer(task)

    def status(self, round_number: int, kind: str = "train") -> dict[str, tuple[str, str | None]]:
        """Site -> status and code in a step."""
        return {
            one.site: (one.status, one.code)
            for one in self.state.answers("first")
            if (one.round, one.kind) == (round_number, kind)
        }

    def parcels(self, name: str) -> list[list[str]]:
        """Who made the organs that came with each order of a site."""
        return [[ref.sender for ref in task.parcels] for task in self.sites[name].orders]

    def problems(self) -> set[tuple[str, str]]:
        """Code and site of every problem."""
        return {(problem.code, problem.site) for problem in self.state.problems(100)}

    def outcomes(self) -> list[tuple[int, str, int, str | None]]:
        """Every attempt: round, kind, number, outcome."""
        return [(one.step.round, one.step.kind, one.number, one.outcome) for one in self.state.attempts("first")]


@pytest.fixture
def case(tmp_path: Path) -> Case:
    return Case(tmp_path, plan=FAST)


@pytest.fixture
def short(tmp_path: Path) -> Case:
    """With so little patience that a site which stays silent costs half a second."""
    return Case(tmp_path, plan=SHORT)


GOOD = ("sealed", None)


def test_nothing_goes_wrong_and_every_site_is_asked_once(case: Case) -> None:
    case.run()
    for site in case.sites.values():
        assert [(task.kind, task.round) for task in site.orders] == [("train", 1), ("train", 2), ("receive", 2)]
        assert site.greetings == 1
    assert case.outcomes() == [(1, "train", 1, "enough"), (2, "train", 1, "enough"), (2, "receive", 1, "enough")]
    assert case.state.outcome("first") == "complete"
    assert case.state.sites_seen().keys() == set(SITES)
    assert all(seen.version for seen in case.state.sites_seen().values())
    assert case.problems() == set()


def test_a_site_that_never_answers_is_named_and_the_others_go_on(short: Case) -> None:
    short.sites[WARD].script = [says_nothing]
    short.run()
    assert short.status(1) == {CLINIC: GOOD, HOSPICE: GOOD, WARD: ("silent", "silent")}
    assert short.parcels(CLINIC)[1] == [CLINIC, HOSPICE]
    assert ("silent", WARD) in short.problems()
    assert short.state.attempts("first")[0].missing == {WARD: "silent"}
    assert short.status(2)[WARD] == GOOD


def test_an_answer_that_comes_late_is_noted_and_changes_nothing(short: Case) -> None:
    short.network.held.add(WARD)

    def release(task: Task, content: RecordDict) -> RecordDict:
        short.network.held.discard(WARD)
        return short.sites[CLINIC].answer(task)

    short.sites[CLINIC].script = [short.sites_answer(CLINIC), release]
    short.run()
    assert short.status(1)[WARD] == ("late", None)
    assert ("late-answer", WARD) in short.problems()
    assert short.parcels(CLINIC)[1] == [CLINIC, HOSPICE]
    assert short.status(2) == dict.fromkeys(SITES, GOOD)


def test_an_answer_that_comes_twice_counts_once(case: Case, caplog: pytest.LogCaptureFixture) -> None:
    """The SuperLink is away while the ward's answer is under way: it is asked again, and then both arrive."""
    case.network.held.add(WARD)

    def away() -> None:
        case.network.down = 2

    case.network.events = {4: away, 40: lambda: case.network.held.discard(WARD)}
    with caplog.at_level("INFO", logger="not_fed.coordinator"):
        case.run()
    tasks = [task.id for task in case.sites[WARD].orders]
    assert tasks[0] == tasks[1]
    assert "round 1: ward sent an answer that was counted before" in caplog.messages
    assert case.status(1) == dict.fromkeys(SITES, GOOD)
    assert case.parcels(CLINIC)[1] == list(SITES)


def test_an_answer_of_another_round_does_not_count(short: Case) -> None:
    """In round 2 a site sends its organ of round 1 again, and in round 1 one that it made for round 2."""
    ward = short.sites[WARD]
    ward.script = [lambda task, content: ward.answer(task, round_number=2), lambda task, content: ward.answer(task)]
    hospice = short.sites[HOSPICE]
    hospice.script = [short.sites_answer(HOSPICE), lambda task, content: hospice.answer(task, round_number=1)]
    short.run()
    assert short.status(1)[WARD] == ("bad-answer", "wrong-answer")
    assert short.status(2)[HOSPICE] == ("bad-answer", "wrong-answer")
    assert {("wrong-answer", WARD), ("wrong-answer", HOSPICE)} <= short.problems()
    assert short.parcels(CLINIC)[1:] == [[CLINIC, HOSPICE], [CLINIC, WARD]]


@pytest.mark.parametrize("code", [3, 4])
def test_a_message_that_flower_lost_is_sent_again(case: Case, code: int) -> None:
    case.sites[WARD].script = [fails(code)]
    case.run()
    assert [task.round for task in case.sites[WARD].orders] == [1, 1, 2, 2]
    assert case.sites[WARD].orders[0] == case.sites[WARD].orders[1]
    assert case.status(1) == dict.fromkeys(SITES, GOOD)
    assert (f"flower-error-{code}", WARD) in case.problems()


@pytest.mark.parametrize("quietly", [False, True])
def test_a_site_that_vanishes_with_its_task_gets_it_again_when_it_is_back(case: Case, *, quietly: bool) -> None:
    """Killed in its training and started again under the same number; Flower tells, or sees nothing of it."""
    network = case.network
    network.held.add(WARD)

    def leave() -> None:
        network.leave(WARD)
        network.held.discard(WARD)

    def unseen() -> None:
        network.leave(WARD, quietly=True)
        network.held.discard(WARD)
        network.down = 1  # the SuperLink was away too, so that nobody saw it go

    network.events = {4: unseen} if quietly else {4: leave, 12: lambda: network.come(WARD)}
    case.run()
    assert [task.round for task in case.sites[WARD].orders] == [1, 1, 2, 2]
    assert case.status(1) == dict.fromkeys(SITES, GOOD)
    assert case.outcomes()[0] == (1, "train", 1, "enough")
    assert (("flower-error-5", WARD) in case.problems()) is not quietly
    assert case.sites[WARD].greetings == 1  # who it is was known


def test_an_answer_that_the_superlink_lost_as_it_died_is_asked_for_again(case: Case) -> None:
    """It had handed the answer out when it was killed: to Flower it is delivered, and nobody has it."""
    case.network.held.add(WARD)

    def die() -> None:
        case.network.forget(WARD)
        case.network.held.discard(WARD)
        case.network.down = 3

    case.network.events = {4: die}
    case.run()
    assert [task.round for task in case.sites[WARD].orders] == [1, 1, 2, 2]
    assert case.status(1) == dict.fromkeys(SITES, GOOD)


def test_a_superlink_that_is_away_for_a_while_costs_nothing(case: Case) -> None:
    """Its calls fail at every third look, in whichever of the three they are made next."""

    def away() -> None:
        case.network.down = 1 + case.network.looks % 4
        case.network.events[case.network.looks + 3] = away

    case.network.events = {1: away}
    case.run()
    assert case.status(2) == dict.fromkeys(SITES, GOOD)
    assert case.outcomes() == [(1, "train", 1, "enough"), (2, "train", 1, "enough"), (2, "receive", 1, "enough")]


def test_a_superlink_that_stays_away_ends_the_server_app_and_not_the_run(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flower, "LINK_PATIENCE_S", 0.2)

    def gone() -> None:
        case.network.down = 1 << 30

    case.network.held.add(WARD)
    case.network.events = {4: gone}
    with pytest.raises(SuperLinkGone):
        case.run()
    assert case.state.outcome("first") == "open"
    case.network.down = 0
    case.network.held.clear()
    case.run()
    assert [task.round for task in case.sites[CLINIC].orders] == [1, 2, 2]  # what had come was kept
    assert case.status(1) == dict.fromkeys(SITES, GOOD)


def test_a_site_that_refuses_for_now_is_asked_again_until_it_agrees(case: Case) -> None:
    """With each of the codes that mean so, one after the other."""
    seen: list[tuple[str, str | None]] = []

    def refuse(code: str) -> Callable[[Task, RecordDict], Any]:
        def answer(task: Task, content: RecordDict) -> Any:  # noqa: ANN401
            seen.append(case.status(1).get(WARD, ("", None)))
            return refuses(code)(task, content)

        return answer

    case.sites[WARD].script = [refuse(code) for code in [*sorted(COME_BACK), "site-busy"]]
    case.run()
    assert seen[1:] == [("waiting", code) for code in sorted(COME_BACK)]
    assert case.status(1) == dict.fromkeys(SITES, GOOD)
    assert len({task.id for task in case.sites[WARD].orders if task.round == 1}) == 1


def test_a_site_that_refuses_is_not_asked_again_in_that_round(case: Case) -> None:
    case.sites[WARD].script = [refuses("policy-span")]
    case.run()
    assert [task.round for task in case.sites[WARD].orders] == [1, 2, 2]
    assert case.status(1)[WARD] == ("refused", "policy-span")
    (problem,) = [problem for problem in case.state.problems() if problem.site == WARD]
    assert problem.code == "policy-span"
    assert "it runs not-fed " in problem.text


def test_a_site_whose_process_ends_again_and_again_is_given_up(case: Case) -> None:
    case.sites[WARD].script = [fails(8), fails(8)]
    case.sites[HOSPICE].script = [fails(8)] * 10
    case.run()
    assert case.status(1) == {CLINIC: GOOD, HOSPICE: ("refused", "flower-error-8"), WARD: GOOD}
    assert len([task for task in case.sites[HOSPICE].orders if task.round == 1]) == 1 + flower.MAX_CRASHES


def test_a_site_that_still_refuses_at_the_end_is_named_with_its_reason(short: Case) -> None:
    short.sites[WARD].script = [refuses("approval-awaited")] * 100
    short.run()
    assert short.state.attempts("first")[0].missing == {WARD: "approval-awaited"}
    assert short.status(1)[WARD] == ("waiting", "approval-awaited")


def test_a_connection_that_never_says_who_it_is_costs_the_others_nothing(short: Case) -> None:
    short.sites[WARD].mute = True
    short.run()
    assert short.sites[WARD].orders == []
    assert short.sites[WARD].greetings == 1  # and it is not asked again before it has answered
    assert short.status(1) == {CLINIC: GOOD, HOSPICE: GOOD, WARD: ("silent", "silent")}


def test_a_site_that_comes_later_is_ordered_as_soon_as_it_is_there(case: Case) -> None:
    case.network.there.discard(case.network.node(WARD))
    case.network.events = {10: lambda: case.network.come(WARD)}
    case.run()
    assert case.status(1) == dict.fromkeys(SITES, GOOD)


def test_enough_answers_do_not_wait_for_a_site_that_is_away(tmp_path: Path) -> None:
    """It vanishes in round 1 and is back when the others have received the result: for that, it is waited for."""
    case = Case(tmp_path, plan=FAST | {"round_timeout_s": 3600.0, "join_timeout_s": 0.2})
    case.sites[WARD].script = [says_nothing]

    def receive(task: Task, content: RecordDict) -> RecordDict:
        case.network.events[case.network.looks + 20] = lambda: case.network.come(WARD)
        return case.sites[CLINIC].answer(task)

    case.sites[CLINIC].script = [case.sites_answer(CLINIC), case.sites_answer(CLINIC), receive]
    case.network.events = {4: lambda: case.network.leave(WARD)}
    case.run()
    assert case.status(1) == case.status(2) == {CLINIC: GOOD, HOSPICE: GOOD, WARD: ("silent", "silent")}
    assert case.status(2, "receive")[WARD] == ("received", None)


def test_a_run_ends_though_nobody_is_there_to_receive_its_result(short: Case) -> None:
    def leave() -> None:
        for name in SITES:
            short.network.leave(name)

    def last(task: Task, content: RecordDict) -> RecordDict:
        short.network.events[short.network.looks + 1] = leave
        return short.sites[WARD].answer(task)

    short.sites[WARD].script = [short.sites_answer(WARD), last]
    short.run()
    assert short.state.outcome("first") == "complete"
    assert short.status(2, "receive") == dict.fromkeys(SITES, ("silent", "silent"))


def test_a_round_with_too_few_answers_is_opened_again_and_then_the_run_stops(short: Case) -> None:
    """Two of three sites keep silent: closed as such, opened again, stopped; started again it goes on."""
    for name in (HOSPICE, WARD):
        short.sites[name].script = [says_nothing, says_nothing]
    with pytest.raises(TooFewAnswers) as error:
        short.run()
    assert f"{HOSPICE}: silent" in error.value.got
    assert f"{WARD}: silent" in error.value.got
    assert short.outcomes() == [(1, "train", 1, "too-few"), (1, "train", 2, "too-few")]
    assert short.state.outcome("first") == "stopped"
    assert ("too-few-answers", "") in short.problems()
    assert len({task.id for name in SITES for task in short.sites[name].orders}) == 1
    assert len(short.sites[CLINIC].orders) == 1  # its answer is kept
    short.run()
    assert short.state.outcome("first") == "complete"
    assert short.outcomes()[2] == (1, "train", 3, "enough")
    assert [task.round for task in short.sites[CLINIC].orders] == [1, 2, 2]
    assert short.status(1) == dict.fromkeys(SITES, GOOD)


def test_an_answer_that_comes_between_two_attempts_counts(tmp_path: Path) -> None:
    case = Case(tmp_path, plan=SHORT | {"retry_after_s": 60.0})
    case.network.held |= {HOSPICE, WARD}
    looked: list[int] = []
    real = flower._Exchange.linger

    def linger(exchange: flower._Exchange, step: Step) -> None:
        looked.append(step.round)
        case.network.held.clear()
        real(exchange, step)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(flower._Exchange, "linger", linger)
        case.run()
    assert looked == [1]
    assert [task.round for task in case.sites[WARD].orders] == [1, 2, 2]
    assert case.outcomes()[:2] == [(1, "train", 1, "too-few"), (1, "train", 2, "enough")]


def test_a_coordinator_that_was_cut_off_goes_on_in_the_same_attempt(case: Case) -> None:
    class Killed(BaseException):
        pass

    def kill() -> None:
        raise Killed

    case.network.held.add(WARD)
    case.network.events = {6: kill}
    with pytest.raises(Killed):
        case.run()
    case.network.held.clear()
    case.network.letters.clear()  # a new Flower run knows nothing of the old one's messages
    case.run()
    assert case.outcomes()[:2] == [(1, "train", 1, "enough"), (2, "train", 1, "enough")]
    assert [task.round for task in case.sites[CLINIC].orders] == [1, 2, 2]
    assert [task.round for task in case.sites[WARD].orders] == [1, 1, 2, 2]
    assert case.sites[WARD].orders[0] == case.sites[WARD].orders[1]


def test_too_few_connections_end_the_server_app_and_not_the_run(short: Case) -> None:
    for name in (CLINIC, WARD):
        short.network.there.discard(short.network.node(name))
    with pytest.raises(NobodyThere) as error:
        short.run()
    assert HOSPICE in error.value.got
    assert short.state.outcome("first") == "open"


# -- the roster changes while the run goes on -------------------------------------------------------------------------


def test_a_task_of_an_older_roster_is_issued_anew(case: Case) -> None:
    """The ward has the newer roster first and says so; the coordinator reads its own again."""
    stewards = Stewards(case.prepared)

    def renewed(task: Task, content: RecordDict) -> RecordDict:
        stewards.renew()
        stewards.tell()
        return refuses("other-roster")(task, content)  # type: ignore[return-value]

    case.sites[WARD].script = [renewed]
    case.run()
    first, second = case.sites[WARD].orders[:2]
    assert (first.round, second.round) == (1, 1)
    assert (first.roster_version, second.roster_version) == (1, 2)
    assert first.id != second.id
    assert case.status(1) == dict.fromkeys(SITES, GOOD)  # what came under the older one counts
    assert len(case.sites[CLINIC].orders) == 3


def test_a_site_whose_roster_is_older_is_asked_again_when_it_has_the_new_one(case: Case) -> None:
    stewards = Stewards(case.prepared)
    stewards.renew()
    stewards.tell("coordinator", CLINIC, HOSPICE)
    real = case.sites[WARD].hear
    said: list[Any] = []

    def hear(message: Any) -> Any:  # noqa: ANN401
        if "order" in message.content and not said:
            said.append(message)
            stewards.tell(WARD)
            return RecordDict({"answer": ConfigRecord({"refused": "other-roster"})})
        return real(message)

    case.sites[WARD].hear = hear  # type: ignore[method-assign]
    case.run()
    assert len(said) == 1
    assert case.status(1) == dict.fromkeys(SITES, GOOD)


def revoked_during_round_2(folder: Path, **options: Any) -> Case:  # noqa: ANN401
    """The ward is taken off the roster while the hospice has the task of round 2; the ward has answered round 1."""
    case = Case(folder, plan=FAST, **options)
    stewards = Stewards(case.prepared)

    def revoke(task: Task, content: RecordDict) -> RecordDict:
        stewards.revoke(WARD)
        return refuses("other-roster")(task, content)  # type: ignore[return-value]

    case.sites[HOSPICE].script = [case.sites_answer(HOSPICE), revoke]
    return case


def test_a_site_that_is_revoked_in_mid_run_is_not_ordered_and_does_not_count(tmp_path: Path) -> None:
    """In mode trusted the others go on: its organ is in no aggregate any more, and none is sealed to it."""
    case = revoked_during_round_2(tmp_path, mode="trusted")
    case.run()
    assert ("member-not-active", WARD) in case.problems()
    assert case.state.outcome("first") == "complete"
    assert [task.round for task in case.sites[WARD].orders] == [1]
    assert case.status(2)[WARD] == ("revoked", "member-not-active")
    bank = Rounds(case.prepared.coordinator, now=datetime.now(UTC)).bank
    aggregates = [case.state.aggregate("first", number) for number in (1, 2)]
    assert all(one is not None for one in aggregates)
    for digest in [one[0] for one in aggregates if one is not None]:
        assert parse_label(bank.label(digest))[1].to == (CLINIC, HOSPICE)


def test_who_was_left_out_of_the_aggregate_stands_among_the_problems(tmp_path: Path) -> None:
    """A limit that no organ keeps: each is clipped in both rounds, the second measured from the first's aggregate."""
    robust = {"rule": "median", "max_norm": 1e-9}
    case = Case(tmp_path, plan=FAST | {"robust": robust, "min_answers": 3}, mode="trusted")
    case.run()
    assert case.state.outcome("first") == "complete"
    noted = [(one.site, one.text[:8]) for one in case.state.problems(100) if one.code == "norm-clipped"]
    assert sorted(noted) == [(site, f"round {number}:") for site in sorted(SITES) for number in (1, 2)]


def test_organs_that_were_sealed_to_a_revoked_site_are_asked_for_again(tmp_path: Path) -> None:
    """In mode bank nobody may open them any more: their round is open again, and its task is issued anew."""
    case = revoked_during_round_2(tmp_path)
    for name in (CLINIC, HOSPICE):
        real = case.sites[name].answer
        case.sites[name].answer = sealing_again(case.sites[name], real)  # type: ignore[method-assign,assignment]
    case.run()
    assert case.state.outcome("first") == "complete"
    assert [task.round for task in case.sites[CLINIC].orders if task.kind == "train"] == [1, 2, 1, 2]
    assert [task.roster_version for task in case.sites[HOSPICE].orders] == [1, 1, 2, 2, 2]
    assert case.parcels(CLINIC)[-2:] == [[CLINIC, HOSPICE], [CLINIC, HOSPICE]]
    assert case.status(1)[WARD] == case.status(2)[WARD] == ("revoked", "member-not-active")
    bank = Rounds(case.prepared.coordinator, now=datetime.now(UTC)).bank
    for one in case.state.answers("first"):
        if one.sealed_sha256 is not None:
            assert WARD not in parse_label(bank.label(one.sealed_sha256))[1].to


def sealing_again(site: Site, real: Callable[[Task], RecordDict]) -> Callable[[Task], RecordDict]:
    """A site that seals its organ of a round again for a task under another roster."""
    made: dict[tuple[str, int], int] = {}

    def answer(task: Task) -> RecordDict:
        step = (task.run, task.round)
        if made.setdefault(step, task.roster_version) != task.roster_version:
            site.answers.pop(step, None)
            made[step] = task.roster_version
        return real(task)

    return answer


def test_a_revoked_sites_answer_does_not_count_though_its_order_went_out_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flower, "ROSTER_LOOK_S", 0.01)
    case = Case(tmp_path, plan=FAST, mode="trusted")
    stewards = Stewards(case.prepared)
    case.network.held |= {CLINIC, WARD}
    case.network.events = {4: lambda: stewards.revoke(WARD), 12: case.network.held.clear}
    case.run()
    assert [task.round for task in case.sites[WARD].orders] == [1]
    assert case.status(1)[WARD] == ("revoked", "member-not-active")
    assert [one.outcome for one in case.state.attempts("first")] == ["enough"] * 3
    assert case.state.outcome("first") == "complete"


# -- two of them ------------------------------------------------------------------------------------------------------


def test_two_server_apps_never_drive_one_home(case: Case) -> None:
    home = case.prepared.coordinator
    script = f"""
import sys
from pathlib import Path
from not_fed.coordinator.state import run_lock
with run_lock(Path({str(home)!r})):
    print("held", flush=True)
    sys.stdin.read()
"""
    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdin is not None
        assert other.stdout.readline() == "held\n"
        assert is_run_locked(home)
        assert (home / "run.lock").read_text() == f"{other.pid}\n"
        with pytest.raises(RunLocked):
            case.run()
        other.kill()
    assert not is_run_locked(home)
    case.run()
    assert case.state.outcome("first") == "complete"


def test_whoever_only_looks_at_the_lock_keeps_nobody_out(tmp_path: Path) -> None:
    stop = threading.Event()

    def look() -> None:
        while not stop.is_set():
            is_run_locked(tmp_path)

    watcher = threading.Thread(target=look)
    watcher.start()
    try:
        for _ in range(50):
            with run_lock(tmp_path):
                assert is_run_locked(tmp_path)
    finally:
        stop.set()
        watcher.join()


# -- greetings --------------------------------------------------------------------------------------------------------


def change_greetings(case: Case, name: str, **changes: object) -> None:
    """From now on a site's greetings say something else, signed by it."""
    site, real = case.sites[name], case.sites[name].greet

    def greet(nonce: str) -> RecordDict:
        now, home = datetime.now(UTC), Home(site.home)
        record = real(nonce)["answer"]
        assert isinstance(record, ConfigRecord)
        line = record["greeting"]
        assert isinstance(line, bytes)
        said = verify_greeting(line, coordinator="coordinator", nonce=nonce, roster=home.roster(now), now=now)
        line = sign_greeting(said.model_copy(update=changes), signer=home.signer())
        return RecordDict({"answer": ConfigRecord({"greeting": line})})

    site.greet = greet  # type: ignore[method-assign]


def test_a_site_of_another_protocol_is_named_with_its_version_and_not_ordered(case: Case) -> None:
    change_greetings(case, WARD, not_fed="0.0.1", protocol=99)
    case.run()
    assert case.sites[WARD].orders == []
    assert case.status(1)[WARD] == ("refused", "protocol-version")
    (problem, *_) = [problem for problem in case.state.problems() if problem.site == WARD]
    assert problem.code == "protocol-version"
    assert "0.0.1" in problem.text


def test_a_site_that_was_brought_up_to_date_is_ordered_when_it_is_back(case: Case) -> None:
    real = case.sites[WARD].greet
    change_greetings(case, WARD, not_fed="0.0.1", protocol=99)

    def update(task: Task, content: RecordDict) -> RecordDict:
        case.network.leave(WARD)
        case.sites[WARD].greet = real  # type: ignore[method-assign]
        case.network.events[case.network.looks + 2] = lambda: case.network.come(WARD)
        case.network.held.add(CLINIC)
        case.network.events[case.network.looks + 8] = case.network.held.clear
        return case.sites[CLINIC].answer(task)

    case.sites[CLINIC].script = [update]
    case.run()
    assert case.status(1)[WARD] == ("refused", "protocol-version")
    assert case.status(2) == dict.fromkeys(SITES, GOOD)


def test_a_site_whose_clock_is_off_by_a_day_is_named_and_the_others_go_on(short: Case) -> None:
    change_greetings(short, WARD, issued=datetime(2020, 1, 1, tzinfo=UTC))
    short.run()
    assert short.sites[WARD].orders == []
    (problem,) = [problem for problem in short.state.problems() if problem.code == "clock-apart"]
    assert problem.site == WARD
    assert problem.text.endswith("minutes behind")
    assert short.status(2) == {CLINIC: GOOD, HOSPICE: GOOD, WARD: ("silent", "silent")}


def test_a_log_is_sent_again_with_the_same_task_and_known_sizes(tmp_path: Path) -> None:
    """Where a log is kept, an order goes out again as it was; a site that gave no answer is asked what it remembers."""
    case = Case(tmp_path, plan=SHORT, log=True)
    sent: list[bytes] = []

    def refuse(task: Task, content: RecordDict) -> RecordDict:
        sent.append(content["order"]["log"])  # type: ignore[arg-type]
        return refuses("site-busy")(task, content)  # type: ignore[return-value]

    def silent(task: Task, content: RecordDict) -> None:
        sent.append(content["order"]["log"])  # type: ignore[arg-type]

    case.sites[WARD].script = [refuse, refuse, silent]
    case.run()
    assert len(sent) == 3
    assert len(set(sent)) == 1
    assert case.sites[WARD].greetings == 2
    assert case.sites[CLINIC].greetings == 1
    assert case.status(2) == dict.fromkeys(SITES, GOOD)


# -- large organs -----------------------------------------------------------------------------------------------------


class BankAtHand:
    """The coordinator's bank as a site reaches it, without the network between."""

    def __init__(self, coordinator: Path) -> None:
        self.rounds = Rounds(coordinator, now=datetime.now(UTC))
        self.downloads: list[str] = []
        self.uploads: list[Path] = []
        self.cut = 0

    def download(self, sha256: str, *, size_bytes: int, out: Path, progress: object) -> None:
        """Fetch; some are cut off."""
        self.downloads.append(sha256)
        if self.cut:
            self.cut -= 1
            raise BankUnreachable(where="bank", expected="an answer", got="none", hint="it is tried again")
        sealed, _ = self.rounds.bank.get(sha256)
        assert len(sealed) == size_bytes
        out.write_bytes(sealed)

    def upload(self, sealed: Path, *, label: bytes, progress: object) -> None:
        """Leave one."""
        self.uploads.append(sealed)
        self.rounds.bank.put(sealed.read_bytes(), label=label, roster=self.rounds.roster, now=datetime.now(UTC))


class BankUnreachable(PeerError):
    """The bank cannot be reached."""

    code = "bank-unreachable"


def test_large_organs_go_through_the_bank_both_ways(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sites that really train: the same aggregate, and no message as large as an organ; a cut costs one more order."""
    small = run(tiny_prepared(tmp_path / "inline", plan=FAST))
    prepared = tiny_prepared(tmp_path / "banked", plan=FAST)
    (prepared.coordinator / "coordinator.toml").write_text(
        'address = "localhost:8443"\nlisten = "127.0.0.1:8443"\nbase = "tiny"\n[bank]\ninline_bytes = 20000\n'
    )
    bank, messages = BankAtHand(prepared.coordinator), Messages()
    monkeypatch.setattr(BankAccess, "_connect", lambda _: bank)
    bank.cut = 2
    large = run(prepared, tap=messages)
    assert (len(bank.uploads), len(bank.downloads)) == (6, 2 + 12)
    organ = min(one.bytes for one in large.deliveries)
    assert max(map(len, messages.sent + messages.received)) < organ
    assert {path.name for path in (prepared.sites[WARD]).iterdir()} == {
        path.name for path in small.prepared.sites[WARD].iterdir()
    }
    assert [one["status"] for one in large.answers] == ["sealed"] * 6 + ["received"] * 3
    for number in (1, 2):
        assert len({files.sha256(rounds[number]) for rounds in large.aggregates.values()}) == 1
        assert files.sha256(large.aggregates[WARD][number]) == files.sha256(small.aggregates[WARD][number])
