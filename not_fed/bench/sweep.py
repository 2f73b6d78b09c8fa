"""Which span is worth training on these records: every start and length, on the same batches, one model in memory.

The base is loaded once and the records are read once. Activations move up through the frozen layers from start to
start, so that all prefixes together cost one pass, and memory holds one cache (two while it moves). After each span the
base's own weights are put back. Finished spans stand in a JSON file: the same command, given again, goes on.

It trains without privacy and its numbers are exact: for public text, or for the site's own eyes.
"""

from __future__ import annotations

import hashlib
import math
import shlex
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from not_fed import canonical
from not_fed.bench.finished import Finished
from not_fed.bench.harness import peak_memory_mb, reset_peak_memory
from not_fed.bench.sweep_choice import NO_LIMITS, Limits, recommend
from not_fed.errors import InputError
from not_fed.organ.anatomy import Span, third_span
from not_fed.organ.checkpoint import Base
from not_fed.organ.data import Records
from not_fed.organ.evaluate import loss_sums, perplexity_of
from not_fed.organ.prefix import PrefixCache, TokenisedRecords, advance_prefix, compute_prefix, tokenise
from not_fed.organ.split import SplitModel, load_split, load_tokenizer
from not_fed.organ.steps import PlainSteps, SpanData, plan_batches
from not_fed.organ.train import NothingToLearn, Speed, TrainSettings, take_steps
from not_fed.progress import Progress, silent

SCHEMA = "not-fed/swept/1"
LIBRARIES = ("not-fed", "torch", "transformers", "numpy")
Clock = Callable[[], float]
STARTS = 8  # about so many starts, evenly spread, where none are asked for
STEPS = 16


class NoSpanInside(InputError):
    """No span that was asked for lies within the model."""

    code = "no-span-inside"


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepSettings:
    """What every span gets alike.

    Attributes:
        spans: the layers to try, each by itself.
        lrs: peak learning rates to try for each span; the best by held-out perplexity counts.
        steps: optimiser steps for each; more than a pass goes over the records again. None: `STEPS`, a pass at most.
        batch_tokens, max_tokens, seed: as in training.
    """

    spans: tuple[Span, ...]
    lrs: tuple[float, ...]
    steps: int | None = None
    batch_tokens: int = 1024
    max_tokens: int = 512
    seed: int = 0
    device: str = "cpu"

    def training(self, span: Span, lr: float) -> TrainSettings:
        """What `train` would be told; raises InputError for what it refuses."""
        return TrainSettings(
            span=span, lr=lr, batch_tokens=self.batch_tokens, max_tokens=self.max_tokens, seed=self.seed
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class NextCommand:
    """The training that follows a sweep, as it is typed.

    Attributes:
        options: besides span, rate and epochs.
        takes_held_out: its file holds the held-out records too.
    """

    data: str
    base: str
    options: tuple[str, ...] = ()
    takes_held_out: bool = False

    def line(self, span: Span, lr: float, *, epochs: int) -> str:
        """One line for a shell."""
        words = ["not-fed", "train", self.data, "--base", self.base, "--span", str(span), "--lr", f"{lr:g}"]
        words += ["--epochs", str(epochs)] if epochs > 1 else []
        return shlex.join([*words, *self.options, "--out", f"span-{span.start}-{span.stop}.organ"])


def plan_spans(
    layers: int, *, lengths: Sequence[int], starts: Sequence[int] | None = None, every: int | None = None
) -> tuple[Span, ...]:
    """The spans of a sweep: these starts, or every so many layers and the last that fits; and the paper's.

    Raises:
        NoSpanInside: none of them lies within the model.

    >>> [str(span) for span in plan_spans(8, lengths=[1, 3], every=4)]
    ['0:1', '0:3', '2:5', '4:5', '4:7', '5:8', '7:8']
    """
    found = set()
    for length in lengths:
        last = layers - length
        wanted = starts if starts is not None else [*range(0, last + 1, every or math.ceil(layers / STARTS)), last]
        found |= {Span(start, start + length) for start in wanted if 0 <= start <= last}
    if not found:
        raise NoSpanInside(
            where="sweep", expected=f"a span within 0:{layers}", got="starts and lengths that reach outside",
            hint="choose smaller --starts or --lengths",
        )  # fmt: skip
    return tuple(sorted(found | {third_span(layers)}))


def share_out(records: Records, *, share: float, seed: int) -> tuple[list[str], list[str]]:
    """Texts to train on, and a share held out: whole people where they are known, equal texts always together.

    Raises:
        InputError: there are too few to leave some on both sides.

    >>> train, held_out = share_out(Records(("a", "b", "a", "c", "d")), share=0.2, seed=0)
    >>> sorted(train + held_out), set(train) & set(held_out)
    (['a', 'a', 'b', 'c', 'd'], set())
    """
    whose = records.people or records.texts
    owners = list(dict.fromkeys(whose))
    order = np.random.default_rng(seed).permutation(len(owners))
    chosen = {owners[i] for i in order[: max(1, round(share * len(owners)))]}
    held_out = [text for text, owner in zip(records.texts, whose, strict=True) if owner in chosen]
    train = [text for text, owner in zip(records.texts, whose, strict=True) if owner not in chosen]
    if not train or not held_out:
        raise InputError(
            where="sweep", expected="records on both sides of --held-out-share", got=f"{len(owners)} in all",
            hint="give more records, or --held-out",
        )  # fmt: skip
    return train, held_out


def sweep(
    base: Base,
    *,
    train: Sequence[str],
    held_out: Sequence[str],
    settings: SweepSettings,
    out: Path,
    limits: Limits = NO_LIMITS,
    command: NextCommand | None = None,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Train what is left of the spans, and recommend one.

    Args:
        train, held_out: records; the same for every span.
        out: the JSON file of finished spans; begun, or gone on with.
        limits: the budget, if there is one.
        command: what would train the recommended span; without one `seconds` are of the records to train on.
    Returns:
        the file's object, `not-fed/swept/1`; its rows are of all spans that it holds, those of earlier calls too.
    Raises:
        NothingToLearn: nothing to train on, or to measure. InputError: `out` is of another sweep.
    Guarantees:
        A row has what `train` and `evaluate` give for that span, rate, seed and these records, as long as the steps are
        whole passes. The base's weights in memory are as they were after each span.
    Proved by: tests/unit/test_sweep.py::test_a_row_is_what_train_and_evaluate_give,
        tests/unit/test_sweep.py::test_the_base_is_put_back_after_each_span
    """
    for lr in settings.lrs:
        settings.training(settings.spans[0], lr)  # what training refuses is refused before a model is loaded
    tokenizer = load_tokenizer(base)
    found = [tokenise(tokenizer, texts, max_tokens=settings.max_tokens) for texts in (train, held_out)]
    for what, tokens in zip(("training data", "held-out data"), found, strict=True):
        if not any(tokens.predictions):
            raise NothingToLearn(
                where=what, expected="a record of two tokens or more", got=f"{len(tokens.rows):,} shorter ones",
                hint="check --text-field",
            )  # fmt: skip
    work = _Work.of(found[0], found[1], settings)
    facts = {
        "schema": SCHEMA, "base_sha256": base.sha256, "run": work.fingerprint(base, settings),
        "records": len(work.train.rows), "held_out_records": len(work.held_out.rows), "steps": len(work.batches),
        "tokens": work.tokens, "layers": base.layers, "device": settings.device, "threads": torch.get_num_threads(),
    }  # fmt: skip
    finished = Finished(out, facts=facts, kinds=("base", "trials"), libraries=LIBRARIES)
    _Runner(base, work, settings, finished, progress).run()
    untrained = finished.content["base"]["perplexity"]
    whole = sum(found[0].predictions) + (sum(found[1].predictions) if command and command.takes_held_out else 0)
    rows = list(_rows(finished.content["trials"], base=base, work=work, whole=whole))
    choice = recommend(rows, base_perplexity=untrained["value"], limits=limits)
    for row in rows:
        row["recommended"] = row is choice.row
    span = None if choice.row is None else choice.row["span"]
    line = command.line(Span(*span), choice.row["lr"], epochs=work.epochs) if command and choice.row and span else None
    recommended = {"span": span, "why": choice.why, "rule": choice.rule, "command": line}
    return finished.add({"base_perplexity": untrained, "rows": rows, "recommended": recommended})


@dataclass(frozen=True, kw_only=True)
class _Work:
    """What every span is trained and measured on: only records that a step takes, so that no prefix is for nothing.

    Attributes:
        epochs: passes over all records that come nearest to these steps.
    """

    train: TokenisedRecords
    held_out: TokenisedRecords
    batches: list[list[int]]
    epochs: int

    @classmethod
    def of(cls, train: TokenisedRecords, held_out: TokenisedRecords, settings: SweepSettings) -> _Work:
        lengths, batches = train.predictions, _batches(train.predictions, settings)
        used = sorted({index for batch in batches for index in batch})
        places = {index: place for place, index in enumerate(used)}
        return cls(
            train=TokenisedRecords(tuple(train.rows[index] for index in used)),
            held_out=held_out,
            batches=[[places[index] for index in batch] for batch in batches],
            epochs=max(1, round(sum(lengths[index] for batch in batches for index in batch) / sum(lengths))),
        )

    @property
    def tokens(self) -> int:
        """Predicted tokens in all steps of one span."""
        lengths = self.train.predictions
        return sum(lengths[index] for batch in self.batches for index in batch)

    def fingerprint(self, base: Base, settings: SweepSettings) -> str:
        """Names the sweep by all that a row depends on, but for the row's own span and rate."""
        training = asdict(settings.training(Span(0, 1), 1.0))
        facts = [base.sha256, self.train.digest(), self.held_out.digest(), self.batches, training]
        return hashlib.sha256(canonical.dumps(facts)).hexdigest()


def _batches(lengths: Sequence[int], settings: SweepSettings) -> list[list[int]]:
    """The batches of `train`, of as many passes as it takes, up to the wanted step."""

    def planned(epochs: int) -> list[list[int]]:
        return plan_batches(lengths, epochs=epochs, batch_tokens=settings.batch_tokens, seed=settings.seed)

    epochs, batches = 1, planned(1)
    while settings.steps is not None and len(batches) < settings.steps:
        epochs += 1
        batches = planned(epochs)
    return batches[: settings.steps or STEPS]


class _Runner:
    """Trains the spans that are not finished, from the lowest start up."""

    def __init__(
        self, base: Base, work: _Work, settings: SweepSettings, finished: Finished, progress: Progress
    ) -> None:
        self.base, self.work, self.settings = base, work, settings
        self.finished, self.progress = finished, progress
        self.clock = clock_of(settings.device)

    def run(self) -> None:
        trials = [(span, lr) for span in sorted(self.settings.spans) for lr in self.settings.lrs]
        todo = [trial for trial in trials if _key(*trial) not in self.finished.content["trials"]]
        if not todo and self.finished.content["base"]:
            return
        model = load_split(self.base, span=Span(0, 1), device=self.settings.device)
        place = _Place(model, self.work, clock=self.clock, progress=self.progress)
        for number, (span, lr) in enumerate(todo):
            self.progress("spans", done=number, total=len(todo), note=f"{span} at {lr:g}")
            place.move(to=span.start)
            self.finished.once("base", "perplexity", lambda: _perplexity(place.held_out(), self.progress))
            self.finished.once("trials", _key(span, lr), lambda: self._trial(place, span, lr))  # noqa: B023  at once
        self.progress("spans", done=len(todo), total=len(todo))

    def _trial(self, place: _Place, span: Span, lr: float) -> dict[str, Any]:
        reset_peak_memory()
        began = time.perf_counter()
        with _learning(place.model.at(span)) as cut:
            laps = _Laps(self.clock, self.progress)
            steps = PlainSteps(
                place.train(cut), batches=self.work.batches, epochs=self.work.epochs, save_every_s=math.inf
            )
            take_steps(steps, cut.parameters(), self.settings.training(span, lr), resume=None, progress=laps)
            measured = _perplexity(place.held_out(cut), self.progress)
        return {
            "span": [span.start, span.stop], "lr": lr, "perplexity": measured,
            "loss_first": _finite(steps.curve[0]), "loss_last": _finite(steps.curve[-1]),
            "step_seconds": statistics.median(laps.seconds), "prefix_seconds": place.prefix_seconds,
            "wall_seconds": time.perf_counter() - began, "peak_mb": peak_memory_mb(),
        }  # fmt: skip


class _Place:
    """Where the activations of all records stand: in front of one layer, and they only move up."""

    def __init__(self, model: SplitModel, work: _Work, *, clock: Clock, progress: Progress) -> None:
        self.model, self.prefix_seconds = model, 0.0
        self._work, self._clock, self._progress = work, clock, progress
        self._cut: SplitModel | None = None
        self._caches: dict[str, PrefixCache] = {}

    def move(self, *, to: int) -> None:
        """Bring the activations to a layer, by the frozen layers in between."""
        if self._cut is not None and self._cut.span.start == to:
            return
        began = self._clock()
        train = self._moved("train", self._work.train, to)
        self.prefix_seconds += self._clock() - began
        self._caches = {"train": train, "held-out": self._moved("held-out", self._work.held_out, to)}
        self._cut = self.model.at(Span(to, to + 1))

    def _moved(self, which: str, tokens: TokenisedRecords, to: int) -> PrefixCache:
        micro_tokens, progress = Speed().micro_tokens, self._progress
        if self._cut is None:
            cut = self.model.at(Span(to, to + 1))
            return compute_prefix(cut, tokens, key="", micro_tokens=micro_tokens, store=None, progress=progress)
        cache = self._caches[which]
        return advance_prefix(self._cut, tokens, cache, to=to, micro_tokens=micro_tokens, progress=progress)

    def train(self, cut: SplitModel) -> SpanData:
        return self._data("train", self._work.train, cut)

    def held_out(self, cut: SplitModel | None = None) -> SpanData:
        """Through a span that begins here, or through the base as it is."""
        return self._data("held-out", self._work.held_out, cut)

    def _data(self, which: str, tokens: TokenisedRecords, cut: SplitModel | None) -> SpanData:
        model = cut or self._cut
        if model is None:
            raise RuntimeError("nothing was brought to a layer yet")
        return SpanData(model=model, tokens=tokens, cache=self._caches[which], micro_tokens=Speed().micro_tokens)


@contextmanager
def _learning(cut: SplitModel) -> Iterator[SplitModel]:
    """The span may learn inside; afterwards its weights are as they were, bit for bit, and it is frozen."""
    own = {name: weight.detach().clone() for name, weight in cut.parameters().items()}
    try:
        for weight in cut.parameters().values():
            weight.requires_grad_()
        yield cut
    finally:
        for name, weight in cut.parameters().items():
            weight.requires_grad_(False)  # noqa: FBT003
            weight.grad = None
            weight.copy_(own[name])


def clock_of(device: str) -> Clock:
    """Seconds that other programs do not lengthen: CPU seconds of this process over its threads; a GPU's are wall's.

    A quiet machine takes about as long by its own clock. A GPU is waited for at every step, since its loss is read.
    """
    if device != "cpu":
        return time.perf_counter
    threads = torch.get_num_threads()
    return lambda: time.process_time() / threads


class _Laps:
    """Listens to training and keeps what each step took."""

    def __init__(self, clock: Clock, progress: Progress) -> None:
        self.seconds: list[float] = []
        self._clock, self._progress, self._began = clock, progress, clock()

    def __call__(self, what: str, *, done: int, total: int, note: str = "") -> None:
        if what == "training" and done:
            self.seconds.append(self._clock() - self._began)
        self._progress(what, done=done, total=total, note=note)
        self._began = self._clock()


def _key(span: Span, lr: float) -> str:
    return f"{span} at {lr:g}"


def _perplexity(data: SpanData, progress: Progress) -> dict[str, float] | None:
    """With its interval; None for a span that training has ruined."""
    sums, tokens = loss_sums(data, progress=progress), np.array(data.lengths, dtype=np.int64)
    if not np.isfinite(sums).all():
        return None
    found = perplexity_of(sums[tokens > 0], tokens[tokens > 0])
    return {"value": found.value, "ci_low": found.ci_low, "ci_high": found.ci_high}


def _finite(loss: float) -> float | None:
    return loss if math.isfinite(loss) else None


def _rows(trials: Mapping[str, Mapping[str, Any]], *, base: Base, work: _Work, whole: int) -> Iterator[dict[str, Any]]:
    """One for each span of the folder, at its best rate; `seconds` is of training on `whole` tokens, a pass or more."""
    steps = len(work.batches) * work.epochs * whole / work.tokens
    prefixes = whole / sum(work.train.predictions)
    paper = third_span(base.layers)
    for span in sorted({Span(*trial["span"]) for trial in trials.values()}):
        tried = [trial for trial in trials.values() if Span(*trial["span"]) == span]
        best = min(tried, key=lambda trial: (trial["perplexity"] or {}).get("value", math.inf))
        places, found = base.span_places(span).values(), best["perplexity"] or {}
        yield {
            "span": [span.start, span.stop],
            "perplexity": found.get("value"), "ci_low": found.get("ci_low"), "ci_high": found.get("ci_high"),
            "seconds": prefixes * best["prefix_seconds"] + steps * best["step_seconds"],
            "step_seconds": best["step_seconds"], "prefix_seconds": best["prefix_seconds"],
            "size_bytes": sum(place.end - place.begin for place in places),
            "parameters": sum(math.prod(place.shape) for place in places),
            "peak_mb": best["peak_mb"], "loss_first": best["loss_first"], "loss_last": best["loss_last"],
            "lr": best["lr"],
            "tried": [{"lr": one["lr"], "perplexity": (one["perplexity"] or {}).get("value")} for one in tried],
            "paper": span == paper,
        }  # fmt: skip
