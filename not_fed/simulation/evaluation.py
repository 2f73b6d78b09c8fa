"""Compare what a run produced on every site's held-out records, and say it in one object."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from not_fed.organ.anatomy import Span
from not_fed.organ.data import read_records
from not_fed.progress import Progress, silent
from not_fed.simulation.running import SimulationResult, held

if TYPE_CHECKING:
    from not_fed.organ.evaluate import Perplexity

SCHEMA = "not-fed/federated/1"
MEAN = "mean"

Perplexities = dict[str, dict[str, dict[str, float]]]


def evaluate(results: Sequence[SimulationResult], *, progress: Progress = silent) -> Perplexities:
    """Perplexity of the base, of each site's own last organ and of the aggregate, on every site's held-out records.

    Where spans take turns, the aggregate is a body of one organ of each span, and a site's organ is measured in it.

    Args:
        results: one or more runs of the same federation, on the same held-out records.
    Returns:
        {model: {domain: {value, ci_low, ci_high}}}; domains are the sites with held-out records, and `mean`, the
        geometric mean over them. With several runs, organs are called `run/site` and `run/aggregate`.
    """
    from not_fed.organ.evaluate import Evaluator  # torch; a coordinator imports this package without it

    models: dict[str, Sequence[Path]] = {"base": ()}
    for result in results:
        prefix = f"{result.prepared.run}/" if len(results) > 1 else ""
        models |= {f"{prefix}{site}": organs for site, organs in result.own_bodies.items()}
        if result.body:
            models[f"{prefix}aggregate"] = result.body
    found: dict[str, dict[str, Perplexity]] = {model: {} for model in models}
    prepared = results[0].prepared
    spans = [span for result in results for span in result.prepared.spans]
    covered = Span(min(start for start, _ in spans), max(stop for _, stop in spans))
    for domain, path in prepared.held_out.items():
        records = read_records(path, text_field=prepared.text_fields[domain])
        evaluator = Evaluator(
            prepared.base, records=records, span=covered, max_tokens=prepared.max_tokens, progress=progress
        )
        for done, (model, organs) in enumerate(models.items(), start=1):
            found[model][domain] = evaluator.perplexity(organs)
            progress(f"perplexity on {domain}", done=done, total=len(models))
    return {model: _with_mean(by_domain) for model, by_domain in found.items() if by_domain}


def summarise(results: Sequence[SimulationResult], perplexity: Perplexities, *, seconds: float) -> dict[str, Any]:
    """The object that `--json` prints and result.json holds. `runs` has the details of each run."""
    first = results[0].prepared
    return {
        "schema": SCHEMA,
        "sites": list(first.sites),
        "rounds": first.rounds,
        "mode": first.mode,
        "perplexity": perplexity,
        "bytes_sent": sum(result.bytes_sent for result in results),
        "seconds": seconds,
        "server_saw": server_saw(results),
        "runs": [_run(result) for result in results],
    }


def server_saw(results: Iterable[SimulationResult]) -> dict[str, dict[str, int]]:
    """What the server stored in all runs together, by kind."""
    total: dict[str, dict[str, int]] = {}
    for result in results:
        for kind, stored in result.stored.items():
            sums = total.setdefault(kind, {"count": 0, "bytes": 0})
            for field in sums:
                sums[field] += stored[field]
    return total


def _run(result: SimulationResult) -> dict[str, Any]:
    prepared = result.prepared
    return {
        "name": prepared.run,
        "mode": prepared.mode,
        "rounds": prepared.rounds,
        "engine": result.engine,
        "epsilon": result.epsilon,
        "loss_curves": result.loss_curves,
        "accounts": result.accounts,
        "seconds": result.seconds,
        "bytes_sent": result.bytes_sent,
        "answers": result.answers,
        "held": [asdict(one) for one in held(prepared)],
        "deliveries": [
            {
                "round": one.round,
                "from": one.sender,
                "to": one.recipient,
                "bytes": one.bytes,
                "seconds": one.seconds,
                "kind": one.kind,
            }
            for one in result.deliveries
        ],
        "organs": {
            site: {str(number): str(path) for number, path in rounds.items()} for site, rounds in result.own.items()
        },
        "aggregate": None if result.aggregate is None else str(result.aggregate),
        "body": [str(organ) for organ in result.body],
    }


def _with_mean(by_domain: Mapping[str, Perplexity]) -> dict[str, dict[str, float]]:
    rows = {name: {"value": one.value, "ci_low": one.ci_low, "ci_high": one.ci_high} for name, one in by_domain.items()}
    return {**rows, MEAN: geometric_mean(rows.values())}


def geometric_mean(rows: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """Mean in nats, domains counted alike; the domains' intervals are independent, so their squares add up.

    >>> geometric_mean([{"value": 2.0, "ci_low": 2.0, "ci_high": 2.0}, {"value": 8.0, "ci_low": 8.0, "ci_high": 8.0}])
    {'value': 4.0, 'ci_low': 4.0, 'ci_high': 4.0}
    """
    logs = [{field: math.log(value) for field, value in row.items()} for row in rows]
    centre = sum(row["value"] for row in logs) / len(logs)
    below = math.hypot(*(row["value"] - row["ci_low"] for row in logs)) / len(logs)
    above = math.hypot(*(row["ci_high"] - row["value"] for row in logs)) / len(logs)
    return {"value": math.exp(centre), "ci_low": math.exp(centre - below), "ci_high": math.exp(centre + above)}
