"""Records from a site's own files. An error names file and line, never the text."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path

from not_fed import files
from not_fed.errors import InputError

MAX_DATA_BYTES = 64 << 30


class BadRecord(InputError):
    """A record cannot be read."""

    code = "bad-record"


class NoRecords(InputError):
    """The data file holds no records."""

    code = "no-records"


def read_records(path: Path, *, text_field: str = "text") -> list[str]:
    """All records of a file, in order.

    Args:
        path: .jsonl, .txt, .csv or .parquet; the suffix decides.
        text_field: key or column that holds the text; a .txt file has no fields.
    Raises:
        NotAFile: no such file, or not a plain one.
        BadRecord: a broken line, a missing field, or a value that is not text; says file and line.
        NoRecords: an empty file.
    """
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise BadRecord(
            where=str(path),
            expected=f"a file ending in {', '.join(_READERS)}",
            got=path.suffix or "no suffix",
            hint="rename or convert the file",
        )
    records = list(reader(path, text_field))
    if not records:
        raise NoRecords(where=str(path), expected="at least one record", got="none", hint="check the path")
    return records


def _jsonl(path: Path, text_field: str) -> Iterator[str]:
    for number, line in _lines(path):
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            raise _bad(path, number, "one JSON object", "something that is not JSON") from None
        if not isinstance(value, dict):
            raise _bad(path, number, "one JSON object", f"a JSON {type(value).__name__}")
        yield _text(value.get(text_field), path, number, text_field)


def _txt(path: Path, _: str) -> Iterator[str]:
    for _number, line in _lines(path):
        yield line


def _csv(path: Path, text_field: str) -> Iterator[str]:
    text = "".join(line + "\n" for _, line in _lines(path, keep_blank=True))
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    try:
        if text_field not in (reader.fieldnames or []):
            raise _bad(path, 1, f"a column named {text_field}", f"{len(reader.fieldnames or [])} other columns")
        for row in reader:
            yield _text(row.get(text_field), path, reader.line_num, text_field)
    except csv.Error:
        raise _bad(path, reader.reader.line_num, "comma-separated values", "a broken row") from None


def _parquet(path: Path, text_field: str) -> Iterator[str]:
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
            if text_field not in table.schema_arrow.names:
                raise _bad(path, 0, f"a column named {text_field}", f"{len(table.schema_arrow.names)} other columns")
            number = 0
            for batch in table.iter_batches(columns=[text_field]):
                for value in batch.column(0).to_pylist():
                    number += 1
                    yield _text(value, path, number, text_field)
        except pyarrow.ArrowException:
            raise _bad(path, 0, "a Parquet file", "something else") from None


_READERS: dict[str, Callable[[Path, str], Iterator[str]]] = {
    ".jsonl": _jsonl,
    ".txt": _txt,
    ".csv": _csv,
    ".parquet": _parquet,
}


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
