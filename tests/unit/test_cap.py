"""The hard stop admits what its theorem covers and no more."""

from __future__ import annotations

import functools
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from not_fed.privacy.accounting import DpPlan, NoisedRelease, mechanisms_of, plan_dp
from not_fed.privacy.ledger.cap import Cap, what_fits
from not_fed.privacy.mechanisms import Mechanisms, merged, pld_epsilon
from not_fed.privacy.renyi import epsilon_from, renyi_divergence

CAP = Cap.new(epsilon=8.0, delta=1e-5)


@functools.cache
def planned(epsilon: float, *, rate: float = 0.2, steps: int = 10) -> DpPlan:
    return plan_dp(epsilon=epsilon, delta=1e-5, sample_rate=rate, steps=steps, max_grad_norm=1.0, divisor=300.0)


def test_a_first_plan_may_use_all_of_the_budget_by_pld_and_nothing_follows() -> None:
    """At epsilon 8 of 8 by PLD the filter would say 9.8 and refuse; PLD speaks for a plan that stays alone."""
    full = planned(8.0)
    assert renyi_divergence(mechanisms_of([full]), order=CAP.order) > CAP.bound
    assert CAP.allows(full)
    assert not CAP.allows(planned(8.1))
    smallest = DpPlan(sample_rate=1e-6, steps=1, noise_multiplier=10_000, max_grad_norm=1, divisor=1, delta=1e-5)
    assert not CAP.allows(smallest, others=mechanisms_of([full]))
    assert not CAP.allows(full, others=mechanisms_of([smallest]))


def test_a_run_of_three_leaves_room_for_another_under_eight() -> None:
    others: Mechanisms = ()
    admitted = 0
    while CAP.allows(planned(3.0), others=others):
        others = merged(others, mechanisms_of([planned(3.0)]))
        admitted += 1
    assert admitted == 6
    assert pld_epsilon(others, delta=1e-5) == pytest.approx(7.1, abs=0.3)


def test_a_plan_that_pld_alone_admits_may_repeat_steps_and_not_choose_what_it_repeats() -> None:
    """Of more of the same steps the longest sequence speaks; of a choice between steps and releases none does."""
    quiet = replace(planned(7.5), releases=(NoisedRelease(name="mean_loss", noise_multiplier=10.0),))
    assert renyi_divergence(mechanisms_of([quiet]), order=CAP.order) > CAP.bound
    step, release = (quiet.sample_rate, quiet.noise_multiplier, 1), (1.0, 10.0, 1)
    assert pld_epsilon(merged(mechanisms_of([quiet]), (release,)), delta=1e-5) < CAP.epsilon
    assert CAP.allows(quiet, repeats=(step,))
    assert not CAP.allows(quiet, repeats=(release,))
    assert not CAP.allows(quiet, repeats=(step, release))
    small = replace(planned(3.0), releases=quiet.releases)
    assert CAP.allows(small, repeats=((0.2, small.noise_multiplier, 1), release))  # under the filter: any


def test_repeats_of_a_plan_that_pld_alone_admits_end_at_the_budget() -> None:
    plan = planned(7.9)
    assert renyi_divergence(mechanisms_of([plan]), order=CAP.order) > CAP.bound
    once = ((plan.sample_rate, plan.noise_multiplier, 1),)
    assert not CAP.allows(plan, repeats=once)
    roomy = replace(CAP, epsilon=8.3)
    assert roomy.allows(plan, repeats=once)
    assert not roomy.allows(plan, repeats=once, others=((1e-6, 10_000.0, 1),))


def test_repeats_of_a_plan_within_the_filter_stay_within_the_filter() -> None:
    """Its branch was decided by its first constants; PLD does not rescue what came of them."""
    plan = planned(5.5)
    assert renyi_divergence(mechanisms_of([plan]), order=CAP.order) <= CAP.bound
    most = next(
        count for count in range(1, 50)
        if not CAP.allows(plan, repeats=((plan.sample_rate, plan.noise_multiplier, count),))
    )  # fmt: skip
    beyond = merged(mechanisms_of([plan]), ((plan.sample_rate, plan.noise_multiplier, most),))
    assert renyi_divergence(beyond, order=CAP.order) > CAP.bound
    assert pld_epsilon(beyond, delta=1e-5) < 8.0


@settings(max_examples=12, deadline=None)
@given(
    plans=st.lists(
        st.tuples(st.sampled_from([0.01, 0.1, 0.5, 1.0]), st.sampled_from([0.7, 1.0, 3.0, 8.0]), st.integers(1, 20)),
        min_size=2, max_size=6,
    )
)  # fmt: skip
def test_the_filter_never_admits_more_than_its_bound(plans: list[tuple[float, float, int]]) -> None:
    """Whatever is tried in whatever order, all that was admitted is within the budget by PLD and by the filter."""
    cap = Cap.new(epsilon=4.0, delta=1e-5)
    others: Mechanisms = ()
    for rate, noise, steps in plans:
        plan = DpPlan(sample_rate=rate, steps=steps, noise_multiplier=noise, max_grad_norm=1, divisor=1, delta=1e-5)
        if cap.allows(plan, others=others):
            others = merged(others, mechanisms_of([plan]))
            used = renyi_divergence(others, order=cap.order)
            assert used <= cap.bound or others == mechanisms_of([plan])
    assert pld_epsilon(others, delta=1e-5) <= 4.0


@pytest.mark.parametrize("others", [(), ((0.2, 1.345, 10),), ((0.2, 1.0, 8), (1.0, 10.0, 1))], ids=str)
def test_what_fits_is_allowed_and_the_next_one_is_not(others: Mechanisms) -> None:
    wanted = DpPlan(sample_rate=0.2, steps=20, noise_multiplier=0.7, max_grad_norm=1, divisor=1, delta=1e-5)
    fits = what_fits(wanted, caps=(CAP,), others=others)
    assert fits.quieter is not None
    assert fits.shorter is not None
    assert CAP.allows(fits.quieter, others=others)
    assert not CAP.allows(replace(fits.quieter, noise_multiplier=fits.quieter.noise_multiplier - 2e-3), others=others)
    assert CAP.allows(fits.shorter, others=others)
    assert not CAP.allows(replace(fits.shorter, steps=fits.shorter.steps + 1), others=others)
    assert f"noise_multiplier {fits.quieter.noise_multiplier:g}" in str(fits)
    assert f"{fits.shorter.steps} steps" in str(fits)


def test_where_nothing_fits_that_is_said() -> None:
    full = mechanisms_of([planned(8.0)])
    fits = what_fits(planned(1.0), caps=(CAP,), others=full)
    assert (fits.quieter, fits.shorter) == (None, None)
    assert str(fits) == "no plan with this sample rate fits any more"


def test_several_caps_all_have_to_allow() -> None:
    tight = Cap.new(epsilon=1.0, delta=1e-5)
    fits = what_fits(planned(3.0), caps=(CAP, tight))
    assert fits.quieter is not None
    assert fits.quieter.epsilon().value <= 1.0


def test_the_filters_count_is_never_below_pld() -> None:
    """What is enforced is an upper bound of what is reported, wherever both count the same."""
    for rate, noise, steps in ((0.2, 1.345, 10), (0.01, 1.0, 1000), (1.0, 10.0, 50), (0.5, 3.0, 30)):
        used = renyi_divergence(((rate, noise, steps),), order=4)
        assert epsilon_from(used, delta=1e-5, order=4) >= pld_epsilon(((rate, noise, steps),), delta=1e-5)
