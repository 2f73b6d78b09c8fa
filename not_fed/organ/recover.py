"""A short healing of a model on public text, after a transplant: a few of its weights learn, all others stay.

What learns is one of three, in the order of how much it costs:

norms: the norms of all layers and the final one, some ten thousand numbers: the scales on which layers talk to each
    other.
neighbours: the layer before and the layer after each place where layers were put in, all their weights.
organ: the layers that were put in themselves: what an insertion with an identity start is made for.

A tenth of the text is held out, by the texts' own digests; a model that reads it worse than before is not written. The
text is public: nothing is clipped, no noise is added, no budget is charged.
"""

from __future__ import annotations

import hashlib
import math
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch
from torch import nn

from not_fed import files
from not_fed.errors import InputError
from not_fed.organ.anatomy import Span
from not_fed.organ.checkpoint import Base, Place
from not_fed.organ.evaluate import Perplexity, loss_sums, perplexity_of
from not_fed.organ.prefix import TokenisedRecords, compute_prefix, tokenise
from not_fed.organ.recovery_record import last_put_in, record_recovery
from not_fed.organ.split import SplitModel, StoredOtherwise, load_split, load_tokenizer
from not_fed.organ.steps import BETAS, PlainSteps, SpanData, falling_rate, plan_batches, take_all
from not_fed.organ.train import DTYPES, NothingToLearn, Speed, as_bytes, require_finite, require_trainable
from not_fed.organ.transplant import write_copy
from not_fed.organ.transplant.copying import check_unchanged, state_of
from not_fed.progress import Progress, silent

What = Literal["norms", "neighbours", "organ"]
HELD_OUT_TOKENS = 1 << 16  # the interval is a few per cent wide then; more would only take time
_NORM = re.compile(r"norm|^ln_")  # of one piece of a tensor's name: input_layernorm, q_norm, ln_1, ln_f


class NothingToRecover(InputError):
    """There is no layer of the wanted kind in this model."""

    code = "nothing-to-recover"


class RecoveredWorse(InputError):
    """After the recovery the model reads the held-out text worse than before; nothing was written."""

    code = "recovered-worse"


@dataclass(frozen=True, slots=True, kw_only=True)
class RecoverySettings:
    """All that a recovery depends on, besides the model and the text.

    Attributes:
        what: which weights learn, see this module.
        layers: where layers were put in; empty asks the model's own record of its last transplant.
        lr: peak learning rate of AdamW, after warm-up; falls linearly to zero.
        steps: at most so many.
        max_seconds: at most so long in steps, whichever ends first; loading, frozen prefix and both measurements are
            not counted. The rate falls with the clock then, so that it ends at zero either way.
    """

    what: What = "norms"
    layers: tuple[Span, ...] = ()
    lr: float = 2e-3
    steps: int = 64
    max_seconds: float = math.inf
    batch_tokens: int = 1024
    max_tokens: int = 512
    warmup: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        for name, value, right, expected in (
            ("what", self.what, self.what in get_args(What), " or ".join(get_args(What))),
            ("layers", self.layers, not self.layers or self.what != "norms", "none: norms are those of all layers"),
            ("lr", self.lr, 0 < self.lr < math.inf, "a positive number"),
            ("steps", self.steps, 1 <= self.steps <= 100_000, "1 to 100,000"),
            ("max_seconds", self.max_seconds, self.max_seconds > 0, "a positive number"),
            ("batch_tokens", self.batch_tokens, self.batch_tokens >= 1, "at least 1"),
            ("max_tokens", self.max_tokens, self.max_tokens >= 2, "at least 2"),
            ("seed", self.seed, 0 <= self.seed < 1 << 63, "0 to 2^63 - 1"),
        ):
            if not right:
                raise InputError(
                    where=f"recovery setting {name}", expected=expected, got=str(value), hint="correct the setting"
                )


@dataclass(frozen=True, kw_only=True)
class RecoveryPlan:
    """What would learn, on which texts; decided from headers and texts alone, no weight was loaded.

    Attributes:
        base: the model.
        tensors: names in the checkpoint of all that learns.
        cover: the layers from the first that learns to the last; below it is the frozen prefix.
        learnt: the texts; those that no step takes are empty.
        batches: which of them each step takes.
        held_out: the texts that are measured and never learnt.
        states: size and modification time of the model's weight files.
    """

    base: Base
    settings: RecoverySettings
    tensors: tuple[str, ...]
    cover: Span
    learnt: TokenisedRecords
    batches: Sequence[Sequence[int]]
    held_out: TokenisedRecords
    states: Mapping[Path, tuple[int, int]]

    @property
    def parameters(self) -> int:
        """How many numbers learn."""
        return sum(math.prod(self.base.places[name].shape) for name in self.tensors)


@dataclass(frozen=True, slots=True, kw_only=True)
class Recovered:
    """What a recovery gave; `before` and `after` are of the held-out texts, `after` of the weights as written."""

    out: Path
    steps: int
    tokens: int
    before: Perplexity
    after: Perplexity
    seconds: float

    @property
    def worse(self) -> bool:
        """Whether the model reads the held-out texts worse than before, or what it reads is no number."""
        return math.isnan(self.after.value) or self.after.value > self.before.value


def plan_recovery(base: Base, *, texts: Sequence[str], settings: RecoverySettings) -> RecoveryPlan:
    """Settle which weights learn and which texts are held out.

    Raises:
        NothingToRecover: no layers are named and no transplant is on record, or they have no neighbours.
        CannotTrain: the weights' number format. NothingToLearn: too few texts. SpanOutside.
    Proved by: tests/unit/test_recover.py::test_the_held_out_tenth_depends_on_the_texts_alone
    """
    states = {path: state_of(path) for path in {place.file for place in base.places.values()}}
    layers = _learning(base, settings)
    cover = Span(0, base.layers) if settings.what == "norms" else Span(layers[0], layers[-1] + 1)
    tensors = _norms(base) if settings.what == "norms" else _of_layers(base, layers)
    require_trainable((base.places[name] for name in tensors), where=str(base.folder))
    tokens = tokenise(load_tokenizer(base), texts, max_tokens=settings.max_tokens)
    held_out = hold_out(texts, tokens.predictions)
    batches = _batches(tokens.predictions, held_out, settings)
    used = set[int]().union(*batches)
    return RecoveryPlan(
        base=base,
        settings=settings,
        tensors=tuple(sorted(tensors)),
        cover=cover,
        learnt=TokenisedRecords(tuple(row if i in used else row[:0] for i, row in enumerate(tokens.rows))),
        batches=batches,
        held_out=TokenisedRecords(tuple(tokens.rows[i] for i in held_out)),
        states=states,
    )


def recover(
    plan: RecoveryPlan,
    *,
    out: Path,
    keep_worse: bool = False,
    speed: Speed = Speed(),  # noqa: B008  frozen
    progress: Progress = silent,
) -> Recovered:
    """Do what the plan says, and write the model that comes out, with what was replaced beside it for `undo`.

    Args:
        out: the new model folder; appears whole or not at all. An interrupted recovery leaves nothing and starts over.
        keep_worse: write it even if it reads the held-out texts worse than before.
    Raises:
        RecoveredWorse, Diverged, OutputExists; ChangedSincePlan: the model's files changed meanwhile.
    Guarantees:
        every tensor that is not in the plan is bit-identical to the model's; every tensor keeps its number format.
    Proved by: tests/unit/test_recover.py::test_a_recovery_touches_what_it_says_and_undo_gives_the_model_back
    """
    started = time.monotonic()
    files.require_free(out)
    check_unchanged(plan.states)
    model = load_split(plan.base, span=plan.cover, device=speed.device)
    data = _meet(model, plan.learnt, speed=speed, progress=progress)
    held_out = _meet(model, plan.held_out, speed=speed, progress=progress)
    learning = _parameters(model, plan)
    before = _measure(held_out, progress)
    done = _learn(data, plan, learning, progress=progress)
    require_finite(learning)
    with torch.no_grad():
        for name, parameter in learning.items():  # measured as it is written
            parameter.copy_(parameter.to(DTYPES[plan.base.places[name].dtype]))
    recovered = Recovered(
        out=out,
        steps=done,
        tokens=sum(data.lengths[i] for batch in plan.batches[:done] for i in batch),
        before=before,
        after=_measure(held_out, progress),
        seconds=time.monotonic() - started,
    )
    if recovered.worse and not keep_worse:
        raise RecoveredWorse(
            where=f"{before.records:,} held-out texts",
            expected=f"a perplexity of at most {before.value:.2f}, as before the recovery",
            got=f"{recovered.after.value:.2f} after {done:,} steps",
            hint="use a lower --lr, more text, or another --what; --keep-worse writes it all the same",
        )
    _write(plan, learning, recovered, progress)
    return recovered


def hold_out(texts: Sequence[str], lengths: Sequence[int]) -> tuple[int, ...]:
    """Which texts are measured and never learnt: the tenth with the smallest digests, and every copy of one of them.

    Args:
        lengths: predicted tokens of each text; those without any are neither learnt nor measured.
    Raises:
        NothingToLearn: fewer than two different texts.
    """
    digests = {i: hashlib.sha256(text.encode()).digest() for i, text in enumerate(texts) if lengths[i]}
    sizes = {digest: lengths[i] for i, digest in digests.items()}
    if len(sizes) < 2:
        raise NothingToLearn(
            where="public text", expected="two different records of two tokens or more", got=f"{len(sizes)}",
            hint="check --text-field; a few hundred records are a fair start",
        )  # fmt: skip
    held: set[bytes] = set()
    tokens = 0
    for digest in sorted(sizes)[: max(1, len(sizes) // 10)]:
        if tokens < HELD_OUT_TOKENS:
            held.add(digest)
            tokens += sizes[digest]
    return tuple(i for i, digest in digests.items() if digest in held)


def _learning(base: Base, settings: RecoverySettings) -> list[int]:
    """The layers that learn, in order; none where it is the norms."""
    if settings.what == "norms":
        return []
    spans = settings.layers or tuple(last_put_in(base.folder))
    for span in spans:
        span.check_inside(base.layers, where=str(base.folder))
    inside = {layer for span in spans for layer in range(span.start, span.stop)}
    beside = {layer for span in spans for layer in (span.start - 1, span.stop) if 0 <= layer < base.layers} - inside
    found = sorted(inside if settings.what == "organ" else beside)
    if not found:
        raise NothingToRecover(
            where=str(base.folder), expected="layers beside those that were put in" if spans else
            "--layers, or the record of a transplant in the model's folder", got="none",
            hint="name the layers that were put in with --layers 20:23; or heal the norms, --what norms",
        )  # fmt: skip
    return found


def _norms(base: Base) -> list[str]:
    """The weights and biases of the norms in the layers and beside them, by their names."""
    inside, beside = base.span_names(Span(0, base.layers)).values(), _beside_layers(base).values()
    found = [name for name in (*inside, *beside) if len(base.places[name].shape) == 1 and _names_a_norm(name)]
    if not found:
        raise NothingToRecover(
            where=str(base.folder), expected="norms that have weights", got="none", hint="heal layers, with --what"
        )
    return found


def _names_a_norm(tensor: str) -> bool:
    return any(_NORM.search(piece) for piece in tensor.split("."))


def _beside_layers(base: Base) -> dict[str, str]:
    """As `SplitModel.beside_layers`, but to names in the checkpoint."""
    organ, first = next(iter(base.span_names(Span(0, 1)).items()))
    layers = first.removesuffix(organ.removeprefix(f"{base.family.list_name}."))  # model.layers.
    path = layers.removesuffix(f"{base.family.list_name}.")  # model.
    return {
        name.removeprefix(path): name for name in base.places if name.startswith(path) and not name.startswith(layers)
    }


def _of_layers(base: Base, layers: Sequence[int]) -> list[str]:
    return [name for layer in layers for name in base.span_names(Span(layer, layer + 1)).values()]


def _batches(lengths: Sequence[int], held_out: Sequence[int], settings: RecoverySettings) -> list[list[int]]:
    """The texts of each step, over as many passes as the steps need."""
    kept = set(held_out)
    learnt = [0 if i in kept else length for i, length in enumerate(lengths)]
    pass_ = partial(plan_batches, learnt, batch_tokens=settings.batch_tokens, seed=settings.seed)
    return pass_(epochs=1 + settings.steps // len(pass_(epochs=1)))[: settings.steps]


def _meet(model: SplitModel, tokens: TokenisedRecords, *, speed: Speed, progress: Progress) -> SpanData:
    """Texts as the layers that learn meet them; `key` names nothing, for nothing is kept."""
    cache = compute_prefix(model, tokens, key="", micro_tokens=speed.micro_tokens, store=None, progress=progress)
    return SpanData(model=model, tokens=tokens, cache=cache, micro_tokens=speed.micro_tokens)


def _parameters(model: SplitModel, plan: RecoveryPlan) -> dict[str, nn.Parameter]:
    """What learns, by its name in the checkpoint, ready to learn."""
    whole = Span(0, plan.base.layers)
    named = {**plan.base.span_names(whole), **_beside_layers(plan.base)}
    loaded = {**model.parameters(whole), **model.beside_layers()}
    found = {named[name]: parameter for name, parameter in loaded.items() if name in named}
    for name in plan.tensors:
        if name not in found or found[name].shape != plan.base.places[name].shape:
            raise StoredOtherwise(
                where=f"{plan.base.folder}, tensor {name[:100]}", expected="a parameter of that name and shape",
                got="none in the loaded model", hint="save the model again with transformers, save_pretrained",
            )  # fmt: skip
        found[name].requires_grad_()
    return {name: found[name] for name in plan.tensors}


def _measure(held_out: SpanData, progress: Progress) -> Perplexity:
    started = time.monotonic()
    sums, tokens = loss_sums(held_out, progress=progress), np.array(held_out.lengths, dtype=np.int64)
    return perplexity_of(sums, tokens, seconds=time.monotonic() - started)


def _learn(data: SpanData, plan: RecoveryPlan, learning: Mapping[str, nn.Parameter], *, progress: Progress) -> int:
    """Take the steps; returns how many there was time for."""
    settings, total = plan.settings, len(plan.batches)
    steps = PlainSteps(data, batches=plan.batches, epochs=1, save_every_s=math.inf, parameters=learning)
    optimiser = torch.optim.AdamW(learning.values(), lr=settings.lr, betas=BETAS, weight_decay=0.0, fused=True)
    falling = falling_rate(settings.lr, steps=total, warmup=settings.warmup)
    started = time.monotonic()

    def spent() -> float:
        return (time.monotonic() - started) / settings.max_seconds

    take_all(
        steps,
        parameters=learning,
        optimiser=optimiser,
        rate=lambda step: falling(min(max(step, int(spent() * total)), total - 1)),
        resume=None,
        progress=progress,
        stop=lambda: spent() >= 1,
    )
    return len(steps.curve)


def _blocks(parameter: nn.Parameter, place: Place) -> Iterator[bytes]:
    yield as_bytes(parameter, place)


def _write(plan: RecoveryPlan, learning: Mapping[str, nn.Parameter], recovered: Recovered, progress: Progress) -> None:
    places = plan.base.places
    with files.new_folder(recovered.out) as part:
        replaced = {name: partial(_blocks, learning[name], places[name]) for name in plan.tensors}
        write_copy(plan.base, part, replaced=replaced, progress=progress)
        facts = {
            "what": plan.settings.what, "lr": plan.settings.lr, "steps": recovered.steps, "tokens": recovered.tokens,
            "before": recovered.before.value, "after": recovered.after.value, "held_out": recovered.before.records,
        }  # fmt: skip
        record_recovery(plan.base, part, replaced=plan.tensors, facts=facts)
        check_unchanged(plan.states)
