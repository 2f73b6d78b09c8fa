"""A value that must not end up in a log."""

from __future__ import annotations

from typing import NoReturn


class Secret:
    """Bytes that cannot be printed, logged, pickled or copied. Not a dataclass: asdict() would open it."""

    __slots__ = ("_value",)

    def __init__(self, value: bytes) -> None:
        self._value = value

    def __repr__(self) -> str:
        return "Secret(hidden)"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a Secret stays in this process; keys are written by create_keys alone")

    def reveal(self) -> bytes:
        """The bytes; a name that is easy to search for in review."""
        return self._value
