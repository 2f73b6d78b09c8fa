"""Records from a site's own files. An error names file and line, never the text."""

from __future__ import annotations

import csv
import io
import json
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from not_fed import files
from not_fed.errors import BudgetError, InputError
from not_fed.privacy.ledger.identity import DataIdentity, normalised
from not_fed.privacy.ledger.ledger import Ledger

MAX_DATA_BYTES = 64 << 30
PERSON_FIELDS = (  # names of fields that hold a person's id, letters and digits alone; the first that is there counts
    "patientid", "patient", "personid", "person", "subjectid", "userid", "clientid", "customerid", "accountid", "mrn",
)  # fmt: skip


class BadRecord(InputError):
    """A record cannot be read."""

    code = "bad-record"


class NoPerson(BadRecord):
    """A record does not say whom it is about."""

    code = "no-person"


class UnitSplitsPeople(BudgetError):
    """The named unit of privacy is smaller than a person."""

    code = "unit-splits-people"


class NoRecords(InputError):
    """The data file holds no records."""

    code = "no-records"


@dataclass(frozen=True, slots=True)
class Records:
    """What a site trains on: texts, and whom they are about where the unit of privacy is the person.

    Attributes:
        texts: one a record, in the file's order.
        people: who each text is about, one id a record; None where the unit is the record.
        person_field: the field that `people` came from, or None.
        most_of_a_person: how many records the person with most of them has, as far as the file has a field that names
            people, whatever the unit; 1 where it has none.
    """

    texts: tuple[str, ...] = field(repr=False)
    people: tuple[str, ...] | None = field(default=None, repr=False)
    person_field: str | None = None
    most_of_a_person: int = 1

    @property
    def unit(self) -> Literal["record", "person"]:
        """The unit of privacy that these records were read for."""
        return "record" if self.people is None else "person"


def identify_records(ledger: Ledger, records: Records, *, unit: Literal["record", "person"]) -> DataIdentity:
    """What a ledger knows these records by when they are accounted for by this unit of privacy."""
    return ledger.identify(records.texts, records.people if unit == "person" else None)


def read_records(path: Path, *, text_field: str = "text") -> list[str]:
    """The texts of all records of a file, in order; whom they are about is not looked at.

    Args and errors: as `read_data`.
    """
    return [text for _, text, _ in _read(path, text_field, lambda _: False)]


def read_data(path: Path, *, text_field: str = "text", unit: str | None = None) -> Records:
    """All records of a file, in order, with the people they are about where the unit of privacy is the person.

    Args:
        path: .jsonl, .txt, .csv or .parquet; the suffix decides.
        text_field: key or column that holds the text; a .txt file has no fields.
        unit: `record`, or the field that names the person. Without it a field that is known to name people, such as
            `patient_id`, makes it the person.
    Raises:
        NotAFile: no such file, or not a plain one.
        BadRecord: a broken line, a missing field, or a value that is not text; says file and line.
        NoPerson: a record does not say whom it is about; says file and line. Or ids differ in spelling alone.
        UnitSplitsPeople: the named field has several values for one person of a field that is known to name people.
        NoRecords: an empty file.
    Guarantees: an error names file, line and field, never a value. Ids are compared as text without surrounding space:
        7 and "7" are one person.
    Proved by: tests/unit/test_data.py::test_people_are_read_from_every_format_and_a_known_field_makes_them_the_unit
    """
    rows = list(_read(path, text_field, lambda name: name == unit or _known(name)))
    texts = tuple(text for _, text, _ in rows)
    person_field = _person_field([fields for _, _, fields in rows]) if unit in (None, "record") else unit
    if unit == "record" and person_field is not None:
        named = Counter(_person(fields.get(person_field)) for _, _, fields in rows)
        return Records(texts, most_of_a_person=max([count for person, count in named.items() if person], default=1))
    if person_field is None:
        return Records(texts)
    people = tuple(_require_person(fields.get(person_field), path, number, person_field) for number, _, fields in rows)
    _require_one_spelling(people, path=path, field=person_field)
    if not _known(person_field):
        _require_whole_people([fields for _, _, fields in rows], people, unit=person_field)
    return Records(texts, people, person_field, max(Counter(people).values()))


def _require_one_spelling(people: Sequence[str], *, path: Path, field: str) -> None:
    """Ids that differ in spelling alone are one person to the ledger, and would be two to training.

    Proved by: tests/unit/test_data.py::test_ids_that_differ_in_spelling_alone_are_refused
    """
    if len({normalised(person) for person in people}) != len(set(people)):
        raise NoPerson(
            where=f"{path}, field {field}", expected="one spelling of each person's id",
            got="ids that differ in case, white space or Unicode spelling alone",
            hint="write each person's id in one way; nothing was read on",
        )  # fmt: skip


Fields = Mapping[str, object]
Wanted = Callable[[str], bool]


def _read(path: Path, text_field: str, wanted: Wanted) -> Iterator[tuple[int, str, Fields]]:
    """Line, text and the wanted fields of each record."""
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise BadRecord(
            where=str(path),
            expected=f"a file ending in {', '.join(_READERS)}",
            got=path.suffix or "no suffix",
            hint="rename or convert the file",
        )
    found = False
    for number, row in reader(path, text_field, wanted):
        found = True
        yield (
            number,
            _text(row.get(text_field), path, number, text_field),
            {name: value for name, value in row.items() if name is not None and wanted(name)},
        )
    if not found:
        raise NoRecords(where=str(path), expected="at least one record", got="none", hint="check the path")


def _jsonl(path: Path, _field: str, _wanted: Wanted) -> Iterator[tuple[int, Fields]]:
    for number, line in _lines(path):
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            raise _bad(path, number, "one JSON object", "something that is not JSON") from None
        if not isinstance(value, dict):
            raise _bad(path, number, "one JSON object", f"a JSON {type(value).__name__}")
        yield number, value


def _txt(path: Path, text_field: str, _wanted: Wanted) -> Iterator[tuple[int, Fields]]:
    for number, line in _lines(path):
        yield number, {text_field: line}


def _csv(path: Path, text_field: str, _wanted: Wanted) -> Iterator[tuple[int, Fields]]:
    text = "".join(line + "\n" for _, line in _lines(path, keep_blank=True))
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    try:
        if text_field not in (reader.fieldnames or []):
            raise _bad(path, 1, f"a column named {text_field}", f"{len(reader.fieldnames or [])} other columns")
        for row in reader:
            yield reader.line_num, row
    except csv.Error:
        raise _bad(path, reader.reader.line_num, "comma-separated values", "a broken row") from None


def _parquet(path: Path, text_field: str, wanted: Wanted) -> Iterator[tuple[int, Fields]]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise InputError(
            where=str(path),
            expected="pyarrow, which reads .parquet",
            got="not installed",
            hint="pip install 'not-fed[parquet]'",
        ) from None
    with files.open_regular(path) as stream:
        try:
            table = parquet.ParquetFile(stream)
            names = table.schema_arrow.names
            if text_field not in names:
                raise _bad(path, 0, f"a column named {text_field}", f"{len(names)} other columns")
            number = 0
            for batch in table.iter_batches(columns=[name for name in names if name == text_field or wanted(name)]):
                for row in batch.to_pylist():
                    number += 1
                    yield number, row
        except pyarrow.ArrowException:
            raise _bad(path, 0, "a Parquet file", "something else") from None


_READERS: dict[str, Callable[[Path, str, Wanted], Iterator[tuple[int, Fields]]]] = {
    ".jsonl": _jsonl,
    ".txt": _txt,
    ".csv": _csv,
    ".parquet": _parquet,
}


def _known(name: str) -> bool:
    """Whether a field's name says that it names people: `patient_id`, `PatientID` and `patient id` are one name."""
    return _plain(name) in PERSON_FIELDS


def _plain(name: str) -> str:
    return "".join(char for char in name.lower() if char.isalnum())


def _person_field(rows: Sequence[Fields]) -> str | None:
    """The known field that has a value anywhere; of several, the one that stands first in `PERSON_FIELDS`."""
    present = {name for fields in rows for name, value in fields.items() if value not in (None, "")}
    return min(present, key=lambda name: (PERSON_FIELDS.index(_plain(name)), name), default=None)


def _person(value: object) -> str | None:
    """An id as text; None for what is no id."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)  # whole numbers become floats where a table has gaps
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        return None
    return unicodedata.normalize("NFC", str(value)).strip() or None


def _require_whole_people(rows: Sequence[Fields], people: Sequence[str], *, unit: str) -> None:
    """A claim per person is about whole people, as far as the file names them."""
    known = _person_field([{name: value for name, value in fields.items() if name != unit} for fields in rows])
    if known is None:
        return
    pairs = {(_person(fields.get(known)), person) for fields, person in zip(rows, people, strict=True)}
    if any(count > 1 for person, count in Counter(person for person, _ in pairs).items() if person):
        raise UnitSplitsPeople(
            where=f"unit of privacy, field {unit}", expected=f"one value for each person of the field {known}",
            got="several for somebody", hint=f"name {known} with --unit, or leave --unit out; nothing was spent",
        )  # fmt: skip


def _require_person(value: object, path: Path, number: int, person_field: str) -> str:
    person = _person(value)
    if person is None:
        empty = value is None or (isinstance(value, str) and not value.strip())
        raise NoPerson(
            where=f"{path}, line {number}",
            expected=f"whom the record is about, as text or a whole number, in the field {person_field}",
            got="nothing" if empty else f"a {type(value).__name__}",
            hint="mend the record, or name the field that has people's ids with --unit",
        )
    return person


def _lines(path: Path, *, keep_blank: bool = False) -> Iterator[tuple[int, str]]:
    with files.open_regular(path, max_bytes=MAX_DATA_BYTES) as stream:
        for number, raw in enumerate(stream, start=1):
            try:
                line = raw.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
            except UnicodeDecodeError:
                raise _bad(path, number, "UTF-8 text", "bytes of another encoding") from None
            if keep_blank or line.strip():
                yield number, line


def _text(value: object, path: Path, number: int, text_field: str) -> str:
    if not isinstance(value, str):
        got = "no such field" if value is None else f"a {type(value).__name__}"
        raise _bad(path, number, f"text in the field {text_field}", got)
    return value


def _bad(path: Path, number: int, expected: str, got: str) -> BadRecord:
    where = f"{path}, line {number}" if number else str(path)
    return BadRecord(
        where=where, expected=expected, got=got, hint="mend the record, or name another field with --text-field"
    )
