"""What a stranger's model folder says of its own past: `not-fed/` inside it, which undo and transplant read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from not_fed.organ.anatomy import Span, SpanOutside
from not_fed.organ.checkpoint import Base, open_base
from not_fed.organ.extract import extract
from not_fed.organ.transplant import Insert, NothingToUndo, apply_transplant, plan_transplant, undo_transplant
from tests.support import tiny
from tests.support.folders import save_base

RECORD = "not-fed/transplant.json"


@pytest.fixture
def longer(tmp_path: Path) -> Base:
    """A model that an organ was put into."""
    base = save_base(tiny.tiny_llama(), tmp_path / "base")
    organ = extract(base, span=Span(1, 2), out=tmp_path / "organ")
    return open_base(apply_transplant(plan_transplant(organ=organ, base=base, way=Insert()), out=tmp_path / "longer"))


def lie(model: Base, **fields: object) -> None:
    record = model.folder / RECORD
    record.write_text(json.dumps({**json.loads(record.read_text()), **fields}))


@pytest.mark.parametrize(
    ("at", "refusal"),
    [
        ([0, 10**12], SpanOutside),  # counting them would take all memory
        ([1.0, 2.0], NothingToUndo),
        (["0", "1"], NothingToUndo),
        (["../../x", "y"], NothingToUndo),
        ([1], NothingToUndo),
    ],
)
def test_a_record_that_lies_about_layers_is_refused(
    at: list[Any], refusal: type[Exception], longer: Base, tmp_path: Path
) -> None:
    lie(longer, organs=[{"at": at}])
    with pytest.raises(refusal):
        undo_transplant(longer.folder, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_notes_are_never_followed_out_of_the_model(longer: Base, tmp_path: Path) -> None:
    """A file or folder of this machine would travel with the new model; a link back would never end."""
    (tmp_path / "home").mkdir()
    (tmp_path / "home/key").write_text("secret")
    notes = longer.folder / "not-fed"
    for name, target in (("key", tmp_path / "home/key"), ("home", tmp_path / "home"), ("again", notes)):
        (notes / name).symlink_to(target)
    organ = extract(longer, span=Span(1, 2), out=tmp_path / "again")
    out = apply_transplant(plan_transplant(organ=organ, base=longer), out=tmp_path / "out")
    assert sorted(path.name for path in (out / "not-fed/before/not-fed").iterdir()) == [
        "config.json",
        "transplant.json",
    ]


def test_notes_that_are_themselves_a_link_are_left(longer: Base, tmp_path: Path) -> None:
    notes = longer.folder / "not-fed"
    notes.rename(tmp_path / "elsewhere")
    notes.symlink_to(tmp_path / "elsewhere")
    organ = extract(longer, span=Span(1, 2), out=tmp_path / "again")
    out = apply_transplant(plan_transplant(organ=organ, base=longer), out=tmp_path / "out")
    assert not (out / "not-fed/before").exists()
