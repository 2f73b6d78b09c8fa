"""What the federation itself costs: a hundred sites, a small organ, training replaced by a fixed change.

CPU seconds for each site and round, by what they were spent on, beside Flower's own FedAvg on the same arrays and the
same in-process grid. Each piece runs in a process of its own, in turns, with one thread; the last one trains the demo's
model for real, so that the overhead can be told as a share of a real round.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from not_fed.bench.harness import Times, machine
from not_fed.errors import PeerError
from not_fed.progress import Progress, silent

LIBRARIES = ("not-fed", "flwr", "torch", "cryptography")
SCHEMA = "not-fed/bench-scale/1"
WORK = "not_fed.simulation.scale_work"
TARGET = 3.0
APPRENTICE = "training"  # what stands in for training counts on neither side


class PieceFailed(PeerError):
    """A piece of the benchmark ended before it had measured anything."""

    code = "bench-piece-failed"


def bench_scale(
    *, sites: int = 100, rounds: int = 3, repeats: int = 3, mode: str = "trusted", real: bool = True,
    folder: Path | None = None, progress: Progress = silent,
) -> dict[str, Any]:  # fmt: skip
    """Measure; leaves nothing behind.

    Args:
        mode: trusted: each organ is sealed to the aggregator, as with plain FedAvg the server averages; bank: each
            organ is sealed to, and opened by, every other site, which is work for the square of their number.
        real: also train the demo's model once (some minutes).
    Raises:
        PieceFailed.
    """
    turns: dict[str, list[dict[str, Any]]] = {"ours": [], "flower": []}
    total = 2 * repeats + 1 + real
    with tempfile.TemporaryDirectory(dir=folder, prefix="not-fed-scale-") as name:
        work = Path(name)
        (work / "settings.json").write_text(json.dumps({"sites": sites, "rounds": rounds, "mode": mode}))
        progress("bench scale", done=0, total=total)
        organ = _piece(work, "prepare")
        for _ in range(repeats):
            for piece, found in turns.items():
                found.append(_piece(work, piece))
                progress("bench scale", done=1 + sum(map(len, turns.values())), total=total)
        trained = _piece(work, "real") if real else None
    _require_same(turns)
    share = sites * rounds
    ours, peer = (_cost(turns[name], share) for name in ("ours", "flower"))
    result: dict[str, Any] = {
        "schema": SCHEMA, "machine": machine(LIBRARIES), "sites": sites, "rounds": rounds, "repeats": repeats,
        "mode": mode, **organ, "ours": ours, "flower": peer,
        "ratio": ours["total"]["median"] / peer["total"]["median"], "target": TARGET,
    }  # fmt: skip
    if trained is not None:
        result["real"] = _share_of_training(trained)
    return result


def table(result: Mapping[str, Any]) -> str:
    """As Markdown, for people and for docs/benchmarks.md; CPU milliseconds for each site and round."""
    ours, peer = result["ours"], result["flower"]
    lines = ["| CPU ms for each site and round | not-fed | Flower FedAvg |", "| --- | --- | --- |"]
    for stage in sorted(ours["stages"], key=lambda name: -ours["stages"][name]):
        other = f"{1000 * peer['stages'][stage]:.1f}" if stage in peer["stages"] else ""
        lines.append(f"| {stage} | {1000 * ours['stages'][stage]:.1f} | {other} |")
    cells = (f"{1000 * one['median']:.0f} ({1000 * one['low']:.0f} to {1000 * one['high']:.0f})" for one in
             (ours["total"], peer["total"]))  # fmt: skip
    lines.append("| **all** | " + " | ".join(cells) + " |")
    met = "met" if result["ratio"] <= result["target"] else "missed"
    lines.append(f"| ratio | **{result['ratio']:.1f}** (target {result['target']:g}: {met}) | 1 |")
    return "\n".join(lines)


def conclusion(result: Mapping[str, Any]) -> str:
    """One line: what of a real round this is."""
    what = (
        f"{result['sites']} sites, {result['rounds']} rounds, mode {result['mode']}, {result['parameters']:,} numbers"
    )
    if "real" not in result:
        return what
    real = result["real"]
    span = f"{real['span'][0]}:{real['span'][1]}"
    return (
        f"{what}; a real round of {real['base']} (layers {span}, {real['records']} records) "
        f"takes {real['cpu_s']:.0f} CPU s at a site, of which all but training is {100 * real['share']:.1f} %"
    )


def _piece(work: Path, piece: str) -> dict[str, Any]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(  # noqa: S603  this Python, one of our modules
        [sys.executable, "-m", WORK, str(work), piece], env=environment, capture_output=True, text=True, check=False
    )
    try:
        found: dict[str, Any] = json.loads(done.stdout.strip().rpartition("\n")[2])
    except ValueError:
        said = " ".join(done.stderr.split())[-300:]
        raise PieceFailed(where=f"bench scale, {piece}", expected="a result", got=said, hint="report this") from None
    return found


def _require_same(turns: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    """Both sides must have computed the same aggregate, or one of them did other work."""
    means = [turn["mean"] for found in turns.values() for turn in found]
    if any(abs(a - b) > 1e-5 * max(1.0, abs(a)) for mean in means for a, b in zip(means[0], mean, strict=True)):
        raise PieceFailed(where="bench scale", expected="one aggregate on both sides", got="two", hint="report this")


def _cost(turns: Sequence[Mapping[str, Any]], share: int) -> dict[str, Any]:
    stages = {
        stage: statistics.median(turn["cpu_s"].get(stage, 0.0) for turn in turns) / share
        for stage in turns[0]["cpu_s"]
        if stage != APPRENTICE
    }
    totals = [sum(value for stage, value in turn["cpu_s"].items() if stage != APPRENTICE) / share for turn in turns]
    spread = Times.of(totals)
    return {
        "stages": stages, "total": {"median": spread.median, "low": spread.low, "high": spread.high},
        "wall_s": statistics.median(turn["wall_s"] for turn in turns),
        "peak_mib": max(turn["peak_mib"] for turn in turns),
    }  # fmt: skip


def _share_of_training(trained: Mapping[str, Any]) -> dict[str, Any]:
    """Of one site's round in earnest."""
    cpu = {stage: value / trained["sites"] for stage, value in trained["cpu_s"].items()}
    total = sum(cpu.values())
    facts = {name: trained[name] for name in ("base", "span", "records")}
    return {**facts, "cpu_s": total, "training_s": cpu[APPRENTICE], "share": (total - cpu[APPRENTICE]) / total}
