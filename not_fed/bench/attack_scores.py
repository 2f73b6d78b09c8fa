"""How well an attacker tells members from others: scores from shadow organs, ROC, area. No torch here.

Every number comes with the interval that chance leaves to it, and a conclusion may use the interval alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from not_fed.errors import InputError

LEVEL = 0.95
RESAMPLES = 1000
RATES = (0.01, 0.001)  # false alarms that an attacker who accuses somebody can afford
CURVE_POINTS = 200
LEAST_SHADOWS = 4

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


class TooFewUnits(InputError):
    """There are too few records or people to attack."""

    code = "attack-units"


class BadShadows(InputError):
    """Shadow organs come in pairs, four or more."""

    code = "attack-shadows"


@dataclass(frozen=True, slots=True)
class Interval:
    """A number and where 95 % of resamples put it."""

    value: float
    low: float
    high: float

    def as_dict(self) -> dict[str, float]:
        """For JSON."""
        return {"value": self.value, "ci_low": self.low, "ci_high": self.high}


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """How well scores tell members from others.

    Attributes:
        auc: area under the ROC; 0.5 is chance.
        tpr: by rate of false alarms, the share of members that is found.
        curve: (false positive rate, true positive rate) from (0, 0) to (1, 1).
        others: scores of non-members; a false positive rate below one over this cannot be told from zero.
    """

    auc: Interval
    tpr: dict[float, Interval]
    curve: list[tuple[float, float]]
    members: int
    others: int


def measure(scores: Floats, members: Bools, *, seed: int = 0) -> Found:
    """ROC, area and true positive rates of an attack, with their bootstrap intervals.

    Args:
        scores: higher means "was in the training set", shape (organs, units).
        members: the truth, same shape.
        seed: of the resampling, so that the same scores give the same interval.
    Raises:
        TooFewUnits: no member, or no other, or fewer than two units.
    Guarantees:
        the interval resamples units and, where there are several, pairs of organs as well: scores of one unit, and
        of one organ, hang together.
    Proved by: tests/unit/test_attack_scores.py::test_known_scores_have_the_area_that_can_be_counted_by_hand
    """
    if members.all() or not members.any() or scores.shape[1] < 2:
        raise TooFewUnits(
            where="attack",
            expected="members and non-members, at least two units",
            got=f"{int(members.sum())} members among {members.size} scores",
            hint="give more records",
        )
    organs, units = scores.shape
    order = np.argsort(-scores, axis=None, kind="stable")
    values, truth = scores.ravel()[order], members.ravel()[order]
    ends = np.flatnonzero(np.append(values[1:] != values[:-1], True))  # equal scores move together
    whole = _cumulated(np.ones((1, order.size)), truth, ends)
    samples = _cumulated(_weights(organs, units, seed=seed)[:, order], truth, ends)
    areas = _area(*samples)
    true, false = whole[0][0], whole[1][0]
    return Found(
        auc=_interval(float(_area(*whole)[0]), areas),
        tpr={rate: _interval(float(_tpr(*whole, rate)[0]), _tpr(*samples, rate)) for rate in RATES},
        curve=_thinned(false, true),
        members=int(truth.sum()),
        others=int((~truth).sum()),
    )


def _weights(organs: int, units: int, *, seed: int) -> Floats:
    """How often each score is drawn in each resample: (resamples, organs * units)."""
    random = np.random.default_rng(seed)
    by_unit = random.multinomial(units, np.full(units, 1 / units), size=RESAMPLES)
    pairs = max(1, organs // 2)
    by_pair = random.multinomial(pairs, np.full(pairs, 1 / pairs), size=RESAMPLES)
    by_organ = by_pair[:, np.arange(organs) // 2 % pairs]
    weights: Floats = (by_organ[:, :, None] * by_unit[:, None, :]).reshape(RESAMPLES, -1).astype(np.float64)
    return weights


def _cumulated(weights: Floats, truth: Bools, ends: NDArray[np.intp]) -> tuple[Floats, Floats]:
    """True and false positive rates at each distinct score, from the highest down: (resamples, scores) each."""
    true = np.cumsum(weights * truth, axis=1)[:, ends]
    false = np.cumsum(weights * ~truth, axis=1)[:, ends]
    return true / np.maximum(true[:, -1:], 1e-300), false / np.maximum(false[:, -1:], 1e-300)


def _area(true: Floats, false: Floats) -> Floats:
    width = np.diff(false, axis=1, prepend=0.0)
    height = true - np.diff(true, axis=1, prepend=0.0) / 2
    area: Floats = (width * height).sum(axis=1)
    return area


def _tpr(true: Floats, false: Floats, rate: float) -> Floats:
    """The largest true positive rate among thresholds that keep to the rate of false positives."""
    best: Floats = np.where(false <= rate, true, 0.0).max(axis=1)
    return best


def _interval(value: float, samples: Floats) -> Interval:
    low, high = np.quantile(samples, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(value, float(low), float(high))


def _thinned(false: Floats, true: Floats) -> list[tuple[float, float]]:
    """The curve at evenly spread places, on a logarithmic axis as well."""
    count = len(false)
    places = {round(x) for x in np.linspace(0, count - 1, CURVE_POINTS)}
    places |= {round(x) for x in np.geomspace(1, count, CURVE_POINTS) - 1}
    return [(0.0, 0.0), *((float(false[i]), float(true[i])) for i in sorted(places))]


def lira_scores(statistic: Floats, members: Bools) -> Floats:
    """Likelihood ratios of each organ's statistic under "was in" and "was not in", fitted on shadow organs.

    Every organ is a target in turn. Its shadows are all organs but itself and its partner, which has exactly the other
    units: so each unit is in half of the shadows, and how often it is in them says nothing about the target.

    Args:
        statistic: higher where an organ knows a unit better, shape (organs, units), organs 2j and 2j+1 being partners.
        members: shape (organs, units); partners' rows are each other's negation.
    Returns:
        log-likelihood ratios, shape (organs, units). Each unit has means of its own; the spread around them is shared
        by all units, as the source advises for few shadows.
    Raises:
        BadShadows: fewer than six organs, an odd number, or rows that are not partners.
    Proved by: tests/unit/test_attack_scores.py::test_shadow_organs_find_members_that_one_threshold_cannot
    Source: Carlini et al. 2022, Membership Inference Attacks From First Principles (arXiv 2112.03570), algorithm 1.
    """
    organs = len(statistic)
    if organs % 2 or organs < LEAST_SHADOWS + 2 or bool((members[::2] == members[1::2]).any()):
        raise BadShadows(
            where="attack, shadow organs",
            expected=f"pairs with opposite halves, {LEAST_SHADOWS} shadows or more",
            got=f"{organs - 2} shadows",
            hint="ask for an even number of shadows",
        )
    return np.stack([_against_shadows(statistic, members, target) for target in range(organs)])


def _against_shadows(statistic: Floats, members: Bools, target: int) -> Floats:
    shadows = np.array([row for row in range(len(statistic)) if row // 2 != target // 2])
    known, within = statistic[shadows], members[shadows]
    each = len(shadows) // 2
    score = np.zeros(statistic.shape[1])
    for sign, mask in ((1, within), (-1, ~within)):
        mean = np.where(mask, known, 0.0).sum(axis=0) / each
        spread = np.where(mask, known - mean, 0.0)
        variance = float((spread**2).sum() / max((each - 1) * statistic.shape[1], 1)) + 1e-12
        score -= sign * ((statistic[target] - mean) ** 2 / (2 * variance) + math.log(variance) / 2)
    return score


def centred(statistic: Floats) -> Floats:
    """Each organ's statistic less its median over units: an organ that reads everything better is no evidence."""
    shifted: Floats = statistic - np.median(statistic, axis=1, keepdims=True)
    return shifted


def coin_halves(pairs: int, units: int, *, seed: int) -> Bools:
    """Who trains what: a fair coin for each unit and pair of organs; the second organ gets what the first does not.

    Returns:
        shape (2 * pairs, units); in no row everybody or nobody.
    """
    random = np.random.default_rng(seed)
    rows: list[Bools] = []
    while len(rows) < 2 * pairs:
        row = random.random(units) < 0.5
        if row.any() and not row.all():
            rows += [row, ~row]
    return np.stack(rows)


def mean_interval(values: Sequence[float] | Floats, *, seed: int = 0) -> Interval:
    """A mean with its bootstrap interval over the values."""
    array = np.asarray(values, dtype=np.float64)
    draws = np.random.default_rng(seed).integers(0, len(array), size=(RESAMPLES, len(array)))
    return _interval(float(array.mean()), array[draws].mean(axis=1))
