"""What a private step costs beside one without privacy, and beside other ways to clip per record: time and memory.

Time: all routes take the same micro-batch in turns in one process with one thread, in CPU seconds, so ratios of one
turn hold on a busy machine. What happens once a step (zeroed sums and noise; the optimiser) is timed in the same turns,
and a step of several micro-batches is put together from its measured parts. Memory: each route in a fresh process.
"""

from __future__ import annotations

import functools
import gc
import multiprocessing
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from not_fed.bench.dp_routes import CLIP, ROUTES, Route, Sums
from not_fed.bench.dp_subjects import RECORDS, TOKENS, Kind, Subject
from not_fed.bench.harness import Times, machine, peak_memory_mb, reset_peak_memory, resting_memory_mb
from not_fed.organ.anatomy import Span
from not_fed.privacy.accounting import DpPlan
from not_fed.privacy.dp_sgd import l2_norm, noisy_gradient, zero_sums
from not_fed.privacy.randomness import OperatingSystem
from not_fed.progress import Progress, silent

SCHEMA = "not-fed/bench-dp/1"
LIBRARIES = ("not-fed", "torch", "transformers", "opacus", "numpy")
STEP_RECORDS = (64, 256)
WANTED = {"smollm2-135m": 1.2, "gpt2": 1.2, "gpt-oss layers": 1.3}  # ours, a whole step of 64 records
PLAN = DpPlan(sample_rate=0.1, steps=10, noise_multiplier=1.0, max_grad_norm=CLIP, divisor=64, delta=1e-5)
NAMES = {
    "plain": "without privacy",
    "ours": "**book-keeping (ours)**",
    "loop": "per-record loop (our fallback)",
    "hooks": "Opacus hooks",
    "ghost": "Opacus ghost clipping",
    "vmap": "torch.func vmap over the span",
}
COLUMNS = (
    "model and span",
    "route",
    "micro-batch, CPU",
    "x without",
    *(f"x, step of {records}" for records in STEP_RECORDS),
    "wall",
    "extra peak",
    "sum differs by",
)


def kinds(smollm2: Path) -> tuple[Kind, ...]:
    """What is timed: the demo's base at two spans, and two families with random weights."""
    return (
        Kind(name="smollm2-135m", span=Span(20, 23), folder=smollm2),
        Kind(name="smollm2-135m", span=Span(26, 29), folder=smollm2),
        Kind(name="gpt2", span=Span(6, 9), made_up="gpt2"),
        Kind(name="gpt-oss layers", span=Span(2, 5), made_up="gpt_oss"),
    )


@dataclass(frozen=True, slots=True)
class Turn:
    """CPU and wall seconds of one piece of work, once."""

    cpu: float
    wall: float


def bench_speed(kinds: Sequence[Kind], *, repeats: int, progress: Progress = silent) -> dict[str, Any]:
    """Measure every route on every model.

    Args:
        repeats: turns, after the one that compares the sums.
    Returns:
        a JSON object: machine, and a row for each model and route; `error` where a route cannot run.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        rows = [
            row
            for number, kind in enumerate(kinds, start=1)
            for row in _rows_of(kind, repeats=repeats, progress=progress, place=(number, len(kinds)))
        ]
        facts = machine(LIBRARIES)
    finally:
        torch.set_num_threads(threads)
    return {"schema": SCHEMA, "machine": facts, "records": RECORDS, "tokens": TOKENS, "repeats": repeats, "rows": rows}


def _rows_of(kind: Kind, *, repeats: int, progress: Progress, place: tuple[int, int]) -> list[dict[str, Any]]:
    what = f"{kind.title}, {place[0]} of {place[1]}"
    timings = _time(kind, repeats=repeats, progress=lambda done: progress(what, done=done, total=repeats))
    rows = []
    for name in ROUTES:
        row: dict[str, Any] = {"model": kind.name, "span": str(kind.span), "route": name}
        if name in timings.errors:
            row["error"] = timings.errors[name]
        else:
            row |= summary(timings.turns, name)
            row |= {"extra_peak_mb": _alone(kind, name), "difference": timings.differences[name]}
        rows.append(row)
        progress(f"{what}, memory", done=len(rows), total=len(ROUTES))
    return rows


@dataclass(frozen=True, slots=True, kw_only=True)
class Timings:
    """Of one model: each route's turns, or its error, and how far its sum is from the loop's."""

    turns: dict[str, list[Turn]]
    errors: dict[str, str]
    differences: dict[str, float | None]


def _time(kind: Kind, *, repeats: int, progress: Callable[[int], None]) -> Timings:
    subject = Subject(kind)
    routes, errors, differences = working(subject)
    pieces: dict[str, Callable[[], object]] = {name: _once(route, subject) for name, route in routes.items()}
    pieces |= {"noise": functools.partial(_noise, subject), "optimiser": optimiser(subject)}
    turns: dict[str, list[Turn]] = {name: [] for name in pieces}
    for number in range(repeats):
        for name, work in pieces.items():
            turns[name].append(timed(work))
        progress(number + 1)
    return Timings(turns=turns, errors=errors, differences=differences)


def working(subject: Subject) -> tuple[dict[str, Route], dict[str, str], dict[str, float | None]]:
    """Which routes run on this subject, what the others say, and how far each sum is from the loop's (relative)."""
    routes: dict[str, Route] = {}
    errors: dict[str, str] = {}
    found: dict[str, Sums] = {}
    for name, make in ROUTES.items():
        try:
            route, sums = make(subject), zero_sums(subject.weights)
            route(sums)
        except Exception as error:  # noqa: BLE001  a peer's refusal is a result
            errors[name] = f"{type(error).__name__}: {error}".splitlines()[0]
        else:
            routes[name], found[name] = route, sums
    exact = found["loop"]
    differences: dict[str, float | None] = {name: relative(sums, exact) for name, sums in found.items()}
    return routes, errors, differences | {"plain": None, "loop": None}


def relative(sums: Mapping[str, Tensor], exact: Mapping[str, Tensor]) -> float:
    """Length of the difference over the length of the exact sum."""
    return float(l2_norm({name: sums[name] - exact[name] for name in exact}) / l2_norm(exact))


def timed(work: Callable[[], object]) -> Turn:
    """Once, by both clocks."""
    gc.collect()
    cpu, wall = time.process_time(), time.perf_counter()
    work()
    return Turn(time.process_time() - cpu, time.perf_counter() - wall)


def summary(turns: Mapping[str, Sequence[Turn]], name: str) -> dict[str, Any]:
    """A route's times, and its ratios to the step without privacy, turn by turn."""
    plain = [turn.cpu for turn in turns["plain"]]
    own = [turn.cpu for turn in turns[name]]
    noise = [0.0 if name == "plain" else turn.cpu for turn in turns["noise"]]
    after = [turn.cpu for turn in turns["optimiser"]]

    def step(records: int) -> dict[str, float]:
        count = records / RECORDS
        parts = zip(own, plain, noise, after, strict=True)
        return _spread(
            [(count * mine + added + last) / (count * without + last) for mine, without, added, last in parts]
        )

    return {
        "cpu_s": asdict(Times.of(own)),
        "wall_s": asdict(Times.of([turn.wall for turn in turns[name]])),
        "ratio": _spread([mine / without for mine, without in zip(own, plain, strict=True)]),
        "steps": {str(records): step(records) for records in STEP_RECORDS},
        "noise_cpu_s": statistics.median(noise),
        "optimiser_cpu_s": statistics.median(after),
    }


def _spread(values: Sequence[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "low": min(values), "high": max(values)}


def _once(route: Route, subject: Subject) -> Callable[[], None]:
    """One micro-batch into sums that are there already, as in a step; the plain route adds up in the weights."""
    sums = zero_sums(subject.weights)

    def work() -> None:
        for weight in subject.weights.values():
            weight.grad = None
        route(sums)

    return work


def _noise(subject: Subject) -> dict[str, Tensor]:
    return noisy_gradient(zero_sums(subject.weights), plan=PLAN, source=OperatingSystem())


def optimiser(subject: Subject) -> Callable[[], None]:
    """One AdamW update of the span, at a learning rate that changes nothing."""
    gradients = {name: torch.full_like(weight, 1e-3) for name, weight in subject.weights.items()}
    update = torch.optim.AdamW(subject.weights.values(), lr=0.0, weight_decay=0.0, fused=True)

    def work() -> None:
        for name, weight in subject.weights.items():
            weight.grad = gradients[name]
        update.step()

    return work


def _alone(kind: Kind, name: str) -> float | None:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(extra_peak_mb, (kind, name))


def extra_peak_mb(kind: Kind, name: str) -> float | None:
    """Peak memory of a step's first micro-batch above the resting process, MiB; meant for a process of its own.

    What it adds up in is counted: float64 sums, and float32 gradients where there is no privacy.
    """
    torch.set_num_threads(1)
    subject = Subject(kind)
    route = ROUTES[name](subject)
    gc.collect()
    reset_peak_memory()
    resting = resting_memory_mb()
    route({} if name == "plain" else zero_sums(subject.weights))
    peak = peak_memory_mb()
    return None if peak is None or resting is None else max(0.0, peak - resting)


def table(result: dict[str, Any]) -> str:
    """The result as a Markdown table, for people and for docs/benchmarks.md."""
    lines = ["| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS)]
    for row in result["rows"]:
        cells = [f"{row['model']} {row['span']}", NAMES[row["route"]]]
        if "error" in row:
            cells += [f"cannot: `{row['error'][:160].replace('|', '/')}`", *[""] * (len(COLUMNS) - 3)]
        else:
            steps = [_ratio(row["steps"][str(records)]) for records in STEP_RECORDS]
            differs = row["difference"]
            cells += [
                str(Times(**row["cpu_s"])),
                _ratio(row["ratio"]),
                *steps,
                f"{row['wall_s']['median']:.2f} s",
                f"{row['extra_peak_mb'] or 0:,.0f} MiB",
                "" if differs is None else f"{differs:.0e}",
            ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _ratio(spread: Mapping[str, float]) -> str:
    return f"**{spread['median']:.2f}** ({spread['low']:.2f} to {spread['high']:.2f})"
