"""How long work says how far it is: a plain callable, so that no library code knows about terminals."""

from __future__ import annotations

from contextvars import ContextVar
from typing import Protocol


class Progress(Protocol):
    """Told about work in units of its own; draws, logs or ignores it."""

    def __call__(self, what: str, *, done: int, total: int, note: str = "") -> None:
        """Say that `done` of `total` units of `what` are finished; `note` is a short live value such as a loss."""


def silent(what: str, *, done: int, total: int, note: str = "") -> None:
    """The default: no progress shown."""


current: ContextVar[Progress] = ContextVar("progress", default=silent)
"""Who listens where a caller in between (Flower, in a simulation in this process) passes no arguments on."""
