"""What a roster says: who belongs, with which keys, in which roles, until when; what was recalled, what gets summed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, StringConstraints, ValidationError

from not_fed import canonical
from not_fed.age import BadKeyText, check_recipient
from not_fed.errors import InputError, TrustError
from not_fed.keys.dsse import BadSignature
from not_fed.keys.identity import NAME, PublicIdentity, decode, encode, fingerprint
from not_fed.keys.log_keys import LogKeys
from not_fed.keys.signing import SigningKeys, key_fingerprint
from not_fed.trust.plans import PlansFile, SumPlan, UnsafePlan, parse_plans

CLOCK_SKEW = timedelta(seconds=300)
ROLES = ("author", "receiver", "relay", "aggregator")
ROSTER_FORMAT: Final = "not-fed.roster/1"
RECALLS_FORMAT: Final = "not-fed.recalls/1"

Name = Annotated[str, StringConstraints(pattern=rf"^{NAME.pattern}\z")]
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}\z")]
Reason = Annotated[str, StringConstraints(min_length=1, max_length=500)]
_Role = Literal["author", "receiver", "relay", "aggregator"]


class RosterMalformed(TrustError):
    """The stewards signed a roster that is not well-formed."""

    code = "roster-malformed"


class UnknownMember(TrustError):
    """Nobody of that name, with that key, is on your roster."""

    code = "member-unknown"


class MemberNotActive(TrustError):
    """This member was revoked, or its time on the roster is over or has not begun."""

    code = "member-not-active"


class KeysRetired(TrustError):
    """It was signed with a member's keys outside the time in which they were that member's."""

    code = "keys-retired"


class WrongRole(TrustError):
    """The roster does not let this member do that."""

    code = "member-role"


class BadRole(InputError):
    """There is no such role."""

    code = "bad-role"


class MemberExists(InputError):
    """A member of that name, or with one of these keys, is on the roster already."""

    code = "member-exists"


@dataclass(frozen=True, slots=True, kw_only=True)
class FormerKeys:
    """What a member used before it changed its keys: good for what was signed in that time, and nothing later."""

    signing: SigningKeys
    recipient: str
    not_before: datetime
    not_after: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """One site or coordinator, as the stewards enrolled it."""

    name: str
    roles: frozenset[str]
    signing: SigningKeys
    recipient: str
    not_before: datetime
    not_after: datetime
    active: bool
    former: tuple[FormerKeys, ...] = ()
    log: LogKeys | None = None

    @property
    def fingerprint(self) -> str:
        """The same 13 groups that the member's own `not-fed keys show` prints."""
        return fingerprint(self.signing.ed25519, self.signing.ml_dsa_65, self.recipient, self.log)

    def is_current(self, now: datetime) -> bool:
        """Neither revoked nor outside its time, give or take a clock that is five minutes off.

        A member is one since its first keys; which keys count when is what `signing_for` says.
        """
        since = min([self.not_before, *(old.not_before for old in self.former)])
        return self.active and within(now, since, self.not_after)

    def signing_for(self, key_ids: tuple[str, str], *, at: datetime) -> SigningKeys:
        """The keys of those names, if this member could sign with them at `at`.

        Args:
            key_ids: what the signed line names, unverified.
            at: when it says that it was signed; a claim of the signer.
        Raises:
            MemberNotActive: revoked; nothing of theirs counts, old things neither.
            KeysRetired: these keys were not in use at that time.
            BadSignature: never keys of this member.
        Guarantees: the keys returned are on the roster under this name, for that time, give or take five minutes.
            Whoever stole keys that were later retired can still write an earlier date. Therefore keys that were stolen
            do not become former ones (`roster rotate --stolen`), and only a log says when something really existed.
        Proved by: tests/attacks/test_members.py::test_former_keys_serve_their_own_time_only
        """
        if not self.active:
            raise MemberNotActive(
                where="roster", expected=f"{self.name} to be active", got="revoked", hint="ask a steward about it"
            )
        pairs = [(self.signing, self.not_before, self.not_after)]
        pairs += [(old.signing, old.not_before, old.not_after) for old in self.former]
        known = next((pair for pair in pairs if pair[0].key_ids == key_ids), None)
        if known is None:
            raise BadSignature(
                where=f"signature of {self.name}", expected="keys that the roster has for that member",
                got=f"keys {key_ids[0][:12]} and {key_ids[1][:12]}",
                hint="fetch the newest roster; if it is still refused, tell whoever sent it",
            )  # fmt: skip
        keys, not_before, not_after = known
        if not within(at, not_before, not_after):
            raise KeysRetired(
                where=f"signature of {self.name}, dated {canonical.format_time(at)}",
                expected=f"keys in use from {canonical.format_time(not_before)} to {canonical.format_time(not_after)}",
                got="a time outside", hint="fetch the newest roster; or let it be signed again with the keys in use",
            )  # fmt: skip
        return keys


def within(moment: datetime, start: datetime, end: datetime) -> bool:
    """Whether it lies between them, give or take five minutes. Differences: a sum would overflow in the year 9999."""
    return start - moment <= CLOCK_SKEW and moment - end <= CLOCK_SKEW


@dataclass(frozen=True, slots=True, kw_only=True)
class Recall:
    """An organ was withdrawn: by the stewards (`by` is None), for everybody, or by a member, for its own organs."""

    organ_sha256: str
    reason: str
    by: str | None
    time: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class TrustedRoster:
    """What this machine believes, after TUF has checked it; nothing else makes one.

    Attributes:
        plans: run -> how its secure sum is done; of a run without one there is no secure sum.
        removed_runs: whose plan was taken away, for good.
    """

    federation: str
    version: int
    expires_at: datetime
    members: Mapping[str, Member]
    recalled: Mapping[str, tuple[Recall, ...]] = field(default_factory=dict)
    stale: bool = False
    plans: Mapping[str, SumPlan] = field(default_factory=dict)
    removed_runs: frozenset[str] = frozenset()

    @property
    def recalls(self) -> Mapping[str, str]:
        """What the stewards recalled, with their reasons."""
        return {
            digest: recall.reason for digest, found in self.recalled.items() for recall in found if recall.by is None
        }

    def recall_of(self, organ_sha256: str, *, author: str | None) -> str | None:
        """The reason for which this organ may not be used; None while it may.

        Args:
            author: who signed its passport, because a member's own withdrawal counts for its own organs only.
        Guarantees: a recall by the stewards counts whoever the author is.
        Proved by: tests/attacks/test_recall.py::test_nobody_withdraws_the_organ_of_another_site
        """
        reasons = {recall.by: recall.reason for recall in self.recalled.get(organ_sha256, ())}
        return reasons.get(None, None if author is None else reasons.get(author))

    def member(self, name: str, *, now: datetime, role: str | Iterable[str] | None = None) -> Member:
        """The member of that name, if current and in (one of) the role(s).

        Raises:
            UnknownMember, MemberNotActive, WrongRole.
        """
        member = self.members.get(name)
        where, hint = f"roster version {self.version}", "fetch the newest roster; if that does not help, ask a steward"
        if member is None:
            raise UnknownMember(where=where, expected="a member", got=f"the name {name}", hint=hint)
        if not member.is_current(now):
            got = "revoked" if not member.active else f"valid until {canonical.format_time(member.not_after)}"
            raise MemberNotActive(where=where, expected=f"{name} to be active", got=got, hint=hint)
        wanted = {role} if isinstance(role, str) else set(role or ())
        if wanted and not wanted & member.roles:
            raise WrongRole(
                where=where, expected=f"{name} to be {' or '.join(sorted(wanted))}",
                got=", ".join(sorted(member.roles)) or "no role", hint=hint,
            )  # fmt: skip
        return member


class _Strict(BaseModel):
    model_config = ConfigDict(defer_build=True, strict=True, frozen=True, extra="forbid")


class FormerEntry(_Strict):
    """Former keys as `roster.json` has them."""

    ed25519: str
    ml_dsa_65: str
    seal: str
    not_before: str
    not_after: str

    def to_former(self) -> FormerKeys:
        """With keys decoded and checked; raises ValueError or BadKeyText."""
        return FormerKeys(
            signing=SigningKeys(decode(self.ed25519), decode(self.ml_dsa_65)), recipient=check_recipient(self.seal),
            not_before=canonical.parse_time(self.not_before), not_after=canonical.parse_time(self.not_after),
        )  # fmt: skip


class LogEntry(_Strict):
    """A log's keys as `roster.json` has them."""

    ed25519: str
    ml_dsa_44: str


class MemberEntry(_Strict):
    """A member as `roster.json` has it; without `former` it never changed its keys, without `log` it keeps none."""

    name: Name
    roles: list[_Role]
    ed25519: str
    ml_dsa_65: str
    seal: str
    not_before: str
    not_after: str
    status: Literal["active", "revoked"]
    former: list[FormerEntry] = []
    log: LogEntry | None = None

    def to_member(self) -> Member:
        """With keys decoded and checked; raises ValueError or BadKeyText."""
        return Member(
            name=self.name, roles=frozenset(self.roles), recipient=check_recipient(self.seal),
            signing=SigningKeys(decode(self.ed25519), decode(self.ml_dsa_65)), active=self.status == "active",
            not_before=canonical.parse_time(self.not_before), not_after=canonical.parse_time(self.not_after),
            former=tuple(former.to_former() for former in self.former),
            log=None if self.log is None else LogKeys(decode(self.log.ed25519), decode(self.log.ml_dsa_44)),
        )  # fmt: skip


class RosterFile(_Strict):
    """The target `roster.json`."""

    format: Literal["not-fed.roster/1"]
    federation: Name
    members: list[MemberEntry]


class RecallEntry(_Strict):
    """One organ that may no longer be used."""

    organ_sha256: Sha256
    reason: Reason
    time: str

    def to_recall(self) -> Recall:
        """By the stewards; raises ValueError."""
        return Recall(organ_sha256=self.organ_sha256, reason=self.reason, by=None, time=canonical.parse_time(self.time))


class RecallsFile(_Strict):
    """The target `recalls.json`."""

    format: Literal["not-fed.recalls/1"]
    recalls: list[RecallEntry]


def member_entry(identity: PublicIdentity, *, roles: Iterable[str], now: datetime, valid_for: timedelta) -> MemberEntry:
    """A new entry for an identity that a steward has compared; raises BadRole."""
    chosen = sorted(set(roles))
    if not chosen or not set(chosen) <= set(ROLES):
        raise BadRole(
            where="roles", expected=", ".join(ROLES), got=", ".join(chosen) or "none", hint="NAME:author,receiver"
        )
    return MemberEntry.model_validate({
        "name": identity.name, "roles": chosen, "status": "active", "former": [], **_keys(identity),
        "not_before": canonical.format_time(now), "not_after": canonical.format_time(now + valid_for),
    })  # fmt: skip


def rotated(entry: MemberEntry, identity: PublicIdentity, *, now: datetime, stolen: bool = False) -> MemberEntry:
    """The entry with new keys; the ones before become former ones, until now.

    Args:
        stolen: somebody else has the old keys. Then nothing that they ever signed counts any longer.
    Guarantees: the new keys count from the day on which their identity was made, not from before the old ones did.
    """
    former = FormerEntry(
        ed25519=entry.ed25519, ml_dsa_65=entry.ml_dsa_65, seal=entry.seal, not_before=entry.not_before,
        not_after=min(entry.not_after, canonical.format_time(now)),
    )  # fmt: skip
    since = min(now, max(identity.created, canonical.parse_time(entry.not_before)))
    kept = [] if stolen else [*entry.former, former]
    changes = {"not_before": canonical.format_time(since), "former": [old.model_dump() for old in kept]}
    return MemberEntry.model_validate(entry.model_dump() | _keys(identity) | changes)


def _keys(identity: PublicIdentity) -> dict[str, Any]:
    log = identity.log
    return {
        "ed25519": encode(identity.ed25519), "ml_dsa_65": encode(identity.ml_dsa_65), "seal": identity.seal,
        "log": {"ed25519": encode(log.ed25519), "ml_dsa_44": encode(log.ml_dsa_44)} if log else None,
    }  # fmt: skip


def check_distinct(entries: Sequence[MemberEntry]) -> dict[str, Member]:
    """The members by name, no name and no key standing for two of them, or for two purposes; former keys included.

    Raises:
        MemberExists.
    """
    seen: set[str] = set()
    members = {}
    for entry in entries:
        member = members[entry.name] = entry.to_member()
        for marks in _marks(member):
            if marks & seen:
                raise MemberExists(
                    where="roster", expected="a new name and new keys", got=f"{member.name} again",
                    hint="new keys for a member: roster rotate; anybody else makes keys of its own",
                )  # fmt: skip
            seen |= marks
    return members


def check_new_keys(entry: MemberEntry, *, revoked: MemberEntry) -> None:
    """A revoked member comes back with new keys only, for all purposes; raises MemberExists."""
    new, old = (set().union(*_marks(each.to_member())) for each in (entry, revoked))
    if (new & old) - {f"name {entry.name.lower()}"}:
        raise MemberExists(
            where="roster", expected=f"new keys of {entry.name}", got="keys that it had when it was revoked",
            hint="they may be stolen; it makes new ones: not-fed keys create",
        )  # fmt: skip


def _marks(member: Member) -> Iterator[set[str]]:
    """What nobody else may have: for the member, and for each set of its former keys."""
    log = {key_fingerprint(key) for key in (member.log.ed25519, member.log.ml_dsa_44)} if member.log else set()
    yield {f"name {member.name.lower()}"} | log
    pairs = [(member.signing, member.recipient), *((old.signing, old.recipient) for old in member.former)]
    for signing, recipient in pairs:
        yield {*signing.key_ids, key_fingerprint(recipient.encode())}


def read_roster(
    roster: bytes, recalls: bytes, plans: bytes | None = None, *, version: int, expires_at: datetime,
    withdrawn: Iterable[Recall] = (), runs: Mapping[str, str] | None = None, stale: bool = False,
) -> TrustedRoster:  # fmt: skip
    """The roster behind the targets that TUF has verified; raises RosterMalformed.

    Args:
        plans: None where there is no such target: then there is no plan.
        withdrawn: what members withdrew themselves, each checked when it came.
        runs: run -> digest of the plan that this machine knows it by. Another plan under that name is left out.
    Guarantees: each plan is this federation's, keeps the rule, and names members only.
    Proved by: tests/attacks/test_roster_plans.py::test_a_plan_that_breaks_the_rule_is_not_trusted_whoever_signed_it
    """
    try:
        parsed = RosterFile.model_validate(canonical.loads(roster, where="roster.json"))
        recalled = RecallsFile.model_validate(canonical.loads(recalls, where="recalls.json"))
        members = check_distinct(parsed.members)
        by_stewards = [entry.to_recall() for entry in recalled.recalls]
        planned = PlansFile() if plans is None else parse_plans(plans, where="plans.json")
        for plan in planned.plans:
            _check_plan(plan, federation=parsed.federation, members=members)
    except (ValidationError, ValueError, canonical.BadJson, BadKeyText, MemberExists, UnsafePlan) as error:
        got = error.got if isinstance(error, InputError) else "fields of another shape"
        if isinstance(error, UnsafePlan):
            got = f"a plan of a secure sum with {error.got} for {error.expected}"
        raise RosterMalformed(
            where=f"roster version {version}",
            expected="distinct members with two signing keys and a sealing key each, and plans that keep the rule",
            got=got, hint="tell the stewards; nothing was changed",
        ) from None  # fmt: skip
    found: dict[str, tuple[Recall, ...]] = {}
    for recall in (*by_stewards, *withdrawn):
        found[recall.organ_sha256] = (*found.get(recall.organ_sha256, ()), recall)
    return TrustedRoster(
        federation=parsed.federation, version=version, expires_at=expires_at, members=members, recalled=found,
        stale=stale, removed_runs=frozenset(planned.removed),
        plans={plan.run: plan for plan in planned.plans if (runs or {}).get(plan.run) in (None, plan.sha256)},
    )  # fmt: skip


def _check_plan(plan: SumPlan, *, federation: str, members: Mapping[str, Member]) -> None:
    """Raises UnsafePlan; ValueError for another federation, or somebody who is no member."""
    plan.thresholds()
    if plan.federation != federation:
        raise ValueError("a plan of another federation")
    if not {plan.coordinator, *plan.sites} <= set(members):
        raise ValueError("a plan with somebody who is no member")
