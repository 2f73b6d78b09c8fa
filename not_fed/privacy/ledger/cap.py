"""The hard stop: whether one more plan stays within a budget, and what would.

Whoever plans the next run has seen what the last one made, so a composition theorem for plans that were fixed in
advance does not speak for them. A privacy filter does (Rogers et al. 2016, Privacy Odometers and Filters): at one
Renyi order, fixed before anything was spent, divergences may be added up while each next one is chosen freely, as
long as a sum that exceeds the bound is refused (Feldman & Zrnic 2021, Individual Privacy Accounting via a Renyi
Filter, theorem 4.5; Lecuyer 2021, Practical Privacy Filters and Odometers with Renyi DP, theorem 1).

The rule, with B the divergence at which that order implies the budget's epsilon at its delta:

* A plan whose own divergence is within B is part of the filter: the sum of everything, with it, may not exceed B.
* The very first plan may exceed B if its PLD epsilon is within the budget. Nothing can ever follow it: every later sum
  exceeds B. Since nothing is chosen after it, PLD speaks for it exactly. Steps repeated after crashes are more steps of
  the same noise; stopping such a sequence early is post-processing of running it to its longest, so PLD of the longest
  speaks for them, too. Releases are not repeated here: whether steps or releases use up the rest would be a choice
  made after results, and no one sequence is the longest of both.

Which of the two applies is decided by the first plan's public constants and the budget alone, before any result, so the
whole is (epsilon, delta)-differentially private under either. The second exists because the filter is the looser
count by about a third at a full budget, and most sites plan one run and no other.

A budget raised later is a decision by a person who may have seen results; the guarantee is then that of the largest
budget that this person would have given in any case. Its order stays.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace

from not_fed.privacy.accounting import LEAST_NOISE, MOST_NOISE, TICKS, DpPlan, mechanisms_of
from not_fed.privacy.mechanisms import GRID, SEARCH_GRIDS, Mechanisms, merged, pld_epsilon, smallest_enough
from not_fed.privacy.renyi import choose_order, divergence_within, renyi_divergence

_LEAST_TICKS, _MOST_TICKS = round(LEAST_NOISE * TICKS), round(MOST_NOISE * TICKS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cap:
    """A budget as it is enforced.

    Attributes:
        order: of the filter; fixed before anything was spent.
    """

    epsilon: float
    delta: float
    order: int

    @classmethod
    def new(cls, *, epsilon: float, delta: float) -> Cap:
        """A cap over data on which nothing was spent."""
        return cls(epsilon=epsilon, delta=delta, order=choose_order(epsilon, delta))

    @property
    def bound(self) -> float:
        """The divergence that the filter admits; negative if the epsilon is too small for its order and delta."""
        return divergence_within(self.epsilon, delta=self.delta, order=self.order)

    def allows(self, plan: DpPlan, *, repeats: Mechanisms = (), others: Mechanisms = (), grid: float = GRID) -> bool:
        """Whether the plan, and what was repeated of it, may be run after the others.

        Args:
            others: everything else that was ever reserved on these records.
            grid: of PLD; a coarser one refuses a little more.
        Proved by: tests/unit/test_cap.py::test_the_filter_never_admits_more_than_its_bound,
            tests/unit/test_cap.py::test_a_first_plan_may_use_all_of_the_budget_by_pld_and_nothing_follows,
            tests/unit/test_cap.py::test_a_plan_that_pld_alone_admits_may_repeat_steps_and_not_choose_what_it_repeats
        """
        planned = mechanisms_of([plan])
        if not others and renyi_divergence(planned, order=self.order) > self.bound:
            if any(one[:2] != (plan.sample_rate, plan.noise_multiplier) for one in repeats):
                return False
            return pld_epsilon(merged(planned, repeats), delta=self.delta, grid=grid) <= self.epsilon
        return renyi_divergence(merged(others, planned, repeats), order=self.order) <= self.bound


@dataclass(frozen=True, slots=True, kw_only=True)
class Fits:
    """What of a plan a budget still covers.

    Attributes:
        quieter: the same plan with the least noise that is allowed; None if no noise is enough.
        shorter: the same plan with the most steps that are allowed; None if not even one.
    """

    quieter: DpPlan | None
    shorter: DpPlan | None

    def __str__(self) -> str:
        """One sentence, as a hint."""
        ways = []
        if self.quieter is not None:
            cost = self.quieter.epsilon()
            ways.append(f"the same steps with noise_multiplier {self.quieter.noise_multiplier:g} ({cost})")
        if self.shorter is not None:
            ways.append(f"{self.shorter.steps} steps with the noise as planned ({self.shorter.epsilon()})")
        return f"what would fit: {', or '.join(ways)}" if ways else "no plan with this sample rate fits any more"


def least_noise(plan: DpPlan, *, caps: tuple[Cap, ...], others: Mechanisms = ()) -> DpPlan | None:
    """The plan with about the least noise that every cap allows; None if no noise is enough.

    Guarantees: as `what_fits`.
    """

    def allowed(grid: float, ticks: int) -> bool:
        changed = replace(plan, noise_multiplier=ticks / TICKS)
        return all(cap.allows(changed, others=others, grid=grid) for cap in caps)

    ticks = _smallest(allowed, least=_LEAST_TICKS, most=_MOST_TICKS)
    return None if ticks is None else replace(plan, noise_multiplier=ticks / TICKS)


def what_fits(plan: DpPlan, *, caps: tuple[Cap, ...], others: Mechanisms = ()) -> Fits:
    """About the least noise with the plan's steps, and the most steps with its noise, that every cap allows.

    Guarantees: every cap allows them. How near the least and the most they are is a matter of speed: within a few ticks
        at usual budgets.

    Proved by: tests/unit/test_cap.py::test_what_fits_is_allowed_and_the_next_one_is_not
    """

    def allowed(grid: float, changed: DpPlan) -> bool:
        return all(cap.allows(changed, others=others, grid=grid) for cap in caps)

    def without(steps: int) -> DpPlan:
        return replace(plan, steps=plan.steps - steps)

    dropped = _smallest(lambda grid, at: allowed(grid, without(at)), least=0, most=plan.steps - 1)
    return Fits(
        quieter=least_noise(plan, caps=caps, others=others), shorter=None if dropped is None else without(dropped)
    )


def _smallest(enough: Callable[[float, int], bool], *, least: int, most: int) -> int | None:
    """The smallest number that is enough on a coarse grid, which is the safe side, confirmed on the reported one.

    Each look at the reported grid takes seconds; searching on it would sharpen the noise by a few ticks.
    """
    if not enough(SEARCH_GRIDS[-1], most):
        return most if enough(GRID, most) else None
    known = most
    for grid in SEARCH_GRIDS:
        while known // 2 >= least and known > least and enough(grid, known // 2):
            known //= 2
        known = smallest_enough(functools.partial(enough, grid), least=least, known=known)
    return next((number for number in range(known, most + 1) if enough(GRID, number)), None)
