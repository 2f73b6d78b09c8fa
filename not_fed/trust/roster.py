"""The roster a site trusts: pinned once by digest, then checked by TUF at every load, offline.

    R/repository   what is handed to others, on any medium
    R/trusted      what this machine trusts: the pinned root and the newest metadata ever accepted

Refused: a rollback, an expired roster, an edited one, a mixture of versions, anything not signed by enough stewards
with both kinds of key, and any roster at all before a root was pinned: there is no trust on first use.
"""

from __future__ import annotations

import tempfile
from datetime import UTC, datetime
from pathlib import Path

from not_fed import files
from not_fed.trust import repository
from not_fed.trust.members import (
    ROLES,
    BadRole,
    Member,
    MemberExists,
    MemberNotActive,
    RosterMalformed,
    TrustedRoster,
    UnknownMember,
    WrongRole,
    read_roster,
)
from not_fed.trust.repository import RosterAltered, RosterExpired, RosterNotPinned, RosterRollback, RosterUnsigned
from not_fed.trust.stewards import (
    FRESH_FOR,
    NotASteward,
    add_member,
    create_roster,
    recall_organ,
    renew_roster,
    revoke_member,
)

__all__ = [
    "FRESH_FOR", "ROLES", "BadRole", "Member", "MemberExists", "MemberNotActive", "NotASteward", "RosterAltered",
    "RosterExpired", "RosterMalformed", "RosterNotPinned", "RosterRollback", "RosterUnsigned", "TrustedRoster",
    "UnknownMember", "WrongRole", "add_member", "create_roster", "load_roster", "pin_roster", "recall_organ",
    "renew_roster", "revoke_member", "root_sha256", "update_roster",
]  # fmt: skip


def load_roster(folder: Path, *, now: datetime) -> TrustedRoster:
    """The roster in `folder`, verified again, offline.

    Raises:
        RosterNotPinned, RosterExpired, RosterRollback, RosterUnsigned, RosterAltered, RosterMalformed.
    """
    return _read(repository.verify(folder, repository=folder / "repository", now=now))


def pin_roster(source: Path, *, root_sha256: str, out: Path, now: datetime | None = None) -> None:
    """Start to trust the roster in `source`, if its root has the digest that a steward told you over another channel.

    Raises:
        OutputExists; RosterNotPinned when no root has that digest; and all that `load_roster` raises.
    """
    origin = repository.repository_of(source)
    with files.new_folder(out) as part:
        repository.copy_repository(origin, part / "repository")
        root = repository.find_root(part / "repository", sha256=root_sha256.lower())
        (part / "trusted").mkdir(mode=0o700)
        files.write_atomic(part / "trusted" / repository.PINNED, root)
        load_roster(part, now=now or datetime.now(UTC))


def update_roster(folder: Path, *, source: Path, now: datetime) -> TrustedRoster:
    """Take over a newer roster from `source` if it holds; otherwise `folder` stays as it was.

    Raises:
        as `load_roster`; RosterRollback when `source` is older than what `folder` has seen.
    """
    origin = repository.repository_of(source)
    with tempfile.TemporaryDirectory(prefix="not-fed-") as scratch:
        copy = Path(scratch)  # checked and installed from one copy, whatever happens to the source meanwhile
        repository.copy_repository(origin, copy)
        roster = _read(repository.verify(folder, repository=copy, now=now))
        repository.copy_repository(copy, folder / "repository")
    return roster


def root_sha256(folder: Path) -> str:
    """The digest of the root that `folder` is pinned to, for telling others; raises NotAFile."""
    return files.sha256(folder / "trusted" / repository.PINNED)


def _read(verified: repository.Verified) -> TrustedRoster:
    return read_roster(
        verified.contents["roster.json"], verified.contents["recalls.json"], version=verified.targets.version,
        expires_at=verified.expires_at,
    )  # fmt: skip
