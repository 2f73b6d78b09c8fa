"""Fit the maps of an adapted organ on public text, one branch after the other (`adapt` has the equations).

Four streams go through the layers side by side: the donor's without the organ and with it, the recipient's own, and
the recipient's with all that is adapted so far. Both models stay in memory, of the streams one layer at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from not_fed import files
from not_fed.errors import FitError, InputError
from not_fed.organ.adapt import (
    BRANCHES,
    AdaptPlan,
    Branch,
    Layer,
    adapted_reads,
    adapted_writes,
    base_layer,
    organ_layer,
    write_adapted,
)
from not_fed.organ.anatomy import Span
from not_fed.organ.layout import Layout, packable
from not_fed.organ.organ import OrganInfo
from not_fed.organ.prefix import tokenise
from not_fed.organ.split import SplitModel, load_split, load_tokenizer
from not_fed.organ.train import DTYPES
from not_fed.progress import Progress, silent

POSITIONS = 8192
MICRO_TOKENS = 2048
HELD_OUT = 5  # every so-manieth position chooses the ridge and measures the fit
_EXIT: Final = ""  # what leaves the layer itself
RIDGES = (1e-10, 1e-8, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)  # times the mean eigenvalue


class TokenizersDiffer(FitError):
    """The two models cut text into different tokens, so their activations have no pairs."""

    code = "tokenizers-differ"


class TooLittleText(InputError):
    """This public text has fewer positions than the maps have rows."""

    code = "too-little-text"


@dataclass(frozen=True, slots=True, kw_only=True)
class FitSettings:
    """All that the maps depend on, besides the plan and the text.

    Attributes:
        positions: at most so many tokens of the text, of records drawn from all of it.
        max_tokens: longer records are cut.
        carry: how much of the organ's own change the fit aims at; 0 rebuilds what the recipient has there already.
        seed: which records are drawn.
    """

    positions: int = POSITIONS
    max_tokens: int = 512
    carry: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        checks = [
            ("positions", self.positions, 1 <= self.positions <= 1 << 24, "1 to 16,777,216"),
            ("max_tokens", self.max_tokens, self.max_tokens >= 2, "at least 2"),
            ("carry", self.carry, 0 <= self.carry <= 10, "0 to 10"),
            ("seed", self.seed, 0 <= self.seed < 1 << 63, "0 to 2^63 - 1"),
        ]
        for name, value, right, expected in checks:
            if not right:
                raise InputError(
                    where=f"adaptation setting {name}", expected=expected, got=str(value), hint="correct the setting"
                )


@dataclass(frozen=True, slots=True)
class Quality:
    """How well one branch's maps do on positions they were not fitted on: shares, at most 1.

    Attributes:
        read: of the donor's normalised stream, from the recipient's.
        write: of what the branch should add to the recipient's stream, from what the donor's branch gives.
    """

    layer: int
    branch: str
    read: float
    write: float


@dataclass(frozen=True, slots=True)
class Adapted:
    """The organ, and how well its maps fit, branch after branch."""

    organ: OrganInfo
    positions: int
    quality: tuple[Quality, ...]


def paired_tokens(plan: AdaptPlan, *, texts: Sequence[str], settings: FitSettings) -> tuple[Tensor, ...]:
    """The records that the maps are fitted on, as tokens of both models.

    Raises:
        TokenizersDiffer, TooLittleText.
    """
    order = torch.randperm(len(texts), generator=torch.Generator().manual_seed(settings.seed)).tolist()
    tokenizers = [load_tokenizer(base) for base in (plan.donor, plan.recipient)]
    chosen: list[Tensor] = []
    held = 0
    for index in order:
        rows = [tokenise(one, [texts[index]], max_tokens=settings.max_tokens).rows[0] for one in tokenizers]
        if not torch.equal(*rows):
            kinds = [f"{type(one).__name__} of {len(one):,} tokens" for one in tokenizers]
            raise TokenizersDiffer(
                where=f"{plan.donor.folder} and {plan.recipient.folder}",
                expected=f"the same tokens for the same text; the organ's base has a {kinds[0]}",
                got=f"{kinds[1]}, which cuts record {index + 1} of the text otherwise",
                hint="least squares pairs activations token by token; take models that share a tokenizer",
            )
        if len(rows[0]) and (not chosen or held + len(rows[0]) <= settings.positions):
            chosen.append(rows[0])
            held += len(rows[0])
    if held < max(plan.widths):
        raise TooLittleText(
            where="public text", expected=f"at least {max(plan.widths):,} tokens, better ten times as many",
            got=f"{held:,}", hint="give more text, or raise --positions",
        )  # fmt: skip
    return tuple(chosen)


def adapt_by_least_squares(
    plan: AdaptPlan,
    *,
    texts: Sequence[str],
    out: Path,
    settings: FitSettings = FitSettings(),
    device: str = "cpu",
    progress: Progress = silent,
) -> Adapted:
    """Fit the maps and write the organ; `out` appears whole or not at all.

    Args:
        texts: public: what is fitted on them is in the organ, without noise.
    Raises:
        TokenizersDiffer, TooLittleText. NotFinite: as `write_adapted`.
    Guarantees:
        where the models differ by a rotation and a scale of the stream alone, the organ computes what it did before.
    Proved by: tests/unit/test_adapt.py::test_least_squares_finds_a_rotation_and_carries_what_the_organ_has_learnt
    """
    files.require_free(out)
    tokens = paired_tokens(plan, texts=texts, settings=settings)
    donor = _Walker(load_split(plan.donor, span=plan.organ.span, device=device), tokens)
    recipient = _Walker(load_split(plan.recipient, span=plan.at, device=device), tokens)
    done, total = 0, len(plan.at) * len(BRANCHES)
    progress("adapting branches", done=done, total=total)
    streams = _Streams(donor, recipient)
    layers, quality = [], []
    for index in range(len(plan.at)):
        fit = _LayerFit(plan, streams, index, carry=settings.carry)
        for branch in BRANCHES:
            found = fit.adapt(branch)
            quality.append(found)
            done += 1
            progress(
                "adapting branches", done=done, total=total, note=f"read {found.read:.2f}, write {found.write:.2f}"
            )
        layers.append(fit.made)
        fit.leave()
    positions = sum(map(len, tokens))
    how = {"start": "least-squares", "positions": positions, "carry": settings.carry}
    return Adapted(write_adapted(plan, layers, out=out, how=how), positions, tuple(quality))


class _Walker:
    """A model, and the records laid out for it: takes streams through one layer at a time.

    A stream has shape (positions, width), in main memory, in the same order of positions in both models.
    """

    def __init__(self, model: SplitModel, tokens: Sequence[Tensor]) -> None:
        self.model = model
        batches = packable(range(len(tokens)), [len(row) for row in tokens], max_tokens=MICRO_TOKENS)
        self._layouts: list[Layout] = [model.pack([tokens[i] for i in batch]) for batch in batches]

    def entry(self) -> Tensor:
        """The stream that enters the span."""
        return torch.cat([layout.gather(self.model.prefix(layout)).cpu() for layout in self._layouts])

    def through(self, index: int, stream: Tensor, *watched: str) -> list[Tensor]:
        """What reaches the watched modules of a layer, and last the stream that leaves it."""
        cut = self.model.at(Span(self.model.span.start + index, self.model.span.start + index + 1))
        parts: list[list[Tensor]] = []
        start = 0
        for layout in self._layouts:
            rows = stream[start : start + len(layout.flat)].to(self.model.device)
            start += len(layout.flat)
            with _watching(self.model.span_layers[index], watched) as seen:
                try:
                    cut.finish(layout.scatter(rows), layout)
                except _LayerDone:
                    parts.append([layout.gather(seen[name]).cpu() for name in (*watched, _EXIT)])
        return [torch.cat(found) for found in zip(*parts, strict=True)]

    def put(self, index: int, tensors: Layer) -> None:
        """Put weights into a layer."""
        with torch.no_grad():
            for name, tensor in tensors.items():
                self.model.span_layers[index].get_parameter(name).copy_(tensor)


class _Streams:
    """The four streams as they enter a layer."""

    def __init__(self, donor: _Walker, recipient: _Walker) -> None:
        self.donor, self.recipient = donor, recipient
        self.plain = self.tuned = donor.entry()
        self.own = self.adapted = recipient.entry()


class _LayerFit:
    """Adapts one layer of the organ, branch after branch; its parts put together are the layer in `made`."""

    def __init__(self, plan: AdaptPlan, streams: _Streams, index: int, *, carry: float) -> None:
        self._plan, self._streams, self._index, self._carry = plan, streams, index, carry
        at = Span(plan.at.start + index, plan.at.start + index + 1)
        self._given, self._own = organ_layer(plan.organ, index), base_layer(plan.recipient, at.start)
        places = plan.recipient.span_places(at)
        self._dtypes = {name.split(".", 2)[2]: DTYPES[place.dtype] for name, place in places.items()}
        self._epsilons = plan.organ.manifest.blood_type["norm_eps"], plan.recipient.blood_type["norm_eps"]
        self.made: dict[str, Tensor] = {}
        donor, recipient, middle = streams.donor, streams.recipient, BRANCHES[1].norm
        self._plain = [streams.plain, *donor.through(index, streams.plain, middle)]
        donor.put(index, self._given)
        self._tuned = [streams.tuned, *donor.through(index, streams.tuned, middle)]
        self._target = [streams.own, *recipient.through(index, streams.own, middle)]  # before its weights change
        self._now = streams.adapted  # the adapted recipient's stream where the next branch reads it

    def adapt(self, branch: Branch) -> Quality:
        """Fit the maps of a branch, and put it into the recipient."""
        order, slots = BRANCHES.index(branch), self._plan.slots
        donors, recipients = self._epsilons
        read, how_read = ridge(
            _normalised(self._now, epsilon=recipients), _normalised(self._tuned[order], epsilon=donors)
        )
        weight = self._given[f"{branch.norm}.weight"].double()
        self._put(
            adapted_reads(
                branch, self._given, self._own, norm=torch.ones(read.shape[1]),
                read=(weight[:, None] * read).float(), slots=slots,
            )
        )  # fmt: skip
        inside = self._through(branch.writes)[:, slots[branch.columns].to]
        projection = self._given[f"{branch.writes}.weight"][:, slots[branch.columns].source]
        gives = torch.nn.functional.linear(inside, projection, self._given.get(f"{branch.writes}.bias"))
        target = self._aim(order + 1)
        write, how_written = ridge(gives, target - self._now, weights=1 / _rms(target))
        self._put(adapted_writes(branch, self._given, self._own, write=write.float(), slots=slots))
        self._now = self._through(BRANCHES[order + 1].norm if order + 1 < len(BRANCHES) else _EXIT)
        return Quality(self._plan.at.start + self._index, branch.name, how_read, how_written)

    def leave(self) -> None:
        """Move all streams behind the layer."""
        streams = self._streams
        streams.plain, streams.tuned, streams.own = self._plain[-1], self._tuned[-1], self._target[-1]
        streams.adapted = self._now

    def _aim(self, order: int) -> Tensor:
        """Where the adapted recipient's stream should be behind a branch."""
        plain, own = self._plain[order], self._target[order]
        if self._carry == 0:
            return own
        translate, _ = ridge(plain, own, weights=1 / _rms(own))
        return own + self._carry * (self._tuned[order] - plain) @ translate.T.float()

    def _through(self, watched: str) -> Tensor:
        names = () if watched == _EXIT else (watched,)
        return self._streams.recipient.through(self._index, self._streams.adapted, *names)[0]

    def _put(self, tensors: Layer) -> None:
        """Into the recipient as its number format has them, so that the branches behind make up for the rounding."""
        self.made |= tensors
        rounded = {name: tensor.to(self._dtypes[name]).float() for name, tensor in tensors.items()}
        self._streams.recipient.put(self._index, rounded)


def ridge(given: Tensor, wanted: Tensor, *, weights: Tensor | None = None) -> tuple[Tensor, float]:
    """The linear map M that brings M @ given[i] nearest to wanted[i], and how much it explains.

    Args:
        given: shape (positions, from).
        wanted: shape (positions, to).
        weights: shape (positions, 1): how much a position's error counts.
    Returns:
        shape (to, from), float64; and the share of wanted's squares that a map fitted without every fifth position
        explains there, at most 1, below 0 where it would be better to guess zero.
    Guarantees:
        the ridge is the one of `RIDGES` that explains most of those positions.
    Proved by: tests/unit/test_adapt.py::test_ridge_finds_a_linear_map_and_says_how_much_is_not_linear
    """
    given, wanted = given.double(), wanted.double()
    if weights is not None:
        given, wanted = given * weights, wanted * weights
    held = torch.arange(len(given)) % HELD_OUT == 0
    solve = _Ridge(given[~held], wanted[~held])
    total = wanted[held].square().sum().clamp(min=torch.finfo(torch.float64).tiny)
    left = [float((wanted[held] - given[held] @ solve(size).T).square().sum() / total) for size in RIDGES]
    best = min(range(len(RIDGES)), key=lambda i: left[i])
    return _Ridge(given, wanted)(RIDGES[best]), round(1 - left[best], 4)


class _Ridge:
    """One decomposition for every size of the ridge."""

    def __init__(self, given: Tensor, wanted: Tensor) -> None:
        self._values, self._vectors = torch.linalg.eigh(given.T @ given)
        self._products = wanted.T @ given @ self._vectors  # (to, from)

    def __call__(self, size: float) -> Tensor:
        floor = size * self._values.mean() + torch.finfo(torch.float64).tiny
        found: Tensor = (self._products / (self._values.clamp(min=0) + floor)) @ self._vectors.T
        return found


def _normalised(stream: Tensor, *, epsilon: float) -> Tensor:
    stream = stream.double()
    return stream * (stream.square().mean(dim=1, keepdim=True) + epsilon).rsqrt()


def _rms(stream: Tensor) -> Tensor:
    """Shape (positions, 1)."""
    return stream.double().square().mean(dim=1, keepdim=True).sqrt().clamp(min=1e-12)


class _LayerDone(Exception):
    """Ends a forward behind the layer that was asked about."""


@contextmanager
def _watching(layer: nn.Module, names: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """What reaches some modules of a layer, by name, and what leaves the layer, where its forward then ends."""
    seen: dict[str, Tensor] = {}

    def note(name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def hook(_: nn.Module, args: tuple[Any, ...]) -> None:
            seen[name] = args[0]

        return hook

    def done(_: nn.Module, __: object, output: Tensor) -> None:
        seen[_EXIT] = output
        raise _LayerDone

    hooks = [layer.get_submodule(name).register_forward_pre_hook(note(name)) for name in names]
    hooks.append(layer.register_forward_hook(done))
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()
