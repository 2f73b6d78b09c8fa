"""What somebody who is given an organ can find out about its records: for a data holder who wants to see it beforehand.

An attack trains organs of its own on the holder's records, with and without privacy, so that the truth is known; or it
takes an organ that is there, with records that it was trained on and others. Nothing that is found may leave.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from not_fed.bench.attack_extraction import Planted, attack_secrets
from not_fed.bench.attack_membership import attack_organ, attack_training
from not_fed.bench.attack_organs import Kind, Operation
from not_fed.bench.attack_words import OWN_STAYS, STAYS, sentences, verdict
from not_fed.bench.harness import machine
from not_fed.organ.anatomy import Span
from not_fed.organ.checkpoint import Base
from not_fed.organ.data import Records
from not_fed.organ.organ import read_organ
from not_fed.organ.train import TrainSettings
from not_fed.organ.units import require_unit
from not_fed.privacy.accounting import DpPlan
from not_fed.progress import Progress, silent

SCHEMA = "not-fed/attacked/1"
LIBRARIES = ("not-fed", "torch", "transformers", "numpy")
NON_PRIVATE = "non-private"


def plan_kinds(
    settings: TrainSettings, *, plans: Sequence[tuple[float, DpPlan]], private_lr: float, records: Records
) -> list[Kind]:
    """Non-private organs first, then those of each epsilon.

    Args:
        settings: of the non-private organs.
        plans: the epsilon that was asked for, and its plan.
    Raises:
        UnitUnderstates: a plan per record, and somebody has several records: it is refused in rehearsals too.
    """
    for _, plan in plans:
        require_unit(records, plan=plan)
    private = [
        Kind(name=f"epsilon {epsilon:g}", settings=replace(settings, dp=plan, lr=private_lr)) for epsilon, plan in plans
    ]
    return [Kind(name=NON_PRIVATE, settings=settings), *private]


def membership(
    base: Base,
    *,
    records: Records,
    kinds: Sequence[Kind],
    delta: float = 1e-5,
    shadows: int = 8,
    seed: int = 0,
    device: str = "cpu",
    progress: Progress = silent,
) -> dict[str, Any]:
    """Can it be told who was in the training data? As `attack_training`, with the verdict and where it was measured."""
    settings = kinds[0].settings

    def attack(operation: Operation) -> dict[str, Any]:
        return attack_training(
            operation, records=records, kinds=kinds, delta=delta, shadows=shadows, seed=seed, progress=progress
        )

    found = _run(base, settings.span, settings.max_tokens, attack, device=device, progress=progress)
    return _judged("membership", found, stays=STAYS)


def membership_of_organ(
    base: Base,
    *,
    organ: Path,
    members: Records,
    others: Records,
    max_tokens: int = 512,
    device: str = "cpu",
    progress: Progress = silent,
) -> dict[str, Any]:
    """The same for an organ that is there; as `attack_organ`."""

    def attack(operation: Operation) -> dict[str, Any]:
        return attack_organ(operation, organ=organ, members=members, others=others)

    found = _run(base, read_organ(organ).span, max_tokens, attack, device=device, progress=progress)
    return _judged("membership", found, stays=OWN_STAYS)


def extraction(
    base: Base,
    *,
    records: Records,
    kinds: Sequence[Kind],
    planted: Planted,
    seed: int = 0,
    device: str = "cpu",
    progress: Progress = silent,
) -> dict[str, Any]:
    """Do planted secrets come out? As `attack_secrets`, with the verdict and where it was measured."""
    settings = kinds[0].settings

    def attack(operation: Operation) -> dict[str, Any]:
        return attack_secrets(operation, records=records, kinds=kinds, planted=planted, seed=seed, progress=progress)

    found = _run(base, settings.span, settings.max_tokens, attack, device=device, progress=progress)
    return _judged("extraction", found, stays=STAYS)


def _run(
    base: Base,
    span: Span,
    max_tokens: int,
    attack: Callable[[Operation], dict[str, Any]],
    *,
    device: str,
    progress: Progress,
) -> dict[str, Any]:
    started = time.monotonic()
    operation = Operation(base, span=span, max_tokens=max_tokens, device=device, progress=progress)
    found = attack(operation)
    where = {"machine": machine(LIBRARIES), "base_sha256": base.sha256, "span": [span.start, span.stop]}
    return {**where, **found, "seconds": round(time.monotonic() - started, 1)}


def _judged(attack: str, found: dict[str, Any], *, stays: str) -> dict[str, Any]:
    result = {"schema": SCHEMA, "attack": attack, "stays": stays, **found}
    result["kinds"] = [row | {"verdict": verdict(result, row)} for row in found["kinds"]]
    return result | {"conclusion": " ".join(sentences(result))}
