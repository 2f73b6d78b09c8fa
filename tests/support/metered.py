"""Two functions, one within the other, for the meter to tell apart."""

from __future__ import annotations


def inner() -> int:
    """The innermost."""
    return 1


def outer() -> int:
    """What calls it."""
    return inner() + 1
