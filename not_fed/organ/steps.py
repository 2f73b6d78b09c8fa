"""The loop of a training run, and the plain step: token-weighted batches in the seed's order, the usual gradient guard.

What a private run does in a step is in `private_steps`; here nothing is known about privacy.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from not_fed.organ.layout import Layout, packable
from not_fed.organ.prefix import PrefixCache, TokenisedRecords
from not_fed.organ.resume import Kept, Resume
from not_fed.organ.split import SplitModel
from not_fed.progress import Progress

GRADIENT_NORM = 1.0  # the usual guard against a bad batch; the clip of a private run is another thing
BETAS = (0.9, 0.98)


@dataclass(frozen=True, kw_only=True)
class SpanData:
    """The records as the span meets them: their tokens, and what the frozen prefix makes of each.

    Attributes:
        micro_tokens: padded positions in one forward.
        bfloat16: whether span and suffix compute in that precision; weights, sums and caches stay float32.
    """

    model: SplitModel
    tokens: TokenisedRecords
    cache: PrefixCache
    micro_tokens: int
    bfloat16: bool = False

    @functools.cached_property
    def lengths(self) -> list[int]:
        """Predicted tokens of each record."""
        return self.tokens.predictions

    def losses(self, indices: Sequence[int], layout: Layout, *, from_inputs: bool = False) -> Tensor:
        """Each predicted token's loss, record after record, in nats: (sum of lengths,).

        Args:
            indices: the records that lie in the layout, in its order.
            from_inputs: whether the span's inputs require a gradient, as per-unit clipping needs.
        """
        hidden = layout.scatter(self.cache.rows(indices))
        targets = torch.cat([self.tokens.targets(index) for index in indices]).to(hidden.device)
        return self.model.losses(hidden.requires_grad_(from_inputs), layout, targets, bfloat16=self.bfloat16)


class Steps(Protocol):
    """The steps of one run, in order."""

    @property
    def total(self) -> int:
        """How many there are."""

    @property
    def tokens(self) -> int:
        """Predicted tokens over all of them, as far as that may be said."""

    @property
    def save_every_s(self) -> float:
        """Seconds between resume points; 0 saves after every step."""

    def take(self, number: int) -> str:
        """Leave step `number`'s gradient in the parameters; returns what may be shown about it."""

    def finish(self) -> bool:
        """After the last step, with the final weights; returns whether that changed the state."""

    def state(self) -> tuple[Mapping[str, object], Mapping[str, Tensor]]:
        """What a resumed run must know: JSON values, and tensors."""

    def restore(self, kept: Kept) -> None:
        """Go on from there."""

    def summary(self) -> dict[str, Any]:
        """What the manifest says about them."""

    def settle(self) -> None:
        """The organ is on disk."""


def take_all(
    steps: Steps,
    *,
    parameters: Mapping[str, nn.Parameter],
    optimiser: torch.optim.Optimizer,
    rate: Callable[[int], float],
    resume: Resume | None,
    progress: Progress,
    stop: Callable[[], bool] = lambda: False,
) -> None:
    """Take the steps that are left, saving resume points on the way.

    Args:
        rate: the learning rate of each step.
        resume: where to go on from; None is a run that is begun again when it was interrupted.
        stop: asked before each step whether the run ends here.
    """
    kept = Kept() if resume is None else resume.restore(parameters, optimiser)
    steps.restore(kept)
    done = saved = kept.done
    saved_at, whole = time.monotonic(), True

    def save() -> None:
        if resume is None:
            return
        facts, tensors = steps.state()
        resume.save(parameters, optimiser, kept=Kept(done=done, facts=facts, tensors=tensors))

    progress("training", done=done, total=steps.total)
    try:
        while done < steps.total and not stop():
            note = steps.take(done)
            for group in optimiser.param_groups:
                group["lr"] = rate(done)
            whole = False
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
            done, whole = done + 1, True
            if time.monotonic() - saved_at >= steps.save_every_s:
                save()
                saved, saved_at = done, time.monotonic()
            progress("training", done=done, total=steps.total, note=note)
    except KeyboardInterrupt:
        if whole and done > saved:
            save()
        raise
    if steps.finish():
        save()


def falling_rate(peak: float, *, steps: int, warmup: float) -> Callable[[int], float]:
    """Linear warm-up over a share of the steps, then linear to zero.

    >>> rate = falling_rate(1.0, steps=4, warmup=0.5)
    >>> [rate(step) for step in range(4)]
    [0.5, 1.0, 1.0, 0.5]
    """
    warm = max(1, round(warmup * steps))
    return lambda step: peak * ((step + 1) / warm if step < warm else (steps - step) / max(1, steps - warm))


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


class Proximal:
    """The term mu/2 * ||w - w_start||^2 of a loss, as its gradient: what is trained stays near where it began.

    It costs no epsilon in a private run, where it is added after the noise: w_start is what the site was given, and w
    is the output of the steps before, so nothing but post-processing of what was released already. It is outside the
    clip, and the audit's probe does not see it.

    Source: Li et al. 2020, Federated Optimization in Heterogeneous Networks, Algorithm 2.
    Proved by: tests/unit/test_proximal.py::test_the_term_is_the_gradient_of_the_proximal_loss,
        tests/unit/test_proximal.py::test_in_a_private_step_it_is_added_after_the_noise_and_outside_the_clip
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], *, mu: float) -> None:
        """Remember where they are now, if `mu` is more than 0: a copy of the span in memory."""
        self._mu = mu
        self._start = {name: weight.detach().clone() for name, weight in parameters.items()} if mu else {}

    def add_to_gradients(self, parameters: Mapping[str, nn.Parameter]) -> None:
        """Add the term's gradient, mu * (w - w_start), to what the parameters have; one without a gradient gets it."""
        for name, start in self._start.items():
            weight = parameters[name]
            term = (weight.detach() - start).mul_(self._mu)
            weight.grad = term if weight.grad is None else weight.grad.add_(term)


class PlainSteps:
    """Steps without privacy: each batch's mean token loss.

    Attributes:
        curve: that loss, a number a step, nats; without the proximal term.
    """

    def __init__(
        self,
        data: SpanData,
        *,
        batches: Sequence[Sequence[int]],
        epochs: int,
        save_every_s: float,
        proximal: float = 0.0,
        parameters: Mapping[str, nn.Parameter] | None = None,
    ) -> None:
        """Plan the steps; `parameters` are what learns, if that is not the whole span and nothing else."""
        self._data, self._batches, self._epochs, self.save_every_s = data, batches, epochs, save_every_s
        self._parameters = data.model.parameters() if parameters is None else parameters
        self._proximal = Proximal(self._parameters, mu=proximal)
        self.curve: list[float] = []

    @property
    def total(self) -> int:
        """One a batch."""
        return len(self._batches)

    @property
    def tokens(self) -> int:
        """Every record's, each epoch."""
        return self._epochs * sum(self._data.lengths)

    def take(self, number: int) -> str:
        """Forward and backward in micro-batches that pack several records a row."""
        batch, data = self._batches[number], self._data
        total, loss_sum = sum(data.lengths[i] for i in batch), 0.0
        for micro in packable(batch, data.lengths, max_tokens=data.micro_tokens):
            loss = data.losses(micro, data.model.pack([data.tokens.inputs(i) for i in micro])).sum() / total
            loss.backward()  # type: ignore[no-untyped-call]
            loss_sum += float(loss.detach())
        self._proximal.add_to_gradients(self._parameters)
        torch.nn.utils.clip_grad_norm_(self._parameters.values(), GRADIENT_NORM)
        self.curve.append(loss_sum)
        return f"loss {loss_sum:.3f}"

    def finish(self) -> bool:
        """Nothing is left to do."""
        return False

    def state(self) -> tuple[Mapping[str, object], Mapping[str, Tensor]]:
        """The losses so far."""
        return {"curve": self.curve}, {}

    def restore(self, kept: Kept) -> None:
        """The losses of the steps that are done."""
        self.curve = list(kept.facts.get("curve", []))[: kept.done]

    def summary(self) -> dict[str, Any]:
        """Passes and steps; no privacy claim."""
        return {"epochs": self._epochs, "steps": self.total, "dp": None}

    def settle(self) -> None:
        """Nobody pays."""
