"""Epsilon is the known number, never below it, and a calibrated plan never costs more than was asked."""

from __future__ import annotations

import dataclasses
import json
import math
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from not_fed.privacy.accounting import (
    BadPlan,
    DpPlan,
    Epsilon,
    NoisedRelease,
    NoiseOutOfReach,
    PlansDoNotCompose,
    WeakEpsilon,
    compose,
    mechanisms_of,
    plan_dp,
)
from not_fed.privacy.crosscheck import PRV_ERROR, optimistic_epsilon, prv_epsilon
from not_fed.privacy.mechanisms import merged, pld_epsilon
from not_fed.privacy.renyi import renyi_epsilon


def plan(sample_rate: float, noise: float, steps: int, **more: Any) -> DpPlan:  # noqa: ANN401
    settings_ = {"max_grad_norm": 1.0, "divisor": 300.0, "delta": 1e-5} | more
    return DpPlan(sample_rate=sample_rate, noise_multiplier=noise, steps=steps, **settings_)


# (sample rate, noise, steps): epsilon at delta 1e-5 by PLD, from runs of dp-accounting 0.6 outside this code
GOLDEN = {
    "A": ((0.2, 1.0, 25), 7.300),
    "B": ((0.0427, 0.8, 235), 7.093),
    "C": ((0.01, 1.0, 1000), 1.828),
    "D": ((0.001, 0.6, 10_000), 2.456),
    "E": ((1.0, 10.0, 50), 2.943),
    "F": ((0.5, 3.0, 30), 4.235),
}
golden = pytest.mark.parametrize(("mechanism", "expected"), GOLDEN.values(), ids=GOLDEN)


@golden
def test_epsilon_is_the_golden_value(mechanism: tuple[float, float, int], expected: float) -> None:
    assert plan(*mechanism).epsilon().value == pytest.approx(expected, abs=0.005)


@golden
def test_a_second_accountant_agrees(mechanism: tuple[float, float, int], expected: float) -> None:
    """Opacus' PRV is an upper bound at most its own error above the truth."""
    ours, theirs = plan(*mechanism).epsilon().value, prv_epsilon(plan(*mechanism))
    assert theirs is not None
    assert ours <= theirs <= ours + 2 * PRV_ERROR


def test_the_second_accountant_counts_runs_and_releases_and_keeps_nobody_waiting() -> None:
    release = NoisedRelease(name="mean_loss", noise_multiplier=10.0)
    more = plan(0.2, 2.0, 10, runs=3, releases=(release,))
    theirs = prv_epsilon(more)
    assert theirs is not None
    assert more.epsilon().value <= theirs <= more.epsilon().value + 2 * PRV_ERROR
    assert plan(0.2, 2.0, 10, runs=3).epsilon().value < more.epsilon().value
    assert prv_epsilon(plan(0.01, 0.5, 100_000)) is None
    at_tiny_delta = prv_epsilon(plan(0.2, 1.0, 25, delta=1e-12))
    assert at_tiny_delta is None or at_tiny_delta > 0


# sample rate, noise, steps: from the six of the table to the corners of what one plans
MANY = [
    *(mechanism for mechanism, _ in GOLDEN.values()),
    (0.2, 0.771, 10), (0.2, 1.345, 10), (0.2, 2.826, 10), (0.1, 0.681, 20), (0.4, 0.864, 5), (1.0, 1.0, 1),
    (1.0, 30.0, 200), (0.5, 1.0, 2), (0.02, 0.7, 100), (0.05, 0.6, 20), (0.3, 4.0, 100), (0.9, 5.0, 10),
    (0.001, 0.5, 100), (0.1, 10.0, 500), (0.25, 1.5, 40), (0.6, 0.9, 1),
]  # fmt: skip


@pytest.mark.parametrize("mechanism", MANY, ids=str)
def test_epsilon_is_within_half_a_percent_of_an_independent_pld(mechanism: tuple[float, float, int]) -> None:
    """Composed by hand on another grid; and never below what epsilon cannot be below."""
    from dp_accounting.pld import privacy_loss_distribution

    rate, noise, steps = mechanism
    ours = plan(*mechanism).epsilon().value
    one = privacy_loss_distribution.from_gaussian_mechanism(
        noise, sampling_prob=rate, value_discretization_interval=2e-4
    )
    assert ours == pytest.approx(one.self_compose(steps).get_epsilon_for_delta(1e-5), rel=5e-3)
    assert ours >= optimistic_epsilon(plan(*mechanism), grid=2e-4)


@golden
def test_accountants_agree_in_their_order(mechanism: tuple[float, float, int], expected: float) -> None:
    """Renyi accounting is looser than PLD, and not by half."""
    assert expected - 0.005 <= renyi_epsilon(plan(*mechanism)) <= 1.5 * expected


def test_without_sampling_epsilon_is_that_of_one_gaussian() -> None:
    """T steps at rate 1 are one Gaussian with noise / sqrt(T), whose epsilon has a closed form (Balle & Wang 2018)."""
    noise, steps, delta = 10.0, 50, 1e-5
    mu = math.sqrt(steps) / noise

    def normal(x: float) -> float:
        return math.erfc(-x / math.sqrt(2)) / 2

    epsilon = plan(1.0, noise, steps).epsilon().value
    exact = normal(mu / 2 - epsilon / mu) - math.exp(epsilon) * normal(-mu / 2 - epsilon / mu)
    assert exact == pytest.approx(delta, rel=1e-3)


@pytest.mark.parametrize(
    ("epsilon", "sample_rate", "steps", "runs"),
    [
        (8.0, 0.2, 10, 1),
        (3.0, 0.2, 10, 1),
        (1.0, 0.2, 10, 1),
        (3.0, 0.2, 10, 20),
        (0.1, 0.01, 1000, 3),
        (10.0, 1.0, 1, 1),
    ],
)
def test_calibration_never_exceeds_the_target(epsilon: float, sample_rate: float, steps: int, runs: int) -> None:
    """And the next smaller noise would."""
    made = plan_dp(
        epsilon=epsilon, delta=1e-5, sample_rate=sample_rate, steps=steps, max_grad_norm=1.0, divisor=300.0, runs=runs
    )
    assert made.epsilon().value <= epsilon
    less = dataclasses.replace(made, noise_multiplier=made.noise_multiplier - 2e-4)
    assert less.epsilon().value > epsilon


@settings(max_examples=10, deadline=None)
@given(
    epsilon=st.floats(0.3, 10), delta=st.sampled_from([1e-9, 1e-6, 1e-4]), sample_rate=st.floats(0.001, 1),
    steps=st.integers(1, 300), runs=st.integers(1, 5),
)  # fmt: skip
def test_calibration_never_exceeds_any_target(
    epsilon: float, delta: float, sample_rate: float, steps: int, runs: int
) -> None:
    made = plan_dp(
        epsilon=epsilon, delta=delta, sample_rate=sample_rate, steps=steps, max_grad_norm=1.0, divisor=9.0, runs=runs
    )
    assert made.epsilon().value <= epsilon
    assert (made.delta, made.sample_rate, made.steps, made.runs) == (delta, sample_rate, steps, runs)


def test_the_noise_is_what_the_measurements_used() -> None:
    """sigma 1.345 for epsilon 3 and 2.826 for epsilon 1 (q = 0.2, T = 10)."""
    for epsilon, noise in ((8.0, 0.771), (3.0, 1.345), (1.0, 2.826)):
        made = plan_dp(epsilon=epsilon, delta=1e-5, sample_rate=0.2, steps=10, max_grad_norm=1.0, divisor=300.0)
        assert made.noise_multiplier == pytest.approx(noise, abs=1e-3)


def test_runs_compose_to_what_one_long_run_costs() -> None:
    """A federation of five rounds costs more than its first round, and exactly what five times the steps cost."""
    five = plan(0.2, 2.0, 10, runs=5)
    assert five.epsilon() == plan(0.2, 2.0, 50).epsilon() == compose([plan(0.2, 2.0, 10)] * 5)
    assert five.epsilon_after(1) == plan(0.2, 2.0, 10).epsilon()
    assert five.epsilon_after(1).value < five.epsilon_after(3).value < five.epsilon_after(5).value
    assert five.epsilon_after(5) == five.epsilon()


def test_unlike_plans_compose_below_the_sum_of_their_epsilons() -> None:
    plans = [plan(0.2, 1.0, 25), plan(0.1, 1.0, 20), plan(0.05, 2.0, 10), plan(1.0, 10.0, 10)]
    together = compose(plans).value
    apart = [one.epsilon().value for one in plans]
    assert max(apart) < together < sum(apart)


def test_units_do_not_compose() -> None:
    """An epsilon per record and one per person have no sum."""
    person = plan(0.2, 1.0, 25, unit="person", records_per_person=4)
    with pytest.raises(PlansDoNotCompose, match="person and record"):
        compose([plan(0.2, 1.0, 25), person])
    assert compose([person, person]).unit == "person"


def test_a_claim_covers_what_was_repeated_after_a_crash() -> None:
    release = NoisedRelease(name="mean_loss", noise_multiplier=10.0)
    made = plan(0.2, 2.0, 10, releases=(release,))
    claim = made.as_claim(repeated_steps=3, repeated_releases={"mean_loss": 1})
    longer = [plan(0.2, 2.0, 13), plan(1.0, 10.0, 2)]
    assert claim["epsilon"] == compose(longer).value > made.as_claim()["epsilon"]
    assert (claim["repeated_steps"], claim["repeated_releases"], claim["steps"]) == (3, {"mean_loss": 1}, 10)
    for steps, releases in ((-1, {}), (0, {"other": 1}), (0, {"mean_loss": -1})):
        with pytest.raises(BadPlan):
            made.as_claim(repeated_steps=steps, repeated_releases=releases)


def test_merging_in_any_order_gives_the_same_list() -> None:
    parts = [mechanisms_of([plan(0.2, 1.0, 25)]), mechanisms_of([plan(0.1, 1.0, 20)]), ((0.2, 1.0, 5),)]
    assert merged(*parts) == merged(*parts[::-1]) == merged(merged(parts[1], parts[0]), parts[2])
    assert merged(*parts) == ((0.1, 1.0, 20), (0.2, 1.0, 30))
    assert merged() == merged(((0.2, 1.0, 0),)) == ()
    assert pld_epsilon((), delta=1e-5) == 0.0


def test_the_order_of_composition_does_not_matter() -> None:
    plans = [plan(0.2, 1.0, 25), plan(0.1, 1.0, 20), plan(0.2, 1.0, 5)]
    assert compose(plans) == compose(plans[::-1])


def test_composition_needs_one_delta() -> None:
    plans = [plan(0.2, 1.0, 25), plan(0.2, 1.0, 25, delta=1e-6)]
    with pytest.raises(PlansDoNotCompose, match="1e-06, 1e-05"):
        compose(plans)
    with pytest.raises(PlansDoNotCompose):
        compose([])
    with pytest.raises(BadPlan):
        compose(plans, delta=0.0)
    assert compose(plans, delta=1e-5) == plan(0.2, 1.0, 50).epsilon()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("sample_rate", 0.0), ("sample_rate", 1.1), ("sample_rate", math.nan),
        ("sample_rate", "0.1"), ("sample_rate", True),
        ("steps", 0), ("steps", 2.0), ("steps", -1), ("steps", True), ("steps", 10**8),
        ("runs", 0), ("runs", 1.5),
        ("noise_multiplier", 0.0), ("noise_multiplier", -1.0), ("noise_multiplier", 0.1),
        ("noise_multiplier", math.inf),
        ("max_grad_norm", 0.0), ("max_grad_norm", math.inf), ("max_grad_norm", None),
        ("divisor", 0.0), ("divisor", -1.0), ("divisor", math.nan), ("divisor", math.inf),
        ("delta", 0.0), ("delta", 1.0), ("delta", 0.5), ("delta", 1e-15), ("delta", math.nan),
        ("unit", "site"), ("records_per_person", 2), ("records_per_person", 0), ("adjacency", "replace_one"),
    ],
)  # fmt: skip
def test_a_field_out_of_range_is_refused(field: str, value: object) -> None:
    good = plan(0.2, 1.0, 25)
    with pytest.raises(BadPlan, match=field):
        dataclasses.replace(good, **{field: value})  # type: ignore[arg-type]


def test_a_plan_cannot_change() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        plan(0.2, 1.0, 25).noise_multiplier = 0.5  # type: ignore[misc]


def test_an_epsilon_that_protects_next_to_nothing_is_refused_unless_asked_for() -> None:
    wanted = {"delta": 1e-5, "sample_rate": 0.2, "steps": 10, "max_grad_norm": 1.0, "divisor": 300.0}
    with pytest.raises(WeakEpsilon, match="at most 10"):
        plan_dp(epsilon=10.5, **wanted)  # type: ignore[arg-type]
    assert 10 < plan_dp(epsilon=10.5, allow_weak=True, **wanted).epsilon().value <= 10.5  # type: ignore[arg-type]


@pytest.mark.parametrize("epsilon", [0.0, -1.0, math.nan, math.inf, 2000.0])
def test_an_epsilon_that_is_no_budget_is_refused(epsilon: float) -> None:
    with pytest.raises(BadPlan, match="epsilon"):
        plan_dp(epsilon=epsilon, delta=1e-5, sample_rate=0.2, steps=10, max_grad_norm=1.0, divisor=1.0, allow_weak=True)


def test_an_epsilon_out_of_reach_is_refused() -> None:
    with pytest.raises(NoiseOutOfReach):
        plan_dp(epsilon=0.01, delta=1e-12, sample_rate=1.0, steps=1000, max_grad_norm=1.0, divisor=1.0, runs=5)


def test_a_claim_can_be_recomputed_from_its_own_fields() -> None:
    made = plan(0.2, 2.0, 10, runs=3)
    claim = json.loads(json.dumps(made.as_claim()))
    assert set(claim) == {
        "epsilon", "delta", "unit", "adjacency", "accountant", "sample_rate", "steps", "runs", "noise_multiplier",
        "max_grad_norm", "divisor", "noise_added_at", "records_per_person", "releases", "repeated_steps",
        "repeated_releases",
    }  # fmt: skip
    assert (claim["unit"], claim["adjacency"], claim["noise_added_at"]) == ("record", "add_or_remove_one", "site")
    assert claim["accountant"] == "dp-accounting 0.6 PLD 1e-4"
    fields = {field.name: claim[field.name] for field in dataclasses.fields(DpPlan)}
    again = DpPlan(**fields | {"releases": tuple(fields["releases"])})
    assert again == made
    assert again.epsilon().value == claim["epsilon"]


@pytest.mark.parametrize(("value", "said"), [(7.301, "7.31"), (3.0, "3.00"), (0.29, "0.29"), (math.inf, "unbounded")])
def test_epsilon_is_never_said_smaller_than_it_is(value: float, said: str) -> None:
    sentence = str(Epsilon(value=value, delta=1e-5, unit="record", noise_added_at="site"))
    assert sentence == f"epsilon {said} at delta 1e-05 (one record added or removed)"


def test_accounting_loads_and_counts_without_torch() -> None:
    """Also when it computes: a security officer's laptop has no torch."""
    program = """
import sys
from not_fed.privacy.accounting import DpPlan
assert "dp_accounting" not in sys.modules
DpPlan(sample_rate=1.0, steps=1, noise_multiplier=2.0, max_grad_norm=1.0, divisor=1.0, delta=1e-5).epsilon()
print(sorted({"torch", "transformers", "opacus"} & set(sys.modules)))
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout == "[]\n"
