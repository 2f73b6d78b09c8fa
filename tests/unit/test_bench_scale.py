"""The benchmark of what a federation itself costs."""

from __future__ import annotations

from itertools import count
from pathlib import Path

import pytest

from not_fed.bench.scale import bench_scale, conclusion, table
from not_fed.simulation.meter import Meter, replaced
from tests.support import metered

STAGES = {"outer": ["tests.support.metered:outer"], "inner": ["tests.support.metered:inner"]}


def test_time_within_a_stage_belongs_to_the_innermost_one() -> None:
    ticks = count()
    with Meter(STAGES, clock=lambda: float(next(ticks))) as meter:
        metered.outer()
    # one tick each: until outer, in outer, in inner, in outer again, until the end
    assert meter.seconds == {"outer": 2.0, "inner": 1.0, "carrying": 2.0}


def test_a_function_that_is_not_there_any_more_is_named() -> None:
    with pytest.raises(AttributeError), replaced("not_fed.files:no_such_function", lambda function: function):
        pass


def test_both_sides_compute_the_same_aggregate_and_each_stage_is_measured(tmp_path: Path) -> None:
    result = bench_scale(sites=3, rounds=2, repeats=1, real=False, folder=tmp_path)
    assert result["parameters"] == 999_936
    assert result["ratio"] > 1
    for stage in ("sealing", "signing", "checking", "carrying", "averaging", "keys and rosters", "remembering", "log"):
        assert result["ours"]["stages"][stage] > 0, stage
    assert "FedAvg" in table(result)
    assert "3 sites" in conclusion(result)
    assert list(tmp_path.iterdir()) == []
