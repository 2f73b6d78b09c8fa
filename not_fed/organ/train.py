"""Train a span: prefix and suffix frozen, only the span learns, the prefix's activations computed once.

In place, or stand-alone as in the paper: between the embedding and the final norm, all other layers left out. What is
trained so has never met the layers it goes back between: such a transplant ruins a model until something heals it.

With a DP plan every step is DP-SGD (`private_steps`): units drawn by Poisson sampling, one clip a unit, noise, a
constant divisor; and what it costs is reserved in a ledger before the first gradient. Without one it is plain AdamW on
token-weighted batches (`steps`), repeatable from its seed on one machine.
"""

from __future__ import annotations

import hashlib
import math
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from not_fed import canonical, files
from not_fed.errors import InputError
from not_fed.organ.anatomy import Span
from not_fed.organ.body import digests, read_body
from not_fed.organ.charging import Charge, NobodyPays, reserve
from not_fed.organ.checkpoint import Base, Place
from not_fed.organ.data import Records
from not_fed.organ.extract import describe
from not_fed.organ.factors import add_factors, merge_factors, require_factors
from not_fed.organ.fit import check_fit
from not_fed.organ.organ import Manifest, OrganInfo, read_organ
from not_fed.organ.prefix import PrefixStore, compute_prefix, prefix_key, tokenise
from not_fed.organ.private_steps import PrivateSteps
from not_fed.organ.resume import Resume
from not_fed.organ.split import SplitModel, load_split, load_tokenizer
from not_fed.organ.steps import BETAS, PlainSteps, SpanData, falling_rate, plan_batches, take_all
from not_fed.organ.units import require_unit
from not_fed.organ.writing import write_safetensors
from not_fed.privacy.accounting import DpPlan
from not_fed.privacy.engine.engine import Wanted, choose_engine
from not_fed.privacy.randomness import OperatingSystem, RandomSource
from not_fed.privacy.release import require_known
from not_fed.progress import Progress, silent

DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}

MAX_RANK = 4096

Precision = Literal["float32", "bfloat16"]
Mode = Literal["in-place", "stand-alone"]


class NothingToLearn(InputError):
    """No record has two tokens, so there is nothing to predict."""

    code = "nothing-to-learn"


class BodyBesideAlone(InputError):
    """Organs of other layers cannot be beside a span that is trained stand-alone: it has no other layers."""

    code = "body-beside-alone"


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
        mode: in place, all other layers around it frozen; or stand-alone, they are left out.
        lr: peak learning rate of AdamW, after warm-up; falls linearly to zero.
        epochs: passes over the records; not used with a DP plan, whose steps are fixed.
        batch_tokens: predicted tokens in one optimiser step; not used with a DP plan.
        max_tokens: longer records are cut.
        warmup: share of the steps.
        seed: order of the records; DP sampling and noise never use it.
        precision: of the arithmetic in span and suffix; weights are float32 all the while. In bfloat16 rounding lets a
            unit's gradient vary with its company in a micro-batch, by up to 0.5 % of the clip (float32: 5e-7), which
            no epsilon accounts for: choose it for a private run knowingly; the manifest names it.
        dp: the plan of a private run, or None.
        rank: 0 lets all weights of the span learn; otherwise factors of that rank, whose product is added to them
            (`not_fed.organ.factors`).
        proximal: mu of FedProx: holds the span near its start; costs no epsilon. See `not_fed.organ.steps.Proximal`.
        engine: how a private run clips: "auto", or by name; see `not_fed.privacy.engine.engine`.
        declared_units: by what the plan's releases are divided: a public number, never counted from the records.
    """

    span: Span
    mode: Mode = "in-place"
    lr: float = 2e-3
    epochs: int = 1
    batch_tokens: int = 1024
    max_tokens: int = 512
    warmup: float = 0.1
    weight_decay: float = 0.01
    seed: int = 0
    precision: Precision = "float32"
    rank: int = 0
    proximal: float = 0.0
    dp: DpPlan | None = None
    engine: Wanted = "auto"
    declared_units: float | None = None

    def __post_init__(self) -> None:
        releases = () if self.dp is None else self.dp.releases
        require_known(releases)
        checks = [
            ("mode", self.mode, self.mode in get_args(Mode), " or ".join(get_args(Mode))),
            ("lr", self.lr, 0 < self.lr < math.inf, "a positive number"),
            ("epochs", self.epochs, 1 <= self.epochs <= 10_000, "1 to 10,000"),
            ("batch_tokens", self.batch_tokens, self.batch_tokens >= 1, "at least 1"),
            ("max_tokens", self.max_tokens, self.max_tokens >= 2, "at least 2"),
            ("warmup", self.warmup, 0 <= self.warmup < 1, "0 or more, less than 1"),
            ("weight_decay", self.weight_decay, 0 <= self.weight_decay < math.inf, "0 or more"),
            ("rank", self.rank, 0 <= self.rank <= MAX_RANK, f"0 to {MAX_RANK:,}"),
            ("proximal", self.proximal, 0 <= self.proximal < math.inf, "0 or more"),
            (
                "proximal",
                self.proximal,
                not (self.rank and self.proximal),
                "0 beside a rank: it holds weights, not factors",
            ),
            (
                "declared_units",
                self.declared_units,
                not releases or 1 <= (self.declared_units or 0) < math.inf,
                "a public number of units, at least 1, by which a release is divided",
            ),
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
        save_every_s: seconds between resume points; a private run saves after every step.
    """

    device: str = "cpu"
    micro_tokens: int = 2048
    save_every_s: float = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """What a run gave. Losses and record counts are for the site itself: computed on its records, without noise.

    Attributes:
        loss_curve: a number a step; empty for a private run, whose steps tell nothing about what they drew.
    """

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
        """Mean loss of the first step, in nats; None for a private run."""
        return self.loss_curve[0] if self.loss_curve else None

    @property
    def loss_last(self) -> float | None:
        """Mean loss of the last step, in nats; None for a private run."""
        return self.loss_curve[-1] if self.loss_curve else None


def train(
    base: Base,
    *,
    records: Records | Sequence[str],
    settings: TrainSettings,
    out: Path,
    charge: Charge | None = None,
    init: Path | None = None,
    body: Sequence[Path] = (),
    speed: Speed = Speed(),
    progress: Progress = silent,
    prefix_store: PrefixStore | None = None,
    warn: Callable[[str], None] = warnings.warn,
    source: RandomSource = OperatingSystem(),  # noqa: B008  has no state
) -> Trained:
    """Train a span on records and write the organ.

    Args:
        records: texts, or texts with the people they are about. With a DP plan a long one is cut, never split.
        out: the organ file; appears whole or not at all. `.NAME.resume` beside it lets an interrupted run go on.
        charge: who pays for a private run; needed with a DP plan.
        init: an organ to start from instead of the base's own span.
        body: organs of other layers, which stay as they are: what is trained learns to work with them; in place only.
        warn: told, in one line, when a private run has to clip in a slower way, or starts from what promises nothing.
        source: randomness of a DP run; anything but the operating system is for tests.
    Raises:
        FitError: `init` or the body does not fit the base. NothingToLearn, BodyBesideAlone, Diverged, OutputExists.
        NobodyPays, NoPeople, UnitUnderstates, BudgetSpent: a private run that may not start; nothing was spent.
        AuditAlarm: a private run did not do what it claims; the reservation stays spent.
    Guarantees:
        without DP: same base, start, records, settings and seed give the same organ on one machine, interrupted or not.
        with DP: the whole plan is on disk in the ledger before the first gradient is computed, and each step before its
        own; nothing about a drawn batch is returned, shown or stored.
    Proved by: tests/unit/test_private_steps.py::test_no_gradient_is_computed_before_the_plan_is_reserved
    """
    started = time.monotonic()
    whose = records if isinstance(records, Records) else Records(tuple(records))
    _require_ready(whose, settings, charge=charge, body=body, out=out)
    require_trainable(base.span_places(settings.span).values(), where=str(base.folder))
    origin = describe(base, settings.span)  # what cannot be said of an organ is found out before it is trained
    start, others = _start(init, base=base, at=settings.span.start), read_body(body, base=base, beside=settings.span)
    before = others if start is None else (start, *others)
    if settings.dp is not None and any(_promises_nothing(organ) for organ in before):
        warn("the start was trained without privacy: epsilon says nothing about the records that it has seen")
    data, learning = _prepare(
        base, whose, settings, start=start, body=others, speed=speed, progress=progress, store=prefix_store
    )
    prefix_seconds = time.monotonic() - started
    resume = Resume.beside(out, run=_fingerprint(base, settings, data, whose, start, others))
    steps: PlainSteps | PrivateSteps
    if (plan := settings.dp) is None or charge is None:
        steps = _plain_steps(data, learning, settings, save_every_s=speed.save_every_s)
    else:
        engine = choose_engine(data.model.span_layers, wanted=settings.engine, warn=warn)
        steps = PrivateSteps.begin(
            data,
            records=whose,
            plan=plan,
            declared_units=settings.declared_units,
            engine=engine,
            goes_on=bool(before),
            proximal=settings.proximal,
            reserve=lambda: reserve(charge, whose, plan=plan, resume=resume),
            source=source,
        )
    take_steps(steps, learning, settings, resume=resume, progress=progress)
    if settings.rank:
        merge_factors(data.model)
    training = {"mode": settings.mode, "lr": settings.lr, "precision": settings.precision, **steps.summary()}
    if settings.rank:
        training["rank"] = settings.rank
    if settings.proximal:
        training["proximal"] = settings.proximal
    if others:
        training["body"] = digests(others)
    manifest = replace(origin, training=training, parents=() if start is None else (start.sha256,))
    organ = _write(data.model, manifest=manifest, base=base, out=out)
    resume.forget()
    steps.settle()
    return Trained(
        organ=organ,
        loss_curve=steps.curve if isinstance(steps, PlainSteps) else [],
        records=len(whose.texts),
        steps=steps.total,
        tokens=steps.tokens,
        seconds=time.monotonic() - started,
        prefix_seconds=prefix_seconds,
        dp=settings.dp,
    )


def require_trainable(places: Iterable[Place], *, where: str) -> None:
    """Raise CannotTrain where weights are in a number format that is not written back."""
    for place in places:
        if place.dtype not in DTYPES:
            raise CannotTrain(
                where=where, expected=" or ".join(DTYPES), got=place.dtype,
                hint="save the model in bfloat16 first, with transformers",
            )  # fmt: skip


def _require_ready(
    records: Records, settings: TrainSettings, *, charge: Charge | None, body: Sequence[Path], out: Path
) -> None:
    """What would fail later fails before anything is read, computed or spent."""
    files.require_free(out)
    require_factors(settings.rank)
    if body and settings.mode == "stand-alone":
        raise BodyBesideAlone(
            where="body", expected="no organ of other layers, which are left out in stand-alone training",
            got=f"{len(body)}", hint="leave --body out, or train in place",
        )  # fmt: skip
    if settings.dp is None:
        return
    if charge is None:
        raise NobodyPays(
            where="private training",
            expected="who pays for it: a ledger, or the word that the records are public",
            got="neither",
            hint="pass charge=ToLedger(...); nothing was trained",
        )
    require_unit(records, plan=settings.dp)


def _start(init: Path | None, *, base: Base, at: int) -> OrganInfo | None:
    start = read_organ(init) if init is not None else None
    if start is not None:
        check_fit(start, base=base, at=at)
    return start


def _promises_nothing(start: OrganInfo) -> bool:
    """Whether it was trained, by one author and without a claim; what a mean's parents claim is their own matter."""
    how = start.manifest.training or {}
    trained = how.get("trained", how.get("mode"))  # of an adapted organ, how its parent was
    return trained in get_args(Mode) and not how.get("dp")


def _prepare(
    base: Base,
    records: Records,
    settings: TrainSettings,
    *,
    start: OrganInfo | None,
    body: Sequence[OrganInfo],
    speed: Speed,
    progress: Progress,
    store: PrefixStore | None,
) -> tuple[SpanData, Mapping[str, nn.Parameter]]:
    """Tokens, the model with its span ready to learn, the prefix's activations of all records; and what learns."""
    tokens = tokenise(load_tokenizer(base), records.texts, max_tokens=settings.max_tokens)
    if not any(tokens.predictions):
        raise NothingToLearn(
            where="training data",
            expected="a record of two tokens or more",
            got=f"{len(records.texts):,} shorter ones",
            hint="check --text-field",
        )
    alone = settings.mode == "stand-alone"
    model = load_split(base, span=settings.span, device=speed.device, body=body, alone=alone)
    if start is not None:
        model.load_organ(start.path)
    key = prefix_key(base, span=settings.span, data=tokens, body=body, alone=alone)
    micro_tokens = speed.micro_tokens
    cache = compute_prefix(model, tokens, key=key, micro_tokens=micro_tokens, store=store, progress=progress)
    if settings.rank:
        learning = add_factors(model, rank=settings.rank, seed=settings.seed)
    else:
        learning = model.parameters()
        for parameter in learning.values():
            parameter.requires_grad_()
    bfloat16 = settings.precision == "bfloat16"
    data = SpanData(model=model, tokens=tokens, cache=cache, micro_tokens=micro_tokens, bfloat16=bfloat16)
    return data, learning


def _plain_steps(
    data: SpanData, learning: Mapping[str, nn.Parameter], settings: TrainSettings, *, save_every_s: float
) -> PlainSteps:
    batches = plan_batches(data.lengths, epochs=settings.epochs, batch_tokens=settings.batch_tokens, seed=settings.seed)
    return PlainSteps(
        data, batches=batches, epochs=settings.epochs, save_every_s=save_every_s, proximal=settings.proximal,
        parameters=learning,
    )  # fmt: skip


def take_steps(
    steps: PlainSteps | PrivateSteps,
    parameters: Mapping[str, nn.Parameter],
    settings: TrainSettings,
    *,
    resume: Resume | None,
    progress: Progress,
) -> None:
    """Train the parameters as the settings say: AdamW, weight decay without DP alone, the rate up and down again."""
    decay = 0.0 if settings.dp else settings.weight_decay
    optimiser = torch.optim.AdamW(parameters.values(), lr=settings.lr, betas=BETAS, weight_decay=decay, fused=True)
    rate = falling_rate(settings.lr, steps=steps.total, warmup=settings.warmup)
    take_all(steps, parameters=parameters, optimiser=optimiser, rate=rate, resume=resume, progress=progress)


def _fingerprint(
    base: Base,
    settings: TrainSettings,
    data: SpanData,
    records: Records,
    start: OrganInfo | None,
    body: Sequence[OrganInfo],
) -> str:
    """Names the run inside one machine; never leaves it."""
    facts = {
        **asdict(settings),
        "base": base.sha256,
        "tokens": data.tokens.digest(),
        "people": list(records.people or ()),
        "init": start.sha256 if start else None,
        "body": digests(body),
    }
    return hashlib.sha256(canonical.dumps(facts)).hexdigest()


def _write(model: SplitModel, *, manifest: Manifest, base: Base, out: Path) -> OrganInfo:
    places = base.span_places(manifest.span)
    parameters = model.parameters()
    shapes = {name: (place.dtype, place.shape, place.end - place.begin) for name, place in places.items()}
    require_finite(parameters)

    def blocks(name: str) -> Iterator[bytes]:
        yield as_bytes(parameters[name], places[name])

    write_safetensors(out, shapes, metadata=manifest.as_metadata(), blocks=blocks)
    return read_organ(out)


def require_finite(parameters: Mapping[str, nn.Parameter]) -> None:
    """Raise Diverged where training left a number that is none."""
    for name, parameter in parameters.items():
        if not bool(parameter.isfinite().all()):
            raise Diverged(
                where=f"tensor {name} after training",
                expected="finite numbers",
                got="NaN or infinity",
                hint="use a lower --lr",
            )


def as_bytes(parameter: Tensor, place: Place) -> bytes:
    """A parameter in the number format and shape of its place in a checkpoint."""
    tensor = parameter.detach().to("cpu", DTYPES[place.dtype]).reshape(place.shape).contiguous()
    return tensor.view(torch.uint8).numpy().tobytes()
