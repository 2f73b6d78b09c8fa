"""From what this machine trusts to the next version: the one way by which a roster is taken over.

A site's update, a steward's own publication and the end of a ceremony all come through here: verify, compare with what
was trusted before, then remember in one step (memory.py).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from pathlib import Path

from tuf.api.metadata import Metadata

from not_fed import files
from not_fed.errors import TrustError
from not_fed.trust import memory, people, repository
from not_fed.trust.members import Recall, TrustedRoster, read_roster
from not_fed.trust.memory import Memory
from not_fed.trust.planning import check_plans_kept
from not_fed.trust.recall import check_none_removed, collect
from not_fed.trust.repository import NO_PREVIOUS, PLANS, PREVIOUS, MaterialSource, Source, Verified, signed_sha256


class RosterForked(TrustError):
    """The stewards have signed two different rosters of one version."""

    code = "roster-forked"


def trusted(
    folder: Path, *, now: datetime, accept_stale: bool = False, accept_expired: bool = False
) -> tuple[Memory, Verified]:
    """What this machine remembers, verified again.

    Raises:
        RosterNotPinned, ClockSetBack; all that repository.verify raises.
    """
    known = memory.read(folder)
    known.check_clock(now)
    source = MaterialSource(repository.layout(known.material))
    return known, repository.verify(
        source, pinned=known.material.roots[0], known=None, now=now, accept_stale=accept_stale,
        accept_expired=accept_expired,
    )  # fmt: skip


def roster_of(known: Memory, verified: Verified, *, now: datetime) -> TrustedRoster:
    """The members, recalls and plans of a verified version, with what was known before; raises RosterMalformed."""
    contents = verified.material.contents
    return read_roster(
        contents["roster.json"], contents["recalls.json"], contents.get(PLANS), version=verified.targets.version,
        expires_at=verified.expires_at, withdrawn=[*(each.recall for each in known.withdrawn), *known.kept],
        runs=known.runs, stale=verified.is_stale(now),
    )  # fmt: skip


def take_over(folder: Path, *, source: Source, recalls: Path | None, now: datetime) -> TrustedRoster:
    """Accept what `source` offers on top of what this machine trusts, or change nothing.

    Args:
        recalls: a folder with withdrawals that came along.
    Raises:
        as `trusted`; RosterForked, RecallRemoved, PlanReplaced.
    Guarantees: a kill at any moment leaves what was trusted before or what is trusted after. A recall that was seen
        stays, also when those who signed it are stewards no longer; and a run keeps the first plan that was seen.
    Proved by: tests/unit/test_roster_kills.py::test_a_kill_leaves_the_old_roster_or_the_new_one,
        tests/attacks/test_recall.py::test_a_recall_outlasts_the_stewards_who_made_it,
        tests/attacks/test_roster_plans.py::test_new_stewards_cannot_give_a_run_another_plan
    """
    with memory.locked(folder):
        known, before = trusted(folder, now=now, accept_expired=True)
        pinned = known.material.roots[0]
        _check_not_forked(before, source)
        verified = repository.verify(source, pinned=pinned, known=known.material, now=now)
        plain = replace(known, runs={})  # what the stewards say, whatever was known of those runs before
        earlier, roster, kept = roster_of(plain, before, now=now), roster_of(plain, verified, now=now), known.kept
        if _still_counts(before, verified):
            check_none_removed(earlier, roster)
            check_plans_kept(earlier, roster)
            _check_follows(before, verified)
        else:
            kept += _lost(earlier, roster)
        lines = collect(recalls, roster=roster, known=known.withdrawn, now=now) if recalls is not None else {}
        if verified.material != known.material or lines:
            known = Memory(
                material=verified.material, withdrawn=(*known.withdrawn, *lines), accepted=now, kept=kept,
                runs={**_digests(roster), **known.runs},
            )  # fmt: skip
            memory.write(folder, known, lines=lines)
        memory.hand_on(folder, known)
    return roster_of(known, verified, now=now)


def first_trust(
    folder: Path, *, source: Source, root: bytes, recalls: Path | None, older_roots: Mapping[str, bytes], now: datetime
) -> TrustedRoster:
    """Start to trust, from this root on, in a new folder or in one that waits for it.

    Raises:
        OutputExists: something is pinned already; all that repository.verify raises, and then there is no folder.
    """
    verified = repository.verify(source, pinned=root, known=None, now=now)
    empty = Memory(material=verified.material, withdrawn=(), accepted=now)
    roster = roster_of(empty, verified, now=now)
    lines = collect(recalls, roster=roster, known=(), now=now) if recalls is not None else {}
    state = Memory(material=verified.material, withdrawn=tuple(lines), accepted=now, runs=_digests(roster))
    if os.path.lexists(folder) and not (folder / "trusted").is_dir():
        raise already_there(folder)
    if os.path.lexists(folder):
        with memory.locked(folder):
            if memory.exists(folder):
                raise already_there(folder)
            memory.write(folder, state, lines=lines)
            memory.hand_on(folder, state, older_roots=older_roots)
    else:
        with files.new_folder(folder) as part:
            (part / "trusted").mkdir(mode=0o700)
            memory.write(part, state, lines=lines)
            memory.hand_on(part, state, older_roots=older_roots)
    return roster_of(state, verified, now=now)


def _digests(roster: TrustedRoster) -> dict[str, str]:
    return {run: plan.sha256 for run, plan in roster.plans.items()}


def already_there(folder: Path) -> files.OutputExists:
    """The error for a folder that cannot become a roster's."""
    return files.OutputExists(
        where=str(folder), expected="no folder of that name", got="a pinned roster, or another folder",
        hint="to take over a newer version: not-fed roster update R --from SOURCE",
    )  # fmt: skip


def _check_not_forked(before: Verified, source: Source) -> None:
    """Of the version that this machine has, no second one that the same stewards signed (TUF would pass it over)."""
    data = source.read("metadata", "timestamp.json")
    if data is None or len(data) > repository.MAX_METADATA_BYTES:
        return
    try:
        offered = repository.parse_metadata(data)
        people.check_people(before.root, offered)
    except TrustError:
        return  # not the stewards' own; TUF will say what is wrong with it
    own = Metadata(before.timestamp)
    if offered.signed.version == own.signed.version and signed_sha256(offered) != signed_sha256(own):
        raise _forked(before.targets.version)


def _check_follows(before: Verified, after: Verified) -> None:
    """The next version names the one that this machine has, and no other."""
    previous = after.targets.unrecognized_fields.get(PREVIOUS, NO_PREVIOUS)
    is_next = after.targets.version == before.targets.version + 1
    if is_next and previous != signed_sha256(Metadata(before.targets)):
        raise _forked(before.targets.version)


def _forked(version: int) -> RosterForked:
    return RosterForked(
        where=f"roster version {version}", expected="the one that this machine has", got="another one, signed as well",
        hint="nothing was changed; show both to all stewards: some of them have signed both",
    )  # fmt: skip


def _still_counts(before: Verified, after: Verified) -> bool:
    """Whether the version before is signed by enough of today's stewards.

    If not, the stewards have been exchanged since, as they are after a theft of keys (TUF 5.3.11): then what the thief
    may have signed, a version number of a billion for one, binds nobody any longer. What is older than the exchange
    does not come back by that (people.SINCE), and its recalls stay (`_lost`).
    """
    try:
        people.check_people(after.root, repository.parse_metadata(before.material.targets))
    except TrustError:
        return False
    return True


def _lost(before: TrustedRoster, after: TrustedRoster) -> tuple[Recall, ...]:
    """The stewards' recalls of organs that the version after does not recall."""
    missing = set(before.recalls) - set(after.recalls)
    found = (recall for digest in sorted(missing) for recall in before.recalled[digest])
    return tuple(recall for recall in found if recall.by is None)
