"""How well a model reads held-out records: token-weighted perplexity and how far chance could move it."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from not_fed import canonical
from not_fed.organ.anatomy import Span
from not_fed.organ.checkpoint import Base
from not_fed.organ.fit import check_fit
from not_fed.organ.layout import packable
from not_fed.organ.organ import read_organ
from not_fed.organ.prefix import compute_prefix, tokenise
from not_fed.organ.split import load_split, load_tokenizer
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


class Evaluator:
    """Held-out records of one data set, with the frozen prefix computed once for every organ that is compared."""

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
        self._data = tokenise(load_tokenizer(base), records, max_tokens=max_tokens)
        self._lengths = self._data.predictions
        if not any(self._lengths):
            raise NothingToLearn(
                where="held-out data",
                expected="a record of two tokens or more",
                got=f"{len(records):,} shorter ones",
                hint="check --text-field",
            )
        self._model = load_split(base, span=span, device=device)
        self._own = {name: parameter.detach().clone() for name, parameter in self._model.parameters().items()}
        key = hashlib.sha256(canonical.dumps([base.sha256, span.start, self._data.digest()])).hexdigest()
        self._cache = compute_prefix(
            self._model, self._data, key=key, micro_tokens=MICRO_TOKENS, store=None, progress=progress
        )

    def perplexity(self, organ: Path | None = None) -> Perplexity:
        """Perplexity with an organ in place, or of the base itself.

        Raises:
            FitError: the organ does not fit the base at this span.
        """
        started = time.monotonic()
        self.put_in(organ)
        losses, tokens = self.record_losses()
        return perplexity_of(losses, tokens, seconds=time.monotonic() - started)

    def put_in(self, organ: Path | None) -> None:
        """Put an organ into the span, or the base's own layers back; raises FitError."""
        if organ is None:
            with torch.no_grad():
                for name, parameter in self._model.parameters().items():
                    parameter.copy_(self._own[name])
        else:
            check_fit(read_organ(organ), base=self._base, at=self._model.span.start)
            self._model.load_organ(organ)

    @property
    def lengths(self) -> list[int]:
        """Predicted tokens of each record, those without any too."""
        return self._lengths

    def mean_losses(self) -> NDArray[np.float64]:
        """Mean token loss of every record with what is now in the span, nats; 0 where nothing is predicted."""
        means: NDArray[np.float64] = self._loss_sums() / np.maximum(np.array(self._lengths), 1)
        return means

    def record_losses(self) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """Summed loss and predicted tokens of every record that has any, with what is now in the span."""
        tokens = np.array(self._lengths, dtype=np.int64)
        return self._loss_sums()[tokens > 0], tokens[tokens > 0]

    def _loss_sums(self) -> NDArray[np.float64]:
        sums = np.zeros(len(self._lengths))
        done, total = 0, sum(self._lengths)
        self._progress("evaluation", done=0, total=total)
        for micro in packable(range(len(self._lengths)), self._lengths, max_tokens=MICRO_TOKENS):
            for index, value in zip(micro, self._micro(micro), strict=True):
                sums[index] = value
            done += sum(self._lengths[i] for i in micro)
            self._progress("evaluation", done=done, total=total)
        return sums

    def _micro(self, micro: Sequence[int]) -> list[float]:
        layout = self._model.pack([self._data.inputs(i) for i in micro])
        targets = torch.cat([self._data.targets(i) for i in micro]).to(self._model.device)
        with torch.no_grad():
            losses = self._model.losses(layout.scatter(self._cache.rows(micro)), layout, targets).double()
        return losses.new_zeros(len(micro)).index_add(0, layout.owners(), losses).tolist()
