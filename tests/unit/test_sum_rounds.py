"""The coordinator's side of secure sums over several rounds: what one start has bound, and which keys a call uses."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable
from datetime import timedelta
from pathlib import Path

import pytest

from not_fed.coordinator.bank import Bank
from not_fed.coordinator.state import CoordinatorState
from not_fed.coordinator.summing import SumRound, TooFewKeys
from not_fed.envelope.summing import BadSumPaper, RoundKey, SumCall, sign_round_key, verify_round_key
from tests.support.sums import NAMES, NOW, START, Cohort, Party, new_party, plan_of

OTHER_START = hashlib.sha256(b"other start").hexdigest()


@pytest.fixture(scope="module")
def parties() -> dict[str, Party]:
    return {name: new_party(name) for name in NAMES[:4]}


@pytest.fixture
def four(parties: dict[str, Party], tmp_path: Path) -> Cohort:
    return Cohort(plan=plan_of(NAMES[:4], collude=0, vanish=1), parties=parties, folder=tmp_path / "sites")


@pytest.fixture
def state(tmp_path: Path) -> CoordinatorState:
    return CoordinatorState(tmp_path)


def a_round(four: Cohort, state: CoordinatorState, number: int) -> SumRound:
    return SumRound(
        state=state, bank=Bank(four.folder / "bank"), plan=four.plan, roster=four.roster, run="run-1", round=number,
        now=NOW,
    )  # fmt: skip


def offer(four: Cohort, state: CoordinatorState, names: Iterable[str]) -> None:
    for name in names:
        line = four.site(name).offer_key()
        state.offer_key(name, line, sha256=hashlib.sha256(line).hexdigest())


def called(four: Cohort, state: CoordinatorState, number: int, names: str, *, start: str = START) -> SumCall:
    """Those sites offer keys, the call is made, and each takes it, so that its key is used."""
    offer(four, state, names)
    call = a_round(four, state, number).make_call(four.plan.sites, start_sha256=start, parameters=40)
    for name in call.names:
        four.ledgers[name].begin(call, me=name)
    return call


def test_a_start_that_is_tried_again_has_the_same_cohort(four: Cohort, state: CoordinatorState) -> None:
    assert called(four, state, 1, "abc").names == ["a", "b", "c"]
    offer(four, state, "abd")
    again = a_round(four, state, 2)
    assert not again.may_call(four.plan.sites, start_sha256=START, patient=False)
    with pytest.raises(TooFewKeys):
        again.make_call(four.plan.sites, start_sha256=START, parameters=40)
    offer(four, state, "c")
    assert again.may_call(four.plan.sites, start_sha256=START, patient=True)
    assert again.make_call(four.plan.sites, start_sha256=START, parameters=40).names == ["a", "b", "c"]


def test_another_start_has_whoever_is_there(four: Cohort, state: CoordinatorState) -> None:
    called(four, state, 1, "abc")
    assert called(four, state, 2, "abcd", start=OTHER_START).names == ["a", "b", "c", "d"]


def test_the_set_and_the_lost_helpers_of_a_start_are_remembered(four: Cohort, state: CoordinatorState) -> None:
    called(four, state, 1, "abcd")
    state.fix_active("run-1", 1, ["a", "b", "d"])
    state.fix_missing("run-1", 1, ["b"])
    called(four, state, 2, "abcd")
    second = a_round(four, state, 2)
    assert second.bound_set() == ["a", "b", "d"]
    assert second.bound_missing() == ["b"]
    called(four, state, 3, "abcd", start=OTHER_START)
    third = a_round(four, state, 3)
    assert third.bound_set() is None
    assert third.bound_missing() == []


def test_a_call_waits_for_a_cohort_that_bears_the_rule(
    parties: dict[str, Party], state: CoordinatorState, tmp_path: Path
) -> None:
    plan = plan_of(NAMES[:4], collude=1, vanish=1, min_sites=3)  # three sites cannot lose one with one colluding
    four = Cohort(plan=plan, parties=parties, folder=tmp_path / "sites")
    offer(four, state, "abc")
    first = a_round(four, state, 1)
    assert not first.may_call(plan.sites, start_sha256=START, patient=False)
    offer(four, state, "d")
    assert first.may_call(plan.sites, start_sha256=START, patient=False)


def test_a_key_that_ends_too_soon_is_not_used(four: Cohort, state: CoordinatorState) -> None:
    offer(four, state, "abcd")
    party = four.parties["a"]
    known = verify_round_key(four.site("a").offer_key(), site="a", roster=four.roster, now=NOW)
    short = known.model_copy(update={"expires": NOW + timedelta(days=1)})
    line = sign_round_key(short, signer=party.signer)
    state.offer_key("a", line, sha256=hashlib.sha256(line).hexdigest())
    call = a_round(four, state, 1).make_call(four.plan.sites, start_sha256=START, parameters=40)
    assert call.names == ["b", "c", "d"]


@pytest.mark.parametrize("public", [b"\xff" * 1216, bytes(1216)])
def test_a_key_that_nothing_can_be_sealed_to_is_refused(four: Cohort, public: bytes) -> None:
    key = RoundKey(
        v=1, federation="clinics", site="a", number=1, public=base64.b64encode(public).decode(), issued=NOW,
        expires=NOW + timedelta(days=30),
    )  # fmt: skip
    line = sign_round_key(key, signer=four.parties["a"].signer)
    with pytest.raises(BadSumPaper):
        verify_round_key(line, site="a", roster=four.roster, now=NOW)
