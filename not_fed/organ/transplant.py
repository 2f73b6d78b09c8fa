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
from not_fed.errors import InputError
from not_fed.organ.anatomy import Span
from not_fed.organ.checkpoint import Base, Place
from not_fed.organ.extract import extract
from not_fed.organ.fit import check_fit
from not_fed.organ.organ import OrganInfo
from not_fed.progress import Progress, silent

NOTES = "not-fed"  # folder inside the new checkpoint
UNDO = "taken-out.organ"
SCHEMA = "not-fed/transplant-record/1"


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
        _check_unchanged(plan)
        shards = {place.file for place in plan.base.places.values()}
        by_name = {source.resolve(): source for source in plan.base.folder.iterdir()}
        for number, shard in enumerate(sorted(shards), start=1):
            target = part / by_name.get(shard, shard).name
            if shard in plan.touched:
                _rewrite(plan, shard, target)
            else:
                _link(shard, target)
            progress("transplant", done=number, total=len(shards))
        for source in plan.base.folder.iterdir():
            if (
                source.is_file()
                and source.resolve() not in shards
                and source.suffix not in (".bin", ".gguf", ".pt", ".pth")
            ):
                shutil.copyfile(source, part / source.name)
        _record(plan, part)
        _check_unchanged(plan)
    return out


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


def _record(plan: TransplantPlan, part: Path) -> None:
    notes = part / NOTES
    notes.mkdir()
    extract(plan.base, span=plan.at, out=notes / UNDO)
    done = {
        "schema": SCHEMA,
        "mode": "replace",
        "at": [plan.at.start, plan.at.stop],
        "organ_sha256": plan.organ.sha256,
        "base_sha256": plan.base.sha256,
        "replaced": sorted(plan.tensors),
        "undo": f"{NOTES}/{UNDO}",
    }
    files.write_atomic(notes / "transplant.json", canonical.dumps(done) + b"\n", mode=0o644)


def _check_unchanged(plan: TransplantPlan) -> None:
    for path, state in plan.states.items():
        if _state(path) != state:
            raise ChangedSincePlan(
                where=str(path), expected="the file that the plan saw", got="another size or time", hint="plan again"
            )


def _state(path: Path) -> tuple[int, int]:
    stat = path.stat()
    return stat.st_size, stat.st_mtime_ns
