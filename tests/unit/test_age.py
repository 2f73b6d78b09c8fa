"""The age layer, and beside it pyrage, an independent implementation. More of others: tests/interop."""

from __future__ import annotations

import os
from io import BytesIO

import pyrage
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from not_fed.age import (
    BadContainer,
    BadKeyText,
    HybridIdentity,
    NotForThisKey,
    PassphraseRefused,
    StreamReader,
    check_recipient,
    decrypt,
    decrypt_with_passphrase,
    encrypt,
    encrypt_with_passphrase,
    plaintext_size,
    read_header,
)
from not_fed.age.bech32 import decode, encode
from not_fed.age.hybrid import identity_text
from not_fed.age.stream import CHUNK_BYTES, NONCE_BYTES, TAG_BYTES

CHUNK, BLOCK = CHUNK_BYTES, 1 << 20
SIZES = [0, 1, 100, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK]


@pytest.mark.parametrize("size", SIZES)
def test_what_is_sealed_to_a_key_opens_with_it(size: int) -> None:
    identity, other, plain = HybridIdentity(os.urandom(32)), HybridIdentity(os.urandom(32)), os.urandom(size)
    sealed = encrypt(plain, recipients=[other.recipient, identity.recipient])
    assert decrypt(sealed, identity=identity) == decrypt(sealed, identity=other) == plain
    with pytest.raises(NotForThisKey):
        decrypt(sealed, identity=HybridIdentity(os.urandom(32)))


@pytest.mark.parametrize("size", SIZES)
def test_our_passphrase_files_open_in_another_implementation(size: int) -> None:
    plain = os.urandom(size)
    sealed = encrypt_with_passphrase(plain, passphrase="pässword".encode(), work_factor=2)
    assert pyrage.passphrase.decrypt(sealed, "pässword") == plain
    assert decrypt_with_passphrase(sealed, passphrase="pässword".encode()) == plain


def test_passphrase_files_of_another_implementation_open_here() -> None:
    plain = os.urandom(CHUNK_BYTES + 7)
    assert decrypt_with_passphrase(pyrage.passphrase.encrypt(plain, "secret"), passphrase=b"secret") == plain


def test_a_wrong_passphrase_and_an_altered_file_look_the_same() -> None:
    sealed = bytearray(encrypt_with_passphrase(b"key", passphrase=b"right", work_factor=2))
    with pytest.raises(PassphraseRefused) as wrong:
        decrypt_with_passphrase(bytes(sealed), passphrase=b"wrong")
    sealed[-1] ^= 1
    with pytest.raises(PassphraseRefused) as altered:
        decrypt_with_passphrase(bytes(sealed), passphrase=b"right")
    assert wrong.value.as_json() == altered.value.as_json()


@pytest.mark.parametrize("factor", ["21", "30", "99", "0", "01", "-1", "1e1", "0x10", "100", "٣"])
def test_a_key_file_cannot_ask_for_endless_work(factor: str) -> None:
    """scrypt with 2^30 would need a terabyte: refused before any of it is spent."""
    sealed = encrypt_with_passphrase(b"key", passphrase=b"right", work_factor=2)
    line, rest = sealed.split(b"\n", 2)[1:]
    hostile = b"age-encryption.org/v1\n" + line.rsplit(b" ", 1)[0] + b" " + factor.encode() + b"\n" + rest
    with pytest.raises(BadContainer):
        decrypt_with_passphrase(hostile, passphrase=b"right")


def test_key_texts_are_strict() -> None:
    seed = os.urandom(32)
    identity = HybridIdentity(seed)
    text = identity_text(seed)
    assert text.startswith("AGE-SECRET-KEY-PQ-1")
    assert text == text.upper()
    assert identity.recipient.startswith("age1pq1")
    assert check_recipient(identity.recipient) == identity.recipient
    assert HybridIdentity.from_text(text).recipient == identity.recipient
    one_changed = identity.recipient[:-1] + ("q" if identity.recipient[-1] != "q" else "p")
    for bad in (
        "",
        "age1pq1",
        one_changed,
        identity.recipient.upper(),
        identity.recipient + " ",
        text,
        encode("age1pq", b"short"),
    ):
        with pytest.raises(BadKeyText) as refused:
            check_recipient(bad)
        assert len(bad) < 50 or bad not in str(refused.value.as_json())  # it may be a secret
    for bad in (
        "",
        text.lower(),
        text[:-1] + ("Q" if text[-1] != "Q" else "P"),
        identity.recipient,
        text.replace("Q", "q", 1),
    ):
        with pytest.raises(BadKeyText):
            HybridIdentity.from_text(bad)
    for seed in (bytes(32), os.urandom(31), os.urandom(33), b""):
        with pytest.raises(BadKeyText):
            HybridIdentity(seed)


@given(data=st.binary(max_size=80))
def test_bech32_returns_what_went_in(data: bytes) -> None:
    assert decode(encode("age1pq", data), prefix="age1pq") == data


def test_an_identity_cannot_be_printed_or_pickled() -> None:
    import pickle

    seed = os.urandom(32)
    identity = HybridIdentity(seed)
    assert seed.hex() not in repr(identity)
    with pytest.raises(TypeError):
        pickle.dumps(identity)


@given(size=st.integers(0, 1 << 40))
def test_the_size_of_a_payload_tells_the_size_of_its_plaintext(size: int) -> None:
    chunks = max(1, -(-size // CHUNK_BYTES))
    assert plaintext_size(size + chunks * TAG_BYTES) == size


@pytest.mark.parametrize("size", [-5, 0, 1, 15, CHUNK_BYTES + 2 * TAG_BYTES, CHUNK_BYTES + TAG_BYTES + 1])
def test_impossible_payload_sizes_are_refused(size: int) -> None:
    with pytest.raises(BadContainer):
        plaintext_size(size)


@settings(max_examples=200, deadline=None)
@given(cuts=st.lists(st.integers(1, 200_000), max_size=8))
def test_a_reader_returns_the_same_bytes_however_they_are_asked_for(cuts: list[int]) -> None:
    plain = bytes(range(256)) * 700
    sealed, file_key = _PAYLOAD
    reader = StreamReader(BytesIO(sealed), file_key=file_key, payload_bytes=len(sealed) - NONCE_BYTES)
    parts = [reader.read(size) for size in cuts] + [reader.read(1 << 20)]
    assert b"".join(parts) == plain
    reader.finish()


def _payload() -> tuple[bytes, bytes]:
    identity = HybridIdentity(os.urandom(32))
    sealed = encrypt(bytes(range(256)) * 700, recipients=[identity.recipient])
    header = read_header(BytesIO(sealed))
    return sealed[header.size_bytes :], identity.unwrap(header)


_PAYLOAD = _payload()


def test_a_payload_is_not_finished_before_its_end_nor_when_the_file_has_grown() -> None:
    sealed, file_key = _PAYLOAD
    size = len(sealed) - NONCE_BYTES
    for data, wanted in ((sealed + b"\0", 1 << 20), (sealed, 100), (sealed, CHUNK)):
        reader = StreamReader(BytesIO(data), file_key=file_key, payload_bytes=size)
        reader.read(wanted)
        with pytest.raises(BadContainer):
            reader.finish()
