"""Which accounts speak for a data set: its own, and every other that holds one of its records or people.

A record may lie in several data sets. All of them share it with the data set at hand, so charging the sum of all of
them charges each record with everything that it was ever part of.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from dataclasses import dataclass, replace

from not_fed.errors import BudgetError
from not_fed.privacy.accounting import WEAKEST_EPSILON, DpPlan, Epsilon, Unit
from not_fed.privacy.ledger.book import Account, Book, Charge, mechanisms_of_charges
from not_fed.privacy.ledger.cap import Cap, what_fits
from not_fed.privacy.ledger.identity import RECORD, DataIdentity
from not_fed.privacy.mechanisms import Mechanisms, pld_epsilon
from not_fed.privacy.renyi import epsilon_from, renyi_divergence

RELATIONS: dict[Unit, str] = {
    "record": "one record added or removed", "person": "one person with all their records added or removed",
}  # fmt: skip


DEFAULT_EPSILON = WEAKEST_EPSILON


class BudgetSpent(BudgetError):
    """This run would spend more than these records may."""

    code = "budget-spent"


class UnitsMixed(BudgetError):
    """These records, or some of them, are accounted for by another unit of privacy."""

    code = "budget-unit"


class PlainAfterPrivate(BudgetError):
    """A run without privacy, on records that were promised some."""

    code = "budget-plain"


class DeltaDiffers(BudgetError):
    """An account has one delta."""

    code = "budget-delta"


@dataclass(frozen=True, slots=True)
class Scope:
    """A data set among the accounts.

    Attributes:
        own: the account of exactly these records, if there is one.
        sharing: all accounts that share something with it and whose budget counts, the own one too; oldest first.
        contained: those all of whose records are in the data set, such as an earlier state of it.
        charges: everything that was charged to them, oldest first.
    """

    data: DataIdentity
    unit: Unit
    own: Account | None
    sharing: tuple[Account, ...]
    contained: tuple[Account, ...]
    charges: tuple[Charge, ...]

    @property
    def order(self) -> int | None:
        """Of the filter, once something was spent."""
        charged = {charge.account for charge in self.charges}
        return next((account.cap.order for account in self.sharing if account.seq in charged), None)

    @property
    def others(self) -> Mechanisms:
        """The composition of everything that was charged."""
        return mechanisms_of_charges(self.charges)

    @property
    def tightest(self) -> Cap | None:
        """The smallest budget that counts."""
        return min((account.cap for account in self.sharing), key=lambda cap: cap.epsilon, default=None)

    def caps(self, *, limit: float | None, delta: float) -> tuple[Cap, ...]:
        """Every cap that has to allow a plan, each lowered to the limit; the default where nobody set one."""
        found = {account.cap for account in self.sharing} or {Cap.new(epsilon=DEFAULT_EPSILON, delta=delta)}
        return tuple(
            sorted(
                (cap if limit is None else replace(cap, epsilon=min(cap.epsilon, limit)) for cap in found),
                key=lambda cap: cap.epsilon,
            )
        )

    def require_delta(self, delta: float, *, of: str) -> None:
        """Raise DeltaDiffers unless this is the delta of everything that was charged, and for a plan of every cap."""
        if of == "budget":
            known = {charge.plan.delta for charge in self.charges}
        else:
            known = {account.cap.delta for account in self.sharing}
        if known - {delta}:
            raise DeltaDiffers(
                where=f"ledger, {of}, field delta", expected=" and ".join(f"{value:g}" for value in sorted(known)),
                got=f"{delta:g}", hint="plan with the budget's delta; it can be set anew until something was spent",
            )  # fmt: skip

    def allows(self, plan: DpPlan, *, caps: Iterable[Cap], repeats: Mechanisms = ()) -> bool:
        """Whether every cap lets the plan, and what is repeated of it, follow what was charged."""
        others = self.others
        return all(cap.allows(plan, repeats=repeats, others=others) for cap in caps)

    def refusal(self, plan: DpPlan, *, caps: tuple[Cap, ...], name: str, repeats: Mechanisms = ()) -> BudgetSpent:
        """The error, which says what would fit; finding that takes a while."""
        cap, others = caps[0], self.others
        extra = f" with {sum(count for _, _, count in repeats)} repeated steps" if repeats else ""
        fits = (
            "what was started stays charged" if repeats
            else f"{what_fits(plan, caps=caps, others=others)}; nothing was trained or spent"
        )  # fmt: skip
        spent = said(pld_epsilon(others, delta=cap.delta), cap.delta, self.unit)
        used = epsilon_from(renyi_divergence(others, order=cap.order), delta=cap.delta, order=cap.order)
        return BudgetSpent(
            where=f"ledger, {name}, per {self.unit} ({RELATIONS[self.unit]})",
            expected=f"at most epsilon {cap.epsilon:g} at delta {cap.delta:g} in all; {spent} by PLD so far, "
            f"{said(used, cap.delta, self.unit)} by the filter that enforces it (Renyi order {cap.order})",
            got=f"a plan of {plan.epsilon()}{extra}",
            hint=fits,
        )


def said(value: float, delta: float, unit: Unit) -> str:
    """An epsilon of an account as a person reads it, rounded up."""
    return str(Epsilon(value=value, delta=delta, unit=unit, noise_added_at="site")).partition(" at delta")[0]


def scope_of(
    database: sqlite3.Connection, book: Book, *, data: DataIdentity | Account, unit: Unit, new_budget: bool = False
) -> Scope:
    """Find the accounts that speak for a data set, or for what an account was opened with.

    Raises:
        UnitsMixed: one of them accounts by another unit. A budget alone, under which nothing was spent, can be set
            anew (`new_budget`).
    Proved by: tests/unit/test_ledger.py::test_shared_records_are_charged_and_disjoint_data_is_not
    """
    _load(database, data)
    overlaps = database.execute(
        "SELECT members.account AS account, sum(substr(member, 1, 1) = ?) AS records"
        " FROM temp.mine JOIN members USING (member) GROUP BY members.account",
        (RECORD,),
    ).fetchall()
    fingerprint = data.data if isinstance(data, Account) else data.fingerprint
    own = next((account for account in book.accounts.values() if account.data == fingerprint), None)
    sharing: list[Account] = []
    contained: list[Account] = []
    for account, row in sorted(
        ((book.accounts[row["account"]], row) for row in overlaps if row["account"] in book.accounts),
        key=lambda pair: pair[0].seq,
    ):
        charged = bool(book.standing([account.seq]))
        counts = charged or account.explicit
        if account.unit != unit and (charged or (counts and not new_budget)):
            raise UnitsMixed(
                where="ledger, field unit", expected=f"per {account.unit}, as {account.name} is accounted for",
                got=f"per {unit}",
                hint=f"use the unit {account.unit}; epsilon per record says little about a person with many records",
            )  # fmt: skip
        whole = row["records"] == _records_of(database, account)
        if row["records"] or unit == "person":
            sharing += [account] if counts and account.unit == unit else []
            contained += [account] if whole else []
    charges = tuple(book.standing(account.seq for account in sharing))
    return Scope(
        data if isinstance(data, DataIdentity) else DataIdentity((), data.data, has_people=False), unit, own,
        tuple(sharing), tuple(contained), charges,
    )  # fmt: skip


def _load(database: sqlite3.Connection, data: DataIdentity | Account) -> None:
    database.execute("PRAGMA temp_store = MEMORY")
    database.execute("CREATE TEMP TABLE IF NOT EXISTS mine (member BLOB PRIMARY KEY) STRICT, WITHOUT ROWID")
    database.execute("DELETE FROM temp.mine")
    if isinstance(data, Account):
        database.execute("INSERT INTO temp.mine SELECT member FROM members WHERE account = ?", (data.seq,))
    else:
        database.executemany("INSERT INTO temp.mine VALUES (?)", ((member,) for member in data.members))


def _records_of(database: sqlite3.Connection, account: Account) -> int:
    counted = database.execute(
        "SELECT count(*) FROM members WHERE account = ? AND substr(member, 1, 1) = ?", (account.seq, RECORD)
    )
    return int(counted.fetchone()[0])
