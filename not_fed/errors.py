"""Every error not-fed raises on purpose. Anything else that escapes is a bug.

NotFedError
    UsageError    2  the command line asks for something that cannot be
    InputError    4  a file or a value is not what it should be
    FitError      5  good parts that do not belong together
    TrustError    6  not signed, not current, not from whom it should be
    BudgetError   7  the privacy budget or the site's own policy does not cover it
    PeerError     8  the other side is silent, late or speaks another version

Families live here; each error lives beside the code that raises it. The first line of an error's docstring is what
a person reads; `code` is stable, searchable, and the only part of an error that may leave a site.
"""

from __future__ import annotations

import copyreg
import inspect
from typing import Any, ClassVar

SCHEMA = "not-fed/error/1"


class NotFedError(Exception):
    """Something went wrong that not-fed knows how to explain."""

    code: ClassVar[str] = "not-fed"
    exit_code: ClassVar[int] = 1

    def __init__(self, *, where: str, expected: str, got: str, hint: str) -> None:
        """All four are shown to a person. `got` describes (shapes, lengths, digests) and never quotes private data."""
        super().__init__(f"{where}: expected {expected}, got {got}")
        self.where, self.expected, self.got, self.hint = where, expected, got, hint

    def __reduce__(self) -> tuple[Any, ...]:  # Ray and pytest-xdist pickle errors; keyword-only arguments break that
        return copyreg.__newobj__, (type(self),), self.__dict__  # type: ignore[attr-defined]

    @classmethod
    def title(cls) -> str:
        """One sentence for a person: the first line of the class's docstring."""
        return (inspect.getdoc(cls) or cls.code).partition("\n")[0]

    def as_json(self) -> dict[str, str]:
        """The object that `--json` prints on stderr."""
        return {
            "schema": SCHEMA,
            "code": self.code,
            "where": self.where,
            "expected": self.expected,
            "got": self.got,
            "hint": self.hint,
        }


class UsageError(NotFedError):
    """The command line asks for something that cannot be."""

    code, exit_code = "usage", 2


class InputError(NotFedError):
    """A file or a value is not what it should be."""

    code, exit_code = "bad-input", 4


class FitError(NotFedError):
    """These parts do not belong together."""

    code, exit_code = "does-not-fit", 5


class TrustError(NotFedError):
    """This is not signed, not current, or not from whom it should be."""

    code, exit_code = "not-trusted", 6


class BudgetError(NotFedError):
    """The privacy budget or this site's policy does not cover it."""

    code, exit_code = "not-allowed", 7


class PeerError(NotFedError):
    """The other side is silent, late or speaks another version."""

    code, exit_code = "peer-failed", 8
