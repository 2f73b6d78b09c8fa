"""A loss of private records that may leave: paid for first, bounded, with noise, for records and for people."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from typer.testing import CliRunner

from not_fed.cli.main import app
from not_fed.organ.anatomy import Span
from not_fed.organ.checkpoint import Base
from not_fed.organ.data import Records
from not_fed.organ.evaluate import Evaluator
from not_fed.organ.measured import measure, plan_measurement
from not_fed.privacy.ledger.ledger import Ledger
from not_fed.privacy.ledger.scope import BudgetSpent
from tests.support import tiny
from tests.support.folders import records, save_base

TEXTS = tuple(records(40))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    return save_base(tiny.tiny_llama(), tmp_path_factory.mktemp("base") / "base")


def test_a_measurement_is_paid_for_before_a_loss_is_computed(
    base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = Ledger.at(tmp_path / "ledger")
    data = ledger.identify(TEXTS, None)
    seen: list[float] = []
    honest = Evaluator.mean_losses

    def watched(self: Evaluator) -> object:
        seen.append(ledger.standing(data, unit="record").spent.value)
        return honest(self)

    monkeypatch.setattr(Evaluator, "mean_losses", watched)
    plan = plan_measurement(Records(TEXTS), noise_multiplier=10.0, declared_units=40, delta=1e-5)
    measure(base, records=Records(TEXTS), organ=None, plan=plan, ledger=ledger, name="notes", device="cpu")
    assert seen == [plan.epsilon().value]
    assert ledger.standing(data, unit="record").spent == plan.epsilon()


def test_each_measurement_draws_its_own_noise_and_is_charged(base: Base, tmp_path: Path) -> None:
    ledger = Ledger.at(tmp_path / "ledger")
    plan = plan_measurement(Records(TEXTS), noise_multiplier=5.0, declared_units=40, delta=1e-5)
    values = {
        measure(base, records=Records(TEXTS), organ=None, plan=plan, ledger=ledger, name="notes").value
        for _ in range(3)
    }
    assert len(values) == 3
    assert ledger.standing(ledger.identify(TEXTS, None), unit="record").spent.value > 1.5 * plan.epsilon().value


def test_what_does_not_fit_is_refused_before_anything_is_computed(
    base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = Ledger.at(tmp_path / "ledger")
    ledger.set_budget(ledger.identify(TEXTS, None), name="notes", unit="record", epsilon=0.5, delta=1e-5)
    monkeypatch.setattr(Evaluator, "mean_losses", lambda _: pytest.fail("computed"))
    plan = plan_measurement(Records(TEXTS), noise_multiplier=1.0, declared_units=40, delta=1e-5)
    with pytest.raises(BudgetSpent):
        measure(base, records=Records(TEXTS), organ=None, plan=plan, ledger=ledger, name="notes")


@pytest.mark.parametrize("people", [None, tuple(f"p{index % 10}" for index in range(40))], ids=["record", "person"])
def test_it_is_the_mean_over_units_within_its_noise(base: Base, tmp_path: Path, people: tuple[str, ...] | None) -> None:
    whose = Records(TEXTS, people, None if people is None else "patient_id", 1 if people is None else 4)
    units = 40 if people is None else 10
    plan = plan_measurement(whose, noise_multiplier=0.5, declared_units=units, delta=1e-2)
    ledger = Ledger.at(tmp_path / "ledger")
    data = ledger.identify(TEXTS, people)
    ledger.set_budget(data, name="n", unit=whose.unit, epsilon=500.0, delta=1e-2, allow_weak=True)
    released = measure(base, records=whose, organ=None, plan=plan, ledger=ledger, name="n")
    means = Evaluator(base, records=TEXTS, span=Span(0, 1))
    exact = means.mean_losses().clip(0, 8).mean()
    assert abs(released.value - exact) < 6 * released.deviation
    assert released.deviation == pytest.approx(0.5 * 4 / units)


def test_the_command_prints_nothing_exact_and_charges_the_records(base: Base, tmp_path: Path) -> None:
    data = tmp_path / "notes.txt"
    data.write_text("\n".join(TEXTS))
    asked = ["evaluate", str(base.folder), "--data", str(data), "--release-noise", "10", "--json"]
    missing = CliRunner().invoke(app, asked)
    assert missing.exit_code != 0
    result = CliRunner().invoke(app, [*asked, "--declared-units", "40"], catch_exceptions=False)

    found = json.loads(result.stdout)
    assert found["schema"] == "not-fed/evaluated/1"
    assert found["records"] is found["tokens"] is found["seconds"] is None
    assert found["perplexity"] == pytest.approx(math.exp(found["mean_loss"]))
    assert found["epsilon_spent"] == found["epsilon"] > 0
    assert found["unit"] == "record"
