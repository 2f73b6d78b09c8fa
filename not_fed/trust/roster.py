"""The roster a site trusts: pinned once by digest, then checked at every load, offline.

    R/trusted      what this machine trusts; a load reads nothing else
    R/repository   the same for others, on any medium
    R/draft        a steward's: a change that still waits for signatures

Refused: a rollback, an expired roster, an edited one, a mixture of versions, a fork, anything not signed by enough
stewards, as keys and as people, a recall that disappears, a plan that becomes another, and any roster at all before a
root was pinned: there is no trust on first use.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from not_fed.trust import memory, repository
from not_fed.trust.ceremony import FRESH_FOR, NotASteward, forget_outdated
from not_fed.trust.members import (
    ROLES,
    BadRole,
    KeysRetired,
    Member,
    MemberExists,
    MemberNotActive,
    Recall,
    RosterMalformed,
    TrustedRoster,
    UnknownMember,
    WrongRole,
)
from not_fed.trust.memory import ClockSetBack
from not_fed.trust.people import TooFewPeople
from not_fed.trust.planning import PlanReplaced
from not_fed.trust.recall import RecallRemoved, Withdrawal, read_withdrawal
from not_fed.trust.repository import (
    FolderSource,
    RosterAltered,
    RosterExpired,
    RosterNotPinned,
    RosterRollback,
    RosterUnsigned,
    signed_sha256,
)
from not_fed.trust.stewards import (
    add_member,
    add_plan,
    change_stewards,
    create_roster,
    recall_organ,
    remove_plan,
    renew_roster,
    revoke_member,
    rotate_member,
)
from not_fed.trust.takeover import RosterForked, already_there, first_trust, roster_of, take_over, trusted

__all__ = [
    "FRESH_FOR", "ROLES", "BadRole", "ClockSetBack", "KeysRetired", "Member", "MemberExists", "MemberNotActive",
    "NotASteward", "PlanReplaced", "Recall", "RecallRemoved", "RosterAltered", "RosterExpired", "RosterForked",
    "RosterMalformed", "RosterNotPinned", "RosterRollback", "RosterUnsigned", "TooFewPeople", "TrustedRoster",
    "UnknownMember", "WrongRole", "add_member", "add_plan", "add_withdrawal", "change_stewards", "create_roster",
    "load_roster", "pin_roster", "recall_organ", "remove_plan", "renew_roster", "revoke_member", "root_sha256",
    "rotate_member", "update_roster",
]  # fmt: skip


def load_roster(folder: Path, *, now: datetime, accept_stale: bool = False) -> TrustedRoster:
    """The roster that this machine trusts, verified again, offline; changes nothing on the disk.

    Args:
        accept_stale: go on past the date up to which the stewards vouch that there is nothing newer; the result says
            `stale`. Signatures, root and members' own dates are checked all the same.
    Raises:
        RosterNotPinned, RosterExpired, RosterUnsigned, TooFewPeople, RosterAltered, RosterMalformed, ClockSetBack.
    Proved by: tests/attacks/test_roster.py::test_accepting_a_stale_roster_skips_no_signature
    """
    known, verified = trusted(folder, now=now, accept_stale=accept_stale)
    return roster_of(known, verified, now=now)


def pin_roster(source: Path, *, root_sha256: str, out: Path, now: datetime | None = None) -> None:
    """Start to trust the roster in `source`, if its root has the digest that a steward told you over another channel.

    Raises:
        OutputExists; RosterNotPinned when no root has that digest; and all that `load_roster` raises.
    """
    if memory.exists(out):
        raise already_there(out)
    _pin(source, root_sha256=root_sha256.lower(), out=out, now=now or datetime.now(UTC))


def update_roster(folder: Path, *, source: Path, now: datetime) -> TrustedRoster:
    """Take over a newer roster, and withdrawals, from `source` if it holds; otherwise `folder` stays as it was.

    Args:
        source: a roster folder, its `repository`, or a draft that enough stewards have signed.
    Raises:
        as `load_roster`; RosterRollback: `source` is older than what `folder` has seen; RosterForked, RecallRemoved.
    """
    origin = repository.repository_of(source)
    waiting = memory.signed_here(folder)
    if (
        waiting is not None and waiting.version == 1 and not memory.exists(folder)
    ):  # a founder of this roster, who signed its root
        roster = _pin(source, root_sha256=waiting.root_sha256, out=folder, now=now)
    else:
        roster = take_over(folder, source=FolderSource(origin), recalls=origin / "recalls", now=now)
    forget_outdated(folder)
    return roster


def add_withdrawal(folder: Path, line: bytes, *, now: datetime) -> Withdrawal:
    """Take over one withdrawal that came by another way; twice is once.

    Raises:
        as `load_roster` and `read_withdrawal`.
    """
    with memory.locked(folder):
        known, verified = trusted(folder, now=now, accept_stale=True)
        line = line.removesuffix(b"\n")
        withdrawal = read_withdrawal(line, roster=roster_of(known, verified, now=now), now=now)
        mark = (withdrawal.recall.by, withdrawal.recall.organ_sha256)
        if mark not in {(each.recall.by, each.recall.organ_sha256) for each in known.withdrawn}:
            known = replace(known, withdrawn=(*known.withdrawn, withdrawal))
            memory.write(folder, known, lines={withdrawal: line})
        memory.hand_on(folder, known)
    return withdrawal


def root_sha256(folder: Path) -> str:
    """The digest of the root that `folder` is pinned to, for telling others; raises RosterNotPinned."""
    return signed_sha256(repository.parse_metadata(memory.read(folder).material.roots[0]))


def _pin(source: Path, *, root_sha256: str, out: Path, now: datetime) -> TrustedRoster:
    origin = repository.repository_of(source)
    root = repository.find_root(origin, sha256=root_sha256)
    older = memory.older_roots_of(origin, before=repository.parse_metadata(root).signed.version)
    return first_trust(
        out, source=FolderSource(origin), root=root, recalls=origin / "recalls", older_roots=older, now=now
    )
