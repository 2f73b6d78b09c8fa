"""What an administrator wants to know of a coordinator, while it serves and when it does not: only reads."""

from __future__ import annotations

from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from not_fed import settings
from not_fed.canonical import format_time
from not_fed.coordinator.bank import Bank
from not_fed.coordinator.creating import require_deployment
from not_fed.coordinator.deployment import Deployment
from not_fed.coordinator.nodes import Nodes
from not_fed.coordinator.plan import PLAN_FILE, FederationPlan
from not_fed.coordinator.serving import serving
from not_fed.coordinator.state import GOOD, Attempt, CoordinatorState
from not_fed.envelope.summing import SumCall
from not_fed.envelope.task import ORDER_OF_KINDS
from not_fed.errors import NotFedError
from not_fed.processes import tls
from not_fed.trust.roster import TrustedRoster, load_roster

SCHEMA = "not-fed/coordinator-status/1"
PROBLEMS = 20


def coordinator_status(home: Path, *, now: datetime | None = None) -> dict[str, Any]:
    """The state of the coordinator at `home`, as the object that `status --json` prints.

    Raises:
        NotAFile: no coordinator's home. Whatever else is wrong stands in `problems`: a status is wanted most then.
    Proved by: tests/unit/test_coordinator_status.py::test_a_status_is_given_whatever_else_is_missing
    """
    moment = now or datetime.now(UTC)
    deployment, found = require_deployment(home), _Problems(home, moment)
    state = CoordinatorState(home)
    plan = found.attempt(lambda: settings.load(FederationPlan, home / PLAN_FILE))
    roster = found.attempt(lambda: load_roster(home / "roster", now=moment, accept_stale=True))
    return {
        "schema": SCHEMA,
        "name": None if plan is None else plan.name,
        "federation": None if plan is None else plan.federation,
        "address": deployment.address,
        "serving": serving(home),
        "certificate": found.attempt(lambda: _certificate(home, deployment, moment)),
        "roster": None if roster is None else _roster(roster),
        "run": None if plan is None else found.attempt(lambda: _run(state, plan)),
        "sites": found.attempt(lambda: _sites(home, state, plan, roster, moment)) or [],
        "bank": found.attempt(lambda: _bank(home)),
        "problems": [*found.now, *_noted(state)],
    }


class _Problems:
    """Gathers what cannot be read, and goes on."""

    def __init__(self, home: Path, moment: datetime) -> None:
        self._moment = format_time(moment)
        self.now: list[dict[str, Any]] = []

    def attempt(self, read: Any) -> Any:  # noqa: ANN401  any reader
        try:
            return read()
        except NotFedError as error:
            self.now.append(
                {
                    "code": error.code, "site": None, "text": f"{error}; {error.hint}", "first": self._moment,
                    "last": self._moment, "count": 1,
                }
            )  # fmt: skip
            return None


def _certificate(home: Path, deployment: Deployment, now: datetime) -> dict[str, Any]:
    facts = tls.read_certificate(home / deployment.tls.certificate)
    return {
        "fingerprint": facts.fingerprint, "hosts": list(facts.hosts), "not_after": format_time(facts.not_after),
        "days_left": (facts.not_after - now).days,
    }  # fmt: skip


def _roster(roster: TrustedRoster) -> dict[str, Any]:
    return {"version": roster.version, "expires": format_time(roster.expires_at), "stale": roster.stale}


def _run(state: CoordinatorState, plan: FederationPlan) -> dict[str, Any]:
    attempts, answers = state.attempts(plan.run), state.answers(plan.run)
    current = attempts[-1] if attempts else None
    steps = sorted({(one.step.round, ORDER_OF_KINDS.index(one.step.kind), one.step.kind) for one in attempts})
    return {
        "name": plan.run, "mode": plan.mode, "outcome": state.outcome(plan.run), "rounds": plan.rounds,
        "min_answers": plan.min_answers, "round": current.step.round if current else None,
        "awaited": _awaited(state, plan, current),
        "outcomes": [
            {"round": number, "outcome": outcome, "why": why}
            for number, (outcome, why) in state.round_outcomes(plan.run).items()
        ],
        "steps": [
            {
                "round": number, "kind": kind,
                "closed": next((_time(one.closed) for one in reversed(attempts) if _is(one, number, kind)), None),
                "attempts": [_attempt(one) for one in attempts if _is(one, number, kind)],
                "answers": [
                    {key: value for key, value in asdict(one).items() if key not in ("run", "round", "kind")}
                    for one in answers
                    if (one.round, one.kind) == (number, kind)
                ],
            }
            for number, _, kind in steps
        ],
    }  # fmt: skip


def _is(attempt: Attempt, number: int, kind: str) -> bool:
    return (attempt.step.round, attempt.step.kind) == (number, kind)


def _attempt(one: Attempt) -> dict[str, Any]:
    return {
        "number": one.number, "opened": _time(one.opened), "closed": _time(one.closed), "outcome": one.outcome,
        "missing": dict(one.missing),
    }  # fmt: skip


def _awaited(state: CoordinatorState, plan: FederationPlan, current: Attempt | None) -> list[dict[str, Any]]:
    """Who has not given a good answer in the step that is open, since when, and what it said instead."""
    if current is None or current.closed is not None or state.outcome(plan.run) == "complete":
        return []
    answers = {one.site: one for one in state.answers(plan.run, step=current.step)}
    asked = plan.sites
    if current.step.kind == "help":
        line = state.call(plan.run, current.step.round)
        call = None if line is None else SumCall.from_payload(line, where="call in the coordinator's state")
        rule = plan.sum_plan().thresholds(None if call is None else len(call.names))
        asked = [] if call is None else call.helpers(rule.helpers)
    return [
        {"site": site, "since": _time(current.opened), "said": answers[site].code if site in answers else None}
        for site in asked
        if site not in answers or answers[site].status not in GOOD
    ]


def _sites(
    home: Path, state: CoordinatorState, plan: FederationPlan | None, roster: TrustedRoster | None, now: datetime
) -> list[dict[str, Any]]:
    nodes, seen = Nodes(home), state.sites_seen()
    enrolled = nodes.enrolled()
    invited = [] if plan is None else plan.sites
    rows = []
    for site in sorted({*enrolled, *invited}):
        why = "no roster" if roster is None else nodes.why_not(site, roster, now)
        last = seen.get(site)
        rows.append(
            {
                "site": site, "in_plan": site in invited, "admitted": why is None, "why_not": why,
                "last_seen": _time(last.at) if last else None,
                "not_fed": (last.version if last and last.version else None) or _said(enrolled, site),
                "fingerprint": enrolled[site].fingerprint if site in enrolled else None,
            }
        )  # fmt: skip
    return rows


def _said(enrolled: Any, site: str) -> str | None:  # noqa: ANN401  a mapping of enrolments
    return enrolled[site].enrolment.not_fed if site in enrolled else None


def _bank(home: Path) -> dict[str, int]:
    listing = Bank.at(home).listing()
    sealed = listing.get("sealed")
    return {"organs": sealed.count, "bytes": sealed.bytes} if sealed else {"organs": 0, "bytes": 0}


def _noted(state: CoordinatorState) -> list[dict[str, Any]]:
    return [
        {
            "code": one.code, "site": one.site or None, "text": one.text, "first": _time(one.first),
            "last": _time(one.last), "count": one.count,
        }
        for one in state.problems(PROBLEMS)
    ]  # fmt: skip


def _time(moment: datetime | None) -> str | None:
    return None if moment is None else format_time(moment)
