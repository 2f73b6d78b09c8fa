"""Records from files: every format, and a clear word for every break, without quoting a byte of text."""

from __future__ import annotations

from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet

from not_fed.errors import InputError
from not_fed.files import NotAFile
from not_fed.organ.data import BadRecord, NoPerson, NoRecords, Records, UnitSplitsPeople, read_data, read_records

SECRET = "patient 42"


def written(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_all_formats_give_the_same_records(tmp_path: Path) -> None:
    texts = ['one, "two"', "drei ünd vier", "five"]
    table = pyarrow.table({"text": texts, "id": [1, 2, 3]})
    parquet.write_table(table, tmp_path / "d.parquet")
    files = [
        written(
            tmp_path, "d.jsonl", '{"text": "one, \\"two\\""}\n\n{"id": 7, "text": "drei ünd vier"}\r\n{"text": "five"}'
        ),
        written(tmp_path, "d.txt", 'one, "two"\ndrei ünd vier\n\nfive\n'),
        written(tmp_path, "d.csv", '\ufeffid,text\n1,"one, ""two"""\n2,drei ünd vier\n3,five\n'),
        tmp_path / "d.parquet",
    ]
    for file in files:
        assert read_records(file) == texts, file.suffix


def test_a_quoted_csv_field_may_span_lines(tmp_path: Path) -> None:
    assert read_records(written(tmp_path, "d.csv", 'text\n"a\nb"\nc\n')) == ["a\nb", "c"]


@pytest.mark.parametrize(
    ("name", "content", "line"),
    [
        ("d.jsonl", f'{{"text": "a"}}\n{{"text": "{SECRET}"', 2),
        ("d.jsonl", f'{{"text": "a"}}\n"{SECRET}"\n', 2),
        ("d.jsonl", f'{{"text": "a"}}\n\n{{"note": "{SECRET}"}}\n', 3),
        ("d.jsonl", '{"text": 5}\n', 1),
        ("d.jsonl", b'{"text": "a"}\n\xff\xfe\n', 2),
        ("d.txt", b"a\nb\n\xe9t\xe9\n", 3),
        ("d.csv", f"note\n{SECRET}\n", 1),
        ("d.csv", f'text\na\n"{SECRET}\n', 3),
        ("d.jsonl", "[" * 100_000, 1),
    ],
)
def test_a_broken_record_is_named_by_file_and_line_and_never_quoted(
    tmp_path: Path, name: str, content: str | bytes, line: int
) -> None:
    with pytest.raises(BadRecord) as caught:
        read_records(written(tmp_path, name, content))
    assert caught.value.where == f"{tmp_path / name}, line {line}"
    assert caught.value.exit_code == 4
    assert SECRET not in str(vars(caught.value))


def test_another_field_can_be_named(tmp_path: Path) -> None:
    assert read_records(written(tmp_path, "d.jsonl", '{"note": "a"}'), text_field="note") == ["a"]


@pytest.mark.parametrize("name", ["d.jsonl", "d.txt", "d.csv"])
def test_an_empty_file_is_an_error(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError) as caught:
        read_records(written(tmp_path, name, "text\n" if name == "d.csv" else "\n\n"))
    assert isinstance(caught.value, NoRecords)


def test_files_of_unknown_kind_and_links_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadRecord):
        read_records(written(tmp_path, "d.docx", "x"))
    with pytest.raises(BadRecord):
        read_records(written(tmp_path, "d.parquet", "not parquet"))
    (tmp_path / "link.txt").symlink_to(written(tmp_path, "d.txt", "x"))
    with pytest.raises(NotAFile):
        read_records(tmp_path / "link.txt")
    with pytest.raises(NotAFile):
        read_records(tmp_path / "missing.txt")


def test_people_are_read_from_every_format_and_a_known_field_makes_them_the_unit(tmp_path: Path) -> None:
    table = pyarrow.table({"text": ["a", "b", "c"], "patient_id": [7, 12, 7], "ward": ["x", "y", "z"]})
    parquet.write_table(table, tmp_path / "d.parquet")
    files = [
        written(
            tmp_path,
            "d.jsonl",
            '{"text": "a", "patient_id": 7}\n{"text": "b", "patient_id": "12"}\n{"text": "c", "patient_id": " 7 "}\n',
        ),
        written(tmp_path, "d.csv", "patient_id,text,ward\n7,a,x\n12,b,y\n7,c,z\n"),
        tmp_path / "d.parquet",
    ]
    expected = Records(("a", "b", "c"), ("7", "12", "7"), "patient_id", 2)
    for file in files:
        assert read_data(file) == expected, file.suffix
        assert read_data(file, unit="patient_id") == expected, file.suffix
        assert read_data(file, unit="record") == Records(("a", "b", "c"), most_of_a_person=2), file.suffix
    assert (expected.unit, Records(("a",)).unit) == ("person", "record")


def test_any_field_can_be_named_as_the_person_and_without_one_the_unit_is_the_record(tmp_path: Path) -> None:
    file = written(tmp_path, "d.csv", "text,ward\na,x\nb,x\n")
    assert read_data(file) == Records(("a", "b"))
    assert read_data(file, unit="ward") == Records(("a", "b"), ("x", "x"), "ward", 2)
    assert read_data(written(tmp_path, "d.txt", "a\nb\n")) == Records(("a", "b"))


def test_a_field_that_splits_the_people_whom_another_names_is_no_person(tmp_path: Path) -> None:
    """`--unit visit_id` would say "per person" of what is one of a person's visits."""
    visits = written(tmp_path, "d.csv", "visit_id,patient_id,home,text\nv1,p1,h1,a\nv2,p1,h1,b\nv3,p2,h1,c\n")
    with pytest.raises(UnitSplitsPeople) as caught:
        read_data(visits, unit="visit_id")
    assert caught.value.exit_code == 7
    assert "v1" not in str(vars(caught.value))
    assert read_data(visits, unit="home").people == ("h1", "h1", "h1")  # larger than a person is a person's at least
    assert read_data(visits, unit="patient_id").people == ("p1", "p1", "p2")


@pytest.mark.parametrize(
    "name", ["patient_id", "Patient ID", "patientId", "patient", "person_id", "subject_id", "user_id", "MRN"]
)
def test_the_usual_names_of_a_persons_field_are_known_however_they_are_written(tmp_path: Path, name: str) -> None:
    assert read_data(written(tmp_path, "d.csv", f"text,{name}\na,1\n")).person_field == name


def test_of_two_known_fields_the_patients_counts_and_an_empty_one_does_not(tmp_path: Path) -> None:
    both = written(tmp_path, "both.csv", "user_id,patient_id,text\nu1,p1,a\nu2,p1,b\n")
    assert read_data(both).people == ("p1", "p1")
    empty = written(tmp_path, "empty.csv", "patient_id,text\n,a\n,b\n")
    assert read_data(empty).unit == "record"


@pytest.mark.parametrize(
    ("name", "content", "line"),
    [
        ("d.jsonl", f'{{"text": "a", "patient_id": "{SECRET}"}}\n\n{{"text": "b"}}\n', 3),
        ("d.jsonl", f'{{"text": "a", "patient_id": 1}}\n{{"text": "b", "patient_id": ["{SECRET}"]}}\n', 2),
        ("d.jsonl", '{"text": "a", "patient_id": 1.5}\n', 1),
        ("d.jsonl", '{"text": "a", "patient_id": true}\n', 1),
        ("d.csv", f"text,patient_id\na,{SECRET}\nb, \n", 3),
    ],
)
def test_a_record_without_its_person_is_named_by_file_and_line_and_never_quoted(
    tmp_path: Path, name: str, content: str, line: int
) -> None:
    with pytest.raises(NoPerson) as caught:
        read_data(written(tmp_path, name, content))
    assert caught.value.where == f"{tmp_path / name}, line {line}"
    assert SECRET not in str(vars(caught.value))


def test_a_named_field_that_is_not_there_is_an_error_and_not_another_unit(tmp_path: Path) -> None:
    with pytest.raises(NoPerson):
        read_data(written(tmp_path, "d.csv", "text,patient_id\na,1\n"), unit="doctor")
    with pytest.raises(NoPerson):
        read_data(written(tmp_path, "d.txt", "a\n"), unit="patient_id")


def test_texts_alone_can_be_read_from_a_file_with_a_broken_persons_field(tmp_path: Path) -> None:
    assert read_records(written(tmp_path, "d.csv", "text,patient_id\na,1\nb,\n")) == ["a", "b"]


def test_records_do_not_print_their_texts_or_people() -> None:
    assert SECRET not in repr(Records((SECRET,), (SECRET,), "patient_id", 1))


def test_ids_that_differ_in_spelling_alone_are_refused(tmp_path: Path) -> None:
    """The ledger knows them as one person; as two, one person would have two clips."""
    with pytest.raises(NoPerson, match="spelling"):
        read_data(written(tmp_path, "d.csv", "text,patient_id\na,P-1\nb,p-1\n"))
    assert read_data(written(tmp_path, "e.csv", "text,patient_id\na,P-1\nb,P-1\n")).people == ("P-1", "P-1")
