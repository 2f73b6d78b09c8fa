"""Small data sets, cheap plans and ledgers for tests."""

from __future__ import annotations

from pathlib import Path

from not_fed.privacy.accounting import DpPlan, Unit
from not_fed.privacy.ledger.identity import DataIdentity
from not_fed.privacy.ledger.ledger import Ledger

DELTA = 1e-5


def notes(start: int = 0, stop: int = 50) -> list[str]:
    """Texts that differ."""
    return [f"note {number}: the patient feels {number % 7} of ten" for number in range(start, stop)]


def plan(
    *, noise: float = 1.345, steps: int = 10, rate: float = 0.2, unit: Unit = "record", delta: float = DELTA,
    runs: int = 1,
) -> DpPlan:  # fmt: skip
    """Epsilon 3 by default; a budget of 8 admits six of them."""
    return DpPlan(
        sample_rate=rate, steps=steps, noise_multiplier=noise, max_grad_norm=1.0, divisor=10.0, delta=delta, runs=runs,
        unit=unit, records_per_person=1 if unit == "record" else 4,
    )  # fmt: skip


def budgeted(folder: Path, *, epsilon: float = 8.0, texts: list[str] | None = None) -> tuple[Ledger, DataIdentity]:
    """A ledger with one data set and its budget."""
    ledger = Ledger.at(folder)
    data = ledger.identify(notes() if texts is None else texts)
    ledger.set_budget(data, name="notes.jsonl", unit="record", epsilon=epsilon, delta=DELTA)
    return ledger, data


def run(ledger: Ledger, data: DataIdentity, name: str, chosen: DpPlan | None = None) -> None:
    """One whole run, as training does it."""
    reserved = ledger.reserve(data, name="notes.jsonl", plan=chosen or plan(), run=name)
    for step in range(reserved.plan.steps):
        reserved.start_step(remaining=reserved.plan.steps - 1 - step)
    reserved.commit()
