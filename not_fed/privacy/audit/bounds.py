"""Lower bounds on epsilon from how many canaries an attacker told apart in one run. Loads without torch.

Each canary was put in or left out by its own fair coin. The attacker guesses some of the coins; guessing more of them
than a private mechanism allows refutes the claim, at a stated confidence.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import bdtrc, expit, ndtr, ndtri

CONFIDENCE = 0.95
SHARES = (0.05, 0.1, 0.2, 0.4)  # of the canaries that are guessed; fixed before any run
LARGEST_EPSILON = 64.0
STEPS_OF_SEARCH = 40  # halvings: 64 / 2^40


@dataclass(frozen=True, slots=True, kw_only=True)
class Guesses:
    """How the attacker fared at one number of guesses, chosen in advance.

    Attributes:
        tried: guesses made; the canaries in between were left alone.
        right: guesses that were right.
    """

    tried: int
    right: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """Lower bounds on epsilon at one delta and confidence.

    Attributes:
        epsilon: any (epsilon, delta) mechanism; a theorem.
        fdp_epsilon: of the weakest Gaussian trade-off curve that is not refuted, read at delta. A theorem about
            Gaussian curves; against a sampled mechanism, whose curve is not Gaussian, it is an alarm.
    """

    epsilon: float
    fdp_epsilon: float


def plans_of_guesses(canaries: int) -> tuple[tuple[int, int], ...]:
    """How many to call members and how many to call strangers, (top, bottom), fixed by the number of canaries alone.

    >>> plans_of_guesses(1000)[:2]
    ((5, 0), (10, 0))
    """
    tops = sorted({max(1, round(share * canaries)) for share in SHARES})
    return tuple([(top, 0) for top in tops] + [(top, top) for top in tops if 2 * top <= canaries])


def guess(scores: NDArray[np.float64], members: NDArray[np.bool_]) -> tuple[Guesses, ...]:
    """Call the highest scores members and, in half of the plans, as many of the lowest strangers.

    Args:
        scores: one for each canary, shape (canaries,); higher means more likely a member.
        members: the coins, shape (canaries,).
    """
    ranked = members[np.argsort(-scores, kind="stable")]
    found = []
    for top, bottom in plans_of_guesses(len(ranked)):
        right = int(ranked[:top].sum()) + int((~ranked[len(ranked) - bottom :]).sum())
        found.append(Guesses(tried=top + bottom, right=right))
    return tuple(found)


def bounds_of(guesses: Sequence[Guesses], *, canaries: int, delta: float) -> Bounds:
    """The best lower bounds that these guesses give, each tried at its share of the error (Bonferroni).

    Proved by: tests/unit/test_audit_bounds.py::test_a_bound_exceeds_the_truth_no_more_often_than_it_says
    """
    error = (1 - CONFIDENCE) / len(guesses)
    by_epsilon: Refutes = lambda one, epsilon: chance(one, canaries, epsilon, delta) <= error  # noqa: E731
    by_curve: Refutes = lambda one, mu: gaussian_refuted(one, canaries, mu, error)  # noqa: E731
    mu = _largest(guesses, by_curve)
    return Bounds(epsilon=_largest(guesses, by_epsilon), fdp_epsilon=epsilon_of_gaussian(mu, delta=delta))


Refutes = Callable[[Guesses, float], bool]


def _largest(guesses: Sequence[Guesses], refutes: Refutes) -> float:
    """The largest parameter that one of the guesses refutes; 0 if none refutes even that."""
    best = 0.0
    for one in guesses:
        if 2 * one.right <= one.tried or not refutes(one, best):
            continue
        low, high = best, LARGEST_EPSILON
        for _ in range(STEPS_OF_SEARCH):
            middle = (low + high) / 2
            low, high = (middle, high) if refutes(one, middle) else (low, middle)
        best = low
    return best


def chance(one: Guesses, canaries: int, epsilon: float, delta: float) -> float:
    """An upper bound on the chance to guess this well against any (epsilon, delta) mechanism.

    Proved by: tests/unit/test_audit_bounds.py::test_without_delta_the_bound_is_the_one_of_a_biased_coin
    Source: Steinke, Nasr & Jagielski 2023, Privacy Auditing with One (1) Training Run, Theorem 5.2.
    """
    at_least = bdtrc(np.arange(one.right - 1, -2, -1), one.tried, expit(epsilon))  # P[>= right], P[>= right - 1], ...
    drops = np.arange(1, len(at_least))
    slope = float(((at_least[1:] - at_least[0]) / drops).max()) if len(drops) else 0.0
    return min(1.0, float(at_least[0]) + 2 * canaries * delta * max(0.0, slope))


def gaussian_refuted(one: Guesses, canaries: int, mu: float, error: float) -> bool:
    """Whether guessing this well has a chance below `error` under the trade-off curve of N(0, 1) against N(mu, 1).

    Source: Mahloujifar, Melis & Chaudhuri 2024, Auditing f-Differential Privacy in One Run, Algorithm 3.
    """
    right, wrong = error * one.right / canaries, error * (one.tried - one.right) / canaries
    budget = one.tried / canaries
    for left in range(one.right - 1, -1, -1):
        if right + wrong > budget:
            return True
        least_wrong = float(ndtr(ndtri(min(right, 1.0)) - mu))
        if least_wrong <= wrong:
            return False  # neither can grow any more
        right += left / (one.tried - left) * (least_wrong - wrong)
        wrong = least_wrong
    return right + wrong > budget


def epsilon_of_gaussian(mu: float, *, delta: float) -> float:
    """Epsilon at delta of the Gaussian trade-off curve mu.

    Source: Balle & Wang 2018, Improving the Gaussian Mechanism, Theorem 8; Dong, Roth & Su 2022, Corollary 2.13.

    >>> round(epsilon_of_gaussian(1.0, delta=1e-5), 2)
    4.38
    """
    from scipy.stats import norm  # here: whoever only trains starts a second of processor time sooner

    if mu <= 0.0:
        return 0.0

    def excess(epsilon: float) -> float:
        second = epsilon + float(norm.logcdf(-epsilon / mu - mu / 2))
        return float(ndtr(-epsilon / mu + mu / 2)) - math.exp(second) - delta

    low, high = 0.0, 1.0
    if excess(low) <= 0:
        return 0.0
    while excess(high) > 0:
        low, high = high, 2 * high
    for _ in range(STEPS_OF_SEARCH):
        middle = (low + high) / 2
        low, high = (middle, high) if excess(middle) > 0 else (low, middle)
    return low
