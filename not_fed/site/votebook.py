"""What a site remembers of its votes: one judgement a round, one signed vote a proposal, whatever happens in between.

The noise of a charged comparison is on the disk before the first loss is computed and gone once the judgement is there.
Whoever kills the site in between, as often as they like, gets the same bit in the end, and it is paid for once.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from not_fed.envelope.vote import Reason
from not_fed.errors import BudgetError
from not_fed.store import Store

VOTES_FILE = "votes.db"

_SCHEMA = """
CREATE TABLE IF NOT EXISTS judged (run TEXT NOT NULL, round INTEGER NOT NULL, candidate TEXT NOT NULL,
    start TEXT NOT NULL, comparison TEXT, reason TEXT, notes TEXT, PRIMARY KEY (run, round)) STRICT;
CREATE TABLE IF NOT EXISTS cast_votes (run TEXT NOT NULL, round INTEGER NOT NULL, proposal TEXT NOT NULL,
    line BLOB NOT NULL, PRIMARY KEY (run, round, proposal)) STRICT;
"""


class VoteTaken(BudgetError):
    """This site has judged another organ in this round, or from another start: a second bit would not be paid for."""

    code = "vote-taken"


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What is judged: one organ against another, in one round of one run; `start` is empty for the base's own span."""

    run: str
    round: int
    candidate: str
    start: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Begun:
    """A judgement that has begun.

    Attributes:
        comparison: all that its answer depends on besides the records, the noise among it; None once it has ended.
        is_new: whether nobody had begun it before.
        reason, notes: once it has ended.
    """

    comparison: Mapping[str, Any] | None
    is_new: bool
    reason: Reason | None
    notes: Mapping[str, Any]


class VoteBook:
    """The votes of one home."""

    def __init__(self, home: Path) -> None:
        self._store = Store(home / VOTES_FILE, schema=_SCHEMA)

    def known(self, question: Question) -> Begun | None:
        """What is known of a judgement.

        Raises:
            VoteTaken: another organ was judged in this round, or against another start.
        Proved by: tests/attacks/test_votes.py::test_a_second_candidate_in_one_round_is_not_judged
        """
        with self._store.transaction() as database:
            return _known(database, question)

    def begin(self, question: Question, *, comparison: Callable[[], Mapping[str, Any]]) -> Begun:
        """Note, durably, that a judgement begins, with what it will be made by; or what is known of it, as `known`."""
        with self._store.transaction() as database:
            known = _known(database, question)
            if known is not None:
                return known
            made = dict(comparison())
            database.execute(
                "INSERT INTO judged (run, round, candidate, start, comparison) VALUES (?, ?, ?, ?, ?)",
                (question.run, question.round, question.candidate, question.start, json.dumps(made)),
            )
        return Begun(comparison=made, is_new=True, reason=None, notes={})

    def end(self, question: Question, *, reason: Reason, notes: Mapping[str, object]) -> None:
        """Keep the judgement, and forget the noise that it was made with."""
        with self._store.transaction() as database:
            database.execute(
                "UPDATE judged SET comparison = NULL, reason = ?, notes = ? WHERE run = ? AND round = ?",
                (reason, json.dumps(dict(notes)), question.run, question.round),
            )

    def cast(self, *, run: str, round_number: int, proposal: str, sign: Callable[[], bytes]) -> bytes:
        """The signed vote on a proposal: the one that was cast before, or what `sign` gives, kept before it leaves.

        Proved by: tests/unit/test_vote.py::test_the_same_proposal_gets_the_same_signed_vote_again
        """
        key = (run, round_number, proposal)
        with self._store.transaction() as database:
            row = database.execute(
                "SELECT line FROM cast_votes WHERE run = ? AND round = ? AND proposal = ?", key
            ).fetchone()
            if row is not None:
                return bytes(row["line"])
            line = sign()
            database.execute("INSERT INTO cast_votes VALUES (?, ?, ?, ?)", (*key, line))
        return line

    def cast_in(self, run: str) -> dict[int, bytes]:
        """Round -> the signed vote that this site cast in it; the newest, where it was asked twice."""
        with self._store.transaction() as database:
            rows = database.execute(
                "SELECT round, line FROM cast_votes WHERE run = ? ORDER BY rowid", (run,)
            ).fetchall()
        return {row["round"]: bytes(row["line"]) for row in rows}


def _known(database: sqlite3.Connection, question: Question) -> Begun | None:
    row = database.execute(
        "SELECT * FROM judged WHERE run = ? AND round = ?", (question.run, question.round)
    ).fetchone()
    if row is None:
        return None
    if (row["candidate"], row["start"]) != (question.candidate, question.start):
        raise VoteTaken(
            where=f"run {question.run}, round {question.round}",
            expected=f"organ {row['candidate'][:12]} against {row['start'][:12] or 'the base'}, as judged before",
            got=f"{question.candidate[:12]} against {question.start[:12] or 'the base'}",
            hint="nothing was looked at; a round that is repeated needs a number of its own",
        )
    return Begun(
        comparison=None if row["comparison"] is None else json.loads(row["comparison"]),
        is_new=False,
        reason=row["reason"],
        notes=json.loads(row["notes"] or "{}"),
    )
