"""Organs beside their peers: what they read after equal tokens, and what that costs in time, bytes and memory.

Every method gets the same records in the same packed batches, its own best learning rate of a sweep (chosen on
validation records with seed 0; a sweep goes on while its best rate is an end of it), and runs of several lengths, each
with warm-up and decay of its own. A run is a process of its own, for its own peak memory. Seconds are CPU seconds of a
step, timed for all methods in turns, times the number of steps: so the machine's other work does not decide.
Finished runs stand in a JSON file; the same command goes on with it.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from types import MappingProxyType
from typing import Any

from not_fed import canonical
from not_fed.bench.finished import Finished, read_finished
from not_fed.bench.harness import Times, interleaved, matmul_gflops, peak_memory_mb, ranked, sweep
from not_fed.bench.learners import Learner, Method, adamw, teach
from not_fed.bench.organ_texts import Texts
from not_fed.errors import InputError
from not_fed.organ.checkpoint import Base, open_base
from not_fed.organ.prefix import TokenisedRecords, tokenise
from not_fed.organ.split import load_tokenizer
from not_fed.organ.steps import plan_batches
from not_fed.progress import Progress, silent

SCHEMA = "not-fed/bench-organ/2"
BYTES = 4  # of a number that travels: float32, as in the base
MAX_TOKENS = 512
GROUP = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """How much of it.

    Attributes:
        steps: lengths of the runs; the sweep is made at `sweep_steps`, which is one of them.
        seeds: of the order of records and LoRA's start, at `sweep_steps`; the other lengths are run with the first.
        most_rates: how many a sweep may try.
        repeats: turns of the timing.
    """

    batch_tokens: int
    steps: tuple[int, ...]
    sweep_steps: int
    seeds: tuple[int, ...]
    most_rates: int
    repeats: int


QUICK = Size(batch_tokens=512, steps=(8,), sweep_steps=8, seeds=(0,), most_rates=2, repeats=3)
FULL = Size(batch_tokens=512, steps=(16, 32, 64), sweep_steps=32, seeds=(0, 1, 2), most_rates=5, repeats=7)


def methods_for(layers: int, *, quick: bool) -> list[Method]:
    """What is compared on a model of so many layers: spans from small to whole, spans in turn, and the peers."""
    third, three = max(1, layers // 3), min(3, max(1, layers // 3))
    cuts = sorted({layers, layers - third, max(0, layers - 2 * third), 0})
    thirds = tuple(pairwise(cuts))[::-1]
    four = tuple((start, start + three) for start in _spread(layers, three))
    whole = ((0, layers),)
    methods = [
        Method(kind="organ", spans=thirds[:1]),
        Method(kind="lora", rank=16),
        Method(kind="organ", spans=whole),
        Method(kind="full"),
        Method(kind="organ", spans=whole, rank=16),
        Method(kind="organ", spans=((layers - three, layers),)),
        Method(kind="organ", spans=four),
        Method(kind="organ", spans=thirds),
        Method(kind="lora", rank=64),
        Method(kind="norms"),
    ]
    return list(dict.fromkeys(methods[:5] if quick else methods))  # a shallow model has fewer spans


def _spread(layers: int, length: int) -> list[int]:
    """Starts of up to four spans over the depth, the last first; a shallow model has room for fewer.

    >>> _spread(30, 3)
    [26, 18, 10, 2]
    """
    wished = (round(layers * share) - length // 2 for share in (0.9, 0.633, 0.367, 0.1))
    return sorted({min(max(start, 0), layers - length) for start in wished}, reverse=True)


def first_rates(method: Method, *, layers: int) -> tuple[float, ...]:
    """What a sweep begins with: the more full weights learn at once, the lower."""
    peers = {"lora": (2e-3, 4e-3), "full": (3e-4, 6e-4), "norms": (5e-3, 1e-2)}
    if method.rank or method.kind != "organ":
        return peers["lora" if method.rank else method.kind]
    share = max(stop - start for start, stop in method.spans) / layers
    return (1e-3, 2e-3) if share < 0.2 else (7e-4, 1.4e-3) if share < 0.5 else (3e-4, 6e-4)


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One training run, named by all that it depends on besides the file's facts."""

    method: Method
    lr: float
    seed: int
    steps: int

    @property
    def key(self) -> str:
        """The same for the same job in a later run of the command."""
        return json.dumps(asdict(self), sort_keys=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Work:
    """A job with what another process needs for it."""

    base: Path
    texts: Texts
    batch_tokens: int


def bench_organ(
    base: Base,
    *,
    texts: Texts,
    methods: Sequence[Method],
    size: Size,
    out: Path,
    rates: Mapping[str, float] = MappingProxyType({}),
    progress: Progress = silent,
) -> dict[str, Any]:
    """Run what is left of the comparison.

    Args:
        rates: learning rate by name of the method, taken from another comparison in place of a sweep.
        out: the JSON file of finished runs; begun, or gone on with.
    Returns:
        the file's object with `rows` (one for each method and length) and `budgets` added.
    """
    digest = hashlib.sha256(canonical.dumps([texts.train, texts.validation, texts.test])).hexdigest()
    facts = {
        "schema": SCHEMA, "base_sha256": base.sha256, "layers": base.layers, "texts": texts.name,
        "texts_sha256": digest, "source": texts.source, "records": len(texts.train), "test_records": len(texts.test),
        "batch_tokens": size.batch_tokens, "precision": "bfloat16",
    }  # fmt: skip
    finished = Finished(out, facts=facts, kinds=("times", "base", "jobs", "rates"))
    work = _Work(base=base.folder, texts=texts, batch_tokens=size.batch_tokens)
    runner = _Runner(work, size, finished, rates=rates, progress=progress)
    runner.untrained()
    for seed in size.seeds:
        for method in methods:
            runner.lengths(method, seed=seed)
    runner.times(methods_in(finished.content))
    return finished.add(summary(finished.content))


def finished_rates(path: Path) -> dict[str, float]:
    """The learning rates that a finished comparison chose, by name of the method."""
    return dict(read_finished(path, schema=SCHEMA)["rates"])


class _Runner:
    """Does each job once, in a process of its own."""

    def __init__(
        self, work: _Work, size: Size, finished: Finished, *, rates: Mapping[str, float], progress: Progress
    ) -> None:
        self.work, self.size, self.finished, self.rates, self.progress = work, size, finished, rates, progress
        self.layers: int = finished.content["layers"]

    def untrained(self) -> None:
        """The base's own perplexity."""
        self.finished.once("base", "test", lambda: _alone(_measure_base, self.work))

    def times(self, methods: Sequence[Method]) -> None:
        """CPU seconds of a step, in turns, as many methods at once as fit in memory with a model each."""
        self.progress("timing", done=0, total=1)
        found: dict[str, Any] = {}
        for start in range(0, len(methods), GROUP):
            group = tuple(methods[start : start + GROUP])
            key = json.dumps([[method.name for method in group], self.size.repeats])
            found |= self.finished.once("times", key, partial(_alone, _time_steps, self.work, group, self.size.repeats))
        self.finished.add({"step_cpu_seconds": found})

    def rate(self, method: Method) -> float:
        """The given learning rate, or the best of a sweep by validation records with the first seed."""

        def score(lr: float) -> float:
            job = Job(method=method, lr=lr, seed=self.size.seeds[0], steps=self.size.sweep_steps)
            return float(self.run(job)["validation"]["value"])

        found = self.rates.get(method.name)
        if found is None:
            found = sweep(score, first_rates(method, layers=self.layers), most=self.size.most_rates)
        self.finished.content["rates"][method.name] = found
        return found

    def lengths(self, method: Method, *, seed: int) -> None:
        """Runs of all lengths with the first seed, of the sweep's length with the others."""
        lr = self.rate(method)
        for steps in self.size.steps if seed == self.size.seeds[0] else (self.size.sweep_steps,):
            for rate in (lr, lr / 2) if steps > self.size.sweep_steps else (lr,):  # a longer run bears less
                self.run(Job(method=method, lr=rate, seed=seed, steps=steps))

    def run(self, job: Job) -> dict[str, Any]:
        """A job's result, from the file if it is done."""
        done, note = len(self.finished.content["jobs"]), f"{job.method.name}, {job.lr:g}, {job.steps} steps"
        self.progress("runs", done=done, total=done + 1, note=note)
        result: dict[str, Any] = self.finished.once("jobs", job.key, lambda: _alone(train_alone, self.work, job))
        return result


def train_alone(work: _Work, job: Job) -> dict[str, Any]:
    """Train one method and measure it; meant for a process of its own."""
    base = open_base(work.base)
    data, validation, test = (
        _tokens(base, texts) for texts in (work.texts.train, work.texts.validation, work.texts.test)
    )
    batches = batches_for(data, steps=job.steps, batch_tokens=work.batch_tokens, seed=job.seed)
    learner = Learner(base, job.method, seed=job.seed)
    started, cpu = time.perf_counter(), time.process_time()
    curve = teach(learner, data, batches, lr=job.lr)
    seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
    peak = peak_memory_mb()
    return {
        "name": job.method.name,
        "lr": job.lr,
        "seed": job.seed,
        "steps": job.steps,
        "tokens": sum(data.predictions[i] for batch in batches for i in batch),
        "seconds": round(seconds, 2),
        "cpu_seconds": round(cpu, 2),
        "peak_mb": peak,
        "learns": learner.learns(),
        "travels": learner.travels(),
        "loss_first": curve[0],
        "loss_last": curve[-1],
        "validation": learner.perplexity(validation, bfloat16=True),
        "perplexity": learner.perplexity(test),
    }


def _measure_base(work: _Work) -> dict[str, float]:
    base = open_base(work.base)
    return Learner(base, Method(kind="norms")).perplexity(_tokens(base, work.texts.test))


def _tokens(base: Base, texts: Sequence[str]) -> TokenisedRecords:
    return tokenise(load_tokenizer(base), texts, max_tokens=MAX_TOKENS)


def batches_for(data: TokenisedRecords, *, steps: int, batch_tokens: int, seed: int) -> list[list[int]]:
    """The first `steps` batches of one pass in the seed's order.

    Raises:
        InputError: there are fewer: no record is seen twice.
    """
    batches = plan_batches(data.predictions, epochs=1, batch_tokens=batch_tokens, seed=seed)
    if len(batches) < steps:
        raise InputError(
            where="bench organ", expected=f"records for {steps} steps", got=f"for {len(batches)}",
            hint="give more records",
        )  # fmt: skip
    return batches[:steps]


def _time_steps(work: _Work, methods: Sequence[Method], repeats: int) -> dict[str, Any]:
    """CPU seconds of each method's step on one batch, all stages of it, in turns; and the machine's rate meanwhile."""
    base = open_base(work.base)
    data = _tokens(base, work.texts.train)
    batch = batches_for(data, steps=1, batch_tokens=work.batch_tokens, seed=0)[0]
    steppers: dict[str, Callable[[], object]] = {}
    for method in methods:
        learner = Learner(base, method)
        for stage in range(learner.stages):
            steppers[f"{method.name} / {stage}"] = _stepper(learner, data, batch, stage)
    times = interleaved(steppers, repeats=repeats, clock=time.process_time)
    found: dict[str, Any] = {}
    for method in methods:
        parts = [times[name] for name in times if name.rpartition(" / ")[0] == method.name]
        columns = zip(*[(part.median, part.low, part.high) for part in parts], strict=True)
        found[method.name] = asdict(Times(*(statistics.mean(column) for column in columns)))
    return found | {"matmul_gflops": round(matmul_gflops(), 1)}


def _stepper(learner: Learner, data: TokenisedRecords, batch: Sequence[int], stage: int) -> Callable[[], object]:
    """One whole step. The optimiser's state is made once: what a step costs is not what a first step costs."""
    optimisers: dict[int, Any] = {}

    def step() -> None:
        learning = learner.learn_in(stage)
        if stage not in optimisers:
            optimisers[stage] = adamw(learner.method, learning, lr=0.0)
        learner.take(data, batch, learning)
        optimisers[stage].step()
        optimisers[stage].zero_grad(set_to_none=True)

    return step


def _alone(work: Callable[..., Any], *arguments: object) -> Any:  # noqa: ANN401  whatever JSON holds
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(work, arguments)


def methods_in(content: Mapping[str, Any]) -> list[Method]:
    """The methods that have a finished run, in the order of their first."""
    named = [json.loads(key)["method"] for key in content["jobs"]]
    return list(dict.fromkeys(Method(**{**one, "spans": tuple(map(tuple, one["spans"]))}) for one in named))


def summary(content: Mapping[str, Any]) -> dict[str, Any]:
    """What follows from the finished runs; where some are missing, from those that are there."""
    rows = list(_rows(content))
    return {"rows": rows, "budgets": budgets(rows)}


def _rows(content: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    jobs = list(content["jobs"].values())
    for method in methods_in(content):
        mine = [job for job in jobs if job["name"] == method.name]
        step = content["step_cpu_seconds"][method.name]
        for steps in sorted({job["steps"] for job in mine}):
            here = [job for job in mine if job["steps"] == steps]
            if not here:
                continue
            lr = min(_first_seed(here), key=lambda job: ranked(job["validation"]["value"]))["lr"]
            runs = [job for job in here if job["lr"] == lr]
            values = [run["perplexity"]["value"] for run in runs]
            first = min(runs, key=lambda run: run["seed"])
            yield {
                "name": method.name, "kind": method.kind, "steps": steps, "tokens": first["tokens"], "lr": lr,
                "tried": sorted({job["lr"] for job in here}), "seeds": sorted(run["seed"] for run in runs),
                "validation": statistics.mean([run["validation"]["value"] for run in runs]),
                "perplexity": statistics.mean(values), "spread": [min(values), max(values)],
                "interval": [first["perplexity"]["ci_low"], first["perplexity"]["ci_high"]],
                "step_cpu_seconds": step, "cpu_seconds": steps * step["median"],
                "bytes": first["travels"] * BYTES, "learns": first["learns"],
                "peak_mb": max(run["peak_mb"] or 0 for run in runs),
            }  # fmt: skip


def _first_seed(jobs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The runs that a rate is chosen by."""
    first = min(job["seed"] for job in jobs)
    return [job for job in jobs if job["seed"] == first]


def budgets(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """At the time that each run of LoRA took: the best LoRA that is done by then, and the best organ.

    Best is by validation, so that whoever has more candidates gains nothing on the test records by it. A budget that no
    organ meets has `organ` null.
    """
    found = []
    peers = [row for row in rows if row["kind"] == "lora"]
    for limit in sorted({row["cpu_seconds"] for row in peers}):
        best: dict[str, Any] = {"cpu_seconds": limit}
        for kind in ("lora", "organ"):
            done = [row for row in rows if row["kind"] == kind and row["cpu_seconds"] <= limit * (1 + 1e-9)]
            row = min(done, key=lambda row: row["validation"], default=None)
            best[kind] = row and {key: row[key] for key in ("name", "steps", "perplexity", "cpu_seconds")}
        found.append(best)
    return found


COLUMNS = (
    "method", "travels", "step, CPU", "of full", "steps", "CPU", "perplexity", "over seeds", "95 % of one",
    "rate, of tried", "peak",
)  # fmt: skip


def table(result: Mapping[str, Any]) -> str:
    """The result as Markdown tables, for people and for docs/benchmarks.md."""
    full = next((row["step_cpu_seconds"]["median"] for row in result["rows"] if row["kind"] == "full"), None)
    lines = ["| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS)]
    for row in result["rows"]:
        step, (low, high) = row["step_cpu_seconds"], row["spread"]
        cells = (
            row["name"], f"{row['bytes'] / 1e6:,.0f} MB", str(Times(**step)),
            f"{step['median'] / full:.2f}" if full else "", str(row["steps"]), f"{row['cpu_seconds']:.0f} s",
            f"**{row['perplexity']:.1f}**", f"{low:.1f} to {high:.1f} ({len(row['seeds'])})",
            "{:.1f} to {:.1f}".format(*row["interval"]),
            f"{row['lr']:g} of {', '.join(f'{lr:g}' for lr in row['tried'])}", f"{row['peak_mb']:,.0f} MiB",
        )  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    lines += ["", "| CPU budget | best LoRA by then | best organ by then |", "|---|---|---|"]
    for budget in result["budgets"]:
        told = [_told(budget[kind]) for kind in ("lora", "organ")]
        lines.append(f"| {budget['cpu_seconds']:.0f} s | {told[0]} | {told[1]} |")
    return "\n".join(lines)


def _told(best: Mapping[str, Any] | None) -> str:
    return "none" if best is None else f"**{best['perplexity']:.1f}**: {best['name']}, {best['steps']} steps"
