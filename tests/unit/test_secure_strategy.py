"""The rule of the secure sum, against every strategy that a lying coordinator with c helpers of its own can follow."""

from __future__ import annotations

import random
from itertools import combinations

import pytest

from not_fed.trust.plans import SumPlan, Thresholds
from tests.support.strategies import Sum, in_two_cohorts, mask, patterns, subsets

PRIME = (1 << 31) - 1
STRATEGIES = {(3, 0, 1): 1728, (3, 1, 0): 2, (4, 1, 1): 16_000, (4, 1, 0): 250, (4, 2, 0): 2}


def by_rule(sites: int, collude: int, vanish: int) -> Thresholds:
    """What a plan of the stewards means."""
    plan = SumPlan(
        federation="lab", run="one", coordinator="hub", sites=tuple(f"site-{n}" for n in range(sites)), rounds=1,
        base_sha256="0" * 64, spans=((0, 1),), collude=collude, vanish=vanish, value_bits=16,
    )  # fmt: skip
    return plan.thresholds()


def calls(sites: int, collude: int, vanish: int, *, shares: int = 0, helpers: int = 0, min_sites: int = 0) -> list[Sum]:
    """The calls under the rule, or with so much less of a threshold; the smallest set is c + 2, below what plans do."""
    rule = by_rule(sites, collude, vanish)
    return list(
        patterns(
            sites=sites, collude=collude, helpers=rule.helpers + helpers, shares=rule.shares + shares,
            vanish=vanish, min_sites=collude + 2 + min_sites,
        )
    )  # fmt: skip


@pytest.mark.parametrize(("sites", "collude", "vanish"), STRATEGIES)
def test_under_the_rule_no_strategy_shows_more_than_one_sum(sites: int, collude: int, vanish: int) -> None:
    tried = calls(sites, collude, vanish)
    assert sum(len(call.answers) ** len(call.honest) for call in tried) == STRATEGIES[sites, collude, vanish]
    assert [call.breaks() for call in tried] == [0] * len(tried)


@pytest.mark.parametrize(
    ("setting", "less", "breaks"),
    [
        ((3, 0, 1), {"shares": -1}, 768), ((4, 1, 1), {"shares": -1}, 2994),
        ((3, 1, 0), {"helpers": -1}, 1), ((3, 0, 1), {"helpers": -1}, 256), ((4, 1, 1), {"helpers": -1}, 875),
        ((3, 1, 0), {"min_sites": -1}, 10), ((4, 1, 1), {"min_sites": -1}, 7044),
    ],
)  # fmt: skip
def test_with_one_less_of_any_threshold_some_strategies_break_it(
    setting: tuple[int, int, int], less: dict[str, int], breaks: int
) -> None:
    # a sum of fewer sites is what the smaller m itself allows: it is judged by the m of the rule
    found = [
        sum(not wanted.is_safe(call.learned(answers)) for answers in call.strategies())
        for call, wanted in ((call, _judge(call, setting[1])) for call in calls(*setting, **less))
    ]
    assert sum(found) == breaks


def _judge(call: Sum, collude: int) -> Sum:
    return Sum(
        cohort=call.cohort, helpers=call.helpers, colluding=call.colluding, shares=call.shares, vanish=call.vanish,
        min_sites=collude + 2,
    )  # fmt: skip


def test_a_share_less_among_three_with_one_colluding_breaks_two_of_sixteen() -> None:
    """No plan has these numbers (it could not end), and the rule's t is tight there too."""
    for shares, breaks in ((3, 0), (2, 2)):
        (call,) = patterns(sites=3, collude=1, helpers=3, shares=shares, vanish=1, min_sites=3)
        assert (call.breaks(), len(list(call.strategies()))) == (breaks, 16)


@pytest.mark.parametrize(("sites", "collude", "vanish"), [(5, 1, 1), (5, 0, 2), (6, 1, 1), (6, 2, 1), (7, 2, 1)])
def test_two_stories_told_in_any_way_break_no_larger_sum(sites: int, collude: int, vanish: int) -> None:
    chance = random.Random(f"{sites} {collude} {vanish}")
    for less, expected in ((0, False), (-1, True)):
        found = 0
        for call in calls(sites, collude, vanish, shares=less):
            for _ in range(4000):
                stories = [chance.choice(call.answers) for _ in range(2)]
                told = {site: chance.choice(stories) for site in call.honest}
                found += not call.is_safe(call.learned(told))
        assert bool(found) is expected


def test_what_is_counted_modulo_two_is_what_is_counted_modulo_a_prime() -> None:
    chance = random.Random("prime")
    some = 0
    for call in [*calls(4, 1, 1), *calls(4, 1, 1, shares=-1), *calls(5, 1, 1)]:
        for _ in range(150):
            stories = [chance.choice(call.answers) for _ in range(2)]
            told = {site: chance.choice(stories) for site in call.honest}
            assert call.learned_modulo(told, prime=PRIME) == len(call.learned(told))
            some += len(call.learned(told))
    assert some > 50  # there was something to count


@pytest.mark.parametrize(("sites", "collude", "vanish"), STRATEGIES)
def test_a_call_repeated_from_its_start_shows_nothing_new_to_sites_that_keep_to_their_answer(
    sites: int, collude: int, vanish: int
) -> None:
    """The round is called failed, which need not be true, and every site trains to the same update again."""
    for call in calls(sites, collude, vanish):
        assert call.repeated(same_active=True, same_lost=True) is None


def test_without_what_a_start_binds_a_repeated_call_takes_sums_apart() -> None:
    assert calls(3, 0, 1)[0].repeated(same_active=False, same_lost=True) is not None
    # the same sets, and another helper called lost: each call shows the set of the helper that is left
    for setting in ((3, 0, 1), (4, 1, 1)):
        assert any(call.repeated(same_active=True, same_lost=False) is not None for call in calls(*setting))


@pytest.mark.parametrize("left_out", range(1, 4))
def test_a_site_answers_one_cohort_from_one_start(left_out: int) -> None:
    """Four sites of which one colludes are asked, and then, from the same start, three of them with another H."""
    rule, smaller = by_rule(4, 1, 0), by_rule(3, 1, 0)
    cohort, colluding = mask(range(4)), 1
    found = {True: 0, False: 0}
    for ours in combinations(range(4), rule.helpers):
        whole = Sum(
            cohort=cohort, helpers=mask(ours), colluding=colluding, shares=rule.shares, vanish=0,
            min_sites=rule.min_sites,
        )  # fmt: skip
        part = cohort & ~(1 << left_out)
        for theirs in subsets(part):
            if theirs.bit_count() == smaller.helpers:
                again = Sum(
                    cohort=part, helpers=theirs, colluding=colluding, shares=smaller.shares, vanish=0,
                    min_sites=smaller.min_sites,
                )  # fmt: skip
                for bound in found:
                    found[bound] += in_two_cohorts(whole, again, bound_by_upload=bound)
    assert found[True] == 0
    assert found[False] > 0  # helpers alone were bound, and the one left out is the difference
