"""The weighted mean of organs, one organ open at a time: the exact FedAvg of the span."""

from __future__ import annotations

import math
import mmap
import tempfile
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import torch
from safetensors import safe_open
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
    """Accumulates organs tensor by tensor in float64.

    Memory is one tensor and its sum, whatever the size and number of organs: the sums lie in a file without a name.
    Without a folder for it, they lie in memory.

    Floating-point tensors only: a block of quantised integers has no mean.
    """

    def __init__(self, *, scratch: Path | None = None) -> None:
        """`scratch`: a private folder with room for eight bytes a parameter."""
        self._file: BinaryIO | None = None
        if scratch is not None:
            self._file = tempfile.TemporaryFile(dir=scratch)  # noqa: SIM115  lives as long as this object
            weakref.finalize(self, self._file.close)
        self._sums: dict[str, Tensor] = {}
        self._places: dict[str, _Place] = {}
        self._weight = 0.0

    def add(self, organ: Path, *, weight: float = 1.0) -> None:
        """Add one organ file.

        Raises:
            BadWeight: the weight is not positive and finite.
            TensorsDiffer: names, shapes or number formats differ from the first organ's; nothing was added.
            NoSpace: the scratch folder is full; the mean cannot be used any more.
        """
        if not 0 < weight < math.inf:
            raise BadWeight(
                where="weight of an organ", expected="a positive number", got=str(weight), hint="declare another weight"
            )
        with safe_open(organ, framework="pt") as tensors:
            names = list(tensors.keys())
            self._check(organ, {name: tuple(tensors.get_slice(name).get_shape()) for name in names})
        for name in names:
            with safe_open(organ, framework="pt") as tensors:  # anew: what was read stays mapped while it is open
                tensor = tensors.get_tensor(name)
                if name not in self._places:
                    self._place(name, tensor)
                with self._sum(name) as total:
                    total.add_(tensor.double(), alpha=weight)
                del tensor
        self._weight += weight

    def tensors(self) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
        """What the mean consists of: number format, as the organs have it, and shape; raises BadWeight before any."""
        if not self._places:
            raise BadWeight(where="mean of organs", expected="at least one organ", got="none", hint="wait for an organ")
        return {name: (place.dtype, place.shape) for name, place in self._places.items()}

    def tensor(self, name: str) -> Tensor:
        """One tensor of the mean, in the organs' own number format."""
        with self._sum(name) as total:
            return total.div(self._weight).to(self._places[name].dtype)

    def _place(self, name: str, tensor: Tensor) -> None:
        start = max((place.stop for place in self._places.values()), default=0)
        start += -start % mmap.ALLOCATIONGRANULARITY
        self._places[name] = _Place(dtype=tensor.dtype, shape=tuple(tensor.shape), start=start, count=tensor.numel())
        if self._file is None:
            self._sums[name] = torch.zeros(tensor.shape, dtype=torch.float64)
        elif tensor.numel():
            self._file.truncate(self._places[name].stop)
            files.reserve(self._file, self._places[name].stop)  # a full disk is an error here, not a signal later

    @contextmanager
    def _sum(self, name: str) -> Iterator[Tensor]:
        """The sum of one tensor; changes to it stay."""
        place = self._places[name]
        if self._file is None or not place.count:
            yield self._sums.get(name, torch.zeros(place.shape, dtype=torch.float64))
            return
        size = place.stop - place.start
        with mmap.mmap(self._file.fileno(), size, offset=place.start) as mapped:
            total = torch.frombuffer(mapped, dtype=torch.float64).view(place.shape)
            try:
                yield total
            finally:
                del total  # the mapping cannot be closed before

    def _check(self, organ: Path, shapes: Mapping[str, tuple[int, ...]]) -> None:
        mine = {name: place.shape for name, place in self._places.items()}
        if mine and mine != shapes:
            odd = next(name for name in sorted({*mine, *shapes}) if mine.get(name) != shapes.get(name))
            raise TensorsDiffer(
                where=f"{organ.name}, tensor {odd[:100]}",
                expected=str(mine.get(odd, "no such tensor")),
                got=str(shapes.get(odd, "no such tensor")),
                hint="aggregate organs of one span and one base",
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Place:
    """Where the sum of a tensor lies, in bytes from the start of the file."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    count: int

    @property
    def stop(self) -> int:
        return self.start + 8 * self.count
