"""A row says everything that epsilon depends on, and never less than what was planned."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from not_fed.privacy.accounting import DpPlan, NoisedRelease
from not_fed.privacy.ledger.book import plan_fields, plan_from


@given(
    rate=st.floats(1e-12, 1.0), noise=st.floats(0.2, 10_000.0), release=st.floats(0.2, 10_000.0),
    delta=st.floats(1e-12, 1e-2), norm=st.floats(1e-6, 1e6), steps=st.integers(1, 10**7),
)  # fmt: skip
def test_a_stored_plan_never_costs_less(
    rate: float, noise: float, release: float, delta: float, norm: float, steps: int
) -> None:
    """Noise is rounded down and the rate up; the rest is kept to the last bit. Storing it again changes nothing."""
    plan = DpPlan(
        sample_rate=rate, steps=steps, noise_multiplier=noise, max_grad_norm=norm, divisor=norm, delta=delta,
        releases=(NoisedRelease(name="mean_loss", noise_multiplier=release),),
    )  # fmt: skip
    stored = plan_from(json.loads(json.dumps(plan_fields(plan))))
    assert rate <= stored.sample_rate <= min(1.0, rate + 1e-12)
    assert noise - 1e-9 <= stored.noise_multiplier <= noise
    assert release - 1e-9 <= stored.releases[0].noise_multiplier <= release
    assert (stored.delta, stored.max_grad_norm, stored.divisor, stored.steps) == (delta, norm, norm, steps)
    assert plan_from(plan_fields(stored)) == stored


def test_what_a_person_types_is_stored_as_it_is() -> None:
    plan = DpPlan(
        sample_rate=0.2, steps=10, noise_multiplier=1.345, max_grad_norm=1.0, divisor=300.0, delta=1e-5, runs=3,
        unit="person", records_per_person=4, releases=(NoisedRelease(name="mean_loss", noise_multiplier=10.0),),
    )  # fmt: skip
    assert plan_from(plan_fields(plan)) == plan
    assert plan_fields(plan)["noise_multiplier"] == "1.345"
    assert plan_fields(plan)["sample_rate"] == "0.2"
    tiny = DpPlan(sample_rate=1e-5, steps=1, noise_multiplier=10.0, max_grad_norm=1.0, divisor=1.0, delta=1e-5)
    assert plan_fields(tiny)["sample_rate"] == "0.00001"
    assert plan_fields(tiny)["noise_multiplier"] == "10"
