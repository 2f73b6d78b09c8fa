"""Several stewards change a roster, each on a machine of its own: propose, sign, sign, publish.

A change that one steward may not make alone becomes a draft in R/draft. The folder travels, on any medium; whoever
signs it sees the difference to the version before, computed here from the bytes that get signed. The signature that
makes it enough publishes it, on that machine; the others take it over like any site. One steward alone does all in one
step.

    first version    made from nothing; the root's digest, which sites pin, is known from the start
    later versions   on top of what this machine trusts, and of nothing else
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path

from tuf.api.metadata import Metadata

from not_fed import files
from not_fed.errors import InputError, NotFedError, TrustError
from not_fed.keys.signing import SigningKeys, Steward
from not_fed.trust import memory
from not_fed.trust.diff import Change, changes_of, plans_of, targets_of
from not_fed.trust.draft import (
    Draft,
    DraftOutdated,
    Progress,
    build_draft,
    check_contents,
    expiry,
    layout,
    next_root,
    old_people,
    progress_of,
    read_draft,
    sign_draft,
    write_draft,
)
from not_fed.trust.members import RecallsFile, RosterFile, TrustedRoster
from not_fed.trust.memory import SignedHere
from not_fed.trust.people import MAX_STEWARDS, People
from not_fed.trust.planning import PlanEdit
from not_fed.trust.plans import PlansFile
from not_fed.trust.repository import MaterialSource, Verified, signed_sha256
from not_fed.trust.takeover import first_trust, take_over, trusted

FRESH_FOR = timedelta(days=90)  # timestamp and snapshot: how long a site believes that nothing newer exists
VALID_FOR = timedelta(days=365)  # root, targets and memberships
DRAFT = "draft"
Edit = Callable[[RosterFile, RecallsFile], tuple[RosterFile, RecallsFile]]


class NotASteward(TrustError):
    """These keys may not sign this roster, or not alone."""

    code = "not-a-steward"


class BadExpiry(InputError):
    """A roster must expire, and not at once."""

    code = "bad-expiry"


class BadStewards(InputError):
    """These cannot be a roster's stewards."""

    code = "bad-stewards"


class DraftExists(InputError):
    """Another change waits for signatures."""

    code = "draft-exists"


class SignedAnother(TrustError):
    """This machine's steward has signed another draft of the same version."""

    code = "draft-signed-another"


@dataclass(frozen=True, slots=True, kw_only=True)
class Proposal:
    """A draft on top of what this machine trusts (`base`; None for a first version), and what it changes."""

    folder: Path
    base: Verified | None
    draft: Draft
    now: datetime
    place: Path
    changes: tuple[Change, ...] = field(default=())

    @property
    def progress(self) -> tuple[Progress, ...]:
        """Who has signed, who is awaited; two groups when the stewards change."""
        return progress_of(self.draft, self.base)

    @property
    def is_enough(self) -> bool:
        """Whether it can be published."""
        return all(group.enough for group in self.progress)

    @property
    def root_sha256(self) -> str:
        """The digest that sites pin when this is a first version; else that of the newest root."""
        root = self.draft.root
        if root is not None:
            return signed_sha256(root)
        assert self.base is not None  # a first version has a root
        return signed_sha256(Metadata(self.base.root))

    def sign(self, steward: Steward, *, instead: bool = False) -> None:
        """Add a steward's signatures, in memory only.

        Raises:
            NotASteward. SignedAnother: unless `instead`, because with both signed, both could be published.
        Proved by: tests/attacks/test_ceremony.py::test_a_steward_signs_one_draft_of_a_version
        """
        known = memory.signed_here(self.folder)
        other = known is not None and (known.version, known.draft) != (self.draft.version, self.draft.fingerprint)
        if other and known is not None and known.version == self.draft.version and not instead:
            raise SignedAnother(
                where=f"draft of version {self.draft.version}", expected="the draft that was signed here before",
                got="another", hint="agree with the other stewards on one; --instead signs this one all the same",
            )  # fmt: skip
        if not sign_draft(self.draft, steward=steward, base=self.base):
            raise NotASteward(
                where=f"draft of version {self.draft.version}", expected="keys of one of its stewards",
                got="keys of nobody among them", hint="nothing was changed; use the key folder that the roster knows",
            )  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Settled:
    """What became of a proposal: a published roster, or a draft that waits."""

    roster: TrustedRoster | None
    draft: Path | None


def propose_first(
    folder: Path, *, federation: RosterFile, recalls: RecallsFile, stewards: People, now: datetime,
    expires_in: timedelta = FRESH_FOR, valid_for: timedelta = VALID_FOR, plans: PlanEdit | None = None,
) -> Proposal:  # fmt: skip
    """The first version of a roster that does not exist yet; raises OutputExists, BadExpiry, BadStewards."""
    if os.path.lexists(folder):
        raise files.OutputExists(where=str(folder), expected="no folder of that name", got="one", hint="choose another")
    _check_stewards(stewards)
    dates = expiry(now, **_checked(expires_in, valid_for))
    root = next_root(None, stewards=stewards, expires=dates.long)
    planned = plans(federation, PlansFile()) if plans is not None else None
    draft = build_draft(None, roster=federation, recalls=recalls, plans=planned, root=root, dates=dates)
    return _proposal(folder, None, draft, now, folder / DRAFT)


def propose(
    folder: Path, edit: Edit, *, now: datetime, expires_in: timedelta = FRESH_FOR, valid_for: timedelta = VALID_FOR,
    stewards: Callable[[People], People] | None = None, plans: PlanEdit | None = None, renew_root: bool = False,
) -> Proposal:  # fmt: skip
    """The next version of a roster, unsigned; nothing is written.

    Args:
        edit: members and recalls before, to those after.
        stewards: today's stewards to tomorrow's.
        plans: plans of secure sums before, to those after.
        renew_root: sign a new root in any case; done anyway when the old one would expire before the roster.
    Raises:
        BadExpiry, BadStewards, RosterTooLarge; whatever `edit`, `plans` raise; as `takeover.trusted`.
    """
    dates = expiry(now, **_checked(expires_in, valid_for))
    _, base = trusted(folder, now=now, accept_expired=True)
    roster, recalls = targets_of(base)
    assert roster is not None and recalls is not None
    roster, recalls = edit(roster, recalls)
    after = stewards(old_people(base)) if stewards is not None else old_people(base)
    _check_stewards(after)
    root = None
    if renew_root or stewards is not None or base.root.expires < dates.short:
        root = next_root(base, stewards=after, expires=dates.long)
    planned = plans(roster, plans_of(base)) if plans is not None else plans_of(base)
    draft = build_draft(base, roster=roster, recalls=recalls, plans=planned, root=root, dates=dates)
    check_contents(draft, base)
    return _proposal(folder, base, draft, now, folder / DRAFT)


def open_draft(folder: Path, *, draft: Path, now: datetime) -> Proposal:
    """The draft in a folder, checked against what R = `folder` trusts; against nothing when there is no R yet.

    Raises:
        as `draft.read_draft` and `takeover.trusted`.
    """
    base = None
    if memory.exists(folder):
        _, base = trusted(folder, now=now, accept_expired=True)
    return _proposal(folder, base, read_draft(draft, base=base), now, draft)


def settle(proposal: Proposal, *, signed_by: Steward | None) -> Settled:
    """Publish when enough have signed; else write the draft, to be carried to the next steward.

    Raises:
        DraftExists: R/draft holds another change; all that `take_over` raises.
    Guarantees: a kill leaves the old state or the new one, of R as of the draft.
    Proved by: tests/unit/test_roster_kills.py::test_a_kill_leaves_the_old_roster_or_the_new_one
    """
    if proposal.is_enough:
        roster = publish(proposal)
        _leave_draft(proposal)
        return Settled(roster=roster, draft=None)
    if signed_by is not None:
        _check_place(proposal)
        _write(proposal)
    return Settled(roster=None, draft=proposal.place)


def publish(proposal: Proposal) -> TrustedRoster:
    """Take the complete draft over into R; raises NotASteward when it is not complete."""
    if not proposal.is_enough:
        raise NotASteward(
            where="roster", expected=" and ".join(f"{group.needed} stewards" for group in proposal.progress),
            got="too few of them", hint="nothing was changed; propose it as a draft for the others to sign",
        )  # fmt: skip
    source = MaterialSource(layout(proposal.draft))
    own_recalls = proposal.folder / "repository" / "recalls"
    if proposal.base is not None:
        return take_over(proposal.folder, source=source, recalls=own_recalls, now=proposal.now)
    root = proposal.draft.root
    assert root is not None  # a first version has a root
    return first_trust(
        proposal.folder, source=source, root=root.to_bytes(), recalls=None, older_roots={}, now=proposal.now
    )


def forget_outdated(folder: Path) -> None:
    """Remove R/draft when its version is published already; keep it otherwise."""
    with suppress(NotFedError):
        _, base = trusted(folder, now=memory.read(folder).accepted, accept_expired=True)
        try:
            read_draft(folder / DRAFT, base=base)
        except DraftOutdated:
            shutil.rmtree(folder / DRAFT, ignore_errors=True)


def _proposal(folder: Path, base: Verified | None, draft: Draft, now: datetime, place: Path) -> Proposal:
    return Proposal(folder=folder, base=base, draft=draft, now=now, place=place, changes=changes_of(draft, base))


def _write(proposal: Proposal) -> None:
    signed = SignedHere(
        version=proposal.draft.version, draft=proposal.draft.fingerprint, root_sha256=proposal.root_sha256
    )
    if os.path.lexists(proposal.folder):
        with memory.locked(proposal.folder):
            memory.remember_signed(proposal.folder, signed)
            write_draft(proposal.place, proposal.draft)
        return
    with files.new_folder(proposal.folder) as part:
        (part / "trusted").mkdir(mode=0o700)
        memory.remember_signed(part, signed)
        if proposal.place == proposal.folder / DRAFT:
            write_draft(part / DRAFT, proposal.draft)
    if proposal.place != proposal.folder / DRAFT:
        write_draft(proposal.place, proposal.draft)


def _check_place(proposal: Proposal) -> None:
    """A draft of R that could still be published is not replaced by another change."""
    if proposal.place != proposal.folder / DRAFT or not os.path.lexists(proposal.place):
        return
    try:
        waiting = read_draft(proposal.place, base=proposal.base)
    except NotFedError:
        return  # outdated or damaged: it can never be published
    if waiting.fingerprint != proposal.draft.fingerprint:
        raise DraftExists(
            where=str(proposal.place), expected="no other change under way", got=f"one for version {waiting.version}",
            hint="let the stewards sign that one first; or, if they gave it up, delete the folder",
        )  # fmt: skip


def _leave_draft(proposal: Proposal) -> None:
    """Published: R/draft has served; a folder elsewhere keeps all signatures, for others to take over."""
    if proposal.place == proposal.folder / DRAFT:
        shutil.rmtree(proposal.place, ignore_errors=True)
    elif os.path.lexists(proposal.place):
        with suppress(NotFedError, OSError):  # a read-only medium, for one
            write_draft(proposal.place, proposal.draft)


def _check_stewards(stewards: People) -> None:
    keys: list[SigningKeys] = list(stewards.values())
    alike = len({name.lower() for name in stewards}) != len(stewards) or len(set(keys)) != len(keys)
    raw = {key for pair in keys for key in (pair.ed25519, pair.ml_dsa_65)}
    if not 0 < len(stewards) <= MAX_STEWARDS or alike or len(raw) != 2 * len(keys):
        raise BadStewards(
            where="stewards", expected=f"1 to {MAX_STEWARDS} people with names and keys of their own",
            got=f"{len(stewards)}, or the same twice", hint="each steward makes keys: not-fed keys create --steward",
        )  # fmt: skip


def _checked(expires_in: timedelta, valid_for: timedelta) -> Mapping[str, timedelta]:
    if expires_in <= timedelta(0) or valid_for <= timedelta(0):
        raise BadExpiry(where="expiry", expected="a time ahead", got="none", hint="90 days, for example")
    return {"expires_in": expires_in, "valid_for": valid_for}
