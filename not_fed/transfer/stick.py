"""A folder that is carried by hand, such as a USB stick: its layout, and how to read one that may be hostile.

    DIR/roster/              the roster's repository
    DIR/log/                 the coordinator's log, where it keeps one
    DIR/orders/SITE/         task, receipt, and of each sealed organ <sha256>.sealed, .label and .proof
    DIR/answers/SITE/        answer, organ.sealed

A folder appears whole or not at all. Whoever reads follows no symbolic link below DIR, waits for no FIFO, and reads no
more than what a signature announced; nothing here is believed because it lies here.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from not_fed import files
from not_fed.errors import InputError, TrustError

ORDERS, ANSWERS, ROSTER, LOG = "orders", "answers", "roster", "log"
TASK, RECEIPT, ANSWER, ORGAN = "task", "receipt", "answer", "organ.sealed"


class StickEmpty(InputError):
    """There is nothing for this place in the folder."""

    code = "stick-empty"


class StickIncomplete(InputError):
    """Something that belongs to it is missing in the folder, or was copied half."""

    code = "stick-incomplete"


class StickAltered(TrustError):
    """A sealed organ in the folder is not the one that was signed for; nothing of it was used."""

    code = "stick-altered"


@dataclass(frozen=True, slots=True)
class Carried:
    """One folder on the stick, held open."""

    path: Path
    descriptor: int

    def read(self, name: str, *, max_bytes: int) -> bytes:
        """A small file of it.

        Raises:
            StickIncomplete: it is missing. NotAFile: it is a link, a folder or a special file. FileTooLarge.
        """
        with self._open(name, max_bytes=max_bytes) as file:
            data = file.read(max_bytes + 1)
        if len(data) > max_bytes:
            raise files.FileTooLarge(
                where=str(self.path / name), expected=f"at most {max_bytes:,} bytes", got="more",
                hint="the file changed while being read",
            )  # fmt: skip
        return data

    def read_if_there(self, name: str, *, max_bytes: int) -> bytes | None:
        """A small file of it, or None when there is none; errors as `read`."""
        return self.read(name, max_bytes=max_bytes) if self._has(name) else None

    def copy(self, name: str, *, out: Path, sha256: str, size_bytes: int) -> None:
        """Copy a large file that was signed for, in constant memory; `out` appears whole or not at all.

        Raises:
            StickIncomplete: it is missing or too short. StickAltered: too long, or other bytes. NotAFile, NoSpace.
        Proved by: tests/attacks/test_file_drop.py::test_an_altered_parcel_is_refused
        """
        with self._open(name) as source:
            copy_checked(source, out=out, sha256=sha256, size_bytes=size_bytes, where=self.path / name)

    def _has(self, name: str) -> bool:
        try:
            os.stat(name, dir_fd=self.descriptor, follow_symlinks=False)
        except OSError:
            return False
        return True

    def _open(self, name: str, *, max_bytes: int | None = None) -> BinaryIO:
        if not self._has(name):
            raise StickIncomplete(
                where=str(self.path / name), expected="a file of that name", got="none",
                hint="nothing was changed; copy the whole folder again",
            )  # fmt: skip
        return files.open_regular(self.path / name, max_bytes=max_bytes, folder=self.descriptor)


@contextmanager
def opened(stick: Path, *names: str) -> Iterator[Carried]:
    """A folder on the stick, for reading.

    Raises:
        NotAFile: `stick` is no folder, or one on the way is a link or no folder. StickEmpty: there is none.
    Proved by: tests/attacks/test_file_drop.py::test_links_and_special_files_on_a_stick_are_refused
    """
    path, descriptor = stick, _open_folder(stick, follow=True)  # DIR itself may be a link: a person named it
    try:
        for name in names:
            path /= name
            below = _open_folder(path, inside=descriptor)
            os.close(descriptor)
            descriptor = below
        yield Carried(path, descriptor)
    finally:
        os.close(descriptor)


def is_there(stick: Path, *names: str) -> bool:
    """Whether the stick has such a folder, or anything else in its place."""
    return os.path.lexists(stick.joinpath(*names))


@contextmanager
def written(stick: Path, *names: str) -> Iterator[Path]:
    """A folder on the stick to be filled; it takes the place of an older one, whole or not at all.

    Raises:
        NotAFile: a link or a file is in the way. NoSpace: no room.
    """
    for depth in range(len(names)):
        folder = stick.joinpath(*names[:depth])
        _make(folder)
        os.close(_open_folder(folder, follow=depth == 0))
    target = stick.joinpath(*names)
    with files.replace_folder(target) if os.path.lexists(target) else files.new_folder(target) as part:
        yield part


def copy_tree(source: Path, out: Path) -> None:
    """Copy regular files and folders into the new folder `out`; links and special files stay behind.

    Hidden parts of writers and locks are no business of others.
    """
    out.mkdir(mode=0o700, exist_ok=True)
    for entry in sorted(os.scandir(source), key=lambda entry: entry.name):
        if entry.is_dir(follow_symlinks=False):
            copy_tree(Path(entry.path), out / entry.name)
        elif entry.is_file(follow_symlinks=False) and not entry.name.startswith("."):
            _copy_file(Path(entry.path), out / entry.name)


def copy_checked(source: BinaryIO, *, out: Path, sha256: str, size_bytes: int, where: Path) -> None:
    """Copy exactly so many bytes of exactly that digest, in constant memory; `out` appears whole or not at all.

    Raises:
        StickIncomplete: too short. StickAltered: too long, or other bytes. NoSpace, ReadFailed.
    """
    digest, left = hashlib.sha256(), size_bytes
    with files.new_file(out, overwrite=True) as target:
        while left and (block := source.read(min(left, files.BLOCK_BYTES))):
            digest.update(block)
            target.write(block)
            left -= len(block)
        if left:
            raise StickIncomplete(
                where=str(where), expected=f"{size_bytes:,} bytes", got=f"{size_bytes - left:,} bytes",
                hint="nothing was changed; copy the whole folder again",
            )  # fmt: skip
        if source.read(1) or digest.hexdigest() != sha256:
            raise StickAltered(
                where=str(where), expected=f"{size_bytes:,} bytes of SHA-256 {sha256[:12]}", got="others",
                hint="nothing was changed; copy it again, and ask who had the stick",
            )  # fmt: skip


def _copy_file(source: Path, out: Path) -> None:
    with files.open_regular(source) as file, files.new_file(out, mode=0o644) as target:
        while block := file.read(files.BLOCK_BYTES):
            target.write(block)


def _make(folder: Path) -> None:
    try:
        with suppress(FileExistsError):
            folder.mkdir()
    except OSError as error:
        raise _no_folder(folder, error) from None


def _open_folder(path: Path, *, inside: int | None = None, follow: bool = False) -> int:
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | (0 if follow else os.O_NOFOLLOW)
    try:
        return os.open(path if inside is None else path.name, flags, dir_fd=inside)
    except FileNotFoundError:
        raise StickEmpty(
            where=str(path), expected="a folder of that name", got="none",
            hint="check which stick this is, and whether the other side wrote to it for you",
        ) from None  # fmt: skip
    except (OSError, ValueError) as error:
        raise _no_folder(path, error) from None


def _no_folder(path: Path, error: OSError | ValueError) -> files.NotAFile:
    got = os.strerror(error.errno).lower() if isinstance(error, OSError) and error.errno else "no possible name"
    return files.NotAFile(
        where=str(path), expected="a folder, and no symbolic link", got=got, hint="check the path, or use another stick"
    )
