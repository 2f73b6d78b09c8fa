"""Who pays for a private run: a site's ledger, reserved before the first gradient, or nobody, because all is public."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Protocol

from not_fed.errors import InputError, NotFedError
from not_fed.organ.data import Records, identify_records
from not_fed.organ.resume import Resume
from not_fed.privacy.accounting import DpPlan
from not_fed.privacy.ledger.ledger import Ledger
from not_fed.privacy.ledger.reservation import Reservation


class NobodyPays(InputError):
    """A private run was asked for, and no ledger to charge it to."""

    code = "no-ledger"


class Reserved(Protocol):
    """What a run holds while it trains. Everything that costs is written down before it happens."""

    @property
    def head(self) -> str | None:
        """Digest of the ledger's newest row, or None where there is no ledger."""

    @property
    def repeated_steps(self) -> int:
        """Steps that were started beyond the plan's, because their first attempt was lost."""

    @property
    def repeated_releases(self) -> Mapping[str, int]:
        """The same for the numbers that leave with noise, by name."""

    @property
    def spent(self) -> float | None:
        """Epsilon by PLD of everything ever charged to these records, this run too; None where no ledger knows."""

    def start_step(self, *, remaining: int) -> None:
        """A step is about to begin; `remaining` are still to be started after it in this run."""

    def start_release(self, name: str) -> None:
        """A number is about to be computed from the records, to leave with noise."""

    def commit(self) -> None:
        """All of it is done."""


class Charge(Protocol):
    """Gives a run its reservation."""

    def reserve(self, records: Records, *, plan: DpPlan, run: str) -> Reserved:
        """Set aside what the plan costs, on disk; `run` names the attempt, and goes on with what it holds already."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ToLedger:
    """A site's ledger pays.

    Attributes:
        ledger: where it is written down.
        name: what the data set is called there.
        run: names all runs of one plan, such as a federation's; without it each training is a run of its own.
        later_runs: runs of the plan that follow this one; the reservation is committed with the last.
        cap: an epsilon that the account may not exceed, where it is lower than the account's own budget.
    """

    ledger: Ledger
    name: str
    run: str | None = None
    later_runs: int = 0
    cap: float | None = None

    def reserve(self, records: Records, *, plan: DpPlan, run: str) -> Reserved:
        """Raises BudgetSpent and its kin where the plan does not fit; then nothing is written."""
        data = identify_records(self.ledger, records, unit=plan.unit)
        held = self.ledger.reserve(data, name=self.name, plan=plan, run=self.run or run, purpose="train", cap=self.cap)
        return _OneRun(
            held,
            later_runs=self.later_runs,
            spent=lambda: self.ledger.standing(data, unit=plan.unit, limit=self.cap).spent.value,
        )


@dataclass(frozen=True, slots=True)
class PublicRecords:
    """Nobody pays, because the records are public, as a benchmark's are. The organ's manifest names no ledger."""

    def reserve(self, records: Records, *, plan: DpPlan, run: str) -> Reserved:
        """Nothing to set aside."""
        return _Nothing()


def reserve(charge: Charge, records: Records, *, plan: DpPlan, resume: Resume) -> Reserved:
    """Reserve for the run that a resume point belongs to.

    The attempt gets its name on disk first: after a crash in between it goes on with what it has reserved.

    Raises:
        BudgetSpent and its kin: nothing was reserved, and no resume point is left that was not there.
    """
    is_new = not resume.exists
    try:
        return charge.reserve(records, plan=plan, run=resume.attempt())
    except NotFedError:
        if is_new:
            resume.forget()
        raise


class _OneRun:
    """One of a plan's runs, under the reservation for all of them."""

    def __init__(self, held: Reservation, *, later_runs: int, spent: Callable[[], float]) -> None:
        self._held, self._later_runs, self._spent = held, later_runs, spent

    @property
    def spent(self) -> float | None:
        return self._spent()

    @property
    def head(self) -> str | None:
        return self._held.head

    @property
    def repeated_steps(self) -> int:
        return self._held.repeated_steps

    @property
    def repeated_releases(self) -> Mapping[str, int]:
        return self._held.repeated_releases

    def start_step(self, *, remaining: int) -> None:
        self._held.start_step(remaining=remaining + self._later_runs * self._held.plan.steps)

    def start_release(self, name: str) -> None:
        self._held.start_release(name, remaining=self._later_runs)

    def commit(self) -> None:
        if not self._later_runs:
            self._held.commit()


class _Nothing:
    head: str | None = None
    spent: float | None = None
    repeated_steps = 0
    repeated_releases: Mapping[str, int] = MappingProxyType({})

    def start_step(self, *, remaining: int) -> None:
        pass

    def start_release(self, name: str) -> None:
        pass

    def commit(self) -> None:
        pass
