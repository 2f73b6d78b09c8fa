"""What a roster says: who belongs, with which keys, in which roles, until when; and which organs were recalled."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, StringConstraints, ValidationError

from not_fed import canonical
from not_fed.age import BadKeyText, check_recipient
from not_fed.errors import InputError, TrustError
from not_fed.keys.identity import NAME, PublicIdentity, fingerprint
from not_fed.keys.signing import SigningKeys, key_fingerprint

CLOCK_SKEW = timedelta(seconds=300)
ROLES = ("author", "receiver", "relay", "aggregator")
ROSTER_FORMAT: Final = "not-fed.roster/1"
RECALLS_FORMAT: Final = "not-fed.recalls/1"

Name = Annotated[str, StringConstraints(pattern=rf"^{NAME.pattern}\z")]
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}\z")]
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
class Member:
    """One site or coordinator, as the stewards enrolled it."""

    name: str
    roles: frozenset[str]
    signing: SigningKeys
    recipient: str
    not_before: datetime
    not_after: datetime
    active: bool

    @property
    def fingerprint(self) -> str:
        """The same 13 groups that the member's own `not-fed keys show` prints."""
        return fingerprint(self.signing.ed25519, self.signing.ml_dsa_65, self.recipient)

    def is_current(self, now: datetime) -> bool:
        """Neither revoked nor outside its time, give or take a clock that is five minutes off."""
        return self.active and self.not_before - now <= CLOCK_SKEW and now - self.not_after <= CLOCK_SKEW


@dataclass(frozen=True, slots=True, kw_only=True)
class TrustedRoster:
    """What this machine believes, after TUF has checked it; nothing else makes one."""

    federation: str
    version: int
    expires_at: datetime
    members: Mapping[str, Member]
    recalls: Mapping[str, str]

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
    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")


class MemberEntry(_Strict):
    """A member as `roster.json` has it."""

    name: Name
    roles: list[_Role]
    ed25519: str
    ml_dsa_65: str
    seal: str
    not_before: str
    not_after: str
    status: Literal["active", "revoked"]

    def to_member(self) -> Member:
        """With keys decoded and checked; raises ValueError or BadKeyText."""
        signing = SigningKeys(
            base64.b64decode(self.ed25519, validate=True), base64.b64decode(self.ml_dsa_65, validate=True)
        )
        return Member(
            name=self.name, roles=frozenset(self.roles), signing=signing, recipient=check_recipient(self.seal),
            not_before=canonical.parse_time(self.not_before), not_after=canonical.parse_time(self.not_after),
            active=self.status == "active",
        )  # fmt: skip


class RosterFile(_Strict):
    """The target `roster.json`."""

    format: Literal["not-fed.roster/1"]
    federation: Name
    members: list[MemberEntry]


class RecallEntry(_Strict):
    """One organ that may no longer be used."""

    organ_sha256: Sha256
    reason: Annotated[str, StringConstraints(max_length=500)]
    time: str


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
        "name": identity.name, "roles": chosen, "ed25519": base64.b64encode(identity.ed25519).decode(),
        "ml_dsa_65": base64.b64encode(identity.ml_dsa_65).decode(), "seal": identity.seal, "status": "active",
        "not_before": canonical.format_time(now), "not_after": canonical.format_time(now + valid_for),
    })  # fmt: skip


def check_distinct(entries: Sequence[MemberEntry]) -> None:
    """No name and no key may stand for two members; raises MemberExists."""
    seen: set[str] = set()
    for entry in entries:
        member = entry.to_member()
        marks = {f"name {member.name.lower()}", *member.signing.key_ids, key_fingerprint(member.recipient.encode())}
        if marks & seen:
            raise MemberExists(
                where="roster", expected="a new name and new keys", got=f"{member.name} again",
                hint="revoke the old entry first, or let the site make keys of its own",
            )  # fmt: skip
        seen |= marks


def read_roster(roster: bytes, recalls: bytes, *, version: int, expires_at: datetime) -> TrustedRoster:
    """The roster behind two targets that TUF has verified; raises RosterMalformed."""
    try:
        parsed = RosterFile.model_validate(canonical.loads(roster, where="roster.json"))
        recalled = RecallsFile.model_validate(canonical.loads(recalls, where="recalls.json"))
        check_distinct(parsed.members)
        members = {entry.name: entry.to_member() for entry in parsed.members}
    except (ValidationError, ValueError, canonical.BadJson, BadKeyText, MemberExists) as error:
        got = error.got if isinstance(error, InputError) else "fields of another shape"
        raise RosterMalformed(
            where=f"roster version {version}", expected="distinct members with two signing keys and a sealing key each",
            got=got, hint="tell the stewards; nothing was changed",
        ) from None  # fmt: skip
    return TrustedRoster(
        federation=parsed.federation, version=version, expires_at=expires_at, members=members,
        recalls={entry.organ_sha256: entry.reason for entry in recalled.recalls},
    )  # fmt: skip
