"""A run's reservation: what it may start, counted before each start."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace

from not_fed.errors import BudgetError
from not_fed.privacy.accounting import DpPlan, repeats_of
from not_fed.privacy.ledger.book import Charge, read_book
from not_fed.privacy.ledger.rows import STEPS, append, newest_head, read_rows
from not_fed.privacy.ledger.scope import BudgetSpent, scope_of
from not_fed.privacy.mechanisms import Mechanisms, merged
from not_fed.store import Store


class ReservationOver(BudgetError):
    """This run is accounted for and over."""

    code = "reservation-over"


class StepsStarted(BudgetError):
    """What has begun is spent; only a reservation of which nothing was started can be given back."""

    code = "reservation-started"


class Reservation:
    """What a run has reserved. Made by `Ledger.reserve`."""

    def __init__(self, store: Store, charge: Charge, *, limit: float | None) -> None:
        self._store, self._charge, self._limit = store, charge, limit

    @property
    def plan(self) -> DpPlan:
        """As it was reserved: the noise and the rate of the ledger's row."""
        return self._charge.plan

    @property
    def started_steps(self) -> int:
        """How many steps were started so far, by this process or by one that was killed; none once it is committed."""
        with self._store.transaction() as database:
            row = database.execute(
                "SELECT started FROM counters WHERE reservation = ? AND what = ? AND closed = 0",
                (self._charge.seq, STEPS),
            ).fetchone()
        return 0 if row is None else int(row["started"])

    @property
    def repeated_steps(self) -> int:
        """How many steps beyond the plan were started or must be, since crashes took others away. All are charged."""
        return self._repeats().get(STEPS, 0)

    @property
    def repeated_releases(self) -> dict[str, int]:
        """The same for the numbers that leave, by name."""
        return {name: count for name, count in self._repeats().items() if name != STEPS}

    @property
    def head(self) -> str:
        """Hex SHA-256 of the ledger's newest row: for the manifest and the passport."""
        with self._store.transaction() as database:
            return newest_head(database)

    def session(self) -> AbstractContextManager[None]:
        """Keep the ledger's file open for the block: a step then costs one write to disk and no more."""
        return self._store.session()

    def start_step(self, *, remaining: int) -> None:
        """Count one step, durably, before anything of it is computed.

        Args:
            remaining: planned steps of all runs that are still to be started after this one. With it a run that had
                to repeat steps is refused now, if it will be refused at all, and not after hours.
        Raises:
            BudgetSpent: more steps were started than reserved, and the budget does not cover them. ReservationOver.
        Proved by: tests/unit/test_ledger_kills.py::test_a_kill_at_any_moment_never_loses_a_started_step
        """
        self._start(STEPS, remaining)

    def start_release(self, name: str, *, remaining: int = 0) -> None:
        """Count one noised number of the plan, durably, before it is computed.

        Args:
            remaining: how many runs of the plan are still to come.
        Raises:
            BadPlan: the plan has no such release. BudgetSpent, ReservationOver: as `start_step`.
        Proved by: tests/unit/test_ledger.py::test_a_release_made_again_is_charged_again
        """
        repeats_of(self._charge.plan, steps=0, releases={name: 0})  # refuses a name that is not the plan's
        self._start(name, remaining)

    def commit(self) -> None:
        """Close the run's account: nothing of it can be started any more. Once is enough; twice does no harm."""
        with self._store.transaction() as database:
            if self._charge.state == "committed":
                return
            started = self._close(database)
            append(database, "commit", reservation=self._charge.seq, started=started)
        self._charge.state = "committed"

    def release(self) -> None:
        """Give all of it back.

        Raises:
            StepsStarted: a step or a release was started.
        """
        with self._store.transaction() as database:
            started = self._close(database)
            if any(started.values()):
                raise StepsStarted(
                    where="ledger, reservation", expected="a run of which nothing was started", got="one that began",
                    hint="it stays charged; go on with it, or leave it",
                )  # fmt: skip
            append(database, "release", reservation=self._charge.seq)
        self._charge.state = "released"

    def _repeats(self) -> dict[str, int]:
        """As the ledger has them: another process may have gone on with the same run."""
        with self._store.transaction() as database:
            return read_book(read_rows(database)).charges[self._charge.seq].repeats

    def _start(self, what: str, remaining: int) -> None:
        with self._store.transaction() as database:
            row = database.execute(
                "SELECT started FROM counters WHERE reservation = ? AND what = ? AND closed = 0",
                (self._charge.seq, what),
            ).fetchone()
            if row is None:
                raise _over()
            needed = row["started"] + 1 + max(0, remaining)
            refused = None if needed <= self._charge.charged(what) else self._extend(database, what, needed)
            if refused is None:
                database.execute(
                    "UPDATE counters SET started = started + 1 WHERE reservation = ? AND what = ?",
                    (self._charge.seq, what),
                )
        if refused is not None:  # said outside the transaction: it takes a while
            raise refused()

    def _extend(self, database: sqlite3.Connection, what: str, needed: int) -> Callable[[], BudgetSpent] | None:
        """Charge what is missing; what says why not, if the budget does not cover it."""
        book = read_book(read_rows(database))
        charge = book.charges[self._charge.seq]  # another process may have extended the same run
        missing = needed - charge.charged(what)
        if missing > 0:
            more = merged(charge.repeated, _once_more(charge, what, missing))
            whole = scope_of(database, book, data=book.accounts[charge.account], unit=charge.plan.unit)
            scope = replace(whole, charges=tuple(one for one in whole.charges if one.seq != charge.seq))
            caps = scope.caps(limit=self._limit, delta=charge.plan.delta)
            if not scope.allows(charge.plan, repeats=more, caps=caps):
                return lambda: scope.refusal(charge.plan, repeats=more, caps=caps, name=charge.name)
            append(database, "extend", reservation=charge.seq, what=what, count=missing)
            charge.repeats[what] = charge.repeats.get(what, 0) + missing
        self._charge = charge
        return None

    def _close(self, database: sqlite3.Connection) -> dict[str, int]:
        """Close the counters; what was started."""
        rows = database.execute(
            "UPDATE counters SET closed = 1 WHERE reservation = ? AND closed = 0 RETURNING what, started",
            (self._charge.seq,),
        ).fetchall()
        if not rows:
            raise _over()
        return {row["what"]: row["started"] for row in rows}


def _once_more(charge: Charge, what: str, count: int) -> Mechanisms:
    steps, releases = (count, {}) if what == STEPS else (0, {what: count})
    return repeats_of(charge.plan, steps=steps, releases=releases)


def _over() -> ReservationOver:
    return ReservationOver(
        where="ledger, field run", expected="a run that goes on", got="one that was committed or given back",
        hint="nothing more was started; a new run needs a new reservation",
    )  # fmt: skip
