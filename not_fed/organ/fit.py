"""Does an organ fit a base: blood type, place, and whether it was cut from exactly these layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from not_fed.errors import FitError
from not_fed.organ.anatomy import FULL, LAYER_TYPES, Span, SpanOutside, check_blood_type
from not_fed.organ.checkpoint import Base, Place
from not_fed.organ.organ import OrganInfo


class ShapeDiffers(FitError):
    """A tensor of the organ has no place of that shape and number format in the base model."""

    code = "organ-shape"


class LayerTypesDiffer(FitError):
    """The organ's layers and the layers of the place are of different kinds, and would compute different things."""

    code = "layer-types"


class OtherBase(FitError):
    """The organ was cut from another base model."""

    code = "other-base"


class FalseOrigin(FitError):
    """The organ names this base and these layers, and another digest of them than they have."""

    code = "false-origin"


@dataclass(frozen=True, slots=True)
class Fit:
    """An organ that fits: where, and whether the layers it was cut from are exactly the ones there."""

    at: Span
    exact: bool


def check_fit(organ: OrganInfo, *, base: Base, at: int | None = None, accept_different_base: bool = False) -> Fit:
    """Check that an organ has its place in a base.

    Args:
        at: first layer of the place; None is where the organ was cut.
        accept_different_base: go on when the blood types agree but the layers there are not those it was cut from.
    Raises:
        BloodTypeDiffers, SpanOutside, ShapeDiffers, LayerTypesDiffer: it cannot go there; the hint says what would fit.
        OtherBase: it could, but was cut from other layers and `accept_different_base` is false.
        FalseOrigin: it contradicts itself about its origin, whatever is accepted.
    Guarantees:
        Of organs that fit one base at their own place, no two differ in blood type, span or the span's digest, so that
        whoever comes first in a mean cannot decide who else belongs to it.
    Proved by: tests/attacks/test_poisoned_mean.py
    """
    where = f"{organ.path.name} into {base.folder}"
    check_blood_type(organ.manifest.blood_type, base.blood_type, where=where)
    start = organ.span.start if at is None else at
    span = Span(start, start + len(organ.span))
    if span.stop > base.layers:
        raise SpanOutside(
            where=where, expected=f"a span within 0:{base.layers}", got=str(span), hint=_where_it_fits(organ, base)
        )
    check_shapes(organ, base.span_places(span), where=where)
    check_layer_types(organ, base=base, at=span, where=where)
    exact = check_origin(organ, base=base, at=span, where=where, accept_different_base=accept_different_base)
    return Fit(at=span, exact=exact)


def check_shapes(organ: OrganInfo, places: Mapping[str, Place], *, where: str, any_format: bool = False) -> None:
    """Raise ShapeDiffers unless these places are of the organ's names, shapes and (or `any_format`) number formats."""
    if set(places) != set(organ.places):
        odd = sorted(set(places) ^ set(organ.places))[0]
        raise ShapeDiffers(
            where=where,
            expected=f"the {len(places)} tensors of layers {organ.span}",
            got=f"a difference at {odd[:100]}",
            hint="an organ fits layers that hold the same tensors; `not-fed show` lists its own",
        )
    for name, place in organ.places.items():
        same_format = any_format or place.dtype == places[name].dtype
        if place.shape != places[name].shape or not same_format:
            raise ShapeDiffers(
                where=f"{where}, tensor {name}",
                expected=f"{places[name].dtype} {places[name].shape}",
                got=f"{place.dtype} {place.shape}",
                hint=f"save the base in {place.dtype}, or cut the organ from it again"
                if place.shape == places[name].shape
                else "an organ of another width goes in with adapters: `not-fed adapt`, docs/adapters.md",
            )


def check_layer_types(organ: OrganInfo, *, base: Base, at: Span, where: str) -> None:
    """Raise LayerTypesDiffer unless the layers `at` are of the kinds that the organ's own were (sliding window, full).

    Proved by: tests/unit/test_families.py::test_an_organ_fits_only_where_layers_are_of_its_own_kinds
    """
    there = base.blood_type_at(at)
    if not _same_kinds(organ.manifest.blood_type, there):
        raise LayerTypesDiffer(
            where=f"{where}, layers {at}",
            expected=_kinds(there),
            got=_kinds(organ.manifest.blood_type),
            hint=_where_it_fits(organ, base),
        )


def _same_kinds(organ: Mapping[str, Any], there: Mapping[str, Any]) -> bool:
    """One that is null differs from one that is not there, so that two organs at one place never differ in it."""
    absent = object()
    return bool(organ.get(LAYER_TYPES, absent) == there.get(LAYER_TYPES, absent))


def _kinds(blood_type: Mapping[str, Any]) -> str:
    kinds = blood_type.get(LAYER_TYPES, f"{FULL} alone")
    return ", ".join(map(str, kinds)) if isinstance(kinds, list) else str(kinds)


def _where_it_fits(organ: OrganInfo, base: Base) -> str:
    """Which places of the base have the organ's shapes and kinds of layers, as a hint."""
    spans = (Span(start, start + len(organ.span)) for start in range(base.layers - len(organ.span) + 1))
    starts = [span.start for span in spans if _could_be(organ, base, span)]
    return f"it would fit with --at {_runs(starts)}" if starts else "no place in this base fits it"


def _could_be(organ: OrganInfo, base: Base, at: Span) -> bool:
    shapes = {name: (place.dtype, place.shape) for name, place in base.span_places(at).items()}
    return shapes == {name: (place.dtype, place.shape) for name, place in organ.places.items()} and _same_kinds(
        organ.manifest.blood_type, base.blood_type_at(at)
    )


def _runs(numbers: Sequence[int]) -> str:
    """0, 2 to 5 or 9."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    words = [str(run[0]) if len(run) == 1 else f"{run[0]} to {run[-1]}" for run in runs]
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"


def check_origin(organ: OrganInfo, *, base: Base, at: Span, where: str, accept_different_base: bool) -> bool:
    """Whether the organ was cut from exactly the layers `at`; raises FalseOrigin, and OtherBase unless accepted."""
    exact = organ.manifest.span_sha256 == base.span_sha256(at)
    if organ.base_sha256 == base.sha256 and organ.span == at and not exact:
        raise FalseOrigin(
            where=f"{where}, field span_sha256",
            expected=f"{base.span_sha256(at)[:16]}…, of layers {at} of the base that it names",
            got=f"{organ.manifest.span_sha256[:16]}…",
            hint="use no organ that contradicts itself; tell its author",
        )
    if not exact and not accept_different_base:
        raise OtherBase(
            where=where,
            expected=f"an organ of base {base.sha256[:16]}…, layers {at}",
            got=f"one of base {organ.base_sha256[:16]}…, layers {organ.span}",
            hint="use the base it was cut from; into a model fine-tuned from it, --mode delta adds what was learnt; "
            "--accept-different-base replaces these layers all the same",
        )
    return exact
