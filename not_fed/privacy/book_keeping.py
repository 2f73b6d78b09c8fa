"""Per-record gradient norms and weighted sums from what a layer saw (A) and what came back to it (G).

The gradient of one record for a matrix is the sum over its positions of `g_t a_t^T`. Its squared norm follows from two
small Gram matrices without ever forming it, and the weighted sum over records is one matrix product. So clipping costs
one forward and one backward pass, and clips exactly what it sums: the same tensors.

Source: Goodfellow 2015, Efficient Per-Example Gradient Computations; Bu et al. 2022, Scalable and Efficient Training of
Large Convolutional Neural Networks with Differential Privacy (which of the two ways is cheaper).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.func import functional_call
from transformers.pytorch_utils import Conv1D

from not_fed.errors import FitError

GRAM_SLACK = 4.0  # units of rounding, see _gram_squares
MATERIALISED_BYTES = 64 * 2**20  # per-record gradients held at a time where forming them is cheaper


class UnknownModule(FitError):
    """The engine cannot bound what one record does to this module's gradient."""

    code = "unknown-module"


class Seen:
    """What a module was given: kept once, however many modules read it. Shape (records, ..., inputs)."""

    def __init__(self, tensor: Tensor) -> None:
        self.raw = tensor.detach()  # in the layer's own precision
        self._version = self.raw._version
        self._gram: Tensor | None = None

    @property
    def is_intact(self) -> bool:
        """False when something wrote into the tensor after the module had read it."""
        return self.raw._version == self._version

    def rows(self) -> Tensor:
        """Shape (records, positions, inputs), float32 or better."""
        return by_position(self.raw)

    def gram(self) -> Tensor:
        """Inner products of all pairs of positions; shape (records, positions, positions)."""
        if self._gram is None:
            self._gram = _gram(self.rows())
        return self._gram

    def without(self, records: Tensor) -> Seen:
        """The same with some records blanked out: zero times infinity is not zero. `records`: bool, (records,)."""
        return Seen(self.raw.masked_fill(_as_column(records, self.raw), 0.0))


class Rule(Protocol):
    """How one kind of module turns A and G into norms and sums. `back` is G: (records, positions, outputs)."""

    def squared_norms(self, seen: Seen, back: Tensor) -> Tensor:
        """Of each record's gradient over all trained weights of the module; shape (records,), float64."""

    def sums(self, seen: Seen, back: Tensor) -> Iterator[tuple[str, Tensor]]:
        """The gradient summed over records, by the module's own names. To weight the records, weight `back`."""


@dataclass(frozen=True, slots=True)
class MatrixRule:
    """nn.Linear (outputs, inputs) and, transposed, the Conv1D of transformers (inputs, outputs)."""

    trained: frozenset[str]
    transposed: bool

    def squared_norms(self, seen: Seen, back: Tensor) -> Tensor:
        """By Gram matrices or by forming each record's gradient, whichever takes fewer multiplications."""
        squares = torch.zeros(len(back), dtype=torch.float64, device=back.device)
        if "weight" in self.trained:
            rows = seen.rows()
            if gram_is_cheaper(positions=rows.shape[1], inputs=rows.shape[2], outputs=back.shape[2]):
                squares += _gram_squares(seen, back)
            else:
                squares += _materialised_squares(rows, back)
        if "bias" in self.trained:
            squares += _squares(back.sum(dim=1))
        return squares

    def sums(self, seen: Seen, back: Tensor) -> Iterator[tuple[str, Tensor]]:
        """One matrix product for the weight, one sum for the bias."""
        if "weight" in self.trained:
            left, right = (seen.rows(), back) if self.transposed else (back, seen.rows())
            yield "weight", left.flatten(0, 1).T @ right.flatten(0, 1)
        if "bias" in self.trained:
            yield "bias", back.sum(dim=(0, 1))


@dataclass(frozen=True, slots=True)
class NormRule:
    """LayerNorm, and every RMSNorm whose weight multiplies the normalised activations (as it is, or as 1 + weight)."""

    trained: frozenset[str]
    module: nn.Module
    unit: float  # the weight at which the module returns its normalised input: 1, or 0 where it adds 1 itself

    def squared_norms(self, seen: Seen, back: Tensor) -> Tensor:
        """From each record's gradient, which is as small as the weight."""
        squares = torch.zeros(len(back), dtype=torch.float64, device=back.device)
        if "weight" in self.trained:
            squares += _squares((self._normalised(seen) * back).sum(dim=1))
        if "bias" in self.trained:
            squares += _squares(back.sum(dim=1))
        return squares

    def sums(self, seen: Seen, back: Tensor) -> Iterator[tuple[str, Tensor]]:
        """Elementwise products, summed over records and positions."""
        if "weight" in self.trained:
            yield "weight", (self._normalised(seen) * back).sum(dim=(0, 1))
        if "bias" in self.trained:
            yield "bias", back.sum(dim=(0, 1))

    def _normalised(self, seen: Seen) -> Tensor:
        return by_position(normalised(self.module, seen.raw, unit=self.unit))


@dataclass(frozen=True, slots=True)
class Tap:
    """One module that is trained, and the full names of its trained weights."""

    name: str
    module: nn.Module
    rule: Rule
    weights: Mapping[str, str]


def find_taps(layers: Sequence[nn.Module]) -> tuple[Tap, ...]:
    """Every module of the layers that owns a trained weight, in order; names start with the layer's position.

    Raises:
        UnknownModule: a trained module is of a kind that the engine has no rule for, or appears twice.
    """
    taps: list[Tap] = []
    owners: dict[int, str] = {}
    for place, layer in enumerate(layers):
        for path, module in layer.named_modules(remove_duplicate=False, prefix=str(place)):
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                raise _unknown(path, module, hint="batch normalisation mixes records; no clip per record can exist")
            own = {name: weight for name, weight in module.named_parameters(recurse=False) if weight.requires_grad}
            for name, weight in own.items():
                if owners.setdefault(id(weight), path) != path:
                    raise _unknown(path, module, hint=f"its {name} is also used by {owners[id(weight)]}; untie them")
            if own:
                weights = {name: f"{path}.{name}" for name in own}
                taps.append(Tap(name=path, module=module, rule=_rule_for(path, module, own), weights=weights))
    return tuple(taps)


def _rule_for(path: str, module: nn.Module, own: Mapping[str, nn.Parameter]) -> Rule:
    kind, trained = type(module), frozenset(own)
    if trained <= {"weight", "bias"}:
        if kind in (nn.Linear, Conv1D):  # exactly these: a subclass may compute something else
            return MatrixRule(trained=trained, transposed=kind is Conv1D)
        if kind in (nn.LayerNorm, nn.RMSNorm) or kind.__name__.endswith("RMSNorm"):
            return NormRule(trained=trained, module=module, unit=_unit_of(path, module))
    raise _unknown(path, module, hint="the engine has no rule for it; train without differential privacy, or freeze it")


def _unknown(path: str, module: nn.Module, *, hint: str) -> UnknownModule:
    weights = ", ".join(name for name, _ in module.named_parameters(recurse=False)) or "none"
    return UnknownModule(
        where=f"layer module {path}",
        expected="Linear, Conv1D, LayerNorm or an RMSNorm, each used once",
        got=f"{type(module).__name__} with weights {weights}",
        hint=hint,
    )


# norms -------------------------------------------------------------------------------------------------------------


def normalised(module: nn.Module, tensor: Tensor, *, unit: float) -> Tensor:
    """The input as the module's weight meets it: the module's own forward with its weight at `unit` and no bias."""
    weights = {
        name: torch.full_like(weight, unit if name == "weight" else 0.0)
        for name, weight in module.named_parameters(recurse=False)
    }
    with torch.no_grad():
        result: Tensor = functional_call(module, weights, (tensor,))
    return result


def _unit_of(path: str, module: nn.Module) -> float:
    """Check on a random probe that the module is `normalised(x) * (weight + constant) + bias`; find the constant."""
    weight = module.get_parameter("weight")
    if weight.ndim == 1 and weight.device.type != "meta":
        source = torch.Generator().manual_seed(0)
        probe = torch.randn((3, 2, len(weight)), generator=source).to(weight)
        for unit in (1.0, 0.0):
            silent = normalised(module, probe, unit=unit - 1.0)
            if not silent.any() and _weight_multiplies(module, probe, unit=unit):
                return unit
    raise _unknown(path, module, hint="its weight does not simply multiply the normalised input")


def _weight_multiplies(module: nn.Module, probe: Tensor, *, unit: float) -> bool:
    """Scaled elementwise, shifted by the bias, and each record on its own."""
    base = normalised(module, probe, unit=unit)
    source = torch.Generator().manual_seed(1)
    weights = {
        name: torch.randn(weight.shape, generator=source).to(weight)
        for name, weight in module.named_parameters(recurse=False)
    }
    with torch.no_grad():
        result = functional_call(module, weights, (probe,))
    expected = base * (weights["weight"] + (1.0 - unit)) + weights.get("bias", 0.0)
    alone = normalised(module, probe[:1], unit=unit)
    slack = 8 * torch.finfo(probe.dtype).eps
    return torch.allclose(result, expected, rtol=slack, atol=slack) and torch.allclose(base[:1], alone, rtol=slack)


# matrices ----------------------------------------------------------------------------------------------------------


def gram_is_cheaper(*, positions: int, inputs: int, outputs: int) -> bool:
    """T^2 (inputs + outputs) multiplications against T * inputs * outputs."""
    return positions * (inputs + outputs) <= inputs * outputs


def by_position(tensor: Tensor) -> Tensor:
    """Shape (records, positions, features), float32 or better; all middle dimensions become positions."""
    exact = tensor if tensor.dtype in (torch.float32, torch.float64) else tensor.float()
    return exact.reshape(exact.shape[0], -1, exact.shape[-1])


def _as_column(flags: Tensor, like: Tensor) -> Tensor:
    return flags.reshape(-1, *[1] * (like.ndim - 1))


def _gram(rows: Tensor) -> Tensor:
    return torch.bmm(rows, rows.transpose(1, 2))


def _squares(rows: Tensor) -> Tensor:
    lengths: Tensor = torch.linalg.vector_norm(rows, dim=1, dtype=torch.float64)
    return lengths.square()


def _gram_squares(seen: Seen, back: Tensor) -> Tensor:
    """Sum over pairs of positions of <a_s, a_t> <g_s, g_t>, and a little more, so that rounding never makes it less.

    The terms can cancel (think of a record whose positions pull in opposite directions), and then rounding is large
    beside the result. It is never large beside (sum over positions of |a_t| |g_t|)^2, so a few units of that are added.
    Proved by: tests/unit/test_book_keeping.py::test_rounding_never_makes_a_cancelling_gradient_look_shorter
    """
    ours, theirs = seen.gram(), _gram(back)
    squares = (ours * theirs).sum(dim=(1, 2), dtype=torch.float64)
    lengths = (ours.diagonal(dim1=1, dim2=2) * theirs.diagonal(dim1=1, dim2=2)).clamp(min=0.0).sqrt()
    bound = lengths.sum(dim=1, dtype=torch.float64).square()
    return squares.clamp(min=0.0) + GRAM_SLACK * torch.finfo(back.dtype).eps * bound


def _materialised_squares(rows: Tensor, back: Tensor) -> Tensor:
    """Form the gradients of a few records at a time."""
    each = rows.element_size() * rows.shape[2] * back.shape[2]
    step = max(1, math.floor(MATERIALISED_BYTES / each))
    parts = []
    for start in range(0, len(rows), step):
        grads = torch.bmm(back[start : start + step].transpose(1, 2), rows[start : start + step])
        parts.append(_squares(grads.flatten(1)))
    return torch.cat(parts)
