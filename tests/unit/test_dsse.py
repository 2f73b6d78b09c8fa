"""DSSE lines: one spelling, two signatures, one type."""

from __future__ import annotations

import base64
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from not_fed.errors import TrustError
from not_fed.keys import BadSignature, FileSigner, MalformedSigned, NewerFormat, dsse

TYPE = "application/vnd.not-fed.test.v1+json"
SIGNER = FileSigner.generate("clinic")
LINE = dsse.sign(b'{"a":1}', payload_type=TYPE, signer=SIGNER)


def test_pre_authentication_encoding_is_the_published_one() -> None:
    """The example of the DSSE specification."""
    assert dsse.pae("http://example.com/HelloWorld", b"hello world") == (
        b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"
    )


def test_a_signed_line_verifies_and_is_one_line() -> None:
    parsed = dsse.parse(LINE, payload_type=TYPE, where="test")
    assert parsed.verify(SIGNER.public) == b'{"a":1}'
    assert b"\n" not in LINE
    assert [len(signature) for signature in parsed.signatures] == [64, 3309]
    with pytest.raises(BadSignature):
        parsed.verify(FileSigner.generate("clinic").public)


def test_the_payload_type_is_signed() -> None:
    other = json.loads(LINE) | {"payloadType": TYPE.replace("test", "other")}
    line = json.dumps(other, sort_keys=True, separators=(",", ":")).encode()
    parsed = dsse.parse(line, payload_type=TYPE.replace("test", "other"), where="test")
    with pytest.raises(BadSignature):
        parsed.verify(SIGNER.public)


def test_another_version_is_told_apart_from_another_type() -> None:
    newer = dsse.sign(b"{}", payload_type=TYPE.replace("v1", "v7"), signer=SIGNER)
    with pytest.raises(NewerFormat):
        dsse.parse(newer, payload_type=TYPE, where="test")
    with pytest.raises(MalformedSigned):
        dsse.parse(LINE, payload_type=TYPE.replace("test", "other"), where="test")


@settings(max_examples=300, deadline=None)
@given(place=st.integers(0, len(LINE) - 1), byte=st.integers(0, 255))
def test_any_byte_changed_is_refused(place: int, byte: int) -> None:
    line = LINE[:place] + bytes([byte]) + LINE[place + 1 :]
    if line == LINE:
        return
    with pytest.raises(TrustError):
        dsse.parse(line, payload_type=TYPE, where="test").verify(SIGNER.public)


@given(junk=st.binary(max_size=200))
def test_junk_is_a_typed_refusal(junk: bytes) -> None:
    with pytest.raises(MalformedSigned):
        dsse.parse(junk, payload_type=TYPE, where="test")


def test_a_line_beyond_its_cap_is_not_parsed() -> None:
    with pytest.raises(MalformedSigned):
        dsse.parse(LINE, payload_type=TYPE, where="test", max_bytes=len(LINE) - 1)


def test_base64_has_one_spelling() -> None:
    """The last character before the padding has bits that a lax decoder ignores."""
    value = json.loads(LINE)
    signature = value["signatures"][0]["sig"]
    assert signature.endswith("==")
    for twin in "ABCDEFGHIJKLMNOPQRSTUVWXYZ":
        other = signature[:-3] + twin + "=="
        if other != signature and base64.b64decode(other) == base64.b64decode(signature):
            break
    value["signatures"][0]["sig"] = other
    with pytest.raises(MalformedSigned):
        dsse.parse(json.dumps(value, sort_keys=True, separators=(",", ":")).encode(), payload_type=TYPE, where="test")
