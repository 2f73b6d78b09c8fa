"""Does an organ fit a base: blood type, place, and whether it was cut from exactly these layers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from not_fed.errors import FitError
from not_fed.organ.anatomy import Span, check_blood_type
from not_fed.organ.checkpoint import Base, Place
from not_fed.organ.organ import OrganInfo


class ShapeDiffers(FitError):
    """A tensor of the organ has no place of that shape and number format in the base model."""

    code = "organ-shape"


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
        BloodTypeDiffers, SpanOutside, ShapeDiffers: it cannot go there.
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
    check_shapes(organ, base.span_places(span), where=where)
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
            hint="`not-fed show` lists the organ's tensors",
        )
    for name, place in organ.places.items():
        same_format = any_format or place.dtype == places[name].dtype
        if place.shape != places[name].shape or not same_format:
            raise ShapeDiffers(
                where=f"{where}, tensor {name}",
                expected=f"{places[name].dtype} {places[name].shape}",
                got=f"{place.dtype} {place.shape}",
                hint="cut from another base model",
            )


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
            hint="use the base it was cut from, or accept the difference with --accept-different-base",
        )
    return exact
