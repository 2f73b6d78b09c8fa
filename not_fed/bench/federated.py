"""Three sites together: organs, LoRA in three ways of averaging, each site alone, and pooled records as the ceiling.

Every way takes the same Poisson samples' rate, the same steps and rounds, the same precision; its learning rate is its
own, the best of a sweep on validation records (seed 0); alone, pooled and FedEx take that of the mean they belong to.
Under epsilon every site's run has one plan for all rounds, and the clip is a quarter of the median norm of validation
records' gradients, which count as public here.
Finished runs stand in a JSON file; the same command goes on with it.
"""

from __future__ import annotations

import hashlib
import json
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from not_fed import canonical
from not_fed.bench.dp_trainee import Recipe
from not_fed.bench.federated_work import Federation, Rounds, Training, Way
from not_fed.bench.finished import Finished
from not_fed.bench.harness import sweep
from not_fed.bench.organ_texts import Texts
from not_fed.organ.checkpoint import Base
from not_fed.privacy.accounting import DpPlan, plan_dp
from not_fed.progress import Progress, silent

SCHEMA = "not-fed/bench-federated/1"
DELTA = 1e-5
CLIP_SHARE = 0.25
NORM_RECORDS = 24
RANK = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """How much of it.

    Attributes:
        records: of each site.
        sample_rate: chance of a record to join a step of its site.
        epsilons: None is a run without clip and noise.
        most_rates: how many a sweep may try.
    """

    records: int
    sample_rate: float
    rounds: Rounds
    epsilons: tuple[float | None, ...]
    seeds: tuple[int, ...]
    most_rates: int


QUICK = Size(
    records=120,
    sample_rate=0.2,
    rounds=Rounds(rounds=2, steps=2, rank=RANK),
    epsilons=(None,),
    seeds=(0,),
    most_rates=2,
)
FULL = Size(
    records=400, sample_rate=0.1, rounds=Rounds(rounds=2, steps=3, rank=RANK), epsilons=(None, 8.0), seeds=(0, 1, 2),
    most_rates=3,
)  # fmt: skip


def ways_for(layers: int, *, epsilon: float | None) -> list[Way]:
    """What is compared on a model of so many layers."""
    third = max(1, layers // 3)
    cuts = sorted({layers, layers - third, max(0, layers - 2 * third), 0})
    thirds, whole = tuple(pairwise(cuts))[::-1], ((0, layers),)
    together = [
        Way(learns="lora"),
        Way(learns="organ", spans=whole, rank=RANK),
        Way(learns="organ", spans=thirds[:1]),
        Way(learns="ffa"),
        Way(learns="organ", spans=whole),
    ]
    if epsilon is not None:
        return together
    return [
        *together,
        Way(learns="lora", how="fedex"),
        Way(learns="lora", how="pooled"),
        Way(learns="organ", spans=whole, how="alone"),
        Way(learns="organ", spans=whole, how="pooled"),
        Way(learns="organ", spans=thirds),
    ]


def first_rates(way: Way, *, layers: int, private: bool) -> tuple[float, ...]:
    """What a sweep begins with."""
    if way.learns != "organ" or way.rank:
        return (1e-2, 2e-2) if private else (4e-3, 8e-3)
    share = max(stop - start for start, stop in way.spans) / layers
    plain = (2e-3, 4e-3) if share < 0.2 else (1e-3, 2e-3) if share < 0.5 else (5e-4, 1e-3)
    return tuple(4 * rate for rate in plain) if private else plain


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One federation, named by all that it depends on besides the file's facts."""

    way: Way
    epsilon: float | None
    lr: float
    seed: int

    @property
    def key(self) -> str:
        """The same for the same job in a later run of the command."""
        return json.dumps(asdict(self), sort_keys=True)


def bench_federated(
    base: Base, *, sites: Mapping[str, Texts], size: Size, out: Path, progress: Progress = silent
) -> dict[str, Any]:
    """Run what is left of the comparison.

    Args:
        out: the JSON file of finished runs; begun, or gone on with.
    Returns:
        the file's object with `rows` added: one for each way and epsilon.
    """
    texts = {name: Texts(**{**_fields(one), "train": one.train[: size.records]}) for name, one in sites.items()}
    digest = hashlib.sha256(canonical.dumps({name: _fields(one) for name, one in texts.items()})).hexdigest()
    facts = {
        "schema": SCHEMA, "base_sha256": base.sha256, "layers": base.layers, "sites": sorted(texts),
        "texts_sha256": digest, "source": next(iter(sites.values())).source, "records": size.records,
        "sample_rate": size.sample_rate, "rounds": asdict(size.rounds), "delta": DELTA, "precision": "bfloat16",
    }  # fmt: skip
    runner = _Runner(base, texts, size, Finished(out, facts=facts, kinds=("base", "clips", "jobs", "rates")), progress)
    for seed in size.seeds:
        for epsilon in size.epsilons:
            for way in ways_for(base.layers, epsilon=epsilon):
                runner.way(way, epsilon=epsilon, seed=seed)
    return runner.finished.add({"rows": list(_rows(runner.finished.content, base.layers, size))})


def _fields(texts: Texts) -> dict[str, Any]:
    return {
        "name": texts.name, "train": list(texts.train), "validation": list(texts.validation), "test": list(texts.test),
        "source": texts.source,
    }  # fmt: skip


class _Runner:
    def __init__(
        self, base: Base, texts: Mapping[str, Texts], size: Size, finished: Finished, progress: Progress
    ) -> None:
        self.base, self.texts, self.size, self.finished, self.progress = base, texts, size, finished, progress

    def way(self, way: Way, *, epsilon: float | None, seed: int) -> None:
        """A way at its best rate; the sweep is made with the first seed."""

        def score(lr: float) -> float:
            job = Job(way=way, epsilon=epsilon, lr=lr, seed=self.size.seeds[0])
            return float(self.run(job)["validation"]["value"])

        like = replace(way, how="mean")
        if like != way and like in ways_for(self.base.layers, epsilon=epsilon):
            lr = self.finished.content["rates"][_row_name(like, epsilon)]  # the sites train as they do for the mean
        else:
            rates = first_rates(way, layers=self.base.layers, private=epsilon is not None)
            lr = sweep(score, rates, most=self.size.most_rates)
        self.finished.content["rates"][_row_name(way, epsilon)] = lr
        self.run(Job(way=way, epsilon=epsilon, lr=lr, seed=seed))

    def run(self, job: Job) -> dict[str, Any]:
        """A federation's result, from the file if it is done."""
        done, note = len(self.finished.content["jobs"]), f"{job.way.name}, epsilon {job.epsilon or 'inf'}, {job.lr:g}"
        self.progress("federations", done=done, total=done + 1, note=note)
        result: dict[str, Any] = self.finished.once("jobs", job.key, lambda: self._run(job))
        return result

    def _run(self, job: Job) -> dict[str, Any]:
        federation = Federation(self.base, way=job.way, sites=self.texts, rounds=self.size.rounds)
        self.finished.once("base", "untrained", federation.measure)
        federation.trainee.reset(seed=job.seed)
        clip = self.finished.once(
            "clips", f"{job.way.learns} {job.way.spans} {job.way.rank}", lambda: _clip(federation)
        )
        plan, private = self._plan(job.epsilon, clip), job.epsilon is not None
        found = federation.run(Training(recipe=Recipe(lr=job.lr, clip=clip), plan=plan, private=private))
        noise = plan.noise_multiplier if private else 0.0
        return asdict(job) | {"name": job.way.name, "noise_multiplier": noise} | found

    def _plan(self, epsilon: float | None, clip: float) -> DpPlan:
        rounds = self.size.rounds
        return plan_dp(
            epsilon=8.0 if epsilon is None else epsilon, delta=DELTA, sample_rate=self.size.sample_rate,
            steps=rounds.rounds * rounds.steps, max_grad_norm=clip, divisor=self.size.sample_rate * self.size.records,
        )  # fmt: skip


def _clip(federation: Federation) -> float:
    trainee = federation.trainee
    texts = tuple(text for part in federation.held_out["validation"].values() for text in part)
    corpus = trainee.read("held out: validation", texts)
    return float(f"{CLIP_SHARE * statistics.median(trainee.norms(corpus, range(min(NORM_RECORDS, len(texts))))):.2g}")


def _row_name(way: Way, epsilon: float | None) -> str:
    return f"{way.name}, epsilon {epsilon or 'inf'}"


def _rows(content: Mapping[str, Any], layers: int, size: Size) -> Iterator[dict[str, Any]]:
    jobs = list(content["jobs"].values())
    for epsilon in size.epsilons:
        for way in ways_for(layers, epsilon=epsilon):
            mine = [job for job in jobs if job["name"] == way.name and job["epsilon"] == epsilon]
            lr = content["rates"].get(_row_name(way, epsilon))
            runs = [job for job in mine if job["lr"] == lr]
            if not runs:
                continue
            values = [run["test"]["value"] for run in runs]
            yield {
                "name": way.name, "learns": way.learns, "how": way.how, "epsilon": epsilon, "lr": lr,
                "tried": sorted({job["lr"] for job in mine}), "seeds": sorted({run["seed"] for run in runs}),
                "perplexity": statistics.mean(values), "spread": [min(values), max(values)],
                "interval": [runs[0]["test"]["ci_low"], runs[0]["test"]["ci_high"]],
                "sites": {site: statistics.mean([run["test"][site] for run in runs]) for site in content["sites"]},
                "bytes": runs[0]["bytes"], "noise_multiplier": runs[0]["noise_multiplier"],
                "cpu_seconds": statistics.mean([run["cpu_seconds"] for run in runs]),
            }  # fmt: skip


def table(result: Mapping[str, Any]) -> str:
    """The result as a Markdown table, for people and for docs/benchmarks.md."""
    sites: Sequence[str] = result["sites"]
    columns = ["way", "epsilon", "perplexity, all", "over seeds", "95 % of one", *sites, "travels", "CPU, all sites",
               "rate, of tried"]  # fmt: skip
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    untrained = result["base"]["untrained"]["test"]
    base = [
        "base model",
        "",
        f"{untrained['value']:.1f}",
        "",
        f"{untrained['ci_low']:.1f} to {untrained['ci_high']:.1f}",
    ]
    lines.append("| " + " | ".join([*base, *(f"{untrained[site]:.1f}" for site in sites), "", "", ""]) + " |")
    for row in result["rows"]:
        low, high = row["spread"]
        cells = [
            row["name"], "none" if row["epsilon"] is None else f"{row['epsilon']:g}", f"**{row['perplexity']:.1f}**",
            f"{low:.1f} to {high:.1f} ({len(row['seeds'])})", "{:.1f} to {:.1f}".format(*row["interval"]),
            *(f"{row['sites'][site]:.1f}" for site in sites), f"{row['bytes'] / 1e6:,.0f} MB",
            f"{row['cpu_seconds']:.0f} s", f"{row['lr']:g} of {', '.join(f'{lr:g}' for lr in row['tried'])}",
        ]  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)
