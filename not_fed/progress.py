"""How long work says how far it is: a plain callable, so that no library code knows about terminals."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Told about work in units of its own; draws, logs or ignores it."""

    def __call__(self, what: str, *, done: int, total: int, note: str = "") -> None:
        """Say that `done` of `total` units of `what` are finished; `note` is a short live value such as a loss."""


def silent(what: str, *, done: int, total: int, note: str = "") -> None:
    """The default: no progress shown."""
