"""The weighted mean of organs, one organ open at a time: the exact FedAvg of the span."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from not_fed import files
from not_fed.errors import FitError, InputError


class TensorsDiffer(FitError):
    """These organs do not hold the same tensors, so they have no mean."""

    code = "tensors-differ"


class BadWeight(InputError):
    """A weight in a mean is a positive, finite number."""

    code = "bad-weight"


class WeightedMean:
    """Accumulates organs tensor by tensor in float64: memory is one sum and one tensor, whatever the number of organs.

    Floating-point tensors only: a block of quantised integers has no mean.
    """

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._dtypes: dict[str, torch.dtype] = {}
        self._weight = 0.0

    def add(self, organ: Path, *, weight: float = 1.0) -> None:
        """Add one organ file.

        Raises:
            BadWeight: the weight is not positive and finite.
            TensorsDiffer: names, shapes or number formats differ from the first organ's; nothing was added.
        """
        if not 0 < weight < math.inf:
            raise BadWeight(
                where="weight of an organ", expected="a positive number", got=str(weight), hint="declare another weight"
            )
        with safe_open(organ, framework="pt") as tensors:
            shapes = {name: tensors.get_slice(name) for name in tensors.keys()}  # noqa: SIM118  not a dict
            self._check(organ, {name: tuple(item.get_shape()) for name, item in shapes.items()})
            for name in shapes:
                tensor = tensors.get_tensor(name)
                self._sums.setdefault(name, torch.zeros(tensor.shape, dtype=torch.float64)).add_(
                    tensor.double(), alpha=weight
                )
                self._dtypes.setdefault(name, tensor.dtype)
        self._weight += weight

    def write(self, out: Path, *, metadata: Mapping[str, str]) -> None:
        """Write the mean, in the organs' own number format; `out` appears whole or not at all."""
        if not self._sums:
            raise BadWeight(where="mean of organs", expected="at least one organ", got="none", hint="wait for an organ")
        part = {name: total.div(self._weight).to(self._dtypes[name]) for name, total in self._sums.items()}
        files.write_atomic(out, save(part, metadata=dict(metadata)), mode=0o644)

    def _check(self, organ: Path, shapes: Mapping[str, tuple[int, ...]]) -> None:
        mine = {name: tuple(total.shape) for name, total in self._sums.items()}
        if mine and mine != shapes:
            odd = next(name for name in sorted({*mine, *shapes}) if mine.get(name) != shapes.get(name))
            raise TensorsDiffer(
                where=f"{organ.name}, tensor {odd[:100]}",
                expected=str(mine.get(odd, "no such tensor")),
                got=str(shapes.get(odd, "no such tensor")),
                hint="aggregate organs of one span and one base",
            )
