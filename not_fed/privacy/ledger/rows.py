"""The ledger's file: an append-only chain of rows, each naming the SHA-256 of the one before, and what is counted.

Each row is canonical JSON; the newest row's hash, the head, stands for all of them and travels in organs and passports.
What a step costs one write for (how many were started) is counted beside the chain and stands in the chain when a
reservation is closed.
"""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from not_fed import canonical
from not_fed.errors import NotFedError, TrustError

VERSION = 1
NO_HEAD = "0" * 64
STEPS = "(steps)"  # what is counted: this, or the name of a release

SCHEMA = """
CREATE TABLE IF NOT EXISTS chain (seq INTEGER PRIMARY KEY, body TEXT NOT NULL, hash TEXT NOT NULL UNIQUE) STRICT;
CREATE TABLE IF NOT EXISTS members (member BLOB NOT NULL, account INTEGER NOT NULL, PRIMARY KEY (member, account))
    STRICT, WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS members_of ON members (account);
CREATE TABLE IF NOT EXISTS counters (reservation INTEGER NOT NULL REFERENCES chain (seq), what TEXT NOT NULL,
    started INTEGER NOT NULL, closed INTEGER NOT NULL, PRIMARY KEY (reservation, what)) STRICT, WITHOUT ROWID;
"""


class LedgerEdited(TrustError):
    """The ledger is not the one that was written: a row was changed, removed or slipped in."""

    code = "ledger-edited"


@dataclass(frozen=True, slots=True)
class Row:
    """One row, its place and its hash."""

    seq: int
    hash: str
    fields: Mapping[str, Any]

    @property
    def kind(self) -> str:
        """ledger, account, budget, reserve, extend, commit or release."""
        return str(self.fields["kind"])


def append(database: sqlite3.Connection, kind: str, **fields: Any) -> Row:  # noqa: ANN401  what JSON has
    """Add a row behind the newest one, inside the caller's transaction."""
    newest = database.execute("SELECT seq, hash FROM chain ORDER BY seq DESC LIMIT 1").fetchone()
    seq, previous = (0, NO_HEAD) if newest is None else (newest["seq"] + 1, newest["hash"])
    full = {
        "v": VERSION, "seq": seq, "prev": previous, "time": canonical.format_time(datetime.now(UTC)), "kind": kind,
        **fields,
    }  # fmt: skip
    body = canonical.dumps(full)
    digest = hashlib.sha256(body).hexdigest()
    database.execute("INSERT INTO chain VALUES (?, ?, ?)", (seq, body.decode(), digest))
    return Row(seq, digest, full)


def newest_head(database: sqlite3.Connection) -> str:
    """The newest row's hash."""
    row = database.execute("SELECT hash FROM chain ORDER BY seq DESC LIMIT 1").fetchone()
    return NO_HEAD if row is None else str(row["hash"])


def read_rows(database: sqlite3.Connection) -> list[Row]:
    """Every row, in order, the chain checked.

    Raises:
        LedgerEdited: a row does not follow from the one before, or is not what its hash says.
    """
    return list(_checked(database))


def _checked(database: sqlite3.Connection) -> Iterator[Row]:
    previous = NO_HEAD
    for place, (seq, body, digest) in enumerate(database.execute("SELECT seq, body, hash FROM chain ORDER BY seq")):
        where = f"ledger, row {seq}"
        try:
            fields = canonical.loads(body.encode(), where=where)
            follows = (seq, fields["seq"], fields["prev"], fields["v"]) == (place, place, previous, VERSION)
            same = hashlib.sha256(body.encode()).hexdigest() == digest and isinstance(fields["kind"], str)
        except (NotFedError, KeyError, TypeError, ValueError):
            follows = same = False
        if not (follows and same):
            raise edited(where, "the row that was written here, behind the one before", "another")
        previous = digest
        yield Row(seq, digest, fields)


def edited(where: str, expected: str, got: str) -> LedgerEdited:
    """The error, with the one hint that helps."""
    return LedgerEdited(
        where=where, expected=expected, got=got,
        hint="nothing was spent; restore a backup no older than the newest organ, and ask who can write here",
    )  # fmt: skip
