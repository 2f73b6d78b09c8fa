"""What a fuzz target is, and the parties whose keys the inputs are signed with."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any

from not_fed.errors import NotFedError
from not_fed.keys.signing import FileSigner
from tests.fuzz.mutations import Mutate, as_bytes
from tests.support import second_json, second_reader
from tests.support.logs import Keeper, leaves
from tests.support.second_json import Refused
from tests.support.second_writer import Party
from tests.support.trust import NOW as SUPPORT_NOW
from tests.support.trust import Federation
from tests.support.vectors import SEALED, Vector

NOW = datetime.fromisoformat("2026-11-25T08:00:00+00:00")
ROSTER_NOW = SUPPORT_NOW + timedelta(hours=1)
ALPHABET = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
MAX_INPUT = 200_000
KINDS = {
    "waybill": (second_reader.WAYBILL, second_json.IS_WAYBILL),
    "label": (second_reader.LABEL, second_json.IS_LABEL),
    "passport": (second_reader.PASSPORT, second_json.IS_STATEMENT),
}


@dataclass(frozen=True, kw_only=True)
class Target:
    """One parser.

    Attributes:
        seeds: honest inputs, and the frozen dishonest ones.
        wrap: from a mutated input to what the parser sees, such as a signature over it.
        run: parse; raises NotFedError for a refusal, AssertionError for a broken promise.
        cost: how many times fewer examples it is given.
    """

    name: str
    seeds: Callable[[], Sequence[bytes]]
    run: Callable[[bytes], None]
    wrap: Callable[[bytes], bytes] = lambda data: data
    mutate: Mutate = as_bytes
    cost: int = 1

    def __call__(self, data: bytes) -> bool:
        """Whether it was accepted."""
        try:
            self.run(self.wrap(data[:MAX_INPUT]))
        except NotFedError:
            return False
        return True


def signer(word: str = "clinic") -> FileSigner:
    ed25519, ml_dsa_65 = Party(word).signing
    return FileSigner(word, ed25519=ed25519, ml_dsa_65=ml_dsa_65)


@cache
def plain() -> Vector:
    return Vector.load(SEALED / "opened-one-recipient.json")


@cache
def scratch() -> Path:
    """A folder that is gone when the process is."""
    folder = tempfile.TemporaryDirectory(prefix="not-fed-fuzz-")
    _KEPT.append(folder)
    return Path(folder.name)


_KEPT: list[tempfile.TemporaryDirectory[str]] = []


@cache
def federation() -> Federation:
    return Federation.make(scratch() / "roster")


@cache
def keeper() -> Keeper:
    made = Keeper(scratch() / "log")
    made.add(*leaves(0, 7))
    return made


def both(first: Callable[[], object], second: Callable[[], object]) -> Any:  # noqa: ANN401
    """Run both; they must accept or refuse together. Returns what the first made, or raises its refusal."""
    refused: NotFedError | None = None
    made: object = None
    try:
        made = first()
    except NotFedError as error:
        refused = error
    try:
        other: object = second()
    except Refused as error:
        assert refused is not None, f"the second reader refuses: {error.code}"
        raise refused from None
    assert refused is None, f"the second reader accepts what we refuse: {refused.as_json()}"
    return made, other
