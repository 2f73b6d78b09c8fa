"""Membership inference: was this record, or this person, among those that an organ was trained on?

Two attackers. One knows the base and the organ: how much less does the organ wonder at a record than the base does? The
other also trains shadow organs on records of the same kind, and knows for each record what that looks like with and
without it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from not_fed.bench.attack_bounds import refuted_epsilon
from not_fed.bench.attack_organs import Kind, Operation, Prepared, part
from not_fed.bench.attack_scores import (
    LEAST_SHADOWS,
    BadShadows,
    Bools,
    Floats,
    Found,
    TooFewUnits,
    centred,
    coin_halves,
    lira_scores,
    measure,
)
from not_fed.envelope.claims import DpClaim
from not_fed.organ.data import Records
from not_fed.organ.organ import read_organ
from not_fed.progress import Progress, silent

REFERENCE, LIRA = "reference loss", "shadow organs"
LEAST_UNITS = 20
BINS = 30
EXPOSED = 10
FEW = 10  # expected false alarms below which a true positive rate says little


@dataclass(frozen=True, slots=True)
class Units:
    """What is attacked: records, or people with all of their records.

    Attributes:
        of: the unit of each record, counted from 0, shape (records,).
    """

    of: tuple[int, ...]

    @classmethod
    def among(cls, records: Records, kept: Sequence[int]) -> Units:
        """Units of the records that are kept, in the order of their first record."""
        if records.people is None:
            return cls(tuple(range(len(kept))))
        numbers: dict[str, int] = {}
        return cls(tuple(numbers.setdefault(records.people[i], len(numbers)) for i in kept))

    @property
    def count(self) -> int:
        """How many there are."""
        return max(self.of) + 1

    def mean(self, values: Floats) -> Floats:
        """Mean over each unit's records: (records,) to (units,)."""
        sums = np.bincount(self.of, weights=values)
        means: Floats = sums / np.bincount(self.of)
        return means

    def records_of(self, members: Bools) -> list[int]:
        """Records of the units that are members."""
        return [record for record, unit in enumerate(self.of) if members[unit]]


def attack_training(
    operation: Operation,
    *,
    records: Records,
    kinds: Sequence[Kind],
    delta: float = 1e-5,
    shadows: int = 8,
    seed: int = 0,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Train organs of each kind on random halves of the records, and attack every one of them.

    Args:
        records: of the data holder; half of the units, by coins, train an organ, and the other half its partner.
        delta: at which epsilon is refuted; the private kinds' own.
        shadows: organs that the attacker trains for each target, an even number; two more are trained than that.
        seed: of the coins and of the order of records; noise and samples of private runs never depend on it.
    Returns:
        a JSON object: for each kind of training what both attackers found, without any text.
    Raises:
        BadShadows, TooFewUnits, and whatever training raises.
    Proved by: tests/unit/test_attack_membership.py::test_an_organ_that_learnt_by_heart_is_caught
    """
    if shadows < LEAST_SHADOWS or shadows % 2:
        raise BadShadows(
            where="attack, shadow organs",
            expected=f"an even number, at least {LEAST_SHADOWS}",
            got=str(shadows),
            hint="8 is usual; more is slower and sharper",
        )
    kept = operation.readable(records.texts)
    units = Units.among(records, kept)
    _require_units(units.count)
    members = coin_halves(shadows // 2 + 1, units.count, seed=seed)
    prepared = operation.prepare(part(records, kept))
    base = operation.losses(prepared)
    rows, done, total = [], 0, len(kinds) * len(members)
    for kind in kinds:
        losses = []
        for number, row in enumerate(members):
            progress("organs to attack", done=done, total=total, note=kind.name)
            with operation.trained(kind, prepared, units.records_of(row), seed=seed + number) as organ:
                losses.append(operation.losses(prepared, organ.path))
            done += 1
        rows.append(_row(kind, np.stack(losses), base, prepared, units, members, kept, delta=delta))
    progress("organs to attack", done=total, total=total)
    return {
        "records": len(kept),
        "left_out": len(records.texts) - len(kept),
        "unit": records.unit,
        "units": units.count,
        "shadows": shadows,
        "organs_of_each_kind": len(members),
        "seed": seed,
        "base_perplexity": _perplexity(base, prepared),
        "kinds": rows,
    }


def attack_organ(operation: Operation, *, organ: Path, members: Records, others: Records) -> dict[str, Any]:
    """Attack one organ that is there already, by reference loss: it needs to be told who is in and who is not.

    Args:
        members: what it was trained on, or some of it.
        others: like them, and not trained on.
    Proved by: tests/unit/test_attack_membership.py::test_an_organ_that_is_there_is_attacked_with_members_and_others
    """
    claim = DpClaim.from_training(read_organ(organ).manifest.training)
    texts, people = (*members.texts, *others.texts), None
    if members.people is not None and others.people is not None:
        people = (*(f"in {who}" for who in members.people), *(f"out {who}" for who in others.people))
    both = Records(texts, people)
    kept = operation.readable(texts)
    units = Units.among(both, kept)
    _require_units(units.count)
    prepared = operation.prepare(part(both, kept))
    truth = units.mean(np.array([float(i < len(members.texts)) for i in kept])) > 0.5
    base, losses = operation.losses(prepared), operation.losses(prepared, organ)
    statistic = centred(units.mean((base - losses) / prepared.predictions)[None, :])
    found = measure(statistic, truth[None, :])
    within = np.array([truth[unit] for unit in units.of])
    return {
        "records": len(kept),
        "left_out": len(texts) - len(kept),
        "unit": both.unit,
        "units": units.count,
        "base_perplexity": _perplexity(base, prepared),
        "kinds": [
            {
                "name": organ.name,
                "epsilon": None if claim is None else claim.epsilon,
                "dp": None if claim is None else claim.as_training(),
                "attacks": {REFERENCE: _attack(found)},
                "perplexity": _perplexities(losses[None, :], within[None, :], prepared),
                "histogram": _histogram(statistic, truth[None, :]),
            }
        ],
    }


def _row(
    kind: Kind,
    losses: Floats,
    base: Floats,
    prepared: Prepared,
    units: Units,
    members: Bools,
    kept: Sequence[int],
    *,
    delta: float,
) -> dict[str, Any]:
    """What both attackers found out about organs of one kind."""
    statistic = centred(np.stack([units.mean((base - row) / prepared.predictions) for row in losses]))
    attacks = {}
    for name, scores in ((REFERENCE, statistic), (LIRA, lira_scores(statistic, members))):
        refuted = refuted_epsilon(scores[0], members[0], delta=delta)  # one organ: its coins decide nothing else
        attacks[name] = _attack(measure(scores, members)) | {"refuted": refuted.as_dict()}
    within = np.stack([row[list(units.of)] for row in members])
    return {
        **kind.as_dict(),
        "attacks": attacks,
        "perplexity": _perplexities(losses, within, prepared),
        "histogram": _histogram(statistic, members),
        "most_exposed": _most_exposed(statistic, members, units, kept, told=any(map(_told, attacks.values()))),
    }


def _attack(found: Found) -> dict[str, Any]:
    return {
        "auc": found.auc.as_dict(),
        "tpr": [
            {"fpr": rate, **interval.as_dict(), "few": rate * found.others < FEW}
            for rate, interval in found.tpr.items()
        ],
        "roc": [[round(false, 6), round(true, 6)] for false, true in found.curve],
        "members": found.members,
        "others": found.others,
    }


def _told(attack: dict[str, Any]) -> bool:
    return bool(attack["auc"]["ci_low"] > 0.5)


def _most_exposed(
    statistic: Floats, members: Bools, units: Units, kept: Sequence[int], *, told: bool
) -> list[dict[str, float]]:
    """Whom an organ knows better for having seen them: places in the file, from 1; none where chance rules."""
    if not told:
        return []
    inside = np.where(members, statistic, 0).sum(axis=0) / members.sum(axis=0)
    outside = np.where(members, 0, statistic).sum(axis=0) / (~members).sum(axis=0)
    first = {unit: kept[record] + 1 for record, unit in reversed(list(enumerate(units.of)))}
    order = np.argsort(-(inside - outside), kind="stable")[:EXPOSED]
    return [{"record": first[int(unit)], "nats_per_token": float(inside[unit] - outside[unit])} for unit in order]


def _histogram(statistic: Floats, members: Bools) -> dict[str, Any]:
    """How the reference statistic is spread, nats a token: shares of members and of others in each bin."""
    low, high = np.quantile(statistic, [0.005, 0.995])
    edges = np.linspace(low, max(high, low + 1e-9), BINS + 1)
    inside = np.clip(statistic, edges[0], edges[-1])

    def shares(mask: Bools) -> list[float]:
        counts, _ = np.histogram(inside[mask], bins=edges)
        return [float(count) for count in counts / max(counts.sum(), 1)]

    return {"edges": [float(edge) for edge in edges], "members": shares(members), "others": shares(~members)}


def _perplexities(losses: Floats, within: Bools, prepared: Prepared) -> dict[str, float]:
    """Of records that an organ was trained on and of others, all organs together."""
    tokens = np.broadcast_to(prepared.predictions, losses.shape)
    return {
        name: math.exp(float(losses[mask].sum() / tokens[mask].sum()))
        for name, mask in (("members", within), ("others", ~within))
    }


def _perplexity(losses: Floats, prepared: Prepared) -> float:
    return math.exp(float(losses.sum() / prepared.predictions.sum()))


def _require_units(count: int) -> None:
    if count < LEAST_UNITS:
        raise TooFewUnits(
            where="attack, training data",
            expected=f"at least {LEAST_UNITS} records, or people where they are the unit",
            got=f"{count}",
            hint="200 or more give useful intervals",
        )
