"""What leaves a site in answer to a task, and nothing else does."""

from __future__ import annotations

from base64 import b64decode, b64encode
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from not_fed.envelope.papers import NOTHING_MORE, AnswerPapers
from not_fed.errors import InputError


class AnswerGone(InputError):
    """The stored answer to this task is gone: its run has ended here."""

    code = "answer-gone"


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """All that leaves the site.

    Attributes:
        sealed, label: this round's organ as ciphertext, or masked words, and the relay's label for it; None where
            nothing of the kind is asked for.
        received: how many organs of others were taken in.
        left_out: digest and error code of each that could not be.
        receipt: how far the ledger had come after a private task, signed; the coordinator keeps it for this site.
        papers: what a secure sum or a vote adds.
    """

    sealed: Path | None = None
    label: bytes | None = None
    received: int = 0
    left_out: tuple[str, ...] = ()
    receipt: bytes | None = None
    papers: AnswerPapers = NOTHING_MORE


def to_stored(answer: Answer, home: Path) -> dict[str, Any]:
    """As JSON, for the day on which the same task comes again."""
    sealed, papers = None if answer.sealed is None else str(answer.sealed.relative_to(home)), answer.papers
    return {
        "sealed": sealed, "label": _text(answer.label), "received": answer.received,
        "left_out": list(answer.left_out), "receipt": _text(answer.receipt), "statement": _text(papers.statement),
        "capsules": {name: b64encode(data).decode("ascii") for name, data in papers.capsules.items()},
    }  # fmt: skip


def from_stored(stored: Mapping[str, Any], home: Path) -> Answer:
    """The answer that was given before; raises AnswerGone."""
    sealed = None if stored["sealed"] is None else home / str(stored["sealed"])
    if sealed is not None and not sealed.is_file():
        raise AnswerGone(
            where="task, field id",
            expected="a task of a run that goes on",
            got="one whose answer was deleted at the run's end",
            hint="start a new run",
        )
    capsules = {name: b64decode(data) for name, data in stored.get("capsules", {}).items()}
    return Answer(
        sealed=sealed, label=_bytes(stored["label"]), received=stored["received"], left_out=tuple(stored["left_out"]),
        receipt=_bytes(stored["receipt"]),
        papers=AnswerPapers(statement=_bytes(stored.get("statement")), capsules=capsules),
    )  # fmt: skip


def _text(line: bytes | None) -> str | None:
    return None if line is None else line.decode("ascii")


def _bytes(line: str | None) -> bytes | None:
    return None if line is None else line.encode("ascii")
