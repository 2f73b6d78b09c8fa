"""Reads that fail by type: a disk that dies in the middle of a file is a refusal, not a crash."""

from __future__ import annotations

import os
from io import FileIO
from pathlib import Path
from typing import TYPE_CHECKING

from not_fed.errors import InputError

if TYPE_CHECKING:
    from typing_extensions import Buffer  # collections.abc has it from Python 3.12 on


class ReadFailed(InputError):
    """The file cannot be read, though it is there: a failing disk, a share that went away."""

    code = "read-failed"


class TypedReads(FileIO):
    """A file open for reading that raises ReadFailed where Python has OSError."""

    def __init__(self, descriptor: int, path: Path) -> None:
        super().__init__(descriptor, "rb")
        self._path = path

    def readinto(self, buffer: Buffer, /) -> int:
        """Raises ReadFailed."""
        try:
            count = super().readinto(buffer)
        except OSError as error:
            raise self.failed(error) from None
        if count is None:  # a special file in disguise, which has nothing to say yet
            raise self.failed(BlockingIOError())
        return count

    def readall(self) -> bytes:
        """Raises ReadFailed."""
        try:
            return super().readall()
        except OSError as error:
            raise self.failed(error) from None

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        """Raises ReadFailed."""
        try:
            return super().seek(offset, whence)
        except OSError as error:
            raise self.failed(error) from None

    def failed(self, error: OSError) -> ReadFailed:
        """The refusal for an error of the system."""
        return ReadFailed(
            where=str(self._path), expected="bytes", got=os.strerror(error.errno).lower() if error.errno else "nothing",
            hint="copy it to another disk, or fetch it again",
        )  # fmt: skip
