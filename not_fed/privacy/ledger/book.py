"""What the ledger's rows say: accounts, their budgets, and what was charged to them. Pure: rows in, a book out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from decimal import ROUND_DOWN, ROUND_UP, Decimal
from typing import Any, Literal

from not_fed.errors import NotFedError
from not_fed.privacy.accounting import DpPlan, NoisedRelease, Unit, mechanisms_of, repeats_of
from not_fed.privacy.ledger.cap import Cap
from not_fed.privacy.ledger.rows import STEPS, Row, edited
from not_fed.privacy.mechanisms import Mechanisms, merged

_NOISE_DIGITS, _RATE_DIGITS = Decimal("1e-9"), Decimal("1e-12")


@dataclass(slots=True)
class Account:
    """One data set that has a budget.

    Attributes:
        explicit: whether somebody set the budget, or it was opened with the default.
    """

    seq: int  # of the row that opened it
    data: str  # fingerprint
    name: str
    unit: Unit
    cap: Cap
    explicit: bool


@dataclass(slots=True)
class Charge:
    """One reservation: a plan, and what was repeated of it."""

    seq: int  # of the row that reserved it
    head: str
    account: int
    run: str
    name: str
    purpose: str
    time: str
    plan: DpPlan
    state: Literal["reserved", "committed", "released"] = "reserved"
    repeats: dict[str, int] = field(default_factory=dict)

    @property
    def repeated(self) -> Mechanisms:
        """Beyond the plan."""
        releases = {name: count for name, count in self.repeats.items() if name != STEPS}
        return repeats_of(self.plan, steps=self.repeats.get(STEPS, 0), releases=releases)

    @property
    def mechanisms(self) -> Mechanisms:
        """All that was charged; nothing once it was given back."""
        return () if self.state == "released" else merged(mechanisms_of([self.plan]), self.repeated)

    def charged(self, what: str) -> int:
        """How many steps (or releases of that name) are paid for."""
        planned = self.plan.steps * self.plan.runs if what == STEPS else self.plan.runs
        return planned + self.repeats.get(what, 0)

    def counted(self) -> tuple[str, ...]:
        """What of the plan is counted when it starts."""
        return (STEPS, *(release.name for release in self.plan.releases))


@dataclass(slots=True)
class Book:
    """All accounts and charges."""

    accounts: dict[int, Account] = field(default_factory=dict)
    charges: dict[int, Charge] = field(default_factory=dict)

    def standing(self, accounts: Iterable[int]) -> list[Charge]:
        """What is charged to these accounts, oldest first."""
        wanted = set(accounts)
        return [one for one in self.charges.values() if one.account in wanted and one.state != "released"]


def mechanisms_of_charges(charges: Iterable[Charge]) -> Mechanisms:
    """Their composition."""
    return merged(*(charge.mechanisms for charge in charges))


def read_book(rows: Iterable[Row]) -> Book:
    """Fold the rows.

    Raises:
        LedgerEdited: a row says what cannot be.
    """
    book = Book()
    for row in rows:
        try:
            _READERS[row.kind](book, row)
        except (KeyError, TypeError, ValueError, ArithmeticError, NotFedError):
            raise edited(f"ledger, row {row.seq}", "a row that makes sense after those before it", "another") from None
    return book


def plan_fields(plan: DpPlan) -> dict[str, Any]:
    """A plan as a row holds it: decimal strings, the noise rounded down and the rate up, so that a row never says less.

    Proved by: tests/unit/test_ledger_book.py::test_a_stored_plan_never_costs_less
    """
    return {
        "sample_rate": _text(min(Decimal(1), Decimal(repr(float(plan.sample_rate))).quantize(_RATE_DIGITS, ROUND_UP))),
        "noise_multiplier": _noise(plan.noise_multiplier),
        "steps": plan.steps,
        "runs": plan.runs,
        "max_grad_norm": repr(float(plan.max_grad_norm)),
        "divisor": repr(float(plan.divisor)),
        "delta": repr(float(plan.delta)),
        "unit": plan.unit,
        "records_per_person": plan.records_per_person,
        "adjacency": plan.adjacency,
        "releases": [
            {"name": one.name, "noise_multiplier": _noise(one.noise_multiplier)} for one in plan.releases
        ],
    }  # fmt: skip


def plan_from(fields: Mapping[str, Any]) -> DpPlan:
    """The plan that a row holds."""
    return DpPlan(
        sample_rate=float(fields["sample_rate"]),
        noise_multiplier=float(fields["noise_multiplier"]),
        steps=fields["steps"],
        runs=fields["runs"],
        max_grad_norm=float(fields["max_grad_norm"]),
        divisor=float(fields["divisor"]),
        delta=float(fields["delta"]),
        unit=fields["unit"],
        records_per_person=fields["records_per_person"],
        adjacency=fields["adjacency"],
        releases=tuple(
            NoisedRelease(name=one["name"], noise_multiplier=float(one["noise_multiplier"]))
            for one in fields["releases"]
        ),
    )


def _noise(value: float) -> str:
    return _text(Decimal(repr(float(value))).quantize(_NOISE_DIGITS, ROUND_DOWN))


def _text(value: Decimal) -> str:
    return format(value.normalize(), "f")


def read_account(row: Row) -> Account:
    """The account that a row opens."""
    return Account(seq=row.seq, data=row.fields["data"], name=row.fields["name"], **_budget_of(row.fields))


def _account(book: Book, row: Row) -> None:
    book.accounts[row.seq] = read_account(row)


def _budget(book: Book, row: Row) -> None:
    account = book.accounts[row.fields["account"]]
    account.name = row.fields["name"]
    for name, value in _budget_of(row.fields).items():
        setattr(account, name, value)


def _budget_of(fields: Mapping[str, Any]) -> dict[str, Any]:
    cap = Cap(epsilon=float(fields["epsilon"]), delta=float(fields["delta"]), order=int(fields["order"]))
    return {"unit": fields["unit"], "cap": cap, "explicit": fields["explicit"]}


def _reserve(book: Book, row: Row) -> None:
    fields = row.fields
    book.charges[row.seq] = Charge(
        seq=row.seq, head=row.hash, account=book.accounts[fields["account"]].seq, run=fields["run"],
        name=fields["name"], purpose=fields["purpose"], time=fields["time"], plan=plan_from(fields["plan"]),
    )  # fmt: skip


def _extend(book: Book, row: Row) -> None:
    charge = _open(book, row)
    what, count = row.fields["what"], row.fields["count"]
    if what not in charge.counted() or count < 1:
        raise ValueError
    charge.repeats[what] = charge.repeats.get(what, 0) + count


def _commit(book: Book, row: Row) -> None:
    _open(book, row).state = "committed"


def _release(book: Book, row: Row) -> None:
    _open(book, row).state = "released"


def _open(book: Book, row: Row) -> Charge:
    charge = book.charges[row.fields["reservation"]]
    if charge.state != "reserved":
        raise ValueError
    return charge


def _ledger(book: Book, row: Row) -> None:
    if row.seq != 0 or book.accounts:
        raise ValueError


_READERS = {
    "ledger": _ledger, "account": _account, "budget": _budget, "reserve": _reserve, "extend": _extend,
    "commit": _commit, "release": _release,
}  # fmt: skip
