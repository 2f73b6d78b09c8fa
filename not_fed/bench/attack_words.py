"""What an attack found, in sentences that claim no more than the intervals do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from not_fed.envelope.claims import promise

STAYS = (
    "Computed from private records without noise, and charged to no budget: for the data holder's eyes. "
    "Nothing of this may leave; the organs that were trained for it are deleted."
)
OWN_STAYS = "Computed from private records without noise: for the data holder's eyes. Nothing of this may leave."


def best_attack(row: Mapping[str, Any]) -> str:
    """The attacker whose interval lies highest: what matters is what the better one can do."""
    attacks: Mapping[str, Any] = row["attacks"]
    return max(attacks, key=lambda name: float(attacks[name]["auc"]["ci_low"]))


def membership_verdict(row: Mapping[str, Any]) -> str:
    """`told apart`, `not told from chance`, or `contradicts its claim`.

    Told apart is where an attacker's interval lies above chance: by luck alone in one case of forty for each attacker.
    """
    attack = row["attacks"][best_attack(row)]
    refuted = max((one["refuted"]["epsilon"] for one in row["attacks"].values() if "refuted" in one), default=0.0)
    if row.get("epsilon") is not None and refuted > row["epsilon"]:
        return "contradicts its claim"
    return "told apart" if attack["auc"]["ci_low"] > 0.5 else "not told from chance"


def extraction_verdict(row: Mapping[str, Any]) -> str:
    """`told`, where planted secrets rank higher than luck explains or were written out; else `not told from chance`."""
    return "told" if any(_told(one) for one in row["exposure"] if one["repeats"]) else "not told from chance"


def named(row: Mapping[str, Any]) -> str:
    """What kind of training it was: where it has a claim, the claim with all that it depends on."""
    claim = row.get("dp")
    return str(row["name"]) if claim is None else promise(claim["epsilon"], delta=claim["delta"], unit=claim["unit"])


def sentences(result: Mapping[str, Any]) -> list[str]:
    """One sentence for each kind of training."""
    if result["attack"] == "membership":
        return [_membership(row, unit=result["unit"]) for row in result["kinds"]]
    return [_extraction(row) for row in result["kinds"]]


def verdict(result: Mapping[str, Any], row: Mapping[str, Any]) -> str:
    """In a few words that programs can compare."""
    return membership_verdict(row) if result["attack"] == "membership" else extraction_verdict(row)


def _membership(row: Mapping[str, Any], *, unit: str) -> str:
    attack = row["attacks"][best_attack(row)]
    auc = attack["auc"]
    interval = f"95 % interval {auc['ci_low']:.3f} to {auc['ci_high']:.3f}"
    measured = f"{best_attack(row)}: AUC {auc['value']:.3f}, {interval}"
    verdict = membership_verdict(row)
    who = f"{unit}s"
    if verdict == "contradicts its claim":
        refuted = max(one["refuted"]["epsilon"] for one in row["attacks"].values())
        return (
            f"{named(row)}: ALARM, the attack refutes every epsilon below {refuted:.2f} at this delta ({measured}); "
            "of right claims, one in twenty is refuted by chance."
        )
    if verdict == "told apart":
        return f"{named(row)}: {who} that were trained on can be told from others better than by chance ({measured})."
    return f"{named(row)}: no attacker here told {who} that were trained on from others ({measured})."


def _extraction(row: Mapping[str, Any]) -> str:
    most = row["exposure"][-1]
    bits, luck = most["mean_bits"]["value"], most["chance_below"]
    measured = f"{bits:.1f} bits where they stood {most['repeats']} times, luck stays below {luck:.1f}"
    written = sum(one["written_out"] for one in row["exposure"] if one["repeats"])
    told = [str(one["repeats"]) for one in row["exposure"] if one["repeats"] and _told(one)]
    if told:
        return (
            f"{named(row)}: secrets that stood {', '.join(told)} times came through ({measured}); "
            f"{written} were written out word for word."
        )
    return f"{named(row)}: planted secrets did not rank higher than luck explains ({measured}); {written} written out."


def _told(one: Mapping[str, Any]) -> bool:
    return bool(one["mean_bits"]["value"] > one["chance_below"] or one["written_out"])
