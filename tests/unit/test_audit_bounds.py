"""Lower bounds on epsilon: they equal what others compute, and they hold as often as they say."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import beta

from not_fed.privacy.audit.bounds import (
    CONFIDENCE,
    Guesses,
    bounds_of,
    epsilon_of_gaussian,
    guess,
    plans_of_guesses,
)

# canaries, guesses, right ones, delta, epsilon, epsilon of f-DP: from jax_privacy 2.0's auditing.py, which is not ours
OTHERS = [
    (1000, 50, 50, 1e-5, 2.7562, 4.0619),
    (1000, 100, 90, 1e-6, 1.6304, 2.7687),
    (5000, 500, 400, 1e-5, 1.1952, 1.6832),
    (5000, 2000, 2000, 1e-5, 6.3670, 11.7825),
    (5000, 4000, 2600, 1e-6, 0.5640, 1.0796),
    (200, 20, 15, 1e-5, 0.1757, 0.2107),
    (10_000, 4000, 4000, 1e-5, 6.9176, 12.8483),
]


@pytest.mark.parametrize(("canaries", "tried", "right", "delta", "epsilon", "fdp"), OTHERS)
def test_bounds_are_those_of_another_implementation(
    canaries: int, tried: int, right: int, delta: float, epsilon: float, fdp: float
) -> None:
    found = bounds_of([Guesses(tried=tried, right=right)], canaries=canaries, delta=delta)
    assert found.epsilon == pytest.approx(epsilon, abs=1e-4)
    assert found.fdp_epsilon == pytest.approx(fdp, abs=1e-4)


@pytest.mark.parametrize(("tried", "right"), [(100, 100), (100, 80), (1000, 700)])
def test_without_delta_the_bound_is_the_one_of_a_biased_coin(tried: int, right: int) -> None:
    """Clopper and Pearson's lower limit of the chance to guess right, as log odds."""
    chance = beta.ppf(1 - CONFIDENCE, right, tried - right + 1)
    found = bounds_of([Guesses(tried=tried, right=right)], canaries=tried, delta=1e-300)
    assert found.epsilon == pytest.approx(math.log(chance / (1 - chance)), abs=1e-6)


def test_guesses_no_better_than_a_coin_bound_nothing() -> None:
    found = bounds_of([Guesses(tried=100, right=50), Guesses(tried=100, right=55)], canaries=1000, delta=1e-5)
    assert (found.epsilon, found.fdp_epsilon) == (0.0, 0.0)


def test_more_plans_of_guesses_cost_confidence() -> None:
    good, idle = Guesses(tried=500, right=400), Guesses(tried=500, right=250)
    alone = bounds_of([good], canaries=5000, delta=1e-5)
    among = bounds_of([good, idle, idle, idle], canaries=5000, delta=1e-5)
    assert 0 < among.epsilon < alone.epsilon
    assert 0 < among.fdp_epsilon < alone.fdp_epsilon


@pytest.mark.parametrize("mu", [0.5, 1.5])
def test_a_bound_exceeds_the_truth_no_more_often_than_it_says(mu: float) -> None:
    """A plain Gaussian mechanism, whose curve is mu exactly: at 95 % confidence, 300 audits exceed it 15 times at most.

    With 28 or more the test would be red by chance once in a thousand. Guessing more than is right makes it red.
    """
    dice, truth, delta = np.random.default_rng(7), epsilon_of_gaussian(mu, delta=1e-3), 1e-3
    exceeded = 0
    for _ in range(300):
        members = dice.random(400) < 0.5
        found = bounds_of(guess(members * mu + dice.normal(size=400), members), canaries=400, delta=delta)
        exceeded += found.epsilon > truth or found.fdp_epsilon > truth
    assert exceeded < 28


def test_the_epsilon_of_a_gaussian_curve_is_that_of_the_accountant() -> None:
    """Once a Gaussian mechanism of noise 1/mu: the accountant's value, from a different computation."""
    from not_fed.privacy.accounting import DpPlan

    for noise in (0.7, 1.0, 4.0):
        plan = DpPlan(sample_rate=1.0, steps=1, noise_multiplier=noise, max_grad_norm=1.0, divisor=1.0, delta=1e-5)
        assert epsilon_of_gaussian(1 / noise, delta=1e-5) == pytest.approx(plan.epsilon().value, abs=2e-3)


def test_guesses_are_planned_by_the_number_of_canaries_alone_and_never_overlap() -> None:
    for canaries in (1, 2, 19, 100, 5000):
        for top, bottom in plans_of_guesses(canaries):
            assert top >= 1
            assert top + bottom <= canaries


def test_the_highest_scores_are_called_members() -> None:
    members = np.array([True] * 10 + [False] * 10)
    perfect = guess(np.linspace(1, 0, 20), members)
    assert all(one.right == one.tried for one in perfect)
    assert all(one.right == 0 for one in guess(np.linspace(0, 1, 20), members))
