"""Records from files: every format, and a clear word for every break, without quoting a byte of text."""

from __future__ import annotations

from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet

from not_fed.errors import InputError
from not_fed.files import NotAFile
from not_fed.organ.data import BadRecord, NoRecords, read_records

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
