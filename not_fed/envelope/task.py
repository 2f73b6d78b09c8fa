"""The coordinator's signed order to the sites of a run, and a site's signed greeting to the coordinator.

A task is a proposal: the site's own policy decides. Both are DSSE lines under the two signatures of every not-fed
statement. A task names the sealed organs that come with it by digest, so that a server cannot slip one in, leave one
out for one site only, or count a site twice, without a signed contradiction.
"""

from __future__ import annotations

import secrets
from datetime import datetime, timedelta
from typing import Annotated, Any, Final, Literal, Self

from pydantic import Field, StringConstraints, model_validator

from not_fed.envelope.dsse import Moment, Name, Sha256, Statement, check_validity, parse_statement, sign_statement
from not_fed.errors import PeerError, TrustError
from not_fed.keys import Signer
from not_fed.trust.members import CLOCK_SKEW, TrustedRoster

TASK_TYPE = "application/vnd.not-fed.task.v1+json"
GREETING_TYPE = "application/vnd.not-fed.greeting.v1+json"
MAX_TASK_BYTES = 256 << 10
PROTOCOL: Final = 1  # what coordinator and site say to each other; goes up when an older side would misunderstand
_MAX_VALIDITY = timedelta(days=30)

Version = Annotated[str, StringConstraints(pattern=r"^[0-9A-Za-z][0-9A-Za-z.+-]{0,63}\z")]
Hex128 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{32}\z")]


class BadTask(TrustError):
    """This is not a task that the coordinator signed for now."""

    code = "bad-task"


class BadGreeting(TrustError):
    """This is not a greeting that a site signed for this coordinator, now."""

    code = "bad-greeting"


class OtherRoster(BadTask):
    """The coordinator's task was made under another version of the roster than this site's."""

    code = "other-roster"


class OtherProtocol(PeerError):
    """The other side speaks another version of what coordinators and sites say to each other."""

    code = "protocol-version"


class ClockApart(BadGreeting):
    """A site's clock and the coordinator's are further apart than anything that is signed for now bears."""

    code = "clock-apart"
    site: str  # proven by its signatures, unlike the names in other greetings that are refused


class Training(Statement):
    """How the coordinator would like the span to be trained; a policy bounds it."""

    lr: float = Field(gt=0, le=1)
    epochs: int = Field(ge=1, le=10_000)
    batch_tokens: int = Field(ge=1, le=1 << 24)
    max_tokens: int = Field(ge=2, le=1 << 20)
    warmup: float = Field(default=0.1, ge=0, lt=1)
    seed: int = Field(default=0, ge=0, lt=1 << 32)


class ProposedPrivacy(Statement):
    """The guarantee the coordinator would like; each site uses its own constants and the smaller epsilon."""

    epsilon: float = Field(gt=0, le=10)
    delta: float = Field(gt=0, lt=0.01)


class ParcelRef(Statement):
    """One sealed organ of the round before, as the coordinator counted it.

    Attributes:
        sender: who sealed it: a site in mode bank, the aggregator in mode trusted.
        weight: its share in the mean is weight over the sum of weights.
    """

    sender: Name
    sealed_sha256: Sha256
    size_bytes: int = Field(ge=1)
    weight: float = Field(gt=0)


class Task(Statement):
    """One step of a run, the same signed bytes for every site.

    Attributes:
        kind: train a round's organ and send it, or receive the last round's result.
        sites: who takes part; recipients: to whom a site seals its organ (itself left out).
        parcels: all sealed organs that count for the round before; a site is sent those of others.
    """

    v: Literal[1]
    id: Hex128
    federation: Name
    run: Name
    round: int = Field(ge=1)
    rounds: int = Field(ge=1, le=10_000)
    mode: Literal["bank", "trusted"]
    kind: Literal["train", "receive"]
    base_sha256: Sha256
    span: tuple[int, int]
    training: Training
    privacy: ProposedPrivacy | None
    sites: tuple[Name, ...] = Field(min_length=2, max_length=250)
    recipients: tuple[Name, ...] = Field(min_length=1, max_length=250)
    parcels: tuple[ParcelRef, ...]
    coordinator: Name
    issued: Moment
    expires: Moment
    roster_version: int = Field(ge=1)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        rules = {
            "round of at most rounds": self.round <= self.rounds,
            "a span [start, stop] with 0 <= start < stop": 0 <= self.span[0] < self.span[1],
            "a receiving task for the last round only": self.kind == "train" or self.round == self.rounds,
            "parcels exactly where there is a round before": bool(self.parcels)
            == (self.kind == "receive" or self.round > 1),
            "recipients as the mode has them": sorted(self.recipients)
            == (sorted(self.sites) if self.mode == "bank" else [self.coordinator]),
            "each sealed organ once": len({ref.sealed_sha256 for ref in self.parcels}) == len(self.parcels),
            "one organ of each sender": len({ref.sender for ref in self.parcels}) == len(self.parcels),
            "an end after its beginning, in at most 30 days": timedelta(0)
            < self.expires - self.issued
            <= _MAX_VALIDITY,
        }
        for rule, kept in rules.items():
            if not kept:
                raise ValueError(rule)
        return self

    def terms(self) -> dict[str, Any]:
        """What must not change from one task of a run to the next."""
        names = {"federation", "rounds", "mode", "base_sha256", "span", "training", "privacy", "sites", "recipients"}
        return self.model_dump(mode="json", include=names | {"coordinator"})

    def parcels_round(self) -> int:
        """The round whose organs come with this task."""
        return self.round if self.kind == "receive" else self.round - 1


class Greeting(Statement):
    """A site says to a coordinator that it is there: nothing else is known from a connection.

    Attributes:
        log_size: how much of the coordinator's log the site has seen; what it is sent must have grown from there.
        not_fed: the version that is installed there; protocol: what it speaks.
    """

    v: Literal[1]
    federation: Name
    site: Name
    coordinator: Name
    nonce: Hex128
    log_size: int = Field(ge=0, lt=1 << 62)
    not_fed: Version
    protocol: int = Field(ge=1, lt=1 << 16)
    issued: Moment


def new_id() -> str:
    """A fresh random id or nonce."""
    return secrets.token_hex(16)


def sign_task(task: Task, *, signer: Signer) -> bytes:
    """The signed line that goes to every site of the run."""
    return sign_statement(task, payload_type=TASK_TYPE, signer=signer)


def verify_task(line: bytes, *, roster: TrustedRoster, now: datetime) -> Task:
    """The task, once its signatures, its signer's place in the roster and its time are checked.

    Raises:
        MalformedSigned, BadSignature: not a task, or not signed by the coordinator that it names.
        BadTask: for another federation. OtherRoster: under another version of the roster. Stale: not for now.
        UnknownMember, MemberNotActive, WrongRole: the roster does not know the coordinator as a relay.
    Proved by: tests/unit/test_task.py::test_a_changed_or_foreign_task_is_refused
    """
    unverified, task = parse_statement(line, Task, payload_type=TASK_TYPE, where="task", max_bytes=MAX_TASK_BYTES)
    unverified.verify(roster.member(task.coordinator, role="relay", now=now).signing)
    if task.federation != roster.federation:
        raise BadTask(
            where="task", expected=f"federation {roster.federation}", got=task.federation, hint="nothing was done"
        )
    if task.roster_version != roster.version:
        raise OtherRoster(
            where="task",
            expected=f"roster version {roster.version}",
            got=f"version {task.roster_version}",
            hint="update the roster on both sides; nothing was done, and the task comes again",
        )
    check_validity(issued=task.issued, expires=task.expires, now=now, where="task")
    return task


def check_protocol(spoken: object, *, where: str) -> None:
    """Refuse to go on with a side that speaks another protocol.

    Raises:
        OtherProtocol: naming both versions.
    """
    if spoken != PROTOCOL:
        raise OtherProtocol(
            where=where,
            expected=f"protocol {PROTOCOL}",
            got=f"protocol {spoken}" if isinstance(spoken, int) else "none",
            hint="install the same not-fed on both sides; nothing was done",
        )


def sign_greeting(greeting: Greeting, *, signer: Signer) -> bytes:
    """The signed line with which a site answers a coordinator's nonce."""
    return sign_statement(greeting, payload_type=GREETING_TYPE, signer=signer)


def verify_greeting(line: bytes, *, coordinator: str, nonce: str, roster: TrustedRoster, now: datetime) -> Greeting:
    """The greeting, signed by the site that it names for this coordinator and nonce.

    Raises:
        MalformedSigned, BadSignature, BadGreeting, UnknownMember, MemberNotActive, WrongRole: anything else than that.
        ClockApart: all of that, and more than five minutes away; the error names the site.
    Proved by: tests/unit/test_task.py::test_a_greeting_for_another_coordinator_or_nonce_is_refused,
        tests/unit/test_task.py::test_a_site_whose_clock_is_off_by_a_day_is_named
    """
    unverified, greeting = parse_statement(
        line, Greeting, payload_type=GREETING_TYPE, where="greeting", max_bytes=MAX_TASK_BYTES
    )
    unverified.verify(roster.member(greeting.site, role="author", now=now).signing)
    if (greeting.federation, greeting.coordinator, greeting.nonce) != (roster.federation, coordinator, nonce):
        raise BadGreeting(
            where="greeting",
            expected="one for this federation, coordinator and nonce",
            got="another",
            hint="the connection is not used for any site",
        )
    if abs(now - greeting.issued) > CLOCK_SKEW:
        minutes = round((greeting.issued - now) / timedelta(minutes=1))
        apart = ClockApart(
            where=f"greeting of {greeting.site}, field issued",
            expected="a clock within 5 minutes of this one",
            got=f"{abs(minutes)} minutes {'ahead' if minutes > 0 else 'behind'}",
            hint="set the clock that is wrong (timedatectl); the site is greeted again by itself",
        )
        apart.site = greeting.site
        raise apart
    return greeting
