"""Files that appear whole or not at all, and are read only when they are what they seem.

Writing: a file of mode 0600 without a name (O_TMPFILE; where that is missing, a hidden `.part` beside the target),
fsync, then `link` (never overwrites) or `replace`, then fsync of the folder. The folder is held open by descriptor, so
nobody can swap it meanwhile. A kill leaves the old state or the new one, and of a nameless file nothing at all; a
`.part` of a writer that died is swept by the next one in that folder, whatever it writes there under a `.part` (a
folder, always), since its lock is free: so no plaintext lies about for ever.
A whole folder is replaced by exchanging it with one that was built beside it.
Reading: without following a symbolic link and without blocking on a FIFO.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import hashlib
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import BufferedReader
from pathlib import Path
from typing import BinaryIO

from not_fed.errors import InputError
from not_fed.reading import TypedReads

BLOCK_BYTES = 1 << 20
_PART = re.compile(r"\..{1,24}\.[0-9a-f]{12}\.part", re.DOTALL)  # see _part_name
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # Linux: fcntl.h, linux/fs.h


class OutputExists(InputError):
    """The output is already there; nothing was overwritten."""

    code = "output-exists"


class NotAFile(InputError):
    """A plain file was expected here."""

    code = "not-a-file"


class FileTooLarge(InputError):
    """The file is larger than anything of its kind may be."""

    code = "file-too-large"


class FolderBusy(InputError):
    """Another command is replacing this folder."""

    code = "folder-busy"


class NoSpace(InputError):
    """The disk is full; nothing was left behind."""

    code = "no-space"


def open_regular(path: Path, *, max_bytes: int | None = None, folder: int | None = None) -> BufferedReader:
    """Open a regular file for reading; never through a symbolic link at `path`, never blocking on a FIFO.

    Args:
        folder: a descriptor of the folder in which the file lies; `path` then only names it.
    Raises:
        NotAFile: it is missing, unreadable, a symbolic link, a folder or a special file.
        FileTooLarge: it holds more than `max_bytes`. Reading it raises reading.ReadFailed.
    """
    try:
        name = path if folder is None else path.name
        descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise NotAFile(where=str(path), expected="a regular file", got=_reason(error), hint="check the path") from None
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        os.close(descriptor)
        raise NotAFile(
            where=str(path), expected="a regular file", got="a folder or special file", hint="check the path"
        )
    if max_bytes is not None and status.st_size > max_bytes:
        os.close(descriptor)
        raise FileTooLarge(
            where=str(path),
            expected=f"at most {max_bytes:,} bytes",
            got=f"{status.st_size:,} bytes",
            hint="this is not a file that not-fed wrote",
        )
    return BufferedReader(TypedReads(descriptor, path))


def read_regular(path: Path, *, max_bytes: int) -> bytes:
    """The whole of a small regular file; errors as `open_regular`."""
    with open_regular(path, max_bytes=max_bytes) as file:
        data = file.read(max_bytes + 1)
    if len(data) > max_bytes:  # grew while being read
        raise FileTooLarge(
            where=str(path),
            expected=f"at most {max_bytes:,} bytes",
            got="more",
            hint="the file changed while being read",
        )
    return data


def sha256(path: Path) -> str:
    """Hex SHA-256 of a regular file, in constant memory."""
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def new_file(path: Path, *, overwrite: bool = False, mode: int = 0o600) -> Iterator[BinaryIO]:
    """Write a file that appears at `path` whole, or not at all when the block raises.

    Raises:
        OutputExists: `path` exists (a dangling link too) and `overwrite` is false; checked first and again at the end.
        NotAFile: the folder does not exist or cannot be written, or `path` is no possible name.
        NoSpace: the disk filled up.
    """
    _refuse_target(path, overwrite=overwrite)
    folder = _open_folder(path)
    part: str | None = None
    try:
        nameless = None if overwrite else _open_nameless(folder, mode)
        if nameless is None:
            _sweep(path)
            nameless, part = _open_part(folder, mode, path)
        with os.fdopen(nameless, "w+b") as file:
            yield file
            file.flush()
            os.fchmod(file.fileno(), mode)
            os.fsync(file.fileno())
            _publish(file.fileno(), part, folder, path, overwrite=overwrite)
        os.fsync(folder)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):  # EFBIG: FAT takes no file of 4 GiB
            raise NoSpace(
                where=str(path), expected="room for the file", got=_reason(error), hint="free some space and try again"
            ) from None
        raise
    finally:
        if part is not None:
            with suppress(FileNotFoundError):
                os.unlink(part, dir_fd=folder)
        os.close(folder)


def require_free(path: Path) -> None:
    """Settle before long work what would fail after it.

    Raises:
        OutputExists, NotAFile: as `new_file`.
    """
    _refuse_target(path, overwrite=False)
    os.close(_open_folder(path))


def reserve(file: BinaryIO, size_bytes: int) -> None:
    """Take the room for a file before it is written: a full disk is known at once, and writing costs less.

    Raises:
        OSError: no room; inside `new_file` that is NoSpace. A file system that cannot reserve is left alone.
    """
    try:
        os.posix_fallocate(file.fileno(), 0, size_bytes)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise


def write_atomic(path: Path, data: bytes, *, overwrite: bool = False, mode: int = 0o600) -> None:
    """`new_file` for bytes at hand."""
    with new_file(path, overwrite=overwrite, mode=mode) as file:
        file.write(data)


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Fill a folder that appears at `path` whole, or not at all when the block raises.

    Yields:
        a private temporary folder beside `path`; fill it, and it becomes `path`.
    Raises:
        OutputExists: `path` exists.
    """
    _refuse_target(path, overwrite=False)
    _sweep(path)
    part, lock = _make_part_folder(path)
    try:
        yield part
        _fsync_tree(part)
        if os.path.lexists(path):
            raise _exists(path)
        part.rename(path)
        fsync_folder(path.parent)
    finally:
        shutil.rmtree(part, ignore_errors=True)
        os.close(lock)


@contextmanager
def replace_folder(path: Path) -> Iterator[Path]:
    """Fill a folder that takes the place of the one at `path` in one step, or not at all when the block raises.

    Yields:
        a private temporary folder beside `path`, while nobody else replaces `path`. What must go on is copied into it
        by the block; the rest of the old folder is deleted.
    Raises:
        NotAFile: there is no folder at `path`, or it cannot be replaced. FolderBusy: somebody else is replacing it.
    Guarantees:
        Whoever looks at `path` sees the old folder or the new one. The kernel exchanges the two names
        (renameat2, RENAME_EXCHANGE); where it cannot, there is a moment without either, and `recover_folder` ends it.
    Proved by: tests/unit/test_keys_rotate.py::test_a_kill_leaves_the_old_keys_or_the_new_ones
    """
    recover_folder(path)
    old = _lock_folder(path)
    try:
        _sweep(path)
        shutil.rmtree(_ready_name(path), ignore_errors=True)  # of a replacement killed before it had begun to rename
        part, lock = _make_part_folder(path)
        try:
            yield part
            _fsync_tree(part)
            _swap(part, path)
        finally:
            shutil.rmtree(part, ignore_errors=True)  # after the swap, what was at `path` before
            os.close(lock)
    finally:
        os.close(old)


def recover_folder(path: Path) -> None:
    """Finish a replacement that was killed between its two renames; otherwise do nothing."""
    if not os.path.lexists(path):
        with suppress(OSError, ValueError):
            _ready_name(path).rename(path)


def fsync_folder(folder: Path) -> None:
    """Make renames inside `folder` survive power loss."""
    _fsync(folder)


def cache_folder() -> Path:
    """Where downloads and digests are kept between runs: $NOT_FED_CACHE, else the user's cache folder."""
    chosen = os.environ.get("NOT_FED_CACHE")
    if chosen:
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "not-fed"


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _fsync_tree(folder: Path) -> None:
    for entry in (folder, *folder.rglob("*")):
        if not entry.is_symlink() and (entry.is_file() or entry.is_dir()):
            _fsync(entry)


def _lock_folder(path: Path) -> int:
    """A descriptor that holds the lock of the folder that is at `path` now, and still is once the lock is held."""
    if path.name in ("", ".."):
        raise NotAFile(where=str(path), expected="a folder by its name", got="another way to it", hint="name it")
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except (OSError, ValueError) as error:
        raise NotAFile(where=str(path), expected="a folder", got=_reason(error), hint="check the path") from None
    with suppress(OSError):
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(descriptor), os.lstat(path)):
            return descriptor
    os.close(descriptor)
    raise FolderBusy(
        where=str(path), expected="a folder that nobody else is replacing", got="another command at work",
        hint="nothing was changed; wait for it to end",
    )  # fmt: skip


def _swap(part: Path, path: Path) -> None:
    """Exchange two folders: in one step where the kernel can, else in three renames that `recover_folder` completes."""
    try:
        if not _exchange(part, path):
            ready = _ready_name(path)
            part.rename(ready)  # now it is known to be whole
            path.rename(part)
            with suppress(FileNotFoundError):  # a reader may have completed it
                ready.rename(path)
        fsync_folder(path.parent)
    except OSError as error:
        raise _no_folder(path, error) from None


def _exchange(one: Path, other: Path) -> bool:
    """renameat2 with RENAME_EXCHANGE; False where the C library, the kernel or the file system has none."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:
        return False
    if rename(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) == 0:
        return True
    number = ctypes.get_errno()
    if number in (errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.EXDEV):
        return False
    raise OSError(number, os.strerror(number))


def _ready_name(path: Path) -> Path:
    return path.with_name(f".{path.name[:24]}.{hashlib.sha256(os.fsencode(path.name)).hexdigest()[:12]}.next")


def _reason(error: OSError | ValueError) -> str:
    if not isinstance(error, OSError):
        return "a name with a NUL in it"
    return "a symbolic link" if error.errno == errno.ELOOP else os.strerror(error.errno or 0).lower()


def _part_name(path: Path) -> str:
    return f".{path.name[:24]}.{secrets.token_hex(6)}.part"  # 24 characters are at most 96 bytes of the 255 allowed


def _refuse_target(path: Path, *, overwrite: bool) -> None:
    """Settle before any work what would fail after it."""
    if path.name in ("", ".", ".."):
        raise NotAFile(where=str(path), expected="the name of a new file", got="a folder", hint="add a file name")
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        return
    except (OSError, ValueError) as error:
        raise NotAFile(
            where=str(path), expected="a name that can be written", got=_reason(error), hint="choose another name"
        ) from None
    if not overwrite:
        raise _exists(path)
    if stat.S_ISDIR(status.st_mode):
        raise NotAFile(where=str(path), expected="the name of a file", got="a folder", hint="choose another name")


def _open_folder(path: Path) -> int:
    try:
        return os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise _no_folder(path, error) from None


def _open_nameless(folder: int, mode: int) -> int | None:
    """A file that no path leads to, or None where the system has none or could not name it later."""
    if not hasattr(os, "O_TMPFILE") or not Path("/proc/self/fd").is_dir():
        return None
    try:
        return os.open(".", os.O_RDWR | os.O_TMPFILE | os.O_CLOEXEC, mode, dir_fd=folder)
    except OSError:  # this file system cannot; whatever else is wrong, the named file will say
        return None


def _open_part(folder: int, mode: int, path: Path) -> tuple[int, str]:
    """A hidden file beside `path`, locked until its writer closes it or dies, and its name."""
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    while True:
        part = _part_name(path)
        try:
            descriptor = os.open(part, flags, mode, dir_fd=folder)
        except OSError as error:
            raise _no_folder(path, error) from None
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        if os.fstat(descriptor).st_nlink:  # another writer's sweep may have come between making and locking
            return descriptor, part
        os.close(descriptor)


def _make_part_folder(path: Path) -> tuple[Path, int]:
    """A private folder beside `path`, and the descriptor that holds its lock."""
    while True:
        part = path.with_name(_part_name(path))
        try:
            part.mkdir(mode=0o700)
            lock = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError as error:
            raise _no_folder(path, error) from None
        fcntl.flock(lock, fcntl.LOCK_EX)
        if part.is_dir():  # as in _open_part
            return part, lock
        os.close(lock)


def _sweep(path: Path) -> None:
    """Remove what writers that died have left beside `path`: their `.part`, whose lock nobody holds any more."""
    with suppress(OSError), os.scandir(path.parent) as entries:
        for entry in [entry for entry in entries if _PART.fullmatch(entry.name)]:
            _sweep_one(Path(entry.path))


def _sweep_one(part: Path) -> None:
    with suppress(OSError):
        descriptor = os.open(part, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(part) if part.is_dir() else part.unlink()
        finally:
            os.close(descriptor)


def _publish(descriptor: int, part: str | None, folder: int, path: Path, *, overwrite: bool) -> None:
    if overwrite and part is not None:
        os.replace(part, path.name, src_dir_fd=folder, dst_dir_fd=folder)
        return
    try:
        if part is None:
            os.link(f"/proc/self/fd/{descriptor}", path.name, dst_dir_fd=folder, follow_symlinks=True)
        else:
            os.link(part, path.name, src_dir_fd=folder, dst_dir_fd=folder, follow_symlinks=False)
    except FileExistsError:
        raise _exists(path) from None
    except OSError as error:
        if part is None:
            raise _no_folder(path, error) from None
        _rename_new(part, folder, path)


def _rename_new(part: str, folder: int, path: Path) -> None:
    """For a file system without hard links: a small window, still never an overwrite of what we saw."""
    with suppress(FileNotFoundError):
        os.stat(path.name, dir_fd=folder, follow_symlinks=False)
        raise _exists(path)
    os.rename(part, path.name, src_dir_fd=folder, dst_dir_fd=folder)


def _no_folder(path: Path, error: OSError) -> NotAFile:
    return NotAFile(
        where=str(path),
        expected="a folder that can be written",
        got=_reason(error),
        hint="create the folder first, or choose another output",
    )


def _exists(path: Path) -> OutputExists:
    return OutputExists(
        where=str(path),
        expected="no file of that name",
        got="one",
        hint="choose another output or move the old one away",
    )
