"""Train a span in place: prefix and suffix frozen, only the span learns, the prefix's activations computed once.

With a DP plan every step is DP-SGD as `not_fed.privacy` does it: Poisson sample, clip per record, noise, constant
divisor. Without one it is plain AdamW on token-weighted batches, repeatable from its seed on one machine.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from not_fed import canonical
from not_fed.errors import InputError
from not_fed.organ.anatomy import Span
from not_fed.organ.checkpoint import Base
from not_fed.organ.extract import describe
from not_fed.organ.fit import check_fit
from not_fed.organ.layout import Layout, packable, stackable
from not_fed.organ.organ import Manifest, OrganInfo, read_organ
from not_fed.organ.prefix import PrefixCache, PrefixStore, TokenisedRecords, compute_prefix, tokenise
from not_fed.organ.resume import Resume
from not_fed.organ.split import SplitModel, load_split, load_tokenizer
from not_fed.organ.writing import write_safetensors
from not_fed.privacy.accounting import DpPlan
from not_fed.privacy.dp_sgd import noisy_gradient
from not_fed.privacy.engines import Engine, check_against_autograd, choose_engine
from not_fed.privacy.randomness import OperatingSystem, RandomSource
from not_fed.privacy.sampling import poisson_subset
from not_fed.progress import Progress, silent

GRADIENT_NORM = 1.0  # non-private steps: the usual guard against a bad batch
BETAS = (0.9, 0.98)
DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


class NothingToLearn(InputError):
    """No record has two tokens, so there is nothing to predict."""

    code = "nothing-to-learn"


class Diverged(InputError):
    """Training ran into NaN or infinity; no organ was written."""

    code = "diverged"


class CannotTrain(InputError):
    """Weights of this number format cannot be trained."""

    code = "untrainable-dtype"


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainSettings:
    """All that the organ depends on, besides base, start and records.

    Attributes:
        span: the layers that learn.
        lr: peak learning rate of AdamW, after warm-up; falls linearly to zero.
        epochs: passes over the records; not used with a DP plan, whose steps are fixed.
        batch_tokens: predicted tokens in one optimiser step; not used with a DP plan.
        max_tokens: longer records are cut.
        warmup: share of the steps.
        seed: order of the records; DP sampling and noise never use it.
        dp: the plan of a private run, or None.
    """

    span: Span
    lr: float = 2e-3
    epochs: int = 1
    batch_tokens: int = 1024
    max_tokens: int = 512
    warmup: float = 0.1
    weight_decay: float = 0.01
    seed: int = 0
    dp: DpPlan | None = None

    def __post_init__(self) -> None:
        checks = [
            ("lr", self.lr, 0 < self.lr < math.inf, "a positive number"),
            ("epochs", self.epochs, 1 <= self.epochs <= 10_000, "1 to 10,000"),
            ("batch_tokens", self.batch_tokens, self.batch_tokens >= 1, "at least 1"),
            ("max_tokens", self.max_tokens, self.max_tokens >= 2, "at least 2"),
            ("warmup", self.warmup, 0 <= self.warmup < 1, "0 or more, less than 1"),
            ("weight_decay", self.weight_decay, 0 <= self.weight_decay < math.inf, "0 or more"),
        ]
        for name, value, right, expected in checks:
            if not right:
                raise InputError(
                    where=f"training setting {name}", expected=expected, got=str(value), hint="correct the setting"
                )


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """All that cannot change the result beyond rounding.

    Attributes:
        micro_tokens: padded positions in one forward; memory grows with it.
        save_every_s: seconds between resume points.
    """

    device: str = "cpu"
    micro_tokens: int = 2048
    save_every_s: float = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """What a run gave. Losses and record counts are for the site itself: computed on its records, without noise."""

    organ: OrganInfo
    loss_curve: list[float] = field(repr=False)
    records: int
    steps: int
    tokens: int
    seconds: float
    prefix_seconds: float
    dp: DpPlan | None

    @property
    def loss_first(self) -> float | None:
        """Mean loss of the first step that saw a token, in nats."""
        return next((loss for loss in self.loss_curve if math.isfinite(loss)), None)

    @property
    def loss_last(self) -> float | None:
        """Mean loss of the last step that saw a token, in nats."""
        return next((loss for loss in reversed(self.loss_curve) if math.isfinite(loss)), None)


def train(
    base: Base,
    *,
    records: Sequence[str],
    settings: TrainSettings,
    out: Path,
    init: Path | None = None,
    speed: Speed = Speed(),
    progress: Progress = silent,
    prefix_store: PrefixStore | None = None,
    source: RandomSource = OperatingSystem(),  # noqa: B008  has no state
) -> Trained:
    """Train a span on records and write the organ.

    Args:
        records: texts; with a DP plan each is one unit of privacy and is cut, never split.
        out: the organ file; appears whole or not at all. `.NAME.resume` beside it lets an interrupted run go on.
        init: an organ to start from instead of the base's own span.
        source: randomness of a DP run; anything but the operating system is for tests.
    Raises:
        FitError: `init` does not fit the base. NothingToLearn, Diverged, OutputExists.
    Guarantees:
        without DP: same base, start, records, settings and seed give the same organ on one machine, interrupted or not.
    """
    started = time.monotonic()
    start = read_organ(init) if init is not None else None
    if start is not None:
        check_fit(start, base=base, at=settings.span.start)
    data = tokenise(load_tokenizer(base), records, max_tokens=settings.max_tokens)
    if not any(data.predictions):
        raise NothingToLearn(
            where="training data",
            expected="a record of two tokens or more",
            got=f"{len(records):,} shorter ones",
            hint="check --text-field",
        )
    model = load_split(base, span=settings.span, device=speed.device)
    if start is not None:
        model.load_organ(start.path)
    key = hashlib.sha256(canonical.dumps([base.sha256, settings.span.start, data.digest()])).hexdigest()
    cache = compute_prefix(model, data, key=key, micro_tokens=speed.micro_tokens, store=prefix_store, progress=progress)
    prefix_seconds = time.monotonic() - started
    manifest = describe(base, settings.span)
    resume = Resume.beside(out, run=_fingerprint(settings, key, manifest, start))
    run = _Run(model=model, data=data, cache=cache, settings=settings, speed=speed, progress=progress, resume=resume)
    steps = run.private_steps(settings.dp, source) if settings.dp is not None else run.plain_steps()
    curve = run.all(steps)
    organ = _write(
        model, manifest=_trained_manifest(manifest, settings, steps=len(curve), start=start), base=base, out=out
    )
    resume.forget()
    return Trained(
        organ=organ,
        loss_curve=curve,
        records=len(records),
        steps=len(curve),
        tokens=_tokens(settings, data),
        seconds=time.monotonic() - started,
        prefix_seconds=prefix_seconds,
        dp=settings.dp,
    )


def plan_batches(lengths: Sequence[int], *, epochs: int, batch_tokens: int, seed: int) -> list[list[int]]:
    """Which records each step takes: a fresh order every epoch, cut when a batch has its tokens.

    >>> [len(batch) for batch in plan_batches([3] * 10, epochs=1, batch_tokens=12, seed=0)]
    [4, 4, 2]
    """
    order, batches = np.random.default_rng(seed), []
    for _ in range(epochs):
        batch: list[int] = []
        for index in order.permutation([i for i, length in enumerate(lengths) if length]):
            batch.append(int(index))
            if sum(lengths[i] for i in batch) >= batch_tokens:
                batches.append(batch)
                batch = []
        if batch:
            batches.append(batch)
    return batches


def _tokens(settings: TrainSettings, data: TokenisedRecords) -> int:
    """Predicted tokens over the run; with DP their expectation, since the real count would tell the samples' sizes."""
    passes = settings.epochs if settings.dp is None else settings.dp.sample_rate * settings.dp.steps
    return round(passes * sum(data.predictions))


Step = Callable[[], float]


class _Run:
    """One training run: micro-batches through the split model, AdamW, resume points, progress."""

    def __init__(
        self,
        *,
        model: SplitModel,
        data: TokenisedRecords,
        cache: PrefixCache,
        settings: TrainSettings,
        speed: Speed,
        progress: Progress,
        resume: Resume,
    ) -> None:
        self.model, self.data, self.cache, self.settings, self.speed = model, data, cache, settings, speed
        self.progress, self.resume = progress, resume
        self.lengths = data.predictions
        self.parameters = model.parameters()
        decay = 0.0 if settings.dp else settings.weight_decay
        self.optimiser = torch.optim.AdamW(
            self.parameters.values(), lr=settings.lr, betas=BETAS, weight_decay=decay, fused=True
        )

    def plain_steps(self) -> list[Step]:
        """Token-weighted AdamW steps in the seed's order."""
        batches = plan_batches(
            self.lengths, epochs=self.settings.epochs, batch_tokens=self.settings.batch_tokens, seed=self.settings.seed
        )
        return [lambda batch=batch: self._plain(batch) for batch in batches]  # type: ignore[misc]

    def private_steps(self, plan: DpPlan, source: RandomSource) -> list[Step]:
        """DP-SGD steps of the plan; the engine is compared with plain autograd on two records first."""
        self._learn()
        engine = choose_engine(self.model.span_layers, warn=lambda line: self.progress(line, done=0, total=1))
        ranked = sorted((i for i, length in enumerate(self.lengths) if length), key=lambda i: self.lengths[i])
        pair = ranked[-1], ranked[len(ranked) // 2]  # of different lengths: a wrong layout would show
        check_against_autograd(engine, losses=lambda which: self._record_losses([pair[i] for i in which]))
        return [lambda: self._private(engine, plan, source) for _ in range(plan.steps)]

    def all(self, steps: Sequence[Step]) -> list[float]:
        """Run the steps that are left, saving resume points on the way; returns every step's mean loss."""
        curve = self.resume.restore(self.parameters, self.optimiser)
        saved, between = time.monotonic(), True
        self.progress("training", done=len(curve), total=len(steps))
        try:
            for number in range(len(curve), len(steps)):
                between = False
                self._schedule(number, len(steps))
                loss = steps[number]()
                self.optimiser.step()
                self.optimiser.zero_grad(set_to_none=True)
                curve.append(loss)
                between = True
                self.progress("training", done=number + 1, total=len(steps), note=f"loss {loss:.3f}")
                if time.monotonic() - saved > self.speed.save_every_s:
                    self.resume.save(self.parameters, self.optimiser, curve)
                    saved = time.monotonic()
        except KeyboardInterrupt:
            if between and curve:
                self.resume.save(self.parameters, self.optimiser, curve)
            raise
        return curve

    def _schedule(self, step: int, steps: int) -> None:
        warm = max(1, round(self.settings.warmup * steps))
        factor = (step + 1) / warm if step < warm else (steps - step) / max(1, steps - warm)
        for group in self.optimiser.param_groups:
            group["lr"] = self.settings.lr * factor

    def _plain(self, batch: Sequence[int]) -> float:
        self._learn()
        total, loss_sum = sum(self.lengths[i] for i in batch), 0.0
        for micro in packable(batch, self.lengths, max_tokens=self.speed.micro_tokens):
            layout = self.model.pack([self.data.inputs(i) for i in micro])
            loss = self._losses(micro, layout, layout.scatter(self.cache.rows(micro))).sum() / total
            loss.backward()  # type: ignore[no-untyped-call]
            loss_sum += float(loss.detach())
        torch.nn.utils.clip_grad_norm_(self.parameters.values(), GRADIENT_NORM)
        return loss_sum

    def _private(self, engine: Engine, plan: DpPlan, source: RandomSource) -> float:
        sample = poisson_subset(len(self.lengths), sample_rate=plan.sample_rate, source=source)
        sums = engine.zero_sums()
        for micro in stackable(sample, self.lengths, max_tokens=self.speed.micro_tokens):
            engine.clip_into(
                sums,
                losses=lambda which, micro=micro: self._record_losses([micro[i] for i in which]),  # type: ignore[misc]
                units=len(micro),
                max_grad_norm=plan.max_grad_norm,
            )
        for name, gradient in noisy_gradient(sums, plan=plan, source=source).items():
            engine.parameters[name].grad = gradient
        return math.nan  # nothing about a sampled batch is shown

    def _record_losses(self, micro: Sequence[int]) -> Tensor:
        """Mean token loss of each record, one a row, from span inputs that require a gradient: (records,)."""
        layout = self.model.stack([self.data.inputs(i) for i in micro])
        losses = self._losses(micro, layout, layout.scatter(self.cache.rows(micro)).requires_grad_())
        return losses.new_zeros(len(micro)).index_add(0, layout.owners(), losses).div(layout.lengths)

    def _losses(self, micro: Sequence[int], layout: Layout, hidden: Tensor) -> Tensor:
        targets = torch.cat([self.data.targets(i) for i in micro]).to(hidden.device)
        return self.model.losses(hidden, layout, targets)

    def _learn(self) -> None:
        for parameter in self.parameters.values():
            parameter.requires_grad_()


def _fingerprint(settings: TrainSettings, key: str, manifest: Manifest, start: OrganInfo | None) -> str:
    facts = {**asdict(settings), "key": key, "base": manifest.base_sha256, "init": start.sha256 if start else None}
    return hashlib.sha256(canonical.dumps(facts)).hexdigest()


def _trained_manifest(manifest: Manifest, settings: TrainSettings, *, steps: int, start: OrganInfo | None) -> Manifest:
    if settings.dp is None:
        how: dict[str, Any] = {
            "mode": "in-place",
            "lr": settings.lr,
            "epochs": settings.epochs,
            "steps": steps,
            "dp": None,
        }
    else:  # nothing that depends on how many records there are
        how = {"mode": "in-place", "lr": settings.lr, "steps": settings.dp.steps, "dp": settings.dp.as_claim()}
    return replace(manifest, training=how, parents=() if start is None else (start.sha256,))


def _write(model: SplitModel, *, manifest: Manifest, base: Base, out: Path) -> OrganInfo:
    places = base.span_places(manifest.span)
    parameters = model.parameters()
    shapes = {name: (place.dtype, place.shape, place.end - place.begin) for name, place in places.items()}
    for name, parameter in parameters.items():
        if not bool(parameter.isfinite().all()):
            raise Diverged(
                where=f"tensor {name} after training",
                expected="finite numbers",
                got="NaN or infinity",
                hint="use a lower --lr",
            )

    def blocks(name: str) -> Iterator[bytes]:
        dtype, shape, _ = shapes[name]
        tensor = parameters[name].detach().to("cpu", DTYPES[dtype]).reshape(shape).contiguous()
        yield tensor.view(torch.uint8).numpy().tobytes()

    write_safetensors(out, shapes, metadata=manifest.as_metadata(), blocks=blocks)
    return read_organ(out)
