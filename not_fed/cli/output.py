"""What a person and a program see: results on stdout, everything else on stderr.

`--json` prints one object with a `schema` field on stdout and nothing else there; an error is one object on stderr.
Text from files of others is escaped before it reaches the terminal.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping
from typing import Annotated, Any

import typer

from not_fed.errors import NotFedError

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout and nothing else there.")]


def show(result: Mapping[str, Any], *, as_json: bool, lines: Iterable[tuple[str, str]] = ()) -> None:
    """Print a result: the object with `--json`, otherwise aligned `label  value` lines."""
    if as_json:
        sys.stdout.write(json.dumps(result, sort_keys=False, allow_nan=False) + "\n")
        return
    rows = list(lines)
    width = max((len(label) for label, _ in rows), default=0)
    for label, value in rows:
        sys.stdout.write(f"{printable(label):<{width}}  {printable(value)}\n")


def say(message: str) -> None:
    """One line for the person at the terminal, on stderr."""
    sys.stderr.write(printable(message) + "\n")


def printable(text: str) -> str:
    """Escape control characters, so that a hostile passport cannot draw on the terminal."""
    return "".join(char if char.isprintable() else f"\\x{ord(char):02x}" for char in text)


def report_error(error: NotFedError, *, as_json: bool) -> None:
    """Say what went wrong, where, and what to do next."""
    if as_json:
        sys.stderr.write(json.dumps(error.as_json()) + "\n")
        return
    sys.stderr.write(f"error[{error.code}] {error.title()}\n")
    for label in ("where", "expected", "got", "hint"):
        sys.stderr.write(f"  {label:<9} {printable(getattr(error, label))}\n")
