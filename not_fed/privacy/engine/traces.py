"""What one module leaves behind in one forward and one backward pass, and the per-unit gradients that follow from it.

The rules here are for modules that are given one tensor: linear layers, routers and norms. A trace computes norms and
sums from the same tensors, so what is clipped is what is summed, whatever precision the layers ran in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.func import functional_call
from transformers.pytorch_utils import Conv1D

from not_fed.privacy.engine.matrices import (
    Seen,
    as_column,
    by_unit,
    exact,
    gram_is_cheaper,
    gram_squares,
    materialised_squares,
    squares,
    weighted,
)
from not_fed.privacy.engine.trainable import Owner, UnknownModule, describe


class Inputs:
    """What modules were given in one pass; modules that read the same tensor share what is computed from it."""

    def __init__(self, *, units: int) -> None:
        self.units = units
        self._seen: dict[tuple[object, ...], Seen] = {}

    def keep(self, tensor: Tensor) -> Seen:
        """The tensor, kept once."""
        key = (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype, tensor._version)
        return self._seen.setdefault(key, Seen(tensor, units=self.units))

    def forget(self) -> None:
        """From here on the last module to use a tensor lets go of it."""
        self._seen.clear()


class Trace(Protocol):
    """One trained module in one pass. Order of calls: watch, the pass, its result, require_complete, then the rest."""

    def watch(self) -> Callable[[], None]:
        """Start to look; returns what ends it, whatever happened in between."""

    def require_complete(self) -> None:
        """The module ran once in each direction, on what its rule is for; raises UnknownModule."""

    def squared_norms(self) -> Tensor:
        """Of each unit's gradient over all trained weights of the module; shape (units,), float64."""

    def sums(self, factors: Tensor) -> Iterator[tuple[str, Tensor]]:
        """Sum over units of factor times gradient, by the module's own names. `factors`: (units,), float64."""


Rule = Callable[[Owner, Inputs], Trace]


class OneTensorTrace:
    """A module that is given one tensor and returns one, or returns it first among others."""

    def __init__(self, owner: Owner, inputs: Inputs) -> None:
        self.owner, self.inputs = owner, inputs
        self.seen: Seen | None = None
        self.back: Tensor | None = None  # G: (units, positions, outputs), float32 or better

    def watch(self) -> Callable[[], None]:
        """Keep the module's input when it runs and its output's gradient when that comes back."""
        return self.owner.module.register_forward_hook(self._ran, with_kwargs=True).remove

    def _ran(self, _: nn.Module, args: tuple[object, ...], kwargs: dict[str, object], output: object) -> None:
        if self.seen is not None:
            raise misused(self.owner, got="used more than once in one forward pass")
        result = output[0] if isinstance(output, tuple) else output
        if len(args) != 1 or kwargs or not isinstance(args[0], Tensor) or not isinstance(result, Tensor):
            raise misused(self.owner, got="called with something other than one tensor")
        if args[0].shape[:-1] != result.shape[:-1] or args[0].shape[0] % self.inputs.units:
            raise misused(
                self.owner, got=f"given {args[0].shape[0]} rows, which are not those of {self.inputs.units} units"
            )
        if not result.requires_grad:
            raise misused(self.owner, got="run without a gradient; the span's input must require one")
        self.seen = self.inputs.keep(args[0])
        result.register_hook(self._came_back)  # type: ignore[no-untyped-call]

    def _came_back(self, gradient: Tensor) -> None:
        if self.back is not None:
            raise misused(self.owner, got="used in more than one backward pass")
        self.back = by_unit(gradient, units=self.inputs.units)

    def require_complete(self) -> None:
        """It ran, a gradient came back, and nothing was overwritten since."""
        if self.seen is None:
            raise misused(self.owner, got="not run, though it is trained")
        if self.back is None:
            raise misused(
                self.owner, got="without a gradient: the loss does not depend on it, or backward was not called"
            )
        if not self.seen.is_intact:
            raise misused(self.owner, got="given an input that was overwritten after it was read")

    def whole(self) -> tuple[Seen, Tensor]:
        """A and G."""
        if self.seen is None or self.back is None:
            raise RuntimeError("the pass is not complete")
        return self.seen, self.back


class MatrixTrace(OneTensorTrace):
    """nn.Linear and a router (outputs, inputs) and, transposed, the Conv1D of transformers (inputs, outputs)."""

    def squared_norms(self) -> Tensor:
        """By Gram matrices or by forming each unit's gradient, whichever takes fewer multiplications."""
        seen, back = self.whole()
        total = torch.zeros(self.inputs.units, dtype=torch.float64, device=back.device)
        if "weight" in self.owner.weights:
            rows = seen.rows()
            if gram_is_cheaper(positions=rows.shape[1], inputs=rows.shape[2], outputs=back.shape[2]):
                total += gram_squares(seen.gram(), back)
            else:
                total += materialised_squares(rows, back)
        if "bias" in self.owner.weights:
            total += squares(back.sum(dim=1))
        return total

    def sums(self, factors: Tensor) -> Iterator[tuple[str, Tensor]]:
        """One matrix product for the weight, one small sum for the bias."""
        seen, back = self.whole()
        if "weight" in self.owner.weights:
            rows, scaled = scale(seen.rows(), back, factors)
            left, right = (rows, scaled) if isinstance(self.owner.module, Conv1D) else (scaled, rows)
            yield "weight", left.flatten(0, 1).T @ right.flatten(0, 1)
        if "bias" in self.owner.weights:
            yield "bias", weighted(back.sum(dim=1), factors)


class NormTrace(OneTensorTrace):
    """LayerNorm, and every RMSNorm whose weight multiplies the normalised activations (as it is, or as 1 + weight)."""

    def __init__(self, owner: Owner, inputs: Inputs, *, neutral: float) -> None:
        """`neutral`: the weight at which the module returns its normalised input; 1, or 0 where it adds 1 itself."""
        super().__init__(owner, inputs)
        self._neutral = neutral
        self._grads: Mapping[str, Tensor] | None = None

    def squared_norms(self) -> Tensor:
        """From each unit's gradient, which is as small as the weight."""
        return torch.stack([squares(grad) for grad in self._by_unit().values()]).sum(dim=0)

    def sums(self, factors: Tensor) -> Iterator[tuple[str, Tensor]]:
        """The same gradients, weighted."""
        for name, grad in self._by_unit().items():
            yield name, weighted(grad, factors)

    def _by_unit(self) -> Mapping[str, Tensor]:
        if self._grads is None:
            seen, back = self.whole()
            self._grads = {name: self._grad(name, seen, back) for name in self.owner.weights}
        return self._grads

    def _grad(self, name: str, seen: Seen, back: Tensor) -> Tensor:
        if name == "bias":
            return back.sum(dim=1)
        rows = by_unit(normalised(self.owner.module, exact(seen.raw), neutral=self._neutral), units=seen.units)
        return torch.einsum("upf,upf->uf", rows, back)


def scale(rows: Tensor, back: Tensor, factors: Tensor) -> tuple[Tensor, Tensor]:
    """A and factor times G, blanked in both where the factor is 0: zero times infinity is not zero."""
    blank = factors == 0
    if blank.any():
        rows, back = (part.masked_fill(as_column(blank, part), 0.0) for part in (rows, back))
    return rows, back * as_column(factors.to(back.dtype), back)


def misused(owner: Owner, *, got: str) -> UnknownModule:
    """The error for a module that was not used in the way that its rule is for."""
    return UnknownModule(
        where=f"layer module {owner.name}",
        expected="one forward and one backward pass through it, on one tensor with the same number of rows per unit",
        got=got,
        hint="train with the engine `loop`, which is slower and needs no rule",
    )


def unknown(owner: Owner, *, hint: str) -> UnknownModule:
    """The error for a module that book-keeping has no rule for."""
    return UnknownModule(
        where=f"layer module {owner.name}",
        expected="Linear, Conv1D, LayerNorm, an RMSNorm, or the experts, router and attention of GPT-OSS",
        got=describe(owner.module),
        hint=hint,
    )


# norms -------------------------------------------------------------------------------------------------------------


def normalised(module: nn.Module, tensor: Tensor, *, neutral: float) -> Tensor:
    """The input as the module's weight meets it: the module's own forward with its weight at `neutral` and no bias."""
    weights = {
        name: torch.full_like(weight, neutral if name == "weight" else 0.0, dtype=tensor.dtype)
        for name, weight in module.named_parameters(recurse=False)
    }
    with torch.no_grad():
        result: Tensor = functional_call(module, weights, (tensor,))
    return result


def neutral_weight(owner: Owner) -> float:
    """Check on a random probe that the module is `normalised(x) * (weight + constant) + bias`; find the constant."""
    module = owner.module
    weight = module.get_parameter("weight")
    if weight.ndim == 1 and weight.device.type != "meta":
        source = torch.Generator().manual_seed(0)
        probe = exact(torch.randn((3, 2, len(weight)), generator=source).to(weight))
        for neutral in (1.0, 0.0):
            silent = normalised(module, probe, neutral=neutral - 1.0)
            if not silent.any() and _weight_multiplies(module, probe, neutral=neutral):
                return neutral
    raise unknown(owner, hint="its weight does not simply multiply the normalised input")


def _weight_multiplies(module: nn.Module, probe: Tensor, *, neutral: float) -> bool:
    """Scaled elementwise, shifted by the bias, and each record on its own."""
    base = normalised(module, probe, neutral=neutral)
    source = torch.Generator().manual_seed(1)
    weights = {
        name: torch.randn(weight.shape, generator=source).to(probe)
        for name, weight in module.named_parameters(recurse=False)
    }
    with torch.no_grad():
        result = functional_call(module, weights, (probe,))
    expected = base * (weights["weight"] + (1.0 - neutral)) + weights.get("bias", 0.0)
    alone = normalised(module, probe[:1], neutral=neutral)
    slack = 8 * torch.finfo(probe.dtype).eps
    return torch.allclose(result, expected, rtol=slack, atol=slack) and torch.allclose(base[:1], alone, rtol=slack)
