"""How plans of secure sums get into a roster, and out of it: decided by stewards, one plan for a run and for good.

A plan is never changed: what sites promised each other under a name would mean something else afterwards. It is taken
away as a whole, and then the name is used up; another plan is another run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from datetime import datetime

from not_fed import canonical
from not_fed.errors import InputError, TrustError
from not_fed.trust.members import Member, MemberNotActive, RosterFile, TrustedRoster, UnknownMember, WrongRole
from not_fed.trust.plans import MAX_PLANS, MAX_REMOVED, PlansFile, SumPlan

SITE_ROLES = ("author", "receiver")  # it answers for what it trained, and is sent the aggregate
COORDINATOR_ROLES = ("relay", "aggregator")  # it signs tasks, and takes the masked words and adds them up
PlanEdit = Callable[[RosterFile, PlansFile], PlansFile]


class PlanReplaced(TrustError):
    """A newer roster has another plan for a run, or lacks one that it does not say was removed."""

    code = "plan-replaced"


class PlanExists(InputError):
    """There is, or was, a plan for a run of that name."""

    code = "plan-exists"


class NoSuchPlan(InputError):
    """The roster has no plan for a run of that name."""

    code = "plan-unknown"


class PlanOfAnother(InputError):
    """The plan is for another federation than this roster's."""

    code = "plan-federation"


class TooManyPlans(InputError):
    """A roster has room for 200 plans of secure sums, and for 10,000 names of those that were removed."""

    code = "plans-too-many"


def planning(*plans: SumPlan, now: datetime) -> PlanEdit:
    """Add plans, each for a run that has none and never had one.

    Raises:
        UnsafePlan: it would protect nobody, or could not work. PlanExists, PlanOfAnother, TooManyPlans.
        UnknownMember, MemberNotActive, WrongRole: a site that is not author and receiver now, a coordinator that is not
        relay and aggregator.
    Proved by: tests/attacks/test_roster_plans.py::test_a_plan_that_breaks_the_rule_is_not_proposed
    """

    def edit(roster: RosterFile, before: PlansFile) -> PlansFile:
        found = {plan.run: plan for plan in before.plans}
        members = {entry.name: entry.to_member() for entry in roster.members}
        for plan in plans:
            plan.thresholds()
            if plan.federation != roster.federation:
                raise PlanOfAnother(
                    where=f"plan of run {plan.run}", expected=f"federation {roster.federation}", got=plan.federation,
                    hint="nothing was changed; correct `federation`, or give the roster of that federation",
                )  # fmt: skip
            if plan.run in found or plan.run in before.removed:
                raise PlanExists(
                    where="roster, plans", expected="a run without a plan",
                    got=f"run {plan.run}, which {'has' if plan.run in found else 'had'} one",
                    hint="a plan is never changed; give the run another name",
                )  # fmt: skip
            check_taking_part(plan, members, now=now)
            found[plan.run] = plan
        return _checked(found.values(), before.removed)

    return edit


def unplanning(run: str) -> PlanEdit:
    """Take the plan of a run away, for good: its sites take part in no further round. Raises NoSuchPlan."""

    def edit(_: RosterFile, before: PlansFile) -> PlansFile:
        if run not in {plan.run for plan in before.plans}:
            raise NoSuchPlan(
                where="roster, plans", expected="a run that has a plan", got=run, hint="not-fed roster show R"
            )
        return _checked((plan for plan in before.plans if plan.run != run), {*before.removed, run})

    return edit


def check_taking_part(plan: SumPlan, members: Mapping[str, Member], *, now: datetime | None = None) -> None:
    """Whether all whom a new plan names can do their part.

    Args:
        now: whose dates count too; None where only the roster itself is looked at.
    Raises:
        UnknownMember, MemberNotActive, WrongRole.
    """
    for name, roles in ((plan.coordinator, COORDINATOR_ROLES), *((site, SITE_ROLES) for site in plan.sites)):
        member = members.get(name)
        where, hint = f"plan of run {plan.run}", "nothing was changed; first enrol, extend or restore that member"
        if member is None:
            raise UnknownMember(where=where, expected="members of the roster", got=f"the name {name}", hint=hint)
        if not member.active or (now is not None and not member.is_current(now)):
            got = "revoked" if not member.active else f"valid until {canonical.format_time(member.not_after)}"
            raise MemberNotActive(where=where, expected=f"{name} to be active", got=got, hint=hint)
        if not member.roles.issuperset(roles):
            raise WrongRole(
                where=where, expected=f"{name} to be {' and '.join(roles)}", got=", ".join(sorted(member.roles)),
                hint="nothing was changed; roles are given when a member is enrolled",
            )  # fmt: skip


def check_plans_kept(before: TrustedRoster, after: TrustedRoster) -> None:
    """Raises PlanReplaced unless each plan is as it was, or was removed under its name; a removed one stays so.

    Proved by: tests/attacks/test_roster_plans.py::test_a_plan_is_not_swapped_under_the_same_run
    """
    gone = {run for run in before.plans if run not in after.plans} - after.removed_runs
    back = before.removed_runs - after.removed_runs
    other = {run for run, plan in before.plans.items() if after.plans.get(run, plan) != plan}
    for got, runs in (("another plan", other), ("none", gone), ("a removed one no longer named as removed", back)):
        if runs:
            raise PlanReplaced(
                where=f"roster version {after.version}, plan of run {sorted(runs)[0]}",
                expected=f"the one of version {before.version}, or the name among the removed", got=got,
                hint="nothing was changed; this must not happen: show both versions to all stewards",
            )  # fmt: skip


def _checked(plans: Iterable[SumPlan], removed: Iterable[str]) -> PlansFile:
    found, names = sorted(plans, key=lambda plan: plan.run), sorted(removed)
    if len(found) > MAX_PLANS or len(names) > MAX_REMOVED:
        raise TooManyPlans(
            where="roster, plans", expected=f"at most {MAX_PLANS} plans and {MAX_REMOVED:,} removed ones",
            got=f"{len(found)} and {len(names):,}", hint="remove plans of runs that are over",
        )  # fmt: skip
    return PlansFile(plans=tuple(found), removed=tuple(names))
