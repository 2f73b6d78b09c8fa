"""The audit inside real trainings of a tiny model: right code passes, and an alarm leaves no organ behind."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from not_fed.organ import private_steps
from not_fed.organ.anatomy import Span
from not_fed.organ.charging import PublicRecords, ToLedger
from not_fed.organ.checkpoint import Base
from not_fed.organ.data import Records
from not_fed.organ.train import Trained, TrainSettings, train
from not_fed.privacy.accounting import DpPlan
from not_fed.privacy.audit import AuditAlarm
from not_fed.privacy.dp_sgd import noisy_gradient
from not_fed.privacy.ledger import Ledger
from not_fed.privacy.ledger_scope import BudgetSpent
from tests.support import tiny
from tests.support.folders import records, save_base

SPAN = Span(1, 3)
PLAN = DpPlan(sample_rate=0.25, steps=8, noise_multiplier=1.44, max_grad_norm=0.5, divisor=4.0, delta=1e-5)
OFTEN_EMPTY = replace(PLAN, sample_rate=0.1, steps=12, divisor=1.0)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    return save_base(tiny.tiny_llama(), tmp_path_factory.mktemp("base") / "base")


def trained(base: Base, out: Path, *, plan: DpPlan = PLAN, texts: Sequence[str] | None = None) -> Trained:
    settings = TrainSettings(span=SPAN, lr=5e-3, max_tokens=24, dp=plan)
    data = Records(tuple(texts or records(32)))
    return train(base, records=data, settings=settings, out=out, charge=PublicRecords())


def test_a_private_training_carries_its_audit(base: Base, tmp_path: Path) -> None:
    found = (trained(base, tmp_path / "o.organ").organ.manifest.training or {})["audit"]
    assert found["verdict"] == "consistent"
    assert (found["steps"], found["canaries"]) == (8, 1936)
    assert 0 < found["epsilon_lower_bound"] <= found["expected_at_most"] < 3.0
    assert 0.94 < found["noise_ratio"] < 1.1


def test_a_training_with_empty_steps_passes_its_audit(base: Base, tmp_path: Path) -> None:
    """Three records: most steps are noise alone, and are steps all the same."""
    found = (trained(base, tmp_path / "o.organ", plan=OFTEN_EMPTY, texts=records(3)).organ.manifest.training or {})[
        "audit"
    ]
    assert (found["steps"], found["verdict"]) == (12, "consistent")


def test_correct_trainings_pass_twenty_of_twenty(base: Base, tmp_path: Path) -> None:
    for number in range(20):
        trained(base, tmp_path / f"{number}.organ", plan=replace(PLAN, steps=3))


def test_an_alarm_leaves_no_organ_and_the_budget_spent(
    base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A quarter of the noise, slipped in where training calls for it."""
    monkeypatch.setattr(
        private_steps, "noisy_gradient",
        lambda sums, *, plan, source: noisy_gradient(
            sums, plan=replace(plan, noise_multiplier=plan.noise_multiplier / 4), source=source
        ),
    )  # fmt: skip
    ledger, out = Ledger.at(tmp_path / "ledger"), tmp_path / "o.organ"
    charge = ToLedger(ledger=ledger, name="notes", cap=3.5)  # room for this plan, once
    settings, data = TrainSettings(span=SPAN, max_tokens=24, dp=PLAN), Records(tuple(records(32)))
    with pytest.raises(AuditAlarm, match="noise of a step"):
        train(base, records=data, settings=settings, out=out, charge=charge)
    assert not out.exists()
    monkeypatch.undo()
    with pytest.raises(BudgetSpent):
        charge.reserve(data, plan=PLAN, run="another")
