"""What a plan that protects single records means for somebody with several. Loads without torch."""

from __future__ import annotations

import math

from not_fed.privacy.accounting import DpPlan, Epsilon, mechanisms_of, require_number

GRID = 1e-2  # of privacy losses: a mixture costs seconds here and minutes on a finer one, for the same three digits
MOST_RECORDS = 16


def group_epsilon(plan: DpPlan, *, records: int) -> Epsilon:
    """Epsilon of all the plan's runs for a person with this many records, each sampled on its own.

    Args:
        plan: of unit record.
        records: of that one person; how many a person at hand has is private. Above 16 the answer is "unbounded",
            which is true, and nobody needs to wait for it.
    Returns:
        unit person. In a step the person's records join by a binomial law, and each moves the sum by at most one clip:
        a mixture of Gaussians. Far below what `records` times epsilon would say of the probabilities, and far above
        the epsilon of a record.
    Raises:
        BadPlan: the plan already protects people, or no number of records.
    Proved by: tests/unit/test_groups.py::test_a_person_with_many_records_is_hardly_protected_by_an_epsilon_per_record
    Source: dp-accounting's mixture-of-Gaussians loss distribution.
    """
    from dp_accounting import dp_event, pld
    from dp_accounting.privacy_accountant import NeighboringRelation

    require_number("records", records, least=1, most=1e9)
    require_number("records_per_person of a plan per record", plan.records_per_person, least=1, most=1)
    if records > MOST_RECORDS:
        return Epsilon(value=math.inf, delta=plan.delta, unit="person", noise_added_at="site")
    account = pld.PLDAccountant(NeighboringRelation.ADD_OR_REMOVE_ONE, value_discretization_interval=GRID)
    for rate, noise, steps in mechanisms_of([plan]):
        if rate >= 1.0:
            event: dp_event.DpEvent = dp_event.GaussianDpEvent(noise / records)
        else:
            law = [math.comb(records, k) * rate**k * (1 - rate) ** (records - k) for k in range(records + 1)]
            event = dp_event.MixtureOfGaussiansDpEvent(noise, list(range(records + 1)), law)
        account.compose(dp_event.SelfComposedDpEvent(event, steps))
    value = float(account.get_epsilon(plan.delta))
    return Epsilon(value=value, delta=plan.delta, unit="person", noise_added_at="site")
