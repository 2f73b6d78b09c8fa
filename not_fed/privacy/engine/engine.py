"""Engines find each unit's gradient and add up the clipped ones; all do the same sum, at different costs.

- book-keeping: one forward and one backward pass, about the cost of a step without privacy. The usual one.
- loop: plain autograd, one unit at a time. For modules that book-keeping has no rule for; the reference.
- opacus: the hooks of the Opacus library, for comparison.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Literal, Protocol

import torch
from torch import Tensor, nn

from not_fed.errors import FitError
from not_fed.privacy.dp_sgd import clip_factor, l2_norm
from not_fed.privacy.engine.book_keeping import BookKeeping
from not_fed.privacy.engine.per_record import PerRecordLoop, plain_gradient
from not_fed.privacy.engine.trainable import CannotClip, UnknownModule, total_loss
from not_fed.privacy.engine.trainable import Losses as Losses

Wanted = Literal["auto", "book-keeping", "loop", "opacus"]

TOLERANCE = 1e-3  # of the sentinel, relative to the clip
COARSE_TOLERANCE = 5e-2  # where layers compute in fewer than 32 bits
STIRRED = 0.02  # deviation of what stands for zeros while the sentinel looks


class SentinelDisagrees(FitError):
    """The engine's gradients of single units are not those of plain autograd."""

    code = "sentinel-disagrees"


class Engine(Protocol):
    """Clipped sums of per-unit gradients of the trained weights in a span of layers.

    A unit is what neighbouring data sets differ by: a record, which is one row of the batch, or a person with several
    rows that follow each other. `losses` runs the span and what follows:
    `losses(positions)` puts the rows of the units at these positions of the micro-batch into one batch, in that order
    and equally many each (short ones padded with rows that have no loss), and returns each unit's loss, shape
    (len(positions),). The loss of a record is the mean over its own tokens, that of a person the mean over records.
    """

    name: str
    parameters: Mapping[str, nn.Parameter]

    def zero_sums(self) -> dict[str, Tensor]:
        """Where a step's micro-batches add up: a float64 zero tensor per trained weight. An empty sample stays so."""

    def clip_into(self, sums: dict[str, Tensor], *, losses: Losses, units: int, max_grad_norm: float) -> None:
        """Add the clipped gradients of a micro-batch to `sums`; memory is set by the micro-batch alone.

        Args:
            sums: from `zero_sums`; float64, so that many micro-batches add up without drift.
            losses: see above; the span's input must require a gradient.
            units: how many units of privacy the micro-batch has.
            max_grad_norm: the clip.
        Guarantees:
            Adding or removing one unit moves `sums` by at most max_grad_norm (L2, rounding of the layers' own
            arithmetic aside), whatever the split into micro-batches. A unit with a NaN or an infinity in its gradient
            counts as zero.
        Proved by: tests/unit/test_dp_sgd.py::test_removing_any_unit_moves_the_sum_by_at_most_the_clip
        """


def choose_engine(layers: Sequence[nn.Module], *, wanted: Wanted = "auto", warn: Callable[[str], None]) -> Engine:
    """The engine for a span.

    Args:
        layers: the span's layers in order. Their weights that require a gradient now are the ones trained.
        wanted: "auto" is book-keeping where it has a rule for every trained module, and else the loop.
        warn: told, in one line, when "auto" has to take the loop.
    Raises:
        UnknownModule: the engine that was asked for cannot bound what one unit does to some module's gradient.
        CannotClip: no engine can.
    Proved by: tests/unit/test_engines.py::test_a_module_without_a_rule_is_trained_one_record_at_a_time_and_that_is_said
    """
    if wanted == "loop":
        return PerRecordLoop(layers)
    if wanted == "opacus":
        from not_fed.privacy.engine.opacus_hooks import OpacusHooks  # slow to import, and rarely asked for

        return OpacusHooks(layers)
    try:
        return BookKeeping(layers)
    except UnknownModule as missing:
        if wanted == "book-keeping":
            raise
        warn(f"{missing.where} is a {missing.got}, which has no rule: records are clipped one at a time, 2-3x slower")
        return PerRecordLoop(layers)


def check_against_autograd(engine: Engine, *, losses: Losses, tolerance: float | None = None) -> None:
    """Compare the engine with plain autograd on two units: the sentinel to run before a training with privacy.

    Args:
        losses: as for `Engine.clip_into`, on a micro-batch of two units. Two long ones of unlike length see most.
        tolerance: largest relative error; without it `TOLERANCE`, or `COARSE_TOLERANCE` where the layers' weights have
            fewer than 32 bits. Pass `COARSE_TOLERANCE` under autocast.
    Guarantees:
        the weights are afterwards as they were. Those that are nothing but zeros, such as LoRA's B at its start, are
        random meanwhile: behind zeros every gradient is zero, and a wrong one would not show.
    Raises:
        SentinelDisagrees: their clipped sum differs by more than that part of the clip. Nothing was trained.
        CannotClip: the losses depend on a trained weight that is not one of the engine's.
        UnknownModule, SpanInTraining: as `Engine.clip_into`.
    Proved by: tests/unit/test_engines.py::test_the_sentinel_catches_a_module_that_is_not_what_its_name_says,
        tests/unit/test_engines.py::test_the_sentinel_sees_what_lies_behind_weights_that_are_zero
    """
    if tolerance is None:
        coarse = any(weight.dtype not in (torch.float32, torch.float64) for weight in engine.parameters.values())
        tolerance = COARSE_TOLERANCE if coarse else TOLERANCE
    with _none_at_zero(engine.parameters.values()):
        _compare(engine, losses, tolerance=tolerance)


@contextmanager
def _none_at_zero(weights: Iterable[Tensor]) -> Iterator[None]:
    """Weights that are nothing but zeros are small random numbers inside, and zeros again afterwards."""
    zeros = [weight for weight in weights if not bool(weight.any())]
    source = torch.Generator().manual_seed(0)
    try:
        with torch.no_grad():
            for weight in zeros:
                weight.copy_(STIRRED * torch.randn(weight.shape, generator=source))
        yield
    finally:
        with torch.no_grad():
            for weight in zeros:
                weight.zero_()


def _compare(engine: Engine, losses: Losses, *, tolerance: float) -> None:
    alone = [total_loss(losses, [unit]) for unit in (0, 1)]
    for loss in alone:
        _require_owned(engine, loss)
    plain = [plain_gradient(engine.parameters, loss) for loss in alone]
    lengths = torch.stack([l2_norm(grads) for grads in plain])
    clip = 0.5 * float(lengths.min().clamp(min=1e-6, max=1e6))  # both get clipped, so a wrong norm shows in the sum
    difference = engine.zero_sums()
    engine.clip_into(difference, losses=losses, units=2, max_grad_norm=clip)
    for factor, grads in zip(clip_factor(lengths, max_grad_norm=clip).tolist(), plain, strict=True):
        for name, grad in grads.items():
            difference[name] -= factor * grad
    if not float(l2_norm(difference)) <= tolerance * clip:  # also when it is NaN
        raise SentinelDisagrees(
            where="gradients of two units",
            expected=f"their clipped sum as plain autograd computes it, to a relative error of {tolerance:g}",
            got="a larger difference",
            hint="this model's layers are not what the engine takes them for; nothing was trained or spent",
        )


def _require_owned(engine: Engine, loss: Tensor) -> None:
    """All that the loss's gradient reaches is the engine's weights, and one input."""
    ours = {id(weight) for weight in engine.parameters.values()}
    others = [leaf for leaf in _leaves(loss) if id(leaf) not in ours]
    if len(others) > 1 or any(isinstance(leaf, nn.Parameter) for leaf in others):
        raise CannotClip(
            where="loss of a unit",
            expected="a gradient for the span's weights and its input alone",
            got="one for other tensors too",
            hint="freeze everything outside the span, and register what the span trains as parameters of its modules",
        )


def _leaves(result: Tensor) -> Iterator[Tensor]:
    """Every leaf tensor that the result's gradient reaches."""
    waiting, met = [result.grad_fn], set()
    while waiting:
        node = waiting.pop()
        if node is None or node in met:
            continue
        met.add(node)
        if hasattr(node, "variable"):
            yield node.variable
        waiting.extend(following for following, _ in node.next_functions)
