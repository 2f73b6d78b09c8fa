"""Does an organ fit a base: blood type, place, and whether it was cut from exactly these layers."""

from __future__ import annotations

from dataclasses import dataclass

from not_fed.errors import FitError
from not_fed.organ.anatomy import Span, check_blood_type
from not_fed.organ.checkpoint import Base, digest_tensors
from not_fed.organ.organ import OrganInfo


class ShapeDiffers(FitError):
    """A tensor of the organ has no place of that shape and number format in the base model."""

    code = "organ-shape"


class OtherBase(FitError):
    """The organ was cut from another base model."""

    code = "other-base"


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
    """
    where = f"{organ.path.name} into {base.folder}"
    check_blood_type(organ.manifest.blood_type, base.blood_type, where=where)
    start = organ.span.start if at is None else at
    span = Span(start, start + len(organ.span))
    places = base.span_places(span)
    if set(places) != set(organ.places):
        odd = sorted(set(places) ^ set(organ.places))[0]
        raise ShapeDiffers(
            where=where,
            expected=f"the {len(places)} tensors of layers {span}",
            got=f"a difference at {odd[:100]}",
            hint="`not-fed show` lists the organ's tensors",
        )
    for name, place in organ.places.items():
        if (place.dtype, place.shape) != (places[name].dtype, places[name].shape):
            raise ShapeDiffers(
                where=f"{where}, tensor {name}",
                expected=f"{places[name].dtype} {places[name].shape}",
                got=f"{place.dtype} {place.shape}",
                hint="cut from another base model",
            )
    same_base = organ.base_sha256 == base.sha256 and organ.span == span
    exact = same_base or organ.manifest.span_sha256 == digest_tensors(places)
    if not exact and not accept_different_base:
        raise OtherBase(
            where=where,
            expected=f"an organ of base {base.sha256[:16]}…, layers {span}",
            got=f"one of base {organ.base_sha256[:16]}…, layers {organ.span}",
            hint="use the base it was cut from, or accept the difference with --accept-different-base",
        )
    return Fit(at=span, exact=exact)
