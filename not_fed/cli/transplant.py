"""transplant, undo: organs into a copy of a model, and back."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from not_fed.cli.options import BASE_HELP
from not_fed.cli.output import AsJson, show
from not_fed.cli.progress import shown
from not_fed.errors import UsageError

if TYPE_CHECKING:
    from not_fed.organ.transplant import Graft, TransplantPlan, Way
    from not_fed.progress import Progress


class Mode(StrEnum):
    """How an organ is put in."""

    REPLACE = "replace"
    DELTA = "delta"
    INSERT = "insert"


ModeOption = Annotated[
    Mode,
    typer.Option(
        "--mode",
        help="replace: its layers for the model's. delta: what it has learnt, added to a model fine-tuned from "
        "the same base. insert: its layers between the model's.",
    ),
]
AtOption = Annotated[
    int | None,
    typer.Option(
        "--at", min=0, help="First layer of its place; insert: the layer it is put before. [default: where it was cut]"
    ),
]
OriginOption = Annotated[
    str | None, typer.Option("--base", help="delta: the base that the organs were cut from; a folder or hub id.")
]
ScaleOption = Annotated[
    float | None, typer.Option("--scale", help="delta: how much of what was learnt is added. [default: 1]")
]
StartOption = Annotated[
    Literal["zero", "organ"] | None,
    typer.Option(
        "--start",
        help="insert: zero: the new layers change nothing until they are trained; organ: as they are. [default: zero]",
    ),
]
DifferentBaseOption = Annotated[
    bool, typer.Option("--accept-different-base", help="The layers there may differ from those it was cut from.")
]


def transplant_command(
    organs: Annotated[list[Path], typer.Argument(help="The organ to put in; or several.")],
    into: Annotated[str, typer.Option("--into", help=BASE_HELP)],
    out: Annotated[Path | None, typer.Option("--out", help="The new model folder.")] = None,
    mode: ModeOption = Mode.REPLACE,
    at: AtOption = None,
    base: OriginOption = None,
    scale: ScaleOption = None,
    start: StartOption = None,
    overlap: Annotated[
        Literal["mean", "ties"] | None,
        typer.Option("--overlap", help="delta: what a layer gets when several organs have learnt in it."),
    ] = None,
    accept_different_base: DifferentBaseOption = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be changed; write nothing.")] = False,
    as_json: AsJson = False,
) -> None:
    """Put organs into a copy of a model: an ordinary Hugging Face folder comes out."""
    from not_fed.organ.organ import read_organ
    from not_fed.organ.transplant import apply_transplant, plan_body, plan_transplant
    from not_fed.resources.bases import find_base

    check_options(
        mode, base=base, scale=scale, overlap=overlap, start=start, accept_different_base=accept_different_base
    )
    if at is not None and len(organs) > 1:
        raise UsageError(
            where="--at", expected="one organ", got=f"{len(organs)}",
            hint="leave --at out: each goes where it was cut; or put them in one after the other",
        )  # fmt: skip
    if out is None and not dry_run:
        raise UsageError(
            where="not-fed transplant", expected="--out, or --dry-run", got="neither", hint="add --out DIR"
        )
    with shown() as progress:
        found, model = [read_organ(organ) for organ in organs], find_base(into, progress=progress)
        way = way_of(mode, base=base, scale=scale, overlap=overlap, start=start, progress=progress)
        if len(found) == 1:
            plan = plan_transplant(
                organ=found[0], base=model, at=at, accept_different_base=accept_different_base, way=way
            )
        else:
            plan = plan_body(found, base=model, accept_different_base=accept_different_base, way=way)
        if out is not None and not dry_run:
            apply_transplant(plan, out=out, progress=progress)
    _show(plan, mode, out=out, dry_run=dry_run, as_json=as_json)


def undo_command(
    model: Annotated[Path, typer.Argument(help="A model folder that import, transplant or recover wrote.")],
    out: Annotated[Path, typer.Option("--out", help="Where the model is written as it was before.")],
    as_json: AsJson = False,
) -> None:
    """Take the last transplant or recovery back; the result is checked to be the model that was before, bit for bit."""
    from not_fed.organ.recovery_record import is_recovered, undo_recovery
    from not_fed.organ.transplant import undo_transplant

    take_back = undo_recovery if is_recovered(model) else undo_transplant
    with shown() as progress:
        base_sha256 = take_back(model, out=out, progress=progress)
    result = {"schema": "not-fed/undone/1", "model": str(model), "out": str(out), "base_sha256": base_sha256}
    show(result, as_json=as_json, lines=[("out", str(out)), ("base", f"{base_sha256}, bit for bit")])


def check_options(
    mode: Mode, *, base: str | None, scale: float | None, overlap: str | None, start: str | None,
    accept_different_base: bool,
) -> None:  # fmt: skip
    """Raise UsageError for an option that the mode has no use for, and for the base that a delta needs."""
    belongs = {
        "--base": (base is not None, {Mode.DELTA}),
        "--scale": (scale is not None, {Mode.DELTA}),
        "--overlap": (overlap is not None, {Mode.DELTA}),
        "--start": (start is not None, {Mode.INSERT}),
        "--accept-different-base": (accept_different_base, {Mode.REPLACE, Mode.INSERT}),
    }
    for option, (given, modes) in belongs.items():
        if given and mode not in modes:
            raise UsageError(
                where=option, expected=f"--mode {' or '.join(sorted(modes))}", got=f"--mode {mode.value}",
                hint="leave it out, or choose that mode",
            )  # fmt: skip
    if mode is Mode.DELTA and base is None:
        raise UsageError(
            where="--mode delta", expected="--base, the model that the organs were cut from", got="none",
            hint="what was learnt is the difference to it; `not-fed show` says its digest",
        )  # fmt: skip


def way_of(
    mode: Mode, *, base: str | None, scale: float | None, start: Literal["zero", "organ"] | None, progress: Progress,
    overlap: Literal["mean", "ties"] | None = None,
) -> Way:  # fmt: skip
    """The way of transplanting that these options mean; finds the base of a delta."""
    from not_fed.organ.transplant import Delta, Insert, Replace
    from not_fed.resources.bases import find_base

    if mode is Mode.DELTA:
        assert base is not None, "see check_options"
        origin = find_base(base, progress=progress)
        return Delta(origin=origin, scale=1.0 if scale is None else scale, overlap=overlap)
    return Insert(start=start or "zero") if mode is Mode.INSERT else Replace()


def settings_of(way: Way) -> dict[str, Any]:
    """The settings of a way of transplanting, null where it has none of that name."""
    return {name: getattr(way, name, None) for name in ("scale", "overlap", "start")}


def describe(way: Way) -> str:
    """The way in words."""
    told = ", ".join(f"{name} {value}" for name, value in settings_of(way).items() if value is not None)
    return f"{way.mode}, {told}" if told else way.mode


def fits(grafts: list[Graft], way: Way) -> str:
    """How well, in words: by digest where the layers are those that the organ was cut from."""
    if all(graft.exact for graft in grafts):
        return ""
    return "; they are no longer as in the organ's base" if way.mode == "delta" else "; NOT the layers it was cut from"


def _show(plan: TransplantPlan, mode: Mode, *, out: Path | None, dry_run: bool, as_json: bool) -> None:
    places = [[graft.at.start, graft.at.stop] for graft in plan.grafts]
    result = {
        "schema": "not-fed/transplanted/1",
        "out": None if out is None else str(out),
        "mode": mode.value,
        **settings_of(plan.way),
        "replaced": sorted(plan.replaced),
        "inserted": sorted(plan.inserted),
        "layers": plan.layers,
        "at": places[0] if len(places) == 1 else places,
        "exact": plan.exact,
        "dry_run": dry_run,
    }
    at = ", ".join(str(graft.at) for graft in plan.grafts)
    changed = (
        f"{len(plan.inserted)} tensors; the model has {plan.layers} layers, {plan.base.layers} before"
        if mode is Mode.INSERT
        else f"{len(plan.replaced)} tensors in {len(plan.touched)} of the base's files"
    )
    show(
        result,
        as_json=as_json,
        lines=[
            *(("organ", f"{graft.organ.path}, layers {graft.organ.span}") for graft in plan.grafts),
            ("into", f"{plan.base.folder}, as layers {at}{fits(list(plan.grafts), plan.way)}"),
            ("mode", describe(plan.way)),
            ("inserted" if mode is Mode.INSERT else "replaced", changed),
            ("out", "dry run: nothing was written" if dry_run else str(out)),
        ],
    )
