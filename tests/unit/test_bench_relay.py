"""`bench_relay`, small: what it promises about bytes and processes, and its shape; not its speed or memory."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from not_fed.bench.proc import programs
from not_fed.bench.relay import MIB, RECIPIENTS, bench_relay, table
from not_fed.bench.relay_flower import NAMES, measure_flower

CHUNK = 4 * MIB
BANK = {
    "size_bytes", "recipients", "rest_mb", "extra_mb_upload", "extra_mb_downloads", "arrived_before_the_kill",
    "sent_twice", "gateway_cpu_s",
}  # fmt: skip


def test_a_gateway_that_is_killed_in_an_upload_is_sent_the_rest_only(tmp_path: Path) -> None:
    before = set(programs({os.getpid(): "test"}))
    result = bench_relay(tmp_path / "work", size_bytes=8 * MIB, flower_bytes=0)
    bank = result["bank"]
    assert result["schema"] == "not-fed/bench-relay/1"
    assert result["flower"] is None
    assert 8 * MIB < bank["size_bytes"] < 8 * MIB + CHUNK
    assert 0 < bank["arrived_before_the_kill"] < bank["size_bytes"]
    assert 0 < bank["sent_after"] < bank["size_bytes"]
    assert 0 <= bank["sent_twice"] <= 2 * CHUNK
    sealed = (tmp_path / "work" / "organ.sealed").read_bytes()
    assert [(tmp_path / "work" / name).read_bytes() == sealed for name in RECIPIENTS] == [True] * 3
    assert set(programs({os.getpid(): "test"})) <= before
    assert bank.keys() >= BANK
    assert "3 sites" in table(result)


@pytest.mark.faults
def test_flower_carries_a_message_there_and_back_and_nothing_runs_on(tmp_path: Path) -> None:
    result = measure_flower(tmp_path / "work", size_bytes=MIB)
    assert result["finished"]
    assert result["got"] == f"{MIB} bytes"
    apps = {"flwr-serverapp of superexec", "flwr-clientapp of site-superexec"}
    assert set(result["peak_mb"]) == set(result["cpu_s"]) == {*NAMES, *apps}
    assert min(result["peak_mb"].values()) > 50
    assert f"{result['seconds']:.0f} s" in table({"bank": dict.fromkeys(BANK, 1), "flower": result})
    assert not list((tmp_path / "work").glob("state.db*"))
    assert set(programs({os.getpid(): "test"})) == {os.getpid()}


@pytest.mark.faults
def test_a_message_that_is_not_back_in_time_is_told_with_the_numbers_until_then(tmp_path: Path) -> None:
    result = measure_flower(tmp_path / "work", size_bytes=MIB, timeout_s=0.0)
    assert not result["finished"]
    assert result["got"] == "nothing in time"
    assert set(result["peak_mb"]) >= set(NAMES)
    assert "not finished" in table({"bank": dict.fromkeys(BANK, 1), "flower": result})
    assert set(programs({os.getpid(): "test"})) == {os.getpid()}
