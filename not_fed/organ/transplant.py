"""Put an organ into a copy of a base: plan from headers, then apply what the plan says to the files the plan saw.

The base's folder is never changed. The new folder is an ordinary Hugging Face checkpoint: shards without a replaced
tensor are hard links where the file system allows, the others are copied with only the organ's bytes written over.
`not-fed/` inside it holds what was done and the layers that were taken out, so that they can be put back.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from not_fed import canonical, files
from not_fed.errors import FitError, InputError
from not_fed.organ.anatomy import Span
from not_fed.organ.checkpoint import Base, Place, digest_tensors, open_base
from not_fed.organ.extract import extract
from not_fed.organ.fit import check_fit
from not_fed.organ.organ import OrganInfo, read_organ
from not_fed.progress import Progress, silent

NOTES = "not-fed"  # folder inside the new checkpoint
UNDO = "taken-out.organ"
RECORD = "transplant.json"
SCHEMA = "not-fed/transplant-record/1"


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
class TransplantPlan:
    """What would change, decided from headers alone: safe to print and review.

    Attributes:
        tensors: name in the base -> name in the organ, for every tensor that is replaced.
        exact: the organ was cut from exactly the layers that it replaces.
        states: size and modification time of every file the plan looked at.
    """

    organ: OrganInfo
    base: Base
    at: Span
    exact: bool
    tensors: Mapping[str, str]
    states: Mapping[Path, tuple[int, int]]

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
    fit = check_fit(organ, base=base, at=at, accept_different_base=accept_different_base)
    names = base.span_names(fit.at)
    looked_at = {organ.path, *(place.file for place in base.places.values())}
    return TransplantPlan(
        organ=organ,
        base=base,
        at=fit.at,
        exact=fit.exact,
        tensors={names[name]: name for name in organ.places},
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
        record_transplant(plan, part, organ_sha256=plan.organ.sha256)
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
    at, base_sha256 = _read_record(folder)
    plan = plan_transplant(
        organ=read_organ(folder / NOTES / UNDO), base=open_base(folder), at=at, accept_different_base=True
    )
    with files.new_folder(out) as part:
        write_transplant(plan, part, progress=progress)
        restored = digest_tensors(open_base(part).places, progress=progress)
        if restored != base_sha256:
            raise UndoDiffers(
                where=str(folder), expected=f"base {base_sha256[:16]}...", got=f"{restored[:16]}...",
                hint="the model was changed after the transplant; take the base from where it came from",
            )  # fmt: skip
    return base_sha256


def _read_record(folder: Path) -> tuple[int, str]:
    """First layer of the place, and the digest of the base that was."""
    where = folder / NOTES / RECORD
    try:
        record = canonical.loads(files.read_regular(where, max_bytes=1 << 24), where=str(where))
        at, base_sha256 = record["at"][0], record["base_sha256"]
    except (InputError, KeyError, IndexError, TypeError):
        at = base_sha256 = None
    if not isinstance(at, int) or not isinstance(base_sha256, str):
        raise NothingToUndo(
            where=str(where), expected="the record of a transplant", got="none",
            hint="name the folder that not-fed transplant or import wrote",
        )  # fmt: skip
    return at, base_sha256


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
        for name, organ_name in plan.tensors.items():
            place = plan.base.places[name]
            if place.file == shard:
                copy.seek(place.begin)
                copy.writelines(_blocks(plan.organ.places[organ_name], size=place.end - place.begin))


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


def record_transplant(plan: TransplantPlan, folder: Path, *, organ_sha256: str) -> None:
    """Write into `folder`/not-fed what was done, and the layers that were taken out; needs no organ file any more."""
    notes = folder / NOTES
    notes.mkdir(exist_ok=True)
    extract(plan.base, span=plan.at, out=notes / UNDO)
    done = {
        "schema": SCHEMA,
        "mode": "replace",
        "at": [plan.at.start, plan.at.stop],
        "organ_sha256": organ_sha256,
        "base_sha256": plan.base.sha256,
        "replaced": sorted(plan.tensors),
        "undo": f"{NOTES}/{UNDO}",
    }
    files.write_atomic(notes / RECORD, canonical.dumps(done) + b"\n", mode=0o644)


def _check_unchanged(plan: TransplantPlan) -> None:
    for path, state in plan.states.items():
        if _state(path) != state:
            raise ChangedSincePlan(
                where=str(path), expected="the file that the plan saw", got="another size or time", hint="plan again"
            )


def _state(path: Path) -> tuple[int, int]:
    stat = path.stat()
    return stat.st_size, stat.st_mtime_ns
