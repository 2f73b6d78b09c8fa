"""How well a model reads private records, as a number that may leave: one noised mean, paid for before it is computed.

Whoever compares models by their private losses and keeps the best lets something about the records out with the choice.
So each comparison is a mechanism of its own: a Gaussian on a sum of bounded losses, charged to the ledger like a step.
"""

from __future__ import annotations

import secrets
from pathlib import Path

from not_fed.organ.anatomy import Span
from not_fed.organ.checkpoint import Base
from not_fed.organ.data import Records, identify_records
from not_fed.organ.evaluate import Evaluator
from not_fed.organ.organ import read_organ
from not_fed.organ.units import Units
from not_fed.privacy.accounting import DpPlan, NoisedRelease
from not_fed.privacy.ledger.ledger import Ledger
from not_fed.privacy.randomness import OperatingSystem, RandomSource
from not_fed.privacy.release import MEAN_LOSS, MIDDLE, Released, release_mean_loss
from not_fed.progress import Progress, silent


def plan_measurement(records: Records, *, noise_multiplier: float, declared_units: float, delta: float) -> DpPlan:
    """One Gaussian mechanism on a sum that a unit moves by at most 4 nats: a step at sample rate 1.

    Raises:
        BadPlan: a number is out of range.
    """
    return DpPlan(
        sample_rate=1.0, steps=1, noise_multiplier=noise_multiplier, max_grad_norm=MIDDLE, divisor=declared_units,
        delta=delta, unit=records.unit,
    )  # fmt: skip


def measure(
    base: Base,
    *,
    records: Records,
    organ: Path | None,
    plan: DpPlan,
    ledger: Ledger,
    name: str,
    max_tokens: int = 512,
    device: str = "cpu",
    progress: Progress = silent,
    source: RandomSource = OperatingSystem(),  # noqa: B008  has no state
) -> Released:
    """The mean over units of their mean token losses, with noise.

    Args:
        organ: in the span of the base, or None for the base itself.
        plan: from `plan_measurement`.
        name: what the ledger calls the records.
    Raises:
        FitError: the organ does not fit. NothingToLearn: no record has two tokens. UnitUnderstates: the records name
            people with several, and the plan's unit is the record. Nothing was spent.
        BudgetSpent and its kin: it does not fit the budget; nothing was computed.
    Guarantees: charged, durably, before a loss is computed; every call draws noise of its own and pays for it.
    Proved by: tests/unit/test_measured.py::test_a_measurement_is_paid_for_before_a_loss_is_computed
    """
    span = Span(0, 1) if organ is None else read_organ(organ).span
    evaluator = Evaluator(
        base, records=records.texts, span=span, max_tokens=max_tokens, device=device, progress=progress
    )
    units = Units.of(records, evaluator.lengths, plan=plan)
    evaluator.put_in(organ)
    data = identify_records(ledger, records, unit=plan.unit)
    held = ledger.reserve(data, name=name, plan=plan, run=secrets.token_hex(16), purpose="metric")
    held.start_step(remaining=0)
    released = release_mean_loss(
        units.means(evaluator.mean_losses()),
        release=NoisedRelease(name=MEAN_LOSS, noise_multiplier=held.plan.noise_multiplier),
        declared_units=plan.divisor,
        source=source,
    )
    held.commit()
    return released
