"""Whether a recorded audit fits the claim beside it, and what an audit could see at all. Loads without torch."""

from __future__ import annotations

from dataclasses import dataclass

from not_fed.privacy.accounting import DpPlan
from not_fed.privacy.audit.bounds import Bounds
from not_fed.privacy.audit.law import (
    FALSE_ALARM,
    Expected,
    Law,
    expect,
    law_of,
    least_noise_ratio,
    typical_bounds,
    typical_guesses,
)

MOST_CANARIES = 100_000  # beyond, comparing takes for ever; a passport may name any number
ROUNDING = 1e-3  # recorded bounds have four decimals, and libraries of another version may differ in the last


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    """The numbers of an audit, as an author wrote them down; None where an older version had none."""

    epsilon_lower_bound: float
    canaries: int
    fdp_epsilon_lower_bound: float | None = None
    noise_ratio: float | None = None
    steps: int | None = None
    contradicts: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """A recorded audit beside its claim.

    Attributes:
        contradictions: each in words; none where all fits.
        expected: what the claimed mechanism gives, computed here; None where the audit does not say how many steps,
            or is impossible in itself.
        least_noise: the smallest noise ratio that the claimed noise gives, likewise.
    """

    contradictions: tuple[str, ...]
    expected: Expected | None
    least_noise: float | None


def judge(found: Recorded, *, epsilon: float, plan: DpPlan) -> Judgement:
    """Compare what an audit found with what the claimed mechanism can give.

    Args:
        epsilon: the claim.
        plan: the mechanism that it was computed from.
    Guarantees: an audit that a training of ours let pass fits its claim here.
    Proved by: tests/unit/test_audit_verdict.py::test_an_audit_that_passed_in_training_fits_its_claim
    """
    wrong = []
    if found.contradicts:
        wrong.append("its own verdict says so")
    if found.epsilon_lower_bound > epsilon:
        wrong.append(f"epsilon was at least {found.epsilon_lower_bound:.2f}")
    if found.steps is not None and found.steps != plan.steps:
        wrong.append(f"it saw {found.steps:,} steps where the claim has {plan.steps:,}")
    if found.canaries > MOST_CANARIES:
        wrong.append(f"it names {found.canaries:,} canaries, more than anybody can have used")
    if found.steps != plan.steps or found.canaries > MOST_CANARIES:
        return Judgement(contradictions=tuple(wrong), expected=None, least_noise=None)
    expected = expect(plan.sample_rate, plan.noise_multiplier, plan.steps, canaries=found.canaries, delta=plan.delta)
    least_noise = _least_noise(canaries=found.canaries, steps=plan.steps)
    if found.epsilon_lower_bound > expected.at_most.epsilon + ROUNDING:
        wrong.append(f"its bound is {found.epsilon_lower_bound:.2f} where {expected.at_most.epsilon:.2f} is the most")
    fdp = found.fdp_epsilon_lower_bound
    if fdp is not None and fdp > expected.at_most.fdp_epsilon + ROUNDING:
        wrong.append(f"its f-DP bound is {fdp:.2f} where {expected.at_most.fdp_epsilon:.2f} is the most")
    if found.noise_ratio is not None and found.noise_ratio < least_noise:
        wrong.append(f"its noise was {found.noise_ratio:.3f} times the claimed")
    return Judgement(contradictions=tuple(wrong), expected=expected, least_noise=least_noise)


def _least_noise(*, canaries: int, steps: int) -> float:
    """As in training, with room for how many canaries happened to be strangers: six deviations fewer than half."""
    strangers = max(1, int(canaries / 2 - 3 * canaries**0.5))
    return least_noise_ratio(strangers * max(1, steps // 2))


@dataclass(frozen=True, slots=True, kw_only=True)
class Foreseen:
    """What an audit of one run would find if the code did something.

    Attributes:
        does: what the code does.
        bounds: typical lower bounds.
        seen_by: which tests would stop the run.
    """

    does: str
    bounds: Bounds
    seen_by: tuple[str, ...]


def foresee(plan: DpPlan, *, canaries: int) -> tuple[Expected, tuple[Foreseen, ...]]:
    """What the audit of one run of a plan could see: the right code, and ways to break it.

    Proved by: tests/unit/test_audit_verdict.py::test_what_is_foreseen_is_what_the_probe_finds
    """
    expected = expect(plan.sample_rate, plan.noise_multiplier, plan.steps, canaries=canaries, delta=plan.delta)
    least_noise = _least_noise(canaries=canaries, steps=plan.steps)
    rows = []
    for does, rate, noise in (
        ("what the plan says", plan.sample_rate, 1.0),
        ("half the noise", plan.sample_rate, 0.5),
        ("a quarter of the noise", plan.sample_rate, 0.25),
        ("no noise", plan.sample_rate, 0.0),
        ("every unit in every step", 1.0, 1.0),
    ):
        law = law_of(
            sample_rate=plan.sample_rate,
            noise_multiplier=plan.noise_multiplier,
            steps=plan.steps,
            true_rate=rate,
            true_noise=noise * plan.noise_multiplier,
        )
        told = _told_apart(law, canaries=canaries, expected=expected)
        seen = [("guessing", told), ("noise", noise < least_noise), ("sampling", _draws_differ(plan, rate, canaries))]
        rows.append(
            Foreseen(
                does=does,
                bounds=typical_bounds(law, canaries=canaries, delta=plan.delta),
                seen_by=tuple(test for test, is_seen in seen if is_seen),
            )
        )
    return expected, tuple(rows)


def _told_apart(law: Law, *, canaries: int, expected: Expected) -> bool:
    guesses = typical_guesses(law, canaries=canaries)
    return any(one.right > most for one, most in zip(guesses, expected.most_right, strict=True))


def _draws_differ(plan: DpPlan, rate: float, canaries: int) -> bool:
    from scipy.stats import binom

    chances = plan.steps * canaries // 2
    return bool(chances * rate > binom.isf(FALSE_ALARM / 2, chances, plan.sample_rate))
