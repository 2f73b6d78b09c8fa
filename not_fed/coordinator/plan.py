"""What the coordinator proposes: its own file, `federation.toml` in its home."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from not_fed import canonical, settings
from not_fed.aggregation.rules import BadRule, NormLimit, Rule, RuleName
from not_fed.envelope.task import Mode, ProposedPrivacy, Training, are_apart
from not_fed.envelope.waybill import MAX_RECIPIENTS
from not_fed.settings import Name, Pair, Settings, Sha256
from not_fed.trust.plans import SumPlan

PLAN_FILE = "federation.toml"
PATIENCE = ("round_timeout_s", "join_timeout_s", "retry_s", "retry_after_s", "max_attempts")


class SecureSumTable(Settings):
    """What the stewards are asked to sign for a secure sum; see `not_fed.trust.plans.SumPlan`.

    Attributes:
        quorum: how many sites have to accept a round's aggregate; 0 without a vote.
    """

    collude: int = Field(default=1, ge=0)
    vanish: int = Field(default=0, ge=0)
    min_sites: int | None = Field(default=None, ge=1)
    word_bits: Literal[16, 32] = 32
    value_bits: int = Field(default=24, ge=4, le=31)
    clip: float = Field(default=2.0**-4, gt=0)
    max_weight: int = Field(default=1, ge=1)
    blind: bool = False
    quorum: int = Field(default=0, ge=0)


class OptimiserTable(Settings):
    """What the aggregator does with the mean of a round's organs; see `not_fed.aggregation.optimisers`.

    Attributes:
        rate: the server's learning rate; 1 where it is not set, and 0.01 for adam and yogi.
        momentum: for `momentum` alone. beta1, beta2, tau: for `adam` and `yogi` alone.
    """

    name: Literal["fedavg", "momentum", "adam", "yogi"]
    rate: float | None = Field(default=None, gt=0, le=1000)
    momentum: float | None = Field(default=None, ge=0, lt=1)
    beta1: float | None = Field(default=None, ge=0, lt=1)
    beta2: float | None = Field(default=None, ge=0, lt=1)
    tau: float | None = Field(default=None, gt=0, le=1)

    @model_validator(mode="after")
    def _its_own_fields(self) -> Self:
        adaptive = self.name in ("adam", "yogi")
        if self.momentum is not None and self.name != "momentum":
            raise ValueError(f"no momentum for {self.name}" + ("; its name there is beta1" if adaptive else ""))
        if not adaptive and any(value is not None for value in (self.beta1, self.beta2, self.tau)):
            raise ValueError(f"no beta1, beta2 or tau for {self.name}; they are for adam and yogi")
        return self

    @property
    def is_plain(self) -> bool:
        """Whether the aggregate is the mean itself, so that nothing has to be known of the round before."""
        still = self.name == "fedavg" or (self.name == "momentum" and self.momentum == 0)
        return still and self.rate in (None, 1.0)


class RobustTable(Settings):
    """In mode trusted, how the organs of a round become one; see `not_fed.aggregation.rules.Rule` and docs/robust.md.

    Attributes:
        byzantine: how many sites may lie; with any other rule than the mean 1, if not given.
        trim, keep: of trimmed-mean and multi-krum; without them as many as `byzantine` asks for and allows.
        max_norm, max_ratio: how far an organ may be from where the round began, as a norm and as a multiple of the
            median norm.
        beyond: what happens to an organ that is farther.
    """

    rule: RuleName = "mean"
    byzantine: int | None = Field(default=None, ge=0, le=124)
    trim: int = Field(default=0, ge=0, le=124)
    keep: int = Field(default=0, ge=0, le=250)
    max_norm: float | None = Field(default=None, gt=0)
    max_ratio: float | None = Field(default=None, gt=0)
    beyond: Literal["clip", "leave-out"] = "clip"

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        try:
            self.as_rule()
        except BadRule as error:
            raise ValueError(f"{error.expected}, not {error.got}") from None
        return self

    def as_rule(self) -> Rule:
        """The rule with its parameters; raises BadRule."""
        limit = None
        if self.max_norm is not None or self.max_ratio is not None:
            limit = NormLimit(max_norm=self.max_norm, max_ratio=self.max_ratio, leave_out=self.beyond == "leave-out")
        liars = int(self.rule != "mean") if self.byzantine is None else self.byzantine
        return Rule(name=self.rule, byzantine=liars, trim=self.trim, keep=self.keep, limit=limit)


class FederationPlan(Settings):
    """One run of a federation.

    Attributes:
        name: the coordinator's own name in the roster.
        run: names this run; a site answers each round of a run once.
        sites: who is invited, by their names in the roster.
        base: the base model's folder (or a name that not-fed knows), where the coordinator makes the aggregate: in
            modes trusted and secure-sum.
        span, spans: the layers that are trained; with several spans, each round trains another one, in turn.
        robust: in mode trusted, another rule than the weighted mean; see docs/robust.md.
        quorum: in mode trusted, how many sites have to accept a round's aggregate; 0 without a vote.
        optimiser: where the coordinator makes the aggregate; plain FedAvg without it.
        secure_sum: in mode secure-sum; the plan counts once the stewards have signed it into the roster.
        weights: share of each site in the mean, declared and public; a site that is not listed counts 1.
        min_answers: a round with fewer organs than this is closed as such and opened again later.
        round_timeout_s: how long a round waits for its last answer.
        join_timeout_s: how long a round waits for a site that is not connected, once enough others have answered; and
            how long the run waits at its start for as many sites as it needs.
        retry_s: pause before a site that refused for now, or lost its message, is sent its task again.
        retry_after_s: pause before a round that had too few answers is opened again.
        max_attempts: how often a round is opened before the run stops; starting again goes on.
        max_parcel_bytes: larger answers are refused unread.
    """

    name: Name
    federation: Name
    run: Name
    mode: Mode
    sites: list[Name] = Field(min_length=2, max_length=250)
    rounds: int = Field(ge=1, le=10_000)
    base_sha256: Sha256
    base: str | None = None
    span: Pair | None = None
    spans: list[Pair] = Field(default=[], max_length=64)
    weights: dict[Name, float] = Field(default={})
    min_answers: int = Field(default=2, ge=1)
    round_timeout_s: float = Field(default=3600.0, gt=0)
    join_timeout_s: float = Field(default=300.0, gt=0)
    retry_s: float = Field(default=30.0, gt=0)
    retry_after_s: float = Field(default=300.0, gt=0)
    max_attempts: int = Field(default=3, ge=1, le=1000)
    max_parcel_bytes: int = Field(default=8 << 30, ge=1)
    training: Training
    privacy: ProposedPrivacy | None = None
    robust: RobustTable | None = None
    quorum: int = Field(default=0, ge=0)
    optimiser: OptimiserTable | None = None
    secure_sum: SecureSumTable | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if len(set(self.sites)) != len(self.sites):
            raise ValueError("each site once in sites")
        if (self.span is None) == (not self.spans):
            raise ValueError("either span or spans")
        if any(not 0 <= start < stop for start, stop in self.in_turn):
            raise ValueError("each span as [start, stop] with 0 <= start < stop")
        if not are_apart(self.in_turn):
            raise ValueError("spans that are equal or share no layer, so that together they are one body")
        if not set(self.weights) <= set(self.sites) or any(weight <= 0 for weight in self.weights.values()):
            raise ValueError("a positive weight for sites of this run only")
        if self.mode == "trusted" and self.base is None:
            raise ValueError("base in mode trusted, to check organs against before they are averaged")
        if self.min_answers > len(self.sites):
            raise ValueError("min_answers of at most the number of sites")
        if self.quorum and self.mode != "trusted":
            raise ValueError("quorum in mode trusted only; in mode secure-sum it stands in [secure_sum], signed")
        if self.quorum > len(self.sites):
            raise ValueError("a quorum of at most the number of sites")
        self._sums_consistently()
        self._optimises_consistently()
        self._bears_liars()
        return self

    def _bears_liars(self) -> None:
        """A rule keeps its promise with as few organs as a round may close with."""
        if self.mode == "trusted" and self.needs_start and len(self.sites) >= MAX_RECIPIENTS:
            raise ValueError(
                f"fewer than {MAX_RECIPIENTS} sites where the next round's organs are measured from the aggregate: it "
                "is sealed to the coordinator too"
            )
        if self.robust is None:
            return
        rule = self.rule
        if self.mode != "trusted":
            raise ValueError("[robust] in mode trusted only: in the others nobody sees the organs beside each other")
        try:
            rule.check(self.min_answers)
        except BadRule as error:
            raise ValueError(f"min_answers for {rule.name} of {error.expected}, not {error.got}") from None
        if rule.name != "mean" and len({self.weights.get(site, 1.0) for site in self.sites}) > 1:
            raise ValueError(f"equal weights with {rule.name}, which counts each organ once")

    def _optimises_consistently(self) -> None:
        if self.optimiser is None or self.optimiser.is_plain:
            return
        if self.mode == "bank":
            raise ValueError("no [optimiser] in mode bank, where each site takes the mean itself")
        if self.secure_sum is not None and self.secure_sum.blind:
            raise ValueError("no [optimiser] with a blind sum, which the coordinator cannot read")

    def _sums_consistently(self) -> None:
        table = self.secure_sum
        if (table is not None) != (self.mode == "secure-sum"):
            raise ValueError("[secure_sum] in mode secure-sum, and there only")
        if table is None:
            return
        if self.weights:
            raise ValueError("no weights in mode secure-sum: each site declares its own, inside the sum (max_weight)")
        if self.base is None:
            raise ValueError("base in mode secure-sum: calls name its layers, and the mean change is added to them")
        self.sum_plan().thresholds()  # UnsafePlan leaves as it is, with its reason

    @property
    def rule(self) -> Rule:
        """How the organs of a round become one."""
        return Rule() if self.robust is None else self.robust.as_rule()

    @property
    def needs_start(self) -> bool:
        """Whether the coordinator has to read what a round began from, or may have to say who went far from there."""
        steps = self.optimiser is not None and not self.optimiser.is_plain
        adds_to_it = self.secure_sum is not None and not self.secure_sum.blind
        return self.rule.limit is not None or steps or adds_to_it or (self.mode == "trusted" and self.quorum > 0)

    @property
    def in_turn(self) -> tuple[Pair, ...]:
        """The spans of the rounds, in turn."""
        return tuple(self.spans) if self.span is None else (self.span,)

    def span_of(self, round_number: int) -> tuple[int, int]:
        """The layers that a round trains."""
        return self.in_turn[(round_number - 1) % len(self.in_turn)]

    def sum_plan(self) -> SumPlan:
        """What the stewards sign for this run; only in mode secure-sum."""
        if self.secure_sum is None:
            raise ValueError("this run has no secure sum")
        return SumPlan(
            federation=self.federation, run=self.run, coordinator=self.name, sites=tuple(sorted(self.sites)),
            rounds=self.rounds, base_sha256=self.base_sha256, spans=self.in_turn, **self.secure_sum.model_dump(),
        )  # fmt: skip

    def recipients(self) -> list[str]:
        """To whom a site seals its organ: each other site, or the aggregator alone."""
        return sorted(self.sites) if self.mode == "bank" else [self.name]

    def sha256(self) -> str:
        """Digest of what a run must keep to from its beginning: all but how long it waits and how often it tries."""
        return hashlib.sha256(canonical.dumps(self.model_dump(mode="json", exclude=set(PATIENCE)))).hexdigest()


def load_plan(home: Path) -> FederationPlan:
    """Read the plan of the coordinator at `home`; raises BadSettings naming file and field, UnsafePlan."""
    return settings.load(FederationPlan, home / PLAN_FILE)
