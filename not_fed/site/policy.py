"""What a site allows: its own file, read from its own disk. Nothing here comes from the coordinator.

`permit` compares a signed task with the policy before any work. A task is a proposal; where it asks for more than the
policy allows it is refused with a code that names the matter and nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from not_fed import settings
from not_fed.envelope.task import Mode, Task
from not_fed.errors import BudgetError
from not_fed.settings import Name, Pair, Settings, Sha256
from not_fed.site.hours import parse_hours

POLICY_FILE = "site.toml"
PUBLIC_CONSTANTS = frozenset({"steps"})  # known before the records were read


class NotAllowed(BudgetError):
    """This site's policy does not allow what the task asks for; nothing was trained, opened or sent."""

    code = "policy"


class CoordinatorNotAllowed(NotAllowed):
    """The task is signed by somebody other than the coordinator this site works with."""

    code = "policy-coordinator"


class FederationNotAllowed(NotAllowed):
    """The task belongs to another federation."""

    code = "policy-federation"


class NotInvited(NotAllowed):
    """The task does not name this site."""

    code = "policy-not-invited"


class PartnerNotAllowed(NotAllowed):
    """The task names a site that this site does not share organs with."""

    code = "policy-partner"


class BaseNotAllowed(NotAllowed):
    """The task is for another base model than this site's."""

    code = "policy-base"


class SpanNotAllowed(NotAllowed):
    """The task asks for layers that this site's policy does not list."""

    code = "policy-span"


class ModeNotAllowed(NotAllowed):
    """The task asks for a way to federate that this site's policy does not list."""

    code = "policy-mode"


class TooManyRounds(NotAllowed):
    """The task's run has more rounds than this site's policy allows."""

    code = "policy-rounds"


class TooManyEpochs(NotAllowed):
    """The task asks for more passes over the records than this site's policy allows."""

    code = "policy-epochs"


class ParcelTooLarge(NotAllowed):
    """The task comes with a sealed organ that is larger than this site's policy takes."""

    code = "policy-parcel-size"


class QuorumTooSmall(NotAllowed):
    """The task lets fewer sites decide whether a round's aggregate is used than this site's policy asks for."""

    code = "policy-quorum"


class PrivacyRequired(NotAllowed):
    """This site trains with differential privacy only, and the task proposes none."""

    code = "policy-privacy-required"


class PrivacyNotConfigured(NotAllowed):
    """The task proposes differential privacy, and this site's policy declares no constants for it."""

    code = "policy-privacy-unknown"


class EpsilonNotAllowed(NotAllowed):
    """The task proposes a weaker privacy guarantee than this site's policy allows."""

    code = "policy-epsilon"


class PrivacyPolicy(Settings):
    """The privacy constants of a site: declared, public, and chosen without looking at the records.

    Attributes:
        max_epsilon: the most that one run may spend, over all its rounds together, at `delta`, for one unit.
        budget: the most that all runs together may ever spend on these records, whoever asks: the ledger enforces
            it across runs, restarts and other data sets that share a record or a person.
        ledger: its folder, relative to the home; a holder with a home for each federation names one folder in all.
        unit: what neighbouring data sets differ by: `record`, or the field that names the person. Without it, a field
            that is known to name people, such as `patient_id`, makes it the person.
        records_per_person: how many records of one person join a step at most.
        divisor: what a step's noisy sum is divided by; about the expected batch, declared instead of counted.
        releases: numbers that leave with each round's organ, with this noise multiplier; epsilon covers them.
        declared_units: what a released mean is divided by; about how many units there are, declared instead of counted.
        public_by_decision: exact numbers about the records that leave all the same. No epsilon covers them.
    """

    required: bool
    max_epsilon: float = Field(gt=0, le=10)
    budget: float = Field(gt=0, le=10)
    ledger: str = Field(default="ledger", min_length=1)
    delta: float = Field(gt=0, lt=0.01)
    unit: str | None = Field(default=None, min_length=1)
    records_per_person: int = Field(default=4, ge=1)
    sample_rate: float = Field(gt=0, le=1)
    max_grad_norm: float = Field(gt=0)
    divisor: float = Field(gt=0)
    releases: dict[Literal["mean_loss", "units"], Annotated[float, Field(ge=0.2, le=1e4)]] = Field(default={})
    declared_units: float | None = Field(default=None, ge=1)
    public_by_decision: list[Literal["records", "people"]] = Field(default=[])

    @model_validator(mode="after")
    def _a_mean_has_its_divisor(self) -> Self:
        if "mean_loss" in self.releases and self.declared_units is None:
            raise ValueError("declared_units, by which the released mean_loss is divided")
        return self


class VotePolicy(Settings):
    """How this site votes on a round's aggregate, and what lets its one bit about the held-out records leave.

    Attributes:
        allowed: `charged`, a comparison with noise that the ledger pays for; or `public_by_decision`, an exact one that
            leaves all the same. No epsilon covers it.
        tolerance: by how much the loss may rise, in nats a token, for the aggregate to be accepted; below 0 it has to
            fall.
        clip: a unit's change counts by this much at most, in nats a token.
        noise_multiplier: of a charged comparison: standard deviation of its noise over the clip. Charged in each round.
        least_quorum: a task by which fewer sites have to accept is refused. In mode trusted nobody else looks after the
            coordinator's own number; in mode bank there is no vote.
    """

    allowed: Literal["charged", "public_by_decision"]
    tolerance: float = Field(default=0.0, ge=-1, le=1)
    clip: float = Field(default=1.0, ge=1e-3, le=16)
    noise_multiplier: float = Field(default=10.0, ge=0.2, le=1e4)
    least_quorum: int = Field(default=0, ge=0, le=250)


class SitePolicy(Settings):
    """One site's policy file, `site.toml` in its home.

    Attributes:
        data: the records, inside the home or elsewhere; relative to the home.
        base: a model folder (relative to the home) or a name that not-fed knows.
        partners: the sites that this one shares organs with; without it, whoever the stewards put on the roster.
        metrics_that_may_leave: exact numbers that may be written into the passport of an organ that was trained without
            differential privacy; empty means none. With it, only `steps`, which is the plan's own number, and what
            `[privacy]` names.
        bundle_sha256: the bundles whose arrival this site approves; what runs is its own installed copy all the same.
        sum_weight: how often this site counts in a secure sum, up to the plan's max_weight; hidden in the sum. With
            "records" it is their number.
        hours: when it trains, in local time: "20:00-06:00", or "sat,sun 00:00-24:00"; empty means always.
        approval: whether a person here agrees first (`not-fed site approve`), once for each run or for each round.
        max_parcel_bytes: no larger sealed organ is taken in.
        held_out: records like `data` that are never trained on; on them a round's aggregate is voted on.
        vote: how; without it, or without records for it, this site abstains.
    """

    name: Name
    federation: Name
    coordinator: Name
    data: str
    text_field: str | None = None
    base: str
    base_sha256: Sha256
    spans: list[Pair] = Field(min_length=1)
    modes: list[Mode] = Field(min_length=1)
    max_rounds: int = Field(ge=1, le=10_000)
    max_epochs: float = Field(gt=0)
    partners: list[Name] | None = None
    sum_weight: Annotated[int, Field(ge=1)] | Literal["records"] = 1
    metrics_that_may_leave: list[Literal["loss_first", "loss_last", "records", "steps", "tokens"]] = Field(default=[])
    cache_prefix: bool = True
    bundle_sha256: list[Sha256] = Field(default=[])
    hours: list[str] = Field(default=[])
    approval: Literal["never", "run", "round"] = "never"
    max_parcel_bytes: int = Field(default=8 << 30, ge=1)
    held_out: str | None = Field(default=None, min_length=1)
    vote: VotePolicy | None = None
    privacy: PrivacyPolicy | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        for span in self.hours:
            parse_hours(span)
        if any(not 0 <= start < stop for start, stop in self.spans):
            raise ValueError("each span to be [start, stop] with 0 <= start < stop")
        if self.privacy and self.privacy.required and set(self.metrics_that_may_leave) - PUBLIC_CONSTANTS:
            raise ValueError(
                "no metrics_that_may_leave but steps where privacy is required: see privacy.releases, for numbers with "
                "noise, and privacy.public_by_decision"
            )
        if self.vote and self.held_out is None:
            raise ValueError("held_out, the records on which it votes, where there is a [vote] table")
        if self.vote and self.vote.allowed == "charged" and self.privacy is None:
            raise ValueError("a [privacy] table, whose ledger pays for a vote that is charged")
        return self


def load_policy(home: Path) -> SitePolicy:
    """Read the policy of the site at `home`; raises BadSettings naming file and field."""
    return settings.load(SitePolicy, home / POLICY_FILE)


def permit(task: Task, *, policy: SitePolicy) -> None:
    """Refuse a task that the policy does not allow.

    Raises:
        NotAllowed: one subclass per matter, checked in the order of the tables below. No file is read or written.
    Proved by: tests/unit/test_policy.py::test_each_refusal_has_its_own_code
    """
    for kind, allowed, expected, got in (*_identity(task, policy), *_plan(task, policy), *_privacy(task, policy)):
        if not allowed:
            raise kind(
                where="task",
                expected=expected,
                got=got,
                hint="agree on the plan, or change site.toml; nothing was done",
            )


Rule = tuple[type[NotAllowed], bool, str, str]


def _identity(task: Task, policy: SitePolicy) -> list[Rule]:
    partners = task.sites if policy.partners is None else (policy.name, *policy.partners)
    strangers = [site for site in task.sites if site not in partners]
    return [
        (
            CoordinatorNotAllowed,
            task.coordinator == policy.coordinator,
            f"coordinator {policy.coordinator}",
            task.coordinator,
        ),
        (
            FederationNotAllowed,
            task.federation == policy.federation,
            f"federation {policy.federation}",
            task.federation,
        ),
        (NotInvited, policy.name in task.sites, f"{policy.name} among the sites", ", ".join(task.sites)),
        (PartnerNotAllowed, not strangers, "partners of this site only", ", ".join(strangers)),
    ]


def _plan(task: Task, policy: SitePolicy) -> list[Rule]:
    spans = _words(policy.spans)
    largest = max((ref.size_bytes for ref in task.parcels), default=0)
    quorum = 0 if policy.vote is None or task.mode == "bank" else policy.vote.least_quorum
    return [
        (
            BaseNotAllowed,
            task.base_sha256 == policy.base_sha256,
            f"base {policy.base_sha256[:12]}",
            task.base_sha256[:12],
        ),
        (SpanNotAllowed, set(task.spans) <= set(policy.spans), f"one of {spans}", _words(task.spans)),
        (ModeNotAllowed, task.mode in policy.modes, f"one of {', '.join(policy.modes)}", task.mode),
        (TooManyRounds, task.rounds <= policy.max_rounds, f"at most {policy.max_rounds} rounds", str(task.rounds)),
        (
            TooManyEpochs,
            task.training.epochs <= policy.max_epochs,
            f"at most {policy.max_epochs:g} epochs",
            f"{task.training.epochs:g}",
        ),
        (QuorumTooSmall, task.quorum >= quorum, f"a quorum of at least {quorum}", str(task.quorum)),
        (
            ParcelTooLarge,
            largest <= policy.max_parcel_bytes,
            f"sealed organs of at most {policy.max_parcel_bytes:,} bytes",
            f"{largest:,}",
        ),
    ]


def _words(spans: Sequence[tuple[int, int]]) -> str:
    return ", ".join(f"{start}:{stop}" for start, stop in spans)


def _privacy(task: Task, policy: SitePolicy) -> list[Rule]:
    own, proposed = policy.privacy, task.privacy
    if proposed is None:
        return [(PrivacyRequired, not (own and own.required), "differential privacy", "none")]
    if own is None:
        return [(PrivacyNotConfigured, False, "a [privacy] table in site.toml", "none")]
    return [
        (
            EpsilonNotAllowed,
            proposed.epsilon <= own.max_epsilon,
            f"epsilon at most {own.max_epsilon:g}",
            f"{proposed.epsilon:g}",
        ),
    ]
