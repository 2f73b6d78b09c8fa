"""What a passport claims can be computed again from its own fields, and a claim that cannot be is refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from not_fed import canonical
from not_fed.envelope.claims import BadClaim, DpClaim
from not_fed.organ.claims import ClaimTooSmall, check_claim, plan_of, recompute
from not_fed.privacy.accounting import DpPlan, NoisedRelease, compose

PLAN = DpPlan(
    sample_rate=0.2, steps=10, noise_multiplier=1.345, max_grad_norm=1.0, divisor=300.0, delta=1e-5, runs=2,
    unit="person", records_per_person=4, releases=(NoisedRelease(name="mean_loss", noise_multiplier=10.0),),
)  # fmt: skip


def claim_of(plan: DpPlan = PLAN, **changes: Any) -> DpClaim:  # noqa: ANN401
    flat = canonical.loads(canonical.dumps(plan.as_claim() | changes), where="test")  # as a manifest brings it
    claim = DpClaim.from_training({"dp": flat})
    assert claim is not None
    return claim


def test_epsilon_is_recomputed_from_the_signed_fields() -> None:
    assert plan_of(claim_of()) == PLAN
    assert recompute(claim_of()) == PLAN.epsilon()
    record = replace(PLAN, unit="record", records_per_person=1, releases=())
    assert recompute(claim_of(record)) == record.epsilon()
    assert recompute(claim_of(record)).value < recompute(claim_of(replace(record, runs=3))).value


def test_repeated_steps_and_releases_are_recomputed_too() -> None:
    """Each of them alone makes epsilon larger, by what the accountant says of it."""
    repeated = recompute(claim_of(repeated_steps=7))
    assert repeated == compose([PLAN, replace(PLAN, steps=7, runs=1, releases=())])
    assert repeated.value > PLAN.epsilon().value
    assert recompute(claim_of(replace(PLAN, releases=()))).value < PLAN.epsilon().value
    again = recompute(claim_of(repeated_releases={"mean_loss": 5}))
    five = tuple(NoisedRelease(name=f"r{number}", noise_multiplier=10.0) for number in range(5))
    less = replace(PLAN, releases=(*PLAN.releases, *five), runs=1)
    assert again.value == compose([replace(PLAN, runs=1), less]).value


def test_a_claim_below_its_own_mechanism_is_refused() -> None:
    true = PLAN.epsilon().value
    assert check_claim(None) is None
    assert check_claim(claim_of()) == PLAN.epsilon()
    assert check_claim(claim_of(epsilon=true * 1.5)) == PLAN.epsilon()  # weaker than it need be is no lie
    assert check_claim(claim_of(epsilon=true * 0.997)) is not None  # accountants differ that much
    for lie in ({"epsilon": true * 0.99}, {"runs": 3}, {"repeated_steps": 4}, {"noise_multiplier": 1.2},
                {"delta": 1e-6}, {"sample_rate": 0.25}):  # fmt: skip
        with pytest.raises(ClaimTooSmall) as refused:
            check_claim(claim_of(**{"epsilon": true} | lie))
        assert refused.value.exit_code == 6


@pytest.mark.parametrize("mechanism", [{"noise_multiplier": 0.01}, {"noise_multiplier": 1e9}, {"steps": 10**9}])
def test_a_mechanism_beyond_accounting_is_refused(mechanism: dict[str, Any]) -> None:
    with pytest.raises(ClaimTooSmall) as refused:
        check_claim(claim_of(**mechanism))
    assert "beyond accounting" in refused.value.got


def test_a_claim_goes_into_a_manifest_and_comes_back() -> None:
    assert DpClaim.from_training({"dp": claim_of(repeated_steps=3).as_training()}) == claim_of(repeated_steps=3)
    with pytest.raises(BadClaim):
        claim_of(repeated_releases={"another": 1})
