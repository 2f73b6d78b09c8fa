"""The coordinator's signed order to the sites of a run, and a site's signed greeting to the coordinator.

A task is a proposal: the site's own policy decides. Both are DSSE lines under the two signatures of every not-fed
statement. A task names the sealed organs that come with it by digest, so that a server cannot slip one in, leave one
out for one site only, or count a site twice, without a signed contradiction.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from datetime import datetime, timedelta
from itertools import pairwise
from typing import Annotated, Any, Final, Literal, Self

from pydantic import Field, StringConstraints, model_validator

from not_fed.envelope.dsse import Moment, Name, Sha256, Statement, check_validity, parse_statement, sign_statement
from not_fed.envelope.summing import MAX_KEY_BYTES, SumCall
from not_fed.errors import PeerError, TrustError
from not_fed.keys import Signer
from not_fed.trust.members import CLOCK_SKEW, TrustedRoster

TASK_TYPE = "application/vnd.not-fed.task.v1+json"
GREETING_TYPE = "application/vnd.not-fed.greeting.v1+json"
MAX_TASK_BYTES = 256 << 10
PROTOCOL: Final = 2  # what coordinator and site say to each other; goes up when an older side would misunderstand
_MAX_VALIDITY = timedelta(days=30)

Version = Annotated[str, StringConstraints(pattern=r"^[0-9A-Za-z][0-9A-Za-z.+-]{0,63}\z")]
Mode = Literal["bank", "secure-sum", "trusted"]
Kind = Literal["train", "help", "reveal", "vote", "receive"]
ORDER_OF_KINDS: Final[tuple[Kind, ...]] = ("train", "help", "reveal", "vote", "receive")  # within a round
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
    """How the coordinator would like the span to be trained; a policy bounds it.

    Attributes:
        rank: 0 lets all weights of the span learn; otherwise factors of that rank, whose product is added to them.
        proximal: mu of FedProx, which holds what a site trains near the round's start; it needs no bound and costs no
            privacy.
    """

    lr: float = Field(gt=0, le=1)
    epochs: int = Field(ge=1, le=10_000)
    batch_tokens: int = Field(ge=1, le=1 << 24)
    max_tokens: int = Field(ge=2, le=1 << 20)
    warmup: float = Field(default=0.1, ge=0, lt=1)
    seed: int = Field(default=0, ge=0, lt=1 << 32)
    rank: int = Field(default=0, ge=0, le=4096)
    proximal: float = Field(default=0.0, ge=0, le=1e6)

    @model_validator(mode="after")
    def _factors_or_weights(self) -> Self:
        if self.rank and self.proximal:
            raise ValueError("no proximal beside a rank: it holds weights, not factors")
        return self


class ProposedPrivacy(Statement):
    """The guarantee the coordinator would like; each site uses its own constants and the smaller epsilon."""

    epsilon: float = Field(gt=0, le=10)
    delta: float = Field(gt=0, lt=0.01)


class ParcelRef(Statement):
    """One sealed organ that counts, as the coordinator counted it.

    Attributes:
        sender: who sealed it: a site in mode bank, the aggregator in the others.
        round: the round in which it was made.
        weight: its share in the mean is weight over the sum of weights.
    """

    sender: Name
    round: int = Field(ge=1)
    sealed_sha256: Sha256
    size_bytes: int = Field(ge=1)
    weight: float = Field(gt=0)


class TotalRef(Statement):
    """A blind sum that the coordinator relays and cannot read.

    Attributes:
        call: what was summed; active_sha256: over which uploads, whose labels come with it.
        sha256, size_bytes: of the words.
    """

    call: SumCall
    active_sha256: Sha256
    sha256: Sha256
    size_bytes: int = Field(ge=1)


class Task(Statement):
    """One step of a run, the same signed bytes for every site.

    Attributes:
        kind: train a round's organ and send it (or its masked change); help to take the masks off a secure sum; reveal
            shares in the place of a lost helper; vote on a candidate; or receive the result.
        span, spans: the layers of this round, and of the rounds in turn.
        sites: who takes part; recipients: to whom a site seals its organ (itself left out).
        parcels: all sealed organs that count: the newest of each span, and for a vote the candidate too. A site is
            sent those of others.
        call: in mode secure-sum, what this round's answers are bound to.
        active_sha256: the set of uploads that is summed; missing: the helpers that were lost.
        total: a blind sum, for those who can unmask it.
        quorum: how many sites have to accept a round's aggregate; 0 where nobody votes.
        proposal_sha256: what a vote is about: digest of the aggregate's organ, or of the set that a blind sum is over.
    """

    v: Literal[1]
    id: Hex128
    federation: Name
    run: Name
    round: int = Field(ge=1)
    rounds: int = Field(ge=1, le=10_000)
    mode: Mode
    kind: Kind
    base_sha256: Sha256
    span: tuple[int, int]
    spans: tuple[tuple[int, int], ...] = Field(min_length=1, max_length=64)
    training: Training
    privacy: ProposedPrivacy | None
    sites: tuple[Name, ...] = Field(min_length=2, max_length=250)
    recipients: tuple[Name, ...] = Field(min_length=1, max_length=250)
    parcels: tuple[ParcelRef, ...]
    call: SumCall | None = None
    active_sha256: Sha256 | None = None
    missing: tuple[Name, ...] = ()
    total: TotalRef | None = None
    proposal_sha256: Sha256 | None = None
    quorum: int = Field(default=0, ge=0, le=250)
    coordinator: Name
    issued: Moment
    expires: Moment
    roster_version: int = Field(ge=1)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        counted = {ref.round for ref in self.parcels if ref not in self.candidates}
        rules = {
            "round of at most rounds": self.round <= self.rounds,
            "spans [start, stop] with 0 <= start < stop": all(0 <= start < stop for start, stop in self.spans),
            "spans that are equal or share no layer": are_apart(self.spans),
            "the round's own span": self.span == self.spans[(self.round - 1) % len(self.spans)],
            "a receiving task for the last round only": self.kind != "receive" or self.round == self.rounds,
            "parcels of rounds that are over": all(ref.round <= self._latest for ref in self.parcels),
            "recipients as the mode has them": sorted(self.recipients)
            == (sorted(self.sites) if self.mode == "bank" else [self.coordinator]),
            "each sealed organ once": len({ref.sealed_sha256 for ref in self.parcels}) == len(self.parcels),
            "one organ of each sender and round": len({(ref.sender, ref.round) for ref in self.parcels})
            == len(self.parcels),
            "one round of each span": len({self.span_of(number) for number in counted}) == len(counted),
            "in mode bank, where no round is rolled back, each span's newest round": self.mode != "bank"
            or counted == self._newest(self._latest),
            "an end after its beginning, in at most 30 days": timedelta(0)
            < self.expires - self.issued
            <= _MAX_VALIDITY,
            **self._sum_rules(),
        }
        for rule, kept in rules.items():
            if not kept:
                raise ValueError(rule)
        return self

    def _sum_rules(self) -> dict[str, bool]:
        call, summing = self.call, self.mode == "secure-sum"
        return {
            "help and reveal in mode secure-sum only": summing or self.kind not in ("help", "reveal"),
            "no vote in mode bank": self.mode != "bank" or self.kind != "vote",
            "a call exactly where answers are summed": (call is not None)
            == (summing and self.kind in ("train", "help", "reveal")),
            "a call for this run and round": call is None
            or (call.federation, call.run, call.round) == (self.federation, self.run, self.round),
            "a set of uploads exactly where masks come off": (self.active_sha256 is not None)
            == (self.kind in ("help", "reveal")),
            "missing helpers exactly where shares are asked for": bool(self.missing) == (self.kind == "reveal"),
            "missing helpers sorted, each once": list(self.missing) == sorted(set(self.missing)),
            "no quorum in mode bank": self.mode != "bank" or self.quorum == 0,
            "a quorum of at most the sites": self.quorum <= len(self.sites),
            "a proposal exactly where there is a vote": (self.proposal_sha256 is not None) == (self.kind == "vote"),
            "one candidate of a vote": self.kind != "vote" or len(self.candidates) + (self.total is not None) == 1,
            "a blind sum in mode secure-sum only": self.total is None or summing,
            "a blind sum of a round that is over": self.total is None
            or (self.total.call.round == self.round if self.kind == "vote" else self.total.call.round <= self._latest),
            "a blind sum of this run": self.total is None
            or (self.total.call.federation, self.total.call.run) == (self.federation, self.run),
        }

    @property
    def _latest(self) -> int:
        """The newest round that this task can go on from, or be about."""
        return self.round if self.kind in ("vote", "receive") else self.round - 1

    @property
    def candidates(self) -> tuple[ParcelRef, ...]:
        """In a vote, the round's sealed aggregate; a blind sum has none."""
        return tuple(ref for ref in self.parcels if self.kind == "vote" and ref.round == self.round)

    def span_of(self, round_number: int) -> tuple[int, int]:
        """The layers that a round of this run trains."""
        return self.spans[(round_number - 1) % len(self.spans)]

    def _newest(self, latest: int) -> set[int]:
        """The newest round of each span among the rounds up to `latest`."""
        numbers = range(max(1, latest - len(self.spans) + 1), latest + 1)
        return set({self.span_of(number): number for number in numbers}.values())

    def terms(self) -> dict[str, Any]:
        """What must not change from one task of a run to the next."""
        names = {"federation", "rounds", "mode", "base_sha256", "spans", "quorum", "training", "privacy", "sites"}
        return self.model_dump(mode="json", include=names | {"recipients", "coordinator"})


def are_apart(spans: Sequence[tuple[int, int]]) -> bool:
    """Whether any two of these spans are the same or share no layer: then rounds in turn make one body.

    >>> are_apart([(26, 29), (20, 23), (26, 29)]), are_apart([(20, 23), (22, 25)])
    (True, False)
    """
    return all(lower[1] <= upper[0] for lower, upper in pairwise(sorted(set(spans))))


class Greeting(Statement):
    """A site says to a coordinator that it is there: nothing else is known from a connection.

    Attributes:
        log_size: how much of the coordinator's log the site has seen; what it is sent must have grown from there.
        not_fed: the version that is installed there; protocol: what it speaks.
        round_key: a signed sealing key for the site's next secure sum, where its policy has that mode.
    """

    v: Literal[1]
    federation: Name
    site: Name
    coordinator: Name
    nonce: Hex128
    log_size: int = Field(ge=0, lt=1 << 62)
    not_fed: Version
    protocol: int = Field(ge=1, lt=1 << 16)
    round_key: Annotated[str, StringConstraints(max_length=MAX_KEY_BYTES)] | None = None
    issued: Moment


def new_id() -> str:
    """A fresh random id or nonce."""
    return secrets.token_hex(16)


def sign_task(task: Task, *, signer: Signer) -> bytes:
    """The signed line that goes to every site of the run."""
    return sign_statement(task, payload_type=TASK_TYPE, signer=signer)


def parse_task(line: bytes) -> Task:
    """What a task says, unverified: for whoever signed it."""
    return parse_statement(line, Task, payload_type=TASK_TYPE, where="task", max_bytes=MAX_TASK_BYTES)[1]


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
