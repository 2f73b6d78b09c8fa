"""What an attacker's success proves: the epsilon that right guesses refute, the bits of a secret that came out."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from not_fed.bench.attack_scores import LEVEL, Bools, Floats

GUESSED = (0.1, 0.25, 1.0)  # parts of the units that are guessed, the surest first; fixed before any score is seen


@dataclass(frozen=True, slots=True, kw_only=True)
class Refuted:
    """The epsilon below which right guesses about one organ would be too good to be luck.

    Attributes:
        epsilon: every smaller epsilon (at `delta`) is refuted with confidence 95 %; 0 refutes nothing.
        most: what it would have been with every guess right: this many guesses cannot show more.
        guesses, right: of the best of the three fixed numbers of guesses.
    """

    epsilon: float
    most: float
    delta: float
    guesses: int
    right: int

    def as_dict(self) -> dict[str, float]:
        """For JSON."""
        return {
            "epsilon": self.epsilon,
            "most": self.most,
            "delta": self.delta,
            "guesses": self.guesses,
            "right": self.right,
            "confidence": LEVEL,
        }


def clopper_pearson(successes: int, trials: int, *, level: float = LEVEL) -> tuple[float, float]:
    """One-sided lower and upper bounds of a chance, each of which holds with `level`.

    >>> [round(bound, 4) for bound in clopper_pearson(10, 10)]
    [0.7411, 1.0]
    """
    from scipy.stats import beta

    low = float(beta.ppf(1 - level, successes, trials - successes + 1)) if successes else 0.0
    high = float(beta.ppf(level, successes + 1, trials - successes)) if successes < trials else 1.0
    return low, high


def refuted_epsilon(scores: Floats, members: Bools, *, delta: float) -> Refuted:
    """The epsilon that right guesses about one organ refute.

    The surest part of the units is guessed "in" from the top and "out" from the bottom. Were the organ epsilon-DP and
    each unit a member by a fair coin of its own, no strategy would be right more often than e^epsilon / (1 + e^epsilon)
    in independent guesses: a Clopper-Pearson bound on the share of right guesses is a bound on epsilon. The three
    numbers of guesses are fixed beforehand and share the 5 %.

    Args:
        scores: of one organ, shape (units,); they may depend on the organ, never on the truth about it.
        members: the truth, by coins that nothing but this organ depends on, shape (units,).
        delta: of the claim. Its part in the chance to be right is taken from the confidence.
    Guarantees:
        under an (epsilon, delta) claim that holds, the result exceeds epsilon with probability at most 5 %.
    Proved by: tests/unit/test_attack_scores.py::test_honest_guesses_seldom_refute_their_epsilon
    Source: Steinke, Nasr and Jagielski 2023, Privacy Auditing with One (1) Training Run (arXiv 2305.08846).
    """
    order = np.argsort(-scores, kind="stable")
    tries = sorted({max(1, round(part * len(scores) / 2)) for part in GUESSED})
    level = (1 - LEVEL) / len(tries)
    found = []
    for each in tries:
        right = int(members[order[:each]].sum() + (~members[order[len(order) - each :]]).sum())
        value, most = (
            _refutes(count, 2 * each, units=len(scores), delta=delta, level=level) for count in (right, 2 * each)
        )
        found.append(Refuted(epsilon=value, most=most, delta=delta, guesses=2 * each, right=right))
    best = max(found, key=lambda one: (one.epsilon, one.guesses))
    return replace(best, most=max(one.most for one in found))


def _refutes(right: int, guesses: int, *, units: int, delta: float, level: float) -> float:
    """The largest epsilon under which so many right guesses have a chance of at most `level`; 0 if there is none."""
    low, _ = clopper_pearson(right, guesses, level=1 - level)
    if low <= 0.5:
        return 0.0
    high = math.log(low / max(1 - low, 1e-300))
    if delta == 0 or _chance(right, guesses, epsilon=high, units=units, delta=delta) <= level:
        return high
    least = 0.0
    if _chance(right, guesses, epsilon=least, units=units, delta=delta) > level:
        return 0.0
    for _ in range(40):
        middle = (least + high) / 2
        least, high = (
            (middle, high)
            if _chance(right, guesses, epsilon=middle, units=units, delta=delta) <= level
            else (least, middle)
        )
    return least


def _chance(right: int, guesses: int, *, epsilon: float, units: int, delta: float) -> float:
    """At most this chance to be right so often, were the organ (epsilon, delta)-DP."""
    from scipy.stats import binom

    share = 1 / (1 + math.exp(-epsilon))
    steps = np.arange(1, right + 1)
    extra = np.cumsum(binom.pmf(right - steps, guesses, share)) / steps
    return float(binom.sf(right - 1, guesses, share) + 2 * units * delta * (extra.max() if right else 0.0))


def exposure(own: float, others: Floats) -> float:
    """How many bits of a secret the organ gives away: candidates that it likes less shrink the search.

    Args:
        own: loss of the text with the planted secret.
        others: losses of the same text with other secrets, none of them planted.
    Returns:
        log2(candidates) - log2(rank): 0 for the last, at most log2(candidates); 1.44 on average by chance. Equal losses
        count as half.
    Source: Carlini et al. 2019, The Secret Sharer (arXiv 1802.08232), section 4.

    >>> exposure(1.0, np.array([2.0, 3.0, 0.5]))
    1.0
    """
    rank = 1 + float((others < own).sum()) + float((others == own).sum()) / 2
    return math.log2(len(others) + 1) - math.log2(rank)


def chance_exposure(secrets: int, candidates: int) -> float:
    """The mean exposure of so many secrets that luck alone stays below in 95 of 100 cases.

    Args:
        candidates: the planted one among them.
    """
    ranks = np.random.default_rng(0).integers(1, candidates + 1, size=(20_000, secrets))
    return float(np.quantile(math.log2(candidates) - np.log2(ranks).mean(axis=1), LEVEL))
