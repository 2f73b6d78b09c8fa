"""Who may be lost, and when: every pattern of losses, of every plan for three, four and five sites."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

from not_fed.aggregation.secure import ServerSum, Total
from not_fed.aggregation.secure.ledger import LEDGER_FILE
from not_fed.aggregation.secure.ring import CHECK_WORDS, TAIL_WORDS
from not_fed.aggregation.secure.server import HelpersLost, TooFewShares, TooFewUploads
from not_fed.trust.plans import UnsafePlan
from tests.support.sums import NAMES, Cohort, Party, new_party, plan_of

PATTERNS, SUMS = 8598, 3554  # of all plans below, and how many of them end with a sum


def plans() -> Iterator[tuple[int, int, int]]:
    """Every n, c and f that the rule allows up to five sites."""
    for sites in (3, 4, 5):
        for collude in range(sites):
            for vanish in range(sites):
                try:
                    plan_of(NAMES[:sites], collude=collude, vanish=vanish).thresholds()
                except UnsafePlan:
                    continue
                yield sites, collude, vanish


PLANS = list(plans())
MANY = (5, 0, 2)  # 5,232 of the patterns


class Round:
    """One call, all of its uploads, and whatever can be lost after them."""

    def __init__(self, cohort: Cohort) -> None:
        keys = cohort.keys()
        self.cohort, self.call = cohort, cohort.call(keys)
        for name in cohort.plan.sites:
            cohort.upload(name, self.call, keys)
        self.rule = cohort.plan.thresholds()
        self.helpers: list[str] = self.call.helpers(self.rule.helpers)
        self.seen: Counter[str] = Counter()

    def all_losses(self) -> Counter[str]:
        """How each pattern of losses ends; each sum is compared with the plain one on the way."""
        uploaded = self._ledgers()
        for active in subsets(self.call.names):
            server = self.cohort.server(self.call, active)
            if len(active) < self.rule.min_sites:
                self._ends(TooFewUploads, server.close_uploads)
                continue
            server.close_uploads()
            self._put(uploaded)
            partials = {name: self.cohort.help(name, server) for name in self.helpers}
            self._lose_helpers(server, active, partials)
        return self.seen

    def _lose_helpers(self, server: ServerSum, active: Sequence[str], partials: dict[str, tuple[bytes, bytes]]) -> None:
        helped = self._ledgers()
        for answering in subsets(self.helpers):
            after = fork(server)
            for name in answering:
                statement, words = partials[name]
                after.add_partial(name, statement=statement, vector=memoryview(words))
            missing = [name for name in self.helpers if name not in answering]
            if len(missing) > self.cohort.plan.vanish:
                self._ends(HelpersLost, after.close_partials)
                continue
            after.close_partials()
            if not missing:
                self._sums(after, active)
                continue
            self._put(helped)
            shares = {name: self.cohort.reveal(name, after, missing) for name in self.call.names}
            self._lose_revealers(after, active, list(shares.items()), given=0)

    def _lose_revealers(
        self, server: ServerSum, active: Sequence[str], left: Sequence[tuple[str, bytes]], *, given: int
    ) -> None:
        if not left:
            if given < self.rule.shares:
                self._ends(TooFewShares, server.finish)
            else:
                self._sums(server, active)
            return
        (name, statement), *others = left
        self._lose_revealers(fork(server), active, others, given=given)
        server.add_shares(name, statement=statement)
        self._lose_revealers(server, active, others, given=given + 1)

    def _sums(self, server: ServerSum, active: Sequence[str]) -> None:
        total: Total = server.finish()
        assert total.words[:-TAIL_WORDS].tobytes() == self.cohort.plain(active).tobytes()
        assert list(total.words[-TAIL_WORDS:-1]) == [len(active)] * CHECK_WORDS
        assert total.weight == len(active)
        assert list(total.contributions) == list(active)
        self.seen["sum"] += 1

    def _ends(self, kind: type[Exception], step: Callable[[], object]) -> None:
        with pytest.raises(kind):
            step()
        self.seen[kind.__name__] += 1

    def _ledgers(self) -> dict[str, bytes]:
        return {name: (self.cohort.folder / name / LEDGER_FILE).read_bytes() for name in self.call.names}

    def _put(self, ledgers: dict[str, bytes]) -> None:
        for name, data in ledgers.items():
            (self.cohort.folder / name / LEDGER_FILE).write_bytes(data)


def subsets(names: Sequence[str]) -> Iterator[tuple[str, ...]]:
    """All of them."""
    for size in range(len(names) + 1):
        yield from combinations(names, size)


def fork(server: ServerSum) -> ServerSum:
    """A coordinator in the same state, which goes on by itself."""
    other = copy.copy(server)
    for name, value in vars(server).items():
        if isinstance(value, dict | set | np.ndarray):
            setattr(other, name, value.copy())
    return other


def ending(sites: int, collude: int, vanish: int) -> Counter[str]:
    """How many patterns of a plan must end in which way."""
    rule = plan_of(NAMES[:sites], collude=collude, vanish=vanish).thresholds()
    expected: Counter[str] = Counter()
    for active in subsets(NAMES[:sites]):
        if len(active) < rule.min_sites:
            expected["TooFewUploads"] += 1
            continue
        for missing in subsets(NAMES[: rule.helpers]):
            if not missing:
                expected["sum"] += 1
            elif len(missing) > vanish:
                expected["HelpersLost"] += 1
            else:
                enough = sum(len(some) >= rule.shares for some in subsets(NAMES[:sites]))
                expected["sum"] += enough
                expected["TooFewShares"] += 2**sites - enough
    return +expected


@pytest.fixture(scope="module")
def parties() -> dict[str, Party]:
    return {name: new_party(name) for name in NAMES[:5]}


def test_all_plans_that_the_rule_allows_are_tried() -> None:
    assert len(PLANS) == 16
    total: Counter[str] = sum((ending(*plan) for plan in PLANS), Counter())
    assert (total.total(), total["sum"]) == (PATTERNS, SUMS)


@pytest.mark.parametrize(
    ("sites", "collude", "vanish"),
    [pytest.param(*plan, marks=[pytest.mark.faults] if plan == MANY else []) for plan in PLANS],
)
def test_the_sum_is_the_plain_sum_for_every_pattern_of_losses(
    sites: int, collude: int, vanish: int, parties: dict[str, Party], tmp_path: Path
) -> None:
    names = NAMES[:sites]
    cohort = Cohort(
        plan=plan_of(names, collude=collude, vanish=vanish), parties={name: parties[name] for name in names},
        folder=tmp_path, parameters=3,
    )  # fmt: skip
    assert Round(cohort).all_losses() == ending(sites, collude, vanish)
