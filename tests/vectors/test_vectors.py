"""The frozen vectors, through every way in: one verdict each, by our reader and by one that shares no code with it."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from not_fed.envelope import MemorySeen, open_organ, verify_sealed
from not_fed.envelope.dsse import parse_statement
from not_fed.envelope.label import MAX_LABEL_BYTES, Label
from not_fed.envelope.passport import parse_passport
from not_fed.envelope.waybill import parse_waybill
from not_fed.errors import NotFedError
from tests.support import second_json, second_reader
from tests.support.second_writer import Draft, Party
from tests.support.trust import listing
from tests.support.vectors import FOLDER, ORGANS, SEALED, SIGNED, SUMS, Vector, files_in, unpack

ROOT = Path(__file__).parents[2]
KINDS = {
    "waybill": (second_reader.WAYBILL, second_json.IS_WAYBILL),
    "passport": (second_reader.PASSPORT, second_json.IS_STATEMENT),
    "label": (second_reader.LABEL, second_json.IS_LABEL),
}
Way = Callable[[Vector, Path], str | None]


def opened(vector: Vector, folder: Path) -> str | None:
    """open_organ on a file: the organ's digest. Without a key there is nothing to open."""
    opener = vector.opener()
    if opener is None:
        return verified(vector, folder)
    out = folder / "out" / "knee.organ"
    out.parent.mkdir()
    try:
        open_organ(
            write(vector, folder), opener=opener, roster=vector.roster(), out=out, now=vector.now,
            expect=vector.expectation(), label=vector.label, seen=memory(vector),
        )  # fmt: skip
    except NotFedError:
        assert listing(out.parent) == {}, "something was left behind"
        raise
    return hashlib.sha256(out.read_bytes()).hexdigest()


def verified(vector: Vector, folder: Path) -> str | None:
    """verify_sealed on the same file."""
    seen = verify_sealed(
        write(vector, folder), opener=vector.opener(), roster=vector.roster(), now=vector.now,
        expect=vector.expectation(), label=vector.label, seen=memory(vector),
    )  # fmt: skip
    return seen.passport.organ_sha256 if seen.passport else None


def second(vector: Vector, folder: Path) -> str | None:
    """The second reader, on bytes."""
    reader = vector.second_reader()
    if not reader.name:
        second_reader.verify_label(vector.label or b"", vector.sealed(), reader)
        return None
    return hashlib.sha256(second_reader.open_sealed(vector.sealed(), reader, vector.label).organ).hexdigest()


def verdict(act: Callable[[], object]) -> tuple[str, object]:
    """How it ended: `opened` and what came out, or an error's code. Any other exception is a failure."""
    try:
        return "opened", act()
    except (NotFedError, second_json.Refused) as error:
        return error.code, None


def write(vector: Vector, folder: Path) -> Path:
    path = folder / "knee.sealed"
    path.write_bytes(vector.sealed())
    return path


def memory(vector: Vector) -> MemorySeen:
    seen = MemorySeen()
    for waybill_id in vector.content["seen"]:
        for name in vector.roster().members:  # a memory knows a waybill with its sender
            seen.record(f"{name}/{waybill_id}", vector.now)
    return seen


@pytest.mark.parametrize("path", files_in(SEALED), ids=lambda path: path.stem)
@pytest.mark.parametrize("way", [opened, verified, second])
def test_each_sealed_vector_ends_as_it_says(path: Path, way: Way, tmp_path: Path) -> None:
    vector = Vector.load(path)
    expected = (vector.expected, vector.content["expect"].get("organ_sha256"))
    assert verdict(lambda: way(vector, tmp_path)) == expected


@pytest.mark.parametrize("path", files_in(SIGNED), ids=lambda path: path.stem)
def test_each_signed_vector_ends_as_it_says(path: Path, tmp_path: Path) -> None:
    """Read by both readers; and sealed on the spot, so that the whole order of checks meets it."""
    said = json.loads(path.read_bytes())
    kind, wanted = said["kind"], said["expect"].get("code", "opened")
    line = unpack(said["line"]) if "line" in said else Party("clinic").sign(unpack(said["payload"]), KINDS[kind][0])
    assert verdict(lambda: first_parse(kind, line))[0] == wanted
    assert verdict(lambda: second_parse(kind, line))[0] == wanted
    draft = Draft(label={}, **{f"edit_{kind}": lambda _: line})
    made = draft.write()
    base = Vector.load(SEALED / "opened-one-recipient.json").content
    whole = Vector(path.stem, {**base, "sealed": made.sealed, "label": made.label})
    endings = {verdict(lambda way=way, place=tmp_path / way.__name__: way(Live(whole), made_in(place)))[0]
               for way in (opened, verified, second)}  # fmt: skip
    assert len(endings) == 1, endings
    assert wanted == "opened" or endings == {wanted}


@pytest.mark.parametrize("path", files_in(ORGANS), ids=lambda path: path.stem)
@pytest.mark.parametrize("way", [opened, verified, second])
def test_each_organ_vector_ends_as_it_says(path: Path, way: Way, tmp_path: Path) -> None:
    """Sealed on the spot by an author who signs whatever it is."""
    said = json.loads(path.read_bytes())
    organ = unpack(said["organ"])
    made = Draft(organ=organ, predicate={"span": said["span"]}).write()
    base = Vector.load(SEALED / "opened-one-recipient.json").content
    vector = Live(Vector(path.stem, {**base, "sealed": made.sealed, "label": None}))
    digest = None if "code" in said["expect"] else hashlib.sha256(organ).hexdigest()
    assert verdict(lambda: way(vector, tmp_path)) == (said["expect"].get("code", "opened"), digest)


class Live(Vector):
    """A vector that was made a moment ago: its bytes are at hand."""

    def __init__(self, vector: Vector) -> None:
        super().__init__(vector.name, vector.content)

    @property
    def label(self) -> bytes | None:
        """As it is."""
        label: bytes | None = self.content["label"]
        return label

    def sealed(self) -> bytes:
        """As it is."""
        sealed: bytes = self.content["sealed"]
        return sealed


def made_in(folder: Path) -> Path:
    folder.mkdir()
    return folder


def first_parse(kind: str, line: bytes) -> object:
    """Our reader, of the line alone."""
    if kind == "waybill":
        return parse_waybill(line)
    if kind == "passport":
        return parse_passport(line)
    label = second_reader.LABEL
    return parse_statement(line, Label, payload_type=label, where="label", max_bytes=MAX_LABEL_BYTES)


def second_parse(kind: str, line: bytes) -> object:
    """The second reader, of the line alone."""
    _, value = second_reader.signed_object(line, *KINDS[kind])
    second_json.need(kind != "passport" or second_json.IS_PREDICATE(value["predicate"]), "signed-malformed")
    return value


def test_the_vectors_are_frozen() -> None:
    """Every file in the folder is listed with its digest, and every file that is listed is there."""
    listed = dict(reversed(line.split("  ")) for line in SUMS.read_text().splitlines())
    data = set(FOLDER.rglob("*.json"))
    assert {str(path.relative_to(FOLDER)) for path in data} == set(listed)
    for path in data:
        assert hashlib.sha256(path.read_bytes()).hexdigest() == listed[str(path.relative_to(FOLDER))], path.name


def test_there_are_enough_vectors_and_each_has_one_name() -> None:
    cases = [json.loads(path.read_bytes()) for folder in (SEALED, SIGNED, ORGANS) for path in files_in(folder)]
    refused = [case for case in cases if case["expect"]["verdict"] == "refused"]
    assert len(refused) >= 60
    assert len(cases) - len(refused) >= 20
    assert sum(path.stat().st_size for path in FOLDER.rglob("*.json")) < 3_500_000


def test_every_error_in_the_order_of_checks_has_a_vector() -> None:
    """The page's table and the vectors speak of the same codes; those about this machine's disk have none."""
    page = (ROOT / "docs" / "format.md").read_text()
    section = page[page.index("## Order of checks") : page.index("## Keys and rotation")]
    said = set(re.findall(r"`([a-z]+(?:-[a-z]+)+)`", section))
    found: set[Any] = {
        json.loads(path.read_bytes())["expect"].get("code")
        for folder in (SEALED, SIGNED, ORGANS) for path in files_in(folder)
    }  # fmt: skip
    assert said - found == {"not-a-file", "file-too-large", "no-space", "output-exists"}
    assert found - {None} <= said
