"""How a site stands, for its own administrator: connection, tasks, what waits for a person, budget, last words."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from not_fed import files
from not_fed.canonical import format_time
from not_fed.errors import NotFedError
from not_fed.home import Home
from not_fed.privacy.ledger.ledger import Ledger
from not_fed.site.approval import waiting
from not_fed.site.connection import load_connection
from not_fed.site.join import joining
from not_fed.site.log_file import LOG_FILE, MAX_LOG_BYTES
from not_fed.site.not_now import is_at_work
from not_fed.site.policy import SitePolicy, load_policy
from not_fed.site.state import SiteState

SCHEMA = "not-fed/site-status/1"
TASKS, LAST_LINES = 10, 5


def status_of(home: Path, *, now: datetime) -> dict[str, Any]:
    """One object, whether or not the site is connected; what cannot be read is named instead of hiding the rest.

    Raises:
        NoHome, BadSettings: this is no site's folder.
    Proved by: tests/unit/test_site_status.py::test_the_status_says_what_a_site_did_and_what_waits
    """
    place, policy = Home(home), load_policy(home)
    connection = load_connection(home)
    state = SiteState(home)
    return {
        "schema": SCHEMA,
        "name": policy.name,
        "federation": policy.federation,
        "coordinator": policy.coordinator,
        "address": None if connection is None else connection.address,
        "joined": joining(home),
        "roster": _roster(place, now),
        "at_work": is_at_work(home),
        "approval": policy.approval,
        "waiting": [{"run": one.run, "round": one.round or None, "asked": one.asked} for one in waiting(home)],
        "tasks": [
            {"run": one.run, "kind": one.kind, "round": one.round, "started": one.started, "answered": one.answered}
            for one in state.tasks(limit=TASKS)
        ],
        "open_runs": state.open_runs(),
        "budget": _budget(place, policy),
        "log": _last_lines(home / LOG_FILE),
    }


def _roster(place: Home, now: datetime) -> dict[str, Any]:
    try:
        roster = place.roster(now)
    except NotFedError as error:
        return {"problem": error.code}
    return {"version": roster.version, "expires": format_time(roster.expires_at)}


def _budget(place: Home, policy: SitePolicy) -> list[Mapping[str, Any]]:
    folder = place.inside("ledger" if policy.privacy is None else policy.privacy.ledger)
    if not folder.is_dir():
        return []
    try:
        standings = Ledger.at(folder).standings()
    except NotFedError as error:
        return [{"problem": error.code}]
    return [
        {
            "dataset": one.name, "unit": one.unit, "allowed": one.cap.epsilon, "spent": one.spent.value,
            "delta": one.spent.delta, "left": one.left, "runs": one.runs,
        }
        for one in standings
    ]  # fmt: skip


def _last_lines(log: Path) -> list[str]:
    if not log.is_file():
        return []
    text = files.read_regular(log, max_bytes=2 * MAX_LOG_BYTES).decode("utf-8", "replace")
    return text.splitlines()[-LAST_LINES:]
