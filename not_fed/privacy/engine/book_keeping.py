"""Book-keeping ghost clipping: one forward and one backward pass, about the cost of a step without privacy.

The engine freezes the span's weights during the pass, so that autograd computes gradients of activations only, and
keeps for every trained module what went in and what came back. Norms, clipping and the sum follow from these, and from
the same tensors: it clips exactly what it sums.

What must hold for the promise, and who checks it:
- each unit's gradient depends on that unit alone. The span must be in eval mode (checked); batch normalisation, modules
  without a rule and modules used twice are refused (checked); the sentinel of `engines` compares with plain autograd.
- positions that are padding contribute nothing. They do not when the caller masks their loss and pads on the right (or
  masks their attention), because then no gradient comes back to them.

Source: Bu et al. 2023, Differentially Private Optimization on Large Model at Small Cost (book-keeping).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from not_fed.privacy.dp_sgd import clip_factor, zero_sums
from not_fed.privacy.engine.experts import ExpertsTrace, SinksTrace, check_experts, check_sinks
from not_fed.privacy.engine.traces import Inputs, MatrixTrace, NormTrace, Rule, Trace, neutral_weight, unknown
from not_fed.privacy.engine.trainable import Losses, Owner, find_owners, require_eval, total_loss


class BookKeeping:
    """Clipped sums of per-unit gradients of the trained weights in a span of layers.

    Args:
        layers: the span's layers in order. Their weights that require a gradient now are the ones trained.
    Raises:
        UnknownModule: a trained module is one that the engine has no rule for.
        CannotClip: no engine can train it; see `find_owners`.

    >>> layer = nn.Linear(2, 1, bias=False).eval()
    >>> engine = BookKeeping([layer])
    >>> hidden = torch.tensor([[[3.0, 4.0]], [[0.0, 0.5]]])  # (units, positions, inputs)
    >>> sums = engine.zero_sums()
    >>> engine.clip_into(
    ...     sums, losses=lambda rows: layer(hidden[rows].requires_grad_()).sum((1, 2)), units=2, max_grad_norm=1.0
    ... )
    >>> sums["0.weight"]
    tensor([[0.6000, 1.3000]], dtype=torch.float64)
    """

    name = "book-keeping"

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        self._layers = tuple(layers)
        self._rules = tuple((owner, rule_for(owner)) for owner in find_owners(self._layers))
        self.parameters: Mapping[str, nn.Parameter] = {
            name: weight for owner, _ in self._rules for name, weight in owner.parameters().items()
        }

    def zero_sums(self) -> dict[str, Tensor]:
        """As `Engine.zero_sums`."""
        return zero_sums(self.parameters)

    def clip_into(
        self,
        sums: dict[str, Tensor],
        *,
        losses: Losses,
        units: int,
        max_grad_norm: float,
    ) -> None:
        """As `Engine.clip_into`. The span's input must require a gradient.

        Raises:
            UnknownModule: a module ran twice, never, or on something other than its rule is for.
            SpanInTraining: a module of the span is in training mode.
            BadClip: max_grad_norm is not a positive, finite number.
        """
        traces = self._run(losses, units=units)
        factors = clip_factor(_norms(traces), max_grad_norm=max_grad_norm)
        for name, total in _weighted_sums(traces, factors):
            sums[name] += total

    def norms(self, *, losses: Losses, units: int) -> Tensor:
        """L2 norm of each unit's gradient over all trained weights; shape (units,), float64.

        For tests only: the norm of a private record's gradient must not leave the site.
        """
        return _norms(self._run(losses, units=units))

    def _run(self, losses: Losses, *, units: int) -> dict[Owner, Trace]:
        """One forward and one backward pass. The span's weights require no gradient meanwhile, and do again after."""
        require_eval(self._layers)
        inputs = Inputs(units=units)
        traces = {owner: rule(owner, inputs) for owner, rule in self._rules}
        with ExitStack() as after:
            after.enter_context(_frozen(self.parameters.values()))
            for trace in traces.values():
                after.callback(trace.watch())
            torch.autograd.backward(total_loss(losses, range(units)))
        inputs.forget()
        for trace in traces.values():
            trace.require_complete()
        return traces


@contextmanager
def _frozen(weights: Iterable[nn.Parameter]) -> Iterator[None]:
    """Weights require no gradient inside, and do again afterwards."""
    try:
        for weight in weights:
            weight.requires_grad = False
        yield
    finally:
        for weight in weights:
            weight.requires_grad = True


def rule_for(owner: Owner) -> Rule:
    """How to get per-unit gradients of this module's weights; raises UnknownModule."""
    kind, trained = type(owner.module), set(owner.weights)
    if trained <= {"weight", "bias"}:
        if kind in (nn.Linear, Conv1D):  # exactly these: a subclass may compute something else
            return MatrixTrace
        if kind in (nn.LayerNorm, nn.RMSNorm) or kind.__name__.endswith("RMSNorm"):
            return partial(NormTrace, neutral=neutral_weight(owner))
        if _is_gpt_oss(kind, "GptOssTopKRouter"):
            return MatrixTrace
    if _is_gpt_oss(kind, "GptOssExperts"):
        check_experts(owner)
        return ExpertsTrace
    if _is_gpt_oss(kind, "GptOssAttention") and trained == {"sinks"}:
        check_sinks(owner)
        return SinksTrace
    raise unknown(owner, hint="train with the engine `loop`, which needs no rule, or freeze it")


def _is_gpt_oss(kind: type, name: str) -> bool:
    """By name: importing transformers' own module takes seconds that no other family needs."""
    return (kind.__module__, kind.__qualname__) == ("transformers.models.gpt_oss.modeling_gpt_oss", name)


def _norms(traces: Mapping[Owner, Trace]) -> Tensor:
    return torch.stack([trace.squared_norms() for trace in traces.values()]).sum(dim=0).sqrt()


def _weighted_sums(traces: dict[Owner, Trace], factors: Tensor) -> Iterator[tuple[str, Tensor]]:
    """By full name; lets go of each module's tensors once they are summed."""
    for owner in list(traces):
        for own, total in traces.pop(owner).sums(factors):
            yield owner.weights[own], total
