"""The divergence that a cap is enforced with is the known one, and its order is chosen well."""

from __future__ import annotations

import math

import pytest

from not_fed.privacy.renyi import choose_order, divergence_within, epsilon_from, renyi_divergence


@pytest.mark.parametrize("order", [2, 3, 4, 8, 18, 64])
@pytest.mark.parametrize(
    ("rate", "noise", "steps"), [(0.2, 1.0, 25), (0.01, 0.6, 1000), (0.001, 2.0, 7), (1.0, 5.0, 3), (0.9, 1.0, 2)]
)
def test_the_divergence_is_that_of_dp_accounting(order: int, rate: float, noise: float, steps: int) -> None:
    """Through the epsilon that each implies, at a delta so small that epsilon is positive."""
    from dp_accounting import dp_event, rdp

    event = dp_event.GaussianDpEvent(noise)
    account = rdp.RdpAccountant([order])
    account.compose(dp_event.PoissonSampledDpEvent(rate, event) if rate < 1 else event, steps)
    ours = renyi_divergence(((rate, noise, steps),), order=order)
    assert epsilon_from(ours, delta=1e-9, order=order) == pytest.approx(account.get_epsilon(1e-9), rel=1e-9)


def test_divergences_add_up() -> None:
    whole = renyi_divergence(((0.1, 1.0, 20), (0.2, 1.3, 10)), order=4)
    parts = [renyi_divergence((one,), order=4) for one in ((0.1, 1.0, 20), (0.2, 1.3, 10))]
    assert whole == pytest.approx(sum(parts), rel=1e-12)
    assert renyi_divergence((), order=4) == 0
    assert renyi_divergence(((0.1, 1.0, 40),), order=4) == pytest.approx(2 * parts[0], rel=1e-12)


@pytest.mark.parametrize("epsilon", [0.5, 1.0, 3.0, 8.0])
def test_a_divergence_within_the_bound_implies_the_epsilon(epsilon: float) -> None:
    order = choose_order(epsilon, 1e-5)
    bound = divergence_within(epsilon, delta=1e-5, order=order)
    assert 0 < bound < epsilon
    assert epsilon_from(bound, delta=1e-5, order=order) == pytest.approx(epsilon, rel=1e-12)
    assert epsilon_from(0.0, delta=1e-5, order=order) == 0


KINDS = [(0.01, 1000), (0.0427, 235), (0.1, 20), (0.2, 10), (0.2, 25), (0.5, 30), (1.0, 10)]  # rate, steps
NOISE = {  # with which each costs 3/8 of a budget at delta 1e-5 by PLD: of budget 1, 3, 5, 8, 10
    1.0: (3.03, 6.136, 4.469, 6.227, 9.439, 25.231, 28.955), 3.0: (1.31, 2.404, 1.94, 2.589, 3.671, 9.347, 10.599),
    5.0: (0.988, 1.642, 1.413, 1.811, 2.451, 5.96, 6.681), 8.0: (0.814, 1.219, 1.095, 1.344, 1.744, 3.988, 4.397),
    10.0: (0.751, 1.079, 0.979, 1.177, 1.502, 3.313, 3.616),
}  # fmt: skip


@pytest.mark.parametrize(("epsilon", "order"), [(1.0, 18), (3.0, 8), (5.0, 5), (8.0, 4), (10.0, 3)])
def test_the_chosen_order_wastes_little(epsilon: float, order: int) -> None:
    """Of runs at 3/8 of the budget it admits at least 93 % of what the best order for those very runs admits."""
    assert choose_order(epsilon, 1e-5) == order

    def admitted(mechanism: tuple[float, float, int], at: int) -> float:
        return divergence_within(epsilon, delta=1e-5, order=at) / renyi_divergence((mechanism,), order=at)

    for (rate, steps), noise in zip(KINDS, NOISE[epsilon], strict=True):
        best = max(admitted((rate, noise, steps), at) for at in range(2, 40))
        assert admitted((rate, noise, steps), order) >= 0.93 * best
        assert admitted((rate, noise, steps), order) > 4


def test_the_order_is_found_for_any_budget() -> None:
    for epsilon in (0.001, 0.05, 0.3, 50.0, 1000.0):
        for delta in (1e-12, 1e-9, 1e-2):
            assert math.isfinite(choose_order(epsilon, delta))
