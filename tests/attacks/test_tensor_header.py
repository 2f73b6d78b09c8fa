"""Adversary: the author of a safetensors file.

Powers: every byte of the file. Aim: make a reader allocate, overflow, read outside, disagree with another reader, or
name a path. Each case is checked on its own; where the safetensors library itself is stricter or laxer does not matter.
"""

from __future__ import annotations

import json
from io import BytesIO
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from not_fed.envelope.header import BadTensorHeader, TensorHeader, check_header
from tests.support.trust import organ_bytes, tensor_file

GOOD = {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}


def check(data: bytes, **limits: Any) -> TensorHeader:  # noqa: ANN401
    return check_header(BytesIO(data), len(data), **limits)


def raw(header: bytes, data: bytes = bytes(24)) -> bytes:
    return len(header).to_bytes(8, "little") + header + data


def one(**changes: Any) -> bytes:  # noqa: ANN401
    return tensor_file({"w": GOOD | changes}, bytes(24))


def test_a_plain_file_is_read() -> None:
    """Control: names, shapes, places; the library's trailing spaces; metadata."""
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


CASES: dict[str, bytes] = {
    "empty": b"",
    "seven bytes": bytes(7),
    "length 0": (0).to_bytes(8, "little") + bytes(24),
    "length 2^64-1": b"\xff" * 8 + bytes(24),
    "length above the cap": (17 << 20).to_bytes(8, "little") + b"{}",
    "length above the file": (100).to_bytes(8, "little") + b"{}",
    "no tensors": raw(b"{}", b""),
    "only metadata": raw(b'{"__metadata__":{}}', b""),
    "a list": raw(b"[]", b""),
    "leading space": raw(b" " + json.dumps({"w": GOOD}).encode()),
    "a byte order mark": raw(b"\xef\xbb\xbf" + json.dumps({"w": GOOD}).encode()),
    "bytes that are not UTF-8": raw(b'{"\xff":1}'),
    "a second object": raw(json.dumps({"w": GOOD}).encode() + b"{}"),
    "a duplicate tensor": raw(b'{"w":' + json.dumps(GOOD).encode() + b',"w":' + json.dumps(GOOD).encode() + b"}"),
    "a duplicate field": raw(b'{"w":{"dtype":"F32","dtype":"F32","shape":[2,3],"data_offsets":[0,24]}}'),
    "duplicate metadata": raw(b'{"__metadata__":{"a":"1","a":"2"},"w":' + json.dumps(GOOD).encode() + b"}"),
    "a zero dimension": one(shape=[0, 3], data_offsets=[0, 0]),
    "an empty tensor": tensor_file({"w": GOOD, "v": GOOD | {"shape": [0], "data_offsets": [24, 24]}}, bytes(24)),
    "zero beside 2^63": one(shape=[0, 1 << 47], data_offsets=[0, 0]),
    "a negative dimension": one(shape=[-2, -3]),
    "a float dimension": one(shape=[2.0, 3]),
    "a boolean dimension": one(shape=[True, 6]),
    "a dimension of 2^63": raw(b'{"w":{"dtype":"F32","shape":[9223372036854775808,2],"data_offsets":[0,24]}}'),
    "a product that overflows": one(shape=[1 << 40, 1 << 40]),
    "a product that wraps to 24 bytes": one(shape=[1 << 32, 1 << 32, 6]),
    "nine dimensions": one(shape=[1, 1, 1, 1, 1, 1, 1, 2, 3]),
    "five thousand digits": raw(b'{"w":{"dtype":"F32","shape":[' + b"9" * 5000 + b'],"data_offsets":[0,24]}}'),
    "an unknown dtype": one(dtype="F4"),
    "a lower-case dtype": one(dtype="f32"),
    "a dtype of another kind": one(dtype=["F32"]),
    "a field too many": one(extra=1),
    "a field too few": tensor_file({"w": {"dtype": "F32", "shape": [6]}}, bytes(24)),
    "offsets backwards": one(data_offsets=[24, 0]),
    "three offsets": one(data_offsets=[0, 24, 24]),
    "offsets beyond the file": one(shape=[3, 3], data_offsets=[0, 36]),
    "a hole at the start": tensor_file({"w": GOOD | {"data_offsets": [4, 28]}}, bytes(28)),
    "trailing bytes": tensor_file({"w": GOOD}, bytes(25)),
    "data missing": tensor_file({"w": GOOD}, bytes(23)),
    "an overlap": tensor_file({"w": GOOD, "v": GOOD | {"data_offsets": [20, 44]}}, bytes(44)),
    "an alias": tensor_file({"w": GOOD, "v": GOOD}, bytes(24)),
    "a hole between": tensor_file({"w": GOOD, "v": GOOD | {"data_offsets": [28, 52]}}, bytes(52)),
    "an empty name": tensor_file({"": GOOD}, bytes(24)),
    "a name with NUL": tensor_file({"w\0": GOOD}, bytes(24)),
    "a name that climbs": tensor_file({"../w": GOOD}, bytes(24)),
    "a name that starts with a dot": tensor_file({".w": GOOD}, bytes(24)),
    "a name of a megabyte": tensor_file({"w" * (1 << 20): GOOD}, bytes(24)),
    "a name with a line feed": tensor_file({"w\n": GOOD}, bytes(24)),
    "a name beyond ASCII": tensor_file({"wé": GOOD}, bytes(24)),
    "metadata of 2 MB": tensor_file({"__metadata__": {"a": "x" * (2 << 20)}, "w": GOOD}, bytes(24)),
    "metadata that is a number": tensor_file({"__metadata__": {"a": 1}, "w": GOOD}, bytes(24)),
    "metadata that is a list": tensor_file({"__metadata__": [], "w": GOOD}, bytes(24)),
    "65 metadata keys": tensor_file({"__metadata__": {str(n): "" for n in range(65)}, "w": GOOD}, bytes(24)),
    "deep nesting": raw(b'{"w":' + b"[" * 5000 + b"]" * 5000 + b"}"),
    "NaN": raw(b'{"w":NaN}'),
    "a pickle": b"\x80\x04\x95\x0b" + bytes(200),
    "a zip": b"PK\x03\x04" + bytes(200),
    "a polyglot": raw(json.dumps({"w": GOOD}).encode(), bytes(24) + b"PK\x05\x06" + bytes(18)),
}


@pytest.mark.parametrize("data", CASES.values(), ids=CASES.keys())
def test_hostile_headers_are_refused(data: bytes) -> None:
    with pytest.raises(BadTensorHeader):
        check(data)


def test_too_many_tensors_are_refused() -> None:
    entries = {f"w{n}": {"dtype": "U8", "shape": [1], "data_offsets": [n, n + 1]} for n in range(65_537)}
    data = tensor_file(entries, bytes(65_537))
    with pytest.raises(BadTensorHeader):
        check(data)
    assert len(check(data, max_tensors=70_000).tensors) == 65_537  # control: the limit is what refused it


def test_the_limits_are_the_callers() -> None:
    data = tensor_file({"__metadata__": {"a": "x" * 5000}, "w": GOOD}, bytes(24))
    assert check(data, max_metadata_bytes=5000).metadata["a"]
    with pytest.raises(BadTensorHeader):
        check(data, max_header_bytes=1000, max_metadata_bytes=5000)


@settings(max_examples=300, deadline=None)
@given(place=st.integers(0, 600), value=st.integers(0, 255), cut=st.integers(0, 700))
def test_nothing_but_the_typed_refusal_escapes(place: int, value: int, cut: int) -> None:
    """Any byte replaced, any length cut: accepted whole or refused, never another exception."""
    data = bytearray(organ_bytes())
    data[place % len(data)] = value
    for attempt in (bytes(data), bytes(data[:cut])):
        try:
            found = check(attempt)
        except BadTensorHeader:
            continue
        assert max(entry.end for entry in found.tensors.values()) == len(attempt) - found.data_start
