"""The header of an age file: stanzas, each holding the file key wrapped for one recipient, under one MAC.

Grammar (c2sp.org/age), read strictly: whoever writes anything else is not writing age.

    age-encryption.org/v1 LF
    -> kind argument... LF  base64 body in lines of 64 columns, the last one shorter LF      (once per recipient)
    --- base64 of HMAC-SHA256(HKDF-SHA256(file key, "header"), everything up to and including "---") LF
"""

from __future__ import annotations

import base64
import binascii
import hmac
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import BinaryIO

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from not_fed.errors import TrustError

FILE_KEY_BYTES = 16
MAX_HEADER_BYTES = 512 * 1024
MAX_LINE_BYTES = 8 * 1024
MAX_STANZAS = 256
_VERSION = b"age-encryption.org/v1"
_ARGUMENT = re.compile(rb"[\x21-\x7e]+")
_COLUMNS = 64


class BadContainer(TrustError):
    """This sealed file is damaged, cut short or was altered."""

    code = "container-damaged"

    @classmethod
    def because(cls, got: str, *, where: str = "sealed file") -> BadContainer:
        """The error for one observation; `got` never quotes the content."""
        return cls(
            where=where, expected="a whole age v1 file", got=got, hint="nothing was written; fetch the file again"
        )


@dataclass(frozen=True, slots=True)
class Stanza:
    """One recipient's copy of the file key, wrapped."""

    kind: str
    arguments: tuple[str, ...]
    body: bytes


@dataclass(frozen=True, slots=True)
class Header:
    """A parsed header; `check` says whether a file key belongs to it."""

    stanzas: tuple[Stanza, ...]
    mac: bytes
    signed: bytes
    size_bytes: int

    @property
    def raw(self) -> bytes:
        """The very bytes that were parsed: the grammar leaves one spelling only."""
        return _with_mac(self.signed, self.mac)

    def check(self, file_key: bytes) -> None:
        """Raises BadContainer unless the header was written under this very file key."""
        if not hmac.compare_digest(_mac(file_key, self.signed), self.mac):
            raise BadContainer.because("a header that does not match its own key")


def write_header(stanzas: Sequence[Stanza], *, file_key: bytes) -> bytes:
    """The bytes of a header."""
    lines = [_VERSION]
    for stanza in stanzas:
        lines.append(" ".join(("->", stanza.kind, *stanza.arguments)).encode("ascii"))
        body = encode64(stanza.body).encode("ascii")
        lines += [body[at : at + _COLUMNS] for at in range(0, len(body) + 1, _COLUMNS)]  # the last one is shorter
    signed = b"\n".join(lines) + b"\n---"
    return _with_mac(signed, _mac(file_key, signed))


def read_header(file: BinaryIO, *, max_bytes: int = MAX_HEADER_BYTES) -> Header:
    """Parse the header at the start of `file`, and leave `file` at the payload.

    Raises:
        BadContainer: not the grammar above, or beyond a limit. Nothing is decrypted here.
    """
    file.seek(0)
    lines = _Lines(file.read(max_bytes))
    if lines.next() != _VERSION:
        raise BadContainer.because("another kind of file, or another version")
    stanzas: list[Stanza] = []
    while not (line := lines.next()).startswith(b"---"):
        if len(stanzas) == MAX_STANZAS:
            raise BadContainer.because(f"more than {MAX_STANZAS} recipients")
        stanzas.append(_read_stanza(line, lines))
    if not stanzas or line[3:4] != b" ":
        raise BadContainer.because("a malformed end of the header")
    mac = decode64(line[4:].decode("latin-1"))
    if len(mac) != SHA256.digest_size:
        raise BadContainer.because("a header MAC of another length")
    signed = lines.data[: lines.at - len(line) - 1 + 3]
    file.seek(lines.at)
    return Header(stanzas=tuple(stanzas), mac=mac, signed=signed, size_bytes=lines.at)


class _Lines:
    """Lines of the header, each ended by LF and capped."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def next(self) -> bytes:
        end = self.data.find(b"\n", self.at, self.at + MAX_LINE_BYTES)
        if end < 0:
            raise BadContainer.because("a header that does not end, or a line that is too long")
        line, self.at = self.data[self.at : end], end + 1
        return line


def _read_stanza(line: bytes, lines: _Lines) -> Stanza:
    marker, *words = line.split(b" ")
    if marker != b"->" or not words or not all(_ARGUMENT.fullmatch(word) for word in words):
        raise BadContainer.because("a malformed recipient line")
    kind, *arguments = (word.decode("ascii") for word in words)
    body = []
    while True:
        row = lines.next()
        if len(row) > _COLUMNS:
            raise BadContainer.because("a recipient body wider than 64 columns")
        body.append(row)
        if len(row) < _COLUMNS:
            break
    return Stanza(kind=kind, arguments=tuple(arguments), body=decode64(b"".join(body).decode("latin-1")))


def _with_mac(signed: bytes, mac: bytes) -> bytes:
    return signed + b" " + encode64(mac).encode("ascii") + b"\n"


def _mac(file_key: bytes, signed: bytes) -> bytes:
    key = HKDF(algorithm=SHA256(), length=32, salt=b"", info=b"header").derive(file_key)
    return hmac.digest(key, signed, "sha256")


def encode64(data: bytes) -> str:
    """Standard base64 without padding."""
    return base64.b64encode(data).rstrip(b"=").decode("ascii")


def decode64(text: str) -> bytes:
    """The bytes of unpadded base64 in its one canonical spelling; BadContainer otherwise."""
    try:
        data = base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except (binascii.Error, ValueError):
        raise BadContainer.because("malformed base64") from None
    if encode64(data) != text:
        raise BadContainer.because("base64 in another than its canonical spelling")
    return data
