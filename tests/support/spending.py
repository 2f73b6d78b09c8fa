"""What a ledger says was spent and started, read by a test; and charges that stop a run where a test wants it."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from not_fed.organ.charging import Charge, Reserved
from not_fed.organ.data import Records
from not_fed.privacy.accounting import DpPlan
from not_fed.privacy.ledger import book as ledger_book
from not_fed.privacy.ledger.ledger import FILE
from not_fed.privacy.ledger.rows import STEPS, read_rows


def charges(folder: Path) -> list[ledger_book.Charge]:
    """All that was ever charged, oldest first."""
    with closing(_open(folder)) as database:
        return list(ledger_book.read_book(read_rows(database)).charges.values())


def started(folder: Path, what: str = STEPS) -> int:
    """How many steps (or releases of that name) were ever started."""
    with closing(_open(folder)) as database:
        return int(database.execute("SELECT sum(started) FROM counters WHERE what = ?", (what,)).fetchone()[0] or 0)


def charged(folder: Path, what: str = STEPS) -> int:
    """How many are paid for."""
    return sum(charge.charged(what) for charge in charges(folder))


def _open(folder: Path) -> sqlite3.Connection:
    database = sqlite3.connect(folder / FILE)
    database.row_factory = sqlite3.Row
    return database


class Killed(BaseException):
    """The process is gone: nothing in it may clean up."""


@dataclass
class Watched:
    """A charge that notes what happens, in order, and calls `at` with each word of it.

    Words: `reserve`, `reserved`, `step N`, `release NAME`, `commit`.
    """

    charge: Charge
    at: Callable[[str], None] = lambda _: None
    seen: list[str] = field(default_factory=list)

    def note(self, word: str) -> None:
        self.seen.append(word)
        self.at(word)

    def reserve(self, records: Records, *, plan: DpPlan, run: str) -> Reserved:
        self.note("reserve")
        held = self.charge.reserve(records, plan=plan, run=run)
        self.note("reserved")
        return _Watched(held, self)


@dataclass
class _Watched:
    held: Reserved
    watch: Watched
    steps: int = 0

    @property
    def head(self) -> str | None:
        return self.held.head

    @property
    def repeated_steps(self) -> int:
        return self.held.repeated_steps

    @property
    def repeated_releases(self) -> Mapping[str, int]:
        return self.held.repeated_releases

    def start_step(self, *, remaining: int) -> None:
        self.held.start_step(remaining=remaining)
        self.steps += 1
        self.watch.note(f"step {self.steps}")

    def start_release(self, name: str) -> None:
        self.held.start_release(name)
        self.watch.note(f"release {name}")

    def commit(self) -> None:
        self.watch.note("commit")
        self.held.commit()


def killed_at(word: str) -> Callable[[str], None]:
    """For `Watched`: the process ends right after that word."""

    def at(seen: str) -> None:
        if seen == word:
            raise Killed

    return at
