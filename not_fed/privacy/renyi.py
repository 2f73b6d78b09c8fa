"""Renyi divergence of what a plan does, at one order, and the epsilon that follows. Loads without torch and SciPy.

PLD is the number that we report. This is what a cap is enforced with: Renyi divergences of one fixed order add up under
adaptive choice of the next run (`cap.py`), privacy loss distributions do not.
"""

from __future__ import annotations

import functools
import math

from not_fed.privacy.accounting import DpPlan, mechanisms_of
from not_fed.privacy.mechanisms import Mechanisms

ORDERS = range(2, 257)  # whole numbers, since there the divergence of a sampled Gaussian is a finite sum
_ROUNDING = 1 + 1e-12  # of a sum of logarithms; up, since a divergence is a cost


def renyi_divergence(mechanisms: Mechanisms, *, order: int) -> float:
    """Divergence of this order between neighbouring data sets, one unit added or removed; 0 for nothing.

    Guarantees: an upper bound for either direction, linear in the number of steps.
    Proved by: tests/unit/test_renyi.py::test_the_divergence_is_that_of_dp_accounting
    Source: Mironov, Talwar, Zhang 2019, Renyi Differential Privacy of the Sampled Gaussian Mechanism, section 3.3.
    """
    return _ROUNDING * math.fsum(steps * _of_one_step(rate, noise, order) for rate, noise, steps in mechanisms)


def epsilon_from(divergence: float, *, delta: float, order: int) -> float:
    """The epsilon that a divergence of this order implies at delta.

    Source: Canonne, Kamath, Steinke 2020, The Discrete Gaussian for Differential Privacy, proposition 12.
    """
    return max(0.0, divergence + _price(delta, order)) if divergence else 0.0


def divergence_within(epsilon: float, *, delta: float, order: int) -> float:
    """The largest divergence of this order that still implies epsilon at delta; negative when none does."""
    return epsilon - _price(delta, order)


def choose_order(epsilon: float, delta: float) -> int:
    """The order to enforce a budget with: the one under which most of it can be used by plain Gaussian noise.

    Sampled runs compose towards a Gaussian, so it suits them as well: of runs that cost 3/8 of the budget it admits at
    least 93 % of what the best order for those very runs admits (seven kinds of runs, epsilon 1 to 10).
    Guarantees: depends on public constants alone.
    Proved by: tests/unit/test_renyi.py::test_the_chosen_order_wastes_little
    """
    return max(ORDERS, key=lambda order: divergence_within(epsilon, delta=delta, order=order) / order)


def renyi_epsilon(plan: DpPlan) -> float:
    """Epsilon of all the plan's runs by Renyi accounting, the order chosen afterwards: shown beside PLD, never instead.

    Proved by: tests/unit/test_accounting.py::test_accountants_agree_in_their_order
    Source: dp-accounting's RdpAccountant.
    """
    from dp_accounting import dp_event, rdp

    account = rdp.RdpAccountant([*range(2, 65), 96, 128, 256, 512])
    for rate, noise, steps in mechanisms_of([plan]):
        event = dp_event.GaussianDpEvent(noise)
        account.compose(dp_event.PoissonSampledDpEvent(rate, event) if rate < 1 else event, steps)
    return float(account.get_epsilon(plan.delta))


def _price(delta: float, order: int) -> float:
    return math.log1p(-1 / order) - math.log(delta * order) / (order - 1)


@functools.lru_cache(maxsize=4096)
def _of_one_step(rate: float, noise: float, order: int) -> float:
    if rate >= 1.0:
        return order / (2 * noise * noise)
    terms = [
        math.log(math.comb(order, k)) + k * math.log(rate) + (order - k) * math.log1p(-rate)
        + k * (k - 1) / (2 * noise * noise)
        for k in range(order + 1)
    ]  # fmt: skip
    largest = max(terms)
    return max(0.0, largest + math.log(math.fsum(math.exp(term - largest) for term in terms))) / (order - 1)
