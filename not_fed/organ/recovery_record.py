"""What a recovered model's folder says of its recovery, and the way back: `not-fed/` inside it. Loads without torch.

`recovery.json` says what was done, `taken-out.safetensors` holds the replaced tensors as they were, and `before/` what
the folder of the model before had in its own `not-fed/`: so the step back restores that as well, and the steps before
it can be taken back in their turn.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from not_fed import canonical, files
from not_fed.errors import InputError
from not_fed.organ.anatomy import Span
from not_fed.organ.checkpoint import Base, Place, digest_tensors, open_base, read_header
from not_fed.organ.transplant import (
    NOTES,
    NothingToUndo,
    UndoDiffers,
    earlier,
    keep_notes,
    layers_put_in,
    restore_notes,
    write_copy,
)
from not_fed.organ.writing import write_safetensors
from not_fed.progress import Progress, silent

RECORD = "recovery.json"
TAKEN_OUT = "taken-out.safetensors"
SCHEMA = "not-fed/recovery-record/1"


def is_recovered(folder: Path) -> bool:
    """Whether the last thing that was done to the model in `folder` was a recovery."""
    return (folder / NOTES / RECORD).is_file()


def last_put_in(folder: Path) -> Sequence[Span]:
    """Where layers were last put into the model in `folder`, however often it was recovered since; none is ()."""
    while is_recovered(folder):
        folder = earlier(folder)
    return layers_put_in(folder) if (folder / NOTES).is_dir() else ()


def record_recovery(base: Base, folder: Path, *, replaced: Iterable[str], facts: Mapping[str, Any]) -> None:
    """Write into `folder`/not-fed what was done to `base`, and its tensors as they were."""
    notes = folder / NOTES
    notes.mkdir()
    keep_notes(base.folder, notes)
    places = {name: base.places[name] for name in replaced}
    shapes = {name: (place.dtype, place.shape, place.end - place.begin) for name, place in places.items()}
    write_safetensors(notes / TAKEN_OUT, shapes, metadata={}, blocks=lambda name: places[name].blocks())
    done = {"schema": SCHEMA, "model_sha256": base.sha256, "replaced": sorted(places), **facts}
    files.write_atomic(notes / RECORD, canonical.dumps(done) + b"\n", mode=0o644)


def undo_recovery(folder: Path, *, out: Path, progress: Progress = silent) -> str:
    """Write the model as it was before its recovery to `out`, with its own notes.

    Returns:
        its digest, which `out` was checked to have.
    Raises:
        NothingToUndo: no recovery was recorded there, or the record is damaged. OutputExists.
        UndoDiffers: the model was changed since, so that its other tensors are not what they were.
    Guarantees:
        every tensor of `out` is bit-identical to the model's before: its digest is the one on record.
    Proved by: tests/unit/test_recover.py::test_a_recovery_touches_what_it_says_and_undo_gives_the_model_back
    """
    notes = folder / NOTES
    try:
        record = canonical.loads(files.read_regular(notes / RECORD, max_bytes=1 << 24), where=str(notes / RECORD))
        model_sha256 = str(record["model_sha256"])
        taken_out = read_header(notes / TAKEN_OUT)
    except (InputError, KeyError, TypeError):
        raise NothingToUndo(
            where=str(notes / RECORD), expected="the record of a recovery", got="none",
            hint="name the folder that not-fed recover wrote",
        ) from None  # fmt: skip
    base = open_base(folder)
    if any(_shape(base.places.get(name)) != _shape(place) for name, place in taken_out.items()):
        raise _differs(folder, model_sha256, got="tensors of another shape")
    with files.new_folder(out) as part:
        replaced = {name: place.blocks for name, place in taken_out.items()}
        write_copy(base, part, replaced=replaced, progress=progress)
        restored = digest_tensors(open_base(part).places, progress=progress)
        if restored != model_sha256:
            raise _differs(folder, model_sha256, got=f"{restored[:16]}...")
        restore_notes(folder, part)
    return model_sha256


def _shape(place: Place | None) -> object:
    return None if place is None else (place.dtype, place.shape)


def _differs(folder: Path, model_sha256: str, *, got: str) -> UndoDiffers:
    return UndoDiffers(
        where=str(folder), expected=f"model {model_sha256[:16]}...", got=got,
        hint="the model was changed after the recovery; take the one before from where it came from",
    )  # fmt: skip
