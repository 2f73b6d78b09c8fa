"""What training changed, as one row of numbers, and an organ that is moved by such a row.

The numbers stand in the order of the tensors' names, each tensor row by row: the same order on every machine.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from not_fed.errors import FitError
from not_fed.organ.checkpoint import Place
from not_fed.organ.organ import OrganInfo, read_organ
from not_fed.organ.writing import write_safetensors

_DTYPES: Final = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


class ChangeOfOthers(FitError):
    """These tensors are not those of the start, so there is no change from it."""

    code = "change-of-others"


def count(places: Mapping[str, Place]) -> int:
    """How many numbers a change of these tensors has."""
    return sum(math.prod(place.shape) for place in places.values())


def change(trained: Mapping[str, Place], *, start: Mapping[str, Place]) -> Iterator[NDArray[np.float32]]:
    """Trained minus start, block by block: float32, one-dimensional, `count(start)` numbers in all.

    Raises:
        ChangeOfOthers: names, shapes or number formats differ; before the first block.
    """
    _check_same(trained, start)
    for name in sorted(start):
        for after, before in zip(trained[name].blocks(), start[name].blocks(), strict=True):
            dtype = _DTYPES[start[name].dtype]
            yield (_numbers(after, dtype) - _numbers(before, dtype)).float().numpy()


def move(
    start: Mapping[str, Place], *, by: Callable[[int, int], NDArray[np.float64]], metadata: Mapping[str, str], out: Path
) -> OrganInfo:
    """Write the organ that lies `by` away from the start, in the start's own number format.

    Args:
        by: gives the numbers from one place of the row to another.
    Guarantees: memory stays at one block; the same start and row give the same bytes.
    Proved by: tests/unit/test_change.py::test_a_start_moved_by_its_change_is_what_was_trained
    """
    offsets, at = {}, 0
    for name in sorted(start):
        offsets[name] = at
        at += math.prod(start[name].shape)

    def blocks(name: str) -> Iterator[bytes]:
        place, done = start[name], offsets[name]
        dtype = _DTYPES[place.dtype]
        for block in place.blocks():
            before = _numbers(block, dtype).double()
            moved = before.add_(torch.from_numpy(np.ascontiguousarray(by(done, done + len(before))))).to(dtype)
            done += len(moved)
            yield moved.view(torch.uint8).numpy().tobytes()

    sizes = {name: (place.dtype, place.shape, place.end - place.begin) for name, place in start.items()}
    write_safetensors(out, sizes, metadata=metadata, blocks=blocks)
    return read_organ(out)


def _numbers(block: bytes, dtype: torch.dtype) -> torch.Tensor:
    return torch.frombuffer(bytearray(block), dtype=dtype)


def _check_same(trained: Mapping[str, Place], start: Mapping[str, Place]) -> None:
    def facts(places: Mapping[str, Place]) -> dict[str, Any]:
        return {name: (place.dtype, place.shape) for name, place in places.items()}

    mine, theirs = facts(trained), facts(start)
    if mine != theirs:
        odd = next(name for name in sorted({*mine, *theirs}) if mine.get(name) != theirs.get(name))
        raise ChangeOfOthers(
            where=f"tensor {odd[:100]}", expected=str(theirs.get(odd, "none")), got=str(mine.get(odd, "none")),
            hint="base and span have to be the same",
        )  # fmt: skip
