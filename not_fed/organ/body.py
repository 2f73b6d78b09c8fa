"""The organs of a body: what lies in a base's layers, each in its own place and none over another."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from not_fed.errors import FitError
from not_fed.organ.anatomy import Span
from not_fed.organ.checkpoint import Base
from not_fed.organ.fit import check_fit
from not_fed.organ.organ import OrganInfo, read_organ


class SpansOverlap(FitError):
    """Two organs of one body claim the same layer."""

    code = "spans-overlap"


def read_body(organs: Sequence[Path], *, base: Base, beside: Span | None = None) -> tuple[OrganInfo, ...]:
    """The organs of a body from its lowest layer up, whatever order they were given in.

    Args:
        beside: layers that must stay free of them, because they are trained.
    Raises:
        SpansOverlap: two of them, or one and `beside`, share a layer.
        FitError: one does not fit the base at the place where it was cut; as `check_fit`.
    Proved by: tests/unit/test_body.py::test_organs_that_share_a_layer_are_no_body
    """
    found = sorted((read_organ(path) for path in organs), key=lambda organ: organ.span)
    spans = [(organ.span, organ.path.name) for organ in found]
    require_apart(spans if beside is None else [*spans, (beside, "the layers that are trained")])
    for organ in found:
        check_fit(organ, base=base)
    return tuple(found)


def require_apart(
    spans: Sequence[tuple[Span, str]], *, hint: str = "take one of them; a layer holds one organ"
) -> None:
    """Raise SpansOverlap, naming the first two, unless no layer is in two of these spans."""
    for (lower, one), (upper, other) in pairwise(sorted(spans)):
        if upper.start < lower.stop:
            raise SpansOverlap(
                where=f"{one} and {other}",
                expected="spans that share no layer",
                got=f"{lower} and {upper}",
                hint=hint,
            )


def digests(body: Sequence[OrganInfo]) -> list[str]:
    """The files' digests, from the lowest layer up: they name the body."""
    return [organ.sha256 for organ in body]
