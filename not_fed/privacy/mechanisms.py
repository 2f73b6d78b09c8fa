"""What was done to the records, as (sample rate, noise, steps), and what that costs by privacy loss distributions.

Loads without torch, and without SciPy until something is computed.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable

GRID = 1e-4  # of privacy losses; the reported number. Coarser grids are valid too, and only looser: they guide searches
SEARCH_GRIDS = (1e-2, 1e-3)

Mechanisms = tuple[tuple[float, float, int], ...]  # (sample_rate, noise_multiplier, steps) each


def merged(*parts: Mechanisms) -> Mechanisms:
    """The composition of all of them: one canonical list, whatever the order of the parts."""
    steps: Counter[tuple[float, float]] = Counter()
    for part in parts:
        for sample_rate, noise, count in part:
            steps[sample_rate, noise] += count
    return in_order(steps)


def in_order(steps: Counter[tuple[float, float]]) -> Mechanisms:
    """Counted mechanisms as the one canonical list; what was never done is not in it."""
    return tuple((sample_rate, noise, count) for (sample_rate, noise), count in sorted(steps.items()) if count)


def pld_epsilon(mechanisms: Mechanisms, *, delta: float, grid: float = GRID) -> float:
    """Epsilon of a composition by the privacy loss distribution, an upper bound; 0 for nothing.

    Args:
        grid: of privacy losses; a coarser one than what is reported is quicker and looser, and still a bound.

    Proved by: tests/unit/test_accounting.py::test_epsilon_is_within_half_a_percent_of_an_independent_pld
    """
    return _pld_epsilon(mechanisms, delta=delta, grid=grid) if mechanisms else 0.0


@functools.lru_cache(maxsize=256)
def _pld_epsilon(mechanisms: Mechanisms, *, delta: float, grid: float) -> float:
    # imported here: a second of SciPy that `--help` and a security officer's laptop do not need
    from dp_accounting import dp_event, pld
    from dp_accounting.privacy_accountant import NeighboringRelation

    account = pld.PLDAccountant(NeighboringRelation.ADD_OR_REMOVE_ONE, value_discretization_interval=grid)
    for sample_rate, noise, steps in mechanisms:
        event = dp_event.GaussianDpEvent(noise)
        if sample_rate < 1.0:
            event = dp_event.PoissonSampledDpEvent(sample_rate, event)
        account.compose(dp_event.SelfComposedDpEvent(event, steps))
    return max(0.0, float(account.get_epsilon(delta)))


def smallest_enough(enough: Callable[[int], bool], *, least: int, known: int) -> int:
    """The smallest number that is enough, looking below `known` in growing strides and then by halving."""
    low, high, stride = least - 1, known, 1
    while high - stride > low and enough(high - stride):
        high, stride = high - stride, stride * 4
    low = max(low, high - stride)
    while high - low > 1:
        middle = (low + high) // 2
        if enough(middle):
            high = middle
        else:
            low = middle
    return high
