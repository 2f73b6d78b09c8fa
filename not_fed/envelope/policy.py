"""What an organisation demands of an organ before it lets it in: its own file, TOML, checked after all signatures hold.

A demand that is not met is refused with a code of its own: exit 6 when it is about whom and when to trust, exit 7 when
it is about what the organisation allows (privacy, base, span). Nothing is written before every demand is met.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from not_fed import settings
from not_fed.envelope.claims import DpClaim
from not_fed.envelope.logged import Inclusion
from not_fed.envelope.passport import Passport
from not_fed.errors import BudgetError, NotFedError, TrustError
from not_fed.settings import Name, Pair, Settings, Sha256
from not_fed.trust.members import CLOCK_SKEW


class AuthorNotAccepted(TrustError):
    """The import policy does not accept organs made by this member."""

    code = "demand-author"


class SenderNotAccepted(TrustError):
    """The import policy does not accept organs sent by this member."""

    code = "demand-sender"


class TooOld(TrustError):
    """The organ is older than the import policy allows."""

    code = "demand-age"


class LogProofMissing(TrustError):
    """The import policy demands a proof that the organ's label is in the federation's log."""

    code = "demand-log-proof"


class CannotTell(TrustError):
    """The import policy makes demands that cannot be checked without looking inside."""

    code = "demand-unknown"


class EpsilonRefused(BudgetError):
    """The organ's privacy claim is weaker than the import policy demands."""

    code = "demand-epsilon"


class DeltaRefused(BudgetError):
    """The organ's delta is larger than the import policy allows."""

    code = "demand-delta"


class UnitRefused(BudgetError):
    """The organ's privacy claim protects another unit than the import policy demands."""

    code = "demand-unit"


class AuditMissing(BudgetError):
    """The import policy demands an audit beside the privacy claim."""

    code = "demand-audit"


class AuditContradicts(BudgetError):
    """The audit beside the privacy claim contradicts it."""

    code = "demand-audit-contradicts"


class TooManyPerPerson(BudgetError):
    """More records of one person may have joined a step than the import policy allows."""

    code = "demand-records-per-person"


class ReleaseRefused(BudgetError):
    """A number about the private records left without noise, and the import policy does not allow it."""

    code = "demand-releases"


class BaseRefused(BudgetError):
    """The import policy does not list the base that this organ was cut from."""

    code = "demand-base"


class SpanRefused(BudgetError):
    """The import policy does not list this organ's layers."""

    code = "demand-span"


class FamilyRefused(BudgetError):
    """The import policy does not list this organ's model family."""

    code = "demand-family"


Positive = Annotated[float, BeforeValidator(lambda value: float(value) if type(value) is int else value), Field(gt=0)]


class ImportPolicy(Settings):
    """The demands; each may be left out, not all of them.

    Attributes:
        authors, senders: names on the roster that may have made it, and sent it.
        max_epsilon, max_delta, units: what the privacy claim must be at most, and what it must protect.
        max_records_per_person: how many records of one person may join a step at most.
        audit: whether an audit must stand beside the claim. One that contradicts the claim never meets it.
        releases: whether numbers about the private records may have left as public, or with noise only.
        bases: digests of the base models it may be cut from. families, spans: likewise.
        max_age_days: since the passport was made.
        log_proof: whether a proof must show that its label is in the federation's log.
    """

    authors: list[Name] | None = None
    senders: list[Name] | None = None
    max_epsilon: Positive | None = None
    max_delta: Positive | None = None
    units: list[Literal["record", "person"]] | None = None
    max_records_per_person: Annotated[int, Field(ge=1)] | None = None
    audit: Literal["required", "optional"] = "optional"
    releases: Literal["noised", "any"] = "any"
    bases: list[Sha256] | None = None
    families: list[str] | None = None
    spans: list[Pair] | None = None
    max_age_days: Annotated[Positive, Field(le=36_500)] | None = None
    log_proof: Literal["required", "optional"] = "optional"

    @model_validator(mode="after")
    def _demands_something(self) -> Self:
        if self == type(self).model_construct():
            raise ValueError("at least one demand")
        return self


def load_import_policy(path: Path) -> ImportPolicy:
    """Read an import policy; raises BadSettings naming file and field, NotAFile."""
    return settings.load(ImportPolicy, path)


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """One demand as applied to one organ."""

    field: str
    expected: str
    got: str
    met: bool
    refusal: type[NotFedError]


def check_demands(
    policy: ImportPolicy, *, passport: Passport, sender: str, logged: Inclusion | None, now: datetime
) -> tuple[Demand, ...]:
    """Apply every demand of the policy.

    Returns:
        the demands, all met.
    Raises:
        AuthorNotAccepted, SenderNotAccepted, TooOld, LogProofMissing (exit 6); EpsilonRefused, DeltaRefused,
        UnitRefused, TooManyPerPerson, AuditMissing, AuditContradicts, ReleaseRefused, BaseRefused, SpanRefused,
        FamilyRefused (exit 7): the first that is not met.
    Proved by: tests/attacks/test_import_policy.py
    """
    demands = tuple(
        demand
        for group in (
            _origin(policy, passport, sender, logged, now),
            _privacy(policy, passport),
            _fit(policy, passport),
        )
        for demand in group
    )
    for demand in demands:
        if not demand.met:
            raise demand.refusal(
                where=f"import policy, field {demand.field}", expected=demand.expected, got=demand.got,
                hint="nothing was opened; ask the sender, or change the policy knowingly",
            )  # fmt: skip
    return demands


def refuse_unseen(policy: ImportPolicy) -> None:
    """Without a key nobody sees the passport, so no policy can be said to be met: raises CannotTell."""
    fields = sorted(policy.model_fields_set)
    raise CannotTell(
        where=f"import policy, field {fields[0]}", expected="the passport inside", got="no key to open it",
        hint="name your key folder: --identity",
    )  # fmt: skip


def _origin(
    policy: ImportPolicy, passport: Passport, sender: str, logged: Inclusion | None, now: datetime
) -> Iterator[Demand]:
    for field, allowed, got, refusal in (
        ("authors", policy.authors, passport.author, AuthorNotAccepted),
        ("senders", policy.senders, sender, SenderNotAccepted),
    ):
        if allowed is not None:
            yield Demand(field=field, expected=_one_of(allowed), got=got, met=got in allowed, refusal=refusal)
    if policy.max_age_days is not None:
        age = now - passport.created
        yield Demand(
            field="max_age_days", expected=f"made at most {policy.max_age_days:g} days ago",
            got=f"made {age.total_seconds() / 86400:.1f} days ago", refusal=TooOld,
            met=-CLOCK_SKEW <= age <= timedelta(days=policy.max_age_days),
        )  # fmt: skip
    if policy.log_proof == "required":
        got = "none" if logged is None else f"entry {logged.index} of {logged.origin}"
        yield Demand(
            field="log_proof", expected="a proof from the log", got=got, met=logged is not None, refusal=LogProofMissing
        )


def _privacy(policy: ImportPolicy, passport: Passport) -> Iterator[Demand]:
    claim = passport.dp
    for field, limit, value, refusal in (
        ("max_epsilon", policy.max_epsilon, claim.epsilon if claim else None, EpsilonRefused),
        ("max_delta", policy.max_delta, claim.delta if claim else None, DeltaRefused),
    ):
        if limit is not None:
            name = field.removeprefix("max_")
            got = "no differential privacy" if value is None else f"{name} {value:g}"
            met = value is not None and value <= limit
            yield Demand(field=field, expected=f"{name} at most {limit:g}", got=got, met=met, refusal=refusal)
    yield from _unit(policy, claim)
    yield from _audit(policy, passport)
    if policy.releases == "noised":
        public = [release.name for release in passport.releases if release.how == "public"]
        yield Demand(
            field="releases", expected="numbers with noise, or none", got=", ".join(public) or "no others",
            met=not public, refusal=ReleaseRefused,
        )  # fmt: skip


def _unit(policy: ImportPolicy, claim: DpClaim | None) -> Iterator[Demand]:
    if policy.units is not None:
        unit = claim.unit if claim else "no differential privacy"
        yield Demand(
            field="units", expected=f"per {_one_of(policy.units)}", got=unit, met=unit in policy.units,
            refusal=UnitRefused,
        )  # fmt: skip
    if policy.max_records_per_person is not None:
        most = claim.mechanism.records_per_person if claim and claim.unit == "person" else None
        got = "a claim for records alone" if claim else "no differential privacy"
        yield Demand(
            field="max_records_per_person", expected=f"at most {policy.max_records_per_person} of one person",
            got=got if most is None else str(most), refusal=TooManyPerPerson,
            met=most is not None and most <= policy.max_records_per_person,
        )  # fmt: skip


def _audit(policy: ImportPolicy, passport: Passport) -> Iterator[Demand]:
    audit = passport.audit
    if policy.audit == "required":
        yield Demand(
            field="audit", expected="an audit's result", got=audit.method if audit else "none", met=audit is not None,
            refusal=AuditMissing,
        )  # fmt: skip
        if audit is not None:
            yield Demand(
                field="audit", expected="an audit that agrees with the claim", got=audit.words(passport.dp),
                met=not audit.contradicts(passport.dp), refusal=AuditContradicts,
            )  # fmt: skip


def _fit(policy: ImportPolicy, passport: Passport) -> Iterator[Demand]:
    if policy.bases is not None:
        short = _one_of([f"{base[:16]}..." for base in policy.bases])
        met = passport.base_sha256 in policy.bases
        got = f"{passport.base_sha256[:16]}..."
        yield Demand(field="bases", expected=short, got=got, met=met, refusal=BaseRefused)
    if policy.families is not None:
        met = passport.family in policy.families
        yield Demand(
            field="families", expected=_one_of(policy.families), got=passport.family, met=met, refusal=FamilyRefused
        )
    if policy.spans is not None:
        spans, got = [f"{start}:{stop}" for start, stop in policy.spans], "{}:{}".format(*passport.span)
        yield Demand(field="spans", expected=_one_of(spans), got=got, met=got in spans, refusal=SpanRefused)


def _one_of(names: Sequence[str]) -> str:
    return ", ".join(names) if len(names) == 1 else f"one of {', '.join(names) or 'none'}"
