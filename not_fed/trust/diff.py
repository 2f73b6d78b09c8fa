"""What a roster version changes, in words, from the very bytes that get signed.

Exhaustive: a draft equals what this machine builds from these values (draft.py), and two drafts with the same
difference to the same version are the same, order of members aside.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from tuf.api.metadata import Metadata

from not_fed import canonical
from not_fed.keys.identity import fingerprint, spoken
from not_fed.keys.signing import SigningKeys
from not_fed.trust import people
from not_fed.trust.draft import Draft, new_people, old_people
from not_fed.trust.members import Member, MemberEntry, RecallEntry, RecallsFile, RosterFile
from not_fed.trust.people import People
from not_fed.trust.plans import PlansFile, SumPlan, parse_plans
from not_fed.trust.repository import PLANS, Verified


@dataclass(frozen=True, slots=True)
class Change:
    """One line: what kind (`member-added`, `expires`, ...), of whom or what, and how."""

    kind: str
    subject: str
    text: str


def changes_of(draft: Draft, base: Verified | None) -> tuple[Change, ...]:
    """Everything that the draft changes of `base`; all that is in it when it is the first.

    Proved by: tests/attacks/test_ceremony.py::test_every_field_that_differs_is_shown
    """
    before_roster, before_recalls = targets_of(base)
    roster, recalls = draft.roster(), draft.recalls()
    found = [*_stewards(old_people(base), new_people(draft, base))]
    if before_roster is None or before_roster.federation != roster.federation:
        found.append(Change("federation", roster.federation, "its name"))
    found += _members(before_roster.members if before_roster else [], roster.members)
    found += _recalls(before_recalls.recalls if before_recalls else [], recalls.recalls)
    found += _plans(plans_of(base), draft.plans())
    return (*found, *_dates(draft, base))


def changes_between(before: Verified | None, after: Verified) -> tuple[Change, ...]:
    """The same between two versions that were published."""
    root = Metadata(after.root) if before is None or before.root.version != after.root.version else None
    draft = Draft(
        root=root, targets=Metadata(after.targets), snapshot=Metadata(after.snapshot),
        timestamp=Metadata(after.timestamp), contents=after.material.contents,
    )  # fmt: skip
    return changes_of(draft, before)


def targets_of(base: Verified | None) -> tuple[RosterFile | None, RecallsFile | None]:
    """Members and recalls of a verified version."""
    if base is None:
        return None, None
    contents = base.material.contents
    return (
        RosterFile.model_validate(canonical.loads(contents["roster.json"], where="roster.json")),
        RecallsFile.model_validate(canonical.loads(contents["recalls.json"], where="recalls.json")),
    )


def plans_of(base: Verified | None) -> PlansFile:
    """Plans of secure sums in a verified version; none where there is no such target."""
    data = base.material.contents.get(PLANS) if base is not None else None
    return PlansFile() if data is None else parse_plans(data, where="plans.json")


def steward_fingerprint(keys: SigningKeys) -> str:
    """The 13 groups that the steward's own `keys show` prints."""
    return spoken(keys.ed25519, keys.ml_dsa_65)


def _stewards(before: People, after: People) -> Iterator[Change]:
    for name in sorted({*before, *after}):
        if name not in before:
            yield Change("steward-added", name, steward_fingerprint(after[name]))
        elif name not in after:
            yield Change("steward-removed", name, f"was {steward_fingerprint(before[name])}")
        elif before[name] != after[name]:
            yield Change("steward-keys", name, f"now {steward_fingerprint(after[name])}")
    if before != after:
        yield Change("stewards-needed", f"{people.majority(len(after))} of {len(after)}", "must sign each change")


def _members(before: list[MemberEntry], after: list[MemberEntry]) -> Iterator[Change]:
    old, new = ({entry.name: entry.to_member() for entry in entries} for entries in (before, after))
    for name in sorted({*old, *new}, key=str.lower):
        if name not in old:
            yield Change("member-added", name, _words(new[name]))
            yield from _keys(new[name])
        elif name not in new:
            yield Change("member-removed", name, f"was {_words(old[name])}")
        else:
            yield from _differences(old[name], new[name])


def _differences(old: Member, new: Member) -> Iterator[Change]:
    if old.active != new.active:
        yield Change("member-revoked" if old.active else "member-restored", new.name, _words(new))
    if old.roles != new.roles:
        yield Change("member-roles", new.name, f"{_roles(old)} becomes {_roles(new)}")
    if (old.not_before, old.not_after) != (new.not_before, new.not_after):
        yield Change("member-validity", new.name, f"{_span(old)} becomes {_span(new)}")
    keys = [(each.signing, each.recipient, each.log) for each in (old, new)]
    is_back = new.active and not old.active
    if is_back or keys[0] != keys[1] or old.former != new.former:
        yield from _keys(new)


def _keys(member: Member) -> Iterator[Change]:
    yield Change("fingerprint", member.name, member.fingerprint)
    if member.log is not None:
        yield Change("keeps-log", member.name, "its fingerprint covers the log's keys")
    for former in member.former:
        print_of = fingerprint(former.signing.ed25519, former.signing.ml_dsa_65, former.recipient)
        span = f"{canonical.format_time(former.not_before)} to {canonical.format_time(former.not_after)}"
        yield Change("former-keys", member.name, f"{print_of}, for {span} only")


def _recalls(before: list[RecallEntry], after: list[RecallEntry]) -> Iterator[Change]:
    old, new = ({(entry.organ_sha256, entry.reason, entry.time) for entry in entries} for entries in (before, after))
    for digest, reason, time in sorted(new - old):
        yield Change("recall-added", digest, f"{reason} ({time})")
    for digest, reason, _ in sorted(old - new):
        yield Change("recall-removed", digest, reason)


def _plans(before: PlansFile, after: PlansFile) -> Iterator[Change]:
    old, new = ({plan.run: plan for plan in each.plans} for each in (before, after))
    for run in sorted({*old, *new}):
        if run not in new:
            yield Change("plan-removed", run, "no site takes part any longer, and the name is used up")
        elif old.get(run) != new[run]:
            yield Change("plan-replaced" if run in old else "plan-added", run, f"digest {new[run].sha256}")
            for kind, text in plan_words(new[run]):
                yield Change(kind, run, text)
    for run in sorted(set(after.removed) - set(before.removed) - set(old)):
        yield Change("plan-removed", run, "the name is used up")
    for run in sorted(set(before.removed) - set(after.removed)):
        yield Change("plan-name-free", run, "a plan under that name was removed before")


def plan_words(plan: SumPlan) -> Iterator[tuple[str, str]]:
    """All that a plan says, a line each: kind, and what it means for whoever signs it."""
    rule, n, c, f = plan.thresholds(), len(plan.sites), plan.collude, plan.vanish
    spans = ", ".join(f"{start}:{stop}" for start, stop in plan.spans) + (" in turn" if len(plan.spans) > 1 else "")
    yield "plan-sites", f"{_count(n, 'site')}: {', '.join(plan.sites)}; coordinator {plan.coordinator}"
    yield "plan-rounds", f"{_count(plan.rounds, 'round')}, layers {spans}"
    yield "plan-base", plan.base_sha256
    yield "plan-collude", (
        f"up to {c} of {_count(n, 'site')} may collude with the coordinator" if c
        else "no site may collude with the coordinator: one that does can open others' organs"
    )  # fmt: skip
    yield "plan-vanish", (
        f"{_count(f, 'helper')} may vanish after the uploads; {rule.shares} sites then open what is lost with them" if f
        else "no helper may vanish: when one does, the round is lost"
    )  # fmt: skip
    yield "plan-helpers", f"{rule.helpers} sites a round carry the masks of all others"
    least = " (as chosen)" if plan.min_sites is not None else ""
    yield "plan-least", f"a sum of fewer than {_count(rule.min_sites, 'site')} is never formed{least}"
    yield "plan-numbers", (
        f"{plan.value_bits} bits in words of {plan.word_bits}, changes cut at {plan.clip!r}, "
        + ("all sites count alike" if plan.max_weight == 1 else f"a site's weight is 1 to {plan.max_weight:,}")
    )  # fmt: skip
    yield "plan-result", "hidden from the coordinator (blind)" if plan.blind else "the coordinator reads the sum"
    yield "plan-vote", (
        f"{plan.quorum} of {_count(n, 'site')} must accept each sum before it is used" if plan.quorum
        else "none: each sum is used as it is"
    )  # fmt: skip


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def _dates(draft: Draft, base: Verified | None) -> Iterator[Change]:
    short = canonical.format_time(draft.snapshot.signed.expires)
    yield Change("expires", short, "sites rely on it until then, unless it is renewed")
    long = canonical.format_time(draft.targets.signed.expires)
    yield Change("roster-holds", long, "--accept-stale ends then, at the latest")
    if draft.root is not None:
        root = draft.root.signed
        yield Change("root", f"version {root.version}", f"until {canonical.format_time(root.expires)}")


def _words(member: Member) -> str:
    return f"{'active' if member.active else 'revoked'}, {_roles(member)}, {_span(member)}"


def _roles(member: Member) -> str:
    return ", ".join(sorted(member.roles)) or "no role"


def _span(member: Member) -> str:
    return f"{canonical.format_time(member.not_before)} to {canonical.format_time(member.not_after)}"
