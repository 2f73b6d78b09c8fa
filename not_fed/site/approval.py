"""A person at the site agrees to a run, or to each of its rounds, before anything is trained.

What is agreed to are the terms of the signed task, shown as they are; when they change, the agreement is void.
"""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

from not_fed.envelope.task import Task
from not_fed.errors import InputError
from not_fed.site.not_now import ApprovalAwaited
from not_fed.site.policy import SitePolicy
from not_fed.site.state import Asked, SiteState

WHOLE_RUN = 0


class NothingToApprove(InputError):
    """No run of this name waits for approval here."""

    code = "nothing-to-approve"


def require_approval(task: Task, *, policy: SitePolicy, state: SiteState, now: datetime) -> None:
    """Let a training task pass when a person has agreed to it, or nobody needs to.

    Raises:
        ApprovalAwaited: it is noted, and waits for `not-fed site approve`.
    Proved by: tests/unit/test_site_approval.py::test_a_run_waits_until_a_person_agrees_to_its_terms
    """
    if policy.approval == "never" or task.kind == "receive":
        return
    round_number = WHOLE_RUN if policy.approval == "run" else task.round
    if state.is_approved(task.run, round_number, terms=task.terms()):
        return
    state.ask(task.run, round_number, terms=task.terms(), now=now)
    raise ApprovalAwaited(
        where=f"run {task.run}, round {task.round}", expected="the agreement of a person here", got="none yet",
        hint=f"not-fed site approve HOME {task.run}",
    )  # fmt: skip


def waiting(home: Path) -> list[Asked]:
    """What waits for a person, the oldest first."""
    return [asked for asked in SiteState(home).approvals() if asked.approved is None]


def approve(home: Path, asked: Asked, *, now: datetime) -> None:
    """A person agrees to exactly what they were shown.

    Raises:
        NothingToApprove: it was changed meanwhile.
    Proved by: tests/unit/test_site_approval.py::test_what_was_shown_is_what_is_agreed_to
    """
    if not SiteState(home).approve(asked, now=now):
        raise nothing(asked.run, "other terms by now")


def nothing(run: str, got: str) -> NothingToApprove:
    """The error for a run that does not wait."""
    return NothingToApprove(
        where=f"run {run}", expected="one that waits for approval", got=got, hint="not-fed site approve HOME lists them"
    )
