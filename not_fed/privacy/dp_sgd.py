"""DP-SGD on a span of transformer layers: clip each record's gradient, sum, add noise once, divide by a constant.

The engine freezes the span's weights during the pass, so that autograd computes gradients of activations only, and
keeps for every trained module what went in and what came back. Norms, clipping and the sum follow from these
(`book_keeping`). One forward and one backward pass; about the cost of a step without privacy.

What must hold for the promise, and who checks it:
- each record's gradient depends on that record alone. The span must be in eval mode (checked); batch normalisation,
  unknown modules and modules used twice are refused (checked); `check_against_autograd` compares with plain autograd.
- positions that are padding contribute nothing. They do not when the caller masks their loss and pads on the right (or
  masks their attention), because then no gradient comes back to them.
- the loss of a record is a mean over its own tokens, and the backward pass starts from the sum over records.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from not_fed.errors import FitError, InputError
from not_fed.privacy.accounting import DpPlan
from not_fed.privacy.book_keeping import Seen, Tap, UnknownModule, by_position, find_taps
from not_fed.privacy.noise import gaussian
from not_fed.privacy.randomness import RandomSource

CLIP_MARGIN = 1e-5  # norms are trusted to this relative error, so that rounding cannot carry a record above the clip
GRID = 2.0**-12  # of the noise's standard deviation; released sums are multiples of it


class BadClip(InputError):
    """The clip is not a positive, finite number."""

    code = "clip"


class SpanInTraining(FitError):
    """A span in training mode may drop activations at random, and its clip would be wrong."""

    code = "span-in-training"


class SentinelDisagrees(FitError):
    """The engine's gradients of single records are not those of plain autograd."""

    code = "sentinel-disagrees"


def clip_factor(norms: Tensor, *, max_grad_norm: float) -> Tensor:
    """By how much to scale each record's gradient so that none is longer than the clip.

    Args:
        norms: one L2 norm per record, shape (records,), any float dtype.
        max_grad_norm: the clip, in the units of the gradients.
    Returns:
        shape (records,), float64, each between 0 and 1.
    Raises:
        BadClip: max_grad_norm is not a positive, finite number.
    Guarantees:
        factor * norm <= max_grad_norm, also when the norm was measured up to 1e-5 too short. A record whose norm is NaN
        or infinite gets 0.
    Proved by: tests/unit/test_dp_sgd.py::test_removing_any_record_moves_the_sum_by_at_most_the_clip
    Source: Abadi et al. 2016, Deep Learning with Differential Privacy, Algorithm 1.

    >>> clip_factor(torch.tensor([0.5, 4.0, torch.nan]), max_grad_norm=2.0)
    tensor([1.0000, 0.5000, 0.0000], dtype=torch.float64)
    """
    if not 0 < max_grad_norm < math.inf:
        raise BadClip(
            where="plan, field max_grad_norm",
            expected="a positive, finite number",
            got=repr(max_grad_norm),
            hint="nothing was trained",
        )
    exact = norms.double()
    factors = (max_grad_norm / (exact * (1 + CLIP_MARGIN))).clamp(max=1.0)
    return factors.where(exact.isfinite(), 0.0)


class SpanGradients:
    """Clipped sums of per-record gradients of the trained weights in a span of layers.

    Args:
        layers: the span's layers in order. Their weights that require a gradient now are the ones trained.
    Raises:
        UnknownModule: a trained module is one that the engine has no rule for.

    >>> engine = SpanGradients([nn.Linear(2, 1, bias=False).eval()])
    >>> hidden = torch.tensor([[[3.0, 4.0]], [[0.0, 0.5]]], requires_grad=True)  # (records, positions, inputs)
    >>> with engine.capture():
    ...     engine.layers[0](hidden).sum().backward()
    >>> engine.norms()
    tensor([5.0000, 0.5000], dtype=torch.float64)
    >>> sums = engine.zero_sums()
    >>> engine.clip_into(sums, max_grad_norm=1.0, records=2)
    >>> sums["0.weight"]
    tensor([[0.6000, 1.3000]], dtype=torch.float64)
    """

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        self.layers = tuple(layers)
        self._taps = find_taps(self.layers)
        self.parameters: Mapping[str, nn.Parameter] = {
            name: tap.module.get_parameter(own) for tap in self._taps for own, name in tap.weights.items()
        }
        if not self.parameters:
            raise UnknownModule(
                where="span", expected="weights that require a gradient", got="none", hint="unfreeze the span's layers"
            )
        self._pass: _Pass | None = None

    def zero_sums(self) -> dict[str, Tensor]:
        """Where a step's micro-batches add up: a float64 zero tensor per trained weight. An empty sample stays so."""
        return {
            name: torch.zeros(weight.shape, dtype=torch.float64, device=weight.device)
            for name, weight in self.parameters.items()
        }

    @contextmanager
    def capture(self) -> Iterator[None]:
        """Watch one forward pass from a span input that requires a gradient, and one backward pass.

        Inside, call backward on the sum over records of each record's mean token loss. The span's weights require no
        gradient meanwhile, and do again afterwards, whatever happens.

        Raises:
            SpanInTraining: a module of the span is in training mode.
            UnknownModule: a module ran twice, never, or on something other than one tensor with a row per record.
        """
        self._require_eval()
        self._pass = None
        current = _Pass()
        hooks = [current.watch(tap) for tap in self._taps]
        try:
            for weight in self.parameters.values():
                weight.requires_grad = False
            yield
            current.require_complete(self._taps)
            self._pass = current
        finally:
            for hook in hooks:
                hook.remove()
            for weight in self.parameters.values():
                weight.requires_grad = True

    def norms(self) -> Tensor:
        """L2 norm of each captured record's gradient over all trained weights; shape (records,), float64.

        For tests and the sentinel only: the norm of a private record's gradient must not leave the site.
        """
        return self._captured().norms(self._taps)

    def clip_into(self, sums: dict[str, Tensor], *, max_grad_norm: float, records: int) -> None:
        """Add the captured records' clipped gradients to `sums`. A capture can be added once.

        Args:
            sums: from `zero_sums`; float64, so that many micro-batches add up without drift.
            max_grad_norm: the clip.
            records: how many records the caller believes it captured.
        Raises:
            BadClip: max_grad_norm is not a positive, finite number.
            UnknownModule: a module saw another number of rows than `records`.
        Guarantees:
            Adding or removing one record moves `sums` by at most max_grad_norm (L2, rounding of the layers' own
            arithmetic aside). A record with a NaN or an infinity in its gradient counts as zero.
        Proved by: tests/unit/test_dp_sgd.py::test_removing_any_record_moves_the_sum_by_at_most_the_clip
        """
        captured = self._captured()
        captured.require_rows(self._taps, records=records)
        factors = clip_factor(captured.norms(self._taps), max_grad_norm=max_grad_norm)
        self._pass = None
        for name, total in captured.weighted_sums(self._taps, factors):
            sums[name] += total

    def _captured(self) -> _Pass:
        if self._pass is None:
            raise RuntimeError("nothing captured, or already added; run a forward and a backward pass in capture()")
        return self._pass

    def _require_eval(self) -> None:
        for place, layer in enumerate(self.layers):
            for path, module in layer.named_modules(prefix=str(place)):
                if module.training:
                    raise SpanInTraining(
                        where=f"layer module {path}",
                        expected="evaluation mode",
                        got="training mode",
                        hint="call .eval() on the model before training with differential privacy",
                    )


class _Pass:
    """What one forward and one backward pass left behind."""

    def __init__(self) -> None:
        self._inputs: dict[tuple[object, ...], Seen] = {}
        self._seen: dict[str, Seen] = {}
        self._back: dict[str, Tensor] = {}
        self._norms: Tensor | None = None

    def watch(self, tap: Tap) -> RemovableHandle:
        """Keep the module's input when it runs and its output's gradient when that comes back."""

        def ran(module: nn.Module, args: tuple[object, ...], kwargs: dict[str, object], output: object) -> None:
            if tap.name in self._seen:
                raise _misused(tap, got="used more than once in one forward pass")
            if len(args) != 1 or kwargs or not isinstance(args[0], Tensor) or not isinstance(output, Tensor):
                raise _misused(tap, got="called with something other than one tensor")
            if not output.requires_grad:
                raise _misused(tap, got="run without a gradient; the span's input must require one")
            self._seen[tap.name] = self._keep(args[0])
            output.register_hook(came_back)  # type: ignore[no-untyped-call]

        def came_back(gradient: Tensor) -> None:
            if tap.name in self._back:
                raise _misused(tap, got="used in more than one backward pass")
            self._back[tap.name] = gradient

        return tap.module.register_forward_hook(ran, with_kwargs=True)

    def _keep(self, tensor: Tensor) -> Seen:
        key = (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype, tensor._version)
        return self._inputs.setdefault(key, Seen(tensor))

    def require_complete(self, taps: Sequence[Tap]) -> None:
        """Every trained module was seen once, in both directions, and nothing was overwritten since."""
        self._inputs.clear()  # from here on the last module to use an input lets go of it
        for tap in taps:
            if tap.name not in self._seen:
                raise _misused(tap, got="not run, though it is trained")
            if tap.name not in self._back:
                raise _misused(
                    tap, got="without a gradient: the loss does not depend on it, or backward was not called"
                )
            if not self._seen[tap.name].is_intact:
                raise _misused(tap, got="given an input that was overwritten after it was read")

    def require_rows(self, taps: Sequence[Tap], *, records: int) -> None:
        """Every module's first dimension is the record."""
        for tap in taps:
            rows = {self._seen[tap.name].raw.shape[0], self._back[tap.name].shape[0]}
            if rows != {records}:
                raise _misused(tap, got=f"given {max(rows)} rows where {records} records were expected")

    def norms(self, taps: Sequence[Tap]) -> Tensor:
        """Over all modules together, computed once."""
        if self._norms is None:
            squares = [tap.rule.squared_norms(self._seen[tap.name], by_position(self._back[tap.name])) for tap in taps]
            self._norms = torch.stack(squares).sum(dim=0).sqrt()
        return self._norms

    def weighted_sums(self, taps: Sequence[Tap], factors: Tensor) -> Iterator[tuple[str, Tensor]]:
        """Sum over records of factor times gradient, by the weights' full names; lets go of each module's tensors."""
        blank = factors == 0
        for tap in taps:
            seen, back = self._seen.pop(tap.name), by_position(self._back.pop(tap.name))
            if blank.any():
                seen, back = seen.without(blank), back.masked_fill(blank.reshape(-1, 1, 1), 0.0)
            back = back * factors.to(back.dtype).reshape(-1, 1, 1)
            for own, total in tap.rule.sums(seen, back):
                yield tap.weights[own], total


def _misused(tap: Tap, *, got: str) -> UnknownModule:
    return UnknownModule(
        where=f"layer module {tap.name}",
        expected="one forward and one backward pass through it, on one tensor with a row per record",
        got=got,
        hint="this span cannot be trained with differential privacy as it is",
    )


def check_against_autograd(
    engine: SpanGradients, *, losses: Callable[[Sequence[int]], Tensor], tolerance: float | None = None
) -> None:
    """Compare the engine with plain autograd on two records: the sentinel to run before a training with privacy.

    Args:
        losses: `losses([0, 1])` runs the span and what follows on these records and returns each one's mean token loss,
            shape (records,); the span's input must require a gradient. Two long records of unlike length see most.
        tolerance: largest relative error; without it 1e-3, or 5e-2 where a weight has fewer than 32 bits.
    Raises:
        SentinelDisagrees: their clipped sum differs by more than that part of the clip. Nothing was trained.
        UnknownModule, SpanInTraining: as `SpanGradients.capture`.
    Proved by: tests/unit/test_dp_sgd.py::test_the_sentinel_catches_a_module_that_is_not_what_its_name_says
    """
    if tolerance is None:
        coarse = any(weight.dtype not in (torch.float32, torch.float64) for weight in engine.parameters.values())
        tolerance = 5e-2 if coarse else 1e-3
    plain = [_autograd(engine, losses([record])) for record in (0, 1)]
    lengths = torch.stack([_length(grads) for grads in plain])
    clip = 0.5 * float(lengths.min().clamp(min=1e-6, max=1e6))  # both get clipped, so a wrong norm shows in the sum
    with engine.capture():
        torch.autograd.backward(losses([0, 1]).sum())
    difference = engine.zero_sums()
    engine.clip_into(difference, max_grad_norm=clip, records=2)
    for factor, grads in zip(clip_factor(lengths, max_grad_norm=clip).tolist(), plain, strict=True):
        for name, grad in grads.items():
            difference[name] -= factor * grad
    if not float(_length(difference)) <= tolerance * clip:  # also when it is NaN
        raise SentinelDisagrees(
            where="gradients of two records",
            expected=f"their clipped sum as plain autograd computes it, to a relative error of {tolerance:g}",
            got="a larger difference",
            hint="this model's layers are not what the engine takes them for; nothing was trained or spent",
        )


def _autograd(engine: SpanGradients, losses: Tensor) -> dict[str, Tensor]:
    grads = torch.autograd.grad(losses.sum(), list(engine.parameters.values()))
    return {name: grad.double() for name, grad in zip(engine.parameters, grads, strict=True)}


def _length(grads: Mapping[str, Tensor]) -> Tensor:
    lengths = [torch.linalg.vector_norm(grad, dtype=torch.float64) for grad in grads.values()]
    whole: Tensor = torch.linalg.vector_norm(torch.stack([length.cpu() for length in lengths]))
    return whole


def noisy_gradient(sums: Mapping[str, Tensor], *, plan: DpPlan, source: RandomSource) -> dict[str, Tensor]:
    """What a step may let out: the clipped sum plus noise, on a public grid, divided by the plan's divisor.

    Args:
        sums: clipped sums of one step by weight name, float64; zeros when no record was sampled.
        plan: noise multiplier, clip and divisor.
        source: where randomness comes from; the operating system outside tests.
    Returns:
        float32 gradients for the optimiser, on the devices of the sums.
    Guarantees:
        Gaussian noise of standard deviation noise_multiplier * max_grad_norm on every coordinate, fresh each call; the
        noisy sum is a multiple of that deviation / 4096 before the division, so that the low bits of floating point
        numbers say nothing about the sum underneath.
    Proved by: tests/unit/test_dp_sgd.py::test_the_noise_of_a_step_has_the_deviation_of_the_plan
    Source: Mironov 2012, On Significance of the Least Significant Bits for Differential Privacy.
    """
    deviation = plan.noise_multiplier * plan.max_grad_norm
    grid = deviation * GRID
    released = {}
    for name, total in sums.items():
        noise = gaussian(total.shape, std=deviation, source=source).to(total.device)
        ticks = noise.add_(total).div_(grid).round_()
        released[name] = ticks.mul_(grid / plan.divisor).float()
    return released
