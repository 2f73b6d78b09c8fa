"""Held-out perplexity against epsilon: an organ, LoRA on every layer and full fine-tuning under one privacy budget.

Every method gets the same private records, sample rate, steps, noise multiplier and precision. Clip and learning rate
are its own, chosen beforehand on public text by a rehearsal of the same size; nothing is chosen on the private text.
The finished jobs stand in a JSON file after each of them, so a run that was stopped goes on where it was.
"""

from __future__ import annotations

import functools
import gc
import json
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from not_fed.bench.dp_settings import NAMES, Setting, Size
from not_fed.bench.dp_texts import BenchTexts
from not_fed.bench.dp_trainee import Corpus, MethodName, Recipe, Trainee
from not_fed.bench.finished import Finished
from not_fed.bench.harness import ranked, sweep
from not_fed.organ.anatomy import Span
from not_fed.organ.checkpoint import Base
from not_fed.privacy.accounting import DpPlan, plan_dp
from not_fed.progress import Progress, silent

SCHEMA = "not-fed/bench-dp-utility/1"
DELTA = 1e-5
CLIP_SHARE = 0.25  # of the median norm of a public record's gradient
NORM_RECORDS = 24
LIBRARIES = ("not-fed", "torch", "transformers", "peft", "dp-accounting", "numpy")
COLUMNS = ("setting", "method", "learns", "epsilon", "noise", "perplexity", "over seeds", "of base", "rate, of tried")

Stage = Literal["rehearsal", "private"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One training run, named by all that it depends on."""

    setting: str
    sample_rate: float
    steps: int
    stage: Stage
    method: MethodName
    epsilon: float | None
    recipe: Recipe
    seed: int

    @property
    def key(self) -> str:
        """The same for the same job in a later run of the command."""
        return json.dumps(asdict(self), sort_keys=True)

    @property
    def note(self) -> str:
        """For people who wait."""
        return (
            f"{self.stage}, {self.setting}, epsilon {self.epsilon or 'inf'}, rate {self.recipe.lr:g}, seed {self.seed}"
        )


def bench_utility(
    base: Base, *, texts: BenchTexts, span: Span, size: Size, out: Path, progress: Progress = silent
) -> dict[str, Any]:
    """Run what is left of the comparison.

    Args:
        texts: at least `size.records + size.held_out` of each kind.
        out: the JSON file of finished jobs; begun, or gone on with.
    Returns:
        the file's object with `rows` added: one for each setting, method and epsilon.
    """
    facts = {
        "schema": SCHEMA, "base_sha256": base.sha256, "span": str(span), "delta": DELTA, "unit": "record",
        "records": size.records, "held_out": size.held_out, "rank": size.rank, "precision": size.precision,
        "source": texts.source,
    }  # fmt: skip
    finished = Finished(out, facts=facts, kinds=("clips", "base", "jobs"), libraries=LIBRARIES)
    for method in _methods(size):
        runner = _Runner(base, method=method, texts=texts, span=span, size=size, finished=finished, progress=progress)
        for setting in size.settings:
            if method in setting.methods:
                runner.setting(setting)
        del runner
        gc.collect()
    return finished.add(summary(finished.content, size))


def summary(content: dict[str, Any], size: Size) -> dict[str, Any]:
    """What follows from the finished jobs; where some are missing, from those that are there."""
    return {"seeds": list(size.seeds), "rows": list(_rows(content, size))}


def _methods(size: Size) -> list[MethodName]:
    """The cheap ones first."""
    order: tuple[MethodName, ...] = ("organ", "lora", "full")
    return [method for method in order if any(method in setting.methods for setting in size.settings)]


class _Runner:
    """All jobs of one method, on one loaded model. The model is loaded when the first unfinished job needs it."""

    def __init__(
        self, base: Base, *, method: MethodName, texts: BenchTexts, span: Span, size: Size, finished: Finished,
        progress: Progress,
    ) -> None:  # fmt: skip
        self.base, self.method, self.span = base, method, span
        self.size, self.finished, self.progress = size, finished, progress
        amount = size.records + size.held_out
        self.texts: dict[Stage, tuple[str, ...]] = {
            "rehearsal": texts.public[:amount],
            "private": texts.private[:amount],
        }

    @functools.cached_property
    def trainee(self) -> Trainee:
        return Trainee(
            self.base, method=self.method, span=self.span, rank=self.size.rank, precision=self.size.precision
        )

    def setting(self, setting: Setting) -> None:
        """Choose on public text, then measure on private text."""
        clip = self.finished.once("clips", self.method, self._clip)
        rates = setting.methods[self.method]
        for seed in self.size.seeds:
            for epsilon in setting.epsilons:
                anchor = None if epsilon is None else setting.anchor
                tried = rates.plain if epsilon is None else rates.private
                lr = sweep(lambda lr, at=anchor: self._rehearsed(setting, at, Recipe(lr=lr, clip=clip)), tried,  # type: ignore[misc]
                           most=self.size.most_rates)  # fmt: skip
                self._done(setting, epsilon, Recipe(lr=lr, clip=clip), stage="private", seed=seed)

    def _rehearsed(self, setting: Setting, epsilon: float | None, recipe: Recipe) -> float:
        return float(self._done(setting, epsilon, recipe, stage="rehearsal", seed=0)["perplexity"]["value"])

    def _done(
        self, setting: Setting, epsilon: float | None, recipe: Recipe, *, stage: Stage, seed: int
    ) -> dict[str, Any]:
        job = Job(
            setting=setting.name, sample_rate=setting.sample_rate, steps=setting.steps, stage=stage,
            method=self.method, epsilon=epsilon, recipe=recipe, seed=seed,
        )  # fmt: skip
        result: dict[str, Any] = self.finished.once("jobs", job.key, lambda: self._run(job))
        return result

    def _run(self, job: Job) -> dict[str, Any]:
        plan = plan_for(job, records=self.size.records)
        corpus = self.trainee.read(job.stage, self.texts[job.stage])
        members, held_out = split(len(corpus.data.rows), held_out=self.size.held_out, seed=job.seed)
        self.finished.once("base", f"{job.stage} {job.seed}", lambda: self._untrained(corpus, held_out))
        started, cpu = time.perf_counter(), time.process_time()
        self.trainee.reset(seed=job.seed)
        steps = self.trainee.train(corpus, members, recipe=job.recipe, plan=plan, private=job.epsilon is not None)
        for number in steps:
            self.progress(NAMES[job.method], done=number, total=plan.steps, note=job.note)
        seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
        return asdict(job) | {
            "noise_multiplier": plan.noise_multiplier if job.epsilon is not None else 0.0,
            "divisor": plan.divisor,
            "weights": self.trainee.weights,
            "perplexity": self.trainee.perplexity(corpus, held_out),
            "seconds": round(seconds, 1),
            "cpu_seconds": round(cpu, 1),
        }

    def _untrained(self, corpus: Corpus, held_out: Sequence[int]) -> dict[str, float]:
        self.trainee.reset(seed=0)
        return self.trainee.perplexity(corpus, held_out)

    def _clip(self) -> float:
        corpus = self.trainee.read("rehearsal", self.texts["rehearsal"])
        members, _ = split(len(corpus.data.rows), held_out=self.size.held_out, seed=0)
        self.trainee.reset(seed=0)
        return float(f"{CLIP_SHARE * statistics.median(self.trainee.norms(corpus, members[:NORM_RECORDS])):.2g}")


def plan_for(job: Job, *, records: int) -> DpPlan:
    """The plan of a job; where there is no epsilon, only its samples and its divisor count."""
    return plan_dp(
        epsilon=8.0 if job.epsilon is None else job.epsilon,
        delta=DELTA,
        sample_rate=job.sample_rate,
        steps=job.steps,
        max_grad_norm=job.recipe.clip,
        divisor=job.sample_rate * records,
    )


def split(count: int, *, held_out: int, seed: int) -> tuple[list[int], list[int]]:
    """Which records train and which are held out."""
    order = np.random.default_rng(seed).permutation(count).tolist()
    return order[held_out:], order[:held_out]


def _rows(content: dict[str, Any], size: Size) -> Iterator[dict[str, Any]]:
    """One for each setting, method and epsilon: its seeds' perplexities, and how they stand to the base's."""
    for setting in size.settings:
        for method in setting.methods:
            same = [
                job for job in content["jobs"].values() if (job["setting"], job["method"]) == (setting.name, method)
            ]
            for epsilon in setting.epsilons:
                anchor = None if epsilon is None else setting.anchor
                tried = {
                    job["recipe"]["lr"]: ranked(job["perplexity"]["value"])
                    for job in same
                    if job["stage"] == "rehearsal" and job["epsilon"] == anchor
                }
                chosen = min(tried, key=lambda lr: tried[lr], default=None)  # a sweep that went on may choose anew
                seeds = [
                    job
                    for job in same
                    if job["stage"] == "private" and job["epsilon"] == epsilon and job["recipe"]["lr"] == chosen
                ]
                if not seeds:
                    continue
                values = [job["perplexity"]["value"] for job in seeds]
                bases = [content["base"][f"private {job['seed']}"]["value"] for job in seeds]
                yield {
                    "setting": setting.name,
                    "method": method,
                    "epsilon": epsilon,
                    "noise_multiplier": seeds[0]["noise_multiplier"],
                    "weights": seeds[0]["weights"],
                    "perplexity": statistics.mean(values),
                    "seeds": [job["seed"] for job in seeds],
                    "values": values,
                    "spread": [min(values), max(values)],
                    "of_base": statistics.mean(value / base for value, base in zip(values, bases, strict=True)),
                    "lr": seeds[0]["recipe"]["lr"],
                    "clip": seeds[0]["recipe"]["clip"],
                    "tried": sorted(tried),
                    "cpu_seconds": statistics.mean(job["cpu_seconds"] for job in seeds),
                }


def table(result: dict[str, Any]) -> str:
    """The result as a Markdown table, for people and for docs/benchmarks.md."""
    lines = ["| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS)]
    for row in result["rows"]:
        low, high = row["spread"]
        cells = (
            row["setting"],
            NAMES[row["method"]],
            f"{row['weights'] / 1e6:.2f} M",
            "inf" if row["epsilon"] is None else f"{row['epsilon']:g}",
            f"{row['noise_multiplier']:.3f}",
            f"**{row['perplexity']:.1f}**",
            f"{low:.1f} to {high:.1f} ({len(row['seeds'])})",
            f"{row['of_base']:.2f}",
            f"{row['lr']:g} of {', '.join(f'{lr:g}' for lr in row['tried'])}",
        )
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)
