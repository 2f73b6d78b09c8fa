"""The audit inside real trainings of a tiny model: right code passes, every time.

What an alarm does to a run is in test_private_steps.py; that broken code alarms is in tests/docs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from not_fed.organ.anatomy import Span
from not_fed.organ.charging import PublicRecords
from not_fed.organ.checkpoint import Base
from not_fed.organ.data import Records
from not_fed.organ.train import Trained, TrainSettings, train
from not_fed.privacy.accounting import DpPlan
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
        organ = trained(base, tmp_path / f"{number}.organ", plan=replace(PLAN, steps=3)).organ
        assert (organ.manifest.training or {})["audit"]["verdict"] == "consistent"
