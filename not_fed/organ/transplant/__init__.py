"""Put organs into a copy of a model: plan from headers, then apply what the plan says to the files the plan saw.

The model's folder is never changed. The new folder is an ordinary Hugging Face checkpoint: shards that stay as they are
are hard links where the file system allows. `not-fed/` inside it holds what was done and whatever is needed to take it
back. `ways` has the ways of putting an organ in, `plan` settles every question, `apply` writes, `record` remembers and
takes back; `delta` is the arithmetic of a change, `insert` what it means for a model to have more layers, and `copying`
writes a checkpoint that differs from another in some tensors.
"""

from not_fed.organ.transplant.apply import apply_transplant, write_transplant
from not_fed.organ.transplant.copying import ChangedSincePlan, write_copy
from not_fed.organ.transplant.plan import Graft, TransplantPlan, fit_graft, plan_body, plan_transplant
from not_fed.organ.transplant.record import (
    NOTES,
    NothingToUndo,
    UndoDiffers,
    earlier,
    keep_notes,
    layers_put_in,
    record_transplant,
    restore_notes,
    undo_transplant,
)
from not_fed.organ.transplant.ways import Delta, Insert, Overlap, Replace, Start, Way

__all__ = [
    "NOTES",
    "ChangedSincePlan",
    "Delta",
    "Graft",
    "Insert",
    "NothingToUndo",
    "Overlap",
    "Replace",
    "Start",
    "TransplantPlan",
    "UndoDiffers",
    "Way",
    "apply_transplant",
    "earlier",
    "fit_graft",
    "keep_notes",
    "layers_put_in",
    "plan_body",
    "plan_transplant",
    "record_transplant",
    "restore_notes",
    "undo_transplant",
    "write_copy",
    "write_transplant",
]
