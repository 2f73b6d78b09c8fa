"""A sealed file as a list of chunks: each known by its own digest, so that what arrived is never sent again.

The list is a convenience, not a promise: what counts is the digest of the whole file, which its label signs.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from not_fed import canonical, files
from not_fed.errors import InputError

MIN_CHUNK_BYTES, MAX_CHUNK_BYTES = 64 << 10, 64 << 20
USUAL_CHUNK_BYTES = 4 << 20
MAX_CHUNKS = 1 << 17
MAX_LIST_BYTES = 70 * MAX_CHUNKS
Digest = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}\z")]


class BadChunks(InputError):
    """This is not a list of a sealed file's chunks."""

    code = "bad-chunks"


class ChunkList(BaseModel):
    """How a file of `size_bytes` is cut: every chunk has `chunk_bytes`, the last one what is left.

    Attributes:
        sha256: of the whole file.
        chunks: SHA-256 of each chunk, in order.
    """

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")

    sha256: Digest
    size_bytes: int = Field(ge=1, lt=1 << 62)
    chunk_bytes: int = Field(ge=MIN_CHUNK_BYTES, le=MAX_CHUNK_BYTES)
    chunks: tuple[Digest, ...] = Field(min_length=1, max_length=MAX_CHUNKS)

    @model_validator(mode="after")
    def _as_many_as_the_size_needs(self) -> Self:
        if len(self.chunks) != -(-self.size_bytes // self.chunk_bytes):
            raise ValueError("as many chunks as the size needs")
        return self

    def size_of(self, index: int) -> int:
        """How many bytes chunk `index` has."""
        return min(self.chunk_bytes, self.size_bytes - index * self.chunk_bytes)

    def to_bytes(self) -> bytes:
        """Canonical JSON."""
        return canonical.dumps(self.model_dump(mode="json"))

    @classmethod
    def parse(cls, data: bytes, *, where: str) -> Self:
        """Raises BadChunks."""
        try:
            return cls.model_validate_json(data)
        except (ValidationError, ValueError):
            raise BadChunks(
                where=where, expected="a list of chunks", got="something else", hint="both sides need the same not-fed"
            ) from None


def list_chunks(path: Path, *, chunk_bytes: int) -> ChunkList:
    """Cut a file: one read, constant memory. Raises NotAFile, BadChunks (it is empty, or has too many chunks)."""
    whole, digests, size = hashlib.sha256(), [], 0
    with files.open_regular(path) as file:
        while chunk := file.read(chunk_bytes):
            whole.update(chunk)
            digests.append(hashlib.sha256(chunk).hexdigest())
            size += len(chunk)
    try:
        return ChunkList(sha256=whole.hexdigest(), size_bytes=size, chunk_bytes=chunk_bytes, chunks=tuple(digests))
    except ValidationError:
        raise BadChunks(
            where=str(path), expected=f"between 1 and {MAX_CHUNKS * chunk_bytes:,} bytes", got=f"{size:,}",
            hint="choose larger chunks",
        ) from None  # fmt: skip
