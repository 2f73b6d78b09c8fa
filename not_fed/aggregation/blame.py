"""Whose organ it was, after the sites have refused what a round made: measures of each one, and who stands out by them.

For mode trusted, where the aggregator can read the organs of a round. In a secure sum nobody can, and nothing here
helps: what cannot be seen can be blamed on nobody.

Who stands out is not who lied. A site whose records are unlike the others' stands out too; a liar who keeps to the
others' length and direction does not. The words are for people who talk to that site, and nothing is decided by them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from not_fed.aggregation.robust import Contribution, Floats, Tensors, changes
from not_fed.errors import InputError

LONG, FAR = 3.0, 3.0  # times what the middle one of the round has
FEWEST = 3


class NobodyToBlame(InputError):
    """Of fewer than three organs nobody can say which one is the odd one."""

    code = "nobody-to-blame"


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """One organ among those of its round. All of it is measured on differences from what the round began from.

    Attributes:
        norm: how long its difference is (L2).
        distance: how far it lies from the median of all, taken coordinate by coordinate.
        cosine: of the angle between it and that median; 0 where one of them is nothing.
        spread_without: without it, how far the others lie from their own mean (root of the mean square).
    """

    name: str
    norm: float
    distance: float
    cosine: float
    spread_without: float


@dataclass(frozen=True, slots=True)
class Outlier:
    """An organ that stands out, and by what, in words for whoever runs the coordinator."""

    name: str
    words: str


@dataclass(frozen=True, slots=True)
class Scores:
    """Every organ of a round, by name."""

    each: tuple[Score, ...]

    @property
    def odd_one_out(self) -> Score:
        """The one without which the others agree best. There always is one, whether anybody lied or not."""
        return min(self.each, key=lambda one: (one.spread_without, one.name))

    def outliers(self) -> tuple[Outlier, ...]:
        """Those that stand out, the farthest first; most honest rounds have none.

        Guarantees: an organ stands out if it is more than three times as long as the middle one's, or as far from the
            median, or points away from a median that most others point along; for no other reason.
        Proved by: tests/unit/test_blame.py::test_an_organ_that_scales_or_flips_its_change_is_named_with_the_measure
        """
        found = []
        for one in sorted(self.each, key=lambda one: (-one.distance, one.name)):
            if words := self._words(one):
                found.append(Outlier(one.name, "; ".join(words)))
        return tuple(found)

    def _words(self, one: Score) -> list[str]:
        words = []
        norm, distance = (
            float(np.median([getattr(each, what) for each in self.each])) for what in ("norm", "distance")
        )
        others = sorted(each.cosine for each in self.each if each is not one)
        if one.norm > LONG * norm:
            words.append(f"its change is {_times(one.norm, norm)} as long as the middle one's")
        if one.cosine < 0 < others[len(others) // 2]:
            words.append(
                f"it points away from the median of all (cosine {one.cosine:.2f}; the others' {others[0]:.2f} to "
                f"{others[-1]:.2f})"
            )
        if one.distance > FAR * distance:
            words.append(f"it lies {_times(one.distance, distance)} as far from the median of all as the middle one")
        if words and one is self.odd_one_out:
            words.append(f"without it the others lie within {one.spread_without:.3g} of their mean")
        return words


def score_organs(organs: Sequence[Contribution], *, start: Tensors) -> Scores:
    """Measure every organ of a round against the others, in one reading of all of them.

    Args:
        start: what the round began from.
    Raises:
        NobodyToBlame: fewer than three. OrganNotFinite, CutShort: as whoever reads them; KeyError: other tensors.
    Guarantees: memory is a few blocks of 16 MiB and one matrix of organs by organs, whatever their size.
    Proved by: tests/unit/test_blame.py::test_the_measures_are_those_of_whole_vectors
    """
    if len(organs) < FEWEST:
        raise NobodyToBlame(
            where="the round's organs", expected=f"at least {FEWEST}", got=str(len(organs)),
            hint="each of two is as far from the other; ask both sites",
        )  # fmt: skip
    count = len(organs)
    norms, along, middle = np.zeros(count), np.zeros(count), 0.0
    beside = np.zeros((count, count))  # inner products of what is left once the median is taken away
    for rows in changes(organs, start=start):
        norms += np.einsum("ij,ij->i", rows, rows)
        median = np.median(rows, axis=0)
        along += rows @ median
        middle += float(median @ median)
        rows -= median
        beside += rows @ rows.T
    lengths = np.sqrt(norms)
    reach = lengths * math.sqrt(middle)
    cosines = np.divide(along, reach, out=np.zeros(count), where=reach > 0)
    distances = np.sqrt(np.diagonal(beside))
    return Scores(
        tuple(
            Score(
                name=organ.name, norm=float(lengths[row]), distance=float(distances[row]), cosine=float(cosines[row]),
                spread_without=_spread(np.delete(np.delete(beside, row, axis=0), row, axis=1)),
            )
            for row, organ in enumerate(organs)
        )
    )  # fmt: skip


def _spread(beside: Floats) -> float:
    """Root of the mean squared distance of some vectors from their own mean, from their inner products."""
    count = len(beside)
    return math.sqrt(max(0.0, float(np.trace(beside) - beside.sum() / count) / count))


def _times(value: float, of: float) -> str:
    return f"{value / of:,.1f} times" if of else "immeasurably many times"
