"""Small age files as bytes in memory: key files, and what a site keeps for itself alone."""

from __future__ import annotations

import os
from collections.abc import Sequence
from io import BytesIO
from typing import BinaryIO

from not_fed.age.header import FILE_KEY_BYTES, Stanza, read_header, write_header
from not_fed.age.hybrid import HybridIdentity, wrap
from not_fed.age.stream import NONCE_BYTES, StreamReader, StreamWriter


def encrypt(plain: bytes, *, recipients: Sequence[str]) -> bytes:
    """An age file for `recipients` (`age1pq1...`). It says nothing about who made it."""
    file_key = os.urandom(FILE_KEY_BYTES)
    return write_whole([wrap(file_key, recipient=text) for text in recipients], file_key=file_key, plain=plain)


def decrypt(data: bytes, *, identity: HybridIdentity) -> bytes:
    """The content of such a file; raises BadContainer or NotForThisKey."""
    file = BytesIO(data)
    header = read_header(file)
    file_key = identity.unwrap(header)
    return read_payload(file, file_key=file_key, size_bytes=len(data) - header.size_bytes)


def write_whole(stanzas: Sequence[Stanza], *, file_key: bytes, plain: bytes) -> bytes:
    """Header, nonce and payload."""
    out, nonce = BytesIO(), os.urandom(NONCE_BYTES)
    out.write(write_header(stanzas, file_key=file_key) + nonce)
    writer = StreamWriter(out.write, file_key=file_key, nonce=nonce)
    writer.write(plain)
    writer.finish()
    return out.getvalue()


def read_payload(file: BinaryIO, *, file_key: bytes, size_bytes: int) -> bytes:
    """The whole plaintext behind a header; `size_bytes` counts nonce and chunks."""
    reader = StreamReader(file, file_key=file_key, payload_bytes=size_bytes - NONCE_BYTES)
    plain = reader.read(reader.size_bytes)
    reader.finish()
    return plain
