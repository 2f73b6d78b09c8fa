"""How well a model reads held-out records: token-weighted perplexity and how far chance could move it."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from not_fed.organ.anatomy import Span, SpanOutside
from not_fed.organ.body import read_body
from not_fed.organ.checkpoint import Base
from not_fed.organ.layout import packable
from not_fed.organ.organ import OrganInfo
from not_fed.organ.prefix import compute_prefix, prefix_key, tokenise
from not_fed.organ.split import load_split, load_tokenizer
from not_fed.organ.steps import SpanData
from not_fed.organ.train import NothingToLearn
from not_fed.progress import Progress, silent

RESAMPLES = 2000
LEVEL = 0.95
MICRO_TOKENS = 2048


@dataclass(frozen=True, slots=True, kw_only=True)
class Perplexity:
    """Perplexity over all predicted tokens, with the bootstrap interval over records that holds 95 % of resamples."""

    value: float
    ci_low: float
    ci_high: float
    tokens: int
    records: int
    seconds: float


def perplexity_of(losses: NDArray[np.float64], tokens: NDArray[np.int64], *, seconds: float = 0.0) -> Perplexity:
    """Token-weighted perplexity from per-record sums.

    Args:
        losses: summed negative log-likelihood of each record, nats, shape (records,).
        tokens: predicted tokens of each record, shape (records,).
    Guarantees:
        the same records give the same interval (the resampling's seed is fixed); a single record gives a point.

    >>> p = perplexity_of(np.log([2.0, 2.0]) * [3, 5], np.array([3, 5]))
    >>> round(p.value, 6), round(p.ci_low, 6), round(p.ci_high, 6)
    (2.0, 2.0, 2.0)
    """
    draws = np.random.default_rng(0).multinomial(len(losses), np.full(len(losses), 1 / len(losses)), size=RESAMPLES)
    means = (draws @ losses) / np.maximum(draws @ tokens, 1)  # (resamples,)
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Perplexity(
        value=math.exp(float(losses.sum() / tokens.sum())),
        ci_low=math.exp(float(low)),
        ci_high=math.exp(float(high)),
        tokens=int(tokens.sum()),
        records=len(losses),
        seconds=seconds,
    )


def loss_sums(data: SpanData, *, progress: Progress = silent) -> NDArray[np.float64]:
    """Summed loss of every record with what is now in the model, nats; 0 where nothing is predicted."""
    sums = np.zeros(len(data.lengths))
    done, total = 0, sum(data.lengths)
    progress("evaluation", done=0, total=total)
    for micro in packable(range(len(sums)), data.lengths, max_tokens=data.micro_tokens):
        layout = data.model.pack([data.tokens.inputs(i) for i in micro])
        with torch.no_grad():
            losses = data.losses(micro, layout).double()
        sums[micro] = losses.new_zeros(len(micro)).index_add(0, layout.owners(), losses).tolist()
        done += sum(data.lengths[i] for i in micro)
        progress("evaluation", done=done, total=total)
    return sums


class Evaluator:
    """Held-out records of one data set, with the frozen prefix computed once for every organ that is compared.

    With a span that covers several organs' layers it compares bodies: several organs at once, in their own places.
    """

    def __init__(
        self,
        base: Base,
        *,
        records: Sequence[str],
        span: Span,
        max_tokens: int = 512,
        device: str = "cpu",
        progress: Progress = silent,
    ) -> None:
        """Load the base and run its prefix over the records.

        Raises:
            NothingToLearn: no record has two tokens.
        """
        self._base, self._progress = base, progress
        tokens = tokenise(load_tokenizer(base), records, max_tokens=max_tokens)
        self._lengths = tokens.predictions
        if not any(self._lengths):
            raise NothingToLearn(
                where="held-out data",
                expected="a record of two tokens or more",
                got=f"{len(records):,} shorter ones",
                hint="check --text-field",
            )
        self._model = load_split(base, span=span, device=device)
        self._own = {name: parameter.detach().clone() for name, parameter in self._model.parameters().items()}
        key = prefix_key(base, span=span, data=tokens)
        cache = compute_prefix(self._model, tokens, key=key, micro_tokens=MICRO_TOKENS, store=None, progress=progress)
        self._data = SpanData(model=self._model, tokens=tokens, cache=cache, micro_tokens=MICRO_TOKENS)

    def perplexity(self, organs: Path | Sequence[Path] | None = None) -> Perplexity:
        """Perplexity with an organ in place, with those of a body, or of the base itself; raises as `put_in`."""
        started = time.monotonic()
        self.put_in(organs)
        losses, tokens = self.record_losses()
        return perplexity_of(losses, tokens, seconds=time.monotonic() - started)

    def put_in(self, organs: Path | Sequence[Path] | None) -> None:
        """Put organs in, each where it was cut, and the base's own layers everywhere else in the span.

        Raises:
            FitError: one does not fit the base, they overlap, or one reaches out of the span; nothing was put in.
        Proved by: tests/unit/test_body.py::test_a_body_is_measured_as_the_model_it_becomes
        """
        paths = [] if organs is None else [organs] if isinstance(organs, Path) else organs
        body = read_body(paths, base=self._base)
        for organ in body:
            self._check_inside(organ)
        with torch.no_grad():
            for name, parameter in self._model.parameters().items():
                parameter.copy_(self._own[name])
        for organ in body:
            self._model.load_organ(organ.path, span=organ.span)

    def _check_inside(self, organ: OrganInfo) -> None:
        span = self._model.span
        if not span.start <= organ.span.start < organ.span.stop <= span.stop:
            raise SpanOutside(
                where=organ.path.name, expected=f"layers within {span}, which are measured", got=str(organ.span),
                hint="measure over a span that covers every organ",
            )  # fmt: skip

    @property
    def lengths(self) -> list[int]:
        """Predicted tokens of each record, those without any too."""
        return self._lengths

    def mean_losses(self) -> NDArray[np.float64]:
        """Mean token loss of every record with what is now in the span, nats; 0 where nothing is predicted."""
        sums = loss_sums(self._data, progress=self._progress)
        means: NDArray[np.float64] = sums / np.maximum(np.array(self._lengths), 1)
        return means

    def record_losses(self) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """Summed loss and predicted tokens of every record that has any, with what is now in the span."""
        tokens = np.array(self._lengths, dtype=np.int64)
        return loss_sums(self._data, progress=self._progress)[tokens > 0], tokens[tokens > 0]
