"""An organ beside its peers: LoRA on every linear layer, and full fine-tuning; same records, same packed batches.

Two questions, one run: how long a step takes (in turns, so that the machine's noise hits all alike), and how
well the model reads held-out records after equal tokens (each method in a process of its own, for its own peak memory).
Peers get their best learning rate of a sweep; so does the organ.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from not_fed.bench.harness import Times, interleaved, machine, matmul_gflops, peak_memory_mb
from not_fed.errors import InputError
from not_fed.organ.anatomy import Span
from not_fed.organ.checkpoint import Base, open_base
from not_fed.organ.evaluate import perplexity_of
from not_fed.organ.head_loss import token_losses
from not_fed.organ.layout import Layout, packable
from not_fed.organ.prefix import PrefixCache, TokenisedRecords, compute_prefix, tokenise
from not_fed.organ.split import SplitModel, load_split, load_tokenizer
from not_fed.organ.steps import BETAS, plan_batches
from not_fed.progress import Progress, silent

SCHEMA = "not-fed/bench-organ/1"
COLUMNS = (
    "method",
    "learns",
    "step",
    "of full",
    "prefix, once",
    "perplexity (95 %)",
    "over seeds",
    "rate, of tried",
    "all steps",
    "peak",
)
LORA_RANK = 16
BATCH_TOKENS = 1024
MICRO_TOKENS = 2048
GRADIENT_NORM = 1.0
WARMUP = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """How much of it: steps of 1,024 tokens, the learning rates tried for each method, seeds."""

    steps: int
    repeats: int
    seeds: tuple[int, ...]
    rates: dict[str, tuple[float, ...]]


QUICK = Size(steps=12, repeats=3, seeds=(0,), rates={"organ": (2e-3, 4e-3), "lora": (1e-3, 3e-3), "full": (1e-4, 3e-4)})
FULL = Size(
    steps=64,
    repeats=7,
    seeds=(0, 1, 2),
    rates={"organ": (1e-3, 2e-3, 4e-3), "lora": (5e-4, 1e-3, 3e-3, 6e-3), "full": (5e-5, 1e-4, 3e-4, 6e-4)},
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One method at one setting, small enough to send to another process."""

    method: str
    span: tuple[int, int]
    lr: float
    seed: int
    steps: int
    base: Path
    train: tuple[str, ...]
    held_out: tuple[str, ...]

    @property
    def name(self) -> str:
        """How the table calls it."""
        names = {"lora": f"LoRA r={LORA_RANK}, all linear layers (PEFT)", "full": "full fine-tuning"}
        return names.get(self.method) or f"organ {self.span[0]}:{self.span[1]}"


class Trainee:
    """A model set up for one method; every method steps on the same packed batches with the same optimiser."""

    def __init__(self, job: Job) -> None:
        base: Base = open_base(job.base)
        self.job, self.head_learns = job, job.method == "full"
        self.cut: SplitModel = load_split(base, span=Span(*job.span))
        self.data = tokenise(load_tokenizer(base), job.train, max_tokens=512)
        self.prefix_seconds = 0.0
        self._cache: PrefixCache | None = None
        self.parameters = self._set_up()
        decay = 0.01 if job.method == "organ" else 0.0
        self.optimiser = torch.optim.AdamW(self.parameters, lr=job.lr, betas=BETAS, weight_decay=decay, fused=True)

    def _set_up(self) -> list[nn.Parameter]:
        if self.job.method == "organ":
            started = time.perf_counter()
            self._cache = compute_prefix(self.cut, self.data, key="", micro_tokens=MICRO_TOKENS, store=None)
            self.prefix_seconds = time.perf_counter() - started
            for parameter in self.cut.parameters().values():
                parameter.requires_grad_()
            return list(self.cut.parameters().values())
        if self.job.method == "lora":
            return add_lora(self.cut.model, rank=LORA_RANK)
        self.cut.model.requires_grad_()
        return list(self.cut.model.parameters())

    def step(self, batch: Sequence[int], *, number: int, steps: int) -> float:
        """One optimiser step on some records; returns the mean loss per token."""
        warm = max(1, round(WARMUP * steps))
        factor = (number + 1) / warm if number < warm else (steps - number) / max(1, steps - warm)
        for group in self.optimiser.param_groups:
            group["lr"] = self.job.lr * factor
        total, loss_sum = sum(self.data.predictions[i] for i in batch), 0.0
        for micro in packable(batch, self.data.predictions, max_tokens=MICRO_TOKENS):
            loss = self._losses(self.data, micro, cached=True).sum() / total
            loss.backward()  # type: ignore[no-untyped-call]
            loss_sum += float(loss.detach())
        torch.nn.utils.clip_grad_norm_(self.parameters, GRADIENT_NORM)
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        return loss_sum

    def perplexity(self, held_out: TokenisedRecords) -> dict[str, float]:
        """Perplexity on held-out records with its interval."""
        sums = np.zeros(len(held_out.rows))
        with torch.no_grad():
            for micro in packable(range(len(sums)), held_out.predictions, max_tokens=MICRO_TOKENS):
                layout_losses = torch.split(
                    self._losses(held_out, micro, cached=False), [held_out.predictions[i] for i in micro]
                )
                for index, losses in zip(micro, layout_losses, strict=True):
                    sums[index] = float(losses.double().sum())
        found = perplexity_of(sums, np.array(held_out.predictions))
        return {"value": found.value, "ci_low": found.ci_low, "ci_high": found.ci_high}

    def _losses(self, data: TokenisedRecords, micro: Sequence[int], *, cached: bool) -> Tensor:
        layout = self.cut.pack([data.inputs(i) for i in micro])
        targets = torch.cat([data.targets(i) for i in micro])
        if cached and self._cache is not None:
            return self.cut.losses(layout.scatter(self._cache.rows(micro)), layout, targets)
        hidden, head = layout.gather(self._whole(layout)), self.cut.head
        if self.head_learns:
            return nn.functional.cross_entropy(head(hidden), targets, reduction="none")
        weight: Tensor = head.weight  # type: ignore[assignment]
        return token_losses(hidden, weight, targets)

    def _whole(self, layout: Layout) -> Tensor:
        inner: nn.Module = self.cut.model.base_model  # type: ignore[assignment]
        return inner(input_ids=layout.tokens, position_ids=layout.positions, use_cache=False).last_hidden_state  # type: ignore[no-any-return]


def bench_organ(
    base: Base,
    *,
    train: Sequence[str],
    held_out: Sequence[str],
    spans: Sequence[Span],
    size: Size,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Run the comparison.

    Args:
        train, held_out: records; the same for every method.
        spans: the organs to compare.
    Returns:
        a JSON object: machine, step times in turns, and perplexity after equal tokens at each method's best rate.
    """
    methods = [("organ", (span.start, span.stop)) for span in spans] + [("lora", (0, 1)), ("full", (0, 1))]

    def job(method: str, span: tuple[int, int], lr: float, seed: int) -> Job:
        return Job(
            method=method,
            span=span,
            lr=lr,
            seed=seed,
            steps=size.steps,
            base=base.folder,
            train=tuple(train),
            held_out=tuple(held_out),
        )

    gflops = matmul_gflops()
    times = _time_steps([job(method, span, size.rates[method][0], 0) for method, span in methods], repeats=size.repeats)
    runs: list[dict[str, Any]] = []
    jobs = [job(method, span, lr, seed) for method, span in methods for lr in size.rates[method] for seed in size.seeds]
    for number, item in enumerate(jobs, start=1):
        runs.append(_alone(item))
        progress("equal tokens", done=number, total=len(jobs), note=f"{item.name} at {item.lr:g}")
    names = [job(method, span, 0.0, 0).name for method, span in methods]
    full = times["full fine-tuning"].median
    rows = [_row(name, [run for run in runs if run["name"] == name], times[name], full=full) for name in names]
    return {
        "schema": SCHEMA,
        "machine": machine() | {"matmul_gflops": round(gflops, 1)},
        "base_sha256": base.sha256,
        "batch_tokens": BATCH_TOKENS,
        "steps": size.steps,
        "seeds": list(size.seeds),
        "records": len(train),
        "base_perplexity": runs[0]["before"],
        "rows": rows,
        "runs": runs,
    }


def table(result: dict[str, Any]) -> str:
    """The result as a Markdown table, for people and for docs/benchmarks.md."""
    lines = ["| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS)]
    for row in result["rows"]:
        best, found = row["best"], row["best"]["perplexity"]
        cells = (
            row["name"],
            f"{row['parameters'] / 1e6:.2f} M",
            str(Times(**row["step_seconds"])),
            f"{row['ratio_to_full']:.2f}",
            f"{best['prefix_seconds']:.0f} s",
            f"**{found['value']:.1f}** ({found['ci_low']:.1f} to {found['ci_high']:.1f})",
            f"{row['spread'][0]:.1f} to {row['spread'][1]:.1f}",
            f"{best['lr']:g} of {', '.join(f'{lr:g}' for lr in row['tried'])}",
            f"{best['seconds']:.0f} s",
            f"{best['peak_mb'] or 0:,.0f} MiB",
        )
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def train_alone(job: Job) -> dict[str, Any]:
    """Train one method for its steps and measure it; meant for a process of its own."""
    trainee = Trainee(job)
    held_out = tokenise(load_tokenizer(open_base(job.base)), job.held_out, max_tokens=512)
    before = trainee.perplexity(held_out)
    started = time.perf_counter()
    batches = batches_for(trainee.data, steps=job.steps, seed=job.seed)
    losses = [trainee.step(batch, number=number, steps=job.steps) for number, batch in enumerate(batches)]
    seconds = time.perf_counter() - started + trainee.prefix_seconds
    return {
        "name": job.name,
        "method": job.method,
        "lr": job.lr,
        "seed": job.seed,
        "seconds": round(seconds, 2),
        "prefix_seconds": round(trainee.prefix_seconds, 2),
        "parameters": sum(p.numel() for p in trainee.parameters),
        "loss_first": losses[0],
        "loss_last": losses[-1],
        "before": before,
        "perplexity": trainee.perplexity(held_out),
        "peak_mb": peak_memory_mb(),
    }


def batches_for(data: TokenisedRecords, *, steps: int, seed: int) -> list[list[int]]:
    """The first `steps` batches of as many epochs as that takes."""
    per_epoch = max(1, sum(data.predictions) // BATCH_TOKENS)
    batches = plan_batches(data.predictions, epochs=steps // per_epoch + 1, batch_tokens=BATCH_TOKENS, seed=seed)
    if len(batches) < steps:
        raise InputError(
            where="bench organ", expected=f"records for {steps} steps", got=f"{len(batches)}", hint="give more records"
        )
    return batches[:steps]


def _time_steps(jobs: Sequence[Job], *, repeats: int) -> dict[str, Times]:
    trainees = {job.name: Trainee(job) for job in jobs}
    first = next(iter(trainees.values()))
    batch = batches_for(first.data, steps=1, seed=0)[0]
    return interleaved({name: _stepper(trainee, batch) for name, trainee in trainees.items()}, repeats=repeats)


def _stepper(trainee: Trainee, batch: Sequence[int]) -> Callable[[], float]:
    return lambda: trainee.step(batch, number=0, steps=1)


def _alone(job: Job) -> dict[str, Any]:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(train_alone, (job,))


def _row(name: str, runs: Sequence[dict[str, Any]], times: Times, *, full: float) -> dict[str, Any]:
    rates = sorted({run["lr"] for run in runs})

    def mean(lr: float) -> float:
        return float(np.mean([run["perplexity"]["value"] for run in runs if run["lr"] == lr]))

    chosen = min(rates, key=mean)
    seeds = [run for run in runs if run["lr"] == chosen]
    values = [run["perplexity"]["value"] for run in seeds]
    return {
        "name": name,
        "parameters": seeds[0]["parameters"],
        "step_seconds": asdict(times),
        "ratio_to_full": times.median / full,
        "tried": rates,
        "best": seeds[0],
        "spread": [min(values), max(values)],
    }


def add_lora(model: nn.Module, *, rank: int) -> list[nn.Parameter]:
    """PEFT's LoRA on every linear layer but the head, alpha twice the rank, no dropout; returns what learns.

    Raises:
        InputError: peft is not installed.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError:
        raise InputError(
            where="benchmark",
            expected="peft, the peer to compare with",
            got="not installed",
            hint="pip install 'not-fed[bench]'",
        ) from None
    config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=_linear_names(model), lora_dropout=0.0)
    inject_adapter_in_model(config, model)
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def _linear_names(model: nn.Module) -> list[str]:
    """PEFT's all-linear: every linear layer but the head."""
    head = model.get_output_embeddings()  # type: ignore[operator]
    return sorted(
        {
            name.rpartition(".")[2]
            for name, module in model.named_modules()
            if isinstance(module, nn.Linear) and module is not head
        }
    )
