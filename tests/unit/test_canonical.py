"""JSON that two readers cannot read differently."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from not_fed import canonical
from not_fed.canonical import BadJson

TEXT = st.text(st.characters(exclude_categories=("Cs",)), max_size=20)
NUMBERS = st.integers(-(10**18), 10**18) | st.floats(allow_nan=False, allow_infinity=False)
VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=12,
)


@given(value=VALUES)
def test_what_is_written_is_read_back_and_written_the_same(value: object) -> None:
    data = canonical.dumps(value)
    assert canonical.loads(data, where="test") == value
    assert canonical.dumps(canonical.loads(data, where="test")) == data
    assert b"\n" not in data


@settings(max_examples=500)
@given(data=st.binary(max_size=60) | st.text('{}[]",:\\u0d8eE+-1.ntf ', max_size=60).map(str.encode))
def test_nothing_but_the_typed_refusal_escapes(data: bytes) -> None:
    try:
        canonical.loads(data, where="test")
    except BadJson as error:
        assert error.exit_code == 4


@pytest.mark.parametrize(
    "data",
    [
        b"", b"\xff", b"\xef\xbb\xbf{}", b"{", b"[1,]", b"{'a':1}", b"{}{}", b"NaN", b"-Infinity", b"[1e999]",
        b"[-1e400]", b'{"a":1,"a":1}', b'{"x":{"a":1,"b":2,"a":3}}', b'"\\ud800"', b'"\\uD83D\\uDE00"', b"9" * 20,
        b"-" + b"9" * 5000,
        b"[" * 17 + b"]" * 17, b'{"a":' * 17 + b"1" + b"}" * 17, b"[" * 100_000, b"tru", b"\x00",
    ],
    ids=lambda data: repr(data[:20]),
)  # fmt: skip
def test_loose_json_is_refused(data: bytes) -> None:
    with pytest.raises(BadJson):
        canonical.loads(data, where="test")


@pytest.mark.parametrize(
    ("data", "value"),
    [(b"[" * 16 + b"]" * 16, None), (b'"[[[[[[[[[[[[[[[[[[["', "[" * 19), (b'["\\"]]]"]', ['"]]]']),
     (b"9" * 19, int("9" * 19)),
     (b'"\\u00e9"', "é"), (b" {} ", {}), (b'"\\\\ud800"', None)],
    ids=repr,
)  # fmt: skip
def test_brackets_in_texts_do_not_count_as_depth(data: bytes, value: object) -> None:
    if data == b'"\\\\ud800"':  # a backslash and letters, no surrogate; refused all the same, on the safe side
        with pytest.raises(BadJson):
            canonical.loads(data, where="test")
        return
    read = canonical.loads(data, where="test")
    assert value is None or read == value


@pytest.mark.timeout(20)
@pytest.mark.parametrize("part", [b'\\"', b'"a', b"\\\\", b'\\"[', b'["'])
def test_an_unclosed_text_costs_one_pass(part: bytes) -> None:
    """A megabyte that made the depth check quadratic: minutes for one label, before any signature was checked."""
    with pytest.raises(BadJson):
        canonical.loads(b'"' + part * 500_000 + b"x", where="test")


def test_a_refusal_does_not_quote_the_document() -> None:
    with pytest.raises(BadJson) as refused:
        canonical.loads(b'{"patient": "Anna" oops}', where="test")
    assert "Anna" not in str(refused.value.as_json())


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), "\ud800"])
def test_what_could_not_be_read_is_not_written(value: object) -> None:
    with pytest.raises(ValueError, match=r"JSON|surrogates"):
        canonical.dumps([value])


def test_a_time_has_one_spelling() -> None:
    moment = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    assert canonical.format_time(moment) == "2026-01-02T03:04:05Z"
    assert canonical.format_time(moment.astimezone(timezone(timedelta(hours=5)))) == "2026-01-02T03:04:05Z"
    assert canonical.parse_time("2026-01-02T03:04:05Z") == moment
    for other in (
        "2026-1-2T3:4:5Z",
        "2026-01-02T03:04:05+00:00",
        "2026-01-02 03:04:05Z",
        "2026-01-02T03:04:05Z ",
        "",
        "now",
    ):
        with pytest.raises(ValueError, match=r"time|unconverted"):
            canonical.parse_time(other)
