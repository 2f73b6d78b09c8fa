"""What an organ's author claims about privacy: the bound, all it was computed from, and what an attack on it found.

Every one of these is the author's word, signed. What can be computed from it is computed again by whoever relies on it
(`not_fed.organ.claims`); what an attack found stands beside the claim, also where the two contradict each other.
"""

from __future__ import annotations

from collections.abc import Mapping
from decimal import ROUND_CEILING, Decimal
from typing import Annotated, Any, Literal, Self

from pydantic import Field, StringConstraints, ValidationError, model_validator

from not_fed.envelope.dsse import Sha256, Statement
from not_fed.errors import InputError

MAX_RELEASES = 64

Positive = Annotated[float, Field(gt=0, le=1e12)]
NotNegative = Annotated[float, Field(ge=0, le=1e12)]
Count = Annotated[int, Field(ge=1, le=1 << 40)]
ShortText = Annotated[str, StringConstraints(min_length=1, max_length=200)]
NumberName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}\z")]
Number = Annotated[float, Field(ge=-1e30, le=1e30)]


class BadClaim(InputError):
    """A passport was asked to say what it cannot say."""

    code = "bad-claim"


class ChargedRelease(Statement):
    """A number that leaves with noise once in each run, as epsilon counts it."""

    name: NumberName
    noise_multiplier: Positive


class Mechanism(Statement):
    """All that epsilon was computed from, so that anybody can compute it again.

    Attributes:
        records_per_person: how many records of a person joined a step at most; 1 where the unit is the record.
        repeated_steps: steps that were started beyond the plan, after an interruption. They were charged.
        releases: numbers that left with noise, once in each run.
        repeated_releases: how often one of them was computed beyond that, by name; charged too.
    """

    sample_rate: Annotated[float, Field(gt=0, le=1)]
    steps: Count
    noise_multiplier: Positive
    max_grad_norm: Positive
    divisor: Positive
    runs: Count = 1
    records_per_person: Count = 1
    repeated_steps: Annotated[int, Field(ge=0, le=1 << 40)] = 0
    releases: Annotated[tuple[ChargedRelease, ...], Field(max_length=MAX_RELEASES)] = ()
    repeated_releases: dict[NumberName, Count] = Field(default_factory=dict, max_length=MAX_RELEASES)
    adjacency: Literal["add_or_remove_one"] = "add_or_remove_one"
    noise_added_at: Literal["site", "coordinator"] = "site"

    @model_validator(mode="after")
    def _each_release_once(self) -> Self:
        if len({release.name for release in self.releases}) != len(self.releases):
            raise ValueError("each release once")
        if not set(self.repeated_releases) <= {release.name for release in self.releases}:
            raise ValueError("repeated releases among the releases")
        return self


class DpClaim(Statement):
    """Epsilon, never without its delta, its unit and its mechanism."""

    epsilon: Positive
    delta: Annotated[float, Field(gt=0, lt=1)]
    unit: Literal["record", "person"]
    accountant: ShortText
    mechanism: Mechanism

    @model_validator(mode="after")
    def _a_record_is_one_record(self) -> Self:
        if self.unit == "record" and self.mechanism.records_per_person != 1:
            raise ValueError("several records in a unit of one record")
        return self

    def __str__(self) -> str:
        """In one line, rounded up: never a number without its delta, its unit and the neighbouring relation."""
        return promise(self.epsilon, delta=self.delta, unit=self.unit)

    @classmethod
    def from_training(cls, training: Mapping[str, Any] | None) -> Self | None:
        """The claim in a manifest's training summary (flat, under `dp`), or None; raises BadClaim."""
        flat = (training or {}).get("dp")
        if flat is None:
            return None
        try:
            mechanism = {name: _frozen(flat[name]) for name in Mechanism.model_fields if name in flat}
            own = {name: flat[name] for name in cls.model_fields if name in flat}
            return cls.model_validate({**own, "mechanism": mechanism})
        except (ValidationError, TypeError, AttributeError):
            raise _bad("dp", "epsilon, delta, unit, accountant and the mechanism", hint="train it again") from None

    def as_training(self) -> dict[str, Any]:
        """The claim as a manifest's training summary has it; what `from_training` reads."""
        return self.model_dump(mode="json", exclude={"mechanism"}) | self.mechanism.model_dump(mode="json")


class AuditResult(Statement):
    """What an attack on the real training found, to stand beside the claim. It is the author's word, as the claim is.

    Attributes:
        method: which attack, such as "one-run audit, Steinke et al. 2023".
        epsilon_lower_bound: the training cannot have had a smaller epsilon at `delta`, at this confidence.
        canaries: how many inserted examples the attack had to tell apart.
        fdp_epsilon_lower_bound: the same under a Gaussian trade-off curve: sharper, and an alarm rather than a theorem.
        expected_at_most, fdp_expected_at_most: the highest of these bounds that the claimed mechanism itself gives.
        noise_ratio: the noise's measured standard deviation over the claimed one.
        steps: how many noisy steps the attack looked at.
        verdict: whether all this is what the claimed mechanism gives.
    """

    method: ShortText
    epsilon_lower_bound: NotNegative
    confidence: Annotated[float, Field(gt=0, lt=1)]
    canaries: Count
    delta: Annotated[float, Field(gt=0, lt=1)] | None = None
    fdp_epsilon_lower_bound: NotNegative | None = None
    expected_at_most: NotNegative | None = None
    fdp_expected_at_most: NotNegative | None = None
    noise_ratio: NotNegative | None = None
    steps: Count | None = None
    verdict: Literal["consistent", "contradicts"] | None = None

    @classmethod
    def from_training(cls, training: Mapping[str, Any] | None) -> Self | None:
        """The audit in a manifest's training summary (under `audit`), or None; raises BadClaim."""
        found = (training or {}).get("audit")
        try:
            return None if found is None else cls.model_validate(found)
        except ValidationError:
            expected = "method, epsilon_lower_bound, confidence, canaries"
            raise _bad("audit", expected, hint="audit it again") from None

    def contradicts(self, claim: DpClaim | None) -> bool:
        """Whether it says so, or its lower bound lies above the claimed epsilon.

        Proved by: tests/unit/test_passport.py::test_an_audit_above_its_claim_contradicts_it
        """
        return self.verdict == "contradicts" or (claim is not None and self.epsilon_lower_bound > claim.epsilon)

    def words(self, claim: DpClaim | None) -> str:
        """In one line, beside the claim."""
        at = "" if self.delta is None else f" at delta {self.delta:g}"
        said = f"{self.method}: epsilon at least {self.epsilon_lower_bound:.2f}{at}, {self.confidence:.0%} confidence"
        if self.fdp_epsilon_lower_bound is not None:
            said += f"; f-DP bound {self.fdp_epsilon_lower_bound:.2f}"
        if self.noise_ratio is not None:
            said += f"; noise {self.noise_ratio:.3f} times the claimed"
        said += f"; {self.canaries:,} canaries"
        return f"{said}; CONTRADICTS THE CLAIM" if self.contradicts(claim) else said


class Release(Statement):
    """A number computed from the private records that left with the organ, and how.

    Attributes:
        how: `noised` and charged to epsilon, or `public` by a decision of the site's policy, without a guarantee.
        noise_multiplier, sensitivity, divisor: of a noised one. Its noise has the standard deviation
            noise_multiplier * sensitivity / divisor; the divisor is a declared number.
    """

    name: NumberName
    value: Number
    how: Literal["noised", "public"]
    noise_multiplier: Positive | None = None
    sensitivity: Positive | None = None
    divisor: Positive | None = None

    @model_validator(mode="after")
    def _noise_where_it_is_noised(self) -> Self:
        given = [value is not None for value in (self.noise_multiplier, self.sensitivity, self.divisor)]
        if given != [self.how == "noised"] * 3:
            raise ValueError("noise_multiplier, sensitivity and divisor exactly where it is noised")
        return self


def releases_from_training(training: Mapping[str, Any] | None) -> tuple[Release, ...]:
    """The noised numbers in a manifest's training summary (under `releases`); raises BadClaim."""
    found = (training or {}).get("releases") or ()
    try:
        return tuple(Release.model_validate({"how": "noised", **one}) for one in found)
    except (ValidationError, TypeError):
        expected = "name, value, noise_multiplier, sensitivity and divisor of each"
        raise _bad("releases", expected, hint="train it again") from None


def check_releases(releases: tuple[Release, ...], claim: DpClaim | None) -> None:
    """Raise ValueError unless each number stands there once and every noised one is in the claim, with its noise."""
    if len({release.name for release in releases}) != len(releases):
        raise ValueError("each release once")
    charged = {} if claim is None else {one.name: one.noise_multiplier for one in claim.mechanism.releases}
    for release in releases:
        if release.how == "noised" and charged.get(release.name) != release.noise_multiplier:
            raise ValueError("a noised release that the claim does not count")


def ledger_head_from_training(training: Mapping[str, Any] | None) -> str | None:
    """The ledger's newest row when the organ was made, from a manifest's training summary; raises BadClaim."""
    try:
        return _LedgerHead.model_validate({"head": (training or {}).get("ledger_head")}).head
    except ValidationError:
        raise _bad("ledger_head", "64 hexadecimal digits", hint="train it again") from None


def promise(epsilon: float, *, delta: float, unit: str) -> str:
    """A bound in one line, with all that it depends on.

    >>> promise(7.301, delta=1e-5, unit="person")
    'epsilon 7.31 at delta 1e-05 (one person added or removed)'
    """
    up = Decimal(repr(float(epsilon))).quantize(Decimal("0.01"), rounding=ROUND_CEILING)
    return f"epsilon {up} at delta {delta:g} (one {unit} added or removed)"


class _LedgerHead(Statement):
    head: Sha256 | None


def _frozen(value: object) -> object:
    return tuple(value) if isinstance(value, list) else value


def _bad(field: str, expected: str, *, hint: str) -> BadClaim:
    return BadClaim(
        where=f"organ, manifest, training.{field}", expected=expected, got="something else",
        hint=f"the organ comes from another version; {hint}",
    )  # fmt: skip
