"""The plan of a secure sum: the rule, said a second time from its reasons, and what an administrator is told."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from not_fed import canonical
from not_fed.trust.plans import MAX_SITES, MAX_WEIGHT, PlansFile, SumPlan, Thresholds, UnsafePlan, parse_plans

NAMES = tuple(f"site-{number:03d}" for number in range(MAX_SITES))


def plan(size: int = 4, **changes: Any) -> SumPlan:  # noqa: ANN401
    fields: dict[str, Any] = {
        "federation": "lowlands", "run": "spring", "coordinator": "hub", "sites": NAMES[:size], "rounds": 3,
        "base_sha256": "ab" * 32, "spans": ((4, 8),), "collude": 1, "vanish": 0,
    }  # fmt: skip
    return SumPlan(**fields | changes)


def expected(said: SumPlan) -> Thresholds | None:
    """What the rule makes of a plan, by search and by adding up; None where it refuses."""
    n, c, f = len(said.sites), said.collude, said.vanish
    if n < 3 or c + 2 > n:
        return None
    # t: the fewest sites of which any two sets share more than c, hence somebody honest
    t = next(size for size in range(1, n + 2) if 2 * size - n > c)
    if t > n - f:
        return None
    # the columns that can be opened: each needs t - c honest answers, and each of n - c honest sites gives f of them
    opened = max(count for count in range(n * (f + 1) + 1) if count * (t - c) <= f * (n - c))
    k = c + opened + 1
    m = said.min_sites if said.min_sites is not None else max(3, t)
    votes = said.quorum <= n and (said.quorum > 0 or not said.blind)
    if k > n or not max(3, c + 2) <= m <= n or not votes or not is_read_back(said):
        return None
    return Thresholds(sites=n, shares=t, helpers=k, min_sites=m)


def is_read_back(said: SumPlan) -> bool:
    """Whether the extreme sums come back from the ring: every site at the clip, with the largest weight."""
    ring, highest = 1 << said.word_bits, (1 << (said.value_bits - 1)) - 1
    for value in (highest, -highest):
        word = 0
        for _ in said.sites:
            word = (word + said.max_weight * value % ring) % ring
        signed = word - ring if word >= ring // 2 else word
        if signed != len(said.sites) * said.max_weight * value:
            return False
    return True


@st.composite
def plans(draw: st.DrawFn) -> SumPlan:
    """Plans on both sides of each border; weights often beside the largest that the ring holds."""
    n = draw(st.one_of(st.integers(1, 9), st.integers(1, MAX_SITES)))
    c = draw(st.one_of(st.integers(0, 2), st.integers(0, n)))
    bits, word = draw(st.integers(4, 31)), draw(st.sampled_from([16, 32]))
    border = (2 ** (word - 1) - 1) // (n * (2 ** (bits - 1) - 1))
    near = st.integers(border - 2, border + 2).map(lambda weight: min(max(weight, 1), MAX_WEIGHT))
    return plan(
        n, collude=c, vanish=draw(st.one_of(st.integers(0, 2), st.integers(0, n))), value_bits=bits, word_bits=word,
        max_weight=draw(st.one_of(st.just(1), near)), min_sites=draw(st.none() | st.integers(1, min(n + 1, MAX_SITES))),
        blind=draw(st.booleans()), quorum=draw(st.integers(0, min(n + 1, MAX_SITES))),
    )  # fmt: skip


@settings(max_examples=400, deadline=None)
@given(said=plans())
@example(said=plan(3, collude=1, vanish=1))
@example(said=plan(3, collude=0, vanish=1))
@example(said=plan(250, value_bits=24, max_weight=1))
@example(said=plan(128, value_bits=25, max_weight=1))
@example(said=plan(129, value_bits=5, max_weight=1 << 20))  # the exact bound; a bound by whole bits would refuse it
def test_a_plan_is_refused_exactly_when_the_rule_says_so(said: SumPlan) -> None:
    wanted = expected(said)
    if wanted is None:
        with pytest.raises(UnsafePlan):
            said.thresholds()
    else:
        assert said.thresholds() == wanted


def test_every_small_cohort_keeps_the_rule() -> None:
    kept = 0
    for n, c, f, m in itertools.product(range(1, 8), range(8), range(8), (None, *range(1, 9))):
        said = plan(n, collude=c, vanish=f, min_sites=m)
        wanted = expected(said)
        try:
            assert said.thresholds() == wanted
        except UnsafePlan:
            assert wanted is None
        kept += wanted is not None
    assert kept == 167  # both kinds are there


def test_what_the_rule_is_for_holds_and_one_less_does_not() -> None:
    """An honest site in both of two sets of t; a helper that is honest and never opened; two honest sites in a sum."""
    for n, c, f in itertools.product(range(3, 13), range(11), range(11)):
        try:
            rule = plan(n, collude=c, vanish=f).thresholds()
        except UnsafePlan:
            continue
        opened = f * (n - c) // (rule.shares - c)
        assert 2 * rule.shares - n > c >= 2 * (rule.shares - 1) - n
        assert rule.helpers - c - opened == 1
        assert rule.min_sites - c >= 2
        assert rule.shares <= n - f


def test_a_smaller_cohort_is_judged_by_its_own_size() -> None:
    said = plan(5, collude=1, vanish=1, min_sites=3)
    assert [said.thresholds(size).shares for size in (5, 4)] == [4, 3]
    for size in (3, 2, 0):  # three would need all three to answer, and one is lost
        with pytest.raises(UnsafePlan):
            said.thresholds(size)
    voted = plan(5, quorum=5)
    assert voted.thresholds().sites == 5
    with pytest.raises(UnsafePlan, match="quorum"):
        voted.thresholds(4)


@given(sites=st.integers(3, MAX_SITES), collude=st.integers(0, 9), size=st.integers(0, MAX_SITES))
def test_a_smaller_cohort_gets_no_smaller_sum(sites: int, collude: int, size: int) -> None:
    """Else who calls three of fifty would get a sum of two honest sites, where the stewards have read: 26 at least."""
    said = plan(sites, collude=min(collude, sites - 2))
    least = said.thresholds().min_sites
    assert said.model_copy(update={"min_sites": least}).thresholds() == said.thresholds()
    try:
        assert said.thresholds(min(size, sites)).min_sites == least <= size
    except UnsafePlan:
        assert size < least


@pytest.mark.parametrize(("changes", "expects", "got", "hint"), [
    ({"sites": NAMES[:2]}, "at least 3 sites", "2", "each knows the other's organ"),
    ({"collude": 3}, "collude of at most 2 for 4 sites", "3", "somebody has to be honest"),
    ({"vanish": 2}, "vanish of at most 1 with 4 sites and collude 1", "2", "3 sites must answer"),
    ({"min_sites": 2}, "min_sites from 3 to 4", "2", "what one honest site sent"),
    ({"min_sites": 5}, "min_sites from 3 to 4", "5", "can never be formed"),
    ({"value_bits": 31}, "value_bits of at most 30", "31", "could overflow"),
    ({"max_weight": 257, "value_bits": 23}, "value_bits of at most 21", "23", "could overflow"),
    ({"quorum": 5}, "a quorum of at most 4", "5", "no vote could ever reach it"),
    ({"blind": True}, "a quorum with blind", "0", "looked at by the sites"),
])  # fmt: skip
def test_a_refused_plan_says_why_in_words(changes: dict[str, Any], expects: str, got: str, hint: str) -> None:
    with pytest.raises(UnsafePlan) as caught:
        plan(**changes).thresholds()
    error = caught.value
    assert error.exit_code == 4
    assert (expects in error.expected, error.got, hint in error.hint) == (True, got, True)


def test_the_bound_it_names_is_one_that_works() -> None:
    for bits, weight, sites in itertools.product((16, 32), (1, 3, 256, 257, 4096), (3, 4, 5, 250)):
        said = plan(sites, word_bits=bits, value_bits=31, max_weight=weight)
        with pytest.raises(UnsafePlan) as caught:
            said.thresholds()
        room = int(caught.value.expected.partition("at most ")[2].split()[0])
        if room >= 4:
            plan(sites, word_bits=bits, value_bits=room, max_weight=weight).thresholds()
            with pytest.raises(UnsafePlan):
                plan(sites, word_bits=bits, value_bits=room + 1, max_weight=weight).thresholds()


@pytest.mark.parametrize("changes", [
    {"sites": ()}, {"sites": ("b", "a", "c")}, {"sites": ("a", "a", "b")}, {"sites": ("a", "b", "hub")},
    {"sites": ("a", "b", "../c")}, {"sites": ["a", "b", "c"]}, {"spans": ()}, {"spans": ((8, 4),)},
    {"spans": ((-1, 4),)}, {"rounds": 0}, {"rounds": True}, {"rounds": 1.0}, {"collude": -1}, {"vanish": "0"},
    {"word_bits": 24}, {"value_bits": 3}, {"value_bits": 32}, {"clip": 0.0}, {"clip": float("nan")},
    {"clip": float("inf")}, {"max_weight": 0}, {"max_weight": MAX_WEIGHT + 1}, {"blind": 1}, {"quorum": -1},
    {"base_sha256": "AB" * 32}, {"federation": ""}, {"run": "a b"}, {"threshold": 1}, {"helpers": 1}, {"shares": 1},
])  # fmt: skip
def test_a_plan_of_another_shape_is_no_plan(changes: dict[str, Any]) -> None:
    assert plan(3).thresholds().shares == 3
    with pytest.raises(ValidationError):
        plan(**changes)


DIFFERENT: dict[str, Any] = {
    "federation": "highlands", "run": "summer", "coordinator": "bub", "sites": NAMES[:5], "rounds": 4,
    "base_sha256": "cd" * 32, "spans": ((4, 8), (8, 12)), "collude": 2, "vanish": 1, "min_sites": 3, "word_bits": 16,
    "value_bits": 23, "clip": 0.125, "max_weight": 2, "blind": True, "quorum": 1,
}  # fmt: skip


def test_the_digest_is_of_every_field() -> None:
    assert set(DIFFERENT) == set(SumPlan.model_fields)
    digests = {plan().sha256, *(plan(**{field: value}).sha256 for field, value in DIFFERENT.items())}
    assert len(digests) == len(DIFFERENT) + 1
    assert plan().sha256 == plan().model_copy().sha256
    assert plan(clip=1).sha256 == plan(clip=1.0).sha256  # what is equal has one digest


def test_plans_come_back_from_their_file_as_they_were() -> None:
    kept = PlansFile(plans=(plan(run="a", **{"blind": True, "quorum": 2}), plan(run="b", clip=1e-7)), removed=("c",))
    data = canonical.dumps(kept.model_dump(mode="json"))
    assert parse_plans(data, where="plans") == kept
    assert [each.sha256 for each in parse_plans(data, where="plans").plans] == [each.sha256 for each in kept.plans]


@pytest.mark.parametrize("changes", [
    {"plans": (plan(run="b"), plan(run="a"))}, {"plans": (plan(), plan())}, {"plans": (plan(), plan(rounds=9))},
    {"plans": (plan(),), "removed": ("spring",)}, {"removed": ("b", "a")}, {"removed": ("a", "a")},
    {"removed": ("..",)}, {"format": "not-fed.plans/2"}, {"more": 1},
    {"plans": tuple(plan(run=f"run-{number:03d}") for number in range(201))},
])  # fmt: skip
def test_a_run_has_one_plan_or_none_for_good(changes: dict[str, Any]) -> None:
    assert PlansFile(plans=(plan(run="a"), plan(run="b")), removed=("c",)).plans[1].run == "b"
    with pytest.raises(ValidationError):
        PlansFile(**changes)
