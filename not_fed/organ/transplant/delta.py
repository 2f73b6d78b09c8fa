"""What training changed in an organ, and a model's tensor with that change added, block by block."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from typing import Final

import torch
from torch import Tensor

from not_fed import files
from not_fed.errors import FitError, InputError
from not_fed.organ.anatomy import Span, check_blood_type
from not_fed.organ.checkpoint import Base, Place, digest_tensors
from not_fed.organ.fit import OtherBase, check_layer_types, check_shapes
from not_fed.organ.organ import OrganInfo
from not_fed.organ.transplant.ways import Delta, Overlap

TIES_DENSITY = 0.2  # the part of each change that is kept: the authors' choice, Yadav et al. 2023, section 4
_FLOATS: Final = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_CHUNK = files.BLOCK_BYTES // 8  # numbers at a time, in float64

Change = tuple[Place, Place]  # where a tensor is after training, and as it was before


class NothingLearned(FitError):
    """This organ is as it was cut: there is no change that could be added."""

    code = "nothing-learned"


class NoArithmetic(FitError):
    """These numbers are in a format that cannot be added to: integers, or quantised ones."""

    code = "no-arithmetic"


class DeltaOverflows(FitError):
    """With the change added a number is too large for its format, or no number at all; nothing was written."""

    code = "delta-overflows"


class MergerMissing(InputError):
    """Merging changes that overlap by TIES needs a package that is not installed."""

    code = "merge-extra"


def check_delta(
    organ: OrganInfo, *, base: Base, at: int | None, origin: Base, where: str
) -> tuple[Span, dict[str, Place]]:
    """Where the organ's change is added, and name in the organ -> where the tensor is as it was before training.

    Raises:
        BloodTypeDiffers, SpanOutside, ShapeDiffers: it cannot go there.
        OtherBase: it was not cut from `origin`. NothingLearned, NoArithmetic.
    """
    check_blood_type(organ.manifest.blood_type, base.blood_type, where=where)
    start = organ.span.start if at is None else at
    span = Span(start, start + len(organ.span))
    places = base.span_places(span)
    check_shapes(organ, places, where=where, any_format=True)
    check_layer_types(organ, base=base, at=span, where=where)
    originals = _originals(organ, origin)
    check_shapes(organ, originals, where=f"{organ.path.name} and its base {origin.folder}", any_format=True)
    if organ.manifest.training is None:
        raise _nothing_learned(organ)
    for name in organ.places:
        for place in (places[name], organ.places[name], originals[name]):
            if place.dtype not in _FLOATS:
                raise NoArithmetic(
                    where=f"{where}, tensor {name}", expected=f"one of {', '.join(_FLOATS)}", got=place.dtype,
                    hint="use the models before they were quantised, or --mode replace",
                )  # fmt: skip
    return span, originals


def _originals(organ: OrganInfo, origin: Base) -> dict[str, Place]:
    found = origin.span_sha256(organ.span)
    if found != organ.manifest.span_sha256:
        raise OtherBase(
            where=f"{organ.path.name} and its base {origin.folder}",
            expected=f"layers {organ.span} as the organ was cut from them, digest {organ.manifest.span_sha256}",
            got=f"digest {found}",
            hint=f"--base names the model it was cut from, whose digest is {organ.base_sha256}",
        )
    return origin.span_places(organ.span)


def check_learnt(organ: OrganInfo) -> None:
    """Raise NothingLearned when every tensor is still what it was cut as; reads the organ once."""
    if digest_tensors(organ.places) == organ.manifest.span_sha256:
        raise _nothing_learned(organ)


def _nothing_learned(organ: OrganInfo) -> NothingLearned:
    return NothingLearned(
        where=organ.path.name, expected="an organ that was trained", got="one as it was cut: its change is zero",
        hint="train it first, or put it in with --mode replace or insert",
    )  # fmt: skip


def require_merger(overlap: Overlap | None) -> None:
    """Raise MergerMissing when what merges the changes is not installed."""
    if overlap == "ties" and find_spec("peft") is None:
        raise MergerMissing(
            where="--overlap ties", expected="peft", got="not installed",
            hint="pip install 'not-fed[peft]', or --overlap mean",
        )  # fmt: skip


def changed_blocks(before: Place, changes: Sequence[Change], *, way: Delta) -> Iterator[bytes]:
    """The bytes of a tensor with the scaled change added, in its own number format.

    Args:
        before: the tensor in the model that is changed.
        changes: one, or several that are merged as `way` says.
    Raises:
        DeltaOverflows: a number would not be finite.
    Guarantees:
        Computed in float64 and rounded once (TIES: the merged change in float32); memory stays at some blocks (TIES:
        about eight times the tensor in float32 for each organ). A number that training left alone keeps its bits.
        Where scale is 1 and the number is what it was before training, the result is the organ's, bit for bit in one
        format.
    Proved by: tests/unit/test_transplant_delta.py::test_a_change_added_to_what_it_was_taken_from_is_the_organ,
        tests/unit/test_transplant_delta.py::test_a_number_that_training_left_alone_keeps_its_bits
    """
    if len(changes) > 1 and way.overlap == "ties":
        yield from _by_ties(before, changes, scale=way.scale)
        return
    dtype = _FLOATS[before.dtype]
    rows = [zip(_chunks(after), _chunks(original), strict=True) for after, original in changes]
    for now, *pairs in zip(_chunks(before), *rows, strict=True):
        change = sum((after.double() - original.double() for after, original in pairs), torch.zeros(())) / len(pairs)
        moved = _rounded(now.double() + way.scale * change, dtype, place=before)
        moved = torch.where(change == 0, now, moved)  # -0.0 + 0.0 would be 0.0
        if way.scale == 1 and len(pairs) == 1:  # now + (after - now) is not always `after`, even in float64
            ((after, original),) = pairs
            moved = torch.where(_same(now, original), after.to(dtype), moved)
        yield _bytes(moved)


def _by_ties(before: Place, changes: Sequence[Change], *, scale: float) -> Iterator[bytes]:
    """Trim, elect sign and merge (Yadav et al. 2023, arXiv 2306.01708), each tensor by itself, by PEFT's function."""
    from peft.utils.merge_utils import ties

    tasks = [
        torch.cat([(after.double() - old.double()).float() for after, old in zip(*map(_chunks, pair), strict=True)])
        for pair in changes
    ]
    merged = ties(tasks, weights=torch.ones(len(tasks)), density=TIES_DENSITY)
    for now, change in zip(_chunks(before), merged.split(_CHUNK), strict=True):
        moved = _rounded(now.double() + scale * change.double(), now.dtype, place=before)
        yield _bytes(torch.where(change == 0, now, moved))


def _chunks(place: Place) -> Iterator[Tensor]:
    dtype = _FLOATS[place.dtype]
    for block in place.blocks(_CHUNK * dtype.itemsize):
        yield torch.frombuffer(bytearray(block), dtype=dtype)


def _rounded(numbers: Tensor, dtype: torch.dtype, *, place: Place) -> Tensor:
    rounded = numbers.to(dtype)
    if not rounded.isfinite().all():
        raise DeltaOverflows(
            where=str(place.file), expected=f"finite numbers in {place.dtype}", got="one that is not",
            hint="choose a smaller --scale, or use organs of finite numbers",
        )  # fmt: skip
    return rounded


def _same(one: Tensor, other: Tensor) -> Tensor:
    """Where the numbers are equal, and 0.0 is not -0.0."""
    return (one.double() == other.double()) & (one.signbit() == other.signbit())


def _bytes(numbers: Tensor) -> bytes:
    return numbers.contiguous().view(torch.uint8).numpy().tobytes()
