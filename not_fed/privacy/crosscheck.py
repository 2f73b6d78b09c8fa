"""Second opinions: an accountant by other people and another method, and a bound from below.

Anyone may believe the number that we report once both agree with it.
"""

from __future__ import annotations

import warnings

import numpy as np

from not_fed.privacy.accounting import DpPlan, mechanisms_of

PRV_ERROR = 0.01  # what Opacus adds to its estimate to make it an upper bound
PRV_MOST_STEPS = 20_000  # beyond, it takes minutes


def prv_epsilon(plan: DpPlan) -> float | None:
    """Upper bound on epsilon of all the plan's runs by Opacus' privacy random variables, PRV_ERROR included.

    Returns:
        None where it has no number to offer: more than 20,000 steps would take it minutes, and at very small deltas
        its floating point errors dominate.
    Proved by: tests/unit/test_accounting.py::test_a_second_accountant_agrees
    Source: Gopi et al. 2021, Numerical Composition of Differential Privacy.
    """
    mechanisms = mechanisms_of([plan])
    if sum(steps for _, _, steps in mechanisms) > PRV_MOST_STEPS:
        return None
    from opacus.accountants import PRVAccountant  # three seconds of imports, torch among them

    accountant = PRVAccountant()
    accountant.history = [(noise, rate, steps) for rate, noise, steps in mechanisms]
    with warnings.catch_warnings(), np.errstate(divide="ignore"):  # log(0) at sample rate 1: minus infinity, as meant
        # the Renyi orders that this is about only choose how wide a domain to compute on
        warnings.filterwarnings("ignore", message="Optimal order is the (largest|smallest) alpha")
        try:
            return float(accountant.get_epsilon(plan.delta, eps_error=PRV_ERROR))
        except (RuntimeError, ValueError):
            return None


def optimistic_epsilon(plan: DpPlan, *, grid: float = 1e-3) -> float:
    """A number that epsilon cannot be below: the privacy loss distribution rounded the other way.

    Proved by: tests/unit/test_accounting.py::test_epsilon_is_within_half_a_percent_of_an_independent_pld
    """
    from dp_accounting.pld import privacy_loss_distribution as pld

    whole = pld.identity(value_discretization_interval=grid, pessimistic_estimate=False)
    for rate, noise, steps in mechanisms_of([plan]):
        one = pld.from_gaussian_mechanism(
            noise,
            sampling_prob=rate,
            value_discretization_interval=grid,
            pessimistic_estimate=False,
            use_connect_dots=False,
        )
        whole = whole.compose(one.self_compose(steps))
    return max(0.0, float(whole.get_epsilon_for_delta(plan.delta)))
