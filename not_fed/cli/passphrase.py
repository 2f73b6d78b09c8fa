"""Where a passphrase comes from: the terminal, a private file, a descriptor; never an argument or the environment."""

from __future__ import annotations

import getpass
import os
import resource
import stat
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from not_fed.errors import TrustError, UsageError

if TYPE_CHECKING:
    from not_fed.keys import Secret

MAX_PASSPHRASE_BYTES = 4096

PassphraseFile = Annotated[
    Path | None, typer.Option("--passphrase-file", help="Read the passphrase from this file (mode 0600).")
]
PassphraseFd = Annotated[
    int | None, typer.Option("--passphrase-fd", min=0, help="Read the passphrase from this open descriptor.")
]


PinFile = Annotated[Path | None, typer.Option("--pin-file", help="Read the token's PIN from this file (mode 0600).")]
PinFd = Annotated[int | None, typer.Option("--pin-fd", min=0, help="Read the token's PIN from this open descriptor.")]


class PassphraseExposed(TrustError):
    """Others on this machine can read the passphrase file."""

    code = "passphrase-exposed"


def read_passphrase(file: Path | None, fd: int | None, *, confirm: bool = False) -> Secret:
    """The passphrase, without its line end; from now on a crash of this process leaves no core file.

    (Where kernel.core_pattern names a program instead of a file, that program sees the limit of 0 and decides.)

    Raises:
        UsageError: two sources, or none and no terminal; or more than a passphrase. PassphraseExposed: the file is
        another user's, or readable by others.
    Proved by: tests/attacks/test_keys_secrets.py::test_no_option_and_no_variable_takes_a_passphrase
    """
    return _read(file, fd, what="passphrase", confirm=confirm)


def read_pin(file: Path | None, fd: int | None) -> Secret:
    """The PIN of a token; as `read_passphrase`."""
    return _read(file, fd, what="pin", confirm=False)


def _read(file: Path | None, fd: int | None, *, what: str, confirm: bool) -> Secret:
    from not_fed.keys import Secret

    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    if file is not None and fd is not None:
        raise _usage(what, "one source", "two")
    if file is not None:
        return Secret(_from_file(file, what))
    if fd is not None:
        return Secret(_from_descriptor(fd, what))
    return Secret(_from_terminal(what, confirm=confirm))


def _from_file(path: Path, what: str) -> bytes:
    from not_fed import files

    with files.open_regular(path, max_bytes=MAX_PASSPHRASE_BYTES) as file:
        status = os.fstat(file.fileno())
        mode, mine = stat.S_IMODE(status.st_mode), status.st_uid in (0, os.geteuid())
        if mode & 0o077 or not mine:
            raise PassphraseExposed(
                where=str(path), expected="a file of your own, without access for group and others",
                got=f"mode {mode:04o}" if mine else "another user's",
                hint=f"chmod 600 {path}; if others could read it, choose another {what}",
            )  # fmt: skip
        return _trim(file.read(MAX_PASSPHRASE_BYTES + 1), what)


def _from_descriptor(descriptor: int, what: str) -> bytes:
    try:
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            return _trim(file.read(MAX_PASSPHRASE_BYTES + 1), what)
    except OSError:
        raise _usage(what, "an open descriptor", f"{descriptor}, which is not") from None


def _trim(data: bytes, what: str) -> bytes:
    if len(data) > MAX_PASSPHRASE_BYTES:  # cutting it short would make another passphrase of it
        raise _usage(what, f"at most {MAX_PASSPHRASE_BYTES:,} bytes", "more")
    return data.rstrip(b"\r\n")


def _from_terminal(what: str, *, confirm: bool) -> bytes:
    if not sys.stdin.isatty():
        raise _usage(what, f"a {what}", "no terminal to ask on")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", getpass.GetPassWarning)  # it would ask on, and show what is typed
            first = getpass.getpass(f"{what}: ")
            if confirm and getpass.getpass("once more: ") != first:
                raise _usage(what, f"the same {what} twice", "two different ones")
    except getpass.GetPassWarning:
        raise _usage(what, "a terminal that can hide what is typed", "one that cannot") from None
    return _trim(first.encode(), what)


def _usage(what: str, expected: str, got: str) -> UsageError:
    return UsageError(where=what, expected=expected, got=got, hint=f"use --{what}-file FILE or --{what}-fd N")
