"""What stewards decide: enrol, extend, rotate, revoke, recall, renew, exchange a steward.

Each decision is an edit of members and recalls; `ceremony.propose` makes a draft of it for several stewards to sign.
The functions here that take `steward` do all in one step, for those who are enough on their own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from pydantic import ValidationError

from not_fed import canonical
from not_fed.errors import InputError
from not_fed.keys.identity import PublicIdentity, check_name
from not_fed.keys.signing import Steward
from not_fed.keys.steward import StewardIdentity
from not_fed.keys.succession import read_succession
from not_fed.trust.ceremony import (
    FRESH_FOR,
    VALID_FOR,
    BadExpiry,
    BadStewards,
    Edit,
    NotASteward,
    Proposal,
    propose,
    propose_first,
    publish,
)
from not_fed.trust.members import (
    RECALLS_FORMAT,
    ROSTER_FORMAT,
    MemberEntry,
    MemberExists,
    MemberNotActive,
    RecallEntry,
    RecallsFile,
    RosterFile,
    TrustedRoster,
    UnknownMember,
    check_distinct,
    check_new_keys,
    member_entry,
    rotated,
)
from not_fed.trust.people import People, threshold
from not_fed.trust.planning import planning, unplanning
from not_fed.trust.plans import SumPlan

Stewards = Steward | Sequence[Steward]


class BadRecall(InputError):
    """A recall names an organ by its SHA-256, and says why."""

    code = "bad-recall"


def create_roster(
    folder: Path, *, federation: str, steward: Stewards, members: Sequence[tuple[PublicIdentity, Iterable[str]]],
    expires_in: timedelta = FRESH_FOR, valid_for: timedelta = VALID_FOR, plans: Sequence[SumPlan] = (),
    now: datetime | None = None,
) -> str:  # fmt: skip
    """Make a roster folder whose root this machine trusts from then on; hand out its `repository`.

    Args:
        steward: all stewards, who sign at once; with several, on several machines: `first_proposal`.
        members: identities whose fingerprints the steward has compared, each with its roles.
        expires_in: how long sites may rely on it before they need a renewed one.
        plans: of secure sums among these members.
    Returns:
        the root's SHA-256, over its signed part, which others pin.
    Raises:
        OutputExists, BadName, BadRole, MemberExists, BadExpiry, BadStewards; all that `planning` raises.
    """
    people = {each.name: each.public for each in _all(steward)}
    if len(people) != len(_all(steward)):
        raise BadStewards(
            where="stewards", expected="a name for each", got="one name twice", hint="one key folder each"
        )
    proposal = first_proposal(
        folder, federation=federation, stewards=people, members=members, expires_in=expires_in, valid_for=valid_for,
        plans=plans, now=now,
    )  # fmt: skip
    _at_once(proposal, steward)
    return proposal.root_sha256


def first_proposal(
    folder: Path, *, federation: str, stewards: People, members: Sequence[tuple[PublicIdentity, Iterable[str]]],
    expires_in: timedelta = FRESH_FOR, valid_for: timedelta = VALID_FOR, plans: Sequence[SumPlan] = (),
    now: datetime | None = None,
) -> Proposal:  # fmt: skip
    """The first version, unsigned; errors as `create_roster`."""
    moment = moment_of(now)
    entries = [member_entry(identity, roles=roles, now=moment, valid_for=valid_for) for identity, roles in members]
    check_distinct(entries)
    roster = RosterFile(format=ROSTER_FORMAT, federation=check_name(federation), members=entries)
    return propose_first(
        folder, federation=roster, recalls=RecallsFile(format=RECALLS_FORMAT, recalls=[]), stewards=stewards,
        now=moment, expires_in=expires_in, valid_for=valid_for, plans=planning(*plans, now=moment) if plans else None,
    )  # fmt: skip


def adding(identity: PublicIdentity, *, roles: Iterable[str], now: datetime, valid_for: timedelta = VALID_FOR) -> Edit:
    """Enrol one more member, or a revoked one again with new keys.

    Raises:
        MemberExists: also when a revoked member comes back with a key that it had. BadRole.
    Proved by: tests/attacks/test_members.py::test_a_revoked_member_does_not_come_back_with_its_old_keys
    """
    entry = member_entry(identity, roles=roles, now=now, valid_for=valid_for)

    def edit(roster: RosterFile, recalls: RecallsFile) -> tuple[RosterFile, RecallsFile]:
        gone = [old for old in roster.members if old.name == entry.name and old.status == "revoked"]
        for old in gone:
            check_new_keys(entry, revoked=old)
        kept = [old for old in roster.members if old not in gone]
        check_distinct([*kept, entry])
        return roster.model_copy(update={"members": [*kept, entry]}), recalls

    return edit


def revoking(name: str) -> Edit:
    """Take a member's trust away; raises UnknownMember."""
    return _changing(name, lambda entry: entry.model_copy(update={"status": "revoked"}))


def extending(name: str, *, now: datetime, valid_for: timedelta = VALID_FOR) -> Edit:
    """Let a membership last until `valid_for` from now; raises UnknownMember, MemberNotActive."""
    until = canonical.format_time(now + valid_for)
    return _changing(name, lambda entry: _active(entry).model_copy(update={"not_after": until}))


def rotating(identity: PublicIdentity, *, succession: bytes | None, now: datetime, stolen: bool = False) -> Edit:
    """Give a member its new keys; the old ones become former ones.

    Args:
        succession: the old keys' word for the new ones. Without it, somebody has compared the new fingerprint.
        stolen: nothing that the old keys signed counts any longer; not even their succession.
    Raises:
        UnknownMember, MemberNotActive, MemberExists; SuccessionRefused, BadSignature, MalformedSigned.
    Proved by: tests/attacks/test_members.py::test_a_succession_is_the_word_of_the_keys_in_use
    """

    def change(entry: MemberEntry) -> MemberEntry:
        member = _active(entry).to_member()
        if succession is not None:
            said = read_succession(succession, old=member.signing)
            said.check(name=member.name, old=member.fingerprint, new=identity)
        return rotated(entry, identity, now=now, stolen=stolen)

    return _changing(identity.name, change)


def recalling(organ_sha256: str, *, reason: str, now: datetime) -> Edit:
    """Withdraw an organ for everybody; raises BadRecall."""
    try:
        entry = RecallEntry(organ_sha256=organ_sha256, reason=reason, time=canonical.format_time(now))
    except ValidationError:
        raise BadRecall(
            where="recall", expected="64 hex digits, lower case, and a reason of 1 to 500 characters", got="others",
            hint='not-fed recall issue ORGAN --reason "trained on the wrong records"',
        ) from None  # fmt: skip

    def edit(roster: RosterFile, recalls: RecallsFile) -> tuple[RosterFile, RecallsFile]:
        return roster, recalls.model_copy(update={"recalls": [*recalls.recalls, entry]})

    return edit


def unchanged(roster: RosterFile, recalls: RecallsFile) -> tuple[RosterFile, RecallsFile]:
    """The same, for a renewal or a change of stewards."""
    return roster, recalls


def exchanging(*, add: Iterable[StewardIdentity] = (), remove: Iterable[str] = ()) -> Callable[[People], People]:
    """Today's stewards to tomorrow's; raises BadStewards."""
    joining, leaving = tuple(add), set(remove)

    def exchange(before: People) -> People:
        kept = {name: keys for name, keys in before.items() if name not in leaving}
        names = [identity.name for identity in joining]
        if not leaving <= set(before) or set(names) & set(kept) or len(set(names)) != len(names):
            raise BadStewards(
                where="stewards", expected="to remove whom there is, to add whom there is not",
                got="another name", hint=f"today: {', '.join(sorted(before))}",
            )  # fmt: skip
        return kept | {identity.name: identity.keys for identity in joining}

    return exchange


def add_member(
    folder: Path, *, identity: PublicIdentity, roles: Iterable[str], steward: Stewards,
    valid_for: timedelta = VALID_FOR, now: datetime | None = None,
) -> TrustedRoster:  # fmt: skip
    """`adding`, in one step; raises NotASteward when these stewards are too few."""
    moment = moment_of(now)
    edit = adding(identity, roles=roles, now=moment, valid_for=valid_for)
    return _at_once(propose(folder, edit, now=moment), steward)


def revoke_member(folder: Path, *, name: str, steward: Stewards, now: datetime | None = None) -> TrustedRoster:
    """`revoking`, in one step; raises NotASteward when these stewards are too few."""
    return _at_once(propose(folder, revoking(name), now=moment_of(now)), steward)


def rotate_member(
    folder: Path, *, identity: PublicIdentity, steward: Stewards, succession: bytes | None = None,
    stolen: bool = False, now: datetime | None = None,
) -> TrustedRoster:  # fmt: skip
    """`rotating`, in one step; raises NotASteward when these stewards are too few."""
    moment = moment_of(now)
    edit = rotating(identity, succession=succession, stolen=stolen, now=moment)
    return _at_once(propose(folder, edit, now=moment), steward)


def recall_organ(
    folder: Path, *, organ_sha256: str, reason: str, steward: Stewards, now: datetime | None = None
) -> TrustedRoster:
    """`recalling`, in one step; raises NotASteward when these stewards are too few."""
    moment = moment_of(now)
    return _at_once(propose(folder, recalling(organ_sha256, reason=reason, now=moment), now=moment), steward)


def renew_roster(
    folder: Path, *, steward: Stewards, expires_in: timedelta = FRESH_FOR, valid_for: timedelta = VALID_FOR,
    now: datetime | None = None,
) -> TrustedRoster:  # fmt: skip
    """The same roster with new dates, the root's included; works on an expired one. Memberships keep their dates."""
    proposal = propose(
        folder, unchanged, now=moment_of(now), expires_in=expires_in, valid_for=valid_for, renew_root=True
    )
    return _at_once(proposal, steward)


def add_plan(folder: Path, *, plan: SumPlan, steward: Stewards, now: datetime | None = None) -> TrustedRoster:
    """`planning`, in one step; raises NotASteward when these stewards are too few."""
    moment = moment_of(now)
    return _at_once(propose(folder, unchanged, now=moment, plans=planning(plan, now=moment)), steward)


def remove_plan(folder: Path, *, run: str, steward: Stewards, now: datetime | None = None) -> TrustedRoster:
    """`unplanning`, in one step; raises NotASteward when these stewards are too few."""
    return _at_once(propose(folder, unchanged, now=moment_of(now), plans=unplanning(run)), steward)


def change_stewards(
    folder: Path, *, steward: Stewards, add: Iterable[StewardIdentity] = (), remove: Iterable[str] = (),
    now: datetime | None = None,
) -> TrustedRoster:  # fmt: skip
    """`exchanging`, in one step: signed by enough of the stewards before and of those after."""
    proposal = propose(folder, unchanged, now=moment_of(now), stewards=exchanging(add=add, remove=remove))
    return _at_once(proposal, steward)


def moment_of(now: datetime | None) -> datetime:
    """Now, in whole seconds, as signed objects have it."""
    return (now or datetime.now(UTC)).replace(microsecond=0)


def _at_once(proposal: Proposal, steward: Stewards) -> TrustedRoster:
    for each in _all(steward):
        proposal.sign(each, instead=True)
    return publish(proposal)


def _all(steward: Stewards) -> tuple[Steward, ...]:
    return (steward,) if isinstance(steward, Steward) else tuple(steward)


def _changing(name: str, change: Callable[[MemberEntry], MemberEntry]) -> Edit:
    def edit(roster: RosterFile, recalls: RecallsFile) -> tuple[RosterFile, RecallsFile]:
        if name not in {entry.name for entry in roster.members}:
            raise UnknownMember(where="roster", expected="a member", got=f"the name {name}", hint="not-fed roster show")
        members = [change(entry) if entry.name == name else entry for entry in roster.members]
        check_distinct(members)
        return roster.model_copy(update={"members": members}), recalls

    return edit


def _active(entry: MemberEntry) -> MemberEntry:
    if entry.status != "active":
        raise MemberNotActive(
            where="roster", expected=f"{entry.name} to be active", got="revoked", hint="roster add enrols it again"
        )
    return entry


__all__ = [
    "FRESH_FOR", "VALID_FOR", "BadExpiry", "BadRecall", "BadStewards", "MemberExists", "NotASteward", "add_member",
    "add_plan", "adding", "change_stewards", "create_roster", "exchanging", "extending", "first_proposal", "moment_of",
    "recall_organ", "recalling", "remove_plan", "renew_roster", "revoke_member", "revoking", "rotate_member",
    "rotating", "threshold", "unchanged",
]  # fmt: skip
