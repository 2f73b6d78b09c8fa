"""A recorded audit beside its claim: what passed in training fits, what cannot be is named."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from not_fed.privacy.accounting import DpPlan
from not_fed.privacy.audit.probe import AuditAlarm, Probe
from not_fed.privacy.audit.verdict import Recorded, foresee, judge
from not_fed.privacy.dp_sgd import noisy_gradient
from not_fed.privacy.randomness import OperatingSystem

PLAN = DpPlan(sample_rate=0.2, steps=10, noise_multiplier=1.345, max_grad_norm=0.5, divisor=7.0, delta=1e-5)
RIGHT = Recorded(
    epsilon_lower_bound=0.81, canaries=5000, fdp_epsilon_lower_bound=1.0, noise_ratio=1.003, steps=10
)  # fmt: skip


def attacked(plan: DpPlan, *, noise: float) -> Probe:
    """A run whose noise is a multiple of the plan's."""
    probe, shape = Probe({"w": (200, 200)}, plan=plan, source=OperatingSystem()), {"w": torch.zeros(200, 200).double()}
    for _ in range(plan.steps):
        probe.draw(5)
        sums = {name: total.clone() for name, total in shape.items()}
        probe.add_to(sums)
        weaker = replace(plan, noise_multiplier=noise * plan.noise_multiplier)
        probe.saw(noisy_gradient(sums, plan=weaker, source=OperatingSystem()))
    return probe


@pytest.mark.parametrize("steps", [1, 2, 7])
def test_an_audit_that_passed_in_training_fits_its_claim(steps: int) -> None:
    plan = replace(PLAN, steps=steps)
    for _ in range(10):
        found = attacked(plan, noise=1.0).result()
        recorded = Recorded(**{name: found[name] for name in Recorded.__slots__ if name in found})
        assert judge(recorded, epsilon=3.0, plan=plan).contradictions == ()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"epsilon_lower_bound": 3.1}, "epsilon was at least 3.10"),
        ({"epsilon_lower_bound": 2.5}, "its bound is 2.50 where 1.77 is the most"),
        ({"fdp_epsilon_lower_bound": 2.9}, "its f-DP bound is 2.90"),
        ({"noise_ratio": 0.93}, "noise was 0.930 times"),
        ({"steps": 9}, "9 steps where the claim has 10"),
        ({"canaries": 1 << 40}, "1,099,511,627,776 canaries"),
        ({"contradicts": True}, "its own verdict"),
    ],
)
def test_what_cannot_be_if_the_claim_is_true_is_named(change: dict[str, float], said: str) -> None:
    assert judge(RIGHT, epsilon=3.0, plan=PLAN).contradictions == ()
    (found,) = [one for one in judge(replace(RIGHT, **change), epsilon=3.0, plan=PLAN).contradictions if said in one]  # type: ignore[arg-type]
    assert found


def test_an_audit_without_steps_is_held_against_epsilon_alone() -> None:
    old = Recorded(epsilon_lower_bound=2.9, canaries=100)
    assert judge(old, epsilon=3.0, plan=PLAN).contradictions == ()
    assert judge(old, epsilon=3.0, plan=PLAN).expected is None
    assert judge(old, epsilon=2.8, plan=PLAN).contradictions == ("epsilon was at least 2.90",)


def test_what_is_foreseen_is_what_the_probe_finds(monkeypatch: pytest.MonkeyPatch) -> None:
    expected, rows = foresee(PLAN, canaries=5000)
    seen = {row.does: row for row in rows}
    assert seen["what the plan says"].seen_by == ()
    assert "guessing" in seen["no noise"].seen_by
    assert "noise" in seen["half the noise"].seen_by
    assert "sampling" in seen["every unit in every step"].seen_by
    assert expected.typical == seen["what the plan says"].bounds
    with pytest.raises(AuditAlarm, match="noise"):
        attacked(PLAN, noise=0.5)
    monkeypatch.setattr(Probe, "_require_noise", lambda probe, *_, **__: None)
    for does, noise in (("what the plan says", 1.0), ("half the noise", 0.5), ("a quarter of the noise", 0.25)):
        found = attacked(PLAN, noise=noise).measure().bounds
        assert found.epsilon == pytest.approx(seen[does].bounds.epsilon, rel=0.35)
