"""Put organs into a copy of a base: plan from headers, then apply what the plan says to the files the plan saw.

The base's folder is never changed. The new folder is an ordinary Hugging Face checkpoint: shards without a replaced
tensor are hard links where the file system allows, the others are copied with only the organ's bytes written over.
`not-fed/` inside it holds what was done and the layers that were taken out, so that they can be put back.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from not_fed import canonical, files
from not_fed.errors import FitError, InputError
from not_fed.organ.anatomy import Span
from not_fed.organ.body import require_apart
from not_fed.organ.checkpoint import Base, Place, digest_tensors, open_base
from not_fed.organ.extract import extract
from not_fed.organ.fit import check_fit
from not_fed.organ.organ import OrganInfo, read_organ
from not_fed.progress import Progress, silent

NOTES = "not-fed"  # folder inside the new checkpoint
UNDO = "taken-out.organ"
RECORD = "transplant.json"
SCHEMA = "not-fed/transplant-record/1"
BODY_SCHEMA = "not-fed/transplant-record/2"  # of several organs


class NothingToUndo(InputError):
    """This folder holds no model that not-fed put an organ into."""

    code = "nothing-to-undo"


class UndoDiffers(FitError):
    """Putting the old layers back does not give the base model of the record; nothing was written."""

    code = "undo-differs"


class ChangedSincePlan(InputError):
    """A file changed after the transplant was planned; nothing was written."""

    code = "changed-since-plan"


@dataclass(frozen=True, slots=True, kw_only=True)
class Graft:
    """One organ and its place.

    Attributes:
        tensors: name in the base -> name in the organ, for every tensor that is replaced.
        exact: the organ was cut from exactly the layers that it replaces.
    """

    organ: OrganInfo
    at: Span
    exact: bool
    tensors: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class TransplantPlan:
    """What would change, decided from headers alone: safe to print and review.

    Attributes:
        grafts: the organs, from the lowest layer up; no layer is in two of them.
        states: size and modification time of every file the plan looked at.
    """

    base: Base
    grafts: tuple[Graft, ...]
    states: Mapping[Path, tuple[int, int]]

    @property
    def exact(self) -> bool:
        """Whether each organ was cut from exactly the layers that it replaces."""
        return all(graft.exact for graft in self.grafts)

    @property
    def tensors(self) -> frozenset[str]:
        """The names, in the base, of all tensors that are replaced."""
        return frozenset(name for graft in self.grafts for name in graft.tensors)

    @property
    def touched(self) -> frozenset[Path]:
        """The base's weight files that hold a replaced tensor."""
        return frozenset(self.base.places[name].file for name in self.tensors)

    @property
    def shards(self) -> frozenset[Path]:
        """All of the base's weight files."""
        return frozenset(place.file for place in self.base.places.values())


def plan_transplant(
    *, organ: OrganInfo, base: Base, at: int | None = None, accept_different_base: bool = False
) -> TransplantPlan:
    """Check that every tensor has its place; raise FitError here or never.

    Args:
        at: first layer of the place; None is where the organ was cut.
        accept_different_base: the blood types agree, the layers differ, and that is all right.
    """
    return _plan([(organ, at)], base=base, accept_different_base=accept_different_base)


def plan_body(organs: Sequence[OrganInfo], *, base: Base, accept_different_base: bool = False) -> TransplantPlan:
    """As `plan_transplant`, for several organs at once, each where it was cut.

    Raises:
        SpansOverlap: two of them share a layer. FitError: one does not fit.
    Proved by: tests/unit/test_body.py::test_a_body_is_transplanted_at_once_and_undone_at_once,
        tests/unit/test_body.py::test_organs_that_share_a_layer_are_no_body
    """
    require_apart([(organ.span, organ.path.name) for organ in organs])
    return _plan([(organ, None) for organ in organs], base=base, accept_different_base=accept_different_base)


def _plan(organs: Sequence[tuple[OrganInfo, int | None]], *, base: Base, accept_different_base: bool) -> TransplantPlan:
    grafts = []
    for organ, at in organs:
        fit = check_fit(organ, base=base, at=at, accept_different_base=accept_different_base)
        names = base.span_names(fit.at)
        tensors = {names[name]: name for name in organ.places}
        grafts.append(Graft(organ=organ, at=fit.at, exact=fit.exact, tensors=tensors))
    looked_at = {*(organ.path for organ, _ in organs), *(place.file for place in base.places.values())}
    return TransplantPlan(
        base=base,
        grafts=tuple(sorted(grafts, key=lambda graft: graft.at)),
        states={path: _state(path) for path in looked_at},
    )


def apply_transplant(plan: TransplantPlan, *, out: Path, progress: Progress = silent) -> Path:
    """Write the new checkpoint; `out` appears whole or not at all.

    Raises:
        ChangedSincePlan: a file is not what the plan saw.
        OutputExists: `out` is there already.
    Guarantees:
        every tensor that is not in the plan is bit-identical to the base's.
    Proved by: tests/unit/test_organ_files.py::test_every_tensor_outside_the_plan_is_bit_identical
    """
    with files.new_folder(out) as part:
        write_transplant(plan, part, progress=progress)
        record_transplant(plan, part, organs_sha256=[graft.organ.sha256 for graft in plan.grafts])
    return out


def write_transplant(plan: TransplantPlan, folder: Path, *, progress: Progress = silent) -> None:
    """Fill an existing private folder with the new checkpoint, without notes; errors as `apply_transplant`."""
    _check_unchanged(plan)
    _write_shards(plan, folder, progress)
    for source in plan.base.folder.iterdir():
        odd = source.suffix in (".bin", ".gguf", ".pt", ".pth")  # the same weights in another form would be stale
        if source.is_file() and source.resolve() not in plan.shards and not odd:
            shutil.copyfile(source, folder / source.name)
    _check_unchanged(plan)


def undo_transplant(folder: Path, *, out: Path, progress: Progress = silent) -> str:
    """Put back what was taken out of the model in `folder`, and write the base model as it was to `out`.

    Returns:
        the base's digest, which `out` was checked to have.
    Raises:
        NothingToUndo: no transplant was recorded there, or the record is damaged. OutputExists.
        UndoDiffers: the model was changed since, so that its other tensors are not the base's.
    Guarantees:
        every tensor of `out` is bit-identical to the base's: its digest is the one on record.
    Proved by: tests/journeys/test_import.py::test_undo_gives_the_base_back_bit_for_bit
    """
    taken_out, base_sha256 = _read_record(folder)
    organs = [(read_organ(folder / NOTES / name), at) for name, at in taken_out]
    plan = _plan(organs, base=open_base(folder), accept_different_base=True)
    with files.new_folder(out) as part:
        write_transplant(plan, part, progress=progress)
        restored = digest_tensors(open_base(part).places, progress=progress)
        if restored != base_sha256:
            raise UndoDiffers(
                where=str(folder), expected=f"base {base_sha256[:16]}...", got=f"{restored[:16]}...",
                hint="the model was changed after the transplant; take the base from where it came from",
            )  # fmt: skip
    return base_sha256


def _read_record(folder: Path) -> tuple[list[tuple[str, int]], str]:
    """Which file has the layers that were taken out of each place, and the digest of the base that was."""
    where = folder / NOTES / RECORD
    taken_out, base_sha256 = [], None
    try:
        record = canonical.loads(files.read_regular(where, max_bytes=1 << 24), where=str(where))
        base_sha256 = record["base_sha256"]
        if record["schema"] == BODY_SCHEMA:
            spans = [Span(*graft["at"]) for graft in record["grafts"]]
            taken_out = [(_undo_name(span), span.start) for span in spans]
        else:
            taken_out = [(UNDO, Span(*record["at"]).start)]
    except (InputError, KeyError, TypeError):
        taken_out = []
    if not taken_out or not isinstance(base_sha256, str):
        raise NothingToUndo(
            where=str(where), expected="the record of a transplant", got="none",
            hint="name the folder that not-fed transplant or import wrote",
        )  # fmt: skip
    return taken_out, base_sha256


def _write_shards(plan: TransplantPlan, folder: Path, progress: Progress) -> None:
    by_name = {source.resolve(): source for source in plan.base.folder.iterdir()}
    for number, shard in enumerate(sorted(plan.shards), start=1):
        target = folder / by_name.get(shard, shard).name
        if shard in plan.touched:
            _rewrite(plan, shard, target)
        else:
            _link(shard, target)
        progress("transplant", done=number, total=len(plan.shards))


def _rewrite(plan: TransplantPlan, shard: Path, target: Path) -> None:
    with files.open_regular(shard) as source, files.new_file(target, mode=0o644) as copy:
        shutil.copyfileobj(source, copy, files.BLOCK_BYTES)
        for graft in plan.grafts:
            for name, organ_name in graft.tensors.items():
                place = plan.base.places[name]
                if place.file == shard:
                    copy.seek(place.begin)
                    copy.writelines(_blocks(graft.organ.places[organ_name], size=place.end - place.begin))


def _blocks(place: Place, *, size: int) -> Iterable[bytes]:
    if place.end - place.begin != size:
        raise ChangedSincePlan(
            where=str(place.file), expected=f"{size:,} bytes", got=f"{place.end - place.begin:,}", hint="plan again"
        )
    return place.blocks()


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without links
        shutil.copyfile(source, target)


def record_transplant(plan: TransplantPlan, folder: Path, *, organs_sha256: Sequence[str]) -> None:
    """Write into `folder`/not-fed what was done, and the layers that were taken out; needs no organ file any more.

    Args:
        organs_sha256: of the plan's grafts, in their order.
    """
    notes = folder / NOTES
    notes.mkdir(exist_ok=True)
    single = len(plan.grafts) == 1
    grafts = []
    for graft, sha256 in zip(plan.grafts, organs_sha256, strict=True):
        name = UNDO if single else _undo_name(graft.at)
        extract(plan.base, span=graft.at, out=notes / name)
        grafts.append({"at": [graft.at.start, graft.at.stop], "organ_sha256": sha256, "undo": f"{NOTES}/{name}"})
    done = {
        "schema": SCHEMA if single else BODY_SCHEMA,
        "mode": "replace",
        "base_sha256": plan.base.sha256,
        "replaced": sorted(plan.tensors),
        **(grafts[0] if single else {"grafts": grafts}),
    }
    files.write_atomic(notes / RECORD, canonical.dumps(done) + b"\n", mode=0o644)


def _undo_name(at: Span) -> str:
    return f"taken-out-{at.start}-{at.stop}.organ"


def _check_unchanged(plan: TransplantPlan) -> None:
    for path, state in plan.states.items():
        if _state(path) != state:
            raise ChangedSincePlan(
                where=str(path), expected="the file that the plan saw", got="another size or time", hint="plan again"
            )


def _state(path: Path) -> tuple[int, int]:
    stat = path.stat()
    return stat.st_size, stat.st_mtime_ns
