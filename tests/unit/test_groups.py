"""What an epsilon per record means for a person who has several."""

from __future__ import annotations

import math

import pytest

from not_fed.privacy.accounting import BadPlan, DpPlan, NoisedRelease
from not_fed.privacy.groups import group_epsilon

PLAN = DpPlan(sample_rate=0.2, steps=10, noise_multiplier=1.345, max_grad_norm=1.0, divisor=300.0, delta=1e-5)


@pytest.mark.parametrize(("records", "expected"), [(1, 3.0), (2, 6.7), (4, 15.4), (8, 37.6)])
def test_a_person_with_many_records_is_hardly_protected_by_an_epsilon_per_record(
    records: int, expected: float
) -> None:  # fmt: skip
    found = group_epsilon(PLAN, records=records)
    assert found.value == pytest.approx(expected, abs=0.05)
    assert (found.unit, found.delta) == ("person", 1e-5)
    assert records > 1 or found.value == pytest.approx(PLAN.epsilon().value, abs=0.01)


def test_nobody_waits_for_a_number_without_meaning() -> None:
    assert group_epsilon(PLAN, records=1000).value == math.inf
    assert str(group_epsilon(PLAN, records=1000)).startswith("epsilon unbounded at delta")


def test_numbers_that_leave_count_for_every_record_too() -> None:
    with_release = DpPlan(
        sample_rate=1.0, steps=1, noise_multiplier=20.0, max_grad_norm=1.0, divisor=300.0, delta=1e-5,
        releases=(NoisedRelease(name="mean_loss", noise_multiplier=20.0),),
    )  # fmt: skip
    alone = DpPlan(sample_rate=1.0, steps=2, noise_multiplier=5.0, max_grad_norm=1.0, divisor=300.0, delta=1e-5)
    assert group_epsilon(with_release, records=4).value == pytest.approx(alone.epsilon().value, rel=1e-2)


def test_a_plan_that_protects_people_needs_no_such_number() -> None:
    with pytest.raises(BadPlan):
        group_epsilon(
            DpPlan(sample_rate=0.2, steps=1, noise_multiplier=1.0, max_grad_norm=1.0, divisor=1.0, delta=1e-5,
                   unit="person", records_per_person=4), records=4,
        )  # fmt: skip
    with pytest.raises(BadPlan):
        group_epsilon(PLAN, records=0)
