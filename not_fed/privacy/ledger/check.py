"""Everything about a ledger that can be checked from itself: the chain, the sense of its rows, members and counters."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable

from not_fed.errors import TrustError
from not_fed.privacy.ledger.book import Book
from not_fed.privacy.ledger.identity import fingerprint_of
from not_fed.privacy.ledger.rows import Row, edited


class LedgerRolledBack(TrustError):
    """This ledger does not know a row that an organ was made under: it is an old copy, or another ledger."""

    code = "ledger-rollback"


def check_members(database: sqlite3.Connection, book: Book) -> None:
    """Every account still has exactly the records that it was opened with.

    Raises:
        LedgerEdited: one was added, removed or given to another account.
    """
    for account in book.accounts.values():
        members = database.execute("SELECT member FROM members WHERE account = ? ORDER BY member", (account.seq,))
        if fingerprint_of(member for (member,) in members) != account.data:
            raise edited(f"ledger, account of row {account.seq}", "the records that it was opened with", "others")
    strangers = database.execute("SELECT DISTINCT account FROM members").fetchall()
    if {row["account"] for row in strangers} - set(book.accounts):
        raise edited("ledger, members", "an account for every record", "none for some")


def check_counters(database: sqlite3.Connection, book: Book) -> None:
    """What is counted belongs to reservations, and none has started more than was charged.

    Raises:
        LedgerEdited: otherwise.
    """
    found = {
        (row["reservation"], row["what"]): (row["started"], row["closed"])
        for row in database.execute("SELECT reservation, what, started, closed FROM counters")
    }
    expected = {(charge.seq, what): charge for charge in book.charges.values() for what in charge.counted()}
    for key in found.keys() | expected.keys():
        charge, counter = expected.get(key), found.get(key)
        if charge is None or counter is None or not 0 <= counter[0] <= charge.charged(key[1]):
            raise edited(f"ledger, counter of row {key[0]}", "at most as many starts as were charged", "another count")
        if bool(counter[1]) != (charge.state != "reserved"):
            raise edited(f"ledger, counter of row {key[0]}", "open until the run is committed", "otherwise")


def check_heads(rows: Iterable[Row], heads: Iterable[str]) -> None:
    """Every head that an organ was made under is a row of this chain.

    Raises:
        LedgerRolledBack: otherwise.
    """
    known = {row.hash for row in rows}
    unknown = sorted(set(heads) - known)
    if unknown:
        raise LedgerRolledBack(
            where="ledger", expected=f"the row {unknown[0][:16]}..., which an organ was made under",
            got=f"{len(known)} rows, and not that one",
            hint="nothing was spent; find the newer ledger, or set the budget as if all of it were spent",
        )  # fmt: skip
