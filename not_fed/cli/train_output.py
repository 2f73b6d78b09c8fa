"""What `train` says: what a run would cost, and what it gave."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from not_fed.cli.budget import UNSET
from not_fed.cli.output import say, show

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from not_fed.organ.checkpoint import Base
    from not_fed.organ.data import Records
    from not_fed.organ.train import Trained, TrainSettings
    from not_fed.privacy.accounting import DpPlan
    from not_fed.privacy.ledger.statement import Cost


def show_planned(base: Base, records: Records, settings: TrainSettings, *, cost: Cost | None, as_json: bool) -> None:
    """Steps, batches and cost of a run that does not happen."""
    dp = settings.dp
    if dp is None or cost is None:
        facts, lines = _plain(base, records, settings)
    else:
        facts, lines = _private(dp, records, cost)
    show({"schema": "not-fed/planned/1", "records": len(records.texts), **facts}, as_json=as_json, lines=lines)
    say("dry run: nothing was trained, nothing was spent")


def show_trained(trained: Trained, *, as_json: bool) -> None:
    """The organ, how it came about, and what it claims."""
    how = trained.organ.manifest.training or {}
    claim = how.get("dp") or {}
    result = {
        "schema": "not-fed/trained/1",
        "organ": str(trained.organ.path),
        "organ_sha256": trained.organ.sha256,
        "span": [trained.organ.span.start, trained.organ.span.stop],
        "records": trained.records,
        "steps": trained.steps,
        "tokens": trained.tokens,
        "seconds": round(trained.seconds, 3),
        "prefix_seconds": round(trained.prefix_seconds, 3),
        "loss_first": trained.loss_first,
        "loss_last": trained.loss_last,
        **{name: claim.get(name) for name in ("epsilon", "delta", "unit", "records_per_person", "repeated_steps")},
        "rank": how.get("rank", 0),
        **{name: how.get(name) for name in ("mode", "engine", "precision", "audit", "releases", "ledger_head")},
    }
    lines = [
        ("organ", str(trained.organ.path)),
        ("trained", f"{trained.records:,} records, {trained.steps:,} steps, {trained.seconds:.0f} s"),
    ]
    show(result, as_json=as_json, lines=[*lines, *(_claimed(how, claim) if claim else _losses(trained))])


def _plain(base: Base, records: Records, settings: TrainSettings) -> tuple[dict[str, Any], list[tuple[str, str]]]:
    from not_fed.organ.prefix import tokenise
    from not_fed.organ.split import load_tokenizer
    from not_fed.organ.steps import plan_batches

    lengths = tokenise(load_tokenizer(base), records.texts, max_tokens=settings.max_tokens).predictions
    steps = len(plan_batches(lengths, epochs=settings.epochs, batch_tokens=settings.batch_tokens, seed=settings.seed))
    batch = len(records.texts) * settings.epochs / max(steps, 1)
    absent = ("epsilon", "delta", "unit", "noise_multiplier", "sample_rate", "max_grad_norm")
    return {"steps": steps, "expected_batch": round(batch, 1), **dict.fromkeys(absent)}, [
        ("records", f"{len(records.texts):,}, about {batch:,.0f} in each of {steps:,} steps"),
        ("cost", "no privacy: nothing is clipped, no noise is added"),
    ]


def _private(dp: DpPlan, records: Records, cost: Cost) -> tuple[dict[str, Any], list[tuple[str, str]]]:
    from not_fed.privacy.accounting import accountant
    from not_fed.privacy.crosscheck import prv_epsilon

    units = len(set(records.people or ())) if dp.unit == "person" else len(records.texts)
    batch, prv, now = units * dp.sample_rate, prv_epsilon(dp), cost.now
    facts = {
        "steps": dp.steps,
        "expected_batch": round(batch, 1),
        "epsilon": cost.alone.value,
        "delta": dp.delta,
        "unit": dp.unit,
        "relation": now.relation,
        "noise_multiplier": dp.noise_multiplier,
        "sample_rate": dp.sample_rate,
        "max_grad_norm": dp.max_grad_norm,
        "divisor": dp.divisor,
        "records_per_person": dp.records_per_person,
        "releases": [{"name": one.name, "noise_multiplier": one.noise_multiplier} for one in dp.releases],
        "accountant": accountant(),
        "epsilon_prv": prv,
        "epsilon_renyi": cost.renyi,
        "units": units,
        "allowed": now.cap.epsilon,
        "spent": now.spent.value,
        "spent_after": cost.then.spent.value,
        "left_after": cost.then.left if cost.allowed else None,
        "fits": cost.allowed,
        "would_fit": None if cost.fits is None else str(cost.fits),
    }
    return facts, list(_private_lines(dp, cost, units=units, batch=batch, prv=prv))


def _private_lines(dp: DpPlan, cost: Cost, *, units: int, batch: float, prv: float | None) -> Iterable[tuple[str, str]]:
    now, then = cost.now, cost.then
    share = f", at most {dp.records_per_person} records of each at a time" if dp.unit == "person" else ""
    yield "unit", f"per {dp.unit}: neighbouring data sets differ by {now.relation}"
    yield "batch", f"about {batch:,.0f} of {units:,} in each of {dp.steps:,} steps (rate {dp.sample_rate:g}){share}"
    yield (
        "noise",
        f"{dp.noise_multiplier:g} times the clip of {dp.max_grad_norm:g}; the sum is divided by {dp.divisor:g}",
    )
    for release in dp.releases:
        yield "release", f"{release.name}, with noise of {release.noise_multiplier:g} times its sensitivity"
    yield "cost", f"{_said(cost.alone.value, dp)}, by PLD"
    beside = f"PRV {prv:.2f}" if prv is not None else "PRV has no number"
    yield "beside it", f"{beside}, Renyi {cost.renyi:.2f}, at the same delta and unit"
    yield "allowed", _said(now.cap.epsilon, dp) + ("" if now.explicit else UNSET)
    yield "spent", f"{_said(now.spent.value, dp)}, in {now.runs} run{'' if now.runs == 1 else 's'}"
    if cost.allowed:
        yield "then spent", _said(then.spent.value, dp)
        left = math.floor(100 * then.left) / 100  # never said larger than it is
        yield "then left", f"{_said(left, dp)} for one further run like it"
    else:
        yield "refused", f"this run does not fit; {cost.fits}"


def _claimed(how: Mapping[str, Any], claim: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    from not_fed.envelope.claims import promise

    again = f", {claim['repeated_steps']} steps repeated and charged" if claim["repeated_steps"] else ""
    yield "privacy", promise(claim["epsilon"], delta=claim["delta"], unit=claim["unit"]) + again
    audit = how["audit"]
    found = f"epsilon {audit['epsilon_lower_bound']:.2f} or more, {audit['confidence']:.0%} sure"
    canaries = f"{audit['canaries']:,} canaries at the same delta and unit"
    yield (
        "audit",
        f"an attack on this run with {canaries} found {found}; right code gives up to {audit['expected_at_most']:.2f}",
    )
    for one in how["releases"]:
        yield one["name"], f"{one['value']:.3f}, noise included; it may leave"


def _losses(trained: Trained) -> Iterable[tuple[str, str]]:
    yield "loss", f"{trained.loss_first:.3f} to {trained.loss_last:.3f}; computed on your records, for you alone"
    yield "privacy", "none: whoever has this organ may learn about its records"


def _said(epsilon: float, dp: DpPlan) -> str:
    from not_fed.envelope.claims import promise

    return promise(epsilon, delta=dp.delta, unit=dp.unit)
