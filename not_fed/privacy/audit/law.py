"""What an attack on the right code finds: the law of a canary's score, and how well guessing can go. Without torch.

A canary's score is a sum over the steps of independent terms, so its law follows by convolution (FFT), exactly up to a
fine grid. From it follow the expected bounds and the alarm's threshold, with no dice: everybody gets the same numbers.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr

from not_fed.privacy.audit.bounds import Bounds, Guesses, bounds_of, plans_of_guesses

CELLS = 2**17
REACH = 9.0  # standard deviations of noise in one step; beyond lies less than 1e-18
SPREADS = 14.0  # standard deviations of the whole score on either side
FALSE_ALARM = 1e-6  # the chance of each test to stop a run of the right code, at most
Values = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Law:
    """How a mechanism's canaries score, from the highest score down.

    Attributes:
        share: part of all canaries that score at least so high, rising from 0 to 1, shape (cells,).
        members: part of all canaries that score at least so high and are members, shape (cells,).
    """

    share: Values
    members: Values

    def members_above(self, share: float) -> float:
        """The part of members among the `share` of canaries with the highest scores."""
        return min(1.0, float(np.interp(share, self.share, self.members)) / share)

    def strangers_below(self, share: float) -> float:
        """The part of strangers among the `share` of canaries with the lowest scores."""
        return min(1.0, 1 - (0.5 - float(np.interp(1 - share, self.share, self.members))) / share)


def score(observed: Values, *, sample_rate: float, noise_multiplier: float) -> Values:
    """The log-likelihood ratio of member against stranger in one step.

    Args:
        observed: the released sum at each canary's coordinate, in units of the clip, shape (canaries,).
    """
    with np.errstate(divide="ignore"):
        stays = np.log1p(-sample_rate)  # minus infinity at rate 1: a member is then in every step
    ratio: Values = np.logaddexp(stays, np.log(sample_rate) + (observed - 0.5) / noise_multiplier**2)
    return ratio


@functools.lru_cache(maxsize=64)
def law_of(
    *,
    sample_rate: float,
    noise_multiplier: float,
    steps: int,
    true_rate: float | None = None,
    true_noise: float | None = None,
) -> Law:
    """The law of scores made for one mechanism, when that mechanism runs, or when a broken one runs in its place.

    Args:
        sample_rate: what the score is made for. Likewise `noise_multiplier`.
        true_rate: what really runs; the same without it. Likewise `true_noise`.
    Proved by: tests/unit/test_audit_law.py::test_the_law_is_the_one_of_dice
    """
    rate = sample_rate if true_rate is None else true_rate
    noise = max(noise_multiplier if true_noise is None else true_noise, 1e-6)

    def scored(observed: Values) -> Values:
        return score(observed, sample_rate=sample_rate, noise_multiplier=noise_multiplier)

    low, high = scored(np.array([-REACH * noise, 1 + REACH * noise]))
    draws = _between(-REACH * noise, 1 + REACH * noise, noise)
    values, stranger, joined = scored((draws[1:] + draws[:-1]) / 2), _mass(draws, 0.0, noise), _mass(draws, 1.0, noise)
    member = (1 - rate) * stranger + rate * joined
    means = steps * np.array([values @ stranger, values @ member])
    spread = np.sqrt(steps * max((values - values @ mass) ** 2 @ mass for mass in (stranger, member)))
    least = max(means.min() - SPREADS * spread, steps * low)
    most = min(means.max() + SPREADS * spread + (high - low), steps * high)
    margin = round(4 + SPREADS * steps**0.5)  # cells; splitting mass between two of them spreads it that far
    cell = (most - least) / (CELLS - 2 * margin)
    start = least / cell - margin
    folded = [_folded(values / cell, mass, steps=steps, start=start) for mass in (stranger, member)]
    strangers, members = (np.cumsum(mass[::-1]) / 2 for mass in folded)
    return Law(share=np.r_[0.0, strangers + members], members=np.r_[0.0, members])


def _between(low: float, high: float, noise: float) -> Values:
    """Edges of fine cells of what one step can show, finest around 0 and 1."""
    around = np.linspace(-REACH, REACH, CELLS // 2 + 1) * noise
    edges: Values = np.unique(np.clip(np.r_[low, around, 1 + around, high], low, high))
    return edges


def _mass(edges: Values, centre: float, noise: float) -> Values:
    mass: Values = np.diff(ndtr((edges - centre) / noise))
    mass /= mass.sum()
    return mass


def _folded(places: Values, mass: Values, *, steps: int, start: float) -> Values:
    """The law of a sum of `steps` draws, on cells of width 1 from `start`. Splitting mass linearly keeps the mean."""
    anchor = np.floor(places.min())
    left = np.floor(places - anchor).astype(np.int64)
    part = places - anchor - left
    one = np.bincount(left % CELLS, mass * (1 - part), CELLS) + np.bincount((left + 1) % CELLS, mass * part, CELLS)
    whole = np.clip(np.fft.irfft(np.fft.rfft(one) ** steps, CELLS), 0.0, None)
    whole /= whole.sum()
    return np.roll(whole, -int((np.floor(start) - steps * anchor) % CELLS))


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """What an attack on the mechanism finds.

    Attributes:
        typical: lower bounds from guesses that go as they go on average.
        at_most: lower bounds that the right code exceeds in one of a million runs.
        most_right: for each plan of guesses, how many right ones are not exceeded, with the same certainty.
    """

    typical: Bounds
    at_most: Bounds
    most_right: tuple[int, ...]


@functools.lru_cache(maxsize=64)
def expect(sample_rate: float, noise_multiplier: float, steps: int, *, canaries: int, delta: float) -> Expected:
    """What an attack on the right mechanism finds.

    Guarantees: the right code exceeds any of `most_right` in at most one of 10^6 runs. The k canaries above the k+1st
        score are independent draws above it, so given that score their number of members is binomial; the score's own
        luck is a beta law, and two binomials together are no wider than one of their mean (Hoeffding 1956). Real
        gradients at the coordinates do not help: no score finds more members than the likelihood ratio without them
        (Neyman & Pearson 1933).
    Proved by: tests/unit/test_audit_law.py::test_dice_stay_below_what_is_expected_at_most
    """
    from scipy.stats import binom  # here, and below: whoever only trains starts a second of processor time sooner

    law = law_of(sample_rate=sample_rate, noise_multiplier=noise_multiplier, steps=steps)
    plans = plans_of_guesses(canaries)
    luck = FALSE_ALARM / len(plans) / 3
    most = []
    for top, bottom in plans:
        hopes = [top * law.members_above(_lucky(top, canaries, luck))]
        if bottom:
            hopes.append(bottom * law.strangers_below(_lucky(bottom, canaries, luck)))
        tried = top + bottom
        most.append(min(tried, int(binom.isf(luck, tried, min(1.0, sum(hopes) / tried)))))
    edges = [Guesses(tried=top + bottom, right=right) for (top, bottom), right in zip(plans, most, strict=True)]
    return Expected(
        typical=typical_bounds(law, canaries=canaries, delta=delta),
        at_most=bounds_of(edges, canaries=canaries, delta=delta),
        most_right=tuple(most),
    )


def typical_guesses(law: Law, *, canaries: int) -> tuple[Guesses, ...]:
    """Guesses that go as they go on average."""
    guesses = []
    for top, bottom in plans_of_guesses(canaries):
        right = top * law.members_above(top / canaries)
        right += bottom * law.strangers_below(bottom / canaries) if bottom else 0.0
        guesses.append(Guesses(tried=top + bottom, right=round(right)))
    return tuple(guesses)


def typical_bounds(law: Law, *, canaries: int, delta: float) -> Bounds:
    """The lower bounds when guesses go as they go on average."""
    return bounds_of(typical_guesses(law, canaries=canaries), canaries=canaries, delta=delta)


def _lucky(count: int, canaries: int, luck: float) -> float:
    """A share of the canaries so small that `count` of them rarely reach no further than it."""
    from scipy.stats import beta

    if count >= canaries:
        return 1.0
    return float(beta.ppf(luck, count + 1, canaries - count))


def least_noise_ratio(samples: int, *, tests: int = 1) -> float:
    """The smallest ratio of measured to planned deviation that the right noise gives in all but one of 10^6 runs.

    Args:
        samples: how many draws of noise were measured. Real gradients in them can only raise the ratio.
        tests: how often one run measures; the chance is shared among them.
    """
    from scipy.stats import chi2

    return float(np.sqrt(chi2.ppf(FALSE_ALARM / tests, samples) / samples)) if samples else 0.0
