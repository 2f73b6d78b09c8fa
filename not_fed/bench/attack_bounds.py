"""What an attacker's success proves: the epsilon that right guesses refute, the bits of a secret that came out."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from not_fed.bench.attack_scores import LEVEL, Bools, Floats
from not_fed.privacy.audit.bounds import CONFIDENCE, bounds_of, guess


@dataclass(frozen=True, slots=True, kw_only=True)
class Refuted:
    """The epsilon below which right guesses about one organ would be too good to be luck.

    Attributes:
        epsilon: every smaller epsilon at `delta` is refuted with confidence 95 %; 0 refutes nothing.
        most: what it would have been with every guess right: this many units cannot show more.
    """

    epsilon: float
    most: float
    delta: float

    def as_dict(self) -> dict[str, float]:
        """For JSON."""
        return {"epsilon": self.epsilon, "most": self.most, "delta": self.delta, "confidence": CONFIDENCE}


def refuted_epsilon(scores: Floats, members: Bools, *, delta: float) -> Refuted:
    """The epsilon that right guesses about one organ refute: the audit's theorem, with units in place of canaries.

    Args:
        scores: of one organ, shape (units,); they may depend on the organ, never on the truth about it.
        members: the truth, by fair coins that nothing but this organ depends on, shape (units,).
        delta: of the claim.
    Guarantees:
        under an (epsilon, delta) claim that holds, the result exceeds epsilon with probability at most 5 %. Without
        delta it is the Clopper-Pearson bound on the share of right guesses, in the audit's fixed numbers of guesses.
    Proved by: tests/unit/test_attack_scores.py::test_right_guesses_refute_what_their_clopper_pearson_bound_says
    Source: as `not_fed.privacy.audit.bounds`.
    """
    found = bounds_of(guess(scores, members), canaries=len(scores), delta=delta)
    perfect = bounds_of(guess(members.astype(np.float64), members), canaries=len(scores), delta=delta)
    return Refuted(epsilon=found.epsilon, most=perfect.epsilon, delta=delta)


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


def chance_exposure(secrets: int, candidates: int, *, tries: int = 1) -> float:
    """What the mean exposure of so many secrets stays below by luck: in 95 of 100 cases, all tries together.

    Args:
        candidates: the planted one among them.
        tries: how many such means are looked at; each gets its share of the five cases.
    """
    ranks = np.random.default_rng(0).integers(1, candidates + 1, size=(20_000, secrets))
    return float(np.quantile(math.log2(candidates) - np.log2(ranks).mean(axis=1), 1 - (1 - LEVEL) / tries))
