"""Adversary: the author of a safetensors file.

Powers: every byte of the file. Aim: make a reader allocate, overflow, read outside, disagree with another reader, or
name a path. Each case is checked on its own; where the safetensors library itself is stricter or laxer does not matter.
"""

from __future__ import annotations

import json
import time
import tracemalloc
from collections.abc import Mapping
from io import BytesIO
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from not_fed.envelope.header import BadTensorHeader, TensorHeader, check_header
from tests.support.trust import organ_bytes, tensor_file

GOOD = {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}
TEXT = json.dumps(GOOD).encode()


def check(data: bytes, **limits: Any) -> TensorHeader:  # noqa: ANN401
    return check_header(BytesIO(data), len(data), **limits)


def raw(header: bytes, data: bytes = bytes(24)) -> bytes:
    return len(header).to_bytes(8, "little") + header + data


def one(**changes: Any) -> bytes:  # noqa: ANN401
    return tensor_file({"w": GOOD | changes}, bytes(24))


def assert_file_refused(data: bytes) -> None:
    """The file is refused; a plain one is read."""
    with pytest.raises(BadTensorHeader):
        check(data)
    assert check(one()).tensors["w"].shape == (2, 3)


def cases(family: Mapping[str, bytes]) -> pytest.MarkDecorator:
    """A tight family of hostile files, each a test of its own."""
    return pytest.mark.parametrize("data", family.values(), ids=family.keys())


@cases({
    "empty": b"",
    "seven bytes": bytes(7),
    "length 0": (0).to_bytes(8, "little") + bytes(24),
    "length 1": (1).to_bytes(8, "little") + b"{" + bytes(24),
    "length 2^64-1": b"\xff" * 8 + bytes(24),
    "length 2^63": (1 << 63).to_bytes(8, "little") + bytes(24),
    "length above the cap": (17 << 20).to_bytes(8, "little") + b"{}",
    "length above the file": (100).to_bytes(8, "little") + b"{}",
    "length one above the file": (len(TEXT) + 7).to_bytes(8, "little") + b'{"w":' + TEXT + b"}",
    "big-endian length": len(TEXT).to_bytes(8, "big") + TEXT + bytes(24),
})  # fmt: skip
def test_a_length_that_lies_allocates_nothing(data: bytes) -> None:
    """A39. The header's length is zero, 2^64-1, above the cap or above the file.

    Powers: every byte of the file. Control: a plain file is read, and refusing takes less than a megabyte.
    """
    tracemalloc.start()
    try:
        assert_file_refused(data)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


@cases({
    "a zero dimension": one(shape=[0, 3], data_offsets=[0, 0]),
    "an empty tensor": tensor_file({"w": GOOD, "v": GOOD | {"shape": [0], "data_offsets": [24, 24]}}, bytes(24)),
    "zero beside 2^63": one(shape=[0, 1 << 47], data_offsets=[0, 0]),
    "a negative dimension": one(shape=[-2, -3]),
    "a float dimension": one(shape=[2.0, 3]),
    "a boolean dimension": one(shape=[True, 6]),
    "a text dimension": one(shape=["2", 3]),
    "a shape that is a number": one(shape=6),
    "a dimension of 2^63": raw(b'{"w":{"dtype":"F32","shape":[9223372036854775808,2],"data_offsets":[0,24]}}'),
    "a product that overflows": one(shape=[1 << 40, 1 << 40]),
    "a product that wraps to 24 bytes": one(shape=[1 << 32, 1 << 32, 6]),
    "nine dimensions": one(shape=[1, 1, 1, 1, 1, 1, 1, 2, 3]),
})  # fmt: skip
def test_a_shape_is_a_few_positive_whole_numbers(data: bytes) -> None:
    """A40. Dimensions are negative, zero, floats, booleans, huge, too many, or multiply beyond 64 bits.

    Powers: every byte of the file. Control: a shape of two positive whole numbers is read.
    """
    assert_file_refused(data)


@cases({
    "offsets backwards": one(data_offsets=[24, 0]),
    "negative offsets": one(data_offsets=[-24, 0]),
    "three offsets": one(data_offsets=[0, 24, 24]),
    "one offset": one(data_offsets=[24]),
    "float offsets": one(data_offsets=[0.0, 24]),
    "offsets beyond the file": one(shape=[3, 3], data_offsets=[0, 36]),
    "offsets beyond 2^48": one(data_offsets=[1 << 49, (1 << 49) + 24]),
    "a hole at the start": tensor_file({"w": GOOD | {"data_offsets": [4, 28]}}, bytes(28)),
    "trailing bytes": tensor_file({"w": GOOD}, bytes(25)),
    "data missing": tensor_file({"w": GOOD}, bytes(23)),
    "an overlap": tensor_file({"w": GOOD, "v": GOOD | {"data_offsets": [20, 44]}}, bytes(44)),
    "an alias": tensor_file({"w": GOOD, "v": GOOD}, bytes(24)),
    "a hole between": tensor_file({"w": GOOD, "v": GOOD | {"data_offsets": [28, 52]}}, bytes(52)),
})  # fmt: skip
def test_tensors_tile_the_file(data: bytes) -> None:
    """A41. Tensors overlap, share bytes, leave a hole, run backwards, end outside, or leave bytes behind the last.

    Powers: every byte of the file. Control: tensors that tile the file are read.
    """
    assert_file_refused(data)


@cases({
    "a tensor": raw(b'{"w":' + TEXT + b',"w":' + TEXT + b"}"),
    "a field": raw(b'{"w":{"dtype":"F32","dtype":"F32","shape":[2,3],"data_offsets":[0,24]}}'),
    "a metadata key": raw(b'{"__metadata__":{"a":"1","a":"2"},"w":' + TEXT + b"}"),
    "the metadata": raw(b'{"__metadata__":{},"__metadata__":{},"w":' + TEXT + b"}"),
    "a tensor, escaped": raw(b'{"w":' + TEXT + b',"\\u0077":' + TEXT + b"}"),
})  # fmt: skip
def test_no_key_stands_twice(data: bytes) -> None:
    """A42. A tensor, a field, a metadata key or all metadata stand twice, so that two readers see two files.

    Powers: every byte of the file. Control: each key once is read.
    """
    assert_file_refused(data)


@cases({
    "empty": tensor_file({"": GOOD}, bytes(24)),
    "NUL": tensor_file({"w\0": GOOD}, bytes(24)),
    "climbing": tensor_file({"../w": GOOD}, bytes(24)),
    "absolute": tensor_file({"/etc/passwd": GOOD}, bytes(24)),
    "backslashes": tensor_file({"..\\w": GOOD}, bytes(24)),
    "starting with a dot": tensor_file({".w": GOOD}, bytes(24)),
    "starting with a dash": tensor_file({"-rf": GOOD}, bytes(24)),
    "a megabyte": tensor_file({"w" * (1 << 20): GOOD}, bytes(24)),
    "256 characters": tensor_file({"w" * 256: GOOD}, bytes(24)),
    "line feed": tensor_file({"w\n": GOOD}, bytes(24)),
    "escape sequence": tensor_file({"w\x1b[2J": GOOD}, bytes(24)),
    "beyond ASCII": tensor_file({"wé": GOOD}, bytes(24)),
    "a space": tensor_file({"w w": GOOD}, bytes(24)),
})  # fmt: skip
def test_a_tensors_name_is_plain(data: bytes) -> None:
    """A43. Names are empty, hold NUL, climb out of folders, are absolute, invisible, or a megabyte long.

    Powers: every byte of the file, whose names others may use as paths or print. Control: plain names are read.
    """
    assert_file_refused(data)


@cases({
    "2 MB": tensor_file({"__metadata__": {"a": "x" * (2 << 20)}, "w": GOOD}, bytes(24)),
    "a key of 5 KB": tensor_file({"__metadata__": {"a" * 5000: ""}, "w": GOOD}, bytes(24)),
    "a number": tensor_file({"__metadata__": {"a": 1}, "w": GOOD}, bytes(24)),
    "null": tensor_file({"__metadata__": {"a": None}, "w": GOOD}, bytes(24)),
    "nested": tensor_file({"__metadata__": {"a": {"b": "c"}}, "w": GOOD}, bytes(24)),
    "a list": tensor_file({"__metadata__": [], "w": GOOD}, bytes(24)),
    "65 keys": tensor_file({"__metadata__": {str(n): "" for n in range(65)}, "w": GOOD}, bytes(24)),
    "nothing else": raw(b'{"__metadata__":{}}', b""),
})  # fmt: skip
def test_metadata_is_a_few_short_texts(data: bytes) -> None:
    """A44. Metadata of two megabytes, of numbers, nested, a list, of 65 keys, or without any tensor.

    Powers: every byte of the file. Control: metadata of short texts is read.
    """
    assert_file_refused(data)
    assert check(tensor_file({"__metadata__": {"format": "pt"}, "w": GOOD}, bytes(24))).metadata == {"format": "pt"}


@cases({
    "a zip": b"PK\x03\x04" + bytes(200),
    "a zip's end behind the data": raw(b'{"w":' + TEXT + b"}", bytes(24) + b"PK\x05\x06" + bytes(18)),
    "a bare entry and a zip's end": raw(TEXT, bytes(24) + b"PK\x05\x06" + bytes(18)),
    "a zip in the header's padding": raw(b'{"w":' + TEXT + b"}PK\x03\x04" + bytes(26)),
    "a script": b"#!/bin/sh\nexit 0\n" + bytes(200),
    "an ELF": b"\x7fELF" + bytes(200),
    "a second object": raw(b'{"w":' + TEXT + b"}{}"),
})  # fmt: skip
def test_a_file_that_is_also_something_else_is_refused(data: bytes) -> None:
    """A46. A polyglot: the file is at once a zip, a script or a program, before, behind or within the tensors.

    Powers: every byte of the file, and a second program that reads it otherwise. Control: a plain file is read.
    """
    assert_file_refused(data)


@cases({
    "deep nesting": raw(b'{"w":' + b"[" * 5000 + b"]" * 5000 + b"}"),
    "a million brackets": raw(b"{" + b'"a":[' * 200_000),
    "five thousand digits": raw(b'{"w":{"dtype":"F32","shape":[' + b"9" * 5000 + b'],"data_offsets":[0,24]}}'),
    "a megabyte of digits": raw(b'{"w":' + b"9" * (1 << 20) + b"}"),
    "NaN": raw(b'{"w":NaN}'),
    "infinity by exponent": raw(b'{"w":{"dtype":"F32","shape":[1e999],"data_offsets":[0,24]}}'),
    "bytes that are not UTF-8": raw(b'{"\xff":1}'),
    "a list": raw(b"[]", b""),
    "no tensors": raw(b"{}", b""),
    "leading space": raw(b' {"w":' + TEXT + b"}"),
    "a byte order mark": raw(b'\xef\xbb\xbf{"w":' + TEXT + b"}"),
    "a megabyte of quotes": raw(b'{"' + b'\\"' * (1 << 19)),
    "NUL behind the object": raw(b'{"w":' + TEXT + b"}\0\0"),
})  # fmt: skip
def test_json_that_crashes_or_stalls_parsers_is_refused(data: bytes) -> None:
    """A49. JSON five thousand levels deep, integers of a megabyte of digits, NaN, unclosed quotes, other encodings.

    Powers: every byte of the file. Control: a plain header is read; each refusal takes less than a second.
    """
    started = time.process_time()
    assert_file_refused(data)
    assert time.process_time() - started < 1


@cases({
    "unknown": one(dtype="F4"),
    "lower case": one(dtype="f32"),
    "another kind": one(dtype=["F32"]),
    "Python's": one(dtype="O8"),
    "too large for the bytes": one(dtype="F64"),
    "too small for the bytes": one(dtype="F16"),
    "a field too many": one(extra=1),
    "a field too few": tensor_file({"w": {"dtype": "F32", "shape": [6]}}, bytes(24)),
    "no object": tensor_file({"w": [1]}, bytes(24)),
})  # fmt: skip
def test_an_entry_says_exactly_what_is_needed(data: bytes) -> None:
    """Own. The dtype is unknown, an object's, or does not fit the bytes; an entry has other fields than three.

    Powers: every byte of the file. Control: an entry with a known dtype and three fields is read.
    """
    assert_file_refused(data)


def test_a_plain_file_is_read() -> None:
    """Own. Strictness is turned against a site: honest files of the library are refused, so nobody checks any more.

    Powers: chooses among all that the safetensors library writes: names, scalars, metadata, trailing spaces.
    Control, which is the point: such a file is read, and every place in it is right.
    """
    header = json.dumps(
        {
            "__metadata__": {"format": "pt"},
            "a.b-c_1": GOOD,
            "x": {"dtype": "BF16", "shape": [], "data_offsets": [24, 26]},
        }
    )
    found = check(raw(header.encode() + b"   ", bytes(26)))
    assert found.tensors["a.b-c_1"].shape == (2, 3)
    assert found.tensors["x"].shape == ()
    assert found.metadata == {"format": "pt"}
    assert found.data_start == 8 + len(header) + 3


def test_too_many_tensors_are_refused() -> None:
    """Own. A header with 65,537 tensors of one byte each, to make every reader slow.

    Powers: every byte of the file. Control: with a higher limit the same header is read.
    """
    entries = {f"w{n}": {"dtype": "U8", "shape": [1], "data_offsets": [n, n + 1]} for n in range(65_537)}
    data = tensor_file(entries, bytes(65_537))
    with pytest.raises(BadTensorHeader):
        check(data)
    assert len(check(data, max_tensors=70_000).tensors) == 65_537  # control: the limit is what refused it


def test_the_limits_are_the_callers() -> None:
    """Own. A header that is within the general limits and beyond those of a caller with less memory.

    Powers: every byte of the file. Control: the same header under the caller's wider limits is read.
    """
    data = tensor_file({"__metadata__": {"a": "x" * 5000}, "w": GOOD}, bytes(24))
    assert check(data, max_metadata_bytes=5000).metadata["a"]
    with pytest.raises(BadTensorHeader):
        check(data, max_header_bytes=1000, max_metadata_bytes=5000)


@settings(max_examples=300, deadline=None)
@given(place=st.integers(0, 600), value=st.integers(0, 255), cut=st.integers(0, 700))
def test_nothing_but_the_typed_refusal_escapes(place: int, value: int, cut: int) -> None:
    """Own. Any byte of an organ replaced, any length cut off: accepted whole or refused, never another exception.

    Powers: every byte of the file. Control: what is accepted tiles the file to its last byte.
    """
    data = bytearray(organ_bytes())
    data[place % len(data)] = value
    for attempt in (bytes(data), bytes(data[:cut])):
        try:
            found = check(attempt)
        except BadTensorHeader:
            continue
        assert max(entry.end for entry in found.tensors.values()) == len(attempt) - found.data_start
