"""A site's account of what its records have spent: one ledger, whichever federation, run or restart asks.

A run of all its rounds is reserved before the first gradient of the first round, each step is counted before it begins,
and what an old copy of the ledger has forgotten is remembered by the passports of this site's own organs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from not_fed import files
from not_fed.envelope.passport import MAX_PASSPORT_BYTES, parse_passport
from not_fed.envelope.receipt import Receipt, sign_receipt
from not_fed.envelope.task import Task
from not_fed.errors import TrustError
from not_fed.home import Home
from not_fed.organ.data import Records, identify_records
from not_fed.privacy.accounting import DpPlan
from not_fed.privacy.ledger.ledger import Ledger
from not_fed.privacy.ledger.reservation import Reservation
from not_fed.site.policy import PrivacyPolicy

ORGANS = "organs"


@dataclass(frozen=True, slots=True)
class RoundAccount:
    """One round's share of a run's reservation. Implements training's `Charge` and `Reserved`.

    Attributes:
        later_runs: rounds of the run that are still to come after this one.
    """

    held: Reservation
    later_runs: int

    def reserve(self, records: Records, *, plan: DpPlan, run: str) -> RoundAccount:
        """It was reserved before training was called, for all rounds."""
        return self

    @property
    def head(self) -> str | None:
        """Digest of the ledger's newest row."""
        return self.held.head

    @property
    def spent(self) -> float | None:
        """A federation's run starts from the base and covers its own rounds: its plan says it all."""
        return None

    @property
    def repeated_steps(self) -> int:
        """Steps beyond the plan's."""
        return self.held.repeated_steps

    @property
    def repeated_releases(self) -> Mapping[str, int]:
        """Numbers that were computed again."""
        return self.held.repeated_releases

    def start_step(self, *, remaining: int) -> None:
        """Count a step; `remaining` of this round and all of the later ones are still to be started."""
        self.held.start_step(remaining=remaining + self.later_runs * self.held.plan.steps)

    def start_release(self, name: str) -> None:
        """Count a number that leaves."""
        self.held.start_release(name, remaining=self.later_runs)

    def commit(self) -> None:
        """Not when training ends: `close` is called once the last round's organ is sealed."""

    def close(self) -> None:
        """After the last round: nothing of this run can be started any more."""
        if not self.later_runs:
            self.held.commit()


def open_ledger(home: Home, *, name: str, policy: PrivacyPolicy, receipt: Receipt | None) -> Ledger:
    """The site's ledger, known to be no older than the organs that were made under it.

    Args:
        receipt: this site's own, as the coordinator kept it; None where it kept none.
    Raises:
        LedgerRolledBack: the receipt, or a passport of this site's own organs, names a row that the ledger does not
            have.
        LedgerMissing, LedgerKeyUnusable, LedgerEdited, StoreDamaged.
    Proved by: tests/attacks/test_site_account.py::test_an_old_ledger_is_noticed_by_the_sites_own_organs
    """
    ledger = Ledger.at(home.inside(policy.ledger))
    ledger.require_heads([*own_heads(home, name=name), *([] if receipt is None else [receipt.ledger_head])])
    return ledger


def receipt_for(task: Task, *, home: Home, policy: PrivacyPolicy, now: datetime) -> bytes:
    """What the coordinator is to keep for this site: how far its ledger has come, signed."""
    signer = home.signer()
    receipt = Receipt(
        v=1,
        federation=task.federation,
        site=signer.name,
        coordinator=task.coordinator,
        task=task.id,
        ledger_head=Ledger.at(home.inside(policy.ledger)).head,
        issued=now,
    )
    return sign_receipt(receipt, signer=signer)


def own_heads(home: Home, *, name: str) -> Iterator[str]:
    """The ledger's heads in the passports of organs that this site made and still has."""
    for path in sorted((home.folder / ORGANS).glob("*/own-*.passport")):
        head = _head(path, name=name)
        if head is not None:
            yield head


def require_unspent(home: Home, *, records: Records, policy: PrivacyPolicy) -> None:
    """Refuse to train without privacy on records of which a private run was made: no budget covers that.

    Raises:
        PlainAfterPrivate: there is one in the ledger, or a budget.
    Proved by: tests/attacks/test_site_account.py::test_records_with_a_privacy_account_are_not_trained_on_plainly
    """
    folder = home.inside(policy.ledger)
    if not folder.is_dir():
        return
    ledger = Ledger.at(folder)
    ledger.require_no_account(ledger.identify(records.texts, records.people))


def open_round(
    ledger: Ledger, *, records: Records, name: str, plan: DpPlan, policy: PrivacyPolicy, run: str, later_runs: int
) -> RoundAccount:
    """Reserve all rounds of a run, or go on with what the run has reserved; before anything of it is computed.

    The policy's budget is set where nobody has set one, and lowers one that somebody has. It never raises it: another
    home may share the ledger, and raising what was used is a person's decision (`not-fed budget set`).

    Args:
        name: what the records are called in the ledger.
        run: names the run among all that this site ever takes part in.
    Raises:
        BudgetSpent, UnitsMixed, DeltaDiffers, ReservationChanged, ReservationOver: nothing was trained or spent.
    Proved by: tests/attacks/test_site_account.py::test_every_way_to_ask_again_is_charged_to_one_account,
        tests/attacks/test_site_account.py::test_a_site_file_never_raises_a_budget_that_somebody_set
    """
    data = identify_records(ledger, records, unit=plan.unit)
    ledger.set_budget(data, name=name, unit=plan.unit, epsilon=policy.budget, delta=policy.delta, may_raise=False)
    held = ledger.reserve(data, name=name, plan=plan, run=run, cap=policy.budget)
    return RoundAccount(held, later_runs)


def account_notes(ledger: Ledger, *, records: Records, plan: DpPlan, policy: PrivacyPolicy) -> dict[str, object]:
    """Where the records stand with their budget after a round, for the site's own eyes."""
    data = identify_records(ledger, records, unit=plan.unit)
    standing = ledger.standing(data, unit=plan.unit, limit=policy.budget)
    return {
        "spent": standing.spent.value,
        "enforced": standing.enforced,
        "budget": min(standing.cap.epsilon, policy.budget),
        "left": standing.left,
        "delta": plan.delta,
        "unit": plan.unit,
    }


def _head(path: Path, *, name: str) -> str | None:
    """A passport that cannot be read, or is another author's, says nothing about this ledger."""
    try:
        passport = parse_passport(files.read_regular(path, max_bytes=MAX_PASSPORT_BYTES + 1).removesuffix(b"\n"))[1]
    except TrustError:
        return None
    return passport.ledger_head if passport.author == name else None
