"""Rules that bear liars: what they promise of any organs, beside Flower's own and beside the papers' formulas."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, RecordDict
from flwr.server.strategy import aggregate as flower
from flwr.serverapp.strategy.multikrum import compute_distances, select_multikrum
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from not_fed.aggregation import robust
from not_fed.aggregation.mean import BadWeight, TensorsDiffer
from not_fed.aggregation.robust import CannotCombine, Contribution, CutShort, Remark, combine, distances, norms
from not_fed.aggregation.rules import BadRule, NormLimit, Rule, RuleName
from not_fed.coordinator.plan import FederationPlan
from not_fed.envelope.finite import OrganNotFinite
from not_fed.organ.checkpoint import Place
from not_fed.organ.organ import read_organ
from not_fed.organ.robust import RobustOrgans
from not_fed.settings import BadSettings, check
from tests.support.trust import DP, organ_bytes

Numbers = NDArray[np.float32]
Rows = Sequence[NDArray[Any]] | NDArray[Any]
FORMATS = {"F64": "<f8", "F32": "<f4", "F16": "<f2"}
LIARS: tuple[RuleName, ...] = ("median", "trimmed-mean", "krum", "multi-krum")
ANY = st.sampled_from([0.1, -0.1, 1e8, -1e8, 1e-9, 0.0, -0.0, 1 / 3, 7.0])  # sums depend on their order
WHOLE = st.integers(-1000, 1000).map(lambda number: number / 64)  # any format but BF16 holds them exactly
HUGE = st.sampled_from([0.0, 1.0, -3e38, 3e38, 1e30, -1e-30, 7.5])


def encoded(numbers: NDArray[Any], dtype: str) -> bytes:
    """As a tensor file has them; whole bfloat16 numbers only."""
    if dtype != "BF16":
        return numbers.astype(FORMATS[dtype]).tobytes()
    return (numbers.astype("<f4").view("<u4") >> 16).astype("<u2").tobytes()


def decoded(data: bytes, dtype: str) -> NDArray[np.float64]:
    if dtype != "BF16":
        return np.frombuffer(data, FORMATS[dtype]).astype(np.float64)
    return (np.frombuffer(data, "<u2").astype("<u4") << 16).view("<f4").astype(np.float64)


def stored(folder: Path, numbers: NDArray[Any], name: str, *, dtype: str = "F32") -> dict[str, Place]:
    """Two tensors, one after the other, behind eight other bytes."""
    data, cut = encoded(numbers, dtype), len(numbers) // 3
    width = len(data) // max(1, len(numbers))
    file = folder / f"{name}.bin"
    file.write_bytes(b"\xff" * 8 + data)
    ends = (0, cut * width), (cut * width, len(data))
    return {
        f"layers.{number}": Place(file, dtype, ((end - begin) // width,), 8 + begin, 8 + end)
        for number, (begin, end) in enumerate(ends)
    }


def contributions(folder: Path, rows: Rows, *, dtype: str = "F32") -> list[Contribution]:
    """One organ a row."""
    found = []
    for number, row in enumerate(rows):
        tensors = stored(folder, row, f"site-{number}", dtype=dtype)
        sha256 = hashlib.sha256(encoded(row, dtype)).hexdigest()
        found.append(Contribution(name=f"site-{number}", sha256=sha256, tensors=tensors))
    return found


def aggregated(
    rows: Rows, rule: Rule, *, dtype: str = "F32", order: Sequence[int] | None = None
) -> NDArray[np.float64]:
    """The numbers of the aggregate of some organs, added in some order."""
    with tempfile.TemporaryDirectory() as folder:
        organs = contributions(Path(folder), rows, dtype=dtype)
        combined = combine([organs[number] for number in order or range(len(organs))], rule=rule)
        return np.concatenate([decoded(b"".join(combined.blocks(name)), dtype) for name in combined.tensors()])


def random_rows(count: int, *, size: int = 60, seed: int = 0) -> Numbers:
    return np.random.default_rng(seed).normal(size=(count, size)).astype(np.float32)


def krum_by_the_paper(rows: NDArray[np.float64], byzantine: int) -> list[float]:
    """Blanchard et al. 2017, section 4, word by word: summed squared distances to the n - f - 2 closest others."""
    scores = []
    for i in range(len(rows)):
        apart = sorted(float(((rows[i] - rows[j]) ** 2).sum()) for j in range(len(rows)) if j != i)
        scores.append(sum(apart[: len(rows) - byzantine - 2]))
    return scores


ROWS, ANY_ROWS = (
    st.integers(5, 8).flatmap(
        lambda count, number=number: st.lists(  # type: ignore[misc]
            st.lists(number, min_size=6, max_size=6), min_size=count, max_size=count
        )
    )
    for number in (WHOLE, ANY)
)


@settings(max_examples=50, deadline=None)
@given(rows=ANY_ROWS, order=st.randoms(use_true_random=False))
@pytest.mark.parametrize("name", ["mean", *LIARS])
def test_the_order_in_which_organs_come_does_not_matter(name: RuleName, rows: list[list[float]], order: Any) -> None:  # noqa: ANN401
    rule = Rule(name=name, byzantine=int(name != "mean"))
    table, places = np.array(rows), list(range(len(rows)))
    order.shuffle(places)
    found = aggregated(table, rule, dtype="F64")
    assert found.tobytes() == aggregated(table, rule, dtype="F64", order=places).tobytes()


@settings(max_examples=80, deadline=None)
@given(
    rows=ROWS,
    lies=st.lists(st.lists(HUGE, min_size=6, max_size=6), min_size=1, max_size=3),
    dtype=st.sampled_from(["F32", "F64"]),
)
@pytest.mark.parametrize("name", ["median", "trimmed-mean"])
def test_liars_of_any_size_cannot_leave_the_honest_range(
    name: RuleName, rows: list[list[float]], lies: list[list[float]], dtype: str
) -> None:
    honest = np.array(rows, dtype=np.float32)
    rule = Rule(name=name, byzantine=len(lies))
    found = aggregated([*honest, *np.array(lies, dtype=np.float32)], rule, dtype=dtype)
    assert (honest.min(axis=0) <= found).all()
    assert (found <= honest.max(axis=0)).all()


@settings(max_examples=50, deadline=None)
@given(rows=ROWS, far=st.floats(1e3, 2.0**60, width=32), one=st.integers(0, 5))
@pytest.mark.parametrize("name", ["krum", "multi-krum"])
def test_a_liar_far_away_is_never_chosen(name: RuleName, rows: list[list[float]], far: float, one: int) -> None:
    honest = np.array(rows, dtype=np.float32)
    lie = np.zeros(6, dtype=np.float32)
    lie[one] = far
    found = aggregated([*honest, lie], Rule(name=name, byzantine=1))
    assert (honest.min(axis=0) <= found).all()
    assert (found <= honest.max(axis=0)).all()


@pytest.mark.parametrize("dtype", ["F64", "F32", "F16", "BF16"])
@pytest.mark.parametrize("name", ["mean", *LIARS])
def test_organs_that_are_alike_are_their_own_aggregate(
    name: RuleName, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(robust, "BLOCK_NUMBERS", 35)  # seven numbers of five organs at a time
    row = decoded(encoded(random_rows(1)[0], "BF16"), "BF16")
    found = aggregated([row] * 5, Rule(name=name, byzantine=int(name != "mean")), dtype=dtype)
    assert (found == row).all()


def test_sums_are_rounded_once_to_the_nearest_number_of_the_format() -> None:
    """Of 1 and the next number of the format, a third of the way up: nearer to 1; two thirds: nearer to the other."""
    for dtype, step in (("F32", 2.0**-23), ("F16", 2.0**-10), ("BF16", 2.0**-7)):
        low, high = np.array([1.0] * 6), np.array([1.0 + step] * 6)
        assert (aggregated([low, low, high], Rule(), dtype=dtype) == low).all()
        assert (aggregated([low, high, high], Rule(), dtype=dtype) == high).all()
        assert (aggregated([low, high], Rule(), dtype=dtype) == low).all()  # a tie goes to the even one


@pytest.mark.parametrize("count", [5, 6, 11])
def test_median_and_trimmed_mean_are_flowers(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(robust, "BLOCK_NUMBERS", 7 * count)
    rows = random_rows(count)
    results = [([row], 1) for row in rows]
    median: Any = flower.aggregate_median(results)[0]
    np.testing.assert_allclose(aggregated(rows, Rule(name="median", byzantine=2)), median, rtol=1e-6, atol=1e-7)
    trimmed: Any = flower.aggregate_trimmed_avg(results, 2 / count + 1e-9)[0]
    np.testing.assert_allclose(aggregated(rows, Rule(name="trimmed-mean", byzantine=2)), trimmed, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("count", "byzantine", "keep"), [(5, 1, 2), (7, 2, 3), (9, 2, 4), (9, 3, 1)])
def test_krum_and_multi_krum_choose_as_the_paper_does_and_as_flower_where_its_numbers_are_good(
    count: int, byzantine: int, keep: int
) -> None:
    for seed in range(5):
        rows = random_rows(count, seed=seed)
        scores = krum_by_the_paper(rows.astype(np.float64), byzantine)
        best = np.argsort(scores)
        krum = aggregated(rows, Rule(name="krum", byzantine=byzantine))
        np.testing.assert_array_equal(krum, rows[best[0]])
        np.testing.assert_array_equal(krum, flower.aggregate_krum([([row], 1) for row in rows], byzantine, 0)[0])
        several = aggregated(rows, Rule(name="multi-krum", byzantine=byzantine, keep=keep))
        np.testing.assert_allclose(several, rows[best[:keep]].mean(axis=0), rtol=1e-6, atol=1e-7)
        chosen = select_multikrum([record(row) for row in rows], byzantine, keep)
        np.testing.assert_allclose(several, np.mean([numbers(one) for one in chosen], axis=0), rtol=1e-6, atol=1e-7)


def record(row: Numbers) -> RecordDict:
    return RecordDict({"arrays": ArrayRecord({"layer": Array(row)})})


def numbers(content: RecordDict) -> Numbers:
    found = content["arrays"]
    assert isinstance(found, ArrayRecord)
    return found["layer"].numpy()


def test_flowers_newer_krum_loses_small_distances_and_ours_does_not() -> None:
    """Where the two differ: weights are large beside what a round changes, and Flower subtracts their norms in float32.

    Six organs near 3 in 4,000 weights differ by 1e-4; one more is as far from all of them as four of those. By the
    formula it is worst; Flower's distances are rounding, some below zero, and its older function agrees with the paper.
    """
    source = np.random.default_rng(1)
    rows = (3 + 1e-4 * source.normal(size=(7, 4000))).astype(np.float32)
    rows[6] += (4e-4 * source.normal(size=4000)).astype(np.float32)
    exact = np.array(krum_by_the_paper(rows.astype(np.float64), 2))
    assert exact.argmax() == 6
    contents = [record(row) for row in rows]
    off_diagonal = compute_distances([one["arrays"] for one in contents])[~np.eye(7, dtype=bool)]  # type: ignore[misc]
    true = np.array([((one - other) ** 2).sum() for one, other in itertools.permutations(rows.astype(np.float64), 2)])
    assert np.abs(off_diagonal / true - 1).max() > 1  # wrong by more than all of it
    ours = aggregated(rows, Rule(name="krum", byzantine=2))
    np.testing.assert_array_equal(ours, rows[exact.argmin()])
    np.testing.assert_array_equal(ours, flower.aggregate_krum([([row], 1) for row in rows], 2, 0)[0])


def test_distances_are_good_where_a_round_changes_less_than_their_norms_are_rounded_by() -> None:
    rows = 3 + 1e-9 * np.random.default_rng(2).normal(size=(7, 4000))
    with tempfile.TemporaryDirectory() as folder:
        found = distances(contributions(Path(folder), rows, dtype="F64"))
    exact = [[((one - other) ** 2).sum() for other in rows] for one in rows]
    np.testing.assert_allclose(found, exact, rtol=1e-9)


def test_one_huge_liar_does_not_drown_the_distances_of_the_others() -> None:
    rows = random_rows(7)
    rows[3] = 3e38
    exact = krum_by_the_paper(np.delete(rows, 3, axis=0).astype(np.float64), 0)  # 4 closest of 5: as with b = 1 of 7
    found = aggregated(rows, Rule(name="krum", byzantine=1))
    np.testing.assert_array_equal(found, np.delete(rows, 3, axis=0)[int(np.argmin(exact))])


def test_flower_goes_on_where_krum_has_no_promise_and_we_refuse() -> None:
    rows = random_rows(4)
    assert len(select_multikrum([record(row) for row in rows], 3, 1)) == 1  # four organs, three of them liars
    with pytest.raises(BadRule, match="at least 9 organs"):
        aggregated(rows, Rule(name="krum", byzantine=3))


def limited(tmp_path: Path, rows: Rows, rule: Rule) -> tuple[NDArray[np.float64], list[Remark]]:
    """The aggregate of rows whose round began at ones, and what was remarked."""
    start, told = stored(tmp_path, np.ones(len(rows[0])), "start"), list[Remark]()
    combined = combine(contributions(tmp_path, rows), rule=rule, start=start, tell=told.append)
    assert tuple(told) == combined.remarks
    return np.concatenate([decoded(b"".join(combined.blocks(name)), "F32") for name in combined.tensors()]), told


def test_an_organ_beyond_the_norm_is_pulled_back_along_its_own_direction_or_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(robust, "BLOCK_NUMBERS", 20)
    ways = [np.sign(row) / 4 for row in random_rows(4, size=16)]  # each of norm 1
    rows = [1 + way for way in ways[:3]] + [1 + 30 * ways[3]]
    clipped, told = limited(tmp_path, rows, Rule(limit=NormLimit(max_norm=2.0)))
    np.testing.assert_allclose(clipped, 1 + (sum(ways[:3]) + 2 * ways[3]) / 4, rtol=1e-6)
    assert [(remark.name, remark.code, remark.left_out) for remark in told] == [("site-3", "norm-clipped", False)]
    assert told[0].figure == pytest.approx(15.0)
    by_ratio, _ = limited(tmp_path, rows, Rule(limit=NormLimit(max_ratio=2.0)))
    np.testing.assert_array_equal(by_ratio, clipped)  # the median norm is 1
    without, told = limited(tmp_path, rows, Rule(limit=NormLimit(max_ratio=1.5, leave_out=True)))
    np.testing.assert_allclose(without, 1 + sum(ways[:3]) / 3, rtol=1e-6)
    assert [(remark.name, remark.code, remark.left_out) for remark in told] == [("site-3", "norm-exceeded", True)]
    assert "30" not in str(told[0])
    assert "20 times as far from the start as allowed" in str(told[0])


@pytest.mark.parametrize("name", ["mean", *LIARS])
def test_with_a_limit_no_single_organ_moves_any_rule_farther_than_the_limit(name: RuleName, tmp_path: Path) -> None:
    rows = [*(1 + random_rows(5, size=12) / 100), np.full(12, -1e30, dtype=np.float32)]
    found, _ = limited(tmp_path, rows, Rule(name=name, byzantine=int(name != "mean"), limit=NormLimit(max_norm=0.5)))
    assert np.linalg.norm(found - 1) <= 0.5 * (1 + 1e-6)


def test_norms_are_those_of_the_difference_from_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(robust, "BLOCK_NUMBERS", 20)
    rows, start = random_rows(4), random_rows(1, seed=9)[0]
    found = norms(contributions(tmp_path, rows), start=stored(tmp_path, start, "start"))
    np.testing.assert_allclose(found, np.linalg.norm(rows.astype(np.float64) - start, axis=1), rtol=1e-12)


def test_when_the_filter_leaves_too_few_there_is_no_aggregate_and_it_is_told_who_was_left_out(tmp_path: Path) -> None:
    rows = [*(1 + random_rows(4, size=12) / 100), np.full(12, 9, dtype=np.float32)]
    rule = Rule(name="krum", byzantine=1, limit=NormLimit(max_norm=1.0, leave_out=True))
    told: list[Remark] = []
    with pytest.raises(BadRule, match="at least 5 organs"):
        combine(
            contributions(tmp_path, rows), rule=rule, start=stored(tmp_path, np.ones(12), "start"), tell=told.append
        )
    assert [remark.name for remark in told] == ["site-4"]


@pytest.mark.parametrize("name", ["mean", *LIARS])
@pytest.mark.parametrize("number", [np.nan, np.inf])
def test_an_organ_with_a_number_that_is_none_is_refused_by_name(name: RuleName, number: float) -> None:
    rows = random_rows(5)
    rows[2, 7] = number
    with pytest.raises(OrganNotFinite, match="site-2"):
        aggregated(rows, Rule(name=name, byzantine=int(name != "mean")))


def test_what_cannot_be_combined_is_refused(tmp_path: Path) -> None:
    organs = contributions(tmp_path, random_rows(5))
    median = Rule(name="median", byzantine=1)
    other = stored(tmp_path, random_rows(1, size=61)[0], "other")
    with pytest.raises(TensorsDiffer):
        combine([*organs, Contribution(name="other", sha256="f" * 64, tensors=other)], rule=median)
    with pytest.raises(TensorsDiffer):
        combine(organs, rule=Rule(limit=NormLimit(max_norm=1.0)), start=other)
    with pytest.raises(BadRule):
        combine(organs, rule=Rule(limit=NormLimit(max_norm=1.0)))
    with pytest.raises(BadWeight):
        heavy = Contribution(name="heavy", sha256="f" * 64, tensors=organs[0].tensors, weight=2.0)
        combine([*organs, heavy], rule=median)
    blocks = {"layers.0": Place(tmp_path / "site-0.bin", "U8", (4,), 8, 12)}
    with pytest.raises(CannotCombine):
        combine([Contribution(name="q", sha256="f" * 64, tensors=blocks)] * 3, rule=median)
    combined = combine(organs, rule=median)
    (tmp_path / "site-1.bin").write_bytes(b"\0" * 100)
    with pytest.raises(CutShort, match="site-1"):
        list(combined.blocks("layers.1"))


REFUSED = {
    "one liar moves it": {"name": "mean", "byzantine": 1},
    "where nobody lies the mean is better": {"name": "median"},
    "trim of at least byzantine = 2": {"name": "trimmed-mean", "byzantine": 2, "trim": 1},
    "trim with the trimmed-mean only": {"name": "median", "byzantine": 1, "trim": 1},
    "keep with multi-krum only": {"name": "krum", "byzantine": 1, "keep": 2},
}
TOO_FEW = {
    "at least 5 organs: the honest must outnumber 2 that lie": {"name": "median", "byzantine": 2},
    "at least 7 organs: 3 are left out at either end": {"name": "trimmed-mean", "byzantine": 2, "trim": 3},
    "at least 5 organs: it bears 1 that lies from 2 byzantine": {"name": "krum", "byzantine": 1},
    "at least 6 organs: it bears 1 that lies": {"name": "multi-krum", "byzantine": 1, "keep": 3},
}


def test_a_rule_that_cannot_keep_its_promise_is_refused_in_words() -> None:
    for words, parameters in REFUSED.items():
        with pytest.raises(BadRule, match=words):
            Rule(**parameters)  # type: ignore[arg-type]
    for words, parameters in TOO_FEW.items():
        rule = Rule(**parameters)  # type: ignore[arg-type]
        rule.check(rule.fewest)
        with pytest.raises(BadRule, match=words):
            rule.check(rule.fewest - 1)
    for bad in ({}, {"max_norm": 0.0}, {"max_ratio": float("inf")}):
        with pytest.raises(BadRule):
            NormLimit(**bad)  # type: ignore[arg-type]


PLAN = {
    "name": "hub", "federation": "lowlands", "run": "run-1", "mode": "trusted", "rounds": 1, "base_sha256": "ab" * 32,
    "sites": ["a", "b", "c", "d", "e"], "base": "base", "span": [0, 2], "min_answers": 5,
    "training": {"lr": 1e-3, "epochs": 1, "batch_tokens": 10, "max_tokens": 10},
}  # fmt: skip
WRONG_PLANS: dict[str, dict[str, Any]] = {
    "min_answers for krum of at least 5 organs": {"robust": {"rule": "krum"}, "min_answers": 4},
    "min_answers for median of at least 3 organs": {"robust": {"rule": "median"}, "min_answers": 2},
    "equal weights with median": {"robust": {"rule": "median"}, "weights": {"a": 2.0}},
    "robust] in mode trusted only": {"robust": {"rule": "median"}, "mode": "bank"},
    "one liar moves it": {"robust": {"rule": "mean", "byzantine": 1}},
    "trim of at least byzantine": {"robust": {"rule": "trimmed-mean", "byzantine": 2, "trim": 1}},
    "fewer than 250 sites": {"robust": {"max_norm": 1.0}, "sites": [f"s{n}" for n in range(250)]},
}


def test_a_plan_names_its_rule_and_one_that_does_not_fit_is_refused_in_words() -> None:
    plan = check(FederationPlan, PLAN | {"robust": {"rule": "multi-krum", "max_ratio": 3.0}}, where="plan")
    assert plan.rule == Rule(name="multi-krum", byzantine=1, limit=NormLimit(max_ratio=3.0))
    assert plan.needs_start
    assert check(FederationPlan, PLAN, where="plan").rule == Rule()
    for rule in ({"rule": "median"}, {"rule": "mean", "max_norm": 2.0, "beyond": "leave-out"}):
        assert check(FederationPlan, PLAN | {"robust": rule, "weights": {"a": 1.0}}, where="plan").rule.needs_all
    for words, changes in WRONG_PLANS.items():
        with pytest.raises(BadSettings, match=words):
            check(FederationPlan, PLAN | changes, where="plan")


def test_the_manifest_says_which_rule_was_used_and_who_was_left_out(tmp_path: Path) -> None:
    organs = []
    for number, value in enumerate((0.5, 0.6, 0.7, 0.8, 50.0)):
        organ = tmp_path / f"{number}.organ"
        organ.write_bytes(organ_bytes(value=value, dp=DP | {"epsilon": 1.0 + number}))
        organs.append(read_organ(organ))
    rule = Rule(name="multi-krum", byzantine=1, limit=NormLimit(max_norm=1e9))
    mean, told = RobustOrgans(rule, start=organs[0].places), list[Remark]()
    for info in organs:
        mean.add(info.path, name=info.path.stem)
    manifest = mean.write(tmp_path / "out.organ", tell=told.append).manifest
    assert manifest.training is not None
    out = {remark.sha256 for remark in told}
    assert {remark.name for remark in told} >= {"4"}
    assert len(out) == 3
    assert set(manifest.parents) == {info.sha256 for info in organs} - out
    assert manifest.training == {
        "mode": "multi-krum", "byzantine": 1, "max_norm": 1e9, "beyond": "clipped", "left_out": sorted(out),
        "weights": dict.fromkeys(sorted(manifest.parents), 1.0),
        "dp": DP | {"epsilon": 5.0},  # of all five: those that were left out had a say in who was chosen
    }  # fmt: skip


def test_an_aggregate_of_many_organs_fits_its_manifest_and_names_them_by_one_digest(tmp_path: Path) -> None:
    mean = RobustOrgans(Rule(name="median", byzantine=1))
    for number in range(60):
        organ = tmp_path / f"{number}.organ"
        organ.write_bytes(organ_bytes(value=number))
        mean.add(organ, name=str(number))
    training = mean.write(tmp_path / "out.organ").manifest.training
    assert training == {"mode": "median", "byzantine": 1, "dp": None, "organs": 60}


def test_memory_stays_at_64_mib_whatever_the_number_and_size_of_organs(tmp_path: Path) -> None:
    """In a process of its own, over what it had after a small aggregate: 16 organs of 8 MiB, 256 MiB in float64."""
    script = f"""
import json
import re
from pathlib import Path
from not_fed.aggregation.robust import Contribution, combine
from not_fed.aggregation.rules import NormLimit, Rule
from not_fed.bench.harness import peak_memory_mb, reset_peak_memory, resting_memory_mb
from not_fed.organ.checkpoint import Place

def organs(count, size):
    found = []
    for number in range(count):
        file = Path({str(tmp_path)!r}) / f"{{number}}-{{size}}.bin"
        file.touch()
        import os; os.truncate(file, 4 * size)  # zeros that take no disk
        place = Place(file, "F32", (size,), 0, 4 * size)
        found.append(Contribution(name=str(number), sha256=f"{{number:064x}}", tensors={{"layers.0": place}}))
    return found

def peak(count, size, rule):
    several = organs(count, size)
    rest = resting_memory_mb()
    reset_peak_memory()
    combined = combine(several, rule=rule, start=several[0].tensors)
    assert sum(len(block) for block in combined.blocks("layers.0")) == 4 * size
    return peak_memory_mb() - rest

limit = NormLimit(max_norm=1.0)
rules = [Rule(name=name, byzantine=int(name != "mean"), limit=limit)
         for name in ("mean", "median", "trimmed-mean", "krum", "multi-krum")]
for rule in rules:
    peak(5, 100, rule)
print(json.dumps([max(peak(5, 1 << 21, rule), peak(16, 1 << 21, rule)) for rule in rules]))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert max(json.loads(done.stdout)) < 64, done.stdout


def test_the_page_shows_a_plan_that_is_accepted() -> None:
    page = (Path(__file__).parents[2] / "docs" / "robust.md").read_text()
    (example,) = re.findall(r"```toml\n(.*?)```", page, re.DOTALL)
    plan = check(FederationPlan, PLAN | tomllib.loads(example), where="plan")
    assert plan.rule == Rule(name="trimmed-mean", byzantine=1, limit=NormLimit(max_ratio=3.0))
