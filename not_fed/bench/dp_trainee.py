"""A model set up for one method (organ, LoRA on every layer, full fine-tuning) and trained with the same DP-SGD.

Every method is a span of layers behind a frozen prefix: the organ's own span; all layers behind the embeddings for the
other two. So all three take the same samples, the same clip, the same noise, the same optimiser and the same
precision, and differ only in what learns. The embeddings (tied to the head) and the last norm never learn.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from not_fed.bench.learners import add_lora
from not_fed.organ.anatomy import Span
from not_fed.organ.checkpoint import Base
from not_fed.organ.evaluate import perplexity_of
from not_fed.organ.head_loss import token_losses
from not_fed.organ.layout import packable
from not_fed.organ.prefix import PrefixCache, TokenisedRecords, compute_prefix, tokenise
from not_fed.organ.split import SplitModel, load_split, load_tokenizer
from not_fed.organ.units import micro_batches
from not_fed.privacy.accounting import DpPlan
from not_fed.privacy.dp_sgd import noisy_gradient
from not_fed.privacy.engine.book_keeping import BookKeeping
from not_fed.privacy.randomness import OperatingSystem
from not_fed.privacy.sampling import poisson_subset

MAX_TOKENS = 64
MICRO_TOKENS = 2048
Precision = Literal["float32", "bfloat16"]
MethodName = Literal["organ", "lora", "full"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """What a method may choose for itself, on public text.

    Attributes:
        lr: peak learning rate of AdamW, falling linearly to zero.
        warmup: share of the steps that lead up to it.
        clip: L2 norm of one record's gradient over all that learns.
    """

    lr: float
    clip: float
    warmup: float = 0.0
    beta1: float = 0.9
    beta2: float = 0.98
    weight_decay: float = 0.0


@dataclass(frozen=True, slots=True)
class Corpus:
    """Tokenised definitions and what the frozen prefix makes of them."""

    data: TokenisedRecords
    cache: PrefixCache


class Trainee:
    """One method on one model; `reset` puts back where it began, so many runs share one loaded model."""

    def __init__(
        self, base: Base, *, method: MethodName, span: Span, rank: int, precision: Precision, frozen: str = ""
    ) -> None:
        """Load the base, freeze it, and let the method's weights learn.

        Args:
            span: the organ's layers; the other methods learn in all layers.
            rank: LoRA's.
            frozen: weights with this in their name stay as they are; "" is none.
        """
        self.precision, self._base, self._frozen = precision, base, frozen
        where = span if method == "organ" else Span(0, base.layers)
        self.model: SplitModel = load_split(base, span=where)
        if method == "lora":
            add_lora(self.model.model, rank=rank)
            self.model.model.eval()
        self._adapters = method == "lora"
        self._begin()
        self._began = {name: weight.detach().clone() for name, weight in self.learning.items()}
        self._lora_a = {name: weight for name, weight in self.model.parameters().items() if ".lora_A." in name}
        head: Tensor = self.model.head.weight  # type: ignore[assignment]
        self._head = head.detach().to(torch.bfloat16) if precision == "bfloat16" else head

    def _begin(self) -> None:
        """Let the span learn as it is now; what the frozen prefix made of texts before is forgotten."""
        self._corpora: dict[str, Corpus] = {}
        self.learning = self._learning()
        self.engine = BookKeeping(self.model.span_layers)

    def _learning(self) -> dict[str, nn.Parameter]:
        named = {
            name: weight
            for name, weight in self.model.parameters().items()
            if (not self._adapters or ".lora_" in name) and not (self._frozen and self._frozen in name)
        }
        self.model.model.requires_grad_(requires_grad=False)  # what stays is not clipped and gets no noise either
        for weight in named.values():
            weight.requires_grad_()
        return named

    def move_to(self, span: Span) -> None:
        """Let another span learn; everything else stays as it is now. `reset` knows the first span only."""
        self.model = SplitModel(self.model.model, family=self._base.family, span=span)
        self._begin()

    @property
    def weights(self) -> int:
        """How many numbers learn, and get noise."""
        return sum(weight.numel() for weight in self.learning.values())

    def reset(self, *, seed: int) -> None:
        """The weights as they were; LoRA's random half anew from the seed."""
        source = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, weight in self.learning.items():
                weight.copy_(self._began[name])
                weight.grad = None
            for weight in self._lora_a.values():
                nn.init.kaiming_uniform_(weight, a=math.sqrt(5), generator=source)

    def read(self, name: str, texts: Sequence[str]) -> Corpus:
        """Tokens and prefix of a set of texts, computed once under this name."""
        if name not in self._corpora:
            data = tokenise(load_tokenizer(self._base), texts, max_tokens=MAX_TOKENS)
            with self._autocast():
                cache = compute_prefix(self.model, data, key="", micro_tokens=MICRO_TOKENS, store=None)
            self._corpora[name] = Corpus(data, cache)
        return self._corpora[name]

    def train(
        self, corpus: Corpus, members: Sequence[int], *, recipe: Recipe, plan: DpPlan, private: bool
    ) -> Iterator[int]:
        """The plan's steps on the members; yields after each how many it has done.

        Args:
            private: False takes the plan's samples and divisor, and neither clips nor adds noise.
        """
        optimiser = torch.optim.AdamW(
            self.learning.values(),
            lr=recipe.lr,
            betas=(recipe.beta1, recipe.beta2),
            weight_decay=recipe.weight_decay,
            fused=True,
        )
        for number in range(plan.steps):
            for group in optimiser.param_groups:
                group["lr"] = recipe.lr * schedule(number, plan.steps, warmup=recipe.warmup)
            chosen = poisson_subset(len(members), sample_rate=plan.sample_rate, source=OperatingSystem())
            sample = [members[i] for i in chosen]
            if private:
                self._private(corpus, sample, plan)
            else:
                self._plain(corpus, sample, plan)
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
            yield number + 1

    def _private(self, corpus: Corpus, sample: Sequence[int], plan: DpPlan) -> None:
        sums = self.engine.zero_sums()
        for micro in _batches(corpus, sample):
            self.engine.clip_into(
                sums, losses=self.losses_of(corpus, micro), units=len(micro), max_grad_norm=plan.max_grad_norm
            )
        for name, gradient in noisy_on_two_threads(sums, plan).items():
            self.engine.parameters[name].grad = gradient

    def _plain(self, corpus: Corpus, sample: Sequence[int], plan: DpPlan) -> None:
        for micro in _batches(corpus, sample):
            losses = self.losses_of(corpus, micro)(range(len(micro)))
            torch.autograd.backward(losses.sum() / plan.divisor)

    def losses_of(self, corpus: Corpus, micro: Sequence[int]) -> Callable[[Sequence[int]], Tensor]:
        """The records' mean token losses, by position in the micro-batch."""

        def losses(which: Sequence[int]) -> Tensor:
            records = [micro[i] for i in which]
            layout = self.model.stack([corpus.data.inputs(i) for i in records])
            targets = torch.cat([corpus.data.targets(i) for i in records])
            hidden = layout.scatter(corpus.cache.rows(records)).requires_grad_()
            with self._autocast():
                found = layout.gather(self.model.finish(hidden, layout))
            each = token_losses(found.to(self._head.dtype), self._head, targets)
            return each.new_zeros(len(records)).index_add(0, layout.owners(), each).div(layout.lengths)

        return losses

    def norms(self, corpus: Corpus, members: Sequence[int]) -> list[float]:
        """L2 norms of the members' gradients, for choosing a clip on public text."""
        found: list[float] = []
        for micro in _batches(corpus, members):
            found += self.engine.norms(losses=self.losses_of(corpus, micro), units=len(micro)).tolist()
        return found

    def _autocast(self) -> Any:  # noqa: ANN401  two kinds of context with no common type
        return torch.autocast("cpu", dtype=torch.bfloat16) if self.precision == "bfloat16" else nullcontext()

    def perplexity(self, corpus: Corpus, members: Sequence[int]) -> dict[str, float]:
        """Held-out perplexity per token with its interval; the head in float32."""
        predictions = np.array(corpus.data.predictions)[list(members)]
        found = perplexity_of(self.loss_sums(corpus, members), predictions)
        return {"value": found.value, "ci_low": found.ci_low, "ci_high": found.ci_high}

    def loss_sums(self, corpus: Corpus, members: Sequence[int]) -> NDArray[np.float64]:
        """Each member's summed loss, nats; the head in float32."""
        predictions = corpus.data.predictions
        sums = np.zeros(len(predictions))
        head: Tensor = self.model.head.weight  # type: ignore[assignment]
        with torch.no_grad():
            for micro in packable(members, predictions, max_tokens=MICRO_TOKENS):
                layout = self.model.pack([corpus.data.inputs(i) for i in micro])
                targets = torch.cat([corpus.data.targets(i) for i in micro])
                with self._autocast():
                    hidden = layout.gather(self.model.finish(layout.scatter(corpus.cache.rows(micro)), layout))
                losses = token_losses(hidden.float(), head, targets).double()
                for index, part in zip(micro, torch.split(losses, [predictions[i] for i in micro]), strict=True):
                    sums[index] = float(part.sum())
        return sums[list(members)]


def _batches(corpus: Corpus, records: Sequence[int]) -> Iterator[list[int]]:
    """As training does it: records of like length, one a row."""
    units = [(record,) for record in records if corpus.data.predictions[record]]
    for batch in micro_batches(units, corpus.data.predictions, micro_tokens=MICRO_TOKENS):
        yield [record for (record,) in batch]


def schedule(step: int, steps: int, *, warmup: float) -> float:
    """Linear up during the warm-up, then linear down.

    >>> [schedule(step, 4, warmup=0.0) for step in range(4)]
    [1.0, 0.75, 0.5, 0.25]
    """
    warm = round(warmup * steps)
    return (step + 1) / warm if step < warm else (steps - step) / (steps - warm)


def noisy_on_two_threads(sums: Mapping[str, Tensor], plan: DpPlan) -> dict[str, Tensor]:
    """`noisy_gradient` on two halves at a time: each call has keys of its own, so the noise is the same mechanism."""
    names = list(sums)
    halves = [{name: sums[name] for name in names[part::2]} for part in (0, 1)]
    with ThreadPoolExecutor(2) as pool:
        found = pool.map(lambda half: noisy_gradient(half, plan=plan, source=OperatingSystem()), halves)
        return {name: gradient for part in found for name, gradient in part.items()}
