"""The payload of an age file: chunks of 64 KiB under ChaCha20-Poly1305, numbered, the last one marked.

Memory is bounded: blocks of one megabyte, three of each kind that is handed out, so that one can be hashed on another
thread and one wait for it while the next is made. Source: c2sp.org/age, "payload" (STREAM by Hoang et al. 2015).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import BinaryIO, Protocol

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from not_fed.age.header import BadContainer

CHUNK_BYTES = 64 * 1024
TAG_BYTES = 16
NONCE_BYTES = 16
_CHUNKS_PER_BLOCK = 16
BLOCK_BYTES = CHUNK_BYTES * _CHUNKS_PER_BLOCK
_SEALED_CHUNK = CHUNK_BYTES + TAG_BYTES
_SEALED_BLOCK = _SEALED_CHUNK * _CHUNKS_PER_BLOCK
_BUFFERS = 3  # handed out, waiting behind it, being filled
_PIECE_BYTES = 8192  # what is handed out in bulk comes in multiples of it: whole numbers, whole rows


class Sink(Protocol):
    """Takes blocks of bytes; a block stays untouched until the second call after it has returned."""

    def __call__(self, block: memoryview, /) -> object:
        """Write or hash it."""


def plaintext_size(payload_bytes: int) -> int:
    """How much plaintext a payload of that many bytes (nonce not counted) holds; BadContainer when it cannot be one."""
    chunks = -(-payload_bytes // _SEALED_CHUNK)
    last = payload_bytes - (chunks - 1) * _SEALED_CHUNK
    if chunks < 1 or last < TAG_BYTES or (last == TAG_BYTES and chunks > 1):
        raise BadContainer.because("a payload of an impossible length")
    return payload_bytes - chunks * TAG_BYTES


def sealed_size(plain_bytes: int) -> int:
    """How many bytes that much plaintext becomes: nonce, chunks and their tags."""
    return NONCE_BYTES + plain_bytes + max(1, -(-plain_bytes // CHUNK_BYTES)) * TAG_BYTES


def _buffers(count: int, size_bytes: int) -> list[memoryview]:
    return [memoryview(bytearray(size_bytes)) for _ in range(count)]


def _cipher(file_key: bytes, nonce: bytes) -> ChaCha20Poly1305:
    return ChaCha20Poly1305(HKDF(algorithm=SHA256(), length=32, salt=nonce, info=b"payload").derive(file_key))


def _chunk_nonce(number: int, *, last: bool) -> bytes:
    return number.to_bytes(11, "big") + (b"\x01" if last else b"\x00")


class StreamWriter:
    """Encrypts what is written, in order; `finish` writes the marked last chunk."""

    def __init__(self, sink: Sink, *, file_key: bytes, nonce: bytes) -> None:
        self._sink, self._cipher = sink, _cipher(file_key, nonce)
        self._plain = _buffers(_BUFFERS, BLOCK_BYTES)
        self._sealed = _buffers(_BUFFERS, _SEALED_BLOCK)
        self._filled = self._number = 0

    def write(self, data: bytes | memoryview) -> None:
        """Take more plaintext."""
        rest = memoryview(data)
        while rest:
            room = self.room()
            taken = min(len(rest), len(room))
            room[:taken] = rest[:taken]
            self.advance(taken)
            rest = rest[taken:]

    def room(self) -> memoryview:
        """Where the next plaintext goes, at least one byte: fill its front, then `advance`. Spares a copy."""
        if self._filled == BLOCK_BYTES:  # only now, since the last chunk must not be empty
            self._flush(last=False)
        return self._plain[0][self._filled :]

    def advance(self, count: int) -> None:
        """So much of `room` was filled. What was filled stays untouched until two more blocks are full."""
        self._filled += count

    def finish(self) -> None:
        """Write what is held back, its last chunk marked as the file's last."""
        self._flush(last=True)

    def _flush(self, *, last: bool) -> None:
        plain, out, written = self._plain[0], self._sealed[0], 0
        for start in range(0, max(self._filled, 1), CHUNK_BYTES):
            end = min(start + CHUNK_BYTES, self._filled)
            nonce = _chunk_nonce(self._number, last=last and end == self._filled)
            size = end - start + TAG_BYTES
            self._cipher.encrypt_into(nonce, plain[start:end], None, out[written : written + size])
            written += size
            self._number += 1
        self._filled = 0
        self._plain.append(self._plain.pop(0))
        self._sealed.append(self._sealed.pop(0))
        self._sink(out[:written])


class StreamReader:
    """Decrypts a payload of known length, front to back. Each byte that leaves here was authenticated."""

    def __init__(self, file: BinaryIO, *, file_key: bytes, payload_bytes: int, tap: Sink | None = None) -> None:
        """`file` stands at the payload's 16-byte nonce; `payload_bytes` counts what follows that nonce.

        Args:
            tap: is given every byte of the payload as it was read, nonce first, so that it need not be read twice.
        """
        self.size_bytes = plaintext_size(payload_bytes)
        nonce = file.read(NONCE_BYTES)
        if len(nonce) != NONCE_BYTES:
            raise BadContainer.because("an end within the nonce")
        if tap is not None:
            tap(memoryview(nonce))
        self._file, self._cipher, self._tap = file, _cipher(file_key, nonce), tap
        self._start, self._payload_bytes = file.tell(), payload_bytes
        self._left, self._number = payload_bytes, 0
        self._sealed = _buffers(1 if tap is None else _BUFFERS, min(_SEALED_BLOCK, payload_bytes))
        self._plain = _buffers(_BUFFERS, min(BLOCK_BYTES, self.size_bytes) + _PIECE_BYTES)
        self._ready = self._plain[0][:0]

    def take(self, limit: int) -> memoryview:
        """At most `limit` (> 0) bytes, empty at the end. The view stays untouched until the block after the next."""
        if not self._ready and self._left:
            self._fill()
        view, self._ready = self._ready[:limit], self._ready[limit:]
        return view

    def blocks(self, size_bytes: int) -> Iterator[memoryview]:
        """The next `size_bytes`, in large pieces, each but the last a multiple of 8 KiB.

        A piece stays untouched until the second one after it is asked for. BadContainer when the payload ends before.
        """
        while size_bytes:
            if len(self._ready) < min(_PIECE_BYTES, size_bytes):
                if not self._left:
                    raise BadContainer.because("an end within the organ")
                self._fill()
                continue
            count = min(len(self._ready), size_bytes)
            if count < size_bytes:
                count -= count % _PIECE_BYTES
            view, self._ready = self._ready[:count], self._ready[count:]
            size_bytes -= count
            yield view

    def seek(self, offset: int) -> None:
        """Go to any byte of the plaintext, in either direction; chunks are numbered, so each authenticates alone.

        The tap is given nothing more: it wants every byte once, in order.
        """
        self._tap = None
        chunk, rest = divmod(offset, CHUNK_BYTES)
        self._file.seek(self._start + chunk * _SEALED_CHUNK)
        self._number, self._left = chunk, self._payload_bytes - chunk * _SEALED_CHUNK
        self._ready = self._ready[:0]
        if rest:
            self.read(rest)

    def read(self, size: int, /) -> bytes:
        """Exactly `size` bytes, or fewer at the end."""
        parts = []
        while size and (part := self.take(size)):
            parts.append(bytes(part))
            size -= len(part)
        return b"".join(parts)

    def read_line(self, max_bytes: int) -> bytes:
        """Up to the next LF, which is consumed and not returned; BadContainer when none comes within `max_bytes`."""
        line = bytearray()
        while len(line) <= max_bytes:
            if not self._ready and self._left:
                self._fill()
            window = self._ready[: max_bytes + 1 - len(line)]
            if not window:
                break
            end = bytes(window).find(b"\n")
            taken = window if end < 0 else window[:end]
            line += taken
            self._ready = self._ready[len(taken) + (end >= 0) :]
            if end >= 0:
                return bytes(line)
        raise BadContainer.because("a line that does not end")

    def finish(self) -> None:
        """Raises BadContainer unless all was read and nothing follows."""
        if not self.size_bytes and self._left:  # an empty payload is one empty chunk, still to be authenticated
            self._fill()
        if self._left or self._ready or self._file.read(1):
            raise BadContainer.because("bytes after the end")

    def _fill(self) -> None:
        """Decrypt the next block behind what is left of the one before, which is less than a piece."""
        wanted = min(self._left, _SEALED_BLOCK)
        sealed = self._sealed[0][:wanted]
        _read_exactly(self._file, sealed)
        if self._tap is not None:
            self._tap(sealed)
        self._left -= wanted
        rest, out = self._ready, self._plain[0]
        written = len(rest)
        out[:written] = rest
        for start in range(0, wanted, _SEALED_CHUNK):
            chunk = sealed[start : start + _SEALED_CHUNK]
            last = not self._left and start + _SEALED_CHUNK >= wanted
            size = len(chunk) - TAG_BYTES
            try:
                self._cipher.decrypt_into(
                    _chunk_nonce(self._number, last=last), chunk, None, out[written : written + size]
                )
            except InvalidTag:
                raise BadContainer.because(f"chunk {self._number} does not authenticate") from None
            written += size
            self._number += 1
        self._ready = out[:written]
        self._plain.append(self._plain.pop(0))
        self._sealed.append(self._sealed.pop(0))


def _read_exactly(file: BinaryIO, view: memoryview) -> None:
    while view:
        count = file.readinto(view)  # type: ignore[attr-defined]  # every binary file has it; typing.BinaryIO forgot
        if not count:
            raise BadContainer.because("an end within a chunk")
        view = view[count:]
