"""Write what a plan says, to a folder that appears whole or not at all."""

from __future__ import annotations

import json
from collections import defaultdict
from functools import partial
from pathlib import Path

from not_fed import files
from not_fed.organ.transplant.copying import Blocks, NewTensor, write_copy, write_renamed
from not_fed.organ.transplant.delta import Change, changed_blocks
from not_fed.organ.transplant.insert import kept_layers, renumbered_tensors, zeros
from not_fed.organ.transplant.plan import TransplantPlan
from not_fed.organ.transplant.record import record_transplant
from not_fed.organ.transplant.ways import Delta, Insert
from not_fed.progress import Progress, silent


def apply_transplant(plan: TransplantPlan, *, out: Path, progress: Progress = silent) -> Path:
    """Write the new checkpoint; `out` appears whole or not at all.

    Raises:
        ChangedSincePlan: a file is not what the plan saw.
        DeltaOverflows: a number would not be finite. OutputExists: `out` is there already.
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
    plan.check_unchanged()
    if isinstance(plan.way, Insert):
        write_renamed(
            plan.base, folder, names=_pushed_up(plan), added=_brought(plan),
            config=json.dumps(plan.config, indent=2).encode() + b"\n", progress=progress,
        )  # fmt: skip
    else:
        replaced = _changed(plan, plan.way) if isinstance(plan.way, Delta) else _given(plan)
        write_copy(plan.base, folder, replaced=replaced, progress=progress)
    plan.check_unchanged()


def _given(plan: TransplantPlan) -> dict[str, Blocks]:
    """The organs' tensors."""
    return {name: graft.organ.places[own].blocks for graft in plan.grafts for name, own in graft.tensors.items()}


def _changed(plan: TransplantPlan, way: Delta) -> dict[str, Blocks]:
    """The base's tensors with what the organs have learnt."""
    changes: dict[str, list[Change]] = defaultdict(list)
    for graft in plan.grafts:
        for name, own in graft.tensors.items():
            changes[name].append((graft.organ.places[own], graft.originals[own]))
    return {name: partial(changed_blocks, plan.base.places[name], all_of, way=way) for name, all_of in changes.items()}


def _pushed_up(plan: TransplantPlan) -> dict[str, str]:
    """The base's tensors under the names that they have in the longer model."""
    return renumbered_tensors(plan.base, dict(enumerate(kept_layers(plan.layers, [graft.at for graft in plan.grafts]))))


def _brought(plan: TransplantPlan) -> dict[str, NewTensor]:
    """The new layers' tensors."""
    tensors = {}
    for graft in plan.grafts:
        for name, own in graft.tensors.items():
            place = graft.organ.places[own]
            size = place.end - place.begin
            blocks = partial(zeros, size) if own in graft.zeros else place.blocks
            tensors[name] = NewTensor(dtype=place.dtype, shape=place.shape, size_bytes=size, blocks=blocks)
    return tensors
