"""Which rule makes one organ of many, and how many liars it bears: settled before any organ is there.

Nothing here reads a number of a model, so that a plan can be checked where no tensor library is installed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

from not_fed.errors import InputError

RuleName = Literal["mean", "median", "trimmed-mean", "krum", "multi-krum"]


class BadRule(InputError):
    """This way to aggregate does not keep its promise with these numbers."""

    code = "bad-rule"


@dataclass(frozen=True, slots=True, kw_only=True)
class NormLimit:
    """How far an organ may be from where its round began, as the L2 norm of the difference over all its numbers.

    Attributes:
        max_norm: in the units of the weights; None for no fixed limit.
        max_ratio: as a multiple of the median of the round's norms; None for no such limit. Both: the smaller counts.
        leave_out: whether an organ beyond the limit is left out, or pulled back to it along its own direction.
    """

    max_norm: float | None = None
    max_ratio: float | None = None
    leave_out: bool = False

    def __post_init__(self) -> None:
        given = [bound for bound in (self.max_norm, self.max_ratio) if bound is not None]
        if not given:
            raise _bad("max_norm or max_ratio, where organs beyond a norm are to be treated", "neither")
        if not all(0 < bound < math.inf for bound in given):
            raise _bad("a positive, finite norm or ratio", str(given))


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """One of the rules with its parameters.

    Attributes:
        byzantine: how many of a round's organs may be made to do harm; 0 with the mean, which bears none.
        trim: with the trimmed mean, how many of the lowest and of the highest values of a coordinate are left out; 0
            for as many as may lie.
        keep: with multi-Krum, how many organs are averaged; 0 for as many as the proof allows.
        limit: the norm filter that comes first.
    Raises:
        BadRule: a parameter that the rule does not have, or that it cannot keep its promise with.
    Guarantees:
        Of `fewest` organs or more, of which at most `byzantine` are not honest, median and trimmed mean are within the
        range of the honest values in every coordinate; Krum and multi-Krum score an organ by more distances than there
        may be liars. Nothing follows from this about what an honest organ says.
    Proved by: tests/unit/test_robust.py::test_liars_of_any_size_cannot_leave_the_honest_range,
        tests/unit/test_robust.py::test_a_rule_that_cannot_keep_its_promise_is_refused_in_words
    Source: Yin et al. 2018, Byzantine-Robust Distributed Learning, definitions 1 and 2 (median, trimmed mean);
        Blanchard et al. 2017, Machine Learning with Adversaries, section 4 (Krum: n >= 2b + 3); Bareilles et al. 2026,
        arXiv 2602.03899 (what is proved of multi-Krum, and that nothing was before). That it keeps n - b - 2 at most,
        as many as a score looks at, is the custom since Damaskinos et al. 2019, AggregaThor.
    """

    name: RuleName = "mean"
    byzantine: int = 0
    trim: int = 0
    keep: int = 0
    limit: NormLimit | None = None

    def __post_init__(self) -> None:
        name, byzantine = self.name, self.byzantine
        if name == "mean" and byzantine:
            raise _bad("byzantine = 0 with the mean: one liar moves it as far as it likes", f"{byzantine}")
        if name != "mean" and byzantine < 1:
            raise _bad(f"byzantine of at least 1 with {name}; where nobody lies the mean is better", f"{byzantine}")
        if self.trim and name != "trimmed-mean":
            raise _bad("trim with the trimmed-mean only", name)
        if 0 < self.trim < byzantine:
            raise _bad(f"trim of at least byzantine = {byzantine}, or a liar is averaged", f"{self.trim}")
        if self.keep and name != "multi-krum":
            raise _bad("keep with multi-krum only", name)
        if min(byzantine, self.trim, self.keep) < 0:
            raise _bad("numbers of organs, 0 or more", "a negative one")

    @property
    def trimmed(self) -> int:
        """How many values are left out at either end of a coordinate."""
        return self.trim or self.byzantine

    @property
    def needs_all(self) -> bool:
        """Whether all organs must be there at once; the plain mean sees one at a time."""
        return self.name != "mean" or self.limit is not None

    @property
    def fewest(self) -> int:
        """With fewer organs than this the promise does not hold."""
        return {
            "mean": 1,
            "median": 2 * self.byzantine + 1,
            "trimmed-mean": 2 * self.trimmed + 1,
            "krum": 2 * self.byzantine + 3,
            "multi-krum": max(2 * self.byzantine + 3, self.keep + self.byzantine + 2),
        }[self.name]

    def kept(self, organs: int) -> int:
        """How many of so many organs Krum or multi-Krum averages."""
        return 1 if self.name == "krum" else self.keep or organs - self.byzantine - 2

    def check(self, organs: int) -> None:
        """Refuse a round that may have so few organs.

        Raises:
            BadRule: naming how many are needed, and why.
        """
        if organs < self.fewest:
            raise _bad(f"at least {self.fewest} organs: {self._why()}", f"{organs}")

    def _why(self) -> str:
        """The reason for `fewest`, in words."""
        liars = f"{self.byzantine} that {'lies' if self.byzantine == 1 else 'lie'}"
        return {
            "mean": "a mean of nothing is none",
            "median": f"the honest must outnumber {liars} in every coordinate (more than twice byzantine)",
            "trimmed-mean": f"{self.trimmed} are left out at either end, and one must remain (more than twice trim)",
            "krum": f"it bears {liars} from 2 byzantine + 3 organs on",
            "multi-krum": f"it bears {liars} from 2 byzantine + 3 organs on, with keep up to organs - byzantine - 2",
        }[self.name]

    def as_training(self) -> dict[str, Any]:
        """The rule as an aggregate's manifest names it."""
        said: dict[str, Any] = {"mode": self.name}
        if self.byzantine:
            said["byzantine"] = self.byzantine
        if self.name == "trimmed-mean":
            said["trim"] = self.trimmed
        if self.keep:
            said["keep"] = self.keep
        if self.limit is not None:
            bounds = {"max_norm": self.limit.max_norm, "max_ratio": self.limit.max_ratio}
            said |= {key: bound for key, bound in bounds.items() if bound is not None}
            said["beyond"] = "left out" if self.limit.leave_out else "clipped"
        return said


def _bad(expected: str, got: str) -> BadRule:
    return BadRule(
        where="rule of the aggregate", expected=expected, got=got, hint="docs/robust.md says which rule needs what"
    )
