"""A second accountant, by other people and another method: it must agree before anyone believes the first."""

from __future__ import annotations

import warnings

import numpy as np

from not_fed.privacy.accounting import DpPlan

PRV_ERROR = 0.01  # what Opacus adds to its estimate to make it an upper bound


def prv_epsilon(plan: DpPlan) -> float:
    """Upper bound on epsilon of all the plan's runs by Opacus' privacy random variables, PRV_ERROR included.

    Proved by: tests/unit/test_accounting.py::test_a_second_accountant_agrees
    Source: Gopi et al. 2021, Numerical Composition of Differential Privacy.
    """
    from opacus.accountants import PRVAccountant  # three seconds of imports, torch among them

    accountant = PRVAccountant()
    accountant.history = [(plan.noise_multiplier, plan.sample_rate, plan.steps * plan.runs)]
    with warnings.catch_warnings(), np.errstate(divide="ignore"):  # log(0) at sample rate 1: minus infinity, as meant
        # the Renyi orders that this is about only choose how wide a domain to compute on
        warnings.filterwarnings("ignore", message="Optimal order is the (largest|smallest) alpha")
        return float(accountant.get_epsilon(plan.delta, eps_error=PRV_ERROR))
