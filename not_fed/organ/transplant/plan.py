"""What a transplant would change, decided from headers and digests alone; whatever does not fit is refused here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from not_fed.organ.anatomy import Span
from not_fed.organ.body import require_apart
from not_fed.organ.checkpoint import Base, Place
from not_fed.organ.fit import check_fit
from not_fed.organ.organ import OrganInfo
from not_fed.organ.transplant.copying import check_unchanged, state_of
from not_fed.organ.transplant.delta import check_delta, check_learnt, require_merger
from not_fed.organ.transplant.insert import check_insert, lengthened_config, names_of, tensors_to_zero
from not_fed.organ.transplant.ways import REPLACE, Delta, Insert, Way


@dataclass(frozen=True, slots=True, kw_only=True)
class Graft:
    """One organ and its place.

    Attributes:
        at: the place in the new model.
        exact: replace, delta: the organ was cut from exactly the layers at that place; insert: from this very model's.
        tensors: name in the new model -> name in the organ, for every tensor that it replaces, changes or brings.
        originals: delta: name in the organ -> where the tensor is as it was before the organ was trained.
        zeros: insert: names in the organ of tensors that are brought as zeros.
    """

    organ: OrganInfo
    at: Span
    exact: bool
    tensors: Mapping[str, str]
    originals: Mapping[str, Place] = field(default_factory=dict, repr=False)
    zeros: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class TransplantPlan:
    """What would change: safe to print and review.

    Attributes:
        base: the model that the organs are put into a copy of.
        grafts: the organs, from the lowest layer up; none shares a layer with another, a delta with an overlap aside.
        states: size and modification time of every file the plan looked at.
        config: config.json of the new model where it is another than the base's.
    """

    base: Base
    way: Way
    grafts: tuple[Graft, ...]
    states: Mapping[Path, tuple[int, int]]
    config: Mapping[str, Any] | None = None

    @property
    def exact(self) -> bool:
        """Whether each organ was cut from exactly these layers (see `Graft`)."""
        return all(graft.exact for graft in self.grafts)

    @property
    def tensors(self) -> frozenset[str]:
        """The names, in the new model, of all tensors that the organs replace, change or bring."""
        return frozenset(name for graft in self.grafts for name in graft.tensors)

    @property
    def replaced(self) -> frozenset[str]:
        """Those of them that the base has already."""
        return frozenset() if isinstance(self.way, Insert) else self.tensors

    @property
    def inserted(self) -> frozenset[str]:
        """Those of them that are new."""
        return self.tensors - self.replaced

    @property
    def layers(self) -> int:
        """How many layers the new model has."""
        more = sum(len(graft.at) for graft in self.grafts) if isinstance(self.way, Insert) else 0
        return self.base.layers + more

    @property
    def touched(self) -> frozenset[Path]:
        """The base's weight files that hold a replaced tensor."""
        return frozenset(self.base.places[name].file for name in self.replaced)

    def check_unchanged(self) -> None:
        """Raise ChangedSincePlan unless every file is as the plan saw it."""
        check_unchanged(self.states)


def plan_transplant(
    *, organ: OrganInfo, base: Base, at: int | None = None, accept_different_base: bool = False, way: Way = REPLACE
) -> TransplantPlan:
    """Check that every tensor has its place; raise FitError here or never.

    Args:
        base: the model that it is put into.
        at: first layer of its place; None is where the organ was cut. Insert: the layer that it is put before.
        accept_different_base: the blood types agree, the layers differ, and that is all right. Replace and insert only:
            a delta is for other layers, and asks for its origin instead.
    """
    return _plan([(organ, at)], base=base, way=way, accept_different_base=accept_different_base)


def plan_body(
    organs: Sequence[OrganInfo], *, base: Base, accept_different_base: bool = False, way: Way = REPLACE
) -> TransplantPlan:
    """As `plan_transplant`, for several organs at once, each where it was cut.

    Raises:
        SpansOverlap: two of them share a layer, and `way` does not say what is done about that.
        FitError: one does not fit.
    Proved by: tests/unit/test_body.py::test_a_body_is_transplanted_at_once_and_undone_at_once,
        tests/unit/test_body.py::test_organs_that_share_a_layer_are_no_body
    """
    return _plan([(organ, None) for organ in organs], base=base, way=way, accept_different_base=accept_different_base)


def fit_graft(
    organ: OrganInfo, *, base: Base, at: int | None = None, accept_different_base: bool = False, way: Way = REPLACE
) -> Graft:
    """Where one organ would go, from its header alone; raises what does not fit. Errors as `plan_transplant`."""
    where = f"{organ.path.name} into {base.folder}"
    if isinstance(way, Insert):
        before = organ.span.start if at is None else at
        exact = check_insert(organ, base=base, before=before, where=where, accept_different_base=accept_different_base)
        span = Span(before, before + len(organ.span))
        return Graft(
            organ=organ, at=span, exact=exact, tensors=names_of(organ, base=base, at=span),
            zeros=tensors_to_zero(organ, base=base, where=where) if way.start == "zero" else frozenset(),
        )  # fmt: skip
    if isinstance(way, Delta):
        span, originals = check_delta(organ, base=base, at=at, origin=way.origin, where=where)
        exact = base.span_sha256(span) == organ.manifest.span_sha256
    else:
        fit = check_fit(organ, base=base, at=at, accept_different_base=accept_different_base)
        span, exact, originals = fit.at, fit.exact, {}
    names = base.span_names(span)
    return Graft(
        organ=organ, at=span, exact=exact, tensors={names[name]: name for name in organ.places}, originals=originals
    )


def _plan(
    organs: Sequence[tuple[OrganInfo, int | None]], *, base: Base, way: Way, accept_different_base: bool
) -> TransplantPlan:
    if not isinstance(way, Delta):
        require_apart([(organ.span, organ.path.name) for organ, _ in organs])
    elif way.overlap is None:
        hint = "take one of them, or say what a layer gets from several: --overlap mean or --overlap ties"
        require_apart([(organ.span, organ.path.name) for organ, _ in organs], hint=hint)
    else:
        require_merger(way.overlap)
    grafts = sorted(
        (
            fit_graft(organ, base=base, at=at, accept_different_base=accept_different_base, way=way)
            for organ, at in organs
        ),
        key=lambda graft: graft.at,
    )
    looked_at = {*(organ.path for organ, _ in organs), *(place.file for place in base.places.values())}
    config = None
    if isinstance(way, Insert):
        grafts = _behind_each_other(grafts, base=base)
        config = lengthened_config(base, [(graft.organ, graft.at) for graft in grafts])
    if isinstance(way, Delta):
        looked_at |= {place.file for graft in grafts for place in graft.originals.values()}
        for organ, _ in organs:
            check_learnt(organ)
    return TransplantPlan(
        base=base, way=way, grafts=tuple(grafts), states={path: state_of(path) for path in looked_at}, config=config
    )


def _behind_each_other(grafts: Iterable[Graft], *, base: Base) -> list[Graft]:
    """The grafts of an insertion with their places in the new model, where the lower ones push the higher ones up."""
    placed, pushed = [], 0
    for graft in grafts:
        at = Span(graft.at.start + pushed, graft.at.stop + pushed)
        placed.append(replace(graft, at=at, tensors=names_of(graft.organ, base=base, at=at)))
        pushed += len(at)
    return placed
