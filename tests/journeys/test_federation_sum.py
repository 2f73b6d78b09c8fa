"""A federation by secure sum: the coordinator gets the sum of what sites changed, and every site the same aggregate."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file

from not_fed import files
from not_fed.aggregation.secure import Ring
from not_fed.aggregation.secure.site import NotTheSignedPlan
from not_fed.coordinator.plan import load_plan
from not_fed.coordinator.rounds import Rounds
from not_fed.coordinator.state import CoordinatorState, Step
from not_fed.envelope.open import passport_path
from not_fed.envelope.passport import Passport, read_passport
from not_fed.envelope.summing import SumCall
from not_fed.home import Home
from not_fed.organ.anatomy import Span
from not_fed.organ.change import change
from not_fed.organ.organ import read_organ
from not_fed.simulation import Prepared, SimulationResult, Tap, run
from tests.support.federation import SITES, lose, tiny_prepared

VOTING = {site: {"held_out": "held_out.jsonl", "vote": {"allowed": "public_by_decision"}} for site in SITES}
FOUR = ("clinic", "hospice", "lab", "ward")


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> SimulationResult:
    """Three sites, two rounds, a log."""
    return run(tiny_prepared(tmp_path_factory.mktemp("sum"), mode="secure-sum", log=True))


def expected_aggregate(result: SimulationResult, number: int, sites: tuple[str, ...]) -> dict[str, torch.Tensor]:
    """Where the round began, plus the mean of the fixed-point changes of these sites: no masks, no secure sum."""
    prepared = result.prepared
    ring = Ring.of(load_plan(prepared.coordinator).sum_plan())
    before = result.aggregates[sites[0]].get(number - 1)
    start = prepared.base.span_places(Span(*prepared.span)) if before is None else read_organ(before).places
    rows: list[NDArray[Any]] = [
        np.concatenate(list(change(read_organ(result.own[site][number]).places, start=start))) for site in sites
    ]
    total = np.sum([ring.round(row) for row in rows], axis=0)
    mean, found, at = total * (ring.step / len(sites)), {}, 0
    for name in sorted(start):
        old = torch.frombuffer(bytearray(start[name].read()), dtype=torch.float32).double()
        found[name] = (old + torch.from_numpy(mean[at : at + len(old)])).float().reshape(start[name].shape)
        at += len(old)
    return found


def aggregate_passport(result: SimulationResult, number: int) -> Passport:
    home, organ, now = result.prepared.sites["ward"], result.aggregates["ward"][number], datetime.now(UTC)
    return read_passport(passport_path(organ).read_bytes().rstrip(), roster=Home(home).roster(now), now=now)


def outcomes(prepared: Prepared) -> dict[int, str]:
    found = CoordinatorState(prepared.coordinator).round_outcomes(prepared.run)
    return {number: outcome for number, (outcome, _) in found.items()}


def test_the_aggregate_is_the_plain_mean_of_the_changes(result: SimulationResult) -> None:
    for number in (1, 2):
        expected, got = expected_aggregate(result, number, SITES), load_file(result.aggregates["clinic"][number])
        for name, tensor in expected.items():
            torch.testing.assert_close(got[name], tensor, rtol=0, atol=0)


def test_every_site_ends_with_the_same_aggregate(result: SimulationResult) -> None:
    for number in (1, 2):
        assert len({files.sha256(rounds[number]) for rounds in result.aggregates.values()}) == 1
    assert set(result.aggregates) == set(SITES)
    assert outcomes(result.prepared) == {1: "kept", 2: "kept"}


def test_nothing_of_a_single_update_stays_at_the_coordinator(result: SimulationResult) -> None:
    state = CoordinatorState(result.prepared.coordinator)
    sent = {one.sealed_sha256 for one in state.answers(result.prepared.run) if one.sealed_sha256}
    assert len(sent) == 2 * 3 + 2 * 2  # masked updates and partial sums, of two rounds
    assert not [path for path in (result.prepared.coordinator / "bank").iterdir() if path.name in sent]
    assert result.stored["sealed aggregates"]["count"] == 2


def test_the_aggregates_passport_names_each_contributor(result: SimulationResult) -> None:
    passport = aggregate_passport(result, 2)
    assert passport.author == "coordinator"
    assert [one.site for one in passport.contributors] == list(SITES)
    assert {one.upload_sha256 for one in passport.contributors} == set(passport.parents)
    assert {one.epsilon for one in passport.contributors} == {None}


def test_with_privacy_each_contributor_has_its_own_epsilon(tmp_path: Path) -> None:
    result = run(tiny_prepared(tmp_path, mode="secure-sum", epsilon=8.0, rounds=1))
    passport = aggregate_passport(result, 1)
    claimed = [one.epsilon for one in passport.contributors]
    assert all(epsilon is not None and epsilon <= 8.0 for epsilon in claimed)
    assert passport.dp is not None
    assert passport.dp.epsilon == max(epsilon for epsilon in claimed if epsilon is not None)


def test_a_lost_helper_is_stood_in_for_by_the_others(tmp_path: Path) -> None:
    prepared = tiny_prepared(
        tmp_path, mode="secure-sum", sites=FOUR, rounds=1, secure_sum={"collude": 1, "vanish": 1},
        plan={"round_timeout_s": 3.0, "join_timeout_s": 1.0, "retry_s": 0.2},
    )  # fmt: skip
    lost = lose(prepared.sites, site="ward", group="help-1")
    also = lose(prepared.sites, site="lab", group="help-1")
    helped: list[str] = []

    def drop(message: Any) -> bool:  # noqa: ANN401
        helped.append(message.metadata.group_id)
        return lost(message) or (not has_ward(prepared) and also(message))

    result = run(prepared, drop=drop)
    assert "reveal-1" in helped
    for name, tensor in expected_aggregate(result, 1, FOUR).items():
        torch.testing.assert_close(load_file(result.aggregates["ward"][1])[name], tensor, rtol=0, atol=0)


def has_ward(prepared: Prepared) -> bool:
    """Whether ward is among the three helpers of the first round's four sites."""
    state, plan = CoordinatorState(prepared.coordinator), load_plan(prepared.coordinator)
    line = state.call(prepared.run, 1)
    return line is not None and "ward" in SumCall.from_payload(line, where="test").helpers(
        plan.sum_plan().thresholds().helpers
    )


def test_a_round_that_the_sites_vote_down_is_rolled_back(tmp_path: Path) -> None:
    worse = {"training": {"lr": 1.0, "epochs": 1, "batch_tokens": 64, "max_tokens": 32}}
    prepared = tiny_prepared(tmp_path, mode="secure-sum", secure_sum={"quorum": 2, "clip": 8.0}, plan=worse)
    result = run(prepared)
    assert outcomes(prepared) == {1: "rolled-back", 2: "rolled-back"}
    calls = [
        SumCall.from_payload(line, where="test")
        for number in (1, 2)
        if (line := CoordinatorState(prepared.coordinator).call(prepared.run, number)) is not None
    ]
    assert calls[0].start_sha256 == calls[1].start_sha256
    assert result.aggregate is None


def test_a_kept_round_is_where_the_next_one_begins(tmp_path: Path) -> None:
    prepared = tiny_prepared(tmp_path, mode="secure-sum", secure_sum={"quorum": 2})
    result = run(prepared)
    assert outcomes(prepared) == {1: "kept", 2: "kept"}
    assert read_organ(result.own["clinic"][2]).manifest.parents == (files.sha256(result.aggregates["clinic"][1]),)


def test_a_blind_sum_is_read_by_the_sites_alone(tmp_path: Path) -> None:
    prepared = tiny_prepared(tmp_path, mode="secure-sum", secure_sum={"quorum": 2, "blind": True})
    result = run(prepared)
    assert outcomes(prepared) == {1: "kept", 2: "kept"}
    for number in (1, 2):
        assert len({files.sha256(rounds[number]) for rounds in result.aggregates.values()}) == 1
        for name, tensor in expected_aggregate(result, number, SITES).items():
            torch.testing.assert_close(load_file(result.aggregates["clinic"][number])[name], tensor, rtol=0, atol=0)
    assert not list(prepared.coordinator.rglob("*.organ"))


class Cut(Exception):
    """The coordinator's process ends."""


def cut_after(count: int) -> Tap:
    left = count

    def tap(direction: Literal["sent", "received"], data: bytes) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            raise Cut

    return tap


@pytest.mark.parametrize("messages", [11, 16, 23])
def test_a_coordinator_that_is_cut_off_goes_on_to_the_same_aggregate(
    result: SimulationResult, tmp_path: Path, messages: int
) -> None:
    prepared = tiny_prepared(tmp_path, mode="secure-sum", log=True)
    with pytest.raises(Cut):
        run(prepared, tap=cut_after(messages))
    again = run(prepared)
    for number in (1, 2):
        for name, tensor in load_file(result.aggregates["clinic"][number]).items():
            torch.testing.assert_close(load_file(again.aggregates["clinic"][number])[name], tensor, rtol=0, atol=0)


def test_too_few_uploads_stop_the_run_and_nothing_is_opened(tmp_path: Path) -> None:
    patience: Mapping[str, object] = {
        "round_timeout_s": 1.0, "join_timeout_s": 0.5, "retry_s": 0.2, "retry_after_s": 0.1, "max_attempts": 1,
    }  # fmt: skip
    prepared = tiny_prepared(tmp_path, mode="secure-sum", plan=dict(patience))
    with pytest.raises(Exception, match="train"):
        run(prepared, drop=lose(prepared.sites, site="ward", group="train-1"))
    state = CoordinatorState(prepared.coordinator)
    assert state.active(prepared.run, 1) is None
    assert not state.statements(Step(run=prepared.run, round=1, kind="help"))


def test_a_set_with_a_revoked_sites_update_is_burnt(tmp_path: Path) -> None:
    prepared = tiny_prepared(tmp_path, mode="secure-sum")
    with pytest.raises(Cut):
        run(prepared, tap=cut_after(14))  # the set is fixed, the helpers have not all answered
    rounds = Rounds(prepared.coordinator, now=datetime.now(UTC))
    step = rounds.next_step()
    assert step is not None
    assert step.kind == "help"
    rounds.revoked = {"ward": "member-not-active"}
    rounds._burn_if_revoked()
    assert outcomes(prepared) == {1: "burnt"}
    following = rounds.next_step()
    assert following is not None
    assert (following.round, following.kind) == (2, "train")


def test_without_the_stewards_plan_the_run_stops_and_nobody_is_asked(tmp_path: Path) -> None:
    prepared = tiny_prepared(tmp_path, mode="secure-sum")
    plan = (prepared.coordinator / "federation.toml").read_text()
    (prepared.coordinator / "federation.toml").write_text(plan.replace("collude = 1", "collude = 0"))
    asked: list[object] = []
    with pytest.raises(NotTheSignedPlan):
        run(prepared, tap=lambda direction, data: asked.append(direction))
    assert not asked
    assert CoordinatorState(prepared.coordinator).outcome(prepared.run) == "stopped"


def test_an_aggregate_that_was_voted_on_is_sealed_again_and_never_made_anew(tmp_path: Path) -> None:
    prepared = tiny_prepared(tmp_path, mode="trusted", plan={"quorum": 2}, policy=VOTING)
    with pytest.raises(Cut):
        run(prepared, tap=cut_after(24))  # in the second round
    rounds = Rounds(prepared.coordinator, now=datetime.now(UTC))
    before, kept = rounds.state.proposal(prepared.run, 1), rounds.state.aggregate(prepared.run, 1)
    assert before is not None
    assert kept is not None
    rounds._known_aggregate = lambda step, *, now: None  # type: ignore[method-assign]  as when a recipient was revoked
    digest, _ = rounds._aggregate(Step(run=prepared.run, round=1, kind="train"), [], now=datetime.now(UTC))
    assert digest != kept[0]
    assert rounds.state.proposal(prepared.run, 1) == before
