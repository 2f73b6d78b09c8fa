"""A finished federation as `not-fed/federated/1`: small enough to change in a test, whole enough for every section."""

from __future__ import annotations

import hashlib
import math
from typing import Any

SITES = ("cardiology", "neurology", "orthopaedics")
TITLES = ("Heart and vessels", "Brain and nerves", "Bones and joints")
RUNS: tuple[tuple[str, float | None], ...] = (("non-private", None), ("epsilon 8", 8.0))
ORGAN_BYTES = 42_487_512
AUDIT = {
    "method": "one-run audit", "epsilon_lower_bound": 0.84, "fdp_epsilon_lower_bound": 1.01, "confidence": 0.95,
    "delta": 1e-5, "noise_ratio": 1.002, "canaries": 5000, "verdict": "consistent",
}  # fmt: skip
BASE = {"cardiology": 71.4, "neurology": 64.9, "orthopaedics": 75.3}


def federated(*, aggregate: float = 0.55) -> dict[str, Any]:
    """Three hospitals, two runs of two rounds.

    Args:
        aggregate: perplexity of the non-private aggregate as a share of the base model's; above 1 it loses.
    """
    return {
        "schema": "not-fed/federated/1", "name": "hospitals", "created": "2026-11-24T20:21:03+00:00",
        "not_fed_version": "0.1.0", "federation": "hospitals", "mode": "bank", "rounds": 2, "span": [20, 23],
        "machine": {"cpu": "a processor", "cores": 2, "torch": "2.13.0", "flwr": "1.42.0", "transformers": "5.24.0",
                    "python": "3.11.7"},
        "base": {"name": "smollm2-135m", "sha256": _digest("base")},
        "sites": [{"name": name, "title": title, "records": None} for name, title in zip(SITES, TITLES, strict=True)],
        "seconds": 372.4, "bytes_sent": 14 * ORGAN_BYTES, "runs": [_run(name, epsilon) for name, epsilon in RUNS],
        "perplexity": _perplexity(aggregate), "server_saw": _server_saw(),
        "plaintext_check": {"patterns_searched": 18_240, "bytes_searched": 14 * ORGAN_BYTES, "found": [],
                            "planted_found": True, "texts": 16_200, "tensors": 1_980, "keys": 60},
        "refused": [
            {"what": "the server forges an organ in a hospital's name", "code": "signature", "exit_code": 6},
            {"what": "the server hands out round 1 again in round 2", "code": "replayed", "exit_code": 6},
            {"what": "a site asks for epsilon 9 where 8 is allowed", "code": "policy-epsilon", "exit_code": 7},
        ],
        "timeline": [{"label": "open the base", "seconds": 3.1}, {"label": "training", "seconds": 241.5},
                     {"label": "seal and open", "seconds": 9.7}, {"label": "evaluate", "seconds": 118.1}],
        "sources": ["Uses the Human Phenotype Ontology, release 2025-01-16, by the HPO Consortium."],
    }  # fmt: skip


def _perplexity(aggregate: float) -> dict[str, dict[str, Any]]:
    table = {"base": _scores(dict.fromkeys(SITES, 1.0))}
    for run, worse in (("non-private", 0.0), ("epsilon 8", 0.16)):
        for own in SITES:
            table[f"{run}: {own}"] = _scores({site: (0.49 if site == own else 0.72) + worse for site in SITES})
        table[f"{run}: aggregate"] = _scores(dict.fromkeys(SITES, aggregate + worse))
    return table


def _scores(shares: dict[str, float]) -> dict[str, Any]:
    found = {site: _score(BASE[site] * share) for site, share in shares.items()}
    return found | {"mean": _score(sum(score["value"] for score in found.values()) / len(found))}


def _score(value: float) -> dict[str, float]:
    return {"value": value, "ci_low": value * 0.93, "ci_high": value * 1.08}


def _run(name: str, epsilon: float | None) -> dict[str, Any]:
    promise = {"epsilon": epsilon, "delta": None if epsilon is None else 1e-5, "unit": "record"}
    return {
        "name": name, **promise, "mode": "bank",
        "loss_curves": {site: _curve(site, epsilon) for site in SITES} if epsilon is None else {},
        "accounts": {} if epsilon is None else {site: account(epsilon) for site in SITES},
        "deliveries": [delivery for number in (1, 2) for delivery in _deliveries(number)],
        "passports": [
            {"author": site, "round": number, "organ_sha256": _digest(f"{name}{site}{number}"), **promise,
             "audit": None if epsilon is None else AUDIT, "contradicted": False,
             "releases": [] if epsilon is None else [{"name": "mean_loss", "value": 2.4137, "how": "noised"}],
             "span": [20, 23], "issued": "2026-11-24T20:20:00+00:00",
             "verified_by": [other for other in SITES if other != site]}
            for number in (1, 2) for site in SITES
        ],
    }  # fmt: skip


def account(epsilon: float) -> dict[str, Any]:
    """A site's account with a budget of 10."""
    return {"spent": epsilon, "enforced": epsilon * 1.13, "budget": 10.0, "left": 10 - epsilon * 1.13, "delta": 1e-5,
            "unit": "record"}  # fmt: skip


def _curve(site: str, epsilon: float | None) -> list[list[float]]:
    start, end = math.log(BASE[site]), math.log(BASE[site] * (0.55 if epsilon is None else 0.75))
    return [
        [number, step, end + (start - end) * math.exp(-((number - 1) * 32 + step) / 16) + 0.09 * math.sin(7.3 * step)]
        for number in (1, 2) for step in range(32)
    ]  # fmt: skip


def _deliveries(number: int) -> list[dict[str, Any]]:
    common: dict[str, Any] = {"round": number, "seconds": 0.2}
    tasks = [{**common, "from": "coordinator", "to": [site], "bytes": 2104, "kind": "task"} for site in SITES]
    common |= {"bytes": ORGAN_BYTES, "kind": "sealed organ"}
    organs = [{**common, "from": site, "to": [other for other in SITES if other != site]} for site in SITES]
    return [*tasks, *organs]


def _server_saw() -> list[dict[str, Any]]:
    kinds = (("sealed organ", 6, 6 * ORGAN_BYTES), ("label", 6, 6 * 5310), ("signed task", 6, 6 * 2104))
    return [
        {"run": run, "kind": kind, "count": count, "bytes": size, "example": _digest(run + kind)[:32]}
        for run, _ in RUNS for kind, count, size in kinds
    ]  # fmt: skip


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
