"""A roster version on its way to being signed: exact, so that whoever signs has seen all that is in it.

A draft is a folder of TUF metadata with the signatures made so far. On every machine its signed parts must equal, as
JSON, what that machine itself builds from the people, dates, members, recalls and plans in it: no room for a field, a
target, a threshold or an order of anything that the difference (diff.py) would not show. It must be the next version of
what the machine trusts, and name that one by digest.

All four TUF roles are held by the stewards. TUF's usual advice is an online signer for timestamp and snapshot, with
expiry in hours; a hospital has no online signer, and a key on a server that renews by itself is what an intruder would
take. The price: a site can be shown an old roster, hence a member who was revoked since, for up to 90 days
(`--expires-days` shortens it; each renewal is a ceremony). Sites that compare the log's checkpoints notice earlier.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Final

from pydantic import ValidationError
from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import Metadata, MetaFile, Root, Snapshot, TargetFile, Targets, Timestamp

from not_fed import canonical, files
from not_fed.errors import InputError, TrustError
from not_fed.keys.identity import spoken
from not_fed.keys.signing import SigningKeys, Steward
from not_fed.trust import people, repository
from not_fed.trust.members import RecallsFile, RosterFile, TrustedRoster, read_roster
from not_fed.trust.people import People
from not_fed.trust.planning import check_plans_kept, check_taking_part
from not_fed.trust.plans import PlansFile, parse_plans
from not_fed.trust.recall import check_none_removed
from not_fed.trust.repository import (
    NO_PREVIOUS,
    PLANS,
    PREVIOUS,
    SIGNED,
    FolderSource,
    Verified,
    signed_sha256,
    target_names,
)

MAX_MEMBERS: Final = 1_000
MAX_RECALLS: Final = 20_000


class DraftRefused(TrustError):
    """This draft is not one that an honest steward's machine makes."""

    code = "draft-refused"


class DraftOutdated(TrustError):
    """This draft was made for a version that is published already, or on another one than this machine trusts."""

    code = "draft-outdated"


class DraftAhead(TrustError):
    """This draft is for a later version than the next one on this machine."""

    code = "draft-ahead"


class RosterTooLarge(InputError):
    """A roster has room for 1,000 members and 20,000 recalls."""

    code = "roster-too-large"


@dataclass(frozen=True, slots=True)
class Dates:
    """`short`: how long sites may rely on it unrenewed; `long`: how long root and targets hold."""

    short: datetime
    long: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """Metadata with the signatures made so far; `root` is None when the stewards and the root's date stay."""

    root: Metadata[Root] | None
    targets: Metadata[Targets]
    snapshot: Metadata[Snapshot]
    timestamp: Metadata[Timestamp]
    contents: Mapping[str, bytes]

    @property
    def version(self) -> int:
        """The roster version that it would be."""
        return self.targets.signed.version

    @property
    def parts(self) -> tuple[Metadata[Any], ...]:
        """All that is signed."""
        return tuple(part for part in (self.root, self.targets, self.snapshot, self.timestamp) if part is not None)

    @property
    def fingerprint(self) -> str:
        """Of everything that is signed, to be read out over the telephone: the same whoever has signed so far."""
        return spoken(*(part.signed_bytes for part in self.parts))

    def roster(self) -> RosterFile:
        """The members in it."""
        return RosterFile.model_validate(canonical.loads(self.contents["roster.json"], where="draft, roster.json"))

    def recalls(self) -> RecallsFile:
        """The stewards' recalls in it."""
        return RecallsFile.model_validate(canonical.loads(self.contents["recalls.json"], where="draft, recalls.json"))

    def plans(self) -> PlansFile:
        """The plans of secure sums in it; none where there is no such target."""
        data = self.contents.get(PLANS)
        return PlansFile() if data is None else parse_plans(data, where="draft, plans.json")


def build_draft(
    base: Verified | None, *, roster: RosterFile, recalls: RecallsFile, root: Root | None, dates: Dates,
    plans: PlansFile | None = None,
) -> Draft:  # fmt: skip
    """The next version, unsigned.

    Args:
        base: what it follows; None for a federation's first.
        root: the next root, or None to keep the one before.
        plans: of secure sums; a roster that never had any has no such target.
    Raises:
        RosterTooLarge.
    """
    if len(roster.members) > MAX_MEMBERS or len(recalls.recalls) > MAX_RECALLS:
        raise RosterTooLarge(
            where="roster", expected=f"at most {MAX_MEMBERS:,} members and {MAX_RECALLS:,} recalls",
            got=f"{len(roster.members):,} and {len(recalls.recalls):,}", hint="found a second federation",
        )  # fmt: skip
    contents = {
        "roster.json": canonical.dumps(roster.model_dump()) + b"\n",
        "recalls.json": canonical.dumps(recalls.model_dump()) + b"\n",
    }
    if plans is not None and not plans.is_empty:
        contents[PLANS] = canonical.dumps(plans.model_dump(mode="json")) + b"\n"
    versions = (base.targets.version, base.snapshot.version, base.timestamp.version) if base else (0, 0, 0)
    previous = signed_sha256(Metadata(base.targets)) if base else NO_PREVIOUS
    targets = Metadata(Targets(
        version=versions[0] + 1, expires=dates.long, unrecognized_fields={PREVIOUS: previous},
        targets={name: TargetFile.from_data(name, data, ["sha256"]) for name, data in contents.items()},
    ))  # fmt: skip
    snapshot = Metadata(Snapshot(
        version=versions[1] + 1, expires=dates.short, meta={"targets.json": MetaFile(versions[0] + 1)},
        unrecognized_fields={SIGNED: signed_sha256(targets)},
    ))  # fmt: skip
    timestamp = Metadata(Timestamp(
        version=versions[2] + 1, expires=dates.short, snapshot_meta=MetaFile(versions[1] + 1),
        unrecognized_fields={SIGNED: signed_sha256(snapshot)},
    ))  # fmt: skip
    return Draft(
        root=None if root is None else Metadata(root), targets=targets, snapshot=snapshot, timestamp=timestamp,
        contents=contents,
    )  # fmt: skip


def next_root(base: Verified | None, *, stewards: People, expires: datetime) -> Root:
    """The root after the one of `base`, for these people, with the roster version after that of `base`."""
    root, roster = (base.root.version, base.targets.version) if base else (0, 0)
    return people.build_root(stewards, version=root + 1, since=roster + 1, expires=expires)


def read_draft(folder: Path, *, base: Verified | None) -> Draft:
    """The draft in a folder, checked against what this machine trusts; signatures that do not hold are left out.

    Raises:
        NotAFile: no draft there. DraftOutdated, DraftAhead: not the next version. DraftRefused: anything in it that an
        honest machine would not write; RosterMalformed: stewards of another shape.
    Guarantees: equal to what this machine builds from its people, dates, members, recalls and plans; on top of `base`.
    Proved by: tests/attacks/test_draft_contents.py::test_a_draft_holds_nothing_that_is_not_shown
    """
    draft = _parse_draft(folder)
    _check_next(draft, base)
    try:
        rebuilt = _rebuild(draft, base)
    except (ValidationError, ValueError, InputError):
        raise _refused("members, recalls or plans of another shape") from None
    mine, theirs = ([part.signed_bytes for part in each.parts] for each in (rebuilt, draft))
    if rebuilt.contents != draft.contents or mine != theirs:
        raise _refused("more than the difference would show, or on another version")
    check_contents(draft, base)
    for part in draft.parts:
        people.only_valid((old_people(base), new_people(draft, base)), part)
    return draft


def check_contents(draft: Draft, base: Verified | None) -> None:
    """Whether a steward may sign it at all, after the version before.

    Raises:
        RosterMalformed: members that cannot be, or a plan that breaks the rule. RecallRemoved, PlanReplaced.
        UnknownMember, MemberNotActive, WrongRole: a new plan with somebody who cannot take part.
        DraftRefused: another federation.
    """
    after = _roster_of(draft.contents, draft.version, draft.targets.signed.expires)
    before = None if base is None else _roster_of(base.material.contents, base.targets.version, base.expires_at)
    if before is not None:
        check_none_removed(before, after)
        check_plans_kept(before, after)
        if before.federation != after.federation:
            raise _refused("another federation")
    for run in sorted(set(after.plans) - set(before.plans if before is not None else ())):
        check_taking_part(after.plans[run], after.members)


def old_people(base: Verified | None) -> People:
    """Who had to sign the version before."""
    return people.people_of(base.root) if base else {}


def new_people(draft: Draft, base: Verified | None) -> People:
    """Who has to sign this one; raises DraftRefused for a first version without its stewards."""
    if draft.root is None and base is None:
        raise _refused("a first version that names no stewards")
    return people.people_of(draft.root.signed) if draft.root is not None else old_people(base)


def sign_draft(draft: Draft, *, steward: Steward, base: Verified | None) -> bool:
    """Add the two signatures of a steward wherever it may sign; False when it may nowhere."""
    old, new = old_people(base), new_people(draft, base)
    is_old, is_new = (_is_one(steward.public, group) for group in (old, new))
    for part in draft.parts:
        if is_new or (is_old and part is draft.root):
            for key in steward.private_keys():
                part.sign(CryptoSigner(key), append=True)
    return is_old or is_new


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """Of one group of stewards: who has signed all that it must, how many are needed, who may still."""

    signed: tuple[str, ...]
    needed: int
    awaited: tuple[str, ...]

    @property
    def enough(self) -> bool:
        """Whether this group needs nobody else."""
        return len(self.signed) >= self.needed


def progress_of(draft: Draft, base: Verified | None) -> tuple[Progress, ...]:
    """First those who must sign all of it; then, when the root changes, those who stood in the root before."""
    found = [_progress(new_people(draft, base), draft.parts)]
    if draft.root is not None and base is not None:
        found.append(_progress(old_people(base), (draft.root,)))
    return tuple(found)


def layout(draft: Draft) -> dict[str, bytes]:
    """Path to bytes, as a repository has them; the timestamp last."""
    found: dict[str, bytes] = {}
    if draft.root is not None:
        found[f"metadata/{draft.root.signed.version}.root.json"] = draft.root.to_bytes()
    for name, data in draft.contents.items():
        found[f"targets/{hashlib.sha256(data).hexdigest()}.{name}"] = data
    found[f"metadata/{draft.version}.targets.json"] = draft.targets.to_bytes()
    found[f"metadata/{draft.snapshot.signed.version}.snapshot.json"] = draft.snapshot.to_bytes()
    return found | {"metadata/timestamp.json": draft.timestamp.to_bytes()}


def write_draft(folder: Path, draft: Draft) -> None:
    """Put it into a folder of its own, which appears whole, or takes the old one's place in one step."""
    with files.replace_folder(folder) if os.path.lexists(folder) else files.new_folder(folder) as part:
        for kind in ("metadata", "targets"):
            (part / kind).mkdir()
        for name, data in layout(draft).items():
            files.write_atomic(part / name, data, mode=0o644)


def expiry(now: datetime, *, expires_in: timedelta, valid_for: timedelta) -> Dates:
    """The dates of a version that is made now."""
    return Dates(short=now + expires_in, long=now + max(valid_for, expires_in))


def _rebuild(draft: Draft, base: Verified | None) -> Draft:
    """What this machine makes of the values in a draft."""
    root = draft.root
    stewards = people.people_of(root.signed) if root is not None else {}
    new = None if root is None else next_root(base, stewards=stewards, expires=root.signed.expires)
    dates = Dates(draft.snapshot.signed.expires, draft.targets.signed.expires)
    return build_draft(base, roster=draft.roster(), recalls=draft.recalls(), plans=draft.plans(), root=new, dates=dates)


def _roster_of(contents: Mapping[str, bytes], version: int, expires_at: datetime) -> TrustedRoster:
    targets = (contents["roster.json"], contents["recalls.json"], contents.get(PLANS))
    return read_roster(*targets, version=version, expires_at=expires_at)


def _parse_draft(folder: Path) -> Draft:
    """Each file read once; versions as the file names say."""
    source = FolderSource(folder)
    timestamp = _metadata(source, "timestamp.json", Timestamp)
    number = timestamp.signed.snapshot_meta.version
    snapshot = _metadata(source, f"{number}.snapshot.json", Snapshot)
    meta = snapshot.signed.meta.get("targets.json")
    targets = _metadata(source, f"{0 if meta is None else meta.version}.targets.json", Targets)
    contents = {name: _content(source, targets.signed, name) for name in target_names(targets.signed)}
    return Draft(root=_root(folder), targets=targets, snapshot=snapshot, timestamp=timestamp, contents=contents)


def _root(folder: Path) -> Metadata[Root] | None:
    try:
        names = [entry.name for entry in os.scandir(folder / "metadata") if entry.name.endswith(".root.json")]
    except OSError:
        names = []
    if len(names) > 1:
        raise _refused("more than one root")
    return _metadata(FolderSource(folder), names[0], Root) if names else None


def _metadata(source: FolderSource, name: str, kind: type[Any]) -> Metadata[Any]:
    data = source.read("metadata", name)
    if data is None or len(data) > repository.MAX_METADATA_BYTES:
        raise files.NotAFile(
            where=str(source.folder), expected=f"a draft with its metadata/{name}", got="none",
            hint="give the draft folder that a steward made: R/draft",
        )  # fmt: skip
    metadata = repository.parse_metadata(data)
    if not isinstance(metadata.signed, kind):
        raise _refused("files under other names")
    return metadata


def _content(source: FolderSource, targets: Targets, name: str) -> bytes:
    info = targets.targets.get(name)
    digest = info.hashes.get("sha256", "") if info is not None else ""
    data = source.read("targets", f"{digest}.{name}") if digest.isalnum() else None
    if data is None or hashlib.sha256(data).hexdigest() != digest:
        raise _refused(f"no {name} that the metadata names")
    return data


def _check_next(draft: Draft, base: Verified | None) -> None:
    trusted = base.targets.version if base else 0
    where = f"draft of version {draft.version}"
    if draft.version > trusted + 1:
        raise DraftAhead(
            where=where, expected=f"version {trusted + 1}, the next on this machine", got=str(draft.version),
            hint="first take over what was published meanwhile: not-fed roster update R --from SOURCE",
        )  # fmt: skip
    previous = signed_sha256(Metadata(base.targets)) if base else NO_PREVIOUS
    named = draft.targets.signed.unrecognized_fields.get(PREVIOUS)
    if draft.version <= trusted or named != previous:
        raise DraftOutdated(
            where=where, expected=f"one on top of version {trusted}, which this machine trusts",
            got=f"one for version {draft.version}" if draft.version <= trusted else "one on top of another",
            hint="nothing was signed; make the change again on the newest roster",
        )  # fmt: skip


def _progress(group: People, parts: tuple[Metadata[Any], ...]) -> Progress:
    signed = [set(people.signers(group, part)) for part in parts]
    all_of = set.intersection(*signed)
    return Progress(
        signed=tuple(sorted(all_of)), needed=people.majority(len(group)), awaited=tuple(sorted(set(group) - all_of))
    )


def _is_one(keys: SigningKeys, group: People) -> bool:
    return keys in group.values()


def _refused(got: str) -> DraftRefused:
    return DraftRefused(
        where="draft", expected="exactly what not-fed itself writes for its members, recalls, stewards and dates",
        got=got, hint="do not sign it; ask whoever gave it to you, over another channel",
    )  # fmt: skip
