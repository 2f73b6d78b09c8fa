"""What a transplant leaves in the new model's folder, and how the model is taken back to what it was.

`not-fed/transplant.json` says what was done. Where layers were replaced or changed they lie beside it as organs, as
they were: `taken-out.organ`, or of several places `taken-out-START-STOP.organ`. Where layers were put between others,
`config.json` lies there as it was. `before/` holds the notes that the model had already, so that the steps before this
one can be taken back in their turn.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from not_fed import canonical, files
from not_fed.errors import FitError, InputError
from not_fed.organ.anatomy import Span
from not_fed.organ.checkpoint import MAX_CONFIG_BYTES, Base, digest_tensors, open_base
from not_fed.organ.extract import extract
from not_fed.organ.organ import read_organ
from not_fed.organ.transplant.copying import link_or_copy, write_copy, write_renamed
from not_fed.organ.transplant.delta import TIES_DENSITY
from not_fed.organ.transplant.insert import kept_layers, renumbered_tensors
from not_fed.organ.transplant.plan import Graft, TransplantPlan, fit_graft
from not_fed.organ.transplant.ways import Delta, Insert
from not_fed.progress import Progress, silent

NOTES = "not-fed"  # folder inside the new checkpoint
RECORD = "transplant.json"
_BEFORE = "before"
SCHEMA = "not-fed/transplant-record/3"
_OF_ONE, _OF_SEVERAL = "not-fed/transplant-record/1", "not-fed/transplant-record/2"  # before there were modes
_MAX_RECORD_BYTES = 1 << 24


class NothingToUndo(InputError):
    """This folder holds no model that not-fed put an organ into."""

    code = "nothing-to-undo"


class UndoDiffers(FitError):
    """Taking the transplant back does not give the base model of the record; nothing was written."""

    code = "undo-differs"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Record:
    mode: str
    base_sha256: str
    put_in: tuple[Span, ...]
    taken_out: tuple[Span, ...]


def record_transplant(plan: TransplantPlan, folder: Path, *, organs_sha256: Sequence[str]) -> None:
    """Write into `folder`/not-fed what was done, and what is needed to undo it; needs no organ file any more.

    Args:
        organs_sha256: of the plan's grafts, in their order.
    """
    notes = folder / NOTES
    notes.mkdir(exist_ok=True)
    keep_notes(plan.base.folder, notes)
    taken_out = [] if isinstance(plan.way, Insert) else _regions(plan.grafts)
    for span in taken_out:
        extract(plan.base, span=span, out=notes / _undo_name(span, alone=len(taken_out) == 1))
    if isinstance(plan.way, Insert):
        shutil.copyfile(plan.base.folder / "config.json", notes / "config.json")
    grafts = zip(plan.grafts, organs_sha256, strict=True)
    done = {
        "schema": SCHEMA,
        "mode": plan.way.mode,
        **_settings(plan),
        "base_sha256": plan.base.sha256,
        "organs": [{"at": [graft.at.start, graft.at.stop], "organ_sha256": sha256} for graft, sha256 in grafts],
        "replaced": sorted(plan.replaced),
        "inserted": sorted(plan.inserted),
        "taken_out": [[span.start, span.stop] for span in taken_out],
    }
    files.write_atomic(notes / RECORD, canonical.dumps(done) + b"\n", mode=0o644)


def keep_notes(folder: Path, notes: Path) -> None:
    """Keep what the model in `folder` says of earlier steps among the notes on a new one."""
    _carry_over(folder, NOTES, notes / _BEFORE / NOTES)


def restore_notes(folder: Path, out: Path) -> None:
    """Give the model in `out`, as it was before the last step that made `folder`, the notes that it had then."""
    _carry_over(folder, earlier(Path()) / NOTES, out / NOTES)


def earlier(folder: Path) -> Path:
    """Where the notes lie that the model in `folder` had before its last step, in a `not-fed/` as in a model's."""
    return folder / NOTES / _BEFORE


def _carry_over(folder: Path, inside: str | Path, target: Path) -> None:
    """Links are left out: a stranger's could lead to any file or folder of this machine, or back to itself.

    Proved by: tests/unit/test_model_notes.py::test_notes_are_never_followed_out_of_the_model
    """
    source = folder.resolve() / inside
    if source.is_dir() and source.resolve() == source:
        shutil.copytree(
            source, target, copy_function=lambda old, new: link_or_copy(Path(old), Path(new)),
            ignore=lambda at, names: [name for name in names if Path(at, name).is_symlink()],
        )  # fmt: skip


def layers_put_in(folder: Path) -> list[Span]:
    """Where the layers lie that the transplant recorded in a model's folder put in or changed; raises NothingToUndo."""
    return list(_read(folder).put_in)


def undo_transplant(folder: Path, *, out: Path, progress: Progress = silent) -> str:
    """Take back the transplant that is recorded in `folder`: the base model as it was, with its own notes, to `out`.

    Layers that were replaced or changed are put back; layers that were inserted are dropped, whatever they have become.

    Returns:
        the base's digest, which `out` was checked to have.
    Raises:
        NothingToUndo: no transplant was recorded there, or the record is damaged. OutputExists.
        UndoDiffers: the model was changed since, so that its other tensors are not the base's.
        SpanOutside: the record names layers that the model has not.
    Guarantees:
        every tensor of `out` is bit-identical to the base's: its digest is the one on record.
    Proved by: tests/journeys/test_import.py::test_undo_gives_the_base_back_bit_for_bit,
        tests/journeys/test_transplant_modes.py::test_each_mode_is_undone_bit_for_bit
    """
    record, model = _read(folder), open_base(folder)
    for span in (*record.put_in, *record.taken_out):
        span.check_inside(model.layers, where=str(folder / NOTES / RECORD))
    with files.new_folder(out) as part:
        if record.mode == Insert.mode:
            _drop(record.put_in, model, part, progress=progress)
        else:
            _put_back(record.taken_out, model, part, progress=progress)
        restored = digest_tensors(open_base(part).places, progress=progress)
        if restored != record.base_sha256:
            raise UndoDiffers(
                where=str(folder), expected=f"base {record.base_sha256[:16]}...", got=f"{restored[:16]}...",
                hint="the model was changed after the transplant; take the base from where it came from",
            )  # fmt: skip
        restore_notes(folder, part)
    return record.base_sha256


def _drop(inserted: Sequence[Span], model: Base, folder: Path, *, progress: Progress) -> None:
    kept = kept_layers(model.layers, inserted)
    names = renumbered_tensors(model, {number: lower for lower, number in enumerate(kept)})
    config = files.read_regular(model.folder / NOTES / "config.json", max_bytes=MAX_CONFIG_BYTES)
    write_renamed(model, folder, names=names, added={}, config=config, progress=progress)


def _put_back(taken_out: Sequence[Span], model: Base, folder: Path, *, progress: Progress) -> None:
    replaced = {}
    for span in taken_out:
        organ = read_organ(model.folder / NOTES / _undo_name(span, alone=len(taken_out) == 1))
        graft = fit_graft(organ, base=model, at=span.start, accept_different_base=True)
        replaced.update({name: organ.places[own].blocks for name, own in graft.tensors.items()})
    write_copy(model, folder, replaced=replaced, progress=progress)


def _read(folder: Path) -> _Record:
    where = folder / NOTES / RECORD
    try:
        record = canonical.loads(files.read_regular(where, max_bytes=_MAX_RECORD_BYTES), where=str(where))
        return _parsed(record)
    except (InputError, KeyError, TypeError, ValueError, AttributeError):
        raise NothingToUndo(
            where=str(where), expected="the record of a transplant", got="none",
            hint="name the folder that not-fed transplant or import wrote",
        ) from None  # fmt: skip


def _parsed(record: dict[str, Any]) -> _Record:
    """A record of any version; raises KeyError, TypeError, ValueError or BadSpan when it is none."""
    if record["schema"] == SCHEMA:
        organs, taken_out = record["organs"], [_span(span) for span in record["taken_out"]]
    elif record["schema"] in (_OF_ONE, _OF_SEVERAL):
        organs = [record] if record["schema"] == _OF_ONE else record["grafts"]
        taken_out = [_span(organ["at"]) for organ in organs]
    else:
        raise KeyError(record["schema"])
    put_in = tuple(_span(organ["at"]) for organ in organs)
    return _Record(
        mode=str(record["mode"]), base_sha256=str(record["base_sha256"]), put_in=put_in, taken_out=tuple(taken_out)
    )


def _span(value: Sequence[Any]) -> Span:
    start, stop = value
    if type(start) is not int or type(stop) is not int:
        raise TypeError("span")
    return Span(start, stop)


def _settings(plan: TransplantPlan) -> dict[str, Any]:
    """What the mode was told."""
    if isinstance(plan.way, Delta):
        ties = {"density": TIES_DENSITY} if plan.way.overlap == "ties" else {}
        origin = {"origin_sha256": plan.grafts[0].organ.base_sha256}
        return {"scale": plan.way.scale, "overlap": plan.way.overlap, **ties, **origin}
    return {"start": plan.way.start} if isinstance(plan.way, Insert) else {}


def _regions(grafts: Sequence[Graft]) -> list[Span]:
    """The layers that the grafts take, as spans of which none shares a layer with another."""
    regions: list[Span] = []
    for span in sorted(graft.at for graft in grafts):
        if regions and span.start < regions[-1].stop:
            regions[-1] = Span(regions[-1].start, max(regions[-1].stop, span.stop))
        else:
            regions.append(span)
    return regions


def _undo_name(span: Span, *, alone: bool) -> str:
    return "taken-out.organ" if alone else f"taken-out-{span.start}-{span.stop}.organ"
