"""What differential privacy costs: a plan fixed before training, and its epsilon. Loads without torch.

The number we report is the privacy loss distribution (PLD) of `dp-accounting`: the tightest bound in use that is still
a bound. Every field of a plan is a public constant; none may be computed from the private records, their number
included.
"""

from __future__ import annotations

import functools
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import ROUND_CEILING, Decimal
from importlib.metadata import version
from typing import Any, Literal, get_args

from not_fed.errors import BudgetError, InputError
from not_fed.privacy.mechanisms import GRID, SEARCH_GRIDS, Mechanisms, in_order, merged, pld_epsilon, smallest_enough

TICKS = 10_000  # noise multipliers have four decimals
LEAST_NOISE, MOST_NOISE = 0.2, 10_000.0  # below, no guarantee is left to state; above, nothing is learnt
WEAKEST_EPSILON = 10.0

Unit = Literal["record", "person"]


class BadPlan(InputError):
    """A setting of the differential privacy plan is not what it should be."""

    code = "dp-plan"


class PlansDoNotCompose(InputError):
    """These plans protect different things, so one epsilon cannot speak for all of them."""

    code = "dp-compose"


class WeakEpsilon(BudgetError):
    """An epsilon this large protects next to nothing."""

    code = "epsilon-weak"


class NoiseOutOfReach(BudgetError):
    """No amount of noise that still lets a model learn reaches this epsilon."""

    code = "epsilon-out-of-reach"


@dataclass(frozen=True, slots=True, kw_only=True)
class Epsilon:
    """A bound, said together with all that it depends on."""

    value: float
    delta: float
    unit: Literal["record", "person", "site"]
    noise_added_at: Literal["site", "coordinator"]

    def __str__(self) -> str:
        """Rounded up, never down.

        >>> print(Epsilon(value=7.301, delta=1e-5, unit="record", noise_added_at="site"))
        epsilon 7.31 at delta 1e-05 (one record added or removed)
        """
        elsewhere = "" if self.noise_added_at == "site" else f", noise at the {self.noise_added_at}"
        return (
            f"epsilon {_two_decimals_up(self.value)} at delta {self.delta:g} "
            f"(one {self.unit} added or removed){elsewhere}"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class NoisedRelease:
    """A number computed from the private records that is let out once in each run, with Gaussian noise.

    Attributes:
        name: which number, such as `mean_loss`.
        noise_multiplier: standard deviation of its noise over its sensitivity to one unit of privacy.
    """

    name: str
    noise_multiplier: float

    def __post_init__(self) -> None:
        require_number("release, noise_multiplier", self.noise_multiplier, least=LEAST_NOISE, most=MOST_NOISE)


@dataclass(frozen=True, slots=True, kw_only=True)
class DpPlan:
    """All that epsilon depends on, fixed before the first step and never derived from the records.

    Args:
        sample_rate: the chance of each unit to join a step, independently of the others and of other steps (Poisson).
        steps: noisy steps of one run; an empty sample is a step too.
        noise_multiplier: standard deviation of the noise over `max_grad_norm`.
        max_grad_norm: the clip, an L2 norm over all trained parameters of one unit's gradient.
        divisor: what the noisy sum is divided by; the batch size one hopes for, never the one that was drawn.
        delta: below one over the number of units.
        runs: how many times the steps are run in all, such as a federation's rounds. Every epsilon covers all of them.
        unit: what neighbouring data sets differ by: one record, or one person with all of their records.
        records_per_person: how many records of a person join a step at most; 1 where the unit is the record.
        releases: numbers that leave with noise, once in each run; epsilon covers them too.
        adjacency: neighbouring data sets differ by one unit added or removed.
    Raises:
        BadPlan: any of it is not a number of the right kind and range.
    """

    sample_rate: float
    steps: int
    noise_multiplier: float
    max_grad_norm: float
    divisor: float
    delta: float
    runs: int = 1
    unit: Unit = "record"
    records_per_person: int = 1
    releases: tuple[NoisedRelease, ...] = ()
    adjacency: Literal["add_or_remove_one"] = "add_or_remove_one"

    def __post_init__(self) -> None:
        require_number("sample_rate", self.sample_rate, above=0.0, most=1.0)
        _require_count("steps", self.steps)
        _require_count("runs", self.runs)
        require_number("noise_multiplier", self.noise_multiplier, least=LEAST_NOISE, most=MOST_NOISE)
        require_number("max_grad_norm", self.max_grad_norm, least=1e-6, most=1e6)
        require_number("divisor", self.divisor, above=0.0, most=1e12)
        require_number("delta", self.delta, least=1e-12, most=1e-2)
        _require_word("unit", self.unit, allowed=get_args(Unit))
        _require_word("adjacency", self.adjacency, allowed=("add_or_remove_one",))
        _require_count("records_per_person", self.records_per_person)
        if self.unit == "record" and self.records_per_person != 1:
            raise BadPlan(
                where="plan, field records_per_person",
                expected="1 where the unit of privacy is the record",
                got=str(self.records_per_person),
                hint="name the column that holds the person; nothing was trained or spent",
            )

    def epsilon(self) -> Epsilon:
        """What all `runs` of the plan cost together.

        Proved by: tests/unit/test_accounting.py::test_epsilon_is_the_golden_value
        Source: Koskela et al. 2020, Computing Tight Differential Privacy Guarantees Using FFT; dp-accounting's PLD.
        """
        return compose([self])

    def epsilon_after(self, runs: int) -> Epsilon:
        """What the first `runs` of the plan's runs cost together."""
        return compose([replace(self, runs=runs)])

    def as_claim(
        self, *, repeated_steps: int = 0, repeated_releases: Mapping[str, int] | None = None
    ) -> dict[str, Any]:
        """The signed statement about this plan: epsilon for all of its runs, and what it was computed from.

        Args:
            repeated_steps: how many steps were started beyond the plan, since a crash had taken others away; the
                ledger counts them. Epsilon covers them.
            repeated_releases: the same for the numbers that leave, by name.
        Proved by: tests/unit/test_accounting.py::test_a_claim_can_be_recomputed_from_its_own_fields,
            tests/unit/test_accounting.py::test_a_claim_covers_what_was_repeated_after_a_crash
        """
        repeated = repeats_of(self, steps=repeated_steps, releases=repeated_releases or {})
        return {
            "epsilon": pld_epsilon(merged(mechanisms_of([self]), repeated), delta=self.delta),
            "delta": self.delta,
            "unit": self.unit,
            "records_per_person": self.records_per_person,
            "adjacency": self.adjacency,
            "accountant": accountant(),
            "sample_rate": self.sample_rate,
            "steps": self.steps,
            "runs": self.runs,
            "repeated_steps": repeated_steps,
            "repeated_releases": dict(sorted((repeated_releases or {}).items())),
            "noise_multiplier": self.noise_multiplier,
            "max_grad_norm": self.max_grad_norm,
            "divisor": self.divisor,
            "noise_added_at": "site",
            "releases": [{"name": one.name, "noise_multiplier": one.noise_multiplier} for one in self.releases],
        }


def accountant() -> str:
    """Name, version and grid of what computes epsilon."""
    release = ".".join(version("dp-accounting").split(".")[:2])
    return f"dp-accounting {release} PLD 1e-4"


def compose(plans: Sequence[DpPlan], *, delta: float | None = None) -> Epsilon:
    """What all these plans cost together when each of them trains on the same records.

    Args:
        plans: at least one; all were fixed before the first of them started. (Choosing the next plan after looking at
            the last one's result needs a privacy filter, which this is not.)
        delta: of the composition; without it, the one that all plans name.
    Raises:
        PlansDoNotCompose: no plan, or deltas differ and none was given, or units differ.
        BadPlan: delta is out of range.
    Guarantees: the order of the plans does not change the number.
    Proved by: tests/unit/test_accounting.py::test_the_order_of_composition_does_not_matter
    """
    if not plans:
        raise PlansDoNotCompose(
            where="accounting",
            expected="at least one plan",
            got="none",
            hint="a site that trained nothing spent nothing",
        )
    named = sorted({plan.delta for plan in plans})
    if delta is None and len(named) > 1:
        raise PlansDoNotCompose(
            where="accounting, field delta",
            expected="the same delta in every plan",
            got=", ".join(f"{value:g}" for value in named),
            hint="name the delta of the composition",
        )
    units = sorted({plan.unit for plan in plans})
    if len(units) > 1:
        raise PlansDoNotCompose(
            where="accounting, field unit",
            expected="the same unit of privacy in every plan",
            got=" and ".join(units),
            hint="an epsilon per record says nothing about a person with many; state them apart",
        )
    chosen = named[0] if delta is None else delta
    require_number("delta", chosen, least=1e-12, most=1e-2)
    value = pld_epsilon(mechanisms_of(plans), delta=chosen)
    return Epsilon(value=value, delta=chosen, unit=plans[0].unit, noise_added_at="site")


def plan_dp(
    *,
    epsilon: float,
    delta: float,
    sample_rate: float,
    steps: int,
    max_grad_norm: float,
    divisor: float,
    runs: int = 1,
    unit: Unit = "record",
    records_per_person: int = 1,
    releases: tuple[NoisedRelease, ...] = (),
    allow_weak: bool = False,
) -> DpPlan:
    """The plan with the least noise whose `runs` runs together cost at most `epsilon`.

    Raises:
        BadPlan: a setting is out of range.
        WeakEpsilon: epsilon is above 10 and `allow_weak` is False; a cap on the cap.
        NoiseOutOfReach: not even a noise multiplier of 10,000 gets there.
    Guarantees: `plan.epsilon().value <= epsilon`, computed on the grid that is reported; the noise multiplier is
        rounded up.
    Proved by: tests/unit/test_accounting.py::test_calibration_never_exceeds_the_target
    """
    require_number("epsilon", epsilon, least=1e-3, most=1e3)
    if epsilon > WEAKEST_EPSILON and not allow_weak:
        raise WeakEpsilon(
            where="plan, field epsilon",
            expected=f"at most {WEAKEST_EPSILON:g}",
            got=f"{epsilon:g}",
            hint="choose a smaller epsilon; 1 to 8 is usual, and nothing was trained or spent",
        )

    def plan_with(noise: float) -> DpPlan:
        return DpPlan(
            sample_rate=sample_rate,
            steps=steps,
            noise_multiplier=noise,
            max_grad_norm=max_grad_norm,
            divisor=divisor,
            delta=delta,
            runs=runs,
            unit=unit,
            records_per_person=records_per_person,
            releases=releases,
        )

    def enough(grid: float, ticks: int) -> bool:
        return pld_epsilon(mechanisms_of([plan_with(_noise(ticks))]), delta=delta, grid=grid) <= epsilon

    return plan_with(_noise(_least_ticks(enough, epsilon=epsilon)))


def _least_ticks(enough: Callable[[float, int], bool], *, epsilon: float) -> int:
    """Search on coarse grids, which err on the safe side, and settle it on the grid that is reported."""
    least, most = round(LEAST_NOISE * TICKS), round(MOST_NOISE * TICKS)
    found = most
    while found // 2 >= least and enough(SEARCH_GRIDS[0], found // 2):  # from above: weak noise is slow to account
        found //= 2
    for grid in (*SEARCH_GRIDS, GRID):
        found = smallest_enough(functools.partial(enough, grid), least=least, known=found)
    while not enough(GRID, found):
        if found >= most:
            raise NoiseOutOfReach(
                where="plan, field epsilon",
                expected="an epsilon that noise can reach",
                got=f"{epsilon:g} for these steps, runs and sample rate",
                hint="plan fewer steps or runs, or a smaller sample rate",
            )
        found = min(found + 1, most)
    return found


def _noise(ticks: int) -> float:
    return ticks / TICKS


def mechanisms_of(plans: Sequence[DpPlan]) -> Mechanisms:
    """Equal mechanisms merged and sorted, so that any order gives the same number to the last digit."""
    steps: Counter[tuple[float, float]] = Counter()
    for plan in plans:
        steps[float(plan.sample_rate), float(plan.noise_multiplier)] += plan.steps * plan.runs
        for release in plan.releases:
            steps[1.0, float(release.noise_multiplier)] += plan.runs
    return in_order(steps)


def repeats_of(plan: DpPlan, *, steps: int, releases: Mapping[str, int]) -> Mechanisms:
    """What was started beyond the plan.

    Raises:
        BadPlan: a number is negative, or a release is not the plan's.
    """
    noises = {release.name: release.noise_multiplier for release in plan.releases}
    for name, count in {"repeated_steps": steps, **releases}.items():
        if count < 0 or (name != "repeated_steps" and name not in noises):
            raise BadPlan(
                where="plan, what was repeated", expected="the plan's own steps and releases, counted from 0",
                got=f"{count} of one kind", hint="the ledger counts them: Reservation.repeated_steps",
            )  # fmt: skip
    counted: Counter[tuple[float, float]] = Counter({(float(plan.sample_rate), float(plan.noise_multiplier)): steps})
    for name, count in releases.items():
        counted[1.0, float(noises[name])] += count
    return in_order(counted)


def _two_decimals_up(value: float) -> str:
    if not math.isfinite(value):
        return "unbounded"
    return str(Decimal(repr(value)).quantize(Decimal("0.01"), rounding=ROUND_CEILING))


def require_number(
    field: str, value: object, *, above: float = -math.inf, least: float = -math.inf, most: float
) -> None:
    """Raise BadPlan unless the value is a number in the range."""
    bound = f"above {above:g}" if above > -math.inf else f"at least {least:g}"
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not (is_number and value > above and value >= least and value <= most):  # type: ignore[operator]  # NaN fails
        raise BadPlan(
            where=f"plan, field {field}",
            expected=f"a number {bound} and at most {most:g}",
            got=repr(value) if is_number else type(value).__name__,
            hint="nothing was trained or spent",
        )


def _require_count(field: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= 10**7:
        raise BadPlan(
            where=f"plan, field {field}",
            expected="a whole number from 1 to 10,000,000",
            got=repr(value) if isinstance(value, (int, float)) else type(value).__name__,
            hint="nothing was trained or spent",
        )


def _require_word(field: str, value: object, *, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise BadPlan(
            where=f"plan, field {field}",
            expected=" or ".join(allowed),
            got=value if isinstance(value, str) else type(value).__name__,
            hint="the engine clips once per unit and accounts for no other promise",
        )
