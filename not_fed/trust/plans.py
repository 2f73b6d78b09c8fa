"""The plan of a secure sum, as the stewards sign it: who takes part, and how many may collude or vanish.

Everything that keeps single organs hidden follows from these numbers, so the coordinator proposes none of them: they
stand in the roster's target `plans.json`, and a site takes part only under a plan that it finds there. A plan that
would protect nobody, or could not work, is refused when it is made, in words for whoever makes it.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Annotated, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from not_fed import canonical
from not_fed.errors import InputError
from not_fed.keys.identity import NAME

MIN_SITES, MAX_SITES = 3, 250
MAX_WEIGHT = 1 << 20
MAX_PLANS: Final = 200
MAX_REMOVED: Final = 10_000
PLANS_FORMAT: Final = "not-fed.plans/1"

_Name = Annotated[str, Field(pattern=rf"^{NAME.pattern}\z")]
_Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}\z")]
_Span = tuple[Annotated[int, Field(ge=0)], Annotated[int, Field(ge=1)]]


class UnsafePlan(InputError):
    """A secure sum under this plan would protect nobody, or could never end."""

    code = "plan-unsafe"


@dataclass(frozen=True, slots=True, kw_only=True)
class Thresholds:
    """What follows from a plan for a cohort of `sites`.

    Attributes:
        shares: t, how many sites must answer to open the masks of a helper that is lost.
        helpers: k, how many sites carry masks for each other.
        min_sites: m, the fewest sites whose sum is ever formed.
    """

    sites: int
    shares: int
    helpers: int
    min_sites: int


class SumPlan(BaseModel):
    """One run's secure sum.

    Attributes:
        sites: who may take part; those of them that are active on the roster are a call's cohort.
        collude: c, how many sites may tell the coordinator everything without an honest site's organ being opened.
        vanish: f, how many helpers of a round may be lost after the uploads without losing the round.
        min_sites: m; without it, max(3, t) for all of `sites`.
        word_bits: the ring, 2^32, or 2^16 for half the bytes and a coarser sum.
        value_bits, clip: a change of a weight is rounded to `clip / (2^(value_bits - 1) - 1)` and cut at `clip`.
        max_weight: a site's largest whole-number weight inside the sum; 1 counts all sites alike.
        blind: whether the sum itself stays hidden from the coordinator.
        quorum: how many sites have to accept a round's aggregate before it is used; 0 without a vote.
        spans: the spans of the rounds, in turn.
    """

    model_config = ConfigDict(defer_build=True, strict=True, frozen=True, extra="forbid", allow_inf_nan=False)

    federation: _Name
    run: _Name
    coordinator: _Name
    sites: tuple[_Name, ...] = Field(min_length=1, max_length=MAX_SITES)
    rounds: int = Field(ge=1, le=10_000)
    base_sha256: _Sha256
    spans: tuple[_Span, ...] = Field(min_length=1, max_length=64)
    collude: int = Field(ge=0, le=MAX_SITES)
    vanish: int = Field(ge=0, le=MAX_SITES)
    min_sites: int | None = Field(default=None, ge=1, le=MAX_SITES)
    word_bits: Literal[16, 32] = 32
    value_bits: int = Field(default=24, ge=4, le=31)
    clip: float = Field(default=2.0**-4, gt=0, le=1024)
    max_weight: int = Field(default=1, ge=1, le=MAX_WEIGHT)
    blind: bool = False
    quorum: int = Field(default=0, ge=0, le=MAX_SITES)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if list(self.sites) != sorted(set(self.sites)):
            raise ValueError("sites, sorted, each once")
        if self.coordinator in self.sites:
            raise ValueError("a coordinator that is none of the sites")
        if any(start >= stop for start, stop in self.spans):
            raise ValueError("each span as [start, stop] with start < stop")
        return self

    @property
    def sha256(self) -> str:
        """How calls name this plan: the digest of its canonical JSON."""
        return hashlib.sha256(canonical.dumps(self.model_dump(mode="json"))).hexdigest()

    def span_of(self, round_number: int) -> tuple[int, int]:
        """The layers that a round trains."""
        return self.spans[(round_number - 1) % len(self.spans)]

    def _default_min_sites(self) -> int:
        """Of all the plan's sites, however few are there: a smaller cohort does not make a smaller sum."""
        return max(3, (len(self.sites) + self.collude) // 2 + 1)

    def thresholds(self, sites: int | None = None) -> Thresholds:
        """What the plan means for a cohort of that many sites; for all of the plan's when not given.

        The rule: t = floor((n + c) / 2) + 1, so that two sets of t sites share an honest one; k = c + 1 +
        floor(f (n - c) / (t - c)), so that one honest helper's masks are never opened; m >= c + 2, so that a sum holds
        two honest sites at least.

        Raises:
            UnsafePlan.
        Proved by: tests/unit/test_sum_plan.py::test_a_plan_is_refused_exactly_when_the_rule_says_so
        Source: docs/secure-sum.md, "The rule".
        """
        n, c, f = len(self.sites) if sites is None else sites, self.collude, self.vanish
        if n < MIN_SITES:
            raise _unsafe(
                f"at least {MIN_SITES} sites", str(n),
                "of two sites each knows the other's organ from the sum; use mode bank with privacy, or find a third",
            )  # fmt: skip
        if c > n - 2:
            raise _unsafe(f"collude of at most {n - 2} for {n} sites", str(c), "somebody has to be honest: lower it")
        t = (n + c) // 2 + 1
        if t > n - f:
            raise _unsafe(
                f"vanish of at most {n - t} with {n} sites and collude {c}", str(f),
                f"{t} sites must answer to stand in for a lost helper, and the lost cannot: lower vanish or collude",
            )  # fmt: skip
        k = c + 1 + f * (n - c) // (t - c)
        if k > n:
            raise _unsafe(f"at most {n} helpers", str(k), "lower vanish or collude")
        m = self._default_min_sites() if self.min_sites is None else self.min_sites
        if not max(3, c + 2) <= m <= n:
            raise _unsafe(
                f"min_sites from {max(3, c + 2)} to {n}", str(m),
                "a smaller sum could show what one honest site sent; a larger one can never be formed",
            )  # fmt: skip
        largest = (2 ** (self.word_bits - 1) - 1) // (n * self.max_weight)  # that a value may be, either way
        room = (largest + 1).bit_length()
        if self.value_bits > room:
            raise _unsafe(
                f"value_bits of at most {room} in words of {self.word_bits} bits, for {n} sites and max_weight "
                f"{self.max_weight}", str(self.value_bits), "the sum could overflow: lower value_bits or max_weight",
            )  # fmt: skip
        if self.quorum > n:
            raise _unsafe(f"a quorum of at most {n}", str(self.quorum), "no vote could ever reach it")
        if self.blind and not self.quorum:
            raise _unsafe(
                "a quorum with blind", "0",
                "a sum that the coordinator cannot read has to be looked at by the sites: name how many must accept it",
            )  # fmt: skip
        return Thresholds(sites=n, shares=t, helpers=k, min_sites=m)


class PlansFile(BaseModel):
    """The target `plans.json`: one plan for each run.

    Attributes:
        plans: sorted by run.
        removed: runs whose plan was taken away, sorted: none of these names ever gets another.
    """

    model_config = ConfigDict(defer_build=True, strict=True, frozen=True, extra="forbid")

    format: Literal["not-fed.plans/1"] = PLANS_FORMAT
    plans: tuple[SumPlan, ...] = Field(default=(), max_length=MAX_PLANS)
    removed: tuple[_Name, ...] = Field(default=(), max_length=MAX_REMOVED)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        runs = [plan.run for plan in self.plans]
        if runs != sorted(set(runs)) or list(self.removed) != sorted(set(self.removed)):
            raise ValueError("runs, sorted, each once")
        if set(runs) & set(self.removed):
            raise ValueError("no plan for a run whose plan was removed")
        return self

    @property
    def is_empty(self) -> bool:
        """Whether there was never a plan; then there is no such target."""
        return not self.plans and not self.removed


def parse_plans(data: bytes, *, where: str) -> PlansFile:
    """Strictly, and no more than that; raises BadJson, ValueError (also as pydantic's ValidationError)."""
    canonical.loads(data, where=where)
    return PlansFile.model_validate_json(data)


def _unsafe(expected: str, got: str, hint: str) -> UnsafePlan:
    return UnsafePlan(where="plan of the secure sum", expected=expected, got=got, hint=hint)
