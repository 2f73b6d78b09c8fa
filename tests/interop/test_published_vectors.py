"""The published age vectors (C2SP/CCTV, npm cctv-age 0.2.0): all that say something about our profile, by two readers.

A vector says where decryption ends. Where the sealing key is of a kind that we have, we begin with it; of the others we
take the vector's own file key, and so test grammar, MAC and chunks. What is left tests things that we do not have.
"""

from __future__ import annotations

import hashlib
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from io import BytesIO

import pytest

from not_fed.age import (
    BadContainer,
    HybridIdentity,
    NotForThisKey,
    PassphraseRefused,
    StreamReader,
    decrypt_with_passphrase,
    read_header,
)
from not_fed.age.stream import NONCE_BYTES
from tests.support import second_age
from tests.support.second_json import Refused, need
from tests.support.typage import Typage

HEADER, NO_MATCH, HMAC, PAYLOAD, SUCCESS = "header failure", "no match", "HMAC failure", "payload failure", "success"
ARMOR = "armor is not read: a sealed organ is binary"
UNWRAPPING = "its fault lies in unwrapping X25519, which we do not have"
# Vectors that end otherwise here, and why.
OTHERWISE = {
    "hybrid_and_x25519": (HEADER, "valid age; a recipient of another kind is a downgrade"),
    "hybrid_grease": (HEADER, "valid age; a recipient of an unknown kind is refused as well"),
    "hybrid_uppercase": (HEADER, "a kind that is not ours is refused, not passed over"),
    "scrypt_uppercase": (HEADER, "a kind that is not ours is refused, not passed over"),
    "hybrid_identity": (NO_MATCH, "`cryptography` refuses the all-zero share, and does not say why"),
    "hybrid_low_order": (NO_MATCH, "`cryptography` refuses the all-zero share, and does not say why"),
    "stream_no_nonce": (PAYLOAD, "the nonce is read with the payload"),
    "stream_short_nonce": (PAYLOAD, "the nonce is read with the payload"),
}
# Which chunk is the last is known from the file's length and not by trying, so in these less is released, not more.
UNRELEASED = {
    "stream_no_final_full", "stream_no_final_two_chunks_full", "stream_trailing_garbage_long",
    "stream_trailing_garbage_short", "stream_two_final_chunks", "stream_two_final_chunks_full",
    "stream_two_final_chunks_second",
}  # fmt: skip


@dataclass(frozen=True)
class Published:
    """One vector."""

    name: str
    fields: dict[str, list[str]]
    body: bytes

    @classmethod
    def read(cls, name: str, data: bytes) -> Published:
        """From its file: fields, an empty line, and an age file that may be compressed."""
        head, _, body = data.partition(b"\n\n")
        fields: dict[str, list[str]] = defaultdict(list)
        for line in head.decode().splitlines():
            key, _, value = line.partition(": ")
            fields[key].append(value)
        return cls(name, fields, zlib.decompress(body) if fields["compressed"] else body)

    @property
    def expected(self) -> str:
        """Where it ends for us."""
        return OTHERWISE[self.name][0] if self.name in OTHERWISE else self.fields["expect"][0]

    @property
    def released(self) -> str:
        """The digest of all plaintext up to there; of nothing where the vector does not say."""
        return (self.fields["payload"] or [hashlib.sha256(b"").hexdigest()])[0]

    @property
    def identity(self) -> str | None:
        """A hybrid one."""
        return next((text for text in self.fields["identity"] if text.startswith("AGE-SECRET-KEY-PQ-")), None)

    @property
    def reason_against(self) -> str | None:
        """Why it says nothing about our profile."""
        if self.fields["armored"]:
            return ARMOR
        about_x25519 = self.fields["expect"][0] == NO_MATCH or self.name.startswith("x25519_")
        if not self.identity and not self.fields["passphrase"] and about_x25519 and self.expected != SUCCESS:
            return UNWRAPPING
        return None


@pytest.fixture(scope="module")
def published(typage: Typage) -> list[Published]:
    """All of them."""
    return [Published.read(name, data) for name, data in sorted(typage.vectors().items())]


def applying(published: list[Published]) -> Iterator[Published]:
    return (vector for vector in published if vector.reason_against is None)


def test_which_of_the_published_vectors_apply(published: list[Published]) -> None:
    """The counts are part of docs/format.md's honesty: a new release of the vectors must be looked at."""
    reasons = Counter(vector.reason_against for vector in published)
    assert reasons == {ARMOR: 33, UNWRAPPING: 11, None: 99}
    assert {vector.name for vector in published} >= set(OTHERWISE)


def test_our_reader_ends_each_published_vector_where_it_says(published: list[Published]) -> None:
    """A10, A11, A71. Files made wrong in every way that the age project knows of.

    Powers: writes any file; in the vectors of other kinds of key, has even given the reader the file key.
    Control: 17 of them are well-formed, and open with the digest that they name.
    """
    endings = {vector.name: ending(vector, first) for vector in applying(published)}
    assert endings == {vector.name: vector.expected for vector in applying(published)}
    assert sum(end == SUCCESS for end in endings.values()) == 17


def test_the_second_reader_ends_each_where_it_says_and_releases_no_more(published: list[Published]) -> None:
    """It works chunk by chunk, so what it has released before an error is exactly what the vector says."""
    for vector in applying(published):
        if not vector.fields["passphrase"]:
            assert ending(vector, second) == vector.expected, vector.name


def test_an_armored_file_is_refused_whatever_is_inside(published: list[Published]) -> None:
    for vector in published:
        if vector.fields["armored"]:
            with pytest.raises(BadContainer):
                read_header(BytesIO(vector.body))


def test_a_file_sealed_to_x25519_alone_is_refused(published: list[Published]) -> None:
    """The downgrade itself: none of the published files for X25519 opens for a hybrid key."""
    key = next(vector.identity for vector in published if vector.name == "hybrid")
    assert key is not None
    for vector in published:
        if vector.reason_against == UNWRAPPING:
            with pytest.raises(BadContainer):
                HybridIdentity.from_text(key).unwrap(read_header(BytesIO(vector.body)))


class End(Exception):
    """Decryption ended; `args[0]` says where."""


Steps = Callable[[Published, bytearray], None]


def ending(vector: Published, steps: Steps) -> str:
    """Run the steps; check what was released on the way."""
    released = bytearray()
    try:
        steps(vector, released)
        end = SUCCESS
    except End as caught:
        end = caught.args[0]
    digest = hashlib.sha256(released).hexdigest()
    exact = steps is second and vector.name not in {*OTHERWISE, *UNRELEASED}
    if end == SUCCESS or (end == PAYLOAD and exact):
        assert digest == vector.released, vector.name
    elif end != PAYLOAD:
        assert not released
    return end


def first(vector: Published, released: bytearray) -> None:
    """not_fed.age."""
    if vector.fields["passphrase"]:
        return passphrase(vector, released)
    try:
        header = read_header(BytesIO(vector.body))
        if vector.identity:
            file_key = HybridIdentity.from_text(vector.identity).unwrap(header)
        else:
            file_key = bytes.fromhex(vector.fields["file key"][0])
    except NotForThisKey:
        raise End(NO_MATCH) from None
    except BadContainer as error:
        raise End(HMAC if "match its own key" in error.got else HEADER) from None
    try:
        header.check(file_key)
    except BadContainer:
        raise End(HMAC) from None
    return stream(vector, header.size_bytes, file_key, released)


def stream(vector: Published, start: int, file_key: bytes, released: bytearray) -> None:
    """The payload, block by block."""
    file = BytesIO(vector.body)
    file.seek(start)
    try:
        reader = StreamReader(file, file_key=file_key, payload_bytes=len(vector.body) - start - NONCE_BYTES)
        while block := reader.take(1 << 20):
            released += block
        reader.finish()
    except BadContainer:
        raise End(PAYLOAD) from None


def passphrase(vector: Published, released: bytearray) -> None:
    """Key files come as a whole."""
    try:
        password = vector.fields["passphrase"][0].encode()
        released += decrypt_with_passphrase(vector.body, passphrase=password, max_work_factor=16)
    except PassphraseRefused:
        raise End(NO_MATCH) from None
    except BadContainer:
        raise End(HEADER) from None


def second(vector: Published, released: bytearray) -> None:
    """The second reader's age."""
    try:
        stanzas, mac, signed, rest = second_age.read_header(vector.body)
        if vector.identity:
            for stanza in stanzas:
                second_age.check_stanza(stanza)
            secret = second_age.hybrid_key(vector.identity)
            keys = [key for stanza in stanzas if (key := second_age.unwrap(stanza, secret)) is not None]
            if not keys:
                raise End(NO_MATCH)
        else:
            keys = [bytes.fromhex(vector.fields["file key"][0])]
    except Refused:
        raise End(HEADER) from None
    if second_age.header_mac(keys[0], signed) != mac:
        raise End(HMAC)
    if len(rest) < NONCE_BYTES:
        raise End(PAYLOAD)
    try:
        for chunk in second_age.chunks(keys[0], rest):
            released += chunk
        need(len(rest) > NONCE_BYTES, "container-damaged")
    except Refused:
        raise End(PAYLOAD) from None
