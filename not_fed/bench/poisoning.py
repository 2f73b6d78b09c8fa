"""One of five sites lies about its organ: what each rule makes of the round, in perplexity, and what a backdoor gains.

Organs are trained once a seed. A lie is made of the first site's organ afterwards, the same for every rule, so that the
rules alone differ. The vote is a rule of its own here: the plain mean is the candidate, each site measures it on its
own held-out records, and where a majority finds them read worse than by the start the round is rolled back to it.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from not_fed.aggregation.robust import Remark
from not_fed.aggregation.rules import NormLimit, Rule
from not_fed.bench.harness import machine
from not_fed.bench.poisoning_texts import POISON, Texts
from not_fed.bench.poisoning_work import LIES, Lie, Measured, Scale, spread, told, train_sites, votes_against
from not_fed.organ.anatomy import Span
from not_fed.organ.checkpoint import Base
from not_fed.organ.merge import OrganMean
from not_fed.organ.robust import RobustOrgans
from not_fed.organ.train import TrainSettings
from not_fed.progress import Progress, silent

SCHEMA = "not-fed/bench-poisoning/1"
LIBRARIES = ("not-fed", "torch", "transformers", "numpy")
SPAN = Span(26, 29)
LIAR, VOTE = "the-liar", "vote on the mean"
RULES: Mapping[str, Rule] = {
    "mean": Rule(),
    "mean, norms clipped at 1.5 medians": Rule(limit=NormLimit(max_ratio=1.5)),
    "mean, norms beyond 1.5 medians left out": Rule(limit=NormLimit(max_ratio=1.5, leave_out=True)),
    "median": Rule(name="median", byzantine=1),
    "trimmed mean, 1 at each end": Rule(name="trimmed-mean", byzantine=1),
    "Krum": Rule(name="krum", byzantine=1),
    "multi-Krum, 2 of 5": Rule(name="multi-krum", byzantine=1),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """How much of it: records a site, and seeds, each with a split of its own."""

    train: int
    held_out: int
    seeds: tuple[int, ...]
    settings: TrainSettings


_SETTINGS = TrainSettings(span=SPAN, lr=4e-3, epochs=2, batch_tokens=512, max_tokens=128)
FULL = Size(train=80, held_out=10, seeds=(0, 1, 2), settings=_SETTINGS)
QUICK = Size(train=24, held_out=4, seeds=(0,), settings=_SETTINGS)


def bench_poisoning(
    base: Base,
    *,
    texts: Callable[[int], Texts],
    size: Size,
    folder: Path | None = None,
    lies: Sequence[Lie] = LIES,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Run the comparison on one thread.

    Args:
        texts: gives every site's texts of a seed.
        folder: where organs lie meanwhile; they are removed as soon as they are measured.
    Returns:
        a JSON object: for each rule and lie perplexity and the target's probability, over seeds.
    """
    cpu, cells, bases = time.process_time(), list[dict[str, Any]](), list[Measured]()
    steps = len(size.seeds) * len(lies) * (len(RULES) + 1)
    source = ""
    with _one_thread():
        for seed in size.seeds:
            found = texts(seed)
            source = found.source
            with tempfile.TemporaryDirectory(dir=folder, prefix="not-fed-poisoning-") as work:
                settings = replace(size.settings, seed=seed)
                round_ = _Round(base, found, settings=settings, work=Path(work))
                bases.append(round_.start)
                for lie in lies:
                    for cell in round_.aggregates(lie):
                        cells.append(cell | {"seed": seed})
                        progress("rounds", done=len(cells), total=steps, note=f"{cell['rule']}: {lie.name}")
    return {
        "schema": SCHEMA,
        "machine": machine(LIBRARIES) | {"threads": 1},
        "base_sha256": base.sha256,
        "span": [size.settings.span.start, size.settings.span.stop],
        "sites": list(bases[0].by_site),
        "records": {"train": size.train, "held_out": size.held_out},
        "lr": size.settings.lr,
        "epochs": size.settings.epochs,
        "batch_tokens": size.settings.batch_tokens,
        "seeds": list(size.seeds),
        "source": source,
        "poison": POISON,
        "lies": [asdict(lie) for lie in lies],
        "base": {
            "perplexity": spread([one.perplexity for one in bases]), "target": spread([one.target for one in bases])
        },
        "rows": [_row(rule, cells, lies) for rule in (*RULES, VOTE)],
        "cells": cells,
        "cpu_seconds": round(time.process_time() - cpu, 1),
    }  # fmt: skip


class _Round:
    """One seed's organs, trained, and the scale that all aggregates of this seed are measured on."""

    def __init__(self, base: Base, texts: Texts, *, settings: TrainSettings, work: Path) -> None:
        self._base, self._work, self._span = base, work, settings.span
        self._organs = train_sites(base, sites=texts.sites, settings=settings, out=work)
        self._backdoor = self._organs.pop("backdoor")
        self._scale = Scale(base, sites=texts.sites, settings=settings)
        self.start = self._scale.measure(None)

    def aggregates(self, lie: Lie) -> Iterator[dict[str, Any]]:
        """Every rule's outcome when the first site tells this lie."""
        liar, *honest = self._organs.values()
        sent = self._work / f"{LIAR}.organ"
        told(self._backdoor if lie.backdoor else liar, factor=lie.factor, base=self._base, out=sent)
        for name, rule in RULES.items():
            out, remarks, started = self._work / "aggregate.organ", list[Remark](), time.process_time()
            self._combine([sent, *honest], rule, out=out, tell=remarks.append)
            seconds, measured = time.process_time() - started, self._scale.measure(out)
            out.unlink()
            yield _cell(name, lie, measured, remarks={one.name: one.code for one in remarks}, seconds=seconds)
            if name == "mean":
                against = votes_against(measured, self.start)
                kept = measured if 2 * against <= len(self._organs) else self.start
                yield _cell(VOTE, lie, kept, remarks={}, seconds=seconds) | {"against": against}
        sent.unlink()

    def _combine(self, organs: Sequence[Path], rule: Rule, *, out: Path, tell: Callable[[Remark], None]) -> None:
        """As mode trusted does it: the plain mean adds one at a time, every other rule needs all of them."""
        if rule.needs_all:
            robust = RobustOrgans(rule, start=self._base.span_places(self._span))
            for organ in organs:
                robust.add(organ, name=organ.stem)
            robust.write(out, tell=tell)
            return
        mean = OrganMean()
        for organ in organs:
            mean.add(organ)
        mean.write(out)


def table(result: dict[str, Any]) -> str:
    """The result as a Markdown table, for people and for docs/benchmarks.md."""
    lies = [lie["name"] for lie in result["lies"]]
    doors = [lie["name"] for lie in result["lies"] if lie["backdoor"]]
    columns = ["rule", *lies, *(f"target after {door}" for door in doors), "CPU"]
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    for row in result["rows"]:
        cells = [row["rule"]]
        cells += [_number(row["perplexity"][lie]) + _refused(row, lie, len(result["sites"])) for lie in lies]
        cells += [_percent(row["target"][door]) for door in doors]
        lines.append("| " + " | ".join([*cells, f"{row['cpu_seconds']:.1f} s"]) + " |")
    base = result["base"]
    alone = [_number(base["perplexity"]), *[""] * (len(lies) - 1), *[_percent(base["target"])] * len(doors), ""]
    return "\n".join([*lines, "| " + " | ".join(["base, untrained", *alone]) + " |"])


def _refused(row: dict[str, Any], lie: str, sites: int) -> str:
    against = row["against"].get(lie)
    return "" if against is None else f", {'/'.join(map(str, against))} of {sites} against"


def _number(found: dict[str, float]) -> str:
    low, mean, high = (_short(found[key]) for key in ("low", "mean", "high"))
    return f"**{mean}**" if low == high else f"**{mean}** ({low} to {high})"


def _short(value: float) -> str:
    return f"{value:.1f}" if value < 1e3 else f"{value:.0e}"


def _percent(found: dict[str, float]) -> str:
    return f"{100 * found['mean']:.2g} %"


def _cell(rule: str, lie: Lie, measured: Measured, *, remarks: Mapping[str, str], seconds: float) -> dict[str, Any]:
    return {
        "rule": rule, "lie": lie.name, "perplexity": measured.perplexity, "by_site": dict(measured.by_site),
        "target": measured.target, "remarks": dict(remarks), "cpu_seconds": round(seconds, 2),
    }  # fmt: skip


def _row(rule: str, cells: Sequence[dict[str, Any]], lies: Sequence[Lie]) -> dict[str, Any]:
    of = {lie.name: [cell for cell in cells if (cell["rule"], cell["lie"]) == (rule, lie.name)] for lie in lies}
    return {
        "rule": rule,
        "perplexity": {lie: spread([cell["perplexity"] for cell in found]) for lie, found in of.items()},
        "target": {lie: spread([cell["target"] for cell in found]) for lie, found in of.items()},
        "against": {
            lie: [cell["against"] for cell in found] for lie, found in of.items() if all("against" in c for c in found)
        },
        "liar_left_out": {lie: sum(_is_out(cell) for cell in found) for lie, found in of.items()},
        "honest_left_out": {
            lie: sum(code != "norm-clipped" for cell in found for name, code in cell["remarks"].items() if name != LIAR)
            for lie, found in of.items()
        },
        "cpu_seconds": max(cell["cpu_seconds"] for found in of.values() for cell in found),
    }  # fmt: skip


def _is_out(cell: dict[str, Any]) -> bool:
    return bool(cell["remarks"].get(LIAR, "norm-clipped") != "norm-clipped")


@contextmanager
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
