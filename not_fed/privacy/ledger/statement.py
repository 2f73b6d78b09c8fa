"""What an account says of itself: allowed, spent and enforced, and what one more plan would cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from not_fed.privacy.accounting import DpPlan, Epsilon, Unit, mechanisms_of
from not_fed.privacy.ledger.book import Charge
from not_fed.privacy.ledger.cap import Cap, Fits, least_noise, what_fits
from not_fed.privacy.ledger.scope import RELATIONS, Scope
from not_fed.privacy.mechanisms import Mechanisms, merged, pld_epsilon
from not_fed.privacy.renyi import epsilon_from, renyi_divergence, renyi_epsilon

DEFAULT_DELTA = 1e-5  # shown for data that was never reserved; a plan brings its own


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """Where a data set stands with its budget.

    Attributes:
        name: as its account is called; None if it has none.
        cap: the tightest budget that counts.
        explicit: whether somebody set it.
        spent: what was charged costs by PLD; the number to report.
        enforced: the same by the filter that is the hard stop; larger, and compared with the budget.
        by_pld: whether it is one plan that fits by PLD alone, so that nothing can follow.
        left: epsilon, by PLD, that one further run may be asked for, at the rate and steps of the last one; the budget
            while there is none.
        runs: how many reservations stand.
        accounts: names of every account that counts, since records or people are shared.
    """

    name: str | None
    unit: Unit
    cap: Cap
    explicit: bool
    spent: Epsilon
    enforced: float
    by_pld: bool
    left: float
    runs: int
    accounts: tuple[str, ...]

    @property
    def relation(self) -> str:
        """What neighbouring data sets differ by."""
        return RELATIONS[self.unit]


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What a plan would cost if it were reserved now. Nothing is.

    Attributes:
        plan: as it would be charged.
        alone: its epsilon by PLD.
        renyi: the same by Renyi accounting with the best order; looser, shown beside.
        now, then: before it and after it.
        allowed: whether it would be.
        fits: what of it would be allowed instead; None if it is allowed.
    """

    plan: DpPlan
    alone: Epsilon
    renyi: float
    now: Standing
    then: Standing
    allowed: bool
    fits: Fits | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One line of an account's history.

    Attributes:
        alone: what this reservation costs by itself, by PLD; 0 once it was given back.
        composed: what it and everything before it on the same records cost together.
    """

    charge: Charge
    alone: Epsilon
    composed: Epsilon


def standing_of(scope: Scope, *, limit: float | None = None, delta: float | None = None) -> Standing:
    """Read a scope; `delta` is for data that has no account."""
    caps = scope.caps(limit=limit, delta=delta or DEFAULT_DELTA)
    last = scope.charges[-1].plan if scope.charges else None
    return _standing(scope, caps, spent=scope.others, runs=len(scope.charges), like=last)


def cost_of(scope: Scope, plan: DpPlan, *, limit: float | None) -> Cost:
    """What the plan would cost on top; takes a while when it is not allowed, since what fits is searched."""
    caps, others = scope.caps(limit=limit, delta=plan.delta), scope.others
    allowed = scope.allows(plan, caps=caps)
    after = merged(others, mechanisms_of([plan]))
    return Cost(
        plan=plan,
        alone=plan.epsilon(),
        renyi=renyi_epsilon(plan),
        now=_standing(scope, caps, spent=others, runs=len(scope.charges), like=plan),
        then=_standing(scope, caps, spent=after, runs=len(scope.charges) + 1, like=plan),
        allowed=allowed,
        fits=None if allowed else what_fits(plan, caps=caps, others=others),
    )


def history_of(charges: Sequence[Charge]) -> list[Entry]:
    """Line by line."""
    entries: list[Entry] = []
    before: Mechanisms = ()
    for charge in charges:
        before = merged(before, charge.mechanisms)
        entries.append(
            Entry(
                charge=charge,
                alone=_epsilon(charge.mechanisms, charge.plan.delta, charge.plan.unit),
                composed=_epsilon(before, charge.plan.delta, charge.plan.unit),
            )
        )
    return entries


def _standing(
    scope: Scope, caps: tuple[Cap, ...], *, spent: Mechanisms, runs: int, like: DpPlan | None
) -> Standing:  # fmt: skip
    cap = caps[0]
    used = renyi_divergence(spent, order=cap.order)
    return Standing(
        name=scope.own.name if scope.own else None,
        unit=scope.unit,
        cap=cap,
        explicit=any(account.explicit for account in scope.sharing),
        spent=_epsilon(spent, cap.delta, scope.unit),
        enforced=epsilon_from(used, delta=cap.delta, order=cap.order),
        by_pld=used > cap.bound,
        left=_left(caps, spent, like=like),
        runs=runs,
        accounts=tuple(account.name for account in scope.sharing),
    )


def _left(caps: tuple[Cap, ...], spent: Mechanisms, *, like: DpPlan | None) -> float:
    if not spent or like is None:
        return caps[0].epsilon
    widest = least_noise(like, caps=caps, others=spent)
    return 0.0 if widest is None else widest.epsilon().value


def _epsilon(mechanisms: Mechanisms, delta: float, unit: Unit) -> Epsilon:
    return Epsilon(value=pld_epsilon(mechanisms, delta=delta), delta=delta, unit=unit, noise_added_at="site")
