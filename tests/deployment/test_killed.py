"""One federation of real processes; in each round something of it is killed. Every round ends, and the last aggregate
is that of the undisturbed run, byte for byte.

The tests run in order: each takes the round that is open and ends when it is over.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from not_fed import files
from not_fed.simulation import run
from tests.deployment.conftest import Start
from tests.support.deployed import Deployed
from tests.support.federation import SITES, tiny_prepared

pytestmark = pytest.mark.faults
ROUNDS = 6
PLAN = {"retry_s": 2.0, "join_timeout_s": 120.0, "round_timeout_s": 300.0}


@pytest.fixture(scope="module")
def fed(start: Start) -> Deployed:
    """Three sites that work."""
    federation = start(rounds=ROUNDS, plan=PLAN)
    federation.serve()
    federation.join_all()
    federation.until("the first task has left", lambda: federation.has_task(1))
    return federation


def all_sealed(fed: Deployed, number: int) -> bool:
    answers = fed.answers(number)
    return {site: one.status for site, one in answers.items()} == dict.fromkeys(SITES, "sealed")


def test_a_killed_superexec_is_started_again_and_the_round_goes_on(fed: Deployed) -> None:
    number = fed.open_round()
    with fed.held("ward", number):
        old = fed.pid_of("superexec")
        os.kill(old, signal.SIGKILL)
        fed.until("another superexec", lambda: fed.pid_of("superexec") not in (0, old))
    fed.until_closed(number)
    assert all_sealed(fed, number), fed.tell()
    assert "superexec-died" in fed.problems()


def test_a_killed_superlink_is_started_again_and_the_round_goes_on(fed: Deployed) -> None:
    number = fed.open_round()
    with fed.held("ward", number):
        old = fed.pid_of("superlink")
        os.kill(old, signal.SIGKILL)
        fed.until("another SuperLink", lambda: fed.pid_of("superlink") not in (0, old))
    fed.until_closed(number, timeout_s=180)
    assert all_sealed(fed, number), fed.tell()
    assert "superlink-died" in fed.problems()


def test_a_killed_server_app_is_replaced_and_the_round_goes_on(fed: Deployed) -> None:
    number = fed.open_round()
    with fed.held("ward", number):
        (old,) = fed.processes(having="not_fed.coordinator.serverapp")
        os.kill(old, signal.SIGKILL)
        fed.until("it is gone", lambda: old not in fed.processes())
    fed.until_closed(number)
    assert all_sealed(fed, number), fed.tell()
    assert "server-app-died" in fed.problems()


def test_a_killed_coordinator_goes_on_with_its_round_when_it_is_started_again(fed: Deployed) -> None:
    number = fed.open_round()
    with fed.held("ward", number):
        fed.until("an answer is counted", lambda: "clinic" in fed.answers(number))
        counted = fed.answers(number)["clinic"]
        fed.commands["coordinator"].kill()
        fed.until("nothing of it is left", lambda: not fed.processes(of=fed.prepared.coordinator))
        fed.serve()
    fed.until_closed(number, timeout_s=180)
    assert all_sealed(fed, number), fed.tell()
    assert fed.answers(number)["clinic"] == counted


def test_a_site_killed_in_its_work_comes_back_and_answers_the_same_round(fed: Deployed) -> None:
    """As when its machine loses power. Flower keeps a lost connection for a minute; then it is let in again."""
    number = fed.open_round()
    with fed.held("ward", number):
        fed.power_off("ward")
        fed.join("ward")
    fed.until_closed(number, timeout_s=200)
    assert all_sealed(fed, number), fed.tell()


def test_after_all_these_kills_everybody_has_the_undisturbed_aggregate(fed: Deployed, tmp_path: Path) -> None:
    fed.until("the run is complete", fed.is_complete, timeout_s=180)
    undisturbed = run(tiny_prepared(tmp_path, rounds=ROUNDS))
    for number in (1, ROUNDS):
        expected = {site: files.sha256(undisturbed.aggregates[site][number]) for site in SITES}
        assert fed.aggregates(number) == expected


def test_what_is_stopped_in_order_leaves_no_process(fed: Deployed) -> None:
    assert [fed.commands[site].stop() for site in SITES] == [0, 0, 0]
    assert fed.commands["coordinator"].stop() == 0
    assert fed.processes() == []
