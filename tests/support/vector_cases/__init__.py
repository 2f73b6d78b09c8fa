"""The cases of the frozen vectors: one fault each, for every rule of docs/format.md.

`sealed` are whole files through the whole order of checks; `signed` are lines and payloads, `organs` are organ files,
which the tests seal on the spot and then open, so that they pass the whole order of checks too.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain

from tests.support.vector_cases import container, frame, labels, opened, organs, passports, signed, waybills
from tests.support.vector_cases.base import MAIN, SealedCase

__all__ = ["PARTIES", "organs", "sealed", "signed"]

PARTIES = (*MAIN, "mallory", "clinic-before", "hub-before", "site-33")


def sealed() -> Iterator[SealedCase]:
    """Whole files."""
    groups = (opened, container, frame, waybills, passports, labels)
    return chain.from_iterable(group.cases() for group in groups)
