"""Secure sums by real processes over TLS, of which a site is killed between each pair of steps.

A round is: train and upload, help, reveal where a helper is lost, vote. It ends with the sum of the undisturbed run,
bit for bit, or the run stops with a code. The tests run in order: each takes the round that is open.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from safetensors import safe_open

from not_fed.envelope.summing import SumCall
from not_fed.simulation import run
from tests.deployment.conftest import Start
from tests.support.deployed import Deployed
from tests.support.federation import SITES, tiny_prepared

pytestmark = pytest.mark.faults
ROUNDS = 4
PLAN = {
    "retry_s": 2.0, "join_timeout_s": 20.0, "round_timeout_s": 300.0, "retry_after_s": 2.0, "max_attempts": 100,
}  # fmt: skip
LOSING_ONE = {"collude": 0, "vanish": 1, "quorum": 2}  # of three sites two are helpers, and two open a lost one's masks
WHOLE = 240.0


@pytest.fixture(scope="module")
def fed(start: Start) -> Deployed:
    """Three sites that work."""
    federation = start(rounds=ROUNDS, plan=PLAN, mode="secure-sum", secure_sum=LOSING_ONE)
    federation.serve()
    federation.join_all()
    return federation


def parts(fed: Deployed, number: int) -> tuple[str, str, str]:
    """Of a round whose call is made: a helper, the other helper, and who is none."""
    line = fed.until(f"round {number} is called", lambda: fed.state.call(fed.prepared.run, number), timeout_s=WHOLE)
    call = SumCall.from_payload(line, where="call")
    first, second = call.helpers(2)
    (other,) = set(SITES) - {first, second}
    return first, second, other


def sites_of(fed: Deployed, number: int, kind: str, status: str = "sealed") -> Iterator[str]:
    return (site for site, one in fed.answers(number, kind=kind).items() if one.status == status)


def kept(fed: Deployed) -> dict[int, str]:
    """Round -> how it ended."""
    return {number: how for number, (how, _) in fed.state.round_outcomes(fed.prepared.run).items()}


def until_kept(fed: Deployed, number: int) -> None:
    fed.until(f"round {number} has ended", lambda: kept(fed).get(number), timeout_s=WHOLE)
    assert kept(fed)[number] == "kept", fed.tell()


def test_a_site_killed_in_its_training_comes_back_and_is_in_the_sum(fed: Deployed) -> None:
    """Between the call and the upload. The smallest sum is of three."""
    fed.until("the first task has left", lambda: fed.has_task(1), timeout_s=WHOLE)
    _, _, victim = parts(fed, 1)
    with fed.held(victim, 1):
        fed.power_off(victim)
        fed.join(victim)
    until_kept(fed, 1)
    assert set(sites_of(fed, 1, "train")) == set(SITES)


def test_a_helper_killed_between_its_upload_and_its_help_is_stood_in_for(fed: Deployed) -> None:
    victim, helper, other = parts(fed, 2)
    with fed.held(other, 2):
        fed.until("the helper's upload is there", lambda: victim in set(sites_of(fed, 2, "train")))
        fed.power_off(victim)
    fed.until_closed(2, kind="reveal", timeout_s=WHOLE)
    assert fed.state.missing(fed.prepared.run, 2) == [victim]
    assert set(sites_of(fed, 2, "help")) == {helper}
    fed.join(victim)
    until_kept(fed, 2)


def test_a_site_killed_between_help_and_reveal_is_waited_for_when_it_takes_two(fed: Deployed) -> None:
    lost, helper, other = parts(fed, 3)
    with fed.held(other, 3):
        fed.until("the helper's upload is there", lambda: lost in set(sites_of(fed, 3, "train")), timeout_s=WHOLE)
        fed.power_off(lost)
    fed.until("the other helper has helped", lambda: helper in set(sites_of(fed, 3, "help")), timeout_s=WHOLE)
    fed.power_off(other)
    shares = ("reveal", "received")
    fed.until("one has given its shares", lambda: helper in set(sites_of(fed, 3, *shares)), timeout_s=WHOLE)
    assert not fed.is_closed(3, kind="reveal")  # they are too few
    fed.join(other)
    fed.until_closed(3, kind="reveal", timeout_s=WHOLE)
    fed.join(lost)
    until_kept(fed, 3)


def test_a_site_killed_between_the_sum_and_the_vote_is_outvoted_and_has_the_aggregate_later(fed: Deployed) -> None:
    _, _, victim = parts(fed, ROUNDS)
    fed.until_closed(ROUNDS, kind="help", timeout_s=WHOLE)
    fed.power_off(victim)
    until_kept(fed, ROUNDS)
    fed.join(victim)


def numbers(organ: Path) -> str:
    """Digest of an organ's tensors; its file also names the uploads, which are masked anew in each run."""
    digest = hashlib.sha256()
    with safe_open(organ, "np") as tensors:
        for name in sorted(tensors.keys()):
            digest.update(tensors.get_tensor(name).tobytes())
    return digest.hexdigest()


def test_after_all_these_kills_everybody_has_the_sum_of_the_undisturbed_run(fed: Deployed, tmp_path: Path) -> None:
    fed.until("the run is complete", fed.is_complete, timeout_s=WHOLE)
    fed.until("everybody has it", lambda: set(fed.aggregates(ROUNDS)) == set(SITES))
    undisturbed = run(tiny_prepared(tmp_path, rounds=ROUNDS, mode="secure-sum", secure_sum=LOSING_ONE))
    for site, home in fed.prepared.sites.items():
        deployed = home / "organs" / fed.prepared.run / f"aggregate-{ROUNDS}.organ"
        assert numbers(deployed) == numbers(undisturbed.aggregates[site][ROUNDS])
    assert len(set(fed.aggregates(ROUNDS).values())) == 1
    assert [fed.commands[site].stop() for site in SITES] == [0, 0, 0]
    assert fed.commands["coordinator"].stop() == 0
    assert fed.processes() == []


def test_without_leave_to_lose_a_helper_its_end_stops_the_run_with_a_code(start: Start) -> None:
    """One site may collude, hence none may vanish: the round's uploads are never opened."""
    plan = PLAN | {"max_attempts": 1, "round_timeout_s": 90.0}
    federation = start(rounds=1, plan=plan, mode="secure-sum", secure_sum={"collude": 1, "vanish": 0})
    federation.serve()
    federation.join_all()
    victim, _, other = parts(federation, 1)
    with federation.held(other, 1):
        federation.until("its upload is there", lambda: victim in set(sites_of(federation, 1, "train")))
        federation.power_off(victim)
    federation.until("the run has stopped", lambda: federation.state.outcome(federation.prepared.run) == "stopped",
                     timeout_s=WHOLE)  # fmt: skip
    assert "too-few-answers" in federation.problems()
    assert federation.aggregates(1) == {}
