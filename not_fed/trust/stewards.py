"""What stewards do: create a roster, enrol, revoke, recall and renew; each time a new numbered version, signed.

Every steward has two keys, Ed25519 and ML-DSA-65, and the threshold is chosen so that no single algorithm can reach it:
with one steward both keys, with three stewards four of six. All four TUF roles use these keys, because a hospital has
no online signer; hence the long expiry.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TypeVar

from securesystemslib.signer import CryptoSigner
from tuf.api import exceptions as tuf_errors
from tuf.api.metadata import Metadata, MetaFile, Root, Snapshot, TargetFile, Targets, Timestamp

from not_fed import canonical, files
from not_fed.errors import InputError, TrustError
from not_fed.keys.identity import PublicIdentity, check_name
from not_fed.keys.signing import Steward
from not_fed.trust import repository
from not_fed.trust.members import (
    RECALLS_FORMAT,
    ROSTER_FORMAT,
    MemberEntry,
    MemberExists,
    RecallEntry,
    RecallsFile,
    RosterFile,
    TrustedRoster,
    UnknownMember,
    check_distinct,
    member_entry,
    read_roster,
)

FRESH_FOR = timedelta(days=90)  # timestamp and snapshot: how long a site believes that nothing newer exists
VALID_FOR = timedelta(days=365)  # root, targets and memberships
_ROLES = (Root.type, Targets.type, Snapshot.type, Timestamp.type)
_Part = TypeVar("_Part", Root, Targets, Snapshot, Timestamp)
_Edit = Callable[[RosterFile, RecallsFile], tuple[RosterFile, RecallsFile]]


class NotASteward(TrustError):
    """These keys may not sign this roster, or not alone."""

    code = "not-a-steward"


class BadExpiry(InputError):
    """A roster must expire, and not at once."""

    code = "bad-expiry"


def threshold(stewards: int) -> int:
    """How many of the 2 x `stewards` keys must sign: more than all keys of one algorithm.

    >>> [threshold(n) for n in (1, 2, 3, 5)]
    [2, 4, 4, 6]
    """
    return 2 * (stewards // 2 + 1)


def create_roster(
    folder: Path, *, federation: str, steward: Steward | Sequence[Steward],
    members: Sequence[tuple[PublicIdentity, Iterable[str]]], expires_in: timedelta = FRESH_FOR,
    valid_for: timedelta = VALID_FOR, now: datetime | None = None,
) -> str:  # fmt: skip
    """Make a roster folder whose root this machine trusts from then on; hand out its `repository`.

    Args:
        steward: who signs; several together sign at once.
        members: identities whose fingerprints the steward has compared, each with its roles.
        expires_in: how long sites may rely on it before they need a renewed one.
    Returns:
        the root's SHA-256, which others pin.
    Raises:
        OutputExists, BadName, BadRole, MemberExists, BadExpiry.
    """
    moment = _moment(now)
    stewards = (steward,) if isinstance(steward, Steward) else tuple(steward)
    entries = [member_entry(identity, roles=roles, now=moment, valid_for=valid_for) for identity, roles in members]
    check_distinct(entries)
    roster = RosterFile(format=ROSTER_FORMAT, federation=check_name(federation), members=entries)
    dates = _Dates.from_now(moment, expires_in=expires_in, valid_for=valid_for)
    written = _sign_all(
        _new_root(stewards, expires=dates.long), targets_version=1, snapshot_version=1, timestamp_version=1,
        contents=_contents(roster, RecallsFile(format=RECALLS_FORMAT, recalls=[])), stewards=stewards, dates=dates,
    )  # fmt: skip
    root = written["metadata/1.root.json"]
    with files.new_folder(folder) as part:
        _write(part / "repository", written)
        _pin(part, root)
        repository.verify(part, repository=part / "repository", now=moment)
    return hashlib.sha256(root).hexdigest()


def add_member(
    folder: Path, *, identity: PublicIdentity, roles: Iterable[str], steward: Steward | Sequence[Steward],
    valid_for: timedelta = VALID_FOR, now: datetime | None = None,
) -> TrustedRoster:  # fmt: skip
    """Enrol one more member, or a revoked one again with new keys; raises MemberExists, BadRole, NotASteward."""
    moment = _moment(now)
    entry = member_entry(identity, roles=roles, now=moment, valid_for=valid_for)

    def edit(roster: RosterFile, recalls: RecallsFile) -> tuple[RosterFile, RecallsFile]:
        kept = [old for old in roster.members if not (old.name == entry.name and old.status == "revoked")]
        check_distinct([*kept, entry])
        return roster.model_copy(update={"members": [*kept, entry]}), recalls

    return _republish(folder, edit, steward=steward, now=moment)


def revoke_member(
    folder: Path, *, name: str, steward: Steward | Sequence[Steward], now: datetime | None = None
) -> TrustedRoster:
    """Take a member's trust away from now on; raises UnknownMember, NotASteward."""

    def edit(roster: RosterFile, recalls: RecallsFile) -> tuple[RosterFile, RecallsFile]:
        if name not in {entry.name for entry in roster.members}:
            raise UnknownMember(where="roster", expected="a member", got=f"the name {name}", hint="not-fed roster show")
        members = [_revoked(entry) if entry.name == name else entry for entry in roster.members]
        return roster.model_copy(update={"members": members}), recalls

    return _republish(folder, edit, steward=steward, now=_moment(now))


def recall_organ(
    folder: Path, *, organ_sha256: str, reason: str, steward: Steward | Sequence[Steward], now: datetime | None = None
) -> TrustedRoster:
    """Withdraw an organ: everyone who has this roster version refuses it; raises NotASteward."""
    moment = _moment(now)
    entry = RecallEntry(organ_sha256=organ_sha256, reason=reason, time=canonical.format_time(moment))

    def edit(roster: RosterFile, recalls: RecallsFile) -> tuple[RosterFile, RecallsFile]:
        return roster, recalls.model_copy(update={"recalls": [*recalls.recalls, entry]})

    return _republish(folder, edit, steward=steward, now=moment)


def renew_roster(
    folder: Path, *, steward: Steward | Sequence[Steward], expires_in: timedelta = FRESH_FOR,
    valid_for: timedelta = VALID_FOR, now: datetime | None = None,
) -> TrustedRoster:  # fmt: skip
    """The same roster with new dates, the root's included; works on an expired one. Memberships keep their dates."""
    return _republish(
        folder, lambda roster, recalls: (roster, recalls), steward=steward, now=_moment(now), expires_in=expires_in,
        valid_for=valid_for, renew_root=True,
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Dates:
    short: datetime
    long: datetime

    @classmethod
    def from_now(cls, now: datetime, *, expires_in: timedelta, valid_for: timedelta) -> _Dates:
        if expires_in <= timedelta(0) or valid_for <= timedelta(0):
            raise BadExpiry(where="expiry", expected="a time ahead", got="none", hint="90 days, for example")
        return cls(short=now + expires_in, long=now + max(valid_for, expires_in))


def _republish(
    folder: Path, edit: _Edit, *, steward: Steward | Sequence[Steward], now: datetime,
    expires_in: timedelta = FRESH_FOR, valid_for: timedelta = VALID_FOR, renew_root: bool = False,
) -> TrustedRoster:  # fmt: skip
    """The next version of a roster; nothing is written unless what is written will be accepted."""
    current = repository.verify(folder, repository=folder / "repository", now=now, accept_expired=True)
    roster, recalls = edit(
        RosterFile.model_validate(canonical.loads(current.contents["roster.json"], where="roster.json")),
        RecallsFile.model_validate(canonical.loads(current.contents["recalls.json"], where="recalls.json")),
    )
    stewards = (steward,) if isinstance(steward, Steward) else tuple(steward)
    dates = _Dates.from_now(now, expires_in=expires_in, valid_for=valid_for)
    root = current.root
    if renew_root:
        root = Root.from_dict(root.to_dict())
        root.version, root.expires = root.version + 1, dates.long
    written = _sign_all(
        root, targets_version=current.targets.version + 1, snapshot_version=current.snapshot.version + 1,
        timestamp_version=current.timestamp.version + 1, contents=_contents(roster, recalls), stewards=stewards,
        dates=dates, write_root=renew_root,
    )  # fmt: skip
    _write(folder / "repository", written)
    verified = repository.verify(folder, repository=folder / "repository", now=now)
    return read_roster(
        verified.contents["roster.json"], verified.contents["recalls.json"], version=verified.targets.version,
        expires_at=verified.expires_at,
    )  # fmt: skip


def _revoked(entry: MemberEntry) -> MemberEntry:
    return entry.model_copy(update={"status": "revoked"})


def _contents(roster: RosterFile, recalls: RecallsFile) -> dict[str, bytes]:
    return {
        "roster.json": canonical.dumps(roster.model_dump()) + b"\n",
        "recalls.json": canonical.dumps(recalls.model_dump()) + b"\n",
    }


def _new_root(stewards: Sequence[Steward], *, expires: datetime) -> Root:
    root = Root(version=1, expires=expires, consistent_snapshot=True)
    for role in _ROLES:
        for steward in stewards:
            for signer in _signers(steward):
                root.add_key(signer.public_key, role)
        root.roles[role].threshold = threshold(len(stewards))
    return root


def _signers(steward: Steward) -> list[CryptoSigner]:
    return [CryptoSigner(key) for key in steward.private_keys()]


def _sign_all(
    root: Root, *, targets_version: int, snapshot_version: int, timestamp_version: int,
    contents: Mapping[str, bytes], stewards: Sequence[Steward], dates: _Dates, write_root: bool = True,
) -> dict[str, bytes]:  # fmt: skip
    """Path to bytes of everything that changed, the timestamp last."""
    target_files = {name: TargetFile.from_data(name, data, ["sha256"]) for name, data in contents.items()}
    written = {f"targets/{target_files[name].hashes['sha256']}.{name}": data for name, data in contents.items()}
    targets = Targets(version=targets_version, expires=dates.long, targets=target_files)
    written[f"metadata/{targets_version}.targets.json"] = data = _sign(targets, root, stewards)
    snapshot = Snapshot(
        version=snapshot_version, expires=dates.short,
        meta={"targets.json": MetaFile.from_data(targets_version, data, ["sha256"])},
    )  # fmt: skip
    written[f"metadata/{snapshot_version}.snapshot.json"] = data = _sign(snapshot, root, stewards)
    timestamp = Timestamp(
        version=timestamp_version, expires=dates.short,
        snapshot_meta=MetaFile.from_data(snapshot_version, data, ["sha256"]),
    )  # fmt: skip
    if write_root:
        written[f"metadata/{root.version}.root.json"] = _sign(root, root, stewards)
    written["metadata/timestamp.json"] = _sign(timestamp, root, stewards)
    return written


def _sign(part: _Part, root: Root, stewards: Sequence[Steward]) -> bytes:
    metadata = Metadata(part)
    for steward in stewards:
        for signer in _signers(steward):
            metadata.sign(signer, append=True)
    try:
        root.verify_delegate(part.type, metadata.signed_bytes, metadata.signatures)
    except (tuf_errors.UnsignedMetadataError, ValueError):
        raise NotASteward(
            where=f"roster, {part.type}", expected=f"{root.roles[part.type].threshold} keys of its stewards",
            got="too few of them", hint="nothing was changed; use the key folder that created this roster",
        ) from None  # fmt: skip
    return metadata.to_bytes()


def _write(folder: Path, written: Mapping[str, bytes]) -> None:
    for kind in ("metadata", "targets"):
        (folder / kind).mkdir(parents=True, exist_ok=True)
    for name, data in written.items():
        files.write_atomic(folder / name, data, overwrite=True, mode=0o644)


def _pin(folder: Path, root: bytes) -> None:
    (folder / "trusted").mkdir(mode=0o700)
    files.write_atomic(folder / "trusted" / repository.PINNED, root)


def _moment(now: datetime | None) -> datetime:
    return (now or datetime.now(UTC)).replace(microsecond=0)


__all__ = [
    "FRESH_FOR", "VALID_FOR", "BadExpiry", "MemberExists", "NotASteward", "add_member", "create_roster",
    "recall_organ", "renew_roster", "revoke_member", "threshold",
]  # fmt: skip
