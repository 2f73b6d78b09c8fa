"""Norms of per-unit gradients of a matrix, from what went in (A) and what came back (G), the cheaper of two ways.

The gradient of one unit for a matrix is the sum over its positions of `g_t a_t^T`. Its squared norm follows from two
small Gram matrices without ever forming it, or from forming a few units' gradients at a time.

Source: Goodfellow 2015, Efficient Per-Example Gradient Computations; Bu et al. 2022, Scalable and Efficient Training of
Large Convolutional Neural Networks with Differential Privacy (which of the two ways is cheaper).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

GRAM_SLACK = 4.0  # units of rounding, see gram_squares
MATERIALISED_BYTES = 64 * 2**20  # per-unit gradients held at a time where forming them is cheaper


class Seen:
    """What a module was given: kept once, however many modules read it. A unit is one row, or several that follow."""

    def __init__(self, tensor: Tensor, *, units: int) -> None:
        self.raw = tensor.detach()  # in the layer's own precision
        self.units = units
        self._version = self.raw._version
        self._gram: Tensor | None = None

    @property
    def is_intact(self) -> bool:
        """False when something wrote into the tensor after the module had read it."""
        return self.raw._version == self._version

    def rows(self) -> Tensor:
        """Shape (units, positions, inputs), float32 or better."""
        return by_unit(self.raw, units=self.units)

    def gram(self) -> Tensor:
        """Inner products of all pairs of positions; shape (units, positions, positions)."""
        if self._gram is None:
            self._gram = gram(self.rows())
        return self._gram


def exact(tensor: Tensor) -> Tensor:
    """Float32 or better."""
    return tensor if tensor.dtype in (torch.float32, torch.float64) else tensor.float()


def by_unit(tensor: Tensor, *, units: int) -> Tensor:
    """Shape (units, positions, features), float32 or better: all dimensions but the last become units' positions."""
    return exact(tensor).reshape(units, -1, tensor.shape[-1])


def gram_is_cheaper(*, positions: int, inputs: int, outputs: int) -> bool:
    """T^2 (inputs + outputs) multiplications against T * inputs * outputs."""
    return positions * (inputs + outputs) <= inputs * outputs


def gram(rows: Tensor) -> Tensor:
    """Inner products of all pairs of positions of (units, positions, features)."""
    return torch.bmm(rows, rows.transpose(1, 2))


def squares(rows: Tensor) -> Tensor:
    """Squared length of each row of (units, features), float64."""
    lengths: Tensor = torch.linalg.vector_norm(rows, dim=1, dtype=torch.float64)
    return lengths.square()


def gram_squares(ours: Tensor, back: Tensor) -> Tensor:
    """Sum over pairs of positions of <a_s, a_t> <g_s, g_t>, and a little more, so that rounding never makes it less.

    The terms can cancel (think of a record whose positions pull in opposite directions), and then rounding is large
    beside the result. It is never large beside (sum over positions of |a_t| |g_t|)^2, so a few units of that are added.

    Args:
        ours: Gram matrices of A, shape (units, positions, positions).
        back: G, shape (units, positions, outputs).
    Returns:
        shape (units,), float64.
    Proved by: tests/unit/test_book_keeping.py::test_rounding_never_makes_a_cancelling_gradient_look_shorter
    """
    theirs = gram(back)
    total = (ours * theirs).sum(dim=(1, 2), dtype=torch.float64)
    lengths = (ours.diagonal(dim1=1, dim2=2) * theirs.diagonal(dim1=1, dim2=2)).clamp(min=0.0).sqrt()
    bound = lengths.sum(dim=1, dtype=torch.float64).square()
    return total.clamp(min=0.0) + GRAM_SLACK * torch.finfo(back.dtype).eps * bound


def materialised_squares(rows: Tensor, back: Tensor) -> Tensor:
    """The same by forming the gradients of a few units at a time. Shapes (units, positions, inputs | outputs)."""
    each = rows.element_size() * rows.shape[2] * back.shape[2]
    step = max(1, math.floor(MATERIALISED_BYTES / each))
    parts = []
    for start in range(0, len(rows), step):
        grads = torch.bmm(back[start : start + step].transpose(1, 2), rows[start : start + step])
        parts.append(squares(grads.flatten(1)))
    return torch.cat(parts)


def weighted(grads: Tensor, factors: Tensor) -> Tensor:
    """Sum over units of factor times gradient, float64. `grads`: (units, ...); a factor of 0 blanks even a NaN."""
    blanked = grads.double().masked_fill(as_column(factors == 0, grads), 0.0)
    total: Tensor = torch.tensordot(factors, blanked, dims=1)
    return total


def as_column(values: Tensor, like: Tensor) -> Tensor:
    """One value a unit, broadcast over the other dimensions of `like`."""
    return values.reshape(-1, *[1] * (like.ndim - 1))
