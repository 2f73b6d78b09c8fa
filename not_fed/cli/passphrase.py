"""Where a passphrase comes from: the terminal, a private file, a descriptor; never an argument or the environment."""

from __future__ import annotations

import getpass
import os
import resource
import stat
import sys
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


class PassphraseExposed(TrustError):
    """Others on this machine can read the passphrase file."""

    code = "passphrase-exposed"


def read_passphrase(file: Path | None, fd: int | None, *, confirm: bool = False) -> Secret:
    """The passphrase, without its line end; from now on a crash of this process leaves no core file.

    Raises:
        UsageError: two sources, or none and no terminal. PassphraseExposed: the file is readable by others.
    """
    from not_fed.keys import Secret

    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    if file is not None and fd is not None:
        raise _usage("one source", "two")
    if file is not None:
        return Secret(_from_file(file))
    if fd is not None:
        return Secret(_from_descriptor(fd))
    return Secret(_from_terminal(confirm=confirm))


def _from_file(path: Path) -> bytes:
    from not_fed import files

    with files.open_regular(path, max_bytes=MAX_PASSPHRASE_BYTES) as file:
        mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
        if mode & 0o077:
            raise PassphraseExposed(
                where=str(path), expected="no access for group and others", got=f"mode {mode:04o}",
                hint=f"chmod 600 {path}; if others could read it, choose another passphrase",
            )  # fmt: skip
        return file.read(MAX_PASSPHRASE_BYTES).rstrip(b"\r\n")


def _from_descriptor(descriptor: int) -> bytes:
    try:
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            return file.read(MAX_PASSPHRASE_BYTES).rstrip(b"\r\n")
    except OSError:
        raise _usage("an open descriptor", f"{descriptor}, which is not") from None


def _from_terminal(*, confirm: bool) -> bytes:
    if not sys.stdin.isatty():
        raise _usage("a passphrase", "no terminal to ask on")
    first = getpass.getpass("passphrase: ")
    if confirm and getpass.getpass("once more: ") != first:
        raise _usage("the same passphrase twice", "two different ones")
    return first.encode()


def _usage(expected: str, got: str) -> UsageError:
    return UsageError(
        where="passphrase", expected=expected, got=got, hint="use --passphrase-file FILE or --passphrase-fd N"
    )
