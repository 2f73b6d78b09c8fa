"""A site's account of what its records have spent: reserve before the first gradient, count each step, commit after.

One SQLite file in a private folder. What is on disk is never less than what was started: a reservation is durable
before `reserve` returns, a step before `start_step` does, and both survive kill -9 and power loss. Budgets belong to
records and people and not to file names: a data set shares the budgets of every other that holds one of its records (or
of its people), under whatever name and in whatever order. Loads without torch.
"""

from __future__ import annotations

import os
import secrets
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from not_fed.errors import BudgetError, InputError, TrustError
from not_fed.privacy.accounting import WEAKEST_EPSILON, DpPlan, Unit, WeakEpsilon, require_number
from not_fed.privacy.ledger.book import Account, Book, Charge, plan_fields, plan_from, read_account, read_book
from not_fed.privacy.ledger.cap import Cap
from not_fed.privacy.ledger.check import check_counters, check_heads, check_members
from not_fed.privacy.ledger.identity import KEY_FILE, DataIdentity, HashKey, wrong_key
from not_fed.privacy.ledger.reservation import Reservation, ReservationOver
from not_fed.privacy.ledger.rows import SCHEMA, append, newest_head, read_rows
from not_fed.privacy.ledger.scope import DEFAULT_EPSILON, PlainAfterPrivate, Scope, UnitsMixed, scope_of
from not_fed.privacy.ledger.statement import Cost, Entry, Standing, cost_of, history_of, standing_of
from not_fed.store import Store

FILE = "ledger.db"
FOLDER = "NOT_FED_LEDGER"
PURPOSES = ("train", "metric", "audit")


class LedgerMissing(TrustError):
    """A ledger is missing where there should be one."""

    code = "ledger-missing"


class ReservationChanged(BudgetError):
    """A run goes on with the data and the plan that were reserved for it, and no others."""

    code = "reservation-changed"


def ledger_folder() -> Path:
    """Where the command keeps this user's ledger: $NOT_FED_LEDGER, or not-fed/ledger in the user's data folder."""
    if chosen := os.environ.get(FOLDER):
        return Path(chosen)
    data = os.environ.get("XDG_DATA_HOME")
    return (Path(data) if data else Path.home() / ".local" / "share") / "not-fed" / "ledger"


class Ledger:
    """One ledger. Any number of processes may use it at once."""

    def __init__(self, store: Store, key: HashKey) -> None:
        self._store, self._key = store, key

    @classmethod
    def at(cls, folder: Path, *, must_exist: bool = False) -> Ledger:
        """Open the ledger in a folder; make folder (0700), key and ledger (0600) when there is neither.

        Raises:
            LedgerMissing: the key is there and the ledger is not, or neither and it `must_exist`.
            LedgerKeyUnusable: the ledger is there and its key is not, or another.
            LedgerEdited: a row was changed. StoreDamaged: the file cannot be read.
        Proved by: tests/attacks/test_ledger.py::test_a_lost_or_changed_key_closes_the_ledger
        """
        has_key = os.path.lexists(folder / KEY_FILE)
        if (has_key or must_exist) and not os.path.lexists(folder / FILE):
            raise LedgerMissing(
                where="ledger", expected=f"{FILE} beside {KEY_FILE}", got="the key alone" if has_key else "neither",
                hint="restore it from a backup; to begin anew with nothing spent, move the key away, and say so to "
                "whoever relies on your organs",
            )  # fmt: skip
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        store = Store(folder / FILE, schema=SCHEMA)
        with store.transaction() as database:
            rows = read_rows(database)
            if not rows:
                HashKey.create(folder)
            key = HashKey.load(folder)
            if not rows:
                append(database, "ledger", ledger=secrets.token_hex(16), key_mark=key.mark())
            elif rows[0].fields.get("key_mark") != key.mark():
                raise wrong_key()
        return cls(store, key)

    def identify(self, texts: Iterable[str], people: Sequence[str] | None = None) -> DataIdentity:
        """What this ledger knows a data set by; see `HashKey.identify`."""
        return self._key.identify(texts, people)

    def set_budget(
        self, data: DataIdentity, *, name: str, unit: Unit, epsilon: float, delta: float, allow_weak: bool = False,
        may_raise: bool = True,
    ) -> None:  # fmt: skip
        """Set what may be spent on these records, and on every earlier data set that they contain.

        Args:
            name: what to call it; shown, not looked up.
            may_raise: whether it may take the place of a smaller one, or of another unit's, that somebody has set.
        Raises:
            WeakEpsilon: above 10 and not `allow_weak`. BadPlan: epsilon or delta is out of range.
            UnitsMixed: it is accounted for by another unit already.
            DeltaDiffers: something was spent at another delta.
        Guarantees: the filter's order stays as it was if anything was spent. Setting what is set adds no row.
        """
        _check_budget(epsilon=epsilon, delta=delta, allow_weak=allow_weak)
        with self._reading() as (database, book):
            scope = scope_of(database, book, data=data, unit=unit, new_budget=may_raise)
            scope.require_delta(delta, of="budget")
            if not may_raise and any(one.explicit and one.cap.epsilon <= epsilon for one in scope.sharing):
                return
            own = scope.own or self._open_account(database, scope, name=name, cap=Cap.new(epsilon=epsilon, delta=delta))
            for account in {own.seq: own, **{one.seq: one for one in scope.contained}}.values():
                order = account.cap.order if scope.charges else Cap.new(epsilon=epsilon, delta=delta).order
                wanted = Cap(epsilon=float(epsilon), delta=float(delta), order=order)
                if account.explicit and (account.unit, account.cap) == (unit, wanted):
                    continue
                called = name if account is own else account.name
                _write_budget(database, account, name=called, unit=unit, cap=wanted, explicit=True)

    def reserve(
        self, data: DataIdentity, *, name: str, plan: DpPlan, run: str, purpose: str = "train",
        cap: float | None = None,
    ) -> Reservation:  # fmt: skip
        """Charge a whole plan, durably, before anything of it is computed; or refuse.

        Args:
            run: of this run alone. A run that was reserved and not committed goes on with what it has.
            purpose: train, metric or audit.
            cap: another limit on epsilon, such as a site's policy; the lower one counts.
        Raises:
            BudgetSpent: it does not fit; says what would. UnitsMixed, DeltaDiffers: see `set_budget`.
            ReservationOver: this run was committed. ReservationChanged: it was reserved with another plan or data.
        Guarantees: two processes cannot spend the same budget; nothing is charged when it raises.
        Proved by: tests/unit/test_ledger_processes.py::test_processes_at_once_never_overspend
        """
        if purpose not in PURPOSES:
            raise InputError(
                where="ledger, field purpose", expected=" or ".join(PURPOSES), got="another word",
                hint="nothing was reserved",
            )  # fmt: skip
        stored = plan_from(plan_fields(plan))  # what is charged is what the row says
        with self._reading() as (database, book):
            known = _known(book, data=data, plan=stored, run=run, purpose=purpose)
            if known is not None:
                return Reservation(self._store, known, limit=cap)
            check_members(database, book)
            scope = scope_of(database, book, data=data, unit=plan.unit)
            scope.require_delta(plan.delta, of="plan")
            caps = scope.caps(limit=cap, delta=plan.delta)
            if scope.allows(stored, caps=caps):
                charge = self._charge(database, scope, name=name, plan=stored, run=run, purpose=purpose)
                return Reservation(self._store, charge, limit=cap)
        raise scope.refusal(stored, caps=caps, name=name)  # outside the transaction: what would fit takes a while

    @property
    def head(self) -> str:
        """Hex SHA-256 of the newest row."""
        with self._store.transaction() as database:
            return newest_head(database)

    def standing(
        self, data: DataIdentity, *, unit: Unit, limit: float | None = None, new_budget: bool = False
    ) -> Standing:
        """Where these records stand with their budget. Changes nothing.

        Args:
            limit: as `cap` in `reserve`.
            new_budget: look with the eyes of `set_budget`, which may change the unit while nothing was spent.
        Raises:
            UnitsMixed: they are accounted for by another unit.
        """
        with self._reading() as (database, book):
            scope = scope_of(database, book, data=data, unit=unit, new_budget=new_budget)
        return standing_of(scope, limit=limit)

    def require_no_account(self, data: DataIdentity) -> None:
        """Refuse a run without privacy on records that have a budget, or that a private run was made of.

        Raises:
            PlainAfterPrivate: some of them have, under whatever unit of privacy.
        Proved by: tests/unit/test_ledger.py::test_records_with_an_account_are_not_trained_on_without_privacy
        """
        try:
            standing = self.standing(data, unit="record")
            known = standing.runs > 0 or standing.explicit
        except UnitsMixed:
            known = True
        if known:
            raise PlainAfterPrivate(
                where="ledger", expected="a private run: these records have a privacy budget, or some of them",
                got="a run without privacy, which no budget covers",
                hint="nothing was trained; ask for an epsilon, or use records that have no account",
            )  # fmt: skip

    def unit_of(self, data: DataIdentity) -> Unit | None:
        """The unit by which exactly these records are accounted for, if they are."""
        with self._reading() as (_, book):
            return next((one.unit for one in book.accounts.values() if one.data == data.fingerprint), None)

    def standings(self) -> list[Standing]:
        """Where every account stands, oldest first."""
        with self._reading() as (database, book):
            scopes = [
                scope_of(database, book, data=account, unit=account.unit, new_budget=True)
                for account in book.accounts.values()
            ]
        return [standing_of(scope) for scope in scopes]

    def would_cost(self, data: DataIdentity, *, plan: DpPlan, cap: float | None = None) -> Cost:
        """What `reserve` would charge, and whether it would; for dry runs.

        Raises:
            UnitsMixed, DeltaDiffers: as `reserve`.
        Guarantees: nothing is reserved, and no account is opened.
        Proved by: tests/unit/test_ledger.py::test_a_dry_run_says_what_reserving_would_do_and_does_nothing
        """
        stored = plan_from(plan_fields(plan))
        with self._reading() as (database, book):
            scope = scope_of(database, book, data=data, unit=plan.unit)
            scope.require_delta(plan.delta, of="plan")
        return cost_of(scope, stored, limit=cap)

    def history(self, data: DataIdentity | None = None, *, unit: Unit = "record") -> list[Entry]:
        """Every reservation that counts for these records, or of the whole ledger, oldest first.

        Over the whole ledger each line is composed with those before it on the same account only.
        """
        with self._reading() as (database, book):
            if data is not None:
                return history_of(scope_of(database, book, data=data, unit=unit).charges)
            charges = list(book.charges.values())
        entries = [
            entry
            for account in book.accounts
            for entry in history_of([charge for charge in charges if charge.account == account])
        ]
        return sorted(entries, key=lambda entry: entry.charge.seq)

    def verify(self, heads: Iterable[str] = ()) -> int:
        """Check everything that can be checked, and that the ledger is not older than what was made under it.

        Args:
            heads: of manifests and passports of this site's own organs.
        Returns:
            how many rows there are.
        Raises:
            LedgerEdited: rows, members or counters are not what was written. LedgerRolledBack: a head is unknown.
        Proved by: tests/attacks/test_ledger.py::test_an_edited_row_is_noticed
        """
        with self._store.transaction() as database:
            rows = read_rows(database)
            book = read_book(rows)
            check_members(database, book)
            check_counters(database, book)
        check_heads(rows, heads)
        return len(rows)

    def require_heads(self, heads: Iterable[str]) -> None:
        """Refuse to go on with a ledger that is older than what was made under it.

        Args:
            heads: of manifests and passports of this site's own organs.
        Raises:
            LedgerRolledBack: one of them is not in the chain. LedgerEdited: the chain is not whole.
        Proved by: tests/attacks/test_ledger.py::test_a_restored_backup_is_noticed_by_the_organs_made_since
        """
        with self._store.transaction() as database:
            rows = read_rows(database)
        check_heads(rows, heads)

    @contextmanager
    def _reading(self) -> Iterator[tuple[sqlite3.Connection, Book]]:
        with self._store.transaction() as database:
            yield database, read_book(read_rows(database))

    def _open_account(self, database: sqlite3.Connection, scope: Scope, *, name: str, cap: Cap) -> Account:
        row = append(
            database, "account", data=scope.data.fingerprint, name=name, unit=scope.unit, explicit=False,
            epsilon=repr(cap.epsilon), delta=repr(cap.delta), order=scope.order or cap.order,
        )  # fmt: skip
        account = read_account(row)
        database.executemany(
            "INSERT INTO members VALUES (?, ?)", ((member, account.seq) for member in scope.data.members)
        )
        return account

    def _charge(
        self, database: sqlite3.Connection, scope: Scope, *, name: str, plan: DpPlan, run: str, purpose: str
    ) -> Charge:
        default = scope.tightest or Cap.new(epsilon=DEFAULT_EPSILON, delta=plan.delta)
        account = scope.own or self._open_account(database, scope, name=name, cap=default)
        if scope.own is not None and scope.own not in scope.sharing:  # all that it was opened for was given back
            _write_budget(database, account, name=name, unit=plan.unit, cap=default, explicit=False)
        row = append(
            database, "reserve", account=account.seq, run=run, name=name, purpose=purpose, plan=plan_fields(plan)
        )
        charge = Charge(
            seq=row.seq, head=row.hash, account=account.seq, run=run, name=name, purpose=purpose,
            time=row.fields["time"], plan=plan,
        )  # fmt: skip
        database.executemany(
            "INSERT INTO counters VALUES (?, ?, 0, 0)", ((charge.seq, what) for what in charge.counted())
        )
        return charge


def _known(book: Book, *, data: DataIdentity, plan: DpPlan, run: str, purpose: str) -> Charge | None:
    """The reservation that this run already has."""
    mine = [
        one for one in book.charges.values() if (one.run, one.purpose) == (run, purpose) and one.state != "released"
    ]
    if not mine:
        return None
    if mine[-1].plan != plan or book.accounts[mine[-1].account].data != data.fingerprint:
        changed = "another plan" if mine[-1].plan != plan else "other records"
        raise ReservationChanged(
            where="ledger, field run", expected="the plan and the records that this run has reserved", got=changed,
            hint="start a new run for them; nothing was spent",
        )  # fmt: skip
    if mine[-1].state == "committed":
        raise ReservationOver(
            where="ledger, field run", expected="a run that goes on", got="one that was committed",
            hint="nothing was spent; start a new run",
        )  # fmt: skip
    return mine[-1]


def _write_budget(
    database: sqlite3.Connection, account: Account, *, name: str, unit: Unit, cap: Cap, explicit: bool
) -> None:
    append(
        database, "budget", account=account.seq, explicit=explicit, name=name, unit=unit, epsilon=repr(cap.epsilon),
        delta=repr(cap.delta), order=cap.order,
    )  # fmt: skip


def _check_budget(*, epsilon: float, delta: float, allow_weak: bool) -> None:
    require_number("epsilon", epsilon, least=1e-3, most=1e3)
    require_number("delta", delta, least=1e-12, most=1e-2)
    if epsilon > WEAKEST_EPSILON and not allow_weak:
        raise WeakEpsilon(
            where="budget, field epsilon", expected=f"at most {WEAKEST_EPSILON:g}", got=f"{epsilon:g}",
            hint="it protects next to nothing; --weak if that is meant, and nothing was set",
        )  # fmt: skip
