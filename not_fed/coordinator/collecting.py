"""What the bank may forget: nothing that a run which goes on can still need."""

from __future__ import annotations

from datetime import datetime, timedelta
from pathlib import Path

from not_fed.coordinator.bank import ABANDONED_AFTER, Bank
from not_fed.coordinator.deployment import BankTable, load_deployment
from not_fed.coordinator.plan import load_plan
from not_fed.coordinator.state import CoordinatorState


def collect_garbage(home: Path, *, now: datetime) -> list[str]:
    """Delete sealed organs that are older than `bank.keep_days` and belong to no open run, and abandoned uploads.

    Returns:
        the digests of what was deleted.
    Raises:
        StorageFailed, BadSettings.
    Proved by: tests/unit/test_bank.py::test_what_an_open_run_needs_is_never_collected
    """
    deployment = load_deployment(home)
    table = BankTable() if deployment is None else deployment.bank
    wanted = wanted_organs(home)
    keep = max(timedelta(days=table.keep_days), ABANDONED_AFTER)  # what has just come may not be counted yet
    return Bank.at(home).collect(now=now, keep=keep, wanted=wanted)


def wanted_organs(home: Path) -> frozenset[str]:
    """Every sealed organ and aggregate of the plan's run, unless that run is complete."""
    plan, state = load_plan(home), CoordinatorState(home)
    if state.ended(plan.run):
        return frozenset()
    organs = {one.sealed_sha256 for one in state.answers(plan.run) if one.sealed_sha256 is not None}
    aggregates = {one[0] for number in range(1, plan.rounds + 1) if (one := state.aggregate(plan.run, number))}
    return frozenset(organs | aggregates)
